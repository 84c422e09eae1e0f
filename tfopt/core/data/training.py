"""Trainings of models in memory that do not influence each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfopt.core.data.batches import as_tensor
from tfopt.core.data.samples import Labelled


def compile_alike(model: keras.Model, options: Mapping[str, Any]) -> None:
    """Compiles with the arguments that another model was compiled with, and an optimizer and metrics of its own."""
    model.compile(**{name: keras.tree.map_structure(_own, option) for name, option in options.items()})


def _own(option: Any) -> Any:
    """A new object for one that holds state."""
    has_state = isinstance(option, (keras.optimizers.Optimizer, keras.metrics.Metric))
    return type(option).from_config(option.get_config()) if has_state else option


class ShuffledBatches(keras.utils.PyDataset):
    """Batches in an order, new in each epoch, that depends on the seed alone and not on TensorFlow's generators."""

    def __init__(self, samples: Labelled, batch_size: int, seed: int):
        super().__init__()
        self._samples, self._batch_size = samples, batch_size
        self._generator = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self._samples) / self._batch_size)

    def __getitem__(self, index: int) -> tuple:
        batch = self._samples.rows(self._order[index * self._batch_size : (index + 1) * self._batch_size])
        return tuple(_tuples(keras.tree.map_structure(_as_keras_takes_it, part)) for part in batch.parts)

    def on_epoch_end(self) -> None:
        self._order = self._generator.permutation(len(self._samples))


def _tuples(arrays: Any) -> Any:
    """Several inputs or outputs as a tuple instead of a list, which `tf.data` does not take."""
    return tuple(arrays) if isinstance(arrays, list) else arrays


def _as_keras_takes_it(array: Any) -> Any:
    """Strings as a tensor: Keras takes no array of them."""
    return as_tensor(array, "string") if getattr(array, "dtype", np.dtype("f")).kind in "USO" else array
