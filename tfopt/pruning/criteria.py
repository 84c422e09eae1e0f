"""Importance of weights: arrays in, scores of the same shape out; the lowest scores go first."""

import tensorflow as tf


def magnitude(weights):
    """Absolute value (Han et al. 2015, https://arxiv.org/abs/1506.02626; Zhu and Gupta 2017).

    Example:
        >>> magnitude(tf.constant([-2.0, 0.5])).numpy().tolist()
        [2.0, 0.5]
    """
    return tf.abs(weights)
