"""Users' data in any of the usual forms, as checked batches of model inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.errors import InvalidArgumentError, NonFiniteError
from tfopt.core.keras_internals import functional_of, input_names


@dataclass(frozen=True)
class Batch:
    """Samples with what goes with them.

    Args:
        inputs: arrays in the order of the model's inputs.
        targets, weights: arrays, structures of arrays or None.
        given: the inputs in the structure in which they were given, with those that the model does not read; or None.
    """

    inputs: list
    targets: Any = None
    weights: Any = None
    given: Any = None

    def arrays(self) -> list:
        """All of them, one after the other."""
        parts = self.inputs, self.targets, self.weights, self.given
        return [array for array in keras.tree.flatten(parts) if array is not None]

    def map(self, function: Callable) -> Batch:
        """Each array replaced by `function(array)`."""

        def mapped(structure: Any) -> Any:
            return keras.tree.map_structure(lambda array: None if array is None else function(array), structure)

        return Batch(mapped(self.inputs), mapped(self.targets), mapped(self.weights), mapped(self.given))


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
    batches = _raw_batches(data, lambda batch: Batch(_input_arrays(batch, specs)), batch_size)
    for batch in _checked_batches(batches, specs, limit):
        yield batch.inputs


def labelled_batches(
    model: keras.Model, data: Any, *, batch_size: int = 32, limit: int | None = None
) -> Iterator[tuple[list[np.ndarray], Any, Any]]:
    """Batches `(inputs, targets, sample_weights)`, checked as those of `input_batches`.

    Args:
        model: gives number, names and shapes of the inputs.
        data: `(x, y)` or `(x, y, sample_weights)` of arrays, or of lists or dicts of arrays; a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or any iterable of batches of that form.
        batch_size: for arrays.
        limit: at most so many samples.

    Returns:
        An iterator. Inputs are a list of arrays in the order of the model's inputs, targets an array or a list or dict
        of arrays as given, sample weights too or None.

    Raises:
        InvalidArgumentError: wrong form or shape, no labels, or no sample.
        NonFiniteError: NaN or infinity.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> batches = labelled_batches(model, (np.zeros((5, 2)), np.arange(5)), batch_size=3)
        >>> [(x.shape, y.tolist(), weights) for (x,), y, weights in batches]
        [((3, 2), [0, 1, 2], None), ((2, 2), [3, 4], None)]
    """
    specs = _specs(model)
    batches = _raw_batches(data, lambda batch: _labelled(batch, specs), batch_size)
    for batch in _checked_batches(batches, specs, limit):
        yield batch.inputs, batch.targets, batch.weights


def paired_batches(model: keras.Model, data: Any, *, batch_size: int = 32) -> Iterator[Batch]:
    """Batches with all that comes with the samples, labels or none, checked as those of `input_batches`.

    Args:
        model: gives number, names and shapes of the inputs.
        data: as for `input_batches`, or with labels and sample weights as for `labelled_batches`. A dict may hold more
            than the model reads.
        batch_size: for arrays.

    Returns:
        An iterator of batches whose `given` are the inputs in their own structure. Slices of arrays share their memory.

    Raises:
        InvalidArgumentError: wrong form or shape, or no sample.
        NonFiniteError: NaN or infinity.

    Example:
        >>> model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1)])
        >>> (batch,) = paired_batches(model, {"x": np.ones((3, 2)), "more": np.ones((3, 5))})
        >>> {name: array.shape for name, array in batch.given.items()}, batch.targets
        ({'x': (3, 2), 'more': (3, 5)}, None)
    """
    specs = _specs(model)
    yield from _checked_batches(_raw_batches(data, lambda batch: _paired(batch, specs), batch_size), specs, None)


def whole_batch(model: keras.Model, data: Any) -> Batch | None:
    """All samples as one batch, see `paired_batches`; None for what gives batches itself, a data set or an iterator."""
    return None if _gives_batches(data) else _paired(data, _specs(model))


def as_inputs(model: keras.Model, arrays: list[np.ndarray]) -> Any:
    """Arrays in the order of the model's inputs as tensors in the structure that the model is called with."""
    functional = functional_of(model)
    tensors = [tf.cast(array, spec.dtype) for array, spec in zip(arrays, functional.inputs, strict=True)]
    return keras.tree.pack_sequence_as(functional.input, tensors)


@dataclass(frozen=True)
class _Spec:
    """An input of the model: Keras takes it by the name of its layer or of its tensor."""

    name: str
    tensor_name: str
    shape: tuple


def _specs(model: keras.Model) -> list[_Spec]:
    tensors = functional_of(model).inputs
    return [_Spec(name, t.name, tuple(t.shape)) for name, t in zip(input_names(model), tensors, strict=True)]


def _raw_batches(data: Any, split: Callable[[Any], Batch], batch_size: int) -> Iterator[Batch]:
    if not _gives_batches(data):
        yield from _slices(split(data), batch_size)
        return
    is_indexed = isinstance(data, keras.utils.PyDataset)
    for batch in (data[i] for i in range(data.num_batches or 0)) if is_indexed else data:
        yield split(batch)


