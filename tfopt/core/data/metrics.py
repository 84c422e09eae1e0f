"""Scores of predictions: arrays in, floats out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfopt.core.data.outputs import OutputKind, kind_of_values
from tfopt.core.errors import InvalidArgumentError, NonFiniteError

Metric = Callable[[Any, Any], float]
CLASSIFICATION = ("accuracy", "precision", "recall", "f1")
REGRESSION = ("mae", "rmse")


def score(y_true: Any, y_pred: Any, metrics: Any = ()) -> dict[str, float]:
    """The standard scores of the task, followed by the user's metrics.

    The task follows from the shapes. With `C > 1` scores a sample, labels are class numbers `(n,)`, `(n, 1)` or one-hot
    rows `(n, C)`; with one score a sample and labels 0 and 1 it is binary, with threshold 0.5, or 0 where a score
    outside [0, 1] shows logits. Further axes, as in segmentation, count as samples. Anything else of equal shape is a
    regression.

    Args:
        y_true: labels or targets.
        y_pred: predictions of a model for them.
        metrics: further metrics, in one of the ways `named_metrics` takes.

    Returns:
        `accuracy` and the macro averages `precision`, `recall`, `f1` (over the classes that occur in labels or
        predictions; a quotient 0/0 counts 0), or `mae` and `rmse`; then one entry a metric.

    Raises:
        InvalidArgumentError: for shapes that do not go together, labels out of range, or an unknown metric.
        NonFiniteError: if a label or prediction is NaN or infinite.

    Example:
        >>> score(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]))["accuracy"]
        0.6666666666666666
    """
    own = named_metrics(metrics)
    if isinstance(y_pred, (list, tuple, dict)):
        return {name: metric(y_true, y_pred) for name, metric in own.items()}
    y_true, y_pred = _checked(y_true, y_pred)
    labels = _labels(y_true, y_pred)
    scores = _regression(y_true.reshape(y_pred.shape), y_pred) if labels is None else _classification(*labels)
    return {**scores, **{name: metric(y_true, y_pred) for name, metric in own.items() if name not in scores}}


def calibration_error(y_true: Any, y_pred: Any, bins: int = 15) -> float | None:
    """The expected calibration error (ECE): how far confidence is from accuracy, on the mean over the samples.

    Predictions are put into bins of equal width by their confidence, the highest probability; the differences between
    mean confidence and accuracy in each bin are averaged, weighted by the number of samples.

    Args:
        y_true: labels, as for `score`.
        y_pred: probabilities, or logits (recognised by values outside [0, 1] or rows that do not sum to 1), whose
            softmax, or sigmoid for a single value, is taken.
        bins: how many there are.

    Returns:
        A number in [0, 1], in the units of accuracy; None for a task that is not one of classes.

    Raises:
        InvalidArgumentError, NonFiniteError: those of `score`.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599.

    Example:
        >>> calibration_error(np.array([0, 1]), np.array([[0.75, 0.25], [0.75, 0.25]]))
        0.25
    """
    y_true, y_pred = _checked(y_true, y_pred)
    labels = _labels(y_true, y_pred)
    if labels is None:
        return None
    right = labels[0] == labels[1]
    confidence = _confidence(y_pred)
    numbers = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(numbers, confidence, bins) - np.bincount(numbers, right, bins)
    return float(np.abs(gaps).sum() / len(right))


def classes_of(y_true: Any, y_pred: Any) -> np.ndarray | None:
    """The predicted class numbers, flat; None for a task that is not one of classes. Arguments as for `score`.

    Example:
        >>> classes_of(np.array([0, 1]), np.array([[0.75, 0.25], [0.6, 0.4]])).tolist()
        [0, 0]
    """
    labels = _labels(*_checked(y_true, y_pred))
    return None if labels is None else labels[1]


def _confidence(y_pred: np.ndarray) -> np.ndarray:
    """The highest probability of each sample, flat."""
    values = y_pred.astype(float)
    kind = kind_of_values(values)
    if values.ndim < 2 or values.shape[-1] == 1:
        high = values.reshape(-1) if kind is None else 1 / (1 + np.exp(-values.reshape(-1)))
        return np.maximum(high, 1 - high)
    if kind is not OutputKind.PROBABILITIES:
        values = np.exp(values - values.max(-1, keepdims=True))
        values /= values.sum(-1, keepdims=True)
    return values.max(-1).reshape(-1)


def named_metrics(metrics: Any) -> dict[str, Metric]:
    """`{name: function}` for metrics given as a dict, or as a list of names and Keras metrics.

    A value is a function `(y_true, y_pred) -> float`, a `keras.metrics.Metric` (a copy of it is used), or a name that
    Keras knows. The names of the standard scores need no function and are left out.

    Raises:
        InvalidArgumentError: for anything else.
    """
    if isinstance(metrics, Mapping):
        return {str(name): _metric(metric) for name, metric in metrics.items()}
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        raise InvalidArgumentError(
            "`metrics` is a list of names or Keras metrics, or a dict {name: function}.", received=repr(metrics)
        )
    own = [metric for metric in metrics if metric not in (*CLASSIFICATION, *REGRESSION)]
    return {_name(metric): _metric(metric) for metric in own}


def _name(metric: Any) -> str:
    return metric if isinstance(metric, str) else str(getattr(metric, "name", getattr(metric, "__name__", metric)))


def _metric(metric: Any) -> Metric:
    if isinstance(metric, str):
        try:
            metric = keras.metrics.get(metric)
        except ValueError as error:
            raise InvalidArgumentError(
                "A metric named by a string has to be one of Keras or a standard score.",
                received=repr(metric),
                fix=f"Standard scores are {', '.join((*CLASSIFICATION, *REGRESSION))}.",
            ) from error
    if isinstance(metric, keras.metrics.Metric):
        return _run_keras_metric(metric)
    if not callable(metric):
        raise InvalidArgumentError("A metric is a function, a Keras metric or a name.", received=repr(metric))
    return lambda y_true, y_pred: float(np.mean(keras.ops.convert_to_numpy(metric(y_true, y_pred))))


def _run_keras_metric(metric: keras.metrics.Metric) -> Metric:
    def run(y_true: Any, y_pred: Any) -> float:
        fresh = type(metric).from_config(metric.get_config())
        fresh.update_state(y_true, y_pred)
        return float(np.mean(keras.ops.convert_to_numpy(fresh.result())))

    return run


def _array(values: Any) -> np.ndarray:
    """The values as NumPy knows them: it takes bfloat16 for no numbers."""
    array = np.asarray(values)
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def _checked(y_true: Any, y_pred: Any) -> tuple[np.ndarray, np.ndarray]:
    y_true, y_pred = _array(y_true), _array(y_pred)
    if len(np.atleast_1d(y_true)) != len(np.atleast_1d(y_pred)):
        raise InvalidArgumentError(
            "There has to be one label a prediction.", received=f"{len(y_true)} labels, {len(y_pred)} predictions"
        )
    for name, values in (("labels", y_true), ("predictions", y_pred)):
        if not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
            raise InvalidArgumentError(
                f"The {name} have to be numbers.",
                received=f"dtype {values.dtype}",
                fix="Number the classes from 0 to C-1, in the order of the outputs.",
            )
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise NonFiniteError(f"The {name} have to be finite.", received="NaN or infinity")
    return y_true, y_pred


def _labels(y_true: np.ndarray, y_pred: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Flat true and predicted class numbers and the number of classes; None for a regression."""
    classes = y_pred.shape[-1] if y_pred.ndim > 1 else 1
    samples = y_pred.shape[:-1] if y_pred.ndim > 1 else y_pred.shape
    if classes > 1 and y_true.shape in (samples, (*samples, 1)) and _whole(y_true):
        return _in_range(y_true.reshape(-1), classes), y_pred.argmax(-1).reshape(-1), classes
    if y_true.shape != y_pred.shape and (classes > 1 or y_true.size != y_pred.size):
        raise InvalidArgumentError(
            "Labels are class numbers, one-hot rows, or targets of the shape of the predictions.",
            received=f"labels {y_true.shape} of {y_true.dtype}, predictions {y_pred.shape}",
        )
    zero_one = bool(np.isin(y_true, (0, 1)).all())
    if classes > 1:
        one_hot = zero_one and bool((y_true.sum(-1) == 1).all())
        return (y_true.argmax(-1).reshape(-1), y_pred.argmax(-1).reshape(-1), classes) if one_hot else None
    if not zero_one:
        return None
    threshold = 0.5 if kind_of_values(y_pred) is None else 0.0
    return y_true.reshape(-1).astype(int), (y_pred.reshape(-1) > threshold).astype(int), 2


def _whole(values: np.ndarray) -> bool:
    return values.dtype == bool or bool((values == np.floor(values)).all())


def _in_range(labels: np.ndarray, classes: int) -> np.ndarray:
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise InvalidArgumentError(
            f"The labels of {classes} classes lie in 0..{classes - 1}.",
            received=f"labels from {labels.min()} to {labels.max()}",
        )
    return labels.astype(int)


def _classification(labels: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    right, true, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurs = (true + found) > 0
    macro = {
        "precision": right / np.maximum(found, 1),
        "recall": right / np.maximum(true, 1),
        "f1": 2 * right / np.maximum(true + found, 1),
    }
    accuracy = float(right.sum() / max(len(labels), 1))
    return {"accuracy": accuracy, **{name: float(values[occurs].mean()) for name, values in macro.items()}}


def _regression(y_true: np.ndarray, y_pred: np.ndarray) -> dict[str, float]:
    error = y_pred.astype(float) - y_true
    return {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean()))}
