"""Trials of one call: an oracle of Keras Tuner proposes them, the journal in a folder records them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tfopt.tuner import journal as states
from tfopt.tuner.journal import SearchJournal, Trial
from tfopt.tuner.loop import Alone, run_trials
from tfopt.tuner.objective import Objective
from tfopt.tuner.oracles import VIOLATION, proposed_again
from tfopt.tuner.sources import Budget, choices, told
from tfopt.tuner.trainer import Trainer
from tfopt.tuner.workers import Workers


def search_in_folder(trainer: Trainer, oracle: Any, workers: int, budget: Budget, verbose: int) -> list[Trial]:
    """All trials of the journal of the trainer, once the budget is used up.

    Args:
        oracle: of Keras Tuner, new.
        workers: number of processes that run trials.
    """
    trials = FolderTrials(trainer.space, oracle, trainer.journal, trainer.objectives, trainer.seed)
    if workers == 1:
        run_trials(trials, Alone(trainer, trials.over), budget, verbose)
    else:
        with Workers(trainer, workers) as team:
            run_trials(trials, team, budget, verbose)
    return sorted(trials.over(), key=lambda trial: trial.number)


class FolderTrials:
    """A source of trials that no other call works on.

    Args:
        space: a Keras Tuner `HyperModel`.
        oracle: of Keras Tuner, new.
    """

    def __init__(self, space: Any, oracle: Any, journal: SearchJournal, objectives: Sequence[Objective], seed: int):
        self._space, self._oracle, self._journal, self._objectives = space, oracle, journal, tuple(objectives)
        self._seed = seed
        self._over: list[Trial] = []  # in the order of their ends
        self._running: dict[int, Any] = {}  # number -> what the oracle proposed; those cut off, too
        self._cut_off: list[Trial] = []
        self._deadline = math.inf

    @contextmanager
    def opened(self, budget: Budget, size: int) -> Iterator[None]:
        self._oracle.save = lambda: None  # the journal keeps the trials
        self._oracle._save_trial = lambda trial: None
        self._oracle.update_space(choices(self._space, self._seed))
        self._take_up()
        if budget.seconds is not None:
            spent = sum(trial.seconds for trial in (*self._over, *self._cut_off)) / size
            self._deadline = time.monotonic() + budget.seconds - spent
        yield

    def over(self) -> Sequence[Trial]:
        return self._over

    def under_way(self) -> int:
        return len(self._running) - len(self._cut_off)

    def deadline(self) -> float:
        return self._deadline

    def next(self) -> tuple[Trial, Any] | None:
        if self._cut_off:
            trial = self._cut_off.pop(0)
            return trial, self._running[trial.number].hyperparameters
        number = len(self._over) + len(self._running)
        proposed = self._oracle.create_trial(str(number))
        if proposed.status != "RUNNING":
            return None
        trial = Trial(number, dict(proposed.hyperparameters.values), proposed_after=len(self._over))
        self._journal.write(trial)
        self._running[number] = proposed
        return trial, proposed.hyperparameters

    def report(self, trial: Trial, hp: Any) -> None:
        self._running[trial.number].hyperparameters = hp
        trial = dataclasses.replace(trial, ended_as=len(self._over))
        self._journal.write(trial)
        self._tell(trial)

    def is_waiting(self) -> bool:
        return False

    def _take_up(self) -> None:
        """Lets the oracle propose, and tells it, all that is on record, in the order of then."""
        records = self._journal.trials()
        over = sorted(
            (record for record in records if record.state != states.RUNNING), key=lambda record: record.ended_as
        )
        for record in records:
            while len(self._over) < record.proposed_after:
                self._tell(over[len(self._over)])
            self._running[record.number] = proposed_again(self._oracle, record.values, str(record.number))
        for record in over[len(self._over) :]:
            self._tell(record)
        self._cut_off = [record for record in records if record.state == states.RUNNING]

    def _tell(self, trial: Trial) -> None:
        """Tells the oracle what came of a trial."""
        known = told(trial, self._over, self._objectives)
        self._over.append(trial)
        proposed = self._running.pop(trial.number)
        proposed.hyperparameters.values = dict(trial.values)
        if known is None:
            proposed.status = "FAILED"
        else:
            proposed.status = "COMPLETED"
            goal = self._oracle.objective  # of several ones their sum, which has a name of its own
            metrics = {**known, VIOLATION: trial.violation, goal.name: goal.get_value(known)}
            self._oracle.update_trial(proposed.trial_id, metrics)
        self._oracle.end_trial(proposed)
