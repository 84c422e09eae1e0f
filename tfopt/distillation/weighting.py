"""Sample weights in the losses of a step: one number a sample, or one for each position of it."""

from __future__ import annotations

import inspect
from typing import Any

from keras import ops

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import mask_of
from tfopt.distillation.loss_layers.base import OUTPUTS, DistillationLoss
from tfopt.distillation.shapes import fits, sample_mean


def mean_loss(loss: DistillationLoss, student: Any, teacher: Any, weights: Any, **more: Any) -> Any:
    """The mean of a loss times the weights, as Keras takes it of the labels: divided by the number of what is weighed.

    Args:
        loss: gives (batch,), or (batch, ...) for positions of their own.
        student, teacher: what it compares.
        weights: (batch,), (batch, 1), or (batch, ...) for the positions, as the steps of a sequence; None for 1.
        more: further arguments of the loss.

    Raises:
        InvalidArgumentError: weights of other positions than those of the output.

    Example:
        >>> import numpy as np
        >>> class Difference(DistillationLoss):
        ...     compares = "values"
        ...     def call(self, student, teacher):
        ...         return ops.mean(ops.abs(student - teacher), -1)
        >>> steps = np.array([[[1.0], [5.0]]]), np.zeros((1, 2, 1))
        >>> float(mean_loss(Difference(), *steps, weights=np.array([[1.0, 0.0]])))
        0.5
    """
    if weights is None:
        return ops.mean(loss(student, teacher, **more))
    weights, mask = _squeezed(ops.cast(weights, "float32")), mask_of(student)
    rank = len(weights.shape)
    same = rank > 1 and all(_has_positions(values, weights) for values in (student, teacher))
    if rank > 1 and loss.on == OUTPUTS and not same:
        raise InvalidArgumentError(
            "Sample weights must be one number a sample, or one for each position of the output.",
            received=f"weights {tuple(weights.shape)} for an output {tuple(student.shape)}",
            fix=f"Give weights of the shape {tuple(student.shape[:-1])} or {tuple(student.shape[:1])}.",
        )
    if same and "student_mask" in inspect.signature(loss.call).parameters:
        more["student_mask"] = _spread(weights, mask) if loss.weighs_positions else _counting(weights, mask)
    losses = loss(student, teacher, **more)
    if same and loss.weighs_positions:
        return ops.mean(losses)
    if same and len(losses.shape) > 1:
        return ops.mean(sample_mean(losses, _spread(weights, mask)))
    share = sample_mean(weights, mask if same else None) if rank > 1 else weights
    return ops.mean(sample_mean(losses) * share)


def _squeezed(weights: Any) -> Any:
    """Without last axes of 1, which Keras takes for none."""
    while len(weights.shape) > 1 and weights.shape[-1] == 1:
        weights = ops.squeeze(weights, -1)
    return weights


def _has_positions(values: Any, weights: Any) -> bool:
    rank = len(weights.shape)
    return len(values.shape) >= rank and fits(values.shape[:rank], weights.shape)


def _counting(weights: Any, mask: Any) -> Any:
    """Booleans of the positions that count at all."""
    counting = ops.not_equal(weights, 0.0)
    return counting if mask is None else ops.logical_and(counting, _reaching(mask, weights))


def _spread(weights: Any, mask: Any) -> Any:
    """The weights, none where the mask is not; so large that the mean over all positions is that over those in it."""
    if mask is None:
        return weights
    inside = ops.broadcast_to(ops.cast(_reaching(mask, weights), "float32"), ops.shape(weights))
    share = sample_mean(inside)
    share = ops.reshape(share, (-1, *[1] * (len(weights.shape) - 1)))
    return weights * inside / ops.where(share == 0.0, 1.0, share)


def _reaching(mask: Any, weights: Any) -> Any:
    """The mask with an axis of 1 for each further one of the weights."""
    return ops.reshape(mask, (*ops.shape(mask), *[1] * (len(weights.shape) - len(mask.shape))))
