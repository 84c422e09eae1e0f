"""`quantization_errors` and `suggest_float_layers`, against numpy."""

import json

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl
from quantized import quietly

import tfopt
from tfopt.quantization.fakequant import fake_quantize, fake_quantize_kernel


def chain(seed=0):
    layers = [kl.Dense(6, "relu", name=f"dense_{i}") for i in range(3)]
    model = keras.Sequential([keras.Input((4,), name="x"), *layers, kl.Dense(2, name="out")])
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        layer.kernel.assign(generator.normal(0, 0.7, layer.kernel.shape))
    return model


def with_a_bad_layer():
    """One weight of `dense_1` is so large that the step of 8 bits swallows the others; it meets a dead unit."""
    model = chain()
    first, second = model.get_layer("dense_0"), model.get_layer("dense_1")
    first.kernel.assign(first.kernel.numpy() * ([1] * 5 + [0]))
    second.kernel.assign(second.kernel.numpy() + 100.0 * (np.arange(6) == 5)[:, None])
    return model


def data(samples=64, seed=5):
    return np.random.default_rng(seed).normal(size=(samples, 4)).astype("float32")


def sqnr(want, got):
    want, got = np.asarray(want, float), np.asarray(got, float)
    return 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum())


def test_ratios_by_hand():
    model, x = chain(), data()
    quantized = tfopt.calibrate(tfopt.quantize(model), x, bias_correction=False)
    errors = tfopt.quantization_errors(quantized, x, batch_size=10)
    assert errors.samples == 64

    def rounded(layer, values):
        inner = quantized.get_layer(layer)
        outputs = values @ fake_quantize_kernel(inner.layer.kernel.numpy(), ()).numpy() + inner.layer.bias.numpy()
        outputs = np.maximum(outputs, 0) if layer != "out" else outputs
        return fake_quantize(outputs.astype("float32"), *inner.ranges()["output"].bounds()).numpy()

    exact, got = x, fake_quantize(x, *quantized.layers[0].ranges()["output"].bounds()).numpy()
    assert errors["x_range"].alone_db == pytest.approx(sqnr(exact, got), abs=0.01)
    for layer in model.layers:
        after = layer(exact).numpy()
        got = rounded(layer.name, got)
        assert errors[layer.name].alone_db == pytest.approx(sqnr(after, rounded(layer.name, exact)), abs=0.05)
        assert errors[layer.name].accumulated_db == pytest.approx(sqnr(after, got), abs=0.05)
        exact = after
    assert errors.output_db == pytest.approx(sqnr(exact, quantized(x)), abs=0.05)
    assert sorted(layer.position for layer in errors.layers) == list(range(5))


def test_the_bad_layer_comes_first_and_is_the_one_to_leave_in_float():
    model, x = with_a_bad_layer(), data()
    quantized = tfopt.calibrate(tfopt.quantize(model), x, bias_correction=False)
    errors = tfopt.quantization_errors(quantized, x)
    assert errors.layers[0].path == "dense_1"
    assert errors.layers[0].alone_db < errors.layers[1].alone_db - 10
    found = tfopt.suggest_float_layers(quantized, x, max_layers=1)
    assert found == {"dense_1": None}
    assert tfopt.suggest_float_layers(model, x, max_layers=1) == found
    better = tfopt.calibrate(tfopt.quantize(model, overrides=found), x, bias_correction=False)
    assert tfopt.quantization_errors(better, x).output_db > errors.output_db + 10
    aim = errors.output_db + 10
    assert tfopt.suggest_float_layers(quantized, x, target_db=aim) == found
    assert tfopt.suggest_float_layers(quantized, x, target_db=errors.output_db - 1) == {}


def test_a_target_out_of_reach_says_how_near_it_is():
    model, x = with_a_bad_layer(), data()
    quantized = tfopt.calibrate(tfopt.quantize(model), x)
    with pytest.raises(tfopt.TargetNotMetError, match="rise to"):
        tfopt.suggest_float_layers(quantized, x, target_db=200.0)
    most = tfopt.suggest_float_layers(quantized, x, max_layers=9)
    assert set(most) == {"dense_0", "dense_1", "dense_2", "out"}


def test_what_becomes_one_operation_is_one_row():
    model = zoo.build("residual")
    x = zoo.inputs_for(model)
    errors = tfopt.quantization_errors(tfopt.calibrate(tfopt.quantize(model), x), x)
    assert errors["stem"].layers == ("stem", "stem_bn", "stem_relu")
    assert errors["stem"] is errors["stem_relu"]
    assert errors["stem"].path == "stem_relu"
    assert errors["logits"].accumulated_db == errors.output_db
    assert errors["image_range"].layers == ()
    assert errors["depthwise"].alone_db > errors["depthwise"].accumulated_db


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_model_is_measured(name):
    model = zoo.build(name)
    x = zoo.inputs_for(model)
    quantized = tfopt.calibrate(quietly(model), x)
    before = zoo.state(quantized)
    errors = tfopt.quantization_errors(quantized, x)
    assert errors.samples == 16
    assert 10 < errors.output_db < 80
    assert all(layer.alone_db is None or layer.alone_db > 15 for layer in errors.layers)
    known = [layer.alone_db for layer in errors.layers if layer.alone_db is not None]
    assert known == sorted(known)
    suggested = tfopt.suggest_float_layers(quantized, x, max_layers=1)
    worst = next(layer for layer in errors.layers if layer.layers)
    assert tuple(suggested) == worst.layers
    quietly(model, overrides=suggested)
    for kept, now in zip(before, zoo.state(quantized), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_the_report_prints_shows_and_saves(tmp_path):
    quantized = tfopt.calibrate(tfopt.quantize(chain()), data())
    errors = tfopt.quantization_errors(quantized, data(seed=6), samples=32)
    text = str(errors)
    assert text.index(errors.layers[0].path) < text.index(errors.layers[-1].path)
    assert "32 samples" in text
    assert "<svg" in errors._repr_html_()
    assert len(errors.plot().axes[0].get_yticks()) == 5
    assert json.loads(errors.save(tmp_path / "e.json").read_text())["output_db"] == errors.output_db
    with pytest.raises(tfopt.InvalidArgumentError, match="'nope'.*dense_0"):
        errors["nope"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "neither"),
        ({"max_layers": 0}, "`max_layers`"),
        ({"max_layers": True}, "True"),
        ({"target_db": float("nan")}, "nan"),
        ({"target_db": "40"}, "'40'"),
    ],
)
def test_bad_wishes(options, says):
    with pytest.raises(tfopt.InvalidArgumentError, match=says):
        tfopt.suggest_float_layers(chain(), data(), **options)


def test_what_is_not_ready():
    with pytest.raises(tfopt.InvalidArgumentError, match="float model"):
        tfopt.quantization_errors(chain(), data())
    with pytest.raises(tfopt.InvalidArgumentError, match="x_range/output, "):
        tfopt.quantization_errors(tfopt.quantize(chain()), data())
    with pytest.raises(tfopt.NonFiniteError):
        tfopt.quantization_errors(tfopt.calibrate(tfopt.quantize(chain()), data()), data() * np.nan)
