"""One training of a trial: goes on where a killed process left it, keeps its best epoch, ends early without hope."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfopt.tuner.journal import Backup, Run, SearchJournal
from tfopt.tuner.names import Figures
from tfopt.tuner.objective import Objective

_RIVALS = 5  # trainings to compare with, before one is called hopeless
_FIRST_EPOCHS = 1  # that are not looked at


class Keeper(keras.callbacks.Callback):
    """Keeps what the training needs to go on, after each epoch, and the weights of the best epoch.

    Args:
        journal, number, run: where, for which trial and which training of it.
        objective: decides which epoch is best; None is the last.
        made: the names that Keras made when the model was built, as `names_made_since` gives them.
    """

    def __init__(
        self, journal: SearchJournal, number: int, run: int, objective: Objective | None, made: Mapping[str, str]
    ):
        super().__init__()
        self._made = made
        kept = journal.backup(number)
        self._kept = kept if kept is not None and kept.run == run else None
        self._journal, self._number, self._run, self._objective = journal, number, run, objective
        self.history = [] if self._kept is None else list(self._kept.history)
        self._best_weights = [] if self._kept is None else self._kept.best_weights
        self._best_epoch = -1 if self._kept is None else self._kept.best_epoch

    @property
    def epochs(self) -> int:
        """How many are behind."""
        return len(self.history)

    def on_train_begin(self, logs: Any = None) -> None:
        self._figures = Figures(self.model, self._made)
        self.model.optimizer.build(self.model.trainable_variables)
        if self._kept is not None:
            for variable, value in zip(self._variables(), self._kept.weights, strict=True):
                variable.assign(value)
        self._kept = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.history.append(self._figures(logs or {}))
        if self._is_best():
            self._best_epoch = len(self.history) - 1
            self._best_weights = [variable.numpy() for variable in self.model.variables]
        weights = [variable.numpy() for variable in self._variables()]
        backup = Backup(self._run, self.history, weights, self._best_weights, self._best_epoch)
        self._journal.save_backup(self._number, backup)

    def finish(self, model: keras.Model, stopped: str | None) -> Run:
        """The run, with the weights of the best epoch put into the model."""
        for variable, value in zip(model.variables, self._best_weights, strict=False):
            variable.assign(value)
        figures = self.history[self._best_epoch] if self._best_epoch >= 0 else {}
        return Run(dict(figures), list(self.history), stopped)

    def _is_best(self) -> bool:
        if self._objective is None:
            return True
        value = self.history[-1].get(self._objective.name, math.nan)
        if self._best_epoch < 0 or math.isnan(value):
            return not math.isnan(value)
        return self._objective.is_better(value, self.history[self._best_epoch][self._objective.name])

    def _variables(self) -> list:
        return [*self.model.variables, *self.model.optimizer.variables]


class Stopper(keras.callbacks.Callback):
    """Ends a training that is out of time, or whose best epoch so far is worse than the median of others by then.

    Args:
        keeper: knows the epochs so far.
        objective: to compare by; None compares nothing.
        rivals: the histories of other trainings.
        deadline: on the clock of `time.monotonic`.

    Source: the median rule of Golovin et al. 2017 (Google Vizier), https://doi.org/10.1145/3097983.3098043.
    """

    def __init__(
        self, keeper: Keeper, objective: Objective | None, rivals: Sequence[list[dict[str, float]]], deadline: float
    ):
        super().__init__()
        self._keeper, self._objective, self._rivals, self._deadline = keeper, objective, rivals, deadline
        self.reason: str | None = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.params is not None and epoch + 1 == self.params["epochs"]:
            return  # it has come to its end
        if time.monotonic() > self._deadline:
            self.reason = "the time is up"
        elif self._objective is not None and self._is_hopeless(self._objective):
            self.reason = f"worse than the median after epoch {self._keeper.epochs}"
        self.model.stop_training = self.model.stop_training or self.reason is not None

    def _is_hopeless(self, objective: Objective) -> bool:
        epochs = self._keeper.epochs
        rivals = [rival for rival in self._rivals if len(rival) >= epochs]
        if epochs <= _FIRST_EPOCHS or len(rivals) < _RIVALS:
            return False
        median = float(np.median([_best_loss(rival[:epochs], objective) for rival in rivals]))
        return _best_loss(self._keeper.history, objective) > median


def _best_loss(history: Sequence[dict[str, float]], objective: Objective) -> float:
    """The best value so far, lower is better; infinite where there is none."""
    values = [objective.loss(logs[objective.name]) for logs in history if objective.name in logs]
    return min((value for value in values if not math.isnan(value)), default=math.inf)


@dataclass(frozen=True)
class Fit:
    """On what and how long to train.

    Args:
        train, val: `(x, y)`, `(x, y, sample_weights)` or a dataset; `val` may be None.
        initial_epoch: the first one of a training that goes on with the weights of another.
        batch_size: in samples, for arrays.
    """

    train: Any
    val: Any
    epochs: int
    initial_epoch: int
    batch_size: int


def train(space: Any, hp: Any, model: keras.Model, fit: Fit, keeper: Keeper, stopper: Stopper) -> Run:
    """Trains a model through the `fit` of its space."""
    arrays = isinstance(fit.train, tuple)
    options: dict[str, Any] = {"batch_size": fit.batch_size} if arrays else {"shuffle": False}
    if arrays and len(fit.train) == 3:
        options["sample_weight"] = fit.train[2]
    x, y = (fit.train[0], fit.train[1]) if arrays else (fit.train, None)
    space.fit(
        hp,
        model,
        x,
        y,
        validation_data=fit.val,
        epochs=fit.epochs,
        initial_epoch=min(fit.epochs, fit.initial_epoch + keeper.epochs),
        callbacks=[keeper, stopper],
        verbose=0,
        **options,
    )
    return keeper.finish(model, stopper.reason)
