"""Arrays in, ranges and fake-quantized arrays out. All maths of the schemes stands here, free of layers.

The scheme is the one of TFLite (Jacob et al. 2018, https://arxiv.org/abs/1712.05877) as TFMOT trains it
(`quantization/keras/quant_ops.py`): weights symmetric with a narrow range, [-127, 127]; activations asymmetric,
[-128, 127], zero always representable. In 16 bits LiteRT has symmetric activations only, here narrow too,
[-32767, 32767].
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfopt.core.types import Tensor

EMA_DECAY = 0.999  # of the moving average of activation ranges, as in TFMOT
STEPS = 255  # of an activation's range in 8 bits
NARROWEST = 1e-35  # of a range: its 255th is still a normal float32, smaller ones become 0 in the processor


def weight_range(weights: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Symmetric range of a kernel, `(low, high)`: scalars, or one a channel of the last axis. No gradient passes.

    Weights too small to be rounded in float32 have the range (0, 0), in which they become zero.

    Example:
        >>> low, high = weight_range(tf.constant([[1.0, -3.0], [-2.0, 0.5]]), per_channel=True)
        >>> high.numpy().tolist(), low.numpy().tolist()
        ([2.0, 3.0], [-2.0, -3.0])
    """
    axes = list(range(len(weights.shape) - 1)) if per_channel else None
    high = tf.stop_gradient(tf.reduce_max(tf.abs(weights), axis=axes))
    high = tf.where(high < NARROWEST, 0.0, high)
    return -high, high


def observed_range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Range of a batch of activations, `(low, high)`, widened to hold zero; up to 1 where all are as good as zero.

    Example:
        >>> [float(x) for x in observed_range(tf.constant([2.0, 5.0]))]
        [0.0, 5.0]
    """
    low = tf.minimum(tf.reduce_min(values), 0.0)
    high = tf.maximum(tf.reduce_max(values), 0.0)
    return tf.stop_gradient(low), tf.stop_gradient(tf.where(high - low < NARROWEST, 1.0, high))


def moving_range(low: Tensor, high: Tensor, batch_low: Tensor, batch_high: Tensor) -> tuple[Tensor, Tensor]:
    """The range after one more batch: exponential moving average with TFMOT's decay; an unset (0, 0) takes the batch's.

    Example:
        >>> [round(float(x), 4) for x in moving_range(tf.constant(-1.0), tf.constant(1.0), -2.0, 1.0)]
        [-1.001, 1.0]
        >>> [float(x) for x in moving_range(tf.constant(0.0), tf.constant(0.0), -2.0, 1.0)]
        [-2.0, 1.0]
    """
    unset = is_unset(low, high)
    step = 1.0 - EMA_DECAY
    moved_low, moved_high = low - (low - batch_low) * step, high - (high - batch_high) * step
    return tf.where(unset, batch_low, moved_low), tf.where(unset, batch_high, moved_high)


def widest_range(low: Tensor, high: Tensor, batch_low: Tensor, batch_high: Tensor) -> tuple[Tensor, Tensor]:
    """The range that holds both: TFMOT's `AllValuesQuantizer`, used on model inputs and in calibration."""
    unset = is_unset(low, high)
    low, high = tf.where(unset, batch_low, low), tf.where(unset, batch_high, high)
    return tf.minimum(low, batch_low), tf.maximum(high, batch_high)


def first_range(low: Tensor, high: Tensor, batch_low: Tensor, batch_high: Tensor) -> tuple[Tensor, Tensor]:
    """The range as it is, and the batch's in place of an unset one: where the optimizer trains the range."""
    unset = is_unset(low, high)
    return tf.where(unset, batch_low, low), tf.where(unset, batch_high, high)


