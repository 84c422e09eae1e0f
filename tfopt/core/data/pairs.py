"""Which inputs and outputs of two models are one: by name where both sides have names, never by chance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras

from tfopt.core.data.inputs import Input, inputs_of, is_numbered
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of


def paired(mine: Sequence[Input], theirs: Sequence[Input], me: str, them: str) -> list[int]:
    """For each input of `theirs` the place of the one in `mine` that gets the same data.

    Inputs of the same names go together. Of others the shape and the kind of numbers tell, where only one fits. The
    order tells where there are no names but those that Keras counts.

    Args:
        mine, theirs: inputs of two models.
        me, them: names of the models, for errors.

    Raises:
        InvalidArgumentError: another number of inputs, or neither names nor shapes tell.

    Example:
        >>> image, meta = (Input(name, (None, 4), "float32") for name in ("image", "meta"))
        >>> paired([image, meta], [meta, image], "one", "two")
        [1, 0]
    """
    names = [own.name for own in mine]
    if len(mine) != len(theirs):
        raise _unpaired(mine, theirs, me, them)
    if sorted(names) == sorted(own.name for own in theirs):
        return [names.index(own.name) for own in theirs]
    known = {own.name: place for place, own in enumerate(mine) if not is_numbered(own.name)}
    places = {i: known[own.name] for i, own in enumerate(theirs) if own.name in known}
    left = [i for i in range(len(theirs)) if i not in places]
    free = [place for place in range(len(mine)) if place not in places.values()]
    if _order_tells([mine[place] for place in free], [theirs[i] for i in left], len(mine)):
        places.update(zip(left, free, strict=True))
    else:
        alike = {i: [place for place in range(len(mine)) if _is_alike(mine[place], theirs[i])] for i in left}
        if sorted(place for fitting in alike.values() for place in fitting) != free or not all(alike.values()):
            raise _unpaired(mine, theirs, me, them)
        places.update({i: fitting[0] for i, fitting in alike.items()})
    return [places[i] for i in range(len(theirs))]


def _order_tells(mine: Sequence[Input], theirs: Sequence[Input], count: int) -> bool:
    """Whether inputs that are left go together in their order: there is one in all, or no name speaks against it."""
    numbered = [is_numbered(own.name) for own in (*mine, *theirs)]
    return count == 1 or all(numbered) or (len(mine) == 1 and any(numbered))


def in_order_of(model: keras.Model, x: Sequence[Any], order: Sequence[int]) -> Any:
    """What a model is called with: the parts of `x` in the order that `paired` gave, in the structure of its inputs."""
    parts, structure = [x[place] for place in order], functional_of(model).input
    if isinstance(structure, (list, tuple)) and len(structure) == 1:
        return parts[0]
    return keras.tree.pack_sequence_as(structure, parts)


def as_read_by(model: keras.Model, x: Any, first: keras.Model) -> Any:
    """Inputs in the structure in which `first` takes them, in that in which `model` takes the same.

    Raises:
        InvalidArgumentError: as `paired`.
    """
    order = paired(inputs_of(first), inputs_of(model), first.name, model.name)
    return in_order_of(model, keras.tree.flatten(x), order)


def output_names(model: keras.Model) -> list[str]:
    """Names of the outputs in flat order: the keys of a dict, else those of the layers that give them.

    Example:
        >>> x = keras.Input((2,))
        >>> y = {"b": keras.layers.Dense(1)(x), "a": keras.layers.Dense(1)(x)}
        >>> output_names(keras.Model(x, y))
        ['a', 'b']
    """
    functional = functional_of(model)
    if isinstance(functional.output, dict):
        return ["/".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(functional.output)]
    return list(functional.output_names)


def paired_outputs(mine: keras.Model, theirs: keras.Model) -> list[int]:
    """For each output of `theirs` the place of the same one of `mine`: by name where all have names, else by order.

    Example:
        >>> def net(*names):
        ...     x = keras.Input((2,))
        ...     return keras.Model(x, [keras.layers.Dense(1, name=name)(x) for name in names])
        >>> paired_outputs(net("age", "height"), net("height", "age")), paired_outputs(net(None), net("age"))
        ([1, 0], [0])
    """
    names, others = output_names(mine), output_names(theirs)
    same = len(set(names)) == len(names) and sorted(names) == sorted(others)
    if same and names != others and all(map(names_its_outputs, (mine, theirs))):
        return [names.index(name) for name in others]
    return list(range(len(others)))


def names_its_outputs(model: keras.Model) -> bool:
    """Whether none of the names of the outputs is one that Keras made by counting."""
    functional = functional_of(model)
    if isinstance(functional.output, dict):
        return True
    layers = [tensor._keras_history.operation for tensor in functional.outputs]
    return not any(_is_counted(getattr(layer, "layer", layer), layer.name) for layer in layers)


def _is_counted(layer: Any, name: str) -> bool:
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(layer).__name__).lower()
    return re.fullmatch(rf"{plain}(_\d+)?", name) is not None


def _unpaired(mine: Sequence[Input], theirs: Sequence[Input], me: str, them: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "Models of the same data must have inputs of the same names, or of shapes that tell which is which.",
        received=f"{_listed(mine)} of '{me}', {_listed(theirs)} of '{them}'",
        fix=f"Make inputs `x` named as those of '{me}', in the order of '{them}', and pass `keras.Model(x, model(x))` "
        "in place of it."
        if len(mine) == len(theirs)
        else None,
    )


def _listed(inputs: Sequence[Input]) -> str:
    return ", ".join(map(str, inputs))


def _is_alike(one: Input, other: Input) -> bool:
    """Whether one array can go into both: shapes agree as far as they are known, and both hold real numbers or not."""
    shapes = len(one.shape) == len(other.shape) and all(
        None in pair or pair[0] == pair[1] for pair in zip(one.shape, other.shape, strict=True)
    )
    return shapes and len({keras.backend.is_float_dtype(own.dtype) for own in (one, other)}) == 1
