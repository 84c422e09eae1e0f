"""Labelled samples in memory, to take folds and splits of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.data.batches import batches_in, gives_batches, input_batches
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of


@dataclass(frozen=True)
class Labelled:
    """Inputs in the structure of the model's inputs, labels, and sample weights or None; samples first everywhere."""

    x: Any
    y: Any
    weights: Any = None

    def __len__(self) -> int:
        return len(keras.tree.flatten(self.x)[0])

    def rows(self, index: np.ndarray) -> Labelled:
        return Labelled(take(self.x, index), take(self.y, index), take(self.weights, index))

    def and_more(self, other: Labelled) -> Labelled:
        """These samples, followed by the others; without weights of their own these weigh 1."""
        weights = [self.weights, other.weights]
        if self.weights is None and other.weights is not None:
            weights[0] = _ones(other.weights, len(self))
        elif other.weights is None and self.weights is not None:
            weights[1] = _ones(self.weights, len(other))
        return Labelled(_joined([self.x, other.x]), _joined([self.y, other.y]), _joined(weights))

    @property
    def parts(self) -> tuple:
        """`(x, y)`, or `(x, y, sample_weights)` where there are weights."""
        return (self.x, self.y) if self.weights is None else (self.x, self.y, self.weights)


def take(arrays: Any, index: np.ndarray | slice) -> Any:
    return keras.tree.map_structure(lambda array: None if array is None else array[index], arrays)


def labelled(model: keras.Model, data: Any, argument: str = "data") -> Labelled:
    """Inputs and labels of `(x, y)`, a `tf.data.Dataset`, a `keras.utils.PyDataset` or an iterator of batches.

    Raises:
        InvalidArgumentError: no labels, an endless dataset, or shapes that do not go together.
        NonFiniteError: NaN or infinity in the inputs.
    """
    given = gathered(data, argument)
    (columns,) = input_batches(model, iter([(given.x,)]))
    samples = replace(given, x=keras.tree.pack_sequence_as(functional_of(model).input, columns))
    lengths = {len(np.atleast_1d(part)) for part in keras.tree.flatten((given.y, given.weights)) if part is not None}
    if lengths != {len(samples)}:
        raise InvalidArgumentError(
            f"`{argument}` must have one label a sample.",
            received=f"{len(samples)} samples, {' or '.join(map(str, sorted(lengths)))} labels",
        )
    return samples


def gathered(data: Any, argument: str = "data") -> Labelled:
    """All samples of a data set or an iterator in memory; of arrays the parts as they are, `x` in its own structure.

    Raises:
        InvalidArgumentError: no labels, an endless data set, or no batch.

    Example:
        >>> x, y = {"a": np.zeros((5, 2)), "b": np.zeros((5, 3))}, np.arange(5)
        >>> samples = gathered(tf.data.Dataset.from_tensor_slices((x, y)).batch(2))
        >>> {name: array.shape for name, array in samples.x.items()}, samples.y.tolist()
        ({'a': (5, 2), 'b': (5, 3)}, [0, 1, 2, 3, 4])
    """
    if not gives_batches(data):
        return Labelled(*_parts(data, argument))
    batches = [_parts(batch, argument) for batch in _ending(data, argument)]
    if not batches:
        raise InvalidArgumentError(f"`{argument}` must hold at least one sample.", received="no batch")
    return Labelled(*(_joined(parts) for parts in zip(*batches, strict=True)))


def _joined(parts: Sequence[Any]) -> Any:
    """The arrays of several structures one behind the other; None where all are None."""

    def join(*arrays: Any) -> Any:
        return None if arrays[0] is None else np.concatenate([np.asarray(array) for array in arrays])

    return keras.tree.map_structure(join, *parts)


def _ones(weights: Any, count: int) -> Any:
    """Weights of 1 in the structure and the shape of others."""
    return keras.tree.map_structure(lambda array: np.ones((count, *array.shape[1:]), array.dtype), weights)


def _ending(data: Any, argument: str) -> Iterable:
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InvalidArgumentError(
            f"`{argument}` must have an end.", received="a dataset that repeats for ever", fix="Add `.take(batches)`."
        )
    return batches_in(data)


def _parts(value: Any, argument: str) -> tuple:
    """x, y and sample weights or None."""
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3) or value[1] is None:
        parts = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise InvalidArgumentError(
            f"`{argument}` must be a pair (x, y) of inputs and labels, sample weights behind them or not, or a dataset "
            "of batches of that form.",
            received=type(value).__name__ + parts,
        )
    x, y, *weights = value
    return x, _labels(y), _labels(weights[0]) if weights and weights[0] is not None else None


def _labels(y: Any) -> Any:
    """Labels as arrays, in the structure they came in; a list of numbers is one array."""
    if isinstance(y, (list, tuple)) and (not len(y) or np.ndim(y[0]) == 0):
        y = np.asarray(y)
    return keras.tree.map_structure(np.asarray, y)


def classes_of(y: Any) -> np.ndarray | None:
    """The class of each sample from labels `(n,)`, `(n, 1)` or one-hot `(n, C)`; None for anything else."""
    if not isinstance(y, np.ndarray) or not (np.issubdtype(y.dtype, np.number) or y.dtype == bool):
        return None
    if y.ndim == 2 and y.shape[1] > 1:
        return y.argmax(-1) if np.isin(y, (0, 1)).all() and (y.sum(-1) == 1).all() else None
    flat = y.reshape(len(y), -1)
    return flat[:, 0] if flat.shape[1] == 1 and (flat == np.floor(flat)).all() else None
