"""Short trainings of variants of one compiled model that do not influence each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

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
        named = {**self.compiled, "optimizer": self._new_optimizer().get_config()}
        return [self.epochs, self.batch_size, self.seed, named]

    def run(self, model: keras.Model, samples: Labelled) -> None:
        """Compiles the model and trains it."""
        model.compile(**{**self.compiled, "optimizer": self._new_optimizer()})
        model.fit(self._batches(samples), epochs=self.epochs, verbose=0)

    def _new_optimizer(self) -> keras.optimizers.Optimizer:
        optimizer = self.compiled["optimizer"]
        return type(optimizer).from_config(optimizer.get_config())

    def _batches(self, samples: Labelled) -> tf.data.Dataset:
        """Batches in an order that depends on the seed alone."""
        arrays = _tuples((samples.x, samples.y))

        def pick(index):
            return tf.nest.map_structure(lambda array: tf.gather(array, index), arrays)

        order = tf.data.Dataset.range(len(samples)).shuffle(len(samples), seed=self.seed)
        return order.batch(self.batch_size).map(pick).prefetch(tf.data.AUTOTUNE)


def _tuples(arrays: Any) -> Any:
    """Lists as tuples, for `tf.data` makes one tensor of a list; arrays as tensors, once."""
    if isinstance(arrays, dict):
        return {name: _tuples(part) for name, part in arrays.items()}
    return tuple(map(_tuples, arrays)) if isinstance(arrays, (list, tuple)) else tf.convert_to_tensor(arrays)
