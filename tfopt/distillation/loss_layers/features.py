"""The losses of `Distiller(losses=[...])` between layers, as Keras layers that are saved and loaded with it.

The maths is in `feature_losses.py`. `outputs.py` has the losses between outputs.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl
from keras import ops

from tfopt.core.checks import POSITIVE, Range, as_count, as_number
from tfopt.distillation import feature_losses
from tfopt.distillation.loss_layers.base import FEATURES, DistillationLoss
from tfopt.distillation.shapes import check_features, common_grid, sample_mean, without_padding

__all__ = [
    "AttentionTransfer",
    "ContrastiveRepresentation",
    "FeatureMatching",
    "RelationalAngle",
    "RelationalDistance",
    "SimilarityPreserving",
]


@keras.saving.register_keras_serializable(package="tfopt")
class FeatureMatching(DistillationLoss):
    """Mean squared difference of the features of two layers (FitNets).

    Where the widths differ, the student's channels are projected to the teacher's by a 1x1 convolution, or a dense
    layer where there are no positions. It is trained with the student and is no part of it. Where the grids differ, the
    larger one is averaged to the smaller.

    Args:
        **kwargs: `student_layer`, `teacher_layer`, `weight` and `name`, as `DistillationLoss` has them.

    Called on features (batch, ..., channels), channels last, of one rank.

    Raises:
        InvalidArgumentError: if an argument is out of range; when called, if the ranks differ or a number of channels
            is not known.

    Source: Romero et al. 2015 (FitNets), https://arxiv.org/abs/1412.6550.

    Example:
        >>> loss = FeatureMatching(student_layer="conv2", teacher_layer="backbone/block3/relu")
        >>> loss(ops.ones((2, 8, 8, 16)), ops.ones((2, 4, 4, 64))).shape, loss.projection.kernel.shape
        (TensorShape([2]), TensorShape([1, 1, 16, 64]))
    """

    on = FEATURES
    weighs_positions = True

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.projection: kl.Layer | None = None

    def build(self, student_shape: Any, teacher_shape: Any) -> None:
        """Makes the projection where the widths differ."""
        check_features(student_shape, teacher_shape)
        if student_shape[-1] != teacher_shape[-1]:
            self.projection = _projection(len(student_shape), teacher_shape[-1])
            self.projection.build(student_shape)

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The loss of each sample, (batch,)."""
        # First the grids: averages commute with the projection, which then has less to do.
        student, teacher = common_grid(*without_padding(student, teacher, student_mask))
        if self.projection is not None:
            student = self.projection(student)
        return feature_losses.feature_matching(student, teacher, student_mask)


