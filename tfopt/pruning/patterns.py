"""Which weights stay: scores in, boolean masks out."""

import tensorflow as tf


def kept_count(size: int, sparsity) -> tf.Tensor:
    """How many of `size` weights stay at a sparsity, at least one, as an int32 scalar.

    The rounding is that of TFMOT's `pruning_impl.py`, in double precision.

    Example:
        >>> int(kept_count(10, 0.75))
        2
    """
    kept = tf.round(tf.cast(size, tf.float64) * (1.0 - tf.cast(sparsity, tf.float64)))
    return tf.cast(tf.maximum(kept, 1.0), tf.int32)


def element_mask(scores, kept) -> tf.Tensor:
    """True at the `kept` highest scores, exactly so many: of equal scores the first in memory order stay.

    Args:
        scores: float tensor of any static shape.
        kept: int32 scalar.

    Example:
        >>> element_mask(tf.constant([[3.0, 1.0], [1.0, 1.0]]), 2).numpy().tolist()
        [[True, True], [False, False]]
    """
    order = tf.argsort(tf.reshape(scores, [-1]), direction="DESCENDING", stable=True)
    return tf.reshape(tf.math.invert_permutation(order) < kept, scores.shape)
