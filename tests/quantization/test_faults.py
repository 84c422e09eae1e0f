"""Weights and data at the ends of what floats hold: a clear error, or a file that computes what the model does."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl

import tfopt

OVERFLOW = "has to be finite in float32"


def network():
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), kl.Conv2D(4, 3, activation="relu", name="conv"), kl.Flatten(), kl.Dense(3, name="out")]
    )
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.normal(0, 0.3, weight.shape))
    return model


def samples(count=16):
    return np.random.default_rng(1).uniform(-1, 1, (count, 6, 6, 2)).astype("float32")


def scaled(name, factor, *, bias=True):
    """The network with the kernel of a layer multiplied, its bias kept or zero."""
    model = network()
    layer = model.get_layer(name)
    layer.kernel.assign(layer.kernel * factor)
    if not bias:
        layer.bias.assign(np.zeros(layer.bias.shape))
    return model


def with_column(name, channel, factor):
    model = network()
    kernel = model.get_layer(name).kernel.numpy()
    kernel[..., channel] *= factor
    model.get_layer(name).kernel.assign(kernel)
    return model


def with_bias(name, values):
    model = network()
    model.get_layer(name).bias.assign(values)
    return model


def check_file(model, x, path, loss=0.02):
    """The file computes what the quantized model does, within a step, and that what the float model does."""
    ready = tfopt.calibrate(tfopt.quantize(model), x)
    export = tfopt.export_tflite(ready, path, data=x)
    file = tfopt.TFLiteModel(path)
    outputs, wanted, exact = (
        np.asarray(result, "float64") for result in (file.predict(x), zoo.called(ready, x), zoo.called(model, x))
    )
    assert np.isfinite(outputs).all()
    assert np.isfinite(export.mean_difference)
    assert np.isfinite(export.tolerance)
    assert np.abs(outputs - wanted).max() <= 1.01 * file.output_steps()[0]
    assert np.abs(wanted - exact).max() <= loss * np.abs(exact).max()


@pytest.mark.parametrize(
    "value", [0.0, 0.5, -0.5, 1e30, -1e30, 1e-30, 1e-40], ids=lambda value: f"activations of {value:g}"
)
def test_constant_data(value, tmp_path):
    check_file(network(), np.full((16, 6, 6, 2), value, "float32"), tmp_path / "m.tflite")


@pytest.mark.parametrize(
    "model",
    [
        lambda: with_column("conv", 1, 0.0),
        lambda: with_column("out", 1, 0.0),
        lambda: scaled("conv", 0.0),
        lambda: scaled("conv", 0.0, bias=False),
        lambda: scaled("out", 0.0),
        lambda: scaled("conv", 1e30),
        lambda: scaled("out", 1e30),
        lambda: scaled("conv", 3e37),
        lambda: with_column("conv", 1, 1e30),
        lambda: scaled("conv", 1e-30),
        lambda: scaled("conv", 1e-30, bias=False),
        lambda: scaled("out", 1e-30),
        lambda: scaled("out", 1e-36),
        lambda: with_column("conv", 1, 1e-30),
        lambda: with_column("conv", 1, 1e-40),
        lambda: with_bias("conv", [1e8, 0, 0, -1e8]),
        lambda: with_bias("conv", [1e30, 0, 0, -1e30]),
        lambda: with_bias("out", [1e12, 0, -1e12]),
    ],
    ids=[
        *("dead filter", "dead neuron", "dead convolution", "dead convolution, no bias", "dead output layer"),
        *("convolution of 1e30", "output layer of 1e30", "convolution of 3e37", "filter of 1e30"),
        *("convolution of 1e-30", "convolution of 1e-30, no bias", "output layer of 1e-30", "output layer of 1e-36"),
        *("filter of 1e-30", "filter of 1e-40", "bias of 1e8", "bias of 1e30", "output bias of 1e12"),
    ],
)
def test_weights_at_the_ends(model, tmp_path):
    check_file(model(), samples(), tmp_path / "m.tflite")


def test_all_layers_dead(tmp_path):
    model = network()
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    check_file(model, samples(), tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("model", "data", "place"),
    [
        (network, np.full((4, 6, 6, 2), 3e38, "float32"), "'conv'"),
        (network, np.full((4, 6, 6, 2), 1e300), "'conv'"),
        (lambda: scaled("conv", 1e38), samples(), "'out/output'"),
        (lambda: scaled("out", 1e30), 1e30 * samples(4), "'out'"),
    ],
    ids=["large data", "data beyond float32", "large weights", "large weights and data"],
)
def test_activations_beyond_float32(model, data, place):
    quantized = tfopt.quantize(model())
    with pytest.raises(tfopt.NonFiniteError, match=f"{OVERFLOW}.*{place}"):
        tfopt.calibrate(quantized, data)


@pytest.mark.parametrize("factor", [1e-12, 1e-30])
def test_outputs_too_small_for_litert(factor, tmp_path):
    """The converter would widen their range to 1e-6, and write a file of zeros."""
    ready = tfopt.calibrate(tfopt.quantize(scaled("out", factor, bias=False)), samples())
    with pytest.raises(tfopt.ExportError, match="no range narrower than 1e-06"):
        tfopt.export_tflite(ready, tmp_path / "m.tflite", data=samples())
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.parametrize(
    "data", [np.float32(1.0), [], {}, None, object(), lambda: None, np.zeros((4, 6, 6, 2), complex)]
)
def test_calibration_data_of_the_wrong_type(data):
    with pytest.raises(tfopt.InvalidArgumentError):
        tfopt.calibrate(tfopt.quantize(network()), data)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_value_in_a_later_batch(bad):
    x = samples(40)
    x[35, 1, 2, 0] = bad
    quantized = tfopt.quantize(network())
    before = [weight.numpy().copy() for weight in quantized.weights]
    with pytest.raises(tfopt.NonFiniteError, match="finite"):
        tfopt.calibrate(quantized, x, batch_size=8)
    for kept, weight in zip(before, quantized.weights, strict=True):
        np.testing.assert_array_equal(kept, weight.numpy())


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_batch_that_overflows_in_training_leaves_the_ranges(bad):
    quantized = tfopt.quantize(network())
    quantized(samples(), training=True)
    before = {layer.name: layer.ranges()["output"].bounds() for layer in quantized.layers if hasattr(layer, "ranges")}
    quantized(np.full((4, 6, 6, 2), bad, "float32"), training=True)
    after = {layer.name: layer.ranges()["output"].bounds() for layer in quantized.layers if hasattr(layer, "ranges")}
    assert after["conv"] == before["conv"]
    assert after["out"] == before["out"]


def test_training_with_dead_filters_and_tiny_weights_stays_finite():
    model = with_column("conv", 1, 1e-40)
    kernel = model.get_layer("conv").kernel.numpy()
    kernel[..., 0] = 0
    model.get_layer("conv").kernel.assign(kernel)
    quantized = tfopt.quantize(model)
    quantized.compile(keras.optimizers.SGD(0.05), "mse")
    history = quantized.fit(samples(), np.ones((16, 3)), epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert all(np.isfinite(weight.numpy()).all() for weight in quantized.weights)
