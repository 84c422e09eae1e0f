"""The maths of the scheme against numpy and against TFMOT's own quantizers."""

import numpy as np
import pytest
import tensorflow as tf

from tfopt.interop.tfmot import tfmot
from tfopt.quantization import fakequant


def numpy_kernel(weights, axes):
    reduced = tuple(i for i in range(weights.ndim) if i not in [a % weights.ndim for a in axes])
    scale = np.abs(weights).max(axis=reduced, keepdims=True) / 127
    return np.where(scale == 0, 0, np.round(weights / np.where(scale == 0, 1, scale)) * scale)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((20, 30), ()),
        ((3, 3, 8, 16), (-1,)),
        ((3, 3, 8, 1), (-2, -1)),
        ((3, 3, 4, 2), (-2, -1)),
        ((5, 8, 6), (-1,)),
        ((2, 2, 2, 3, 4), (-1,)),
        ((3, 3, 5, 7), (-2,)),
        ((4, 5, 7), (-2,)),
    ],
)
def test_kernels_against_numpy(shape, axes):
    weights = np.random.default_rng(0).normal(size=shape).astype("float32")
    weights[..., 0] = 0.0 if len(axes) == 1 and axes[0] == -1 else weights[..., 0]
    ours = fakequant.fake_quantize_kernel(tf.constant(weights), axes).numpy()
    np.testing.assert_allclose(ours, numpy_kernel(weights, axes), atol=1e-6)


def test_gradient_passes_the_rounding():
    weights = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 2, 4)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        total = tf.reduce_sum(fakequant.fake_quantize_kernel(weights, (-1,)) * 2.0)
    np.testing.assert_array_equal(tape.gradient(total, weights), np.full((3, 3, 2, 4), 2.0))


class Owner:
    """What a TFMOT quantizer asks of a layer: a place for its variables."""

    def add_weight(self, name, initializer, trainable, shape=None):
        return tf.Variable(initializer(() if shape is None else shape), trainable=trainable, name=name)


@pytest.mark.parametrize("axes", [(-1,), ()])
def test_kernels_equal_tfmots(axes):
    quantizers = tfmot().quantization.keras.quantizers
    theirs = quantizers.LastValueQuantizer(num_bits=8, per_axis=bool(axes), symmetric=True, narrow_range=True)
    weights = tf.constant(np.random.default_rng(3).normal(size=(3, 3, 5, 6)), tf.float32)
    state = (
        theirs.build(weights.shape, "kernel", Owner())
        if not axes
        else {
            "min_var": tf.Variable(tf.fill([6], -6.0)),
            "max_var": tf.Variable(tf.fill([6], 6.0)),
        }
    )
    want = theirs(weights, True, weights=state)
    np.testing.assert_allclose(fakequant.fake_quantize_kernel(weights, axes), want, atol=1e-7)


def test_activations_and_their_moving_average_equal_tfmots():
    quantizers = tfmot().quantization.keras.quantizers
    theirs = quantizers.MovingAverageQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
    state = theirs.build(None, "output", Owner())
    low, high = tf.constant(-6.0), tf.constant(6.0)  # TFMOT's first range; ours comes from the first batch
    generator = np.random.default_rng(4)
    for _ in range(5):
        values = tf.constant(generator.normal(1.0, 2.0, size=(8, 10)), tf.float32)
        want = theirs(values, True, weights=state)
        low, high = fakequant.moving_range(low, high, *fakequant.observed_range(values))
        np.testing.assert_allclose([low, high], [state["min_var"].numpy(), state["max_var"].numpy()], rtol=1e-6)
        np.testing.assert_allclose(fakequant.fake_quantize(values, low, high), want, atol=1e-5)


def test_inputs_equal_tfmots_all_values_quantizer():
    quantizers = tfmot().quantization.keras.quantizers
    theirs = quantizers.AllValuesQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
    state = theirs.build(None, "input", Owner())
    low = high = tf.constant(0.0)
    generator = np.random.default_rng(4)
    for scale in (1.0, 3.0, 0.5):
        values = tf.constant(generator.normal(0.2, scale, size=(8, 10)), tf.float32)
        want = theirs(values, True, weights=state)
        low, high = fakequant.widest_range(low, high, *fakequant.observed_range(values))
        np.testing.assert_allclose([low, high], [state["min_var"].numpy(), state["max_var"].numpy()])
        np.testing.assert_allclose(fakequant.fake_quantize(values, low, high), want, atol=1e-6)


def test_ranges_hold_zero_and_never_collapse():
    low, high = fakequant.observed_range(tf.constant([2.0, 3.0]))
    assert (float(low), float(high)) == (0.0, 3.0)
    low, high = fakequant.observed_range(tf.constant([-2.0, -3.0]))
    assert (float(low), float(high)) == (-3.0, 0.0)
    low, high = fakequant.observed_range(tf.zeros(4))
    assert (float(low), float(high)) == (0.0, 1.0)
