"""Short trainings of variants of one compiled model that do not influence each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import compile_options
from tfopt.pruning.validation import Labelled


@dataclass(frozen=True)
class FineTuning:
    """How variants are trained: as the model was compiled, with a new optimizer each, in the same order of samples."""

    epochs: int
    batch_size: int
    seed: int
    compiled: dict[str, Any]

    @classmethod
    def of(cls, model: keras.Model, epochs: Any, batch_size: int, seed: int) -> FineTuning:
        if isinstance(epochs, bool) or not isinstance(epochs, (int, np.integer)) or epochs < 1:
            raise InvalidArgumentError(
                "`finetune` is a number of epochs of at least 1, or None for no training.", received=repr(epochs)
            )
        options = compile_options(model) if model.compiled else {"loss": None}
        if options["loss"] is None:
            raise InvalidArgumentError(
                "Fine-tuning takes the loss and the optimizer of the model, which therefore has to be compiled.",
                received=f"'{model.name}', {'without a loss' if model.compiled else 'not compiled'}",
                fix="Call `model.compile(optimizer, loss)` first, or leave `finetune` out.",
            )
        return cls(int(epochs), batch_size, seed, options)

    @property
    def settings(self) -> list:
        """All that a result depends on."""
        return [self.epochs, self.batch_size, self.seed, self.compiled]

    def run(self, model: keras.Model, samples: Labelled) -> None:
        """Compiles the model and trains it."""
        model.compile(**{**self.compiled, "optimizer": self._new_optimizer()})
        batches = _Shuffled(samples, self.batch_size, self.seed)
        model.fit(batches, epochs=self.epochs, shuffle=False, verbose=0)

    def _new_optimizer(self) -> keras.optimizers.Optimizer:
        optimizer = self.compiled["optimizer"]
        return type(optimizer).from_config(optimizer.get_config())


class _Shuffled(keras.utils.PyDataset):
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
        return _tuples(batch.x), _tuples(batch.y)

    def on_epoch_end(self) -> None:
        self._order = self._generator.permutation(len(self._samples))


def _tuples(arrays: Any) -> Any:
    """Several inputs or outputs as a tuple instead of a list, which `tf.data` does not take."""
    return tuple(arrays) if isinstance(arrays, list) else arrays
