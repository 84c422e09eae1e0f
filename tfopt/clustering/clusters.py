"""The weight constraint that keeps the weights of a cluster equal while they are trained."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.keras_internals import moving_average_of, running_apply
from tfopt.core.models import constraints
from tfopt.core.models.constraints import WeightConstraint
from tfopt.core.types import Tensor

ZERO = 0  # the label, in each row, of the weights that stay at zero


class WeightClusters(WeightConstraint):
    """Makes all weights of a cluster equal to their mean after each optimizer update.

    They were equal before it, so the mean moves by the mean of their updates: under SGD each centroid c is trained by
    the mean gradient of its members, c <- c - rate * mean(dL/dw_i), as in TFMOT with `GradientAggregation.AVG`.

    - Which weight belongs to which cluster stays as it is. (Han et al. 2016 train so. TFMOT moves a shadow of the
      unclustered weights along and assigns anew in each call; a plain saved model has no such shadow.)
    - Weights labelled as zero stay at zero, and where a mask runs before, those that it zeroed do.
    - Weights that come from elsewhere (a resume in a new process, `load_weights`) are recognised by their spread: where
      the clusters explain less than half of the variance, new ones are made of the weights: the sorted weights are cut
      at their widest gaps. If the loaded weights were clustered, these are their clusters, as long as the update that
      came in between moved them by less than the clusters lie apart.
    - The optimizer's moving average of the weights is clustered too.

    Args:
        labels: int32 array of the kernel's shape: cluster of each weight, `row * (clusters + 1) + ZERO` for zero.
        clusters: highest number of clusters in a row.
        axes: of the kernel, negative, whose indices count the rows, each with clusters of its own; () for one row.

    Source: Han, Mao and Dally 2016, https://arxiv.org/abs/1510.00149, section 3; TFMOT
    `clustering/keras/clustering_algorithm.py`.
    """

    rank = 1  # after the masks

    def __init__(self, labels: np.ndarray, clusters: int, axes: tuple[int, ...] = ()):
        self._initial: np.ndarray | None = labels
        self.clusters, self.axes, self.shares_values = clusters, axes, not axes

    def bind(self, variable: keras.Variable) -> None:
        super().bind(variable)
        self.labels = keras.Variable(
            self._initial, dtype="int32", trainable=False, aggregation="only_first_replica", name="cluster_labels"
        )
        self._initial = None
        self._rows = int(np.prod([variable.shape[axis] for axis in self.axes], dtype=int))

    def carried(self, memo: dict) -> WeightClusters:
        return WeightClusters(keras.ops.convert_to_numpy(self.labels), self.clusters, self.axes)

    def __call__(self, value: Tensor) -> tf.Tensor:
        value = tf.convert_to_tensor(value)
        clustered, foreign = self._clustered(value)
        apply = running_apply()
        if apply is None:
            return clustered
        self.labels.assign(tf.cond(foreign, lambda: self._found(value), lambda: tf.identity(self.labels.value)))
        average = moving_average_of(apply.caller, self.variable)
        if average is not None:
            average.assign(self._clustered(tf.convert_to_tensor(average))[0])
        return tf.cond(foreign, lambda: self._clustered(value)[0], lambda: clustered)

    @property
    def _per_row(self) -> int:
        return self.clusters + 1

    def _clustered(self, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The weights, each the mean of its cluster; whether the clusters explain too little of the weights."""
        # In double precision, the mean of equal float32 weights is exactly their value: nothing drifts.
        weights = tf.cast(tf.reshape(value, [-1]), tf.float64)
        labels = tf.reshape(self.labels.value, [-1])
        if constraints.holds_zeros(self.variable):
            labels = tf.where(weights == 0, labels - labels % self._per_row, labels)
        segments = self._rows * self._per_row
        sizes = tf.math.unsorted_segment_sum(tf.ones_like(weights), labels, segments)
        sums = tf.math.unsorted_segment_sum(weights, labels, segments)
        means = tf.math.divide_no_nan(sums, sizes)
        means = tf.where(tf.range(segments) % self._per_row == ZERO, tf.zeros_like(means), means)
        clustered = tf.gather(means, labels)
        within = tf.reduce_sum(tf.square(weights - clustered))
        foreign = self._explain_too_little(means, sizes, within)
        return tf.reshape(tf.cast(clustered, value.dtype), value.shape), foreign

    def _explain_too_little(self, means: tf.Tensor, sizes: tf.Tensor, within: tf.Tensor) -> tf.Tensor:
        """True where the share of the variance explained, adjusted for the number of clusters, is below one half."""
        means, sizes = (tf.reshape(values, [self._rows, self._per_row]) for values in (means, sizes))
        middle = tf.math.divide_no_nan(
            tf.reduce_sum(means * sizes, 1, keepdims=True), tf.reduce_sum(sizes, 1, keepdims=True)
        )
        total = tf.reduce_sum(sizes * tf.square(means - middle)) + within
        count, used = tf.reduce_sum(sizes), tf.reduce_sum(tf.cast(sizes > 0, sizes.dtype))
        return 2 * within * (count - self._rows) > total * (count - used)

    def _found(self, value: tf.Tensor) -> tf.Tensor:
        """Labels for weights that came from elsewhere: cut at the widest gaps, and at both ends of a mask's zeros."""
        rank = len(value.shape)
        front = [axis % rank for axis in self.axes]
        order = front + [axis for axis in range(rank) if axis not in front]
        turned = tf.transpose(value, order)
        rows = tf.reshape(turned, [self._rows, -1])
        places = tf.argsort(rows)
        ordered = tf.gather(rows, places, batch_dims=1)
        gaps = ordered[:, 1:] - ordered[:, :-1]
        masked = constraints.holds_zeros(self.variable)
        if masked:
            border = tf.not_equal(ordered[:, 1:] == 0, ordered[:, :-1] == 0)
            gaps = tf.where(border, tf.constant(np.inf, gaps.dtype), gaps)
        widest = tf.argsort(tf.argsort(gaps, direction="DESCENDING"))
        cuts = tf.logical_and(widest < self.clusters - 1, gaps > 0)
        groups = tf.pad(tf.cumsum(tf.cast(cuts, tf.int32), 1), [[0, 0], [1, 0]])
        groups = tf.gather(groups, tf.argsort(places), batch_dims=1)
        labels = self._labels_of(groups, rows, masked)
        return tf.transpose(tf.reshape(labels, turned.shape), [order.index(axis) for axis in range(rank)])

    def _labels_of(self, groups: tf.Tensor, rows: tf.Tensor, masked: bool) -> tf.Tensor:
        """The labels of the groups in each row; the group nearest to zero gets ZERO if there were such weights."""
        starts = tf.range(self._rows)[:, None] * self._per_row
        labels = starts + groups + 1
        if masked:
            return tf.where(rows == 0, starts + ZERO, labels)
        had_zero = tf.reduce_any(self.labels.value % self._per_row == ZERO)
        segments = self._rows * self._per_row
        flat, weights = tf.reshape(labels, [-1]), tf.reshape(tf.abs(rows), [-1])
        sums = tf.math.unsorted_segment_sum(tf.cast(weights, tf.float32), flat, segments)
        sizes = tf.math.unsorted_segment_sum(tf.ones_like(flat, tf.float32), flat, segments)
        distance = tf.where(sizes > 0, tf.math.divide_no_nan(sums, sizes), np.float32(np.inf))
        smallest = (
            starts + tf.argmin(tf.reshape(distance, [self._rows, self._per_row]), 1, output_type=tf.int32)[:, None]
        )
        return tf.where(tf.logical_and(had_zero, labels == smallest), starts + ZERO, labels)
