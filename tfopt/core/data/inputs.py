"""The inputs of a model: what they are called, and which of the user's arrays is which."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of, input_names

_NUMBERED = re.compile(r"(input|input_layer|keras_tensor)(_\d+)?(CLONE)?")


@dataclass(frozen=True)
class Input:
    """An input of a model or of a file.

    Args:
        name: its key in a dict of inputs, else the name of its layer.
        shape: batch first.
        dtype: as Keras names it.
        keys: what a dict of arrays may call it: its key, its tensor or its layer.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"'{self.name}' {self.shape}"


def is_numbered(name: str) -> bool:
    """Whether an input has no name but the one that Keras, or `fuse`, made by counting.

    Example:
        >>> is_numbered("input_layer_3"), is_numbered("image")
        (True, False)
    """
    return _NUMBERED.fullmatch(name) is not None


def inputs_of(model: keras.Model) -> list[Input]:
    """The inputs of a model, in its order.

    Example:
        >>> x = {"b": keras.Input((2,), name="b"), "a": keras.Input((3,), name="a")}
        >>> [str(own) for own in inputs_of(keras.Model(x, keras.layers.Concatenate()([x["a"], x["b"]])))]
        ["'a' (None, 3)", "'b' (None, 2)"]
    """
    functional = functional_of(model)
    keys = {id(tensor): key for key, tensor in _flat_dict(functional.input).items()}
    found = []
    for layer, tensor in zip(input_names(model), functional.inputs, strict=True):
        key = keys.get(id(tensor))
        names = (*([] if key is None else [key]), tensor.name, layer)
        found.append(Input(layer if key is None else key, tuple(tensor.shape), tensor.dtype, names))
    return found


def arrays_in(x: Any, inputs: Sequence[Input], structure: Any = None) -> list:
    """The arrays or tensors in `x`, one an input, in the order of the inputs.

    Args:
        x: a dict by name, which may hold more; a list or tuple in order; one array for one input; or the structure of
            the model's inputs.
        inputs: of the model.
        structure: in which the model takes its inputs, where that is one within another.

    Raises:
        InvalidArgumentError: an input is missing, or `x` has another form.

    Example:
        >>> arrays_in({"b": 1, "a": 2}, [Input("a", (None,), "int32", ("a",)), Input("b", (None,), "int32", ("b",))])
        [2, 1]
    """
    if isinstance(x, Mapping):
        keys = [next((key for key in own.keys if key in x), None) for own in inputs]
        if None not in keys:
            return [x[key] for key in keys]
    if has_structure(x, structure):
        return keras.tree.flatten(x)
    if isinstance(x, Mapping):
        raise InvalidArgumentError(
            "A dict of inputs must have a key for each input.",
            received=f"keys {sorted(x)}",
            fix=f"The inputs are {', '.join(own.name for own in inputs)}.",
        )
    if isinstance(x, (list, tuple)) and len(x) == len(inputs) and (len(inputs) > 1 or np.ndim(x[0]) > 0):
        return list(x)
    if len(inputs) == 1 and (isinstance(x, (list, np.ndarray)) or tf.is_tensor(x) or hasattr(x, "__array__")):
        return [x]
    raise InvalidArgumentError(
        f"`data` must hold {len(inputs)} input(s): an array, a list or dict of arrays, `(x, y)`, a `tf.data.Dataset` "
        "or an iterator of batches.",
        received=type(x).__name__ + (f" of {len(x)}" if isinstance(x, (list, tuple)) else ""),
    )


def has_structure(x: Any, structure: Any) -> bool:
    """Whether `x` is made as the inputs of a model are that takes lists or dicts within a list or dict."""
    if not _is_nested(structure):
        return False
    try:
        keras.tree.assert_same_structure(keras.tree.lists_to_tuples(x), keras.tree.lists_to_tuples(structure))
    except (ValueError, TypeError):
        return False
    return True


def with_rank(array: np.ndarray, own: Input) -> np.ndarray:
    """The array with a last axis of 1 more or less where the input asks for it, as Keras does: a column of a table.

    Example:
        >>> with_rank(np.zeros(5), Input("age", (None, 1), "float32")).shape
        (5, 1)
    """
    rank = len(own.shape)
    if array.ndim == rank - 1 > 0 and own.shape[-1] == 1:
        return array[..., None]
    if array.ndim == rank + 1 and array.shape[-1] == 1:
        return array[..., 0]
    return array


def _flat_dict(structure: Any) -> dict[str, Any]:
    """The structure, if it is a dict of tensors."""
    return structure if isinstance(structure, dict) and not _is_nested(structure) else {}


def _is_nested(structure: Any) -> bool:
    """Whether there are lists or dicts in a list or dict."""
    parts = structure.values() if isinstance(structure, dict) else structure
    return isinstance(structure, (list, tuple, dict)) and any(keras.tree.is_nested(part) for part in parts)
