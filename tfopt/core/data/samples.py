"""Labelled samples in memory, to take folds and splits of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.data.batches import input_batches
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of


@dataclass(frozen=True)
class Labelled:
    """Inputs in the structure of the model's inputs, and labels; samples along the first axis of every array."""

    x: Any
    y: Any

    def __len__(self) -> int:
        return len(keras.tree.flatten(self.x)[0])

    def rows(self, index: np.ndarray) -> Labelled:
        return Labelled(take(self.x, index), take(self.y, index))

    def and_more(self, other: Labelled) -> Labelled:
        """These samples, followed by the others."""
        both = keras.tree.map_structure(lambda *parts: np.concatenate(parts), (self.x, self.y), (other.x, other.y))
        return Labelled(*both)


def take(arrays: Any, index: np.ndarray | slice) -> Any:
    return keras.tree.map_structure(lambda array: array[index], arrays)


def labelled(model: keras.Model, data: Any, argument: str = "data") -> Labelled:
    """Inputs and labels of `(x, y)`, a `tf.data.Dataset`, a `keras.utils.PyDataset` or an iterator of batches.

    Raises:
        InvalidArgumentError: no labels, sample weights, an endless dataset, or shapes that do not go together.
        NonFiniteError: NaN or infinity in the inputs.
    """
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)) or hasattr(data, "__next__"):
        pairs = [_pair(batch, argument) for batch in _batches(data, argument)]
        inputs = list(input_batches(model, iter([x for x, _ in pairs])))
        y = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *(_labels(y) for _, y in pairs))
    else:
        x, y = _pair(data, argument)
        inputs, y = list(input_batches(model, x, batch_size=4096)), _labels(y)
    columns = [np.concatenate(parts) for parts in zip(*inputs, strict=True)]
    samples = Labelled(keras.tree.pack_sequence_as(functional_of(model).input, columns), y)
    lengths = {len(np.atleast_1d(part)) for part in keras.tree.flatten(y)}
    if lengths != {len(samples)}:
        raise InvalidArgumentError(
            f"`{argument}` has one label a sample.",
            received=f"{len(samples)} samples, {' or '.join(map(str, sorted(lengths)))} labels",
        )
    return samples


def _batches(data: Any, argument: str) -> Iterable:
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InvalidArgumentError(
            f"`{argument}` has an end.", received="a dataset that repeats for ever", fix="Add `.take(batches)`."
        )
    if isinstance(data, keras.utils.PyDataset):
        return (data[index] for index in range(data.num_batches or 0))
    return data


def _pair(value: Any, argument: str) -> tuple:
    if not isinstance(value, (tuple, list)) or len(value) != 2 or value[1] is None:
        parts = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise InvalidArgumentError(
            f"`{argument}` is a pair (x, y) of inputs and labels, or a dataset of batches of them.",
            received=type(value).__name__ + parts,
            fix="Leave out sample weights: scores count every sample once." if parts == " of 3" else None,
        )
    return tuple(value)


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
