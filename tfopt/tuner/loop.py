"""The loop of a search: an oracle proposes trials, this process or its workers run them, the journal records them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras

from tfopt.core.reporting.progress import progress
from tfopt.tuner import journal as states
from tfopt.tuner.journal import SearchJournal, Trial
from tfopt.tuner.objective import Objective
from tfopt.tuner.oracles import VIOLATION, proposed_again
from tfopt.tuner.packages import load
from tfopt.tuner.trainer import Trainer

_REFUSED = 200  # trials in a row that break a constraint before training, until the search gives up


class Team(Protocol):
    """Runs trials."""

    size: int  # trials at a time

    def give(self, trial: Trial, hp: Any, deadline: float) -> None:
        """Starts a trial."""

    def ended(self) -> Sequence[tuple[Trial, Any]]:
        """Waits for trials to end, and gives at least one, with its hyperparameters."""


class Alone:
    """A team of this process.

    Args:
        others: gives the trials so far.
    """

    size = 1

    def __init__(self, trainer: Trainer, others: Callable[[], Sequence[Trial]]):
        self._trainer, self._others = trainer, others
        self._task: tuple[Trial, Any, float] | None = None

    def give(self, trial: Trial, hp: Any, deadline: float) -> None:
        self._task = trial, hp, deadline

    def ended(self) -> Sequence[tuple[Trial, Any]]:
        assert self._task is not None
        trial, hp, deadline = self._task
        return [(self._trainer(trial, hp, self._others, deadline), hp)]


class Search:
    """A search under way.

    Args:
        space: a Keras Tuner `HyperModel`.
        oracle: proposes trials.
    """

    def __init__(self, space: Any, oracle: Any, journal: SearchJournal, objectives: Sequence[Objective], seed: int):
        self.trials: list[Trial] = []  # that are over, in this order
        self._space, self._oracle, self._journal, self._objectives = space, oracle, journal, tuple(objectives)
        self._seed = seed
        self._running: dict[int, Any] = {}  # number -> what the oracle proposed
        self._cut_off: list[Trial] = []
        self._deadline = math.inf

    def run(self, team: Team, trials: int | None, seconds: float | None, verbose: int) -> None:
        """Takes up what is on record, then goes on until the budget is used up."""
        self._register()
        self._take_up()
        if seconds is not None:
            spent = sum(trial.seconds for trial in (*self.trials, *self._cut_off)) / team.size
            self._deadline = time.monotonic() + seconds - spent
        total = trials if trials is not None else math.ceil(seconds or 0)
        given = 0
        with progress("search", total, verbose) as step:
            shown = 0
            while True:
                while given < team.size and not self._is_over(trials, given) and (task := self._next()):
                    team.give(*task, self._deadline)
                    given += 1
                if not given:
                    break
                for trial, hp in team.ended():
                    given -= 1
                    self._running[trial.number].hyperparameters = hp
                    trial = dataclasses.replace(trial, ended_as=len(self.trials))
                    self._journal.write(trial)
                    self._report(trial)
                elapsed = (seconds or 0.0) - (self._deadline - time.monotonic())
                done = min(total, self._counted if trials is not None else int(elapsed))
                for _ in range(done - shown):
                    step()
                shown = max(shown, done)

    @property
    def _counted(self) -> int:
        return sum(trial.state != states.INFEASIBLE for trial in self.trials)

    def _is_over(self, most: int | None, given: int) -> bool:
        if is_hopeless(self.trials):
            return True
        return self._counted + given >= most if most is not None else time.monotonic() >= self._deadline

    def _register(self) -> None:
        """Tells the oracle which choices there are."""
        self._oracle.save = lambda: None  # the journal keeps the trials
        self._oracle._save_trial = lambda trial: None
        self._oracle.update_space(choices(self._space, self._seed))

    def _take_up(self) -> None:
        """Lets the oracle propose, and tells it, all that is on record, in the order of then."""
        records = self._journal.trials()
        over = sorted(
            (record for record in records if record.state != states.RUNNING), key=lambda record: record.ended_as
        )
        for record in records:
            while len(self.trials) < record.proposed_after:
                self._report(over[len(self.trials)])
            self._running[record.number] = proposed_again(self._oracle, record.values, str(record.number))
        for record in over[len(self.trials) :]:
            self._report(record)
        self._cut_off = [record for record in records if record.state == states.RUNNING]

    def _next(self) -> tuple[Trial, Any] | None:
        """A trial to run and its hyperparameters; None if there is none to propose until another is over."""
        if self._cut_off:
            trial = self._cut_off.pop(0)
            return trial, self._running[trial.number].hyperparameters
        number = len(self.trials) + len(self._running)
        proposed = self._oracle.create_trial(str(number))
        if proposed.status != "RUNNING":
            return None
        trial = Trial(number, dict(proposed.hyperparameters.values), proposed_after=len(self.trials))
        self._journal.write(trial)
        self._running[number] = proposed
        return trial, proposed.hyperparameters

    def _report(self, trial: Trial) -> None:
        """Tells the oracle what came of a trial."""
        known = told(trial, self.trials, self._objectives)
        self.trials.append(trial)
        proposed = self._running.pop(trial.number)
        proposed.hyperparameters.values = dict(trial.values)
        if known is None:
            proposed.status = "FAILED"
        else:
            proposed.status = "COMPLETED"
            self._oracle.update_trial(proposed.trial_id, {**known, VIOLATION: trial.violation})
        self._oracle.end_trial(proposed)


def is_hopeless(trials: Sequence[Trial]) -> bool:
    """True if the last trials, many in a row, broke a constraint before training."""
    last = trials[-_REFUSED:]
    return len(last) == _REFUSED and all(trial.state == states.INFEASIBLE for trial in last)


def choices(space: Any, seed: int) -> Any:
    """The `HyperParameters` that a space asks for."""
    hp = load("keras_tuner").HyperParameters()
    keras.utils.set_random_seed(seed)
    space.build(hp)
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
