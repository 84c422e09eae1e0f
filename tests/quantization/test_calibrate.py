"""`calibrate`: methods, bias correction, batch-normalization statistics."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl
from quantized import quietly, ranges

import tfopt
from tfopt.core.models.graph import read
from tfopt.quantization import histogram
from tfopt.quantization.fakequant import fake_quantize_kernel


def image_model(use_bias=True, norm=True):
    inputs = keras.Input((8, 8, 2))
    x = kl.Conv2D(4, 3, use_bias=use_bias, name="a")(inputs)
    x = kl.BatchNormalization(name="a_bn")(x) if norm else x
    x = kl.ReLU(name="a_relu")(x)
    x = kl.DepthwiseConv2D(3, activation="relu", name="b")(x)
    x = kl.GlobalAveragePooling2D()(x)
    x = kl.Dense(5, "gelu", name="c")(x)
    model = keras.Model(inputs, kl.Dense(3, name="d")(x))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        shape = weight.shape
        weight.assign(
            generator.uniform(0.5, 1.5, shape) if "variance" in weight.path else generator.normal(0, 0.5, shape)
        )
    return model


def images(samples=48, seed=1):
    return np.random.default_rng(seed).normal(0.5, 1, (samples, 8, 8, 2)).astype("float32")


def mean_errors(quantized, model, x, names):
    """Mean output error of each layer, with kernels rounded and activations not: ranges are reset."""
    unrounded = keras.models.clone_model(quantized)
    unrounded.set_weights(quantized.get_weights())
    for _, layer in read(unrounded).layers:
        for part in getattr(layer, "ranges", dict)().values():
            part.reset()
    found = []
    for name in names:
        got, want = (keras.Model(m.inputs, m.get_layer(name).output)(x).numpy() for m in (unrounded, model))
        found.append((got - want).mean(axis=tuple(range(got.ndim - 1))))
    return np.concatenate(found)


def test_each_method_sets_the_range_it_says():
    x = np.random.default_rng(0).normal(size=(400, 3)).astype("float32")
    quantized = tfopt.quantize(keras.Sequential([keras.Input((3,), name="x"), kl.Dense(2)]))
    everything = np.sort(x.ravel()).astype(float), np.ones(x.size)
    bound = np.percentile(np.abs(x), 99, method="inverted_cdf")
    want = {
        "minmax": (x.min(), x.max()),
        "percentile": (max(x.min(), -bound), min(x.max(), bound)),
        "mse": histogram.mse_range(*everything),
    }
    for method, expected in want.items():
        found = ranges(tfopt.calibrate(quantized, x, method=method, percentile=99, batch_size=30))["x_range/output"]
        assert found == pytest.approx(expected, rel=1e-6)
    assert len(set(want.values())) == 3
    default = tfopt.calibrate(quantized, x)
    assert ranges(default)["x_range/output"] == pytest.approx(want["mse"], rel=1e-6)


def test_bias_correction_takes_the_shift_out_of_every_channel():
    model, x = image_model(), images(32)
    quantized = tfopt.quantize(model)
    plain, corrected = (tfopt.calibrate(quantized, x, bias_correction=flag) for flag in (False, True))
    before = [w.numpy() for w in quantized.weights]
    names = ["a_bn", "d"]
    wrong, left = (np.abs(mean_errors(m, model, x, names)) for m in (plain, corrected))
    assert wrong.max() > 1e-3
    assert left.max() < 1e-5
    kernels = [w.path for w in corrected.weights if w.path.endswith("kernel")]
    assert kernels
    for old, new in zip(quantized.weights, corrected.weights, strict=True):
        if old.path.endswith("kernel"):
            np.testing.assert_array_equal(old.numpy(), new.numpy())
    for old, new in zip(before, quantized.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_the_bias_of_a_dense_layer_by_hand():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(2, "relu", name="d")])
    kernel = np.array([[1.0, -0.3], [0.123, 0.77], [-0.456, 0.2]], "float32")
    bias = np.array([0.5, -0.25], "float32")
    model.set_weights([kernel, bias])
    x = np.random.default_rng(0).normal(1, 1, (20, 3)).astype("float32")
    rounded = fake_quantize_kernel(kernel, ()).numpy()
    corrected = tfopt.strip(tfopt.calibrate(tfopt.quantize(model), x))
    want = bias - (x @ (rounded - kernel)).mean(0)
    np.testing.assert_allclose(corrected.get_layer("d").bias.numpy(), want, atol=1e-6)
    assert np.abs(want - bias).max() > 1e-4


def test_without_a_bias_the_batch_normalization_behind_takes_it_and_else_it_is_said():
    x = images(32)
    model = image_model(use_bias=False)
    quantized = tfopt.quantize(model)
    corrected = tfopt.calibrate(quantized, x, bias_correction=True)
    assert np.abs(mean_errors(corrected, model, x, ["a_bn"])).max() < 1e-5
    assert np.abs(mean_errors(tfopt.calibrate(quantized, x, bias_correction=False), model, x, ["a_bn"])).max() > 1e-4
    alone = tfopt.quantize(image_model(use_bias=False, norm=False))
    with pytest.warns(UserWarning, match="Not corrected.*: a\\."):
        tfopt.calibrate(alone, x, bias_correction=True)


def test_corrections_do_not_depend_on_how_the_data_is_batched():
    quantized, x = tfopt.quantize(image_model()), images(40)
    for options in ({}, {"batch_norm": True}):
        one, other = (
            tfopt.calibrate(quantized, data, method="minmax", **options)
            for data in (x, iter([x[:7], x[7:11], (x[11:], None)]))
        )
        for a, b in zip(one.weights, other.weights, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_a_model_with_ranges_keeps_its_biases():
    quantized, x = tfopt.quantize(image_model()), images()
    once = tfopt.calibrate(quantized, x)
    again = tfopt.calibrate(once, x)
    for a, b in zip(once.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    with pytest.raises(tfopt.InvalidArgumentError, match="fresh from `quantize`"):
        tfopt.calibrate(once, x, bias_correction=True)


def test_batch_normalization_takes_the_statistics_of_the_data():
    model, x = image_model(), images(64)
    calibrated = tfopt.calibrate(tfopt.quantize(model), x, batch_norm=True, bias_correction=False)
    conv = calibrated.get_layer("a").layer
    kernel = fake_quantize_kernel(conv.kernel.numpy(), (-1,))
    outputs = keras.ops.conv(x, kernel, padding="valid").numpy() + conv.bias.numpy()
    norm = calibrated.get_layer("a_bn")
    np.testing.assert_allclose(norm.moving_mean.numpy(), outputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance.numpy(), outputs.var((0, 1, 2)), rtol=1e-4)
    assert not np.allclose(norm.moving_mean.numpy(), model.get_layer("a_bn").moving_mean.numpy(), atol=0.01)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_way_for_every_model(name):
    model = zoo.build(name)
    x, before = zoo.inputs_for(model), zoo.state(model)
    quantized = quietly(model)
    for options in ({"batch_norm": True}, {"method": "percentile", "percentile": 99.9, "bias_correction": False}):
        calibrated = tfopt.calibrate(quantized, x, **options)
        assert all(low < high and low <= 0 <= high for low, high in ranges(calibrated).values())
        outputs = zoo.predictions(calibrated, x)
        assert all(np.isfinite(output).all() for output in outputs)
    for kept, now in zip(before, zoo.state(model), strict=True):
        np.testing.assert_array_equal(kept, now)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "kl"}, "'mse', 'minmax', 'percentile'.*'kl'"),
        ({"method": "percentile", "percentile": 0}, "`percentile`"),
        ({"percentile": 101.0}, "101.0"),
        ({"percentile": True}, "True"),
        ({"bias_correction": "yes"}, "bias_correction"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(tfopt.InvalidArgumentError, match=says):
        tfopt.calibrate(tfopt.quantize(image_model()), images(2), **options)


@pytest.mark.parametrize("options", [{}, {"method": "minmax", "bias_correction": False}, {"bias_correction": False}])
def test_activations_beyond_float_are_an_error(options):
    model = keras.Sequential([keras.Input((2,)), kl.Dense(2, name="a"), kl.Dense(2, name="b")])
    for layer in model.layers:
        layer.kernel.assign(np.full((2, 2), 1e30))
    with pytest.raises(tfopt.NonFiniteError, match="first of '[ab](/output)?'"):
        tfopt.calibrate(tfopt.quantize(model), np.ones((4, 2), "float32"), **options)
