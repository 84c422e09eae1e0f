"""Short trainings of variants of one compiled model that do not influence each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from tfopt.core.checks import as_whole
from tfopt.core.data.samples import Labelled
from tfopt.core.data.training import ShuffledBatches, compile_alike
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import compile_options


@dataclass(frozen=True)
class FineTuning:
    """How variants are trained: as the model was compiled, with a new optimizer each, in the same order of samples."""

    epochs: int
    batch_size: int
    seed: int
    compiled: dict[str, Any]

    @classmethod
    def of(cls, model: keras.Model, epochs: Any, batch_size: int, seed: int) -> FineTuning:
        epochs = as_whole("finetune", epochs, least=1, what="a number of epochs of at least 1, or None for no training")
        options = compile_options(model) if model.compiled else {"loss": None}
        if options["loss"] is None:
            raise InvalidArgumentError(
                "Fine-tuning takes the loss and the optimizer of the model, which therefore has to be compiled.",
                received=f"'{model.name}', {'without a loss' if model.compiled else 'not compiled'}",
                fix="Call `model.compile(optimizer, loss)` first, or leave `finetune` out.",
            )
        return cls(epochs, batch_size, seed, options)

    @property
    def settings(self) -> list:
        """All that a result depends on."""
        return [self.epochs, self.batch_size, self.seed, self.compiled]

    def run(self, model: keras.Model, samples: Labelled) -> None:
        """Compiles the model and trains it."""
        compile_alike(model, self.compiled)
        batches = ShuffledBatches(samples, self.batch_size, self.seed)
        model.fit(batches, epochs=self.epochs, shuffle=False, verbose=0)
