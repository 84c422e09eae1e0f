"""The weight constraint that holds pruned channels at zero in all weights of their group."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.keras_internals import moving_average_of, running_apply, updates_done
from tfopt.core.models.constraints import WeightConstraint
from tfopt.pruning.patterns import highest, kept_count
from tfopt.pruning.schedules import Schedule, evaluate, latest


@dataclass(frozen=True)
class Ranking:
    """How many channels of each group stay, and out of which they are chosen.

    Args:
        sizes: channels of each group.
        steps: the channels left in a group are a multiple of this, if it has as many.
        covers: for each group, sets of positions of which at least one channel stays each.
        scope: `"layer"` ranks each group on its own, `"global"` all together.
        min_kept: fraction of each group that stays whatever its scores; one channel always does.

    Example:
        >>> ranking = Ranking((4,), (1,), ((),))
        >>> [mask.numpy().tolist() for mask in ranking.masks([tf.constant([3.0, 1.0, 2.0, 4.0])], 0.5)]
        [[True, False, False, True]]
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    covers: tuple[tuple[tuple[int, ...], ...], ...]
    scope: str = "layer"
    min_kept: float = 0.0

    def masks(self, scores: Sequence, sparsity, at_most: Sequence | None = None) -> list[tf.Tensor]:
        """True for the channels of each group that stay.

        Args:
            scores: a float tensor for each group.
            sparsity: one fraction, or a list of one a group; that of all channels together for scope `"global"`.
            at_most: int32 scalars, so many channels of each group may stay.
        """
        limits = [tf.constant(size) for size in self.sizes] if at_most is None else list(at_most)
        scores = [self._protected(group, values) for group, values in enumerate(scores)]
        if self.scope == "global":
            wanted = tf.minimum(kept_count(sum(self.sizes), sparsity), tf.add_n(limits))
            together = highest(tf.concat(scores, 0), wanted)
            counts = [tf.reduce_sum(tf.cast(mask, tf.int32)) for mask in tf.split(together, self.sizes)]
        else:
            fractions = sparsity if isinstance(sparsity, list) else [sparsity] * len(scores)
            counts = [kept_count(size, fraction) for size, fraction in zip(self.sizes, fractions, strict=True)]
        return self.most(scores, counts, limits)

    def most(self, scores: Sequence, counts: Sequence, limits: Sequence) -> list[tf.Tensor]:
        """The masks of so many channels of each group, rounded to its step."""
        masks = []
        for group, (values, count, limit) in enumerate(zip(scores, counts, limits, strict=True)):
            step = self.steps[group]
            rounded = -(-tf.maximum(count, self._least(group)) // step) * step
            masks.append(highest(values, tf.minimum(tf.minimum(rounded, self.sizes[group]), limit)))
        return masks

    def _least(self, group: int) -> int:
        return max(1, int(np.ceil(self.min_kept * self.sizes[group] - 1e-9)))

    def _protected(self, group: int, scores) -> tf.Tensor:
        """Scores with those of channels that have to stay at infinity."""
        scores = tf.cast(scores, tf.float32)
        stay = highest(scores, self._least(group)) if self.scope == "global" else tf.zeros(scores.shape, bool)
        for cover in self.covers[group]:
            best = tf.gather(cover, tf.argmax(tf.gather(scores, cover)))
            stay = tf.logical_or(stay, tf.range(self.sizes[group]) == best)
        return tf.where(stay, np.float32(np.inf), scores)


class ChannelPool:
    """The mask of all channels of a model that are pruned together, shared by the constraints of their weights.

    It follows the optimizer's updates as `PruningMask` does: a schedule is due at the same steps, a resumed training
    rebuilds the mask from the restored weights, and channels that are gone never come back.

    Args:
        ranking: chooses the channels.
        schedule: gives `(prune_now, sparsity)` for a step; None holds the mask as it is.
        scores: of all channels, group after group, taken once; None ranks by the weights as they are at each step.
        normalized: scores are divided by their mean in the group.
        mask: the first mask, group after group; None for all True.
    """

    def __init__(self, ranking: Ranking, schedule: Schedule | None, scores, normalized: bool, mask=None):
        self.ranking, self.schedule, self.scores, self.normalized = ranking, schedule, scores, normalized
        self.size = sum(ranking.sizes)
        self.members: list[ChannelMask] = []
        self.mask = _state(np.ones(self.size, bool) if mask is None else mask, "channel_mask")
        self._step = _state(np.int64(0), "channel_mask_step")
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def copy(self) -> ChannelPool:
        """A pool with the same mask and no members yet."""
        mask = keras.ops.convert_to_numpy(self.mask)
        return ChannelPool(self.ranking, self.schedule, self.scores, self.normalized, mask)

    def hold(self, mask: np.ndarray) -> None:
        """Sets the mask and zeroes the weights of the channels outside it."""
        self.mask.assign(mask)
        for member in self.members:
            member.variable.assign(member.masked(member.variable))

    def current_scores(self) -> list[tf.Tensor]:
        """The score of each group's channels now; those whose weights are all zero come last."""
        sums = tf.add_n([member.magnitudes(self.size + 1) for member in self.members])[: self.size]
        scores = sums if self.scores is None else tf.where(sums > 0, tf.constant(self.scores, tf.float32), -1.0)
        groups = tf.split(scores, self.ranking.sizes)
        if not self.normalized:
            return groups
        return [values / tf.maximum(tf.reduce_mean(tf.maximum(values, 0.0)), 1e-30) for values in groups]

    def follow(self, apply) -> None:
        """Brings the mask up to the step that the optimizer's `apply` ends; the first member called acts for all."""
        if apply in self._seen:
            return
        self._seen.add(apply)
        step, seen = tf.cast(updates_done(apply.caller), tf.int64), self._step.value
        jumped = step > seen + 1
        change = jumped
        if self.schedule is not None:
            due, _ = evaluate(self.schedule, step)
            change = tf.logical_or(change, tf.logical_and(due, step != seen))
        self.mask.assign(tf.cond(change, lambda: self._changed(step, jumped), lambda: tf.identity(self.mask.value)))
        self._step.assign(step)

    def _changed(self, step, jumped) -> tf.Tensor:
        """The mask at a step at which the schedule is due or that others were left out before."""
        limits = [tf.reduce_sum(tf.cast(mask, tf.int32)) for mask in tf.split(self.mask.value, self.ranking.sizes)]
        scores = self.current_scores()
        if self.schedule is None:
            return tf.concat(self.ranking.most(scores, limits, limits), 0)
        due, sparsity = evaluate(self.schedule, step)
        _, before = tf.cond(jumped, lambda: latest(self.schedule, step - 1), lambda: (due, sparsity))
        return tf.concat(self.ranking.masks(scores, tf.where(due, sparsity, before), limits), 0)


class ChannelMask(WeightConstraint):
    """Keeps the slices of a weight that belong to masked channels at zero.

    Args:
        pool: the mask.
        cuts: for each axis with channels `(axis, positions, ranked)`: the place of each index in the pool, its size
            for one that always stays; `ranked` where the weight counts in the channels' magnitude.
    """

    makes_zeros = True

    def __init__(self, pool: ChannelPool, cuts: tuple[tuple[int, np.ndarray, bool], ...]):
        self.pool, self.cuts = pool, cuts

    def bind(self, variable: keras.Variable) -> None:
        super().bind(variable)
        self.pool.members.append(self)

    def carried(self, memo: dict) -> ChannelMask:
        if id(self.pool) not in memo:
            memo[id(self.pool)] = self.pool.copy()
        return ChannelMask(memo[id(self.pool)], self.cuts)

    def __call__(self, value):
        apply = running_apply()
        if apply is not None:
            self.pool.follow(apply)
            average = moving_average_of(apply.caller, self.variable)
            if average is not None:
                average.assign(self.masked(average))
        return self.masked(value)

    def masked(self, value):
        value = tf.convert_to_tensor(value)
        stays = tf.concat([self.pool.mask.value, [True]], 0)
        for axis, positions, _ in self.cuts:
            shape = [-1 if other == axis else 1 for other in range(len(value.shape))]
            value = tf.where(tf.reshape(tf.gather(stays, positions), shape), value, tf.zeros_like(value))
        return value

    def magnitudes(self, size: int) -> tf.Tensor:
        """The sum of absolute weights of each channel of the pool."""
        total = tf.zeros([size])
        for axis, positions, ranked in self.cuts:
            if ranked:
                weights = tf.abs(tf.cast(tf.convert_to_tensor(self.variable), tf.float32))
                others = [other for other in range(len(weights.shape)) if other != axis]
                total += tf.math.unsorted_segment_sum(tf.reduce_sum(weights, others), positions, size)
        return total


def _state(value, name: str) -> keras.Variable:
    """A variable that is not saved with the model, equal on every replica of a `tf.distribute` strategy."""
    return keras.Variable(value, dtype=value.dtype.name, trainable=False, aggregation="only_first_replica", name=name)
