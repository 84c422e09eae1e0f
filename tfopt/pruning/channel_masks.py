"""The weight constraint that holds pruned channels at zero in all weights of their groups."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.types import Tensor
from tfopt.pruning.criteria import MAGNITUDE, Criterion
from tfopt.pruning.masks import Mask, MaskPool, state_variable
from tfopt.pruning.ranking import Ranking, Rule


@dataclass(frozen=True, eq=False)
class Cut:
    """An axis of a weight along which channels lie.

    Args:
        axis: of the weight.
        positions: the place of each index in the pool; the size of the pool for an index that always stays.
        role: of the weight, as `core.layers.channels.Slot` has it.
        ranked: whether the weight is a kernel, which counts in the scores of channels.
    """

    axis: int
    positions: np.ndarray
    role: str
    ranked: bool


class ChannelMask(Mask):
    """Keeps the slices of a weight that belong to masked channels at zero.

    Args:
        pool: holds the mask of all channels.
        cuts: the axes of the weight with channels.
    """

    def __init__(self, pool: ChannelPool, cuts: tuple[Cut, ...]):
        self.pool: ChannelPool = pool
        self.cuts = cuts

    def carried(self, memo: dict) -> ChannelMask:
        return ChannelMask(self.pool.carried(memo), self.cuts)

    def masked(self, value: Tensor) -> tf.Tensor:
        value = tf.convert_to_tensor(value)
        stays = tf.concat([self.pool.mask.value, [True]], 0)
        for cut in self.cuts:
            shape = [-1 if other == cut.axis else 1 for other in range(len(value.shape))]
            value = tf.where(tf.reshape(tf.gather(stays, cut.positions), shape), value, tf.zeros_like(value))
        return value

    def sums(self, value: tf.Tensor, criterion: Criterion) -> tf.Tensor:
        """The scores of the weights, summed for each channel of the pool."""
        size = self.pool.size + 1
        total = tf.zeros([size])
        for cut in self.cuts:
            if cut.ranked and cut.role in criterion.counted_roles:
                scores = criterion.score(tf.cast(value, tf.float32))
                others = [other for other in range(len(value.shape)) if other != cut.axis]
                pooled = (tf.reduce_mean if criterion.per_unit else tf.reduce_sum)(scores, others)
                total += tf.math.unsorted_segment_sum(pooled, cut.positions, size)
        return total[:-1]


class ChannelPool(MaskPool[ChannelMask]):
    """All channels of a model that are pruned together, under one mask. Channels that are gone never come back.

    Args:
        rule: its schedule and its criterion.
        ranking: chooses the channels.
        scores: of all channels, group after group, taken once; None to score the weights as they are at each step.
        mask: the first mask, group after group; None for all True.
    """

    def __init__(self, rule: Rule, ranking: Ranking, scores: np.ndarray | None = None, mask: np.ndarray | None = None):
        super().__init__(rule.schedule)
        self.rule, self.ranking, self.scores = rule, ranking, scores
        self.size = sum(ranking.sizes)
        self.mask = state_variable(np.ones(self.size, bool) if mask is None else mask, "channel_mask")

    def copy(self) -> ChannelPool:
        return ChannelPool(self.rule, self.ranking, self.scores, keras.ops.convert_to_numpy(self.mask))

    def hold(self, mask: np.ndarray) -> None:
        """Sets the mask and zeroes the weights of the channels outside it."""
        self.mask.assign(mask)
        for member in self.members:
            member.variable.assign(member.masked(member.variable))

    def current_scores(self) -> list[tf.Tensor]:
        """The score of each group's channels now."""
        members = self.members
        return self._scores(members, [tf.convert_to_tensor(member.variable) for member in members])

    def _scores(self, members: list[ChannelMask], values: list[tf.Tensor]) -> list[tf.Tensor]:
        """The score of each group's channels; those whose weights are all zero come last.

        Where all groups are ranked together, scores are divided by the mean of their group: sums grow with the number
        of weights.
        """
        scores = magnitudes = _sums(MAGNITUDE, members, values)  # by these alone, zeros come last by themselves
        if self.scores is not None or not self.rule.by_magnitude:
            own = _sums(self.rule.criterion, members, values) if self.scores is None else self.scores
            scores = tf.where(magnitudes > 0, tf.cast(own, tf.float32), -np.inf)
        groups = tf.split(scores, self.ranking.sizes)
        return [_by_mean(group) for group in groups] if self.ranking.scope == "global" else groups

    def _state(self, members: list[ChannelMask]) -> list[keras.Variable]:
        return [self.mask]

    def _next(
        self, members: list[ChannelMask], values: list[tf.Tensor], step: tf.Tensor, seen: tf.Tensor
    ) -> list[tf.Tensor]:
        limits = [tf.reduce_sum(tf.cast(mask, tf.int32)) for mask in tf.split(self.mask.value, self.ranking.sizes)]

        def ranked(sparsity: tf.Tensor | None) -> list[tf.Tensor]:
            scores = self._scores(members, values)
            if sparsity is None:
                return [tf.concat(self.ranking.most(scores, limits, limits), 0)]
            return [tf.concat(self.ranking.masks(scores, sparsity, limits), 0)]

        return self._masks_at(step, seen, [self.mask], ranked, ranked)


def _sums(criterion: Criterion, members: list[ChannelMask], values: list[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([member.sums(value, criterion) for member, value in zip(members, values, strict=True)])


def _by_mean(scores: tf.Tensor) -> tf.Tensor:
    """The scores by the mean of their absolute values; -inf counts as 0 there and stays."""
    sizes = tf.where(tf.math.is_finite(scores), tf.abs(scores), 0.0)
    return scores / tf.maximum(tf.reduce_mean(sizes), 1e-30)
