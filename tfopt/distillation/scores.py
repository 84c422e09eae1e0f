"""How outputs become what the losses compare, and back.

Losses of classes want logits. Of a model that ends in a softmax or sigmoid they are taken from before it, so that
nothing is lost to rounding; log-probabilities, which are the same to a softmax, stand in where they cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
from keras import ops

from tfopt.core.data.outputs import OutputKind
from tfopt.core.keras_internals import logits_behind, mask_of, set_mask

_SMALLEST = float(np.finfo("float32").tiny)  # probability; a softmax in float32 is exact to its digits down to here
_SMALLEST_REST = 1e-7  # of 1 - probability, where smaller ones are noise of the rounding in float32
OF_CLASSES = (OutputKind.PROBABILITIES, OutputKind.LOG_PROBABILITIES)


class Task(Enum):
    """What an output answers."""

    CLASSES = "which of several classes"
    LABELS = "which labels, none, one or several"
    NUMBERS = "how much: a regression"


def task_of_kind(kind: OutputKind | None) -> Task | None:
    """The task of an output of probabilities; None for numbers, which may be logits or a regression.

    Example:
        >>> task_of_kind(OutputKind.INDEPENDENT).name
        'LABELS'
    """
    if kind in OF_CLASSES:
        return Task.CLASSES
    return Task.LABELS if kind is OutputKind.INDEPENDENT else None


def to_scores(kind: OutputKind | None, values: Any) -> Any:
    """Outputs as float32 logits or log-probabilities; numbers as they are.

    Args:
        kind: what they are.
        values: tensor (batch, ...) that the model gave.

    Example:
        >>> to_scores(OutputKind.INDEPENDENT, np.array([[0.5]])).numpy().tolist()
        [[0.0]]
    """
    mask, logits = mask_of(values), logits_behind(values)
    if kind not in (OutputKind.PROBABILITIES, OutputKind.INDEPENDENT):
        scores = ops.cast(values, "float32")
    elif logits is not None and tuple(logits.shape) == tuple(values.shape):
        scores = ops.cast(logits, "float32")
    else:
        probabilities = ops.cast(values, "float32")
        scores = ops.log(ops.maximum(probabilities, _SMALLEST))
        if kind is OutputKind.INDEPENDENT:
            scores = scores - ops.log(ops.maximum(1.0 - probabilities, _SMALLEST_REST))
    if mask is not None:
        set_mask(scores, mask)
    return scores


def to_values(kind: OutputKind | None, scores: Any) -> Any:
    """The way back from `to_scores`: what a model with outputs of that kind gives.

    Example:
        >>> to_values(OutputKind.INDEPENDENT, np.array([[0.0]])).numpy().tolist()
        [[0.5]]
    """
    values = scores
    if kind is OutputKind.PROBABILITIES:
        values = ops.softmax(scores, -1)
    elif kind is OutputKind.LOG_PROBABILITIES:
        values = ops.log_softmax(scores, -1)
    elif kind is OutputKind.INDEPENDENT:
        values = ops.sigmoid(scores)
    if mask_of(scores) is not None:
        set_mask(values, mask_of(scores))
    return values


def averaged(task: Task | None, scores: Sequence[Any], weights: Sequence[float]) -> Any:
    """The scores of an ensemble: its probabilities (or numbers, of a regression) are the weighted mean of the members'.

    Args:
        task: of all members; None for numbers.
        scores: float32 (batch, ...) of each member.
        weights: sum to 1.

    Example:
        >>> mean = averaged(Task.LABELS, [np.log([3.0]), np.log([1 / 3])], [0.5, 0.5])  # of 0.75 and 0.25
        >>> abs(float(mean[0])) < 1e-6
        True
    """
    if len(scores) == 1:
        return scores[0]
    shares = np.log(np.maximum(weights, np.finfo("float32").tiny)).astype("float32")
    if task is Task.CLASSES:
        return _log_mean([ops.log_softmax(values, -1) for values in scores], shares)
    if task is Task.LABELS:
        yes, no = ([ops.log_sigmoid(sign * values) for values in scores] for sign in (1.0, -1.0))
        return _log_mean(yes, shares) - _log_mean(no, shares)
    return sum(weight * values for weight, values in zip(weights, scores, strict=True))


def _log_mean(logs: Sequence[Any], shares: Any) -> Any:
    return ops.logsumexp(ops.stack([value + share for value, share in zip(logs, shares, strict=True)]), 0)
