"""The sizes of inputs that a model leaves open and a file has to have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfopt.core.checks import is_whole, shown
from tfopt.core.data.batches import input_batches
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import input_names
from tfopt.core.models.graph import Graph
from tfopt.core.models.rewrite import Rewrite, rewrite

Shape = tuple[int | None, ...]


def sized(graph: Graph, input_shapes: Any, data: Any) -> Graph:
    """The graph itself, or that of a copy whose inputs have the sizes of `input_shapes`, else those of `data`.

    Args:
        graph: of the model.
        input_shapes: `{input name: shape}`, or the shape of an only input, without the batch; None for those of `data`.
        data: as `export_tflite` takes it.

    Raises:
        InvalidArgumentError: a shape that is none or does not fit, or a size that nothing tells.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> model = keras.Sequential([keras.Input((None, 3)), keras.layers.GlobalAveragePooling1D()])
        >>> sized(read(model), (5, 3), None).inputs[0].shape
        (None, 5, 3)
    """
    names = input_names(graph.model)
    own = {name: tuple(tensor.shape[1:]) for name, tensor in zip(names, graph.inputs, strict=True)}
    given = {} if input_shapes is None else _by_name(input_shapes, own)
    is_open = any(None in shape for name, shape in own.items() if name not in given)
    if is_open and data is not None and not hasattr(data, "__next__"):
        first = next(iter(input_batches(graph.model, data, batch_size=1, limit=1)))
        given = {**{name: tuple(array.shape[1:]) for name, array in zip(names, first, strict=True)}, **given}
    wanted = {**own, **given}
    return graph if wanted == own else _rebuilt(graph, wanted)


def _by_name(shapes: Any, own: Mapping[str, Shape]) -> dict[str, Shape]:
    named = shapes if isinstance(shapes, Mapping) else {next(iter(own)): shapes} if len(own) == 1 else None
    if named is None or not set(named) <= set(own):
        raise InvalidArgumentError(
            "`input_shapes` must be a dict of shapes by the names of inputs, or the shape of an only input.",
            received=shown(shapes),
            fix=f"The inputs are {', '.join(map(repr, own))}.",
        )
    return {name: _checked(name, shape, own[name]) for name, shape in named.items()}


def _checked(name: str, shape: Any, own: Shape) -> Shape:
    is_shape = isinstance(shape, (list, tuple)) and all(is_whole(size) and size > 0 for size in shape)
    if not is_shape or len(shape) != len(own) or any(o not in (None, s) for o, s in zip(own, shape, strict=True)):
        raise InvalidArgumentError(
            f"The shape of input '{name}' must fit {own}, the batch left out.", received=shown(shape)
        )
    return tuple(map(int, shape))


def _rebuilt(graph: Graph, shapes: Mapping[str, Shape]) -> Graph:
    def replace(op: keras.Operation, state: Rewrite) -> keras.Operation | None:
        if "/" in state.path or not isinstance(op, keras.layers.InputLayer):
            return None
        return state.copy(op, batch_shape=(op.batch_shape[0], *shapes[op.name]))

    return rewrite(graph, replace)
