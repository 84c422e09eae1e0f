"""Trials in a database, for several processes or machines that run the same call."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tfopt.tuner import journal as states
from tfopt.tuner import studies
from tfopt.tuner.journal import Trial
from tfopt.tuner.loop import Alone, run_trials
from tfopt.tuner.oracles import VIOLATION
from tfopt.tuner.packages import load
from tfopt.tuner.samplers import ask, new_study, suggested
from tfopt.tuner.sources import Budget, choices, told
from tfopt.tuner.studies import (
    NUMBER,
    RECORD,
    Address,
    SignsOfLife,
    begin_again,
    clear_errors,
    fail_stale,
    open_storage,
    open_study,
    record_of,
)
from tfopt.tuner.trainer import Trainer

_COLLISIONS = 5  # proposals in a row that were there before, until a random one is taken instead
_DRAWS = 200  # for that, until the space counts as exhausted
_WORKER, _UNTIL = "tfopt worker", "tfopt until"  # attributes of a trial: who has it since when, and when it was over


def search_in_storage(trainer: Trainer, address: Address, sampler: Any, budget: Budget, verbose: int) -> list[Trial]:
    """All trials of a study, once the budget of all workers is used up and none of them has one under way.

    Args:
        sampler: of Optuna.

    Raises:
        InvalidArgumentError: the study has other settings, or the driver of the database is not installed.
        TfoptError: the database is out of reach.
    """
    with clear_errors(address.url):
        trials = StoredTrials(trainer, address, sampler)
        run_trials(trials, Alone(trainer, trials.over), budget, verbose)
        return trials.over()


class StoredTrials:
    """A source of trials that several processes work on, each with one trial at a time."""

    def __init__(self, trainer: Trainer, address: Address, sampler: Any):
        self._trainer = trainer
        self._hp = choices(trainer.space, trainer.seed)
        self._budget = Budget(None, None)
        self._collisions, self._is_exhausted = 0, False
        self._without_worker: dict[int, float] = {}  # number -> when it was first seen
        self._asked: Any = None  # the trial under way here, as Optuna has it
        self._signs: SignsOfLife | None = None
        self._storage = open_storage(address)
        self._study = open_study(self._storage, address, trainer.objectives, sampler, self._end)

    @contextmanager
    def opened(self, budget: Budget, size: int) -> Iterator[None]:
        assert size == 1
        self._budget = budget
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if self._asked is not None:
                begin_again(self._study, self._asked, has_died=False)
            raise
        finally:
            self._release()

    def over(self) -> list[Trial]:
        """The trials of all workers that are over, in order."""
        found = [record for trial in self._all() if (record := record_of(trial)) is not None]
        return list({trial.number: trial for trial in sorted(found, key=lambda trial: trial.number)}.values())

    def under_way(self) -> int:
        return sum(map(_is_running, self._all()))

    def deadline(self) -> float:
        """Seconds count during which at least one worker has a trial, not those in which all of them are dead."""
        seconds = self._budget.seconds
        return float("inf") if seconds is None else time.monotonic() + seconds - self._spent()

    def next(self) -> tuple[Trial, Any] | None:
        self._take_over()
        while not self._is_exhausted:
            hp = self._proposed()
            if NUMBER in self._asked.user_attrs:
                return self._taken_up(self._asked, dict(hp.values)), hp
            others = [t for t in self._all() if t.number < self._asked.number or NUMBER in t.user_attrs]
            is_full = self._budget.trials is not None and sum(map(_counts, others)) >= self._budget.trials
            if not is_full and self._is_new(self._asked, others):
                return self._taken_up(self._asked, dict(hp.values)), hp
            self._release()
            if is_full and not any(trial.state.name == "WAITING" for trial in others):
                break
        return None

    def report(self, trial: Trial, hp: Any) -> None:
        self._hp.merge(hp.space)  # a builder may have asked for more
        self._trainer.journal.write(trial)
        known = told(trial, self.over(), self._trainer.objectives)
        try:
            if self._trainer.constraints:
                self._asked.set_constraint(VIOLATION, trial.violation)
            self._asked.set_user_attr(_UNTIL, time.time())
            self._asked.set_user_attr(RECORD, dataclasses.asdict(trial))
        except load("optuna").exceptions.UpdateFinishedTrialError:  # another worker has taken it over
            known = None
        self._release(None if known is None else [known[part.name] for part in self._trainer.objectives])

    def is_waiting(self) -> bool:
        others_run = self.under_way() > 0
        self._take_over()
        return others_run

    def _all(self) -> list[Any]:
        return self._study.get_trials(deepcopy=False)

    def _end(self) -> None:
        self._is_exhausted = True

    def _proposed(self) -> Any:
        """The hyperparameters of the trial that is under way here from now on."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage")  # comes from `SignsOfLife`
            self._asked = ask(self._study)
        self._signs = SignsOfLife(self._storage, self._study.study_name, self._asked.number)
        self._asked.set_user_attr(_WORKER, [f"{socket.gethostname()} {os.getpid()}", time.time()])
        return suggested(self._study, self._asked, self._hp.space)

    def _release(self, values: Sequence[float] | None = None) -> None:
        """Ends the trial that is under way here, if there is one; without values it has failed for the sampler."""
        asked, self._asked = self._asked, None
        if self._signs is not None:
            self._signs.end()
            self._signs = None
        if asked is not None:
            state = load("optuna").trial.TrialState.FAIL if values is None else None
            self._study.tell(asked, values, state, skip_if_finished=True)

    def _spent(self) -> float:
        """The seconds during which at least one worker had a trial, those apart in which all of them died."""
        spans = []
        for trial in self._all():
            since, until = trial.user_attrs.get(_WORKER), trial.user_attrs.get(_UNTIL)
            if since is not None and (until is not None or _is_running(trial)):
                spans.append((since[1], time.time() if until is None else until))
        spent, end = 0.0, 0.0
        for first, last in sorted(spans):
            spent += max(0.0, last - max(first, end))
            end = max(end, last)
        return spent

    def _take_over(self) -> None:
        """Queues the trials of workers that are gone, those too that died before their first sign of life."""
        fail_stale(self._study)
        for trial in self._all():
            if not _is_running(trial) or _WORKER in trial.user_attrs:
                continue
            since = self._without_worker.setdefault(trial.number, time.monotonic())
            if time.monotonic() - since > studies.GRACE:
                self._study.tell(trial.number, state=load("optuna").trial.TrialState.FAIL, skip_if_finished=True)
                begin_again(self._study, trial)

    def _is_new(self, asked: Any, others: Sequence[Any]) -> bool:
        """False for a trial that was there before; after several of them another one is queued."""
        known = [
            trial.params
            for trial in others
            if trial.state.name in ("RUNNING", "WAITING") or record_of(trial) is not None
        ]
        if asked.params not in known:
            self._collisions = 0
            return True
        self._collisions += 1
        if self._collisions >= _COLLISIONS:
            self._queue_untried(known)
        return False

    def _queue_untried(self, known: list[dict[str, Any]]) -> None:
        """Queues values that were not there before; without any left the search ends."""
        chance = new_study(self._trainer.objectives, load("optuna").samplers.RandomSampler(), self._end)
        for _ in range(_DRAWS):
            drawn = chance.ask()
            suggested(chance, drawn, self._hp.space)
            if drawn.params not in known:
                self._study.enqueue_trial(drawn.params)
                return
        self._is_exhausted = True

    def _taken_up(self, asked: Any, values: dict[str, Any]) -> Trial:
        """The trial as this or another worker left it in the folder, or as it begins."""
        journal, number = self._trainer.journal, asked.user_attrs.get(NUMBER, asked.number)
        recorded = journal.trial(number) if NUMBER in asked.user_attrs else None
        if recorded is not None and recorded.values.items() >= values.items():
            return recorded
        journal.forget(number)
        trial = Trial(number, values)
        journal.write(trial)
        return trial


def _is_running(asked: Any) -> bool:
    return asked.state.name == "RUNNING"


def _counts(asked: Any) -> bool:
    """True for a trial that is part of the budget."""
    record = record_of(asked)
    if record is None:
        return asked.state.name in ("RUNNING", "WAITING")
    return record.state != states.INFEASIBLE
