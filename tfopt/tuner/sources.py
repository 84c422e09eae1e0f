"""Where the trials of a search come from and where their results go: what the loop needs of a source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import keras

from tfopt.tuner import journal as states
from tfopt.tuner.journal import Trial
from tfopt.tuner.objective import Objective
from tfopt.tuner.packages import load

_BUILDS = 20  # of a builder that refuses what it is given, until its choices are taken to be those known by then


@dataclass(frozen=True)
class Budget:
    """A number of trials, or seconds; the other is None."""

    trials: int | None
    seconds: float | None

    @property
    def total(self) -> int:
        """What a progress bar counts: trials or seconds."""
        return self.trials if self.trials is not None else math.ceil(self.seconds or 0)


class Source(Protocol):
    """Where trials come from, and where their results go.

    A trial under way is one that this or another process runs. One that was cut off, and that nobody has taken up yet,
    is not.
    """

    def opened(self, budget: Budget, size: int) -> AbstractContextManager[None]:
        """Takes up what is on record; inside, trials are run, `size` at a time. An error hands them back."""

    def over(self) -> Sequence[Trial]:
        """The trials that are over."""

    def under_way(self) -> int:
        """How many trials are under way."""

    def deadline(self) -> float:
        """When the budget of seconds is used up, on the clock of `time.monotonic`; infinite without one."""

    def next(self) -> tuple[Trial, Any] | None:
        """A trial to run, new or cut off, and its hyperparameters; None if there is nothing to propose now.

        One whose record has a result already only needs to be reported.
        """

    def report(self, trial: Trial, hp: Any) -> None:
        """Records what came of a trial, and tells what proposes the next."""

    def is_waiting(self) -> bool:
        """True while others run trials, which may come back or make room."""


def choices(space: Any, seed: int) -> Any:
    """The `HyperParameters` that a space asks for.

    A builder may refuse the values that it gets with `FailedTrialError`; then it is asked again with others.
    """
    keras_tuner = load("keras_tuner")
    hp = keras_tuner.HyperParameters()
    for attempt in range(_BUILDS):
        keras.utils.set_random_seed(seed)
        try:
            space.build(hp)
            break
        except keras_tuner.errors.FailedTrialError:
            hp.values = {part.name: part.random_sample(seed + attempt) for part in hp.space}
    return hp


def told(trial: Trial, others: Sequence[Trial], objectives: Sequence[Objective]) -> dict[str, float] | None:
    """The objectives of a trial as a sampler hears of them; one that was refused counts as the worst of the others."""
    figures: Mapping[str, float] = trial.figures
    if trial.state == states.INFEASIBLE:
        trained = [other.figures for other in others if other.is_trained]
        worst = {part: max((part.loss(row[part.name]) for row in trained), default=None) for part in objectives}
        figures = {part.name: part.loss(value) for part, value in worst.items() if value is not None}
    if trial.state == states.FAILED or not all(part.name in figures for part in objectives):
        return None
    return {part.name: figures[part.name] for part in objectives}