@keras.saving.register_keras_serializable(package="tfopt")
class AttentionTransfer(DistillationLoss):
    """Half the squared distance of the attention maps of two layers: where they look, whatever their channels.

    Args:
        power: of the features that are summed up at each position, 1 or more.
        **kwargs: `student_layer`, `teacher_layer`, `weight` and `name`, as `DistillationLoss` has them.

    Called on features (batch, positions, channels), channels last, with one to any number of axes of positions.

    Raises:
        InvalidArgumentError: if an argument is out of range; when called, if the ranks differ or there are no
            positions.

    Source: Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928; section 4.1 takes a weight of about
    0.1.

    Example:
        >>> loss = AttentionTransfer(student_layer="conv2", teacher_layer="conv9")
        >>> loss(ops.ones((2, 8, 8, 16)), ops.ones((2, 4, 4, 64))).numpy().tolist()
        [0.0, 0.0]
    """

    on = FEATURES

    def __init__(self, power: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.power = as_number("power", power, Range(least=1))

    def build(self, student_shape: Any, teacher_shape: Any) -> None:
        """Raises where there are no two maps to compare."""
        check_features(student_shape, teacher_shape, positions=True)

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The loss of each sample, (batch,)."""
        return feature_losses.attention_transfer(student, teacher, self.power, student_mask)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable(package="tfopt")
class RelationalDistance(DistillationLoss):
    """Huber loss of the distances between the samples of a batch, in units of their mean (RKD-D).

    Args:
        **kwargs: `student_layer`, `teacher_layer`, `weight` and `name`, as `DistillationLoss` has them.

    Called on features (batch, ...) of any two shapes.

    Raises:
        InvalidArgumentError: if an argument is out of range.

    Source: Park et al. 2019, https://arxiv.org/abs/1904.05068; with it comes RelationalAngle at twice the weight.

    Example:
        >>> loss = RelationalDistance(student_layer="features")
        >>> loss(ops.array([[0.0], [1.0], [2.0]]), ops.array([[0.0], [4.0], [8.0]])).numpy().tolist()
        [0.0, 0.0, 0.0]
    """

    on = FEATURES

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The part of each sample, (batch,)."""
        return feature_losses.relational_distance(student, teacher, student_mask)


@keras.saving.register_keras_serializable(package="tfopt")
class RelationalAngle(DistillationLoss):
    """Huber loss of the cosines of the angles between any three samples of a batch (RKD-A).

    Time and memory grow with the cube of the batch.

    Args:
        **kwargs: `student_layer`, `teacher_layer`, `weight` and `name`, as `DistillationLoss` has them.

    Called on features (batch, ...) of any two shapes.

    Raises:
        InvalidArgumentError: if an argument is out of range.

    Source: Park et al. 2019, https://arxiv.org/abs/1904.05068.

    Example:
        >>> corner, line = ops.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), ops.array([[-1.0], [0.0], [1.0]])
        >>> round(float(RelationalAngle(student_layer="features")(corner, line)[1]), 5)
        0.5
    """

    on = FEATURES

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The part of each sample, (batch,)."""
        return feature_losses.relational_angle(student, teacher, student_mask)


@keras.saving.register_keras_serializable(package="tfopt")
class SimilarityPreserving(DistillationLoss):
    """Squared difference of which samples of a batch are alike.

    Args:
        **kwargs: `student_layer`, `teacher_layer`, `weight` and `name`, as `DistillationLoss` has them.

    Called on features (batch, ...) of any two shapes.

    Raises:
        InvalidArgumentError: if an argument is out of range.

    Source: Tung and Mori 2019, https://arxiv.org/abs/1907.09682.

    Example:
        >>> loss = SimilarityPreserving(student_layer="conv2", teacher_layer="conv9")
        >>> round(float(loss(ops.array([[1.0], [1.0]]), ops.eye(2))[0]), 5)
        0.29289
    """

    on = FEATURES

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The part of each sample, (batch,)."""
        return feature_losses.similarity_preserving(student, teacher, student_mask)


@keras.saving.register_keras_serializable(package="tfopt")
class ContrastiveRepresentation(DistillationLoss):
    """Embeddings from which the teacher's features of a sample are found among those of the batch (CRD).

    Both are averaged over their positions and projected to embeddings by dense layers that are trained with the
    student. The negatives are the other samples of the batch, not the paper's memory of the whole data set: use large
    batches.

    Args:
        dimensions: of the embeddings, 1 or more.
        temperature: divides the cosines, above 0. Its own, not that of the Distiller.
        **kwargs: `student_layer`, `teacher_layer`, `weight` and `name`, as `DistillationLoss` has them.

    Called on features (batch, ..., channels), channels last.

    Raises:
        InvalidArgumentError: if an argument is out of range; when called, if a number of channels is not known.

    Source: Tian et al. 2020, https://arxiv.org/abs/1910.10699; van den Oord et al. 2018,
    https://arxiv.org/abs/1807.03748.

    Example:
        >>> loss = ContrastiveRepresentation(dimensions=8, student_layer="conv2", teacher_layer="features")
        >>> round(float(loss(ops.ones((4, 8, 8, 16)), ops.ones((4, 64)))[0]), 4)  # log(4): all are alike
        1.3863
    """

    on = FEATURES

    def __init__(self, dimensions: int = 128, temperature: float = 0.1, **kwargs: Any):
        dimensions, temperature = as_count("dimensions", dimensions), as_number("temperature", temperature, POSITIVE)
        super().__init__(**kwargs)
        self.dimensions = dimensions
        self.temperature = temperature
        self.student_projection = kl.Dense(dimensions, dtype="float32", name="student_projection")
        self.teacher_projection = kl.Dense(dimensions, dtype="float32", name="teacher_projection")

    def build(self, student_shape: Any, teacher_shape: Any) -> None:
        """Makes both projections."""
        check_features(student_shape[:1] + student_shape[-1:], teacher_shape[:1] + teacher_shape[-1:])
        self.student_projection.build((None, student_shape[-1]))
        self.teacher_projection.build((None, teacher_shape[-1]))

    def call(self, student: Any, teacher: Any, labels: Any = None, student_mask: Any = None) -> Any:
        """The loss of each sample, (batch,)."""
        student, teacher = without_padding(student, teacher, student_mask)
        student = self.student_projection(_mean_of_positions(student, student_mask))
        teacher = self.teacher_projection(_mean_of_positions(teacher, student_mask))
        return feature_losses.contrastive(student, teacher, self.temperature)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "dimensions": self.dimensions, "temperature": self.temperature}


def _projection(rank: int, channels: int) -> kl.Layer:
    """A linear map of the channels; as a convolution, where there is one, it costs half of a dense layer's time."""
    kind = {3: kl.Conv1D, 4: kl.Conv2D, 5: kl.Conv3D}.get(rank)
    if kind is None:
        return kl.Dense(channels, dtype="float32", name="projection")
    return kind(channels, 1, data_format="channels_last", dtype="float32", name="projection")


def _mean_of_positions(features: Any, mask: Any) -> Any:
    """(batch, channels), of features that are 0 outside of the mask."""
    axes = tuple(range(1, len(features.shape) - 1))
    means = ops.mean(features, axes) if axes else features
    if mask is None:
        return means
    share = sample_mean(ops.cast(mask, means.dtype))[:, None]
    return means / ops.where(share > 0, share, 1.0)
