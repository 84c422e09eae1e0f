"""Users' data in any of the usual forms, as checked batches of model inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.data.inputs import Input, arrays_in, has_structure, inputs_of, with_rank
from tfopt.core.errors import InvalidArgumentError, NonFiniteError
from tfopt.core.keras_internals import functional_of


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
        data: an array (samples first); a list or dict of arrays for several inputs; `(x, y)` or `(x, y,
            sample_weights)` of these; a `tf.data.Dataset`, a `keras.utils.PyDataset` or any iterable of batches of that
            form. A tuple of as many arrays as there are inputs is x.
        batch_size: for arrays.
        limit: at most so many samples.

    Raises:
        InvalidArgumentError: wrong form or shape, or no sample.
        NonFiniteError: NaN or infinity.
    """
    reader = _Reader(model)
    batches = _raw_batches(data, lambda batch: _inputs_only(batch, reader), batch_size)
    for batch in _checked_batches(batches, reader.inputs, limit):
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
    reader = _Reader(model)
    batches = _raw_batches(data, lambda batch: _labelled(batch, reader), batch_size)
    for batch in _checked_batches(batches, reader.inputs, limit):
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
    reader = _Reader(model)
    batches = _raw_batches(data, lambda batch: _paired(batch, reader), batch_size)
    yield from _checked_batches(batches, reader.inputs, None)


def whole_batch(model: keras.Model, data: Any) -> Batch | None:
    """All samples as one batch, see `paired_batches`; None for what gives batches itself, a data set or an iterator."""
    return None if gives_batches(data) else _paired(data, _Reader(model))


def as_inputs(model: keras.Model, arrays: list[np.ndarray]) -> Any:
    """Arrays in the order of the model's inputs as tensors in the structure that the model is called with."""
    functional = functional_of(model)
    tensors = [as_tensor(array, own.dtype) for array, own in zip(arrays, functional.inputs, strict=True)]
    return keras.tree.pack_sequence_as(functional.input, tensors)


def as_tensor(array: Any, dtype: str) -> tf.Tensor:
    """The array as a tensor of a dtype; strings stay strings.

    Example:
        >>> as_tensor(np.array(["no", "yes"], object), "string").dtype.name, as_tensor(np.ones(2), "int32").dtype.name
        ('string', 'int32')
    """
    return tf.convert_to_tensor(array, tf.string) if dtype == "string" else tf.cast(array, dtype)


class _Reader:
    """Reads data for one model.

    Args:
        model: gives number, names and shapes of the inputs.
    """

    def __init__(self, model: keras.Model):
        self.inputs, self._structure = inputs_of(model), functional_of(model).input

    def parts(self, data: Any) -> tuple:
        """`(x,)`, `(x, y)` or `(x, y, sample_weights)`."""
        return tuple(data) if self._holds_labels(data) else (data,)

    def arrays(self, x: Any) -> list[np.ndarray]:
        """The inputs in `x`, in the order of the model's."""
        found = arrays_in(x, self.inputs, self._structure)
        return [with_rank(np.asarray(array), own) for array, own in zip(found, self.inputs, strict=True)]

    def _holds_labels(self, data: Any) -> bool:
        """Whether a tuple starts with x; it may be as long as x itself of a model of two or three inputs."""
        if has_structure(data, self._structure):
            return False
        if isinstance(data, list):
            return len(self.inputs) == 1 and len(data) in (2, 3) and self._is_batch(data[0])
        if not isinstance(data, tuple) or len(data) not in (1, 2, 3):
            return False
        is_structure = isinstance(data[0], (Mapping, tuple))
        is_structure = is_structure or (isinstance(data[0], list) and any(hasattr(x, "shape") for x in data[0][:1]))
        return len(self.inputs) == 1 or len(data) != len(self.inputs) or is_structure

    def _is_batch(self, array: Any) -> bool:
        """Whether an array in a list is the only input, rather than one sample of it."""
        return hasattr(array, "shape") and len(array.shape) == len(self.inputs[0].shape)


def _raw_batches(data: Any, split: Callable[[Any], Batch], batch_size: int) -> Iterator[Batch]:
    if not gives_batches(data):
        yield from _slices(split(data), batch_size)
        return
    for batch in batches_in(data):
        yield split(batch)


