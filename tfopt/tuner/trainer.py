"""What becomes of a trial: its model is built, measured, and trained as often as the search asks for."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.data.splits import Split
from tfopt.core.errors import InvalidArgumentError, first_line
from tfopt.core.keras_internals import name_counts
from tfopt.tuner import journal as states
from tfopt.tuner.arguments import parts
from tfopt.tuner.costs import Costs
from tfopt.tuner.journal import Run, SearchJournal, Trial
from tfopt.tuner.names import names_made_since
from tfopt.tuner.objective import COSTS, Constraint, Objective, violation
from tfopt.tuner.packages import load
from tfopt.tuner.training import Fit, Keeper, Stopper, train

keras_tuner: Any = load("keras_tuner")

# What code of a user, Keras or TensorFlow raises when one trial cannot be built or trained.
_FAILURES = (
    *(ValueError, TypeError, ArithmeticError, AttributeError, AssertionError, LookupError, MemoryError),
    *(NameError, NotImplementedError, OSError, RuntimeError, tf.errors.OpError),
    keras_tuner.errors.FailedTrialError,
)


@dataclasses.dataclass(frozen=True)
class _Task:
    """One call of a `Trainer`: what it is given beside the trial, and when it began."""

    hp: Any
    others: Callable[[], Sequence[Trial]]
    deadline: float
    started: float


@dataclasses.dataclass(frozen=True)
class _Built:
    """A new model, and the names that Keras made when it was built."""

    model: keras.Model
    made: dict[str, str]


@dataclasses.dataclass
class Trainer:
    """Measures and trains the models of trials, in this process or in a worker.

    Args:
        space: builds and fits them, a Keras Tuner `HyperModel`.
        journal: keeps models and trainings under way.
        folds: of `train`, to validate on in place of `val`; none to validate on `val`.
        stop_early: ends trainings without hope.
        seed: of the search; each training of each trial has its own.
    """

    space: Any
    journal: SearchJournal
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    train: Any
    val: Any
    folds: Sequence[Split]
    executions: int
    epochs: int
    batch_size: int
    stop_early: bool
    seed: int

    def __call__(self, trial: Trial, hp: Any, others: Callable[[], Sequence[Trial]], deadline: float) -> Trial:
        """The trial once it is over.

        Args:
            trial: new, or taken up where it was cut off.
            hp: holds its values.
            others: gives the trials so far, to compare with.
            deadline: on the clock of `time.monotonic`.
        """
        task = _Task(hp, others, deadline, time.monotonic())
        ended = self._run(trial, task)
        return dataclasses.replace(ended, seconds=trial.seconds + time.monotonic() - task.started)

    @functools.cached_property
    def data(self) -> list[tuple]:
        """What to train and to validate on, a pair for each training of a trial."""
        return [*parts(self.train, self.val, self.folds)] * self.executions

    @functools.cached_property
    def costs(self) -> Costs:
        samples = self.train[0] if isinstance(self.train, tuple) else self.train
        return Costs([goal.name for goal in self.objectives if goal.is_cost], self.constraints, samples)

    def _run(self, trial: Trial, task: _Task) -> Trial:
        try:
            built = self._built(trial, 0, task.hp)
            trial = dataclasses.replace(trial, values=dict(task.hp.values))
            figures, broken, excess = self.costs(built.model)
        except _FAILURES as error:
            return _failed(trial, error)
        trial = dataclasses.replace(trial, figures=figures, violation=excess)
        if broken is not None:
            known = f" ({broken.name} = {figures[broken.name]:,.6g})" if broken.name in figures else ""
            return dataclasses.replace(trial, state=states.INFEASIBLE, reason=f"breaks {broken}{known}")
        return self._trained(trial, task, built)

    def _trained(self, trial: Trial, task: _Task, built: _Built) -> Trial:
        """The trial after all of its trainings; each is recorded once it is over.

        Args:
            built: the model of the first training.
        """
        before = trial.seconds
        for number in range(len(trial.runs), len(self.data)):
            try:
                if number:
                    built = self._built(trial, number, task.hp)
                run = self._train(trial, number, task, built)
            except _FAILURES as error:
                return _failed(trial, error)
            self._check_logged(run)
            if any(not math.isfinite(run.figures.get(part.name, math.nan)) for part in self._logged):
                reason = "its objective is not finite at any epoch"
                return dataclasses.replace(trial, state=states.FAILED, reason=reason)
            if self._is_best_run(trial, run):
                self.journal.save_model(trial.number, built.model)
            seconds = before + time.monotonic() - task.started
            trial = dataclasses.replace(trial, runs=(*trial.runs, run), seconds=seconds)
            if number + 1 < len(self.data):
                self.journal.write(trial)
        return self._judged(trial)

    def _built(self, trial: Trial, run: int, hp: Any) -> _Built:
        keras.utils.set_random_seed(self._seed(trial, run))
        before = name_counts()
        return _Built(self.space.build(hp), names_made_since(before))

    @property
    def _logged(self) -> list[Objective]:
        return [objective for objective in self.objectives if not objective.is_cost]

    def _seed(self, trial: Trial, run: int) -> int:
        return self.seed + 1009 * trial.number + 100_003 * run + 1

    def _train(self, trial: Trial, number: int, task: _Task, built: _Built) -> Run:
        values, model = task.hp.values, built.model
        epochs, first = values.get("tuner/epochs", self.epochs), values.get("tuner/initial_epoch", 0)
        earlier = values.get("tuner/trial_id")  # Hyperband goes on with a trial of its last round
        if earlier is not None and self.journal.model_path(int(earlier)).exists():
            model.optimizer.build(model.trainable_variables)
            model.load_weights(self.journal.model_path(int(earlier)))
        guide = next(iter(self._logged), None)
        keeper = Keeper(self.journal, trial.number, number, guide, built.made)
        compares = self.stop_early and number == 0
        rivals = self._rivals(trial, task.others()) if compares else []
        stopper = Stopper(keeper, guide if compares else None, rivals, task.deadline)
        training, validation = self.data[number]
        fit = Fit(training, validation, epochs, first, self.batch_size)
        return train(self.space, task.hp, model, fit, keeper, stopper)

    def _rivals(self, trial: Trial, others: Sequence[Trial]) -> list[list[dict[str, float]]]:
        """The first training of those trials that are at least as good in each objective known before training."""
        costs = [objective for objective in self.objectives if objective.is_cost]
        return [
            other.runs[0].history
            for other in others
            if other.is_trained
            and all(cost.loss(other.figures[cost.name]) <= cost.loss(trial.figures[cost.name]) for cost in costs)
        ]

    def _check_logged(self, run: Run) -> None:
        """An objective that is not logged is a mistake in the call, not in the trial."""
        known = {name for logs in run.history for name in logs}
        goals: tuple[Any, ...] = (*self.objectives, *self.constraints)
        for part in goals:
            if not part.is_cost and part.name not in known:
                raise InvalidArgumentError(
                    "Objectives and constraints are costs, or metrics that `fit` logs.",
                    received=repr(part.name),
                    fix=f"Costs are {', '.join(COSTS)}; logged are {', '.join(sorted(known))}.",
                )

    def _is_best_run(self, trial: Trial, run: Run) -> bool:
        guide = next(iter(self._logged), None)
        if guide is None or not trial.runs:
            return not trial.runs
        best = min(guide.loss(other.figures[guide.name]) for other in trial.runs)
        return guide.loss(run.figures[guide.name]) < best

    def _judged(self, trial: Trial) -> Trial:
        """The trial with the mean of its runs and what it breaks."""
        names = dict.fromkeys(name for run in trial.runs for name in run.figures)
        means = {name: float(np.mean([run.figures.get(name, math.nan) for run in trial.runs])) for name in names}
        figures = {**means, **trial.figures}
        reason = next((run.stopped for run in trial.runs if run.stopped), "")
        state = states.STOPPED if reason else states.COMPLETE
        return dataclasses.replace(
            trial, state=state, figures=figures, violation=violation(self.constraints, figures), reason=reason
        )


def _failed(trial: Trial, error: Exception) -> Trial:
    """The trial as failed. Errors that Keras Tuner calls fatal end the search."""
    if isinstance(error, keras_tuner.errors.FatalError):
        raise error
    return dataclasses.replace(trial, state=states.FAILED, reason=f"{type(error).__name__}: {first_line(error)}")
