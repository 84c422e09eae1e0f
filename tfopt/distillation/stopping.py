"""Stops training when the student is good enough."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from tfopt.core.checks import as_choice, as_name, as_number
from tfopt.core.errors import InvalidArgumentError

# Words in the names of metrics.
_LOWER = {"loss", "error", "mse", "mae", "mape", "msle", "rmse", "crossentropy", "divergence", "hinge", "logcosh"}
_LOWER |= {"gap", "disagreement"}
_HIGHER = {"acc", "accuracy", "auc", "precision", "recall", "f1", "fbeta", "iou", "r2", "sensitivity", "specificity"}


class StopAtTarget(keras.callbacks.Callback):
    """Stops `fit` after the first epoch in which a metric reaches its target. For a Distiller and any other model.

    Args:
        metric: its name in the logs, such as `"val_accuracy"`.
        value: the target, in the unit of the metric; to be equal is to reach it.
        mode: `"max"` if higher is better, `"min"` if lower is; `"auto"` tells by the name, for losses, errors,
            accuracies and the like.
        verbose: 1 says when the target is reached.

    `reached_epoch` is the epoch in which it was, counted from 0 as Keras does, or None.

    Raises:
        InvalidArgumentError: if an argument is out of range, if the name does not tell the mode, or, when the first
            epoch ends, if the logs do not have the metric.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> target = StopAtTarget("loss", 0.1, verbose=1)
        >>> x = np.array([[1.0], [-1.0]])
        >>> history = model.fit(x, 0 * x[:, 0], epochs=1000, verbose=0, callbacks=[target])  # doctest: +ELLIPSIS
        Epoch ...: loss is 0.0..., the target is 0.1.
        >>> len(history.epoch) == target.reached_epoch + 1 < 1000
        True
    """

    def __init__(self, metric: str, value: float, mode: str = "auto", verbose: int = 0):
        super().__init__()
        self.metric = as_name("metric", metric, what="a name, such as 'val_accuracy'")
        self.value = as_number("value", value)
        mode = as_choice("mode", mode, ("auto", "min", "max"))
        self.mode = _mode(metric) if mode == "auto" else mode
        self.verbose = verbose
        self.reached_epoch: int | None = None
        self._was_seen: bool | None = None  # False: waited for in vain so far

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts over, for another `fit`."""
        self.reached_epoch = None
        self._was_seen = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares the metric with its target."""
        logs = logs or {}
        if self.metric not in logs:
            self._wait(logs)
            return
        self._was_seen = True
        current = float(logs[self.metric])
        if current >= self.value if self.mode == "max" else current <= self.value:
            self.reached_epoch = epoch
            self.model.stop_training = True
            if self.verbose:
                print(f"Epoch {epoch + 1}: {self.metric} is {current:.4g}, the target is {self.value:g}.")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Raises if the metric never came."""
        if self._was_seen is False:
            raise self._unknown(logs or {})

    def _wait(self, logs: dict[str, Any]) -> None:
        """The metric comes later if validation does, as with `fit(validation_freq=2)`."""
        if self._was_seen:
            return
        if not self.metric.startswith("val_") or any(name.startswith("val_") for name in logs):
            raise self._unknown(logs)
        if self._was_seen is None:
            warnings.warn(f"StopAtTarget waits for '{self.metric}': no validation has run yet.", stacklevel=2)
        self._was_seen = False

    def _unknown(self, logs: dict[str, Any]) -> InvalidArgumentError:
        without = self.metric.removeprefix("val_") in logs
        return InvalidArgumentError(
            "StopAtTarget needs a metric that `fit` logs.",
            received=f"'{self.metric}'; the logs have {', '.join(sorted(logs)) or 'nothing'}",
            fix="Pass `validation_data` to `fit`." if without else "Name one of these, or compile with the metric.",
        )


def _mode(metric: str) -> str:
    """Whether higher or lower is better, by the words of a name."""
    words = set(metric.lower().replace("io_u", "iou").split("_"))
    if words & _LOWER:
        return "min"
    if words & _HIGHER:
        return "max"
    raise InvalidArgumentError(
        "`mode='auto'` knows losses, errors, accuracies and the like by their names.",
        received=f"'{metric}'",
        fix="Pass mode='max' if higher is better, or mode='min'.",
    )
