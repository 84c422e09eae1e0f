"""The verb `search`."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.errors import InvalidArgumentError, first_line
from tfopt.core.fingerprints import fingerprint
from tfopt.core.progress import progress
from tfopt.search import journal as states
from tfopt.search.arguments import as_budget, as_hypermodel, check, fingerprints, parts
from tfopt.search.costs import Costs
from tfopt.search.journal import Journal, Run, Trial
from tfopt.search.objective import COSTS, Constraint, Objective, as_constraints, as_objectives, violation
from tfopt.search.oracles import VIOLATION, make_oracle, proposed_again
from tfopt.search.packages import load
from tfopt.search.result import SearchResult
from tfopt.search.space import SearchSpace
from tfopt.search.training import Keeper, Stopper, train

# What code of a user, Keras or TensorFlow raises when one trial cannot be built or trained.
_FAILURES = (
    *(ValueError, TypeError, ArithmeticError, AttributeError, AssertionError, LookupError, MemoryError),
    *(NameError, NotImplementedError, OSError, RuntimeError, tf.errors.OpError),
)
_REFUSED = 200  # trials in a row that break a constraint before training, until the search gives up


def search(
    model_or_builder: keras.Model | Callable[[Any], keras.Model] | Any,
    space: SearchSpace | dict[str, Any] | None = None,
    *,
    train: Any,
    val: Any = None,
    method: str = "tpe",
    objectives: Any = ("val_accuracy",),
    constraints: Any = (),
    budget: int | str = 20,
    epochs: int = 10,
    batch_size: int = 32,
    executions: int = 1,
    cv: int | None = None,
    inherit: bool = True,
    stop_early: bool = True,
    directory: str | os.PathLike | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> SearchResult:
    """Trains variants of a model, one after the other, and returns the best that keep to the constraints.

    A constraint on a cost (`parameters`, `macs`, `tflite_bytes`, `latency_ms`) is checked before a variant is trained:
    parameters, MACs and a lower bound of the file size on the built model, in milliseconds; size and latency, if one
    of the two is asked for, on its int8 .tflite with random weights, in seconds, once an architecture. What breaks one
    is recorded as infeasible and not counted in `budget`. Each trial is recorded in a file of its own: called again
    with the same `directory`, the search goes on, a trial that was cut off from its last epoch.

    The random generators of Python, NumPy and TensorFlow are seeded anew for each trial.

    Args:
        model_or_builder: a compiled model to vary; or a function `hp -> compiled model`, or a `keras_tuner.HyperModel`.
        space: what to vary of a model: a `SearchSpace`, or a dict of the arguments of `SearchSpace.from_model`.
        train: `(x, y)` or `(x, y, sample_weights)` of arrays, or a `tf.data.Dataset` of batches.
        val: the same, to choose by; not with `cv`.
        method: `"tpe"` and `"nsga2"` (samplers of Optuna), `"random"`, `"grid"` (in random order), `"bayesian"`,
            `"hyperband"` (of Keras Tuner; the last two for one objective).
        objectives: one name or several: a cost, or what `fit` logs, such as `"val_accuracy"` or `"val_loss"`. For
            others the direction goes with it: `("val_iou", "max")`. The first that `fit` logs chooses the epoch.
        constraints: such as `"tflite_bytes <= 100_000"`, `"latency_ms <= 2"`, `"val_accuracy >= 0.9"`.
        budget: number of trials, or seconds as in `"600s"`, over all calls with one `directory`. The last training
            ends with the epoch in which the time is up.
        epochs: of each training; with `"hyperband"` the most.
        batch_size: in samples, for arrays, where the space does not choose it.
        executions: trainings of each trial from other seeds, whose mean counts.
        cv: number of folds of `train`, instead of `val`; their mean counts.
        inherit: where `space` is a dict: variants start from the weights of the model.
        stop_early: ends a training whose best epoch is worse than the median of the others after as many epochs,
            compared with those trials only that cost no more. Not with `"hyperband"`.
        directory: where trials are recorded, made if it is not there; None keeps them until the result is deleted.
        seed: of the method and of each trial.
        verbose: 1 shows a progress bar.

    Returns:
        A frozen `SearchResult`: `best`, `best_models(n)`, `pareto`, all `trials` with the reason for each that
        failed; prints as a table, shows in Jupyter, saves as a page with plots, `to_dataframe()`.

    Raises:
        InvalidArgumentError: options that do not fit, an objective that is not logged, a missing package, or a
            `directory` with a search of other settings.
        FileError: `directory` cannot be written, or holds something else.

    Example:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((4,)), dense(8, "relu"), dense(2, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> data = np.eye(4), np.array([0, 1, 0, 1])
        >>> space = {"width": (0.5, 1, 2), "lr": (1e-3, 1e-1)}
        >>> found = search(model, space, train=data, val=data, budget=2, epochs=1, constraints="macs <= 60", verbose=0)
        >>> found.best.figures["macs"] <= 60, len(found.best_models(1))
        (True, 1)
    """
    chosen = as_objectives(objectives)
    limits = as_constraints(constraints)
    hypermodel = as_hypermodel(model_or_builder, space, inherit)
    check(hypermodel, train, val, chosen, epochs, batch_size, executions, cv, seed)
    trials, seconds = as_budget(budget)
    constrained = bool(limits)
    oracle = make_oracle(method, chosen, seed=seed, epochs=epochs, constrained=constrained)
    settings = fingerprints(hypermodel, train, val)
    settings["settings"] = fingerprint(
        [method, [str(part) for part in (*chosen, *limits)], epochs, batch_size, executions, cv, stop_early, seed]
    )
    journal = Journal(directory, settings)
    samples = train[0] if isinstance(train, tuple) else train
    study = _Search(
        space=hypermodel,
        oracle=oracle,
        journal=journal,
        objectives=chosen,
        constraints=limits,
        costs=Costs([goal.name for goal in chosen if goal.is_cost], limits, samples),
        data=[*parts(train, val, cv, seed)] * executions,
        epochs=epochs,
        batch_size=batch_size,
        stop_early=stop_early and method != "hyperband",
        seed=seed,
    )
    study.run(trials, seconds, verbose)
    return SearchResult(hypermodel.name or "builder", method, chosen, limits, tuple(study.trials), journal)


@dataclasses.dataclass
class _Search:
    """A search under way."""

    space: Any
    oracle: Any
    journal: Journal
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    costs: Costs
    data: list[tuple]
    epochs: int
    batch_size: int
    stop_early: bool
    seed: int
    trials: list[Trial] = dataclasses.field(default_factory=list)
    _deadline: float = math.inf

    def run(self, trials: int | None, seconds: float | None, verbose: int) -> None:
        """Takes up what is on record, then goes on until the budget is used up."""
        self._register()
        unfinished = None
        for record in self.journal.trials():
            if record.state == states.RUNNING:
                unfinished = record
                break
            self._report(proposed_again(self.oracle, record.values), record)
        spent = sum(trial.seconds for trial in self.trials) + (unfinished.seconds if unfinished else 0.0)
        if seconds is not None:
            self._deadline = time.monotonic() + seconds - spent
        total = trials if trials is not None else math.ceil(seconds or 0)
        with progress("search", total, verbose) as step:
            shown = 0
            while not self._is_over(trials):
                if not self._next(unfinished):
                    break
                unfinished = None
                elapsed = (seconds or 0.0) - (self._deadline - time.monotonic())
                done = min(total, self._counted if trials is not None else int(elapsed))
                for _ in range(done - shown):
                    step()
                shown = max(shown, done)

    @property
    def _counted(self) -> int:
        return sum(trial.state != states.INFEASIBLE for trial in self.trials)

    def _is_over(self, most: int | None) -> bool:
        last = self.trials[-_REFUSED:]
        refused = len(last) == _REFUSED and all(trial.state == states.INFEASIBLE for trial in last)
        return refused or (self._counted >= most if most is not None else time.monotonic() >= self._deadline)

    def _register(self) -> None:
        """Tells the oracle which choices there are."""
        hp = load("keras_tuner").HyperParameters()
        keras.utils.set_random_seed(self.seed)
        self.space.build(hp)
        self.oracle.save = lambda: None  # the journal keeps the trials
        self.oracle._save_trial = lambda trial: None
        self.oracle.update_space(hp)

    def _next(self, unfinished: Trial | None) -> bool:
        """Runs one trial; False if there is none left to propose."""
        if unfinished is None:
            proposed = self.oracle.create_trial("tuner")
            if proposed.status != "RUNNING":
                return False
            trial = Trial(len(self.trials), dict(proposed.hyperparameters.values))
            self.journal.write(trial)
        else:
            proposed, trial = proposed_again(self.oracle, unfinished.values), unfinished
        started = time.monotonic()
        trial = self._run(trial, proposed.hyperparameters, started)
        trial = dataclasses.replace(trial, seconds=trial.seconds + time.monotonic() - started)
        self.journal.write(trial)
        self._report(proposed, trial)
        return True

    def _run(self, trial: Trial, hp: Any, started: float) -> Trial:
        """Measures, and if nothing speaks against it trains, the model of one trial."""
        try:
            keras.utils.set_random_seed(self._seed(trial, 0))
            model = self.space.build(hp)
            trial = dataclasses.replace(trial, values=dict(hp.values))
            figures, broken, excess = self.costs(model)
        except _FAILURES as error:
            return _failed(trial, error)
        trial = dataclasses.replace(trial, figures=figures, violation=excess)
        if broken is not None:
            known = f" ({broken.name} = {figures[broken.name]:,.6g})" if broken.name in figures else ""
            return dataclasses.replace(trial, state=states.INFEASIBLE, reason=f"breaks {broken}{known}")
        before = trial.seconds
        for number in range(len(trial.runs), len(self.data)):
            try:
                if number:
                    keras.utils.set_random_seed(self._seed(trial, number))
                    model = self.space.build(hp)
                run = self._train(trial, number, hp, model)
            except _FAILURES as error:
                return _failed(trial, error)
            self._check_logged(run)
            if any(not math.isfinite(run.figures.get(part.name, math.nan)) for part in self._logged):
                return dataclasses.replace(
                    trial, state=states.FAILED, reason="its objective is not finite at any epoch"
                )
            if self._is_best_run(trial, run):
                self.journal.save_model(trial.number, model)
            trial = dataclasses.replace(trial, runs=(*trial.runs, run), seconds=before + time.monotonic() - started)
            if number + 1 < len(self.data):
                self.journal.write(trial)
        return self._judged(dataclasses.replace(trial, seconds=before))

    @property
    def _logged(self) -> list[Objective]:
        return [objective for objective in self.objectives if not objective.is_cost]

    def _seed(self, trial: Trial, run: int) -> int:
        return self.seed + 1009 * trial.number + 100_003 * run + 1

    def _train(self, trial: Trial, number: int, hp: Any, model: keras.Model) -> Run:
        epochs, first = self.epochs, 0
        earlier = hp.values.get("tuner/trial_id")  # Hyperband goes on with a trial of its last round
        if "tuner/epochs" in hp.values:
            epochs, first = hp.values["tuner/epochs"], hp.values["tuner/initial_epoch"]
        if earlier is not None and self.journal.model_path(int(earlier)).exists():
            model.optimizer.build(model.trainable_variables)
            model.load_weights(self.journal.model_path(int(earlier)))
        guide = next(iter(self._logged), None)
        keeper = Keeper(self.journal, trial.number, number, guide)
        rivals = self._rivals(trial) if self.stop_early and number == 0 else []
        stopper = Stopper(keeper, guide if self.stop_early and number == 0 else None, rivals, self._deadline)
        training, validation = self.data[number]
        return train(
            self.space,
            hp,
            model,
            keeper=keeper,
            stopper=stopper,
            train=training,
            val=validation,
            epochs=epochs,
            initial_epoch=first,
            batch_size=self.batch_size,
        )

    def _rivals(self, trial: Trial) -> list[list[dict[str, float]]]:
        """The first training of those trials that are at least as good in each objective known before training."""
        costs = [objective for objective in self.objectives if objective.is_cost]
        return [
            other.runs[0].history
            for other in self.trials
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

    def _report(self, proposed: Any, trial: Trial) -> None:
        """Tells the oracle what came of a trial; one that was not trained counts as the worst so far."""
        figures = trial.figures
        if trial.state == states.INFEASIBLE:
            trained = [other.figures for other in self.trials if other.is_trained]
            worst = {
                part: max((part.loss(row[part.name]) for row in trained), default=None) for part in self.objectives
            }
            figures = {part.name: part.loss(value) for part, value in worst.items() if value is not None}
        self.trials.append(trial)
        proposed.hyperparameters.values = dict(trial.values)
        if trial.state == states.FAILED or not all(part.name in figures for part in self.objectives):
            proposed.status = "FAILED"
        else:
            proposed.status = "COMPLETED"
            known = {part.name: figures[part.name] for part in self.objectives}
            self.oracle.update_trial(proposed.trial_id, {**known, VIOLATION: trial.violation})
        self.oracle.end_trial(proposed)


def _failed(trial: Trial, error: BaseException) -> Trial:
    return dataclasses.replace(trial, state=states.FAILED, reason=f"{type(error).__name__}: {first_line(error)}")
