"""Which loss an output is distilled by, where the user does not say."""

from __future__ import annotations

from typing import Any

import keras

from tfopt.core.data.outputs import OutputKind
from tfopt.core.errors import InvalidArgumentError
from tfopt.distillation.loss_layers.base import DistillationLoss
from tfopt.distillation.loss_layers.outputs import BinaryTargets, RegressionTargets, SoftTargets
from tfopt.distillation.scores import Task, task_of_kind

_K = keras.losses
# A loss of Keras as a class and as a function -> what it trains, and the `RegressionTargets` that are like it.
_TRAINS: list[tuple[type, Any, Task, str | None]] = [
    (_K.CategoricalCrossentropy, _K.categorical_crossentropy, Task.CLASSES, None),
    (_K.SparseCategoricalCrossentropy, _K.sparse_categorical_crossentropy, Task.CLASSES, None),
    (_K.CategoricalFocalCrossentropy, _K.categorical_focal_crossentropy, Task.CLASSES, None),
    (_K.KLDivergence, _K.kl_divergence, Task.CLASSES, None),
    (_K.BinaryCrossentropy, _K.binary_crossentropy, Task.LABELS, None),
    (_K.BinaryFocalCrossentropy, _K.binary_focal_crossentropy, Task.LABELS, None),
    (_K.MeanSquaredError, _K.mean_squared_error, Task.NUMBERS, "mse"),
    (_K.MeanAbsoluteError, _K.mean_absolute_error, Task.NUMBERS, "mae"),
    (_K.Huber, _K.huber, Task.NUMBERS, "huber"),
    (_K.LogCosh, _K.log_cosh, Task.NUMBERS, "huber"),
    (_K.MeanSquaredLogarithmicError, _K.mean_squared_logarithmic_error, Task.NUMBERS, "mse"),
    (_K.MeanAbsolutePercentageError, _K.mean_absolute_percentage_error, Task.NUMBERS, "mae"),
    (_K.Poisson, _K.poisson, Task.NUMBERS, "mse"),
    (_K.CosineSimilarity, _K.cosine_similarity, Task.NUMBERS, "mse"),
]


def chosen_loss(
    student: OutputKind | None, teacher: OutputKind | None, loss: Any, temperature: float, weight: float, name: str
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
        >>> chosen_loss(OutputKind.NUMBERS, None, "mae", 4.0, 1.0, "out").kind
        'mae'
    """
    task = task_of(student, teacher, loss)
    if task is Task.CLASSES:
        return SoftTargets(temperature, weight=weight)
    if task is Task.LABELS:
        return BinaryTargets(temperature, weight=weight)
    if task is Task.NUMBERS:
        return RegressionTargets(_trained_by(loss)[1] or "mse", weight=weight)
    raise InvalidArgumentError(
        "The loss of the labels must tell whether a model ends in logits or a regression.",
        received=f"output '{name}' with loss={loss!r}, neither a cross-entropy nor a regression that tfopt knows",
        fix="Pass `losses=tfopt.distillation.SoftTargets()` (classes), `BinaryTargets()` (labels that do not exclude "
        "each other) or `RegressionTargets()` to the Distiller.",
    )


def task_of(student: OutputKind | None, teacher: OutputKind | None, loss: Any) -> Task | None:
    """What an output answers; None where nothing tells.

    Args: as `chosen_loss`.

    Example:
        >>> cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> task_of(OutputKind.NUMBERS, OutputKind.NUMBERS, cross_entropy).name
        'CLASSES'
    """
    told = {task_of_kind(student), task_of_kind(teacher)}
    trained = _trained_by(loss)[0]
    if Task.CLASSES in told:
        return Task.CLASSES
    if trained is Task.NUMBERS:
        return Task.NUMBERS
    return Task.LABELS if Task.LABELS in told else trained


def _trained_by(loss: Any) -> tuple[Task | None, str | None]:
    """The task of a loss of Keras and its like among `RegressionTargets`; a loss of the user's own tells nothing."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:  # `compile` refuses it
            return None, None
    return next((row[2:] for row in _TRAINS if type(loss) is row[0] or loss is row[1]), (None, None))
