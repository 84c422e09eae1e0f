"""Which loss an output is distilled by, where the user does not say."""

from __future__ import annotations

from typing import Any

import keras

from tfopt.core.errors import InvalidArgumentError
from tfopt.distillation.heads import Head
from tfopt.distillation.loss_layers.base import DistillationLoss
from tfopt.distillation.loss_layers.outputs import (
    BinaryTargets,
    BoundedTargets,
    DecoupledTargets,
    RegressionTargets,
    SoftTargets,
)

ON_VALUES = (RegressionTargets, BoundedTargets)  # compare what the models give; other losses of outputs compare logits
_CLASSES = ("categoricalcrossentropy", "categoricalfocalcrossentropy", "kldivergence")
_LABELS = ("binarycrossentropy", "binaryfocalcrossentropy")
_SHORT = {"mse": "meansquarederror", "mae": "meanabsoluteerror", "kld": "kldivergence", "bce": "binarycrossentropy"}
_REGRESSION = {
    "meansquarederror": "mse",
    "meanabsoluteerror": "mae",
    "huber": "huber",
    "logcosh": "huber",
    "meansquaredlogarithmicerror": "mse",
    "meanabsolutepercentageerror": "mae",
    "poisson": "mse",
    "cosinesimilarity": "mse",
}


def chosen_loss(
    student: Head | None, teacher: Head | None, loss: Any, temperature: float, weight: float, name: str
) -> DistillationLoss:
    """Soft targets for classes, binary targets for labels that do not exclude each other, else regression targets.

    A softmax or sigmoid at the end of the student or the teacher tells which. A sigmoid that is trained by a loss of
    numbers, as in an autoencoder, is a regression. Where both end in numbers, the loss tells whether they are logits.

    Args:
        student, teacher: what they give at this output; None where it is not known.
        loss: the loss of the labels at this output, as `compile` takes it; None without one.
        temperature: of the loss that is chosen, if it has one.
        weight: of the loss.
        name: of the output.

    Raises:
        InvalidArgumentError: if nothing tells.

    Example:
        >>> chosen_loss(Head.LINEAR, None, "mae", 4.0, 1.0, "out").kind
        'mae'
    """
    task, kind = task_of(student, teacher, loss), _regression(loss)
    if task is Head.SOFTMAX:
        return SoftTargets(temperature, weight=weight)
    if task is Head.SIGMOID:
        return BinaryTargets(temperature, weight=weight)
    if task is Head.LINEAR:
        return RegressionTargets(kind or "mse", weight=weight)
    raise InvalidArgumentError(
        "Numbers at the end of a model may be logits or a regression; the loss that it is trained with tells which.",
        received=f"output '{name}' with loss={loss!r}, neither a cross-entropy nor a regression that tfopt knows",
        fix="Pass `losses=tfopt.distillation.SoftTargets()` (classes), `BinaryTargets()` (labels that do not exclude "
        "each other) or `RegressionTargets()` to the Distiller.",
    )


def task_of(student: Head | None, teacher: Head | None, loss: Any) -> Head | None:
    """What an output says: SOFTMAX for classes, SIGMOID for labels, LINEAR for numbers, None where nothing tells.

    Args: as `chosen_loss`.

    Example:
        >>> task_of(Head.LINEAR, Head.LINEAR, keras.losses.SparseCategoricalCrossentropy(from_logits=True)).name
        'SOFTMAX'
    """
    heads = {student, teacher}
    name = _name(loss)
    if heads & {Head.SOFTMAX, Head.LOG_SOFTMAX}:
        return Head.SOFTMAX
    if name in _REGRESSION:
        return Head.LINEAR
    if Head.SIGMOID in heads or name in _LABELS:
        return Head.SIGMOID
    return Head.SOFTMAX if name.removeprefix("sparse") in _CLASSES else None


def task_of_objective(loss: DistillationLoss) -> Head | None:
    """What a loss takes an output for; None for one that compares features, or of the user's own."""
    if isinstance(loss, (SoftTargets, DecoupledTargets)):
        return Head.SOFTMAX
    if isinstance(loss, BinaryTargets):
        return Head.SIGMOID
    return Head.LINEAR if isinstance(loss, ON_VALUES) else None


def _regression(loss: Any) -> str | None:
    return _REGRESSION.get(_name(loss))


def _name(loss: Any) -> str:
    """`"meansquarederror"` for `"mse"`, `"mean_squared_error"`, the function and the class."""
    if isinstance(loss, str):
        name = loss
    elif isinstance(loss, keras.losses.Loss):
        name = type(loss).__name__
    else:
        name = getattr(loss, "__name__", "")
    name = name.lower().replace("_", "")
    return _SHORT.get(name, name)
