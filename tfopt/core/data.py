"""Users' data in any of the usual forms, as checked batches of model inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.errors import InvalidArgumentError, NonFiniteError
from tfopt.core.keras_internals import functional_of, input_names


def input_batches(
    model: keras.Model, data: Any, *, batch_size: int = 32, limit: int | None = None
) -> Iterator[list[np.ndarray]]:
    """Batches of inputs, each a list of arrays in the order of the model's inputs, checked for shape and NaN.

    Args:
        model: gives number, names and shapes of the inputs.
        data: an array (samples first); a list or dict of arrays for several inputs; `(x, y)`; a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or any iterable of batches, of x or `(x, y)`.
        batch_size: for arrays.
        limit: at most so many samples.

    Raises:
        InvalidArgumentError: wrong form or shape, or no sample.
        NonFiniteError: NaN or infinity.
    """
    specs = _specs(model)
    seen = 0
    for batch in _raw_batches(data, specs, batch_size):
        arrays = [np.asarray(array) for array in batch]
        if limit is not None:
            arrays = [array[: limit - seen] for array in arrays]
        _check(arrays, specs)
        if not len(arrays[0]):
            continue
        seen += len(arrays[0])
        yield arrays
        if limit is not None and seen >= limit:
            return
    if not seen:
        raise InvalidArgumentError("`data` has to hold at least one sample.", received="no sample")


@dataclass(frozen=True)
class _Spec:
    """An input of the model: Keras takes it by the name of its layer or of its tensor."""

    name: str
    tensor_name: str
    shape: tuple


def _specs(model: keras.Model) -> list[_Spec]:
    tensors = functional_of(model).inputs
    return [_Spec(name, t.name, tuple(t.shape)) for name, t in zip(input_names(model), tensors, strict=True)]


def _raw_batches(data, specs, batch_size) -> Iterator[list]:
    if isinstance(data, keras.utils.PyDataset):
        batches = (data[i] for i in range(data.num_batches or 0))
    elif isinstance(data, tf.data.Dataset) or hasattr(data, "__next__"):
        batches = iter(data)
    else:
        yield from _array_batches(_inputs_of(data, specs), batch_size)
        return
    for batch in batches:
        yield _inputs_of(batch, specs)


def _array_batches(arrays: list, batch_size: int) -> Iterator[list]:
    arrays = [np.asarray(array) for array in arrays]
    if any(array.ndim == 0 for array in arrays):
        raise InvalidArgumentError("`data` holds arrays with samples along the first axis.", received="a scalar")
    for start in range(0, max(len(arrays[0]), 1), batch_size):
        yield [array[start : start + batch_size] for array in arrays]


def _inputs_of(data, specs) -> list:
    """The list of inputs in `x` or `(x, y)`."""
    if isinstance(data, dict):
        keys = [spec.tensor_name if spec.tensor_name in data else spec.name for spec in specs]
        if set(keys) - set(data):
            raise InvalidArgumentError(
                "A dict of inputs has a key for each input.",
                received=f"keys {sorted(data)}",
                fix=f"The inputs are {', '.join(spec.name for spec in specs)}.",
            )
        return [data[key] for key in keys]
    if isinstance(data, tuple) and len(data) in (2, 3) and (len(specs) == 1 or len(data) != len(specs)):
        return _inputs_of(data[0], specs)
    if isinstance(data, (list, tuple)) and len(data) == len(specs) and (len(specs) > 1 or np.ndim(data[0]) > 0):
        return list(data)
    if len(specs) == 1 and (isinstance(data, (list, np.ndarray)) or tf.is_tensor(data) or hasattr(data, "__array__")):
        return [data]
    raise InvalidArgumentError(
        f"`data` holds {len(specs)} input(s): an array, a list or dict of arrays, `(x, y)`, a `tf.data.Dataset` or "
        "an iterator of batches.",
        received=type(data).__name__ + (f" of {len(data)}" if isinstance(data, (list, tuple)) else ""),
    )


def _check(arrays: list[np.ndarray], specs) -> None:
    if len({len(array) for array in arrays}) > 1:
        raise InvalidArgumentError(
            "All inputs hold the same number of samples.", received=", ".join(str(len(array)) for array in arrays)
        )
    for array, spec in itertools.zip_longest(arrays, specs):
        wanted = tuple(spec.shape[1:])
        if len(array.shape) != len(spec.shape) or any(
            w not in (None, n) for w, n in zip(wanted, array.shape[1:], strict=True)
        ):
            raise InvalidArgumentError(
                "The data has to have the shape of the model's input.",
                received=f"{array.shape} for input '{spec.name}' of shape {(None, *wanted)}",
            )
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise InvalidArgumentError("The data has to be numbers.", received=f"dtype {array.dtype}")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise NonFiniteError("The data has to be finite.", received=f"NaN or infinity in input '{spec.name}'")
