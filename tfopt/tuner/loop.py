"""The loop of a search: a source proposes trials, a team runs them, the source records them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tfopt.core.reporting.progress import progress
from tfopt.tuner import journal as states
from tfopt.tuner.journal import Trial
from tfopt.tuner.sources import Budget, Source
from tfopt.tuner.trainer import Trainer

_REFUSED = 200  # trials in a row that break a constraint before training, until the search gives up
_POLL = 1.0  # seconds between two looks at the trials of others


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


def run_trials(source: Source, team: Team, budget: Budget, verbose: int) -> None:
    """Runs trials until the budget is used up, or there is nothing left to propose, and all of them are over."""
    with source.opened(budget, team.size), progress("search", budget.total, verbose) as step:
        given, shown = 0, 0
        while True:
            while given < team.size and not _is_over(source, budget) and (task := source.next()):
                if task[0].state == states.RUNNING:
                    team.give(*task, source.deadline())
                    given += 1
                else:
                    source.report(*task)
            if given:
                for trial, hp in team.ended():
                    given -= 1
                    source.report(trial, hp)
            elif source.is_waiting():
                time.sleep(_POLL)
            else:
                break
            done = min(budget.total, _used(source, budget))
            for _ in range(done - shown):
                step()
            shown = max(shown, done)


def _is_over(source: Source, budget: Budget) -> bool:
    """True if no trial may be begun any more."""
    trials = source.over()
    if _is_hopeless(trials):
        return True
    if budget.trials is None:
        return time.monotonic() >= source.deadline()
    return _counted(trials) + source.under_way() >= budget.trials


def _used(source: Source, budget: Budget) -> int:
    """The trials or seconds that are used up."""
    if budget.seconds is None:
        return _counted(source.over())
    return int(budget.seconds - (source.deadline() - time.monotonic()))


def _is_hopeless(trials: Sequence[Trial]) -> bool:
    """True if the last trials, many in a row, broke a constraint before training."""
    last = trials[-_REFUSED:]
    return len(last) == _REFUSED and all(trial.state == states.INFEASIBLE for trial in last)


def _counted(trials: Sequence[Trial]) -> int:
    """How many trials are part of the budget."""
    return sum(trial.state != states.INFEASIBLE for trial in trials)
