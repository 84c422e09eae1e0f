"""Rows of arrays as batches for `fit`, in another order in each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.distillation.shards import Rows, ShardTable

CHUNK_BYTES = 2**22  # read at once: the cost of a call is shared by many small batches
CHUNK_BATCHES = 32


class MemoryTable:
    """Rows in memory.

    Args:
        rows: column -> array, which is not copied.
    """

    def __init__(self, rows: Rows):
        self._rows = rows

    def __len__(self) -> int:
        return len(next(iter(self._rows.values())))

    @property
    def columns(self) -> dict[str, np.dtype]:
        """Name -> dtype with the shape of a row."""
        return {name: np.dtype((column.dtype, column.shape[1:])) for name, column in self._rows.items()}

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at the indices, as arrays of their own."""
        return {name: np.asarray(column).take(indices, axis=0) for name, column in self._rows.items()}


class Feed:
    """Which rows come next.

    Args:
        tables: of different columns of the same rows.
        batch_size: in rows.
        shuffle: another order in each pass.
        seed: of the orders.
    """

    def __init__(self, tables: Sequence[MemoryTable | ShardTable], batch_size: int, shuffle: bool, seed: int):
        self._tables = tables
        self.batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self.epoch = 0

    def rebatched(self, batch_size: int) -> Feed:
        """The same rows in batches of another size."""
        return Feed(self._tables, batch_size, self._shuffle, self._seed)

    def __len__(self) -> int:
        return len(self._tables[0])

    @property
    def columns(self) -> dict[str, np.dtype]:
        """Name -> dtype with the shape of a row; what is float64 comes as Keras' float, as in `fit` with arrays."""
        columns = {name: dtype for table in self._tables for name, dtype in table.columns.items()}
        return {
            name: np.dtype((keras.config.floatx(), dtype.shape)) if dtype.base == np.float64 else dtype
            for name, dtype in columns.items()
        }

    @property
    def batches_at_once(self) -> int:
        """How many whole batches to read in one call."""
        size = self.batch_size * sum(dtype.itemsize for dtype in self.columns.values())
        return max(1, min(CHUNK_BATCHES, CHUNK_BYTES // size))

    def order(self) -> np.ndarray:
        """The indices of the rows in the order of the next pass."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        if not self._shuffle:
            return np.arange(len(self))
        return np.random.default_rng([self._seed, epoch]).permutation(len(self))

    def take(self, indices: np.ndarray) -> list[np.ndarray]:
        """The rows at indices (batches, samples), a list of columns."""
        taken = [table.take(indices.ravel()) for table in self._tables]
        rows = {name: column for part in taken for name, column in part.items()}
        return [
            rows[name].astype(dtype.base, copy=False).reshape(*indices.shape, *dtype.shape)
            for name, dtype in self.columns.items()
        ]


def batches_of(feed: Feed, element: Any) -> tf.data.Dataset:
    """Batches of the structure `element`.

    Python reads many small batches in one call and TensorFlow takes them apart: a third of what a `PyDataset` costs.
    """
    size = feed.batch_size
    rest = len(feed) % size

    def order(_: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(feed.order, [], tf.int64), [len(feed)])

    def indices(order: Any) -> Any:
        whole = tf.data.Dataset.from_tensor_slices(tf.reshape(order[: len(feed) - rest], [-1, size]))
        last = tf.data.Dataset.from_tensors(order[None, len(feed) - rest :])
        return whole.batch(feed.batches_at_once).concatenate(last) if rest else whole.batch(feed.batches_at_once)

    def read(indices: Any) -> Any:
        columns = feed.columns
        rows = tf.numpy_function(feed.take, [indices], [dtype.base for dtype in columns.values()])
        named = {
            name: tf.ensure_shape(row, (None, None, *dtype.shape))
            for (name, dtype), row in zip(columns.items(), rows, strict=True)
        }
        return tf.data.Dataset.from_tensor_slices(keras.tree.map_structure(lambda name: named[name], element))

    options = tf.data.Options()
    # The order is in the memory of this process, which is where the batches are made under a distribution strategy too.
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    count = tf.data.experimental.assert_cardinality(-(-len(feed) // size))
    made = tf.data.Dataset.range(1).map(order).flat_map(indices).flat_map(read)
    return made.apply(count).with_options(options).prefetch(tf.data.AUTOTUNE)
