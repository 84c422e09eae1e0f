"""A search whose trials are in a database, for several processes or machines that run the same call."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from tfopt.core.reporting.progress import progress
from tfopt.tuner import journal as states
from tfopt.tuner import studies
from tfopt.tuner.journal import Trial
from tfopt.tuner.loop import choices, is_hopeless, told
from tfopt.tuner.oracles import VIOLATION, make_sampler, suggested
from tfopt.tuner.packages import load
from tfopt.tuner.studies import NUMBER, RECORD, begin_again, clear_errors, fail_stale, open_study, record_of
from tfopt.tuner.trainer import Trainer

_POLL = 1.0  # seconds between two looks at the trials of others
_COLLISIONS = 5  # proposals in a row that were there before, until a random one is taken instead
_DRAWS = 200  # for that, until the space counts as exhausted
_WORKER, _UNTIL = "tfopt worker", "tfopt until"  # attributes of a trial: who has it since when, and when it was over


def search_in_storage(
    trainer: Trainer,
    url: str,
    name: str,
    method: str,
    settings: Mapping[str, str],
    budget: tuple[int | None, float | None],
    verbose: int,
) -> list[Trial]:
    """All trials of the study of that name, once the budget is used up and no worker has one under way.

    Args:
        url: of a database, as SQLAlchemy has it.
        budget: number of trials, or seconds; of all workers together.

    Raises:
        InvalidArgumentError: the study has other settings, or the driver of the database is not installed.
        TfoptError: the database is out of reach.
    """
    with clear_errors(url):
        study = open_study(url, name, trainer.objectives, make_sampler(method, None), settings)
        shared = _SharedSearch(trainer, study, *budget)
        shared.run(verbose)
        return shared.trials()


class _Withdrawn(Exception):
    """Ends a trial of Optuna that has no value to tell."""


class _SharedSearch:
    """What one worker does for a search that others work on, too.

    Args:
        study: of Optuna, in a storage with heartbeat.
        most: trials of all workers.
        seconds: during which at least one worker has a trial.
    """

    def __init__(self, trainer: Trainer, study: Any, most: int | None, seconds: float | None):
        self._trainer, self._study, self._most, self._seconds = trainer, study, most, seconds
        self._hp = choices(trainer.space, trainer.seed)
        self._collisions, self._is_exhausted = 0, False
        self._is_lost = False
        self._without_worker: dict[int, float] = {}  # number -> when it was first seen

    def trials(self) -> list[Trial]:
        """The trials of all workers that are over, in order."""
        found = [record for trial in self._asked() if (record := record_of(trial)) is not None]
        return list({trial.number: trial for trial in sorted(found, key=lambda trial: trial.number)}.values())

    def run(self, verbose: int) -> None:
        """Runs trials until the budget is used up and the last worker is done."""
        total = self._most if self._most is not None else round(self._seconds or 0)
        with progress("search", total, verbose) as step:
            shown = 0
            while True:
                fail_stale(self._study)
                asked = self._asked()
                self._take_from_nobody(asked)
                waiting = any(trial.state.name == "WAITING" for trial in asked) and not self._is_out_of_time()
                if waiting or not self._is_over(asked):
                    self._run_one()
                elif any(trial.state.name == "RUNNING" for trial in asked):
                    time.sleep(_POLL)
                else:
                    break
                done = sum(map(_counts, self._asked())) if self._most is not None else round(self._spent())
                for _ in range(min(total, done) - shown):
                    step()
                shown = max(shown, min(total, done))

    def _asked(self) -> list[Any]:
        return self._study.get_trials(deepcopy=False)

    def _is_over(self, asked: list[Any]) -> bool:
        if self._is_exhausted or is_hopeless(self.trials()):
            return True
        return sum(map(_counts, asked)) >= self._most if self._most is not None else self._is_out_of_time()

    def _is_out_of_time(self) -> bool:
        return self._seconds is not None and self._spent() >= self._seconds

    def _spent(self) -> float:
        """The seconds during which at least one worker had a trial, those apart in which all of them died."""
        spans = []
        for trial in self._asked():
            since, until = trial.user_attrs.get(_WORKER), trial.user_attrs.get(_UNTIL)
            if since is not None and (until is not None or trial.state.name == "RUNNING"):
                spans.append((since[1], time.time() if until is None else until))
        spent, end = 0.0, 0.0
        for first, last in sorted(spans):
            spent += max(0.0, last - max(first, end))
            end = max(end, last)
        return spent

    def _take_from_nobody(self, asked: list[Any]) -> None:
        """Takes over trials whose worker died before its first sign of life."""
        running = [trial for trial in asked if trial.state.name == "RUNNING" and _WORKER not in trial.user_attrs]
        for trial in running:
            since = self._without_worker.setdefault(trial.number, time.monotonic())
            if time.monotonic() - since > studies.GRACE:
                self._study.tell(trial.number, state=load("optuna").trial.TrialState.FAIL, skip_if_finished=True)
                begin_again(self._study, trial)

    def _run_one(self) -> None:
        self._is_lost = False
        try:
            self._study.optimize(self._run, n_trials=1, catch=(_Withdrawn,))
        except ValueError:  # of Optuna, for a trial that another worker has taken over
            if not self._is_lost:
                raise

    def _run(self, asked: Any) -> list[float]:
        """Runs the trial that Optuna asks for; gives its objectives."""
        asked.set_user_attr(_WORKER, [f"{socket.gethostname()} {os.getpid()}", time.time()])
        hp = suggested(asked, self._hp.space)
        if NUMBER not in asked.user_attrs:
            self._check_new(asked)
        trial = self._taken_up(asked, dict(hp.values))
        if trial.state == states.RUNNING:
            deadline = time.monotonic() + (self._seconds - self._spent() if self._seconds is not None else float("inf"))
            try:
                trial = self._trainer(trial, hp, self.trials, deadline)
            except KeyboardInterrupt:
                begin_again(self._study, asked, has_died=False)
                raise
            self._hp.merge(hp.space)  # a builder may have asked for more
            self._trainer.journal.write(trial)
        return self._told(asked, trial)

    def _check_new(self, asked: Any) -> None:
        """Withdraws a trial that others have left no room for, and one that was there before."""
        others = [trial for trial in self._asked() if trial.number < asked.number or NUMBER in trial.user_attrs]
        if self._most is not None and sum(map(_counts, others)) >= self._most:
            raise _Withdrawn
        known = [
            trial.params
            for trial in others
            if trial.state.name in ("RUNNING", "WAITING") or record_of(trial) is not None
        ]
        if asked.params in known:
            self._collisions += 1
            if self._collisions >= _COLLISIONS:
                self._queue_untried(known)
            raise _Withdrawn
        self._collisions = 0

    def _queue_untried(self, known: list[dict[str, Any]]) -> None:
        """Queues values that were not there before; without any left the search ends."""
        chance = load("optuna").create_study(sampler=make_sampler("random", None))
        for _ in range(_DRAWS):
            drawn = chance.ask()
            suggested(drawn, self._hp.space)
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

    def _told(self, asked: Any, trial: Trial) -> list[float]:
        known = told(trial, self.trials(), self._trainer.objectives)
        try:
            if self._trainer.constraints:
                asked.set_constraint(VIOLATION, trial.violation)
            asked.set_user_attr(_UNTIL, time.time())
            asked.set_user_attr(RECORD, dataclasses.asdict(trial))
        except load("optuna").exceptions.UpdateFinishedTrialError:
            self._is_lost = True
            raise _Withdrawn from None
        if known is None:
            raise _Withdrawn
        return [known[objective.name] for objective in self._trainer.objectives]


def _counts(asked: Any) -> bool:
    """True for a trial that is part of the budget."""
    record = record_of(asked)
    if record is None:
        return asked.state.name in ("RUNNING", "WAITING")
    return record.state != states.INFEASIBLE