def symmetric_range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range around zero that holds both bounds, of floats or of tensors.

    Example:
        >>> symmetric_range(-3.0, 2.0)
        (-3.0, 3.0)
    """
    high = max(-low, high) if isinstance(low, float) else tf.maximum(-low, high)
    return -high, high


def is_unset(low: Tensor, high: Tensor) -> Tensor:
    """A range of zero width has seen no data; `observed_range` never gives one."""
    return tf.equal(low, high)


def fake_quantize(values: Tensor, low: Tensor, high: Tensor, *, narrow: bool = False, bits: int = 8) -> Tensor:
    """Rounds to 2^bits steps (narrow: one less) over [low, high] and back to float; the gradient is 1 inside the range.

    Args:
        values: float32 tensor, of rank 1, 2 or 4 for a range by channel.
        low, high: scalars, or one a channel of the last axis.
        narrow: leaves out the lowest integer, so that a symmetric range has zero in its middle.
        bits: 2 to 8, or 16.

    Example:
        >>> [round(float(value), 3) for value in fake_quantize(tf.constant([0.0, 0.21, 9.0]), 0.0, 1.0)]
        [0.0, 0.212, 1.0]
    """
    per_channel = len(getattr(low, "shape", ())) > 0
    rounding = tf.quantization.fake_quant_with_min_max_vars
    rounding = tf.quantization.fake_quant_with_min_max_vars_per_channel if per_channel else rounding
    return rounding(values, low, high, num_bits=bits, narrow_range=narrow)


@tf.custom_gradient
def fake_quantize_learned(values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Callable]:
    """`fake_quantize`, with the gradients of learned step size quantization for the bounds of the range.

    Rounding has the gradient of the identity (straight-through), so that with the step `s = (high - low) / 255` a
    value `v` that became `w` passes on `(w - v) / s` to `s`, a clipped one 1 to its bound. That is LSQ's gradient for
    a range from zero, and LSQ+'s for one that holds both signs; a bound of zero stays zero. LSQ trains the step, here
    the bounds are trained: the gradients are multiplied by 255^2, with which a plain gradient step moves them as far
    as LSQ moves 255 steps, and by LSQ's `1 / sqrt(255 n)`, with n values a sample.

    Args:
        values: float32 tensor, samples first.
        low, high: float32 scalars, `low <= 0 <= high` and `low < high`.

    Source: Esser et al. 2020, https://arxiv.org/abs/1902.08153, sections 2.1 and 2.2; Bhalgat et al. 2020 (LSQ+),
    https://arxiv.org/abs/2004.09576, section 3.1.

    Example:
        >>> high = tf.constant(255.0)
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(high)
        ...     rounded = fake_quantize_learned(tf.constant([[3.25, 300.0]]), tf.constant(0.0), high)
        >>> rounded.numpy().tolist(), round(float(tape.gradient(rounded, high)) / 255**1.5 * 2**0.5, 4)
        ([[3.0, 255.0]], 0.999)
    """
    rounded = fake_quantize(values, low, high)

    def gradient(upstream: Tensor) -> tuple:
        step = (high - low) / STEPS
        zero = tf.round(-low / step)
        above, below = values > (STEPS - zero) * step, values < -zero * step
        by_step = tf.where(
            tf.logical_or(above, below), 0.0, upstream * tf.math.divide_no_nan(rounded - values, high - low)
        )
        to_low = tf.reduce_sum(tf.where(below, upstream, -by_step))
        to_high = tf.reduce_sum(tf.where(above, upstream, by_step))
        features = tf.cast(tf.size(values) // tf.shape(values)[0], tf.float32)
        scale = STEPS**2 / tf.sqrt(STEPS * features)
        return (
            tf.where(tf.logical_or(above, below), 0.0, upstream),
            tf.where(low < 0, to_low * scale, 0.0),
            tf.where(high > 0, to_high * scale, 0.0),
        )

    return rounded, gradient


@tf.custom_gradient
def half_precision(values: Tensor) -> tuple[Tensor, Callable]:
    """The nearest half-precision floats, those out of reach clipped to the largest; the gradient is 1.

    Example:
        >>> half_precision(tf.constant([1.0001, 2049.0, 1e6])).numpy().tolist()
        [1.0, 2048.0, 65504.0]
    """
    largest = tf.float16.max
    return tf.cast(tf.cast(tf.clip_by_value(values, -largest, largest), tf.float16), tf.float32), tf.identity


def fake_quantize_kernel(kernel: Tensor, channel_axes: tuple[int, ...], bits: int = 8) -> Tensor:
    """A kernel rounded to symmetric, narrow integers, with one range for each index of its channel axes.

    Args:
        kernel: float32 tensor.
        channel_axes: `()` for one range over all, `(-1,)`, `(-2,)` (transposed convolution) or `(-2, -1)` (depthwise).
        bits: 2 to 8, of which `2^bits - 1` values are used; 16 for half-precision floats.

    Example:
        >>> fake_quantize_kernel(tf.constant([[127.0, 0.5], [3.4, -0.5]]), (-1,)).numpy().tolist()
        [[127.0, 0.5], [3.0, -0.5]]
        >>> fake_quantize_kernel(tf.constant([[3.0], [-1.4], [0.4]]), (-1,), bits=3).numpy().ravel().tolist()
        [3.0, -1.0, 0.0]
    """
    if bits == 16:
        return half_precision(kernel)
    if not channel_axes:
        return fake_quantize(kernel, *weight_range(kernel, False), narrow=True, bits=bits)
    rank = len(kernel.shape)
    last = [axis % rank for axis in channel_axes]
    order = [axis for axis in range(rank) if axis not in last] + last
    if order != list(range(rank)):
        back = [order.index(axis) for axis in range(rank)]
        swapped = fake_quantize_kernel(tf.transpose(kernel, order), tuple(range(-len(last), 0)), bits)
        return tf.transpose(swapped, back)
    channels = 1
    for axis in last:
        channels *= kernel.shape[axis]
    rows = tf.reshape(kernel, [-1, channels])
    return tf.reshape(fake_quantize(rows, *weight_range(rows, True), narrow=True, bits=bits), kernel.shape)
