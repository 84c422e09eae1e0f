"""The weight constraint that holds pruned weights at zero, and lets the mask grow along a schedule."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.constraints import WeightConstraint
from tfopt.core.keras_internals import applying_optimizer, moving_average_of, updates_done
from tfopt.pruning.criteria import magnitude
from tfopt.pruning.patterns import element_mask, kept_count
from tfopt.pruning.schedules import Schedule, evaluate, latest_sparsity


class PruningMask(WeightConstraint):
    """Keeps the weights outside its mask at zero through every optimizer update.

    With a schedule, the mask follows the optimizer's count of updates: after update n, what TFMOT prunes at its
    `pruning_step` n is pruned here. Three rules beyond TFMOT's:

    - After a resume in a new process (the step jumps forward) the mask is built again from the restored weights, at
      the sparsity the schedule had reached.
    - Where the step starts again (`compile` once more, or the weights moved to another model), the schedule never
      makes the kernel denser than it was.
    - The optimizer's moving average of the weights is masked too, so that `use_ema=True` ends sparse.

    Args:
        schedule: gives `(prune_now, sparsity)` for a step; None holds the mask as it is.
        mask: boolean array of the kernel's shape; None for all True.
    """

    def __init__(self, schedule: Schedule | None = None, mask: np.ndarray | None = None):
        self.schedule = schedule
        self._initial = mask

    def bind(self, variable: keras.Variable) -> None:
        super().bind(variable)
        initial = np.ones(variable.shape, bool) if self._initial is None else np.asarray(self._initial)
        self.mask = _state(initial, "mask")
        self._step = _state(np.int64(0), "mask_step")
        self._ceiling = _state(np.int32(initial.sum()), "mask_ceiling")

    def carried(self) -> PruningMask:
        return PruningMask(self.schedule, keras.ops.convert_to_numpy(self.mask))

    def hold(self, mask: np.ndarray) -> None:
        """Sets the mask and zeroes the weights outside it."""
        self.mask.assign(mask)
        self._ceiling.assign(np.int32(np.sum(mask)))
        self.variable.assign(self._masked(self.variable))

    def __call__(self, value):
        optimizer = applying_optimizer()
        if optimizer is not None:
            self._follow(tf.cast(updates_done(optimizer), tf.int64), tf.convert_to_tensor(value))
            average = moving_average_of(optimizer, self.variable)
            if average is not None:
                average.assign(self._masked(average))
        return self._masked(value)

    def _masked(self, value):
        value = tf.convert_to_tensor(value)
        return tf.where(self.mask.value, value, tf.zeros_like(value))

    def _follow(self, step, value) -> None:
        """Brings the mask up to `step`; on most steps there is nothing to do, and a few scalar operations tell."""
        seen = self._step.value
        jumped, restarted = step > seen + 1, step < seen
        change = tf.logical_or(jumped, restarted)
        if self.schedule is not None:
            due, _ = evaluate(self.schedule, step)
            change = tf.logical_or(change, tf.logical_and(due, step != seen))
        mask, ceiling = tf.cond(
            change,
            lambda: self._changed(step, value, jumped, restarted),
            lambda: (tf.identity(self.mask.value), tf.identity(self._ceiling.value)),
        )
        self.mask.assign(mask)
        self._ceiling.assign(ceiling)
        self._step.assign(step)

    def _changed(self, step, value, jumped, restarted):
        """The new mask, and how many weights may be kept from now on."""
        mask, ceiling = self.mask.value, self._ceiling.value
        ceiling = tf.where(restarted, tf.reduce_sum(tf.cast(mask, tf.int32)), ceiling)
        if self.schedule is None:
            kept, update = ceiling, jumped
        else:
            due, sparsity = evaluate(self.schedule, step)
            sparsity = tf.cond(jumped, lambda: latest_sparsity(self.schedule, step), lambda: sparsity)
            kept = tf.minimum(kept_count(int(np.prod(value.shape)), sparsity), ceiling)
            update = tf.logical_or(due, jumped)
        return tf.cond(update, lambda: element_mask(magnitude(value), kept), lambda: tf.identity(mask)), ceiling


def _state(value, name: str) -> keras.Variable:
    """A variable that is not saved with the model, equal on every replica of a `tf.distribute` strategy."""
    return keras.Variable(value, dtype=value.dtype.name, trainable=False, aggregation="only_first_replica", name=name)
