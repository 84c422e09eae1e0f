"""Pruning schedules: objects called with the training step that give `(prune_now, sparsity)`.

TFMOT's `ConstantSparsity` and `PolynomialDecay` (Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878) are used as they
are; any callable with the same call serves as well.
"""

from __future__ import annotations

import tensorflow as tf

from tfopt.core.errors import InvalidArgumentError, first_line
from tfopt.core.types import Schedule, Tensor


def evaluate(schedule: Schedule, step: Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`(prune_now, sparsity)` at a step, as boolean and float32 scalars."""
    due, sparsity = schedule(step)
    return tf.cast(due, tf.bool), tf.cast(sparsity, tf.float32)


def latest(schedule: Schedule, step: Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether the schedule has pruned up to and including `step`, and the sparsity it asked for the last time.

    Used once after a training was resumed in a new process, to build the masks again.
    """
    last = tf.while_loop(
        lambda s: tf.logical_and(s >= 0, tf.logical_not(evaluate(schedule, s)[0])), lambda s: (s - 1,), (step,)
    )[0]
    return last >= 0, evaluate(schedule, tf.maximum(last, 0))[1]


def check_schedule(schedule: object) -> Schedule:
    """`schedule`, if it can be called with a symbolic step; raises what to do otherwise."""
    if not callable(schedule):
        raise InvalidArgumentError(
            "`schedule` is a callable that gives (prune_now, sparsity) for a training step.",
            received=repr(schedule),
            fix="Use `tfopt.PolynomialDecay(...)` or `tfopt.ConstantSparsity(...)`.",
        )
    try:
        traced = tf.function(lambda step: evaluate(schedule, step), autograph=False)
        _, sparsity = traced(tf.constant(0, tf.int64))
    except (TypeError, ValueError, tf.errors.OperatorNotAllowedInGraphError) as error:
        raise InvalidArgumentError(
            "`schedule(step)` has to give (prune_now, sparsity) for a tensor `step`, inside a compiled training step.",
            received=f"{type(error).__name__}: {first_line(error)}",
            fix="Write it with TensorFlow or `keras.ops` operations instead of Python `if`.",
        ) from error
    if not 0.0 <= float(sparsity) < 1.0:
        raise InvalidArgumentError(
            "The sparsity of a schedule lies in [0, 1).", received=f"{float(sparsity)} at step 0"
        )
    return schedule
