"""The losses of `Distiller(losses=[...])` between outputs, as Keras layers that are saved and loaded with it.

The maths is in `losses.py`. `features.py` has the losses between layers.
"""

from __future__ import annotations

from typing import Any

import keras

from tfopt.core.checks import NOT_NEGATIVE, POSITIVE, as_choice, as_number
from tfopt.core.errors import InvalidArgumentError
from tfopt.distillation import losses
from tfopt.distillation.loss_layers.base import LOGITS, VALUES, DistillationLoss, check_labels
from tfopt.distillation.scores import Task
from tfopt.distillation.shapes import check_classes, check_same_shape

__all__ = [
    "BinaryTargets",
    "BoundedTargets",
    "DecoupledTargets",
    "RegressionTargets",
    "SoftTargets",
]


class _Softened(DistillationLoss):
    """A loss of logits, with a temperature."""

    compares = LOGITS
    weighs_positions = True
    task = Task.CLASSES

    def __init__(self, temperature: float | None = None, **kwargs: Any):
        if temperature is not None:
            temperature = as_number("temperature", temperature, POSITIVE)
        super().__init__(**kwargs)
        self.temperature = temperature

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "temperature": self.temperature}

    def own_temperature(self) -> float:
        """The temperature; a Distiller sets it in losses that were made without."""
        if self.temperature is None:
            raise InvalidArgumentError(
                f"Outside of a Distiller {type(self).__name__} must have a temperature of its own.",
                received="temperature=None",
                fix="Pass one, such as `temperature=4.0`.",
            )
        return self.temperature


