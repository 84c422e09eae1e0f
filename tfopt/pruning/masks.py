"""The weight constraint that holds pruned weights at zero, and lets the mask grow along a schedule."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.keras_internals import moving_average_of, running_apply, updates_done
from tfopt.core.models import constraints
from tfopt.core.models.constraints import WeightConstraint
from tfopt.pruning.criteria import Criterion, as_criterion, magnitude
from tfopt.pruning.patterns import Element, Pattern, kept_count
from tfopt.pruning.schedules import Schedule, evaluate, latest

ELEMENT = Element()
MAGNITUDE = as_criterion("magnitude")


@dataclass(frozen=True)
class Rule:
    """How masks are chosen.

    Args:
        schedule: gives `(prune_now, sparsity)` for a step; None holds the masks as they are.
        pattern: what is pruned as one.
        criterion: gives the scores; the lowest go first.
        min_kept: fraction of the units of each kernel that stays; at least one does.
    """

    schedule: Schedule | None = None
    pattern: Pattern = ELEMENT
    criterion: Criterion = MAGNITUDE
    min_kept: float = 0.0

    @property
    def by_magnitude(self) -> bool:
        return self.criterion.score is magnitude

    def floor(self, shape) -> int:
        """How many units of a kernel stay at least."""
        return max(1, math.ceil(self.min_kept * self.pattern.units(shape) - 1e-9))


class PruningMask(WeightConstraint):
    """Keeps the weights outside its mask at zero through every optimizer update.

    With a schedule, the mask follows the optimizer's count of updates: after update n, what TFMOT prunes at its
    `pruning_step` n is pruned here. Rules beyond TFMOT's:

    - After a resume in a new process (the step jumps forward) the mask is built again from the restored weights, at
      the sparsity the schedule had reached: the smallest are those that were zero, whatever the criterion.
    - Where the step starts again (`compile` once more, or the weights moved to another model), the schedule never
      makes the kernel denser than it was.
    - The optimizer's moving average of the weights is masked too, so that `use_ema=True` ends sparse.
    - Under another criterion than magnitude a pruned weight never comes back. Under magnitude one update may lift it
      above a kept one, as in TFMOT.

    Args:
        pool: the kernels that this one is ranked with; None for it alone, by magnitude, without a schedule.
        mask: boolean array of the kernel's shape; None for all True.
        scores: float32 array of the kernel's shape; None to take them from the weights.
    """

    makes_zeros = True

    def __init__(self, pool: MaskPool | None = None, mask: np.ndarray | None = None, scores: np.ndarray | None = None):
        self.pool = MaskPool() if pool is None else pool
        self._initial = mask, scores

    def bind(self, variable: keras.Variable) -> None:
        super().bind(variable)
        mask, scores = self._initial
        self._initial = None, None
        self.mask = _state(np.ones(variable.shape, bool) if mask is None else np.asarray(mask), "mask")
        self.scores = None if scores is None else _state(np.asarray(scores), "mask_scores")
        self.ceiling = _state(np.int32(self.count()), "mask_ceiling")
        self.pool.join(self)

    def carried(self, memo: dict) -> PruningMask:
        pool = memo.setdefault(id(self.pool), MaskPool(self.pool.rule))
        scores = None if self.scores is None else keras.ops.convert_to_numpy(self.scores)
        return PruningMask(pool, keras.ops.convert_to_numpy(self.mask), scores)

    def hold(self, mask) -> None:
        """Sets the mask and zeroes the weights outside it."""
        self.mask.assign(mask)
        self.ceiling.assign(self.count())
        self.variable.assign(self.masked(self.variable))

    def count(self):
        """How many units the mask keeps."""
        units = self.pool.rule.pattern.pooled(tf.cast(self.mask.value, tf.float32))
        return tf.reduce_sum(tf.cast(units > 0, tf.int32))

    def masked(self, value):
        value = tf.convert_to_tensor(value)
        return tf.where(self.mask.value, value, tf.zeros_like(value))

    def __call__(self, value):
        apply = running_apply()
        if apply is not None:
            self.pool.follow(apply, self, tf.convert_to_tensor(value))
            average = moving_average_of(apply.caller, self.variable)
            if average is not None:
                average.assign(self.masked(average))
        return self.masked(value)


class MaskPool:
    """Kernels whose units are ranked together and whose masks change in the same step."""

    def __init__(self, rule: Rule | None = None):
        self.rule = Rule() if rule is None else rule
        self._joined: list[PruningMask] = []
        self._step = _state(np.int64(0), "mask_step")
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def join(self, mask: PruningMask) -> None:
        self._joined.append(mask)

    @property
    def members(self) -> list[PruningMask]:
        """The masks in force: not those that another `prune` has replaced or `strip` has taken off."""
        return [mask for mask in self._joined if constraints.find(mask.variable, PruningMask) is mask]

    @property
    def units(self) -> int:
        return sum(self.rule.pattern.units(mask.variable.shape) for mask in self.members)

    def prune(self, sparsity) -> None:
        """Prunes all kernels together to a sparsity, now."""
        self._hold(kept_count(self.units, sparsity))

    def prune_below(self, threshold: float) -> None:
        """Prunes the units whose score is below the threshold, now."""
        members = self.members
        scores = self._scores(members, [tf.convert_to_tensor(mask.variable) for mask in members])
        kept = [tf.reduce_sum(tf.cast(self.rule.pattern.pooled(each) >= threshold, tf.int32)) for each in scores]
        self._hold(tf.add_n(kept))

    def _hold(self, kept) -> None:
        members = self.members
        values = [tf.convert_to_tensor(mask.variable) for mask in members]
        masks = self._by_score(members, values, [value != 0 for value in values], kept)
        for member, mask in zip(members, masks, strict=True):
            member.hold(mask)

    def follow(self, apply, caller: PruningMask, value) -> None:
        """Brings the masks up to the step that `apply` ends; on most steps a few scalar operations tell: nothing to do.

        An optimizer calls the constraints one after the other, when all variables are updated. The first one called
        acts for all.
        """
        if apply in self._seen:
            return
        self._seen.add(apply)
        step, seen = tf.cast(updates_done(apply.caller), tf.int64), self._step.value
        jumped, restarted = step > seen + 1, step < seen
        change = tf.logical_or(jumped, restarted)
        if self.rule.schedule is not None:
            due, _ = evaluate(self.rule.schedule, step)
            change = tf.logical_or(change, tf.logical_and(due, step != seen))
        members = self.members
        changed = tf.cond(
            change,
            lambda: self._changed(
                members, [value if m is caller else constraints.under_own(m.variable) for m in members], step, seen
            ),
            lambda: [(tf.identity(m.mask.value), tf.identity(m.ceiling.value)) for m in members],
        )
        for member, (mask, ceiling) in zip(members, changed, strict=True):
            member.mask.assign(mask)
            member.ceiling.assign(ceiling)
            if not member.variable.trainable:  # the optimizer will not call it
                member.variable.assign(member.masked(member.variable))
        self._step.assign(step)

    def _changed(self, members, values, step, seen) -> list[tuple]:
        """The new masks, and how many units may be kept from now on in each kernel."""
        jumped, restarted = step > seen + 1, step < seen
        ceilings = [tf.where(restarted, m.count(), m.ceiling.value) for m in members]
        kept = tf.add_n(ceilings)
        alive = [m.mask.value for m in members]
        schedule = self.rule.schedule
        if schedule is None:
            masks = tf.cond(jumped, lambda: self._by_size(values, kept), lambda: [tf.identity(mask) for mask in alive])
            return list(zip(masks, ceilings, strict=True))
        due, sparsity = evaluate(schedule, step)
        rebuilt, before = tf.cond(
            jumped, lambda: latest(schedule, step - 1), lambda: (tf.constant(False), tf.constant(0.0))
        )
        kept = tf.minimum(kept_count(self.units, tf.where(due, sparsity, before)), kept)
        masks = tf.cond(
            rebuilt,
            lambda: self._by_size(values, kept),
            lambda: tf.cond(
                due,
                lambda: self._by_score(members, values, alive, kept),
                lambda: [tf.identity(mask) for mask in alive],
            ),
        )
        return list(zip(masks, ceilings, strict=True))

    def _by_size(self, values, kept) -> list:
        """Masks that keep so many units, those of largest weights."""
        floors = [self.rule.floor(value.shape) for value in values]
        return self.rule.pattern.masks([magnitude(value) for value in values], kept, floors)

    def _by_score(self, members, values, alive, kept) -> list:
        """Masks that keep so many units, those of highest score."""
        if self.rule.by_magnitude:
            return self._by_size(values, kept)
        values = [tf.where(lives, value, tf.zeros_like(value)) for lives, value in zip(alive, values, strict=True)]
        floors = [self.rule.floor(value.shape) for value in values]
        return self.rule.pattern.masks(self._scores(members, values), kept, floors, alive)

    def _scores(self, members, values) -> list:
        """Scores of the kernels' weights, comparable between kernels."""
        criterion = self.rule.criterion
        scores = [
            tf.cast(criterion.score(value), value.dtype) if mask.scores is None else mask.scores.value
            for mask, value in zip(members, values, strict=True)
        ]
        if len(members) == 1 or criterion.comparable or self.rule.by_magnitude:
            return scores
        return [tf.math.divide_no_nan(score, tf.reduce_mean(tf.abs(score))) for score in scores]


def _state(value, name: str) -> keras.Variable:
    """A variable that is not saved with the model, equal on every replica of a `tf.distribute` strategy."""
    return keras.Variable(value, dtype=value.dtype.name, trainable=False, aggregation="only_first_replica", name=name)