def _gives_batches(data: Any) -> bool:
    return isinstance(data, (keras.utils.PyDataset, tf.data.Dataset)) or hasattr(data, "__next__")


def _slices(whole: Batch, batch_size: int) -> Iterator[Batch]:
    _check_lengths(whole)
    for start in range(0, max(len(whole.inputs[0]), 1), batch_size):
        yield whole.map(lambda array, start=start: array[start : start + batch_size])


def _checked_batches(batches: Iterator[Batch], specs: list[_Spec], limit: int | None) -> Iterator[Batch]:
    """The batches that hold a sample, up to `limit` samples."""
    seen = 0
    for batch in batches:
        _check(batch.inputs, specs)
        _check_lengths(batch)
        _check_labels(batch)
        if limit is not None:
            batch = batch.map(lambda array, room=limit - seen: array[:room])
        if not len(batch.inputs[0]):
            continue
        seen += len(batch.inputs[0])
        yield batch
        if limit is not None and seen >= limit:
            return
    if not seen:
        raise InvalidArgumentError("`data` has to hold at least one sample.", received="no sample")


def _labelled(data: Any, specs: list[_Spec]) -> Batch:
    """The parts of `(x, y)` or `(x, y, sample_weights)`."""
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3) or any(part is None for part in data[:2]):
        raise InvalidArgumentError(
            "`data` holds samples and their labels: `(x, y)`, or batches of that form.",
            received=type(data).__name__ + (f" of {len(data)}" if isinstance(data, (tuple, list)) else ""),
        )
    return Batch(_input_arrays(data[0], specs), *map(_label_arrays, data[1:]))


def _paired(data: Any, specs: list[_Spec]) -> Batch:
    """The parts of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weights)`."""
    x, *labels = data if _holds_labels(data, specs) else (data,)
    while labels and labels[-1] is None:
        labels.pop()
    if labels and labels[0] is None:
        raise InvalidArgumentError(
            "Sample weights come with labels.", received="(x, None, sample_weights)", fix="Pass labels too."
        )
    inputs = _input_arrays(x, specs)
    given: Any = tuple(inputs) if len(specs) > 1 else inputs[0]
    if isinstance(x, dict):
        given = {name: np.asarray(array) for name, array in x.items()}
    targets, weights = [*map(_label_arrays, labels), None, None][:2]
    return Batch(inputs, targets, weights, given)


def _holds_labels(data: Any, specs: list[_Spec]) -> bool:
    """Whether a tuple starts with x; it may be as long as x itself of a model of two or three inputs."""
    if not isinstance(data, tuple) or len(data) not in (1, 2, 3):
        return False
    is_structure = isinstance(data[0], (dict, tuple))
    is_structure = is_structure or (isinstance(data[0], list) and any(hasattr(x, "shape") for x in data[0][:1]))
    return len(specs) == 1 or len(data) != len(specs) or is_structure


def _label_arrays(labels: Any) -> Any:
    """Lists of numbers as one array; arrays, and lists and dicts of arrays, as they are."""
    if labels is None:
        return None
    is_structure = any(np.ndim(leaf) for leaf in keras.tree.flatten(labels))
    return keras.tree.map_structure(np.asarray, labels) if is_structure else np.asarray(labels)


def _input_arrays(data: Any, specs: list[_Spec]) -> list[np.ndarray]:
    return [np.asarray(array) for array in _inputs_of(data, specs)]


def _inputs_of(data: Any, specs: list[_Spec]) -> list:
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


def _check_lengths(batch: Batch) -> None:
    if any(array.ndim == 0 for array in batch.arrays()):
        raise InvalidArgumentError("`data` holds arrays with samples along the first axis.", received="a scalar")
    lengths = [len(array) for array in batch.arrays()]
    if len(set(lengths)) > 1:
        raise InvalidArgumentError(
            "All inputs, labels and sample weights hold the same number of samples.",
            received=", ".join(map(str, lengths)),
        )


def _check_labels(batch: Batch) -> None:
    for array in keras.tree.flatten((batch.targets, batch.weights)):
        if array is None:
            continue
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise InvalidArgumentError(
                "The labels have to be numbers.",
                received=f"dtype {array.dtype}",
                fix="Number the classes from 0 to C-1, in the order of the outputs.",
            )
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise NonFiniteError("The labels have to be finite.", received="NaN or infinity")


def _check(arrays: list[np.ndarray], specs: list[_Spec]) -> None:
    for array, spec in itertools.zip_longest(arrays, specs):
        wanted = tuple(spec.shape[1:])
        if len(array.shape) != len(spec.shape) or any(
            w not in (None, n) for w, n in zip(wanted, array.shape[1:], strict=True)
        ):
            raise InvalidArgumentError(
                "The data has to have the shape of the model's input.",
                received=f"{array.shape} for input '{spec.name}' of shape {(None, *wanted)}",
            )
        if np.iscomplexobj(array) or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise InvalidArgumentError("The data has to be real numbers.", received=f"dtype {array.dtype}")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise NonFiniteError("The data has to be finite.", received=f"NaN or infinity in input '{spec.name}'")
