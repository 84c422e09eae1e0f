"""Decays of the learning rate: schedules over the updates, or a callback that waits for a plateau."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras

from tfopt.core.checks import FRACTION, as_choice, as_count, as_number, as_whole
from tfopt.core.errors import InvalidArgumentError

DECAYS = ("step", "exponential", "cosine", "plateau")
_FACTOR = 0.1


@dataclass(frozen=True)
class Decay:
    """How the learning rate falls.

    Args:
        kind: one of `DECAYS`; None keeps the learning rate.
        factor: of the learning rate after each `every` epochs; None for 0.1.
        every: epochs; None for the usual part of all epochs.
        warmup: epochs of a cosine in which the learning rate rises from 0.
    """

    kind: str | None
    factor: float | None
    every: int | None
    warmup: int

    @classmethod
    def of(cls, decay: Any, factor: Any, every: Any, warmup: Any) -> Decay:
        """The decay that these arguments of `recipe` describe.

        Raises:
            InvalidArgumentError: one of them out of range, or for another decay.
        """
        kind = as_choice("decay", decay, (*DECAYS, None))
        factor = None if factor is None else as_number("decay_factor", factor, FRACTION)
        every = None if every is None else as_count("decay_epochs", every)
        if kind in (None, "cosine") and not (factor is None and every is None):
            raise InvalidArgumentError(
                "`decay_factor` and `decay_epochs` must go with a decay 'step', 'exponential' or 'plateau'.",
                received=repr(decay),
            )
        warmup = as_whole("warmup_epochs", warmup, least=0)
        if warmup and kind != "cosine":
            raise InvalidArgumentError("`warmup_epochs` must go with decay='cosine'.", received=f"decay={decay!r}")
        return cls(kind, factor, every, warmup)

    def check(self, epochs: int, samples: int | None) -> None:
        """Raises unless the training is long enough, and its number of updates known where it matters."""
        if self.counts_updates and samples is None:
            raise InvalidArgumentError(
                f"`decay='{self.kind}'` counts updates and needs the number of training samples.",
                fix="Pass `samples=len(x)`.",
            )
        as_whole("warmup_epochs", self.warmup, most=epochs - 1, what=f"below `epochs`, here {epochs}")

    @property
    def counts_updates(self) -> bool:
        """True if the decay is a schedule over the updates."""
        return self.kind in ("step", "exponential", "cosine")

    def callbacks(self, epochs: int) -> list[keras.callbacks.Callback]:
        """What lowers the learning rate between epochs."""
        if self.kind != "plateau":
            return []
        patience = self.every or math.ceil(epochs / 10)
        return [keras.callbacks.ReduceLROnPlateau(factor=self.factor or _FACTOR, patience=patience)]

    def schedule(self, peak: float, steps: list[int]) -> keras.optimizers.schedules.LearningRateSchedule:
        """The learning rate of each update.

        Args:
            peak: the highest.
            steps: the number of updates before each epoch, and before the one after the last.
        """
        schedules = keras.optimizers.schedules
        epochs, total = len(steps) - 1, steps[-1]
        every, factor = self.every or math.ceil(epochs / 3), self.factor or _FACTOR
        if self.kind == "cosine":
            start = {"warmup_target": peak, "warmup_steps": steps[self.warmup]} if self.warmup else {}
            return schedules.CosineDecay(0.0 if self.warmup else peak, total - steps[self.warmup], **start)
        if self.kind == "exponential":
            return schedules.ExponentialDecay(peak, total * every / epochs, factor)
        changes = range(every, epochs, every)
        values = [peak * factor**i for i in range(len(changes) + 1)]
        # a boundary is the last update of the old value
        return schedules.PiecewiseConstantDecay([steps[epoch] - 1 for epoch in changes], values)
