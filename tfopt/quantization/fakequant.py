"""Arrays in, ranges and fake-quantized arrays out. All maths of the 8-bit scheme stands here, free of layers.

The scheme is the one of TFLite (Jacob et al. 2018, https://arxiv.org/abs/1712.05877) as TFMOT trains it
(`quantization/keras/quant_ops.py`): weights symmetric with a narrow range, [-127, 127]; activations asymmetric,
[-128, 127], zero always representable.
"""

import tensorflow as tf


def weight_range(weights, per_channel: bool):
    """Symmetric range of a kernel, `(min, max)`, scalars or one a channel of the last axis. No gradient passes.

    Example:
        >>> low, high = weight_range(tf.constant([[1.0, -3.0], [-2.0, 0.5]]), per_channel=True)
        >>> high.numpy().tolist(), low.numpy().tolist()
        ([2.0, 3.0], [-2.0, -3.0])
    """
    axes = list(range(len(weights.shape) - 1)) if per_channel else None
    high = tf.stop_gradient(tf.reduce_max(tf.abs(weights), axis=axes))
    return -high, high


def observed_range(values):
    """Range of a batch of activations, `(min, max)`, widened to hold zero; (0, 1) where all values are zero.

    Example:
        >>> [float(x) for x in observed_range(tf.constant([2.0, 5.0]))]
        [0.0, 5.0]
    """
    low = tf.minimum(tf.reduce_min(values), 0.0)
    high = tf.maximum(tf.reduce_max(values), 0.0)
    return tf.stop_gradient(low), tf.stop_gradient(tf.where(low == high, 1.0, high))


def fake_quantize(values, low, high, *, bits: int = 8, narrow: bool = False):
    """Rounds to the grid of `2**bits` (narrow: less one) steps over [low, high] and back; gradient 1 inside the range.

    Args:
        values: float32 tensor.
        low, high: scalars, or one a channel of the last axis.
        bits: 2 to 16.
        narrow: leaves out the lowest integer, so that a symmetric range has zero in its middle.

    Example:
        >>> fake_quantize(tf.constant([0.0, 0.26, 9.0]), 0.0, 1.0, bits=2).numpy().round(3).tolist()
        [0.0, 0.333, 1.0]
    """
    if len(getattr(low, "shape", ())) == 0:
        return tf.quantization.fake_quant_with_min_max_vars(values, low, high, num_bits=bits, narrow_range=narrow)
    channels = values.shape[-1]
    flat = values if len(values.shape) in (1, 2, 4) else tf.reshape(values, [-1, channels])
    flat = tf.quantization.fake_quant_with_min_max_vars_per_channel(flat, low, high, num_bits=bits, narrow_range=narrow)
    return flat if flat is values or len(values.shape) in (1, 2, 4) else tf.reshape(flat, values.shape)
