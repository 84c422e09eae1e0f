"""What all distillation losses have in common as Keras layers."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from tfopt.core.checks import NOT_NEGATIVE, as_number
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import children
from tfopt.distillation.scores import Task

VALUES, LOGITS = "values", "logits"
OUTPUTS, FEATURES = "outputs", "features"


class DistillationLoss(keras.layers.Layer):
    """A loss between a student and its teacher, as a Keras layer: tensors of both in, one float32 loss a sample out.

    A loss of your own is a subclass with a `call(student, teacher)` that gives a tensor (batch,). It is computed in
    float32, whatever the dtype policy. What `call` gets, two class attributes say:

    - `on`: `"outputs"` (default) or `"features"`, what the layers named by `student_layer` and `teacher_layer` give.
    - `compares`, for outputs: `"values"` (default) gives `call` what the models give: probabilities of a model that
      ends in a softmax or sigmoid, log-probabilities of one that ends in a log_softmax, numbers elsewhere. `"logits"`
      gives it what stands before the softmax or sigmoid, or log-probabilities, whose softmax is the same, where that
      cannot be had. The Distiller warns of a class that does not say which, where the two differ.

    Sample weights of steps or pixels weigh a loss (batch, ...) position by position. A loss (batch,) is weighed by
    their mean in the sample; its `student_mask` then leaves out what has a weight of 0, or, if the class says
    `weighs_positions = True`, holds the weights.

    Further arguments of `call` are filled in where it has them: `labels`, those of `fit`, None without; `student_mask`,
    booleans of the steps that are no padding, None where all count. Weights of the loss are created in
    `build(student_shape, teacher_shape)`, or by layers that `__init__` makes; they are trained with the student.
    A Keras loss or a function is used inside a `call`: as such it does not say whether it compares logits.

    Args:
        weight: factor of the loss in the total, 0 or more. `call` does not apply it.
        student_layer: of a feature loss: name of the student's layer, of a nested one by path, "backbone/block3/relu".
        teacher_layer: the same of the teacher's; None for the student's name.
        output: of a loss of outputs: name or index of the output, in a model of several; None for all.
        name: of the layer.

    Raises:
        InvalidArgumentError: if the weight is out of range, layers are given where outputs are compared or the
            reverse, or a class attribute has another value.

    Example:
        >>> class ReverseDivergence(DistillationLoss):
        ...     compares = "values"
        ...     def call(self, student, teacher):
        ...         return keras.losses.kl_divergence(student, teacher)
        >>> probabilities = keras.ops.array([[0.5, 0.5]]), keras.ops.array([[0.75, 0.25]])
        >>> round(float(ReverseDivergence()(*probabilities)[0]), 5)  # 0.5 log(0.5 / 0.75) + 0.5 log(0.5 / 0.25)
        0.14384
    """

    on = OUTPUTS
    compares: str | None = None  # "values" or "logits"; None stands for "values", with a warning where they differ
    weighs_positions = False  # whether `call` takes weights of positions in `student_mask`
    task: Task | None = None  # what the loss takes an output for; None where it is for any

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
        self._check_class()
        self._check_place(student_layer, teacher_layer, output)
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.supports_masking = True
        self.weight = weight
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.output_name = output

    @property
    def takes_labels(self) -> bool:
        """Whether `call` has an argument `labels`."""
        return "labels" in inspect.signature(self.call).parameters

    @property
    def is_ready(self) -> bool:
        """Whether the loss and the layers inside it have their weights."""
        return self.built and all(layer.built for layer in children(self))

    def build_for(self, student_shape: Any, teacher_shape: Any) -> None:
        """Creates the weights of the loss for these shapes; raises where it cannot compare them."""
        if type(self).build is not keras.layers.Layer.build:
            self.build(student_shape, teacher_shape)
        elif not children(self):
            self.build(student_shape)
        elif not self.takes_labels:  # else they are created in the first step, when the shape of the labels is known
            self(keras.KerasTensor(student_shape), keras.KerasTensor(teacher_shape))

    def build_from_config(self, config: dict[str, Any]) -> None:
        """As Keras has it; a loss whose layers are built by a call of it waits for the Distiller."""
        if type(self).build is not keras.layers.Layer.build or not children(self):
            super().build_from_config(config)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Nothing: one loss a sample has no positions left to mask."""

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        own = {name: getattr(self, name) for name in ("weight", "student_layer", "teacher_layer")}
        return {**super().get_config(), **own, "output": self.output_name}

    def _check_class(self) -> None:
        if self.on not in (OUTPUTS, FEATURES) or self.compares not in (VALUES, LOGITS, None):
            raise InvalidArgumentError(
                "`on` of a distillation loss must be 'outputs' or 'features', `compares` 'values' or 'logits'.",
                received=f"on={self.on!r}, compares={self.compares!r} in class {type(self).__name__}",
            )

    def _check_place(self, student_layer: str | None, teacher_layer: str | None, output: str | int | None) -> None:
        if self.on == OUTPUTS and (student_layer, teacher_layer) != (None, None):
            raise InvalidArgumentError(
                f"{type(self).__name__} compares outputs and must not be given layers.",
                received=f"student_layer={student_layer!r}, teacher_layer={teacher_layer!r}",
                fix="Name an output with `output=`, or take a feature loss, such as FeatureMatching.",
            )
        if self.on == FEATURES and output is not None:
            raise InvalidArgumentError(
                f"{type(self).__name__} compares layers and must not be given an output.",
                received=f"output={output!r}",
                fix="Name layers with `student_layer=` and `teacher_layer=`.",
            )
        if teacher_layer is not None and student_layer is None:
            raise InvalidArgumentError(
                "`teacher_layer` must come with the `student_layer` that is compared with it.",
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
            f"{type(loss).__name__} must be given the labels.",
            received="labels=None",
            fix="Fit with labels, or take a loss without, such as SoftTargets or RegressionTargets.",
        )
