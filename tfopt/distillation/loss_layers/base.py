"""What all distillation losses have in common as Keras layers."""

from __future__ import annotations

from typing import Any

import keras

from tfopt.core.checks import NOT_NEGATIVE, as_number
from tfopt.core.errors import InvalidArgumentError


class DistillationLoss(keras.layers.Layer):
    """What a student loses against its teacher: called on the values of both, gives float32 (batch,).

    Computed in float32, whatever the dtype policy. A layer of your own is a subclass with a
    `call(student, teacher, labels=None)`; with a `student_mask=None` too it is told which steps are padding.

    Args:
        weight: factor of the loss in the total, 0 or more. `call` does not apply it.
        student_layer: of a feature loss: name of the student's layer, of a nested one by path, "backbone/block3/relu".
        teacher_layer: the same of the teacher's; None for the student's name.
        output: of a loss of outputs: name or index of the output, in a model of several; None for all.
        name: of the layer.

    Raises:
        InvalidArgumentError: if the weight is out of range, or layers are given where outputs are compared or the
            reverse.

    Example:
        >>> from keras import ops
        >>> class MeanDifference(DistillationLoss):
        ...     def call(self, student, teacher, labels=None):
        ...         return ops.abs(ops.mean(student, -1) - ops.mean(teacher, -1))
        >>> MeanDifference()(ops.array([[1.0, 3.0]]), ops.array([[5.0, 5.0]])).numpy().tolist()
        [3.0]
    """

    on = "outputs"  # or "features"
    uses_labels = False  # True: `call` needs `labels`

    def __init__(
        self,
        *,
        weight: float = 1.0,
        student_layer: str | None = None,
        teacher_layer: str | None = None,
        output: str | int | None = None,
        **kwargs: Any,
    ):
        weight = as_number("weight", weight, NOT_NEGATIVE)
        self._check_place(student_layer, teacher_layer, output)
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.supports_masking = True
        self.weight = weight
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.output_name = output

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Nothing: one loss a sample has no positions left to mask."""

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        own = {name: getattr(self, name) for name in ("weight", "student_layer", "teacher_layer")}
        return {**super().get_config(), **own, "output": self.output_name}

    def _check_place(self, student_layer: str | None, teacher_layer: str | None, output: str | int | None) -> None:
        if self.on == "outputs" and (student_layer, teacher_layer) != (None, None):
            raise InvalidArgumentError(
                f"{type(self).__name__} compares outputs.",
                received=f"student_layer={student_layer!r}, teacher_layer={teacher_layer!r}",
                fix="Name an output with `output=`, or take a feature loss, such as FeatureMatching.",
            )
        if self.on == "features" and output is not None:
            raise InvalidArgumentError(
                f"{type(self).__name__} compares layers.",
                received=f"output={output!r}",
                fix="Name layers with `student_layer=` and `teacher_layer=`.",
            )
        if teacher_layer is not None and student_layer is None:
            raise InvalidArgumentError(
                "A layer of the teacher is compared with one of the student.",
                received=f"teacher_layer={teacher_layer!r} alone",
                fix="Pass `student_layer=` too.",
            )


def check_labels(loss: DistillationLoss, labels: Any) -> None:
    """Raises where a loss that needs labels gets none.

    Raises:
        InvalidArgumentError: names the loss.

    Example:
        >>> check_labels(DistillationLoss(), labels=[1.0])
    """
    if labels is None:
        raise InvalidArgumentError(
            f"{type(loss).__name__} needs the labels.",
            received="labels=None",
            fix="Fit with labels, or take a loss without, such as SoftTargets or RegressionTargets.",
        )
