"""The weight constraints that hold pruned weights at zero, and let their masks grow along a schedule.

`Mask` and `MaskPool` are those of weights and channels alike; `PruningMask` and `WeightPool` say what is ranked where
weights or blocks go, `channel_masks` where channels do.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.keras_internals import moving_average_of, running_apply, updates_done
from tfopt.core.models import constraints
from tfopt.core.models.constraints import WeightConstraint
from tfopt.core.types import Schedule, Tensor
from tfopt.pruning.criteria import magnitude
from tfopt.pruning.patterns import kept_count
from tfopt.pruning.ranking import Rule
from tfopt.pruning.schedules import evaluate, latest

Masks = Callable[[Any], list[tf.Tensor]]  # a sparsity, or None, to masks


class Mask(WeightConstraint):
    """Keeps some weights of a variable at zero through every optimizer update; `pool` says when the mask changes."""

    makes_zeros = True
    pool: Any

    def bind(self, variable: keras.Variable) -> None:
        super().bind(variable)
        self.pool.join(self)

    def masked(self, value: Tensor) -> tf.Tensor:
        """The value with zeros in place of what is pruned."""
        raise NotImplementedError

    def __call__(self, value: Tensor) -> tf.Tensor:
        apply = running_apply()
        if apply is not None:
            self.pool.follow(apply, self, tf.convert_to_tensor(value))
            average = moving_average_of(apply.caller, self.variable)
            if average is not None:
                average.assign(self.masked(average))
        return self.masked(value)


M = TypeVar("M", bound=Mask)


class MaskPool(Generic[M]):
    """Masks that are ranked together and change in the same step.

    With a schedule, they follow the optimizer's count of updates: after update n, what TFMOT prunes at its
    `pruning_step` n is pruned here. Rules beyond TFMOT's:

    - After a resume in a new process (the step jumps forward) the masks are built again from the restored weights, at
      the sparsity the schedule had reached: the smallest are those that were zero, whatever the criterion.
    - Where the step starts again (`compile` once more, or the weights moved to another model), the schedule never
      makes the masks denser than they were.
    - The optimizer's moving average of the weights is masked too, so that `use_ema=True` ends sparse.

    Args:
        schedule: gives `(prune_now, sparsity)` for a step; None holds the masks as they are.
    """

    def __init__(self, schedule: Schedule | None):
        self.schedule = schedule
        self._joined: list[M] = []
        self._step = state_variable(np.int64(0), "mask_step")
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def join(self, mask: M) -> None:
        self._joined.append(mask)

    @property
    def members(self) -> list[M]:
        """The masks in force: not those that another `prune` has replaced or `strip` has taken off."""
        return [mask for mask in self._joined if constraints.find(mask.variable, type(mask)) is mask]

    def follow(self, apply: Any, caller: Mask, value: tf.Tensor) -> None:
        """Brings the masks up to the step that `apply` ends; on most steps a few scalar operations tell: nothing to do.

        An optimizer calls the constraints one after the other, when all variables are updated. The first one called
        acts for all.
        """
        if apply in self._seen:
            return
        self._seen.add(apply)
        step, seen = tf.cast(updates_done(apply.caller), tf.int64), self._step.value
        change = tf.logical_or(step > seen + 1, step < seen)
        if self.schedule is not None:
            due, _ = evaluate(self.schedule, step)
            change = tf.logical_or(change, tf.logical_and(due, step != seen))
        members = self.members
        state = self._state(members)
        new = tf.cond(
            change,
            lambda: self._next(
                members, [value if m is caller else constraints.under_own(m.variable) for m in members], step, seen
            ),
            lambda: _as_they_are(state),
        )
        for variable, changed in zip(state, new, strict=True):
            variable.assign(changed)
        for member in members:
            if not member.variable.trainable:  # the optimizer will not call it
                member.variable.assign(member.masked(member.variable))
        self._step.assign(step)

    def copy(self) -> MaskPool:
        """A pool that ranks alike and has no members yet."""
        raise NotImplementedError

    def carried(self, memo: dict) -> Any:
        """The one copy of this pool in `memo`, that of `WeightConstraint.carried`."""
        if id(self) not in memo:
            memo[id(self)] = self.copy()
        return memo[id(self)]

    def _state(self, members: list[M]) -> list[keras.Variable]:
        """What a step may change: the masks first."""
        raise NotImplementedError

    def _next(self, members: list[M], values: list[tf.Tensor], step: tf.Tensor, seen: tf.Tensor) -> list[tf.Tensor]:
        """The new `_state` at a step, for weights of these values; `seen` is the step before."""
        raise NotImplementedError

    def _masks_at(
        self, step: tf.Tensor, seen: tf.Tensor, masks: list[keras.Variable], rebuilt: Masks, grown: Masks
    ) -> list[tf.Tensor]:
        """The new masks at a step.

        Args:
            masks: as they are.
            rebuilt: gives masks from restored weights, at a sparsity, or for None as sparse as they are.
            grown: gives masks by the scores.
        """
        jumped, schedule = step > seen + 1, self.schedule
        if schedule is None:
            return tf.cond(jumped, lambda: rebuilt(None), lambda: _as_they_are(masks))
        due, sparsity = evaluate(schedule, step)
        has_pruned, before = tf.cond(
            jumped, lambda: latest(schedule, step - 1), lambda: (tf.constant(False), tf.constant(0.0))
        )
        sparsity = tf.where(due, sparsity, before)
        return tf.cond(
            has_pruned,
            lambda: rebuilt(sparsity),
            lambda: tf.cond(due, lambda: grown(sparsity), lambda: _as_they_are(masks)),
        )


class PruningMask(Mask):
    """Keeps single weights of a kernel, or blocks of them, at zero.

    Under a criterion that is not `dynamic` a pruned weight never comes back. Under magnitude one update may lift it
    above a kept one, as in TFMOT.

    Args:
        pool: the kernels that this one is ranked with; None for it alone, by magnitude, without a schedule.
        mask: boolean array of the kernel's shape; None for all True.
        scores: float32 array of the kernel's shape; None to take them from the weights.
    """

    def __init__(
        self, pool: WeightPool | None = None, mask: np.ndarray | None = None, scores: np.ndarray | None = None
    ):
        self.pool: WeightPool = WeightPool() if pool is None else pool
        self._initial = mask, scores

    def bind(self, variable: keras.Variable) -> None:
        super().bind(variable)
        mask, scores = self._initial
        self._initial = None, None
        self.mask = state_variable(np.ones(variable.shape, bool) if mask is None else np.asarray(mask), "mask")
        self.scores = None if scores is None else state_variable(np.asarray(scores), "mask_scores")
        self.ceiling = state_variable(np.int32(self.count()), "mask_ceiling")

    def carried(self, memo: dict) -> PruningMask:
        scores = None if self.scores is None else keras.ops.convert_to_numpy(self.scores)
        return PruningMask(self.pool.carried(memo), keras.ops.convert_to_numpy(self.mask), scores)

    def hold(self, mask: Tensor) -> None:
        """Sets the mask and zeroes the weights outside it."""
        self.mask.assign(mask)
        self.ceiling.assign(self.count())
        self.variable.assign(self.masked(self.variable))

    def count(self) -> tf.Tensor:
        """How many units the mask keeps."""
        units = self.pool.rule.pattern.pooled(tf.cast(self.mask.value, tf.float32))
        return tf.reduce_sum(tf.cast(units > 0, tf.int32))

    def masked(self, value: Tensor) -> tf.Tensor:
        value = tf.convert_to_tensor(value)
        return tf.where(self.mask.value, value, tf.zeros_like(value))


class WeightPool(MaskPool[PruningMask]):
    """Kernels whose units, single weights or blocks, are ranked together."""

    def __init__(self, rule: Rule | None = None):
        self.rule = Rule() if rule is None else rule
        super().__init__(self.rule.schedule)

    def copy(self) -> WeightPool:
        return WeightPool(self.rule)

    @property
    def units(self) -> int:
        return sum(self.rule.pattern.units(mask.variable.shape) for mask in self.members)

    def prune(self, sparsity: float | tf.Tensor) -> None:
        """Prunes all kernels together to a sparsity, now."""
        self._hold(kept_count(self.units, sparsity))

    def prune_below(self, threshold: float) -> None:
        """Prunes the units whose score is below the threshold, now."""
        members = self.members
        scores = self._scores(members, [tf.convert_to_tensor(mask.variable) for mask in members])
        kept = [tf.reduce_sum(tf.cast(self.rule.pattern.pooled(each) >= threshold, tf.int32)) for each in scores]
        self._hold(tf.add_n(kept))

    def _hold(self, kept: tf.Tensor) -> None:
        members = self.members
        values = [tf.convert_to_tensor(mask.variable) for mask in members]
        masks = self._by_score(members, values, [value != 0 for value in values], kept)
        for member, mask in zip(members, masks, strict=True):
            member.hold(mask)

    def _state(self, members: list[PruningMask]) -> list[keras.Variable]:
        return [*(m.mask for m in members), *(m.ceiling for m in members)]

    def _next(
        self, members: list[PruningMask], values: list[tf.Tensor], step: tf.Tensor, seen: tf.Tensor
    ) -> list[tf.Tensor]:
        masks = [m.mask for m in members]
        ceilings = [tf.where(step < seen, m.count(), m.ceiling.value) for m in members]

        def kept(sparsity: tf.Tensor | None) -> tf.Tensor:
            most = tf.add_n(ceilings)
            return most if sparsity is None else tf.minimum(kept_count(self.units, sparsity), most)

        def rebuilt(sparsity: tf.Tensor | None) -> list[tf.Tensor]:
            return self._by_size(values, kept(sparsity))

        def grown(sparsity: tf.Tensor | None) -> list[tf.Tensor]:
            alive = None if self.rule.criterion.dynamic else [mask.value for mask in masks]
            return self._by_score(members, values, alive, kept(sparsity))

        return [*self._masks_at(step, seen, masks, rebuilt, grown), *ceilings]

    def _by_size(self, values: list[tf.Tensor], kept: tf.Tensor) -> list[tf.Tensor]:
        """Masks that keep so many units, those of largest weights."""
        floors = [self.rule.floor(value.shape) for value in values]
        return self.rule.pattern.masks([magnitude(value) for value in values], kept, floors)

    def _by_score(
        self, members: list[PruningMask], values: list[tf.Tensor], alive: list[tf.Tensor] | None, kept: tf.Tensor
    ) -> list[tf.Tensor]:
        """Masks that keep so many units, those of highest score; units that are not alive come last."""
        if self.rule.by_magnitude and self.rule.criterion.dynamic:  # zeros come last by themselves
            return self._by_size(values, kept)
        if alive is not None:
            values = [tf.where(lives, value, tf.zeros_like(value)) for lives, value in zip(alive, values, strict=True)]
        floors = [self.rule.floor(value.shape) for value in values]
        return self.rule.pattern.masks(self._scores(members, values), kept, floors, alive)

    def _scores(self, members: list[PruningMask], values: list[tf.Tensor]) -> list[tf.Tensor]:
        """Scores of the kernels' weights, comparable between kernels."""
        criterion = self.rule.criterion
        scores = [
            tf.cast(criterion.score(value), value.dtype) if mask.scores is None else mask.scores.value
            for mask, value in zip(members, values, strict=True)
        ]
        if len(members) == 1 or criterion.comparable:
            return scores
        return [tf.math.divide_no_nan(score, tf.reduce_mean(tf.abs(score))) for score in scores]


def _as_they_are(variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
    return [tf.identity(variable.value) for variable in variables]


def state_variable(value: Any, name: str) -> keras.Variable:
    """A variable that is not saved with the model, equal on every replica of a `tf.distribute` strategy."""
    return keras.Variable(value, dtype=value.dtype.name, trainable=False, aggregation="only_first_replica", name=name)