@keras.saving.register_keras_serializable(package="tfopt")
class SoftTargets(_Softened):
    """The teacher's softened class probabilities: `T^2 KL(softmax(teacher / T) || softmax(student / T))`.

    Args:
        temperature: T, above 0; None for that of the Distiller.
        **kwargs: `weight`, `output` and `name`, as `DistillationLoss` has them.

    Called on logits or log-probabilities (batch, ..., classes).

    Raises:
        InvalidArgumentError: if an argument is out of range; when called, if the classes are not the same or fewer than
            two.

    Source: Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531, section 2.

    Example:
        >>> from keras import ops
        >>> loss = SoftTargets(temperature=1.0)(ops.array([[0.0, 0.0]]), ops.log(ops.array([[0.75, 0.25]])))
        >>> round(float(loss[0]), 5)
        0.13081
    """

    def build(self, student_shape: Any, teacher_shape: Any) -> None:
        """Raises where the classes differ."""
        check_classes(student_shape, teacher_shape)

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The loss of each sample, (batch,)."""
        return losses.soft_targets(student, teacher, self.own_temperature(), student_mask)


@keras.saving.register_keras_serializable(package="tfopt")
class DecoupledTargets(_Softened):
    """Soft targets in two parts: the labelled class against the others, and the others among themselves (DKD).

    Args:
        temperature: T, above 0; None for that of the Distiller.
        target_weight: of the first part, the paper's alpha, 0 or more.
        other_weight: of the second part, the paper's beta, 0 or more. The paper takes more for teachers that are surer,
            and lets the loss grow over the first epochs.
        **kwargs: `weight`, `output` and `name`, as `DistillationLoss` has them.

    Called on logits or log-probabilities (batch, ..., classes) and labels, numbers or rows of classes.

    Raises:
        InvalidArgumentError: if an argument is out of range; when called, if the classes are not the same or fewer than
            two, or labels are of another shape or missing.

    Source: Zhao et al. 2022, https://arxiv.org/abs/2203.08679.

    Example:
        >>> from keras import ops
        >>> scores = ops.array([[0.0, 0.0, 0.0]]), ops.log(ops.array([[0.5, 0.25, 0.25]]))
        >>> round(float(DecoupledTargets(temperature=1.0)(*scores, labels=ops.array([0]))[0]), 5)
        0.05889
    """

    def __init__(
        self,
        temperature: float | None = None,
        target_weight: float = 1.0,
        other_weight: float = 8.0,
        **kwargs: Any,
    ):
        super().__init__(temperature, **kwargs)
        self.target_weight = as_number("target_weight", target_weight, NOT_NEGATIVE)
        self.other_weight = as_number("other_weight", other_weight, NOT_NEGATIVE)

    def build(self, student_shape: Any, teacher_shape: Any) -> None:
        """Raises where the classes differ."""
        check_classes(student_shape, teacher_shape)

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The loss of each sample, (batch,)."""
        check_labels(self, labels)
        return losses.decoupled_targets(
            student, teacher, labels, self.own_temperature(), self.target_weight, self.other_weight, student_mask
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        own = {"target_weight": self.target_weight, "other_weight": self.other_weight}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="tfopt")
class BinaryTargets(_Softened):
    """The teacher's softened probabilities of labels that do not exclude each other, or of one sigmoid.

    Args:
        temperature: T, above 0; None for that of the Distiller.
        **kwargs: `weight`, `output` and `name`, as `DistillationLoss` has them.

    Called on logits of sigmoids (batch, ...).

    Raises:
        InvalidArgumentError: if an argument is out of range; when called, if the shapes differ.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531; Yang et al. 2023, https://arxiv.org/abs/2308.06453.

    Example:
        >>> from keras import ops
        >>> loss = BinaryTargets(temperature=1.0)(ops.zeros((1, 1)), ops.log(ops.array([[3.0]])))
        >>> round(float(loss[0]), 5)  # of [0.75, 0.25] from [0.5, 0.5]
        0.13081
    """

    task = Task.LABELS

    def build(self, student_shape: Any, teacher_shape: Any) -> None:
        """Raises where the shapes differ."""
        check_same_shape(student_shape, teacher_shape, "Give both as many labels.")

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The loss of each sample, (batch,)."""
        return losses.binary_targets(student, teacher, self.own_temperature(), student_mask)


@keras.saving.register_keras_serializable(package="tfopt")
class RegressionTargets(DistillationLoss):
    """The teacher's outputs as targets of a regression.

    Args:
        kind: "mse", "mae" or "huber" (half the square up to an error of 1, linear beyond).
        **kwargs: `weight`, `output` and `name`, as `DistillationLoss` has them.

    Called on outputs (batch, ...).

    Raises:
        InvalidArgumentError: if an argument is out of range; when called, if the shapes differ.

    Source: Ba and Caruana 2014, https://arxiv.org/abs/1312.6184, for "mse" (there on logits).

    Example:
        >>> from keras import ops
        >>> RegressionTargets("mae")(ops.array([[1.0, 5.0]]), ops.array([[2.0, 2.0]])).numpy().tolist()
        [2.0]
    """

    compares = VALUES
    weighs_positions = True
    task = Task.NUMBERS

    def __init__(self, kind: str = "mse", **kwargs: Any):
        kind = as_choice("kind", kind, losses.REGRESSIONS)
        super().__init__(**kwargs)
        self.kind = kind

    def build(self, student_shape: Any, teacher_shape: Any) -> None:
        """Raises where the shapes differ."""
        check_same_shape(student_shape, teacher_shape, "Give both as many outputs.")

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The loss of each sample, (batch,)."""
        return losses.regression_targets(student, teacher, self.kind, student_mask)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "kind": self.kind}


@keras.saving.register_keras_serializable(package="tfopt")
class BoundedTargets(DistillationLoss):
    """The squared error against the labels, until the student is better than its teacher: for teachers that err.

    Args:
        margin: how much lower than the teacher's the student's error has to be, in squared units, 0 or more.
        **kwargs: `weight`, `output` and `name`, as `DistillationLoss` has them.

    Called on outputs (batch, ...) and labels of that shape.

    Raises:
        InvalidArgumentError: if an argument is out of range; when called, if the shapes differ or there are no labels.

    Source: Chen et al. 2017, "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS,
    https://papers.nips.cc/paper/6676, the teacher bounded regression loss.

    Example:
        >>> from keras import ops
        >>> student, teacher = ops.array([[1.0], [4.0]]), ops.array([[2.0], [3.0]])
        >>> BoundedTargets()(student, teacher, labels=ops.zeros((2, 1))).numpy().tolist()
        [0.0, 16.0]
    """

    compares = VALUES
    weighs_positions = True
    task = Task.NUMBERS

    def __init__(self, margin: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.margin = as_number("margin", margin, NOT_NEGATIVE)

    def build(self, student_shape: Any, teacher_shape: Any) -> None:
        """Raises where the shapes differ."""
        check_same_shape(student_shape, teacher_shape, "Give both as many outputs.")

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The loss of each sample, (batch,)."""
        check_labels(self, labels)
        return losses.bounded_targets(student, teacher, labels, self.margin, student_mask)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "margin": self.margin}