def batches_in(data: Any) -> Iterable:
    """The batches of what gives batches itself."""
    is_indexed = isinstance(data, keras.utils.PyDataset)
    return (data[i] for i in range(data.num_batches or 0)) if is_indexed else data


def gives_batches(data: Any) -> bool:
    """True for what gives batches itself: a data set, an iterator, a loader; False for arrays and what holds them."""
    if isinstance(data, (keras.utils.PyDataset, tf.data.Dataset)):
        return True
    holds_arrays = isinstance(data, (list, tuple, Mapping, str)) or hasattr(data, "__array__")
    return hasattr(data, "__iter__") and not holds_arrays


def _slices(whole: Batch, batch_size: int) -> Iterator[Batch]:
    _check_lengths(whole)
    for start in range(0, max(len(whole.inputs[0]), 1), batch_size):
        yield whole.map(lambda array, start=start: array[start : start + batch_size])


def _checked_batches(batches: Iterator[Batch], inputs: list[Input], limit: int | None) -> Iterator[Batch]:
    """The batches that hold a sample, up to `limit` samples."""
    seen = 0
    for batch in batches:
        _check(batch.inputs, inputs)
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


def _inputs_only(data: Any, reader: _Reader) -> Batch:
    return Batch(reader.arrays(reader.parts(data)[0]))


def _labelled(data: Any, reader: _Reader) -> Batch:
    """The parts of `(x, y)` or `(x, y, sample_weights)`."""
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3) or any(part is None for part in data[:2]):
        raise InvalidArgumentError(
            "`data` must hold samples and their labels: `(x, y)`, or batches of that form.",
            received=type(data).__name__ + (f" of {len(data)}" if isinstance(data, (tuple, list)) else ""),
        )
    return Batch(reader.arrays(data[0]), *map(_label_arrays, data[1:]))


def _paired(data: Any, reader: _Reader) -> Batch:
    """The parts of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weights)`."""
    x, *labels = reader.parts(data)
    while labels and labels[-1] is None:
        labels.pop()
    if labels and labels[0] is None:
        raise InvalidArgumentError(
            "Sample weights come with labels.", received="(x, None, sample_weights)", fix="Pass labels too."
        )
    inputs = reader.arrays(x)
    given: Any = tuple(inputs) if len(inputs) > 1 else inputs[0]
    if isinstance(x, dict):
        given = {name: np.asarray(array) for name, array in x.items()}
    targets, weights = [*map(_label_arrays, labels), None, None][:2]
    return Batch(inputs, targets, weights, given)


def _label_arrays(labels: Any) -> Any:
    """Lists of numbers as one array; arrays, and lists and dicts of arrays, as they are."""
    if labels is None:
        return None
    is_structure = any(np.ndim(leaf) for leaf in keras.tree.flatten(labels))
    return keras.tree.map_structure(np.asarray, labels) if is_structure else np.asarray(labels)


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


def _check(arrays: list[np.ndarray], inputs: list[Input]) -> None:
    for array, own in itertools.zip_longest(arrays, inputs):
        _check_kind(array, own)
        wanted = tuple(own.shape[1:])
        if len(array.shape) != len(own.shape) or any(
            w not in (None, n) for w, n in zip(wanted, array.shape[1:], strict=True)
        ):
            raise InvalidArgumentError(
                "The data has to have the shape of the model's input.",
                received=f"{array.shape} for input '{own.name}' of shape {(None, *wanted)}",
            )
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise NonFiniteError("The data has to be finite.", received=f"NaN or infinity in input '{own.name}'")


def _check_kind(array: np.ndarray, own: Input) -> None:
    holds_strings = array.dtype.kind in "USO"
    if own.dtype == "string" and not (holds_strings and all(isinstance(value, (str, bytes)) for value in array.flat)):
        raise InvalidArgumentError(f"Input '{own.name}' takes strings.", received=f"dtype {array.dtype}")
    is_real = np.issubdtype(array.dtype, np.number) or array.dtype == bool
    if own.dtype != "string" and (np.iscomplexobj(array) or not is_real):
        raise InvalidArgumentError(
            "The data has to be real numbers.",
            received=f"dtype {array.dtype} for input '{own.name}'",
            fix="Of a model without its preprocessing pass what `preprocessing.predict(data)` gives."
            if holds_strings
            else "",
        )
