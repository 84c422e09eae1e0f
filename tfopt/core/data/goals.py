"""A metric and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfopt.core.checks import as_choice
from tfopt.core.data.metrics import CLASSIFICATION, REGRESSION, Metric, named_metrics, score
from tfopt.core.errors import InvalidArgumentError, NonFiniteError

MODES = ("auto", "max", "min")
# Metrics for which lower is better, beside those that Keras has as losses too.
_ERRORS = ("mae", "rmse", "RootMeanSquaredError", "FalsePositives", "FalseNegatives")


@dataclass(frozen=True)
class Goal:
    """A metric and which way is better.

    Args:
        name: of the metric.
        mode: `"max"` or `"min"`.
        metric: `(y_true, y_pred) -> float`.
    """

    name: str
    mode: str
    metric: Metric

    def __call__(self, y_true: Any, y_pred: Any) -> float:
        value = self.metric(y_true, y_pred)
        if not np.isfinite(value):
            raise NonFiniteError("The metric has to be finite.", received=f"{self.name} = {value}")
        return value


def drop(mode: str, before: float, after: float) -> float:
    """How much worse `after` is than `before`, in the units of the metric."""
    return before - after if mode == "max" else after - before


def as_goal(metric: Any, mode: str) -> Goal:
    """The goal of a metric in any form that `named_metrics` takes, or the name of a standard score."""
    mode = as_choice("mode", mode, MODES)
    if isinstance(metric, str) and metric in (*CLASSIFICATION, *REGRESSION):
        name, function = metric, _standard(metric)
    else:
        ((name, function),) = named_metrics([metric]).items()
    if mode == "auto":
        mode = "min" if _is_error(metric) else "max"
    return Goal(name, mode, function)


def _standard(name: str) -> Metric:
    def run(y_true, y_pred):
        scores = score(y_true, y_pred)
        if name not in scores:
            task = f"a task with {', '.join(scores)}" if scores else "several outputs"
            raise InvalidArgumentError(
                "A metric given by name has to suit the task.",
                received=f"'{name}' for {task}",
                fix="Pass one of these." if scores else "Pass a function (y_true, y_pred) -> float.",
            )
        return scores[name]

    return run


def _is_error(metric: Any) -> bool:
    if isinstance(metric, str) and metric not in (*CLASSIFICATION, *REGRESSION):
        metric = keras.metrics.get(metric)
    names = (metric if isinstance(metric, str) else "", getattr(metric, "__name__", ""), type(metric).__name__)
    return any(name in _ERRORS or _is_loss(name) for name in names)


def _is_loss(name: str) -> bool:
    if name.lower().replace("_", "") == "cosinesimilarity":  # as a metric more is better, as a loss its negative
        return False
    try:
        return keras.losses.get(name) is not None
    except ValueError:
        return False
