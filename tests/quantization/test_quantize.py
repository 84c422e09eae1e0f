import warnings

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl
from quantized import quietly, ranges

import tfopt
from tfopt.core.models.fake_quantized import FakeQuantized
from tfopt.core.models.graph import read
from tfopt.quantization.layers import QuantizedLayer


@pytest.mark.parametrize("name", zoo.MODELS)
def test_trains_saves_resumes_and_strips(name, tmp_path):
    model = zoo.build(name)
    before, x = zoo.state(model), zoo.inputs_for(model)
    quantized = quietly(model)
    losses = zoo.fit(quantized, x, epochs=3).history["loss"]
    assert losses[-1] < losses[0]
    assert all(high > low and low <= 0 <= high for low, high in ranges(quantized).values())
    for kept, now in zip(before, zoo.state(model), strict=True):
        np.testing.assert_array_equal(kept, now)

    quantized.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    for got, want in zip(zoo.predictions(loaded, x), zoo.predictions(quantized, x), strict=True):
        np.testing.assert_array_equal(got, want)
    assert int(loaded.optimizer.iterations.numpy()) == 12
    zoo.fit(loaded, x)

    plain = tfopt.strip(quantized)
    assert [type(layer).__name__ for _, layer in read(plain).layers] == [
        type(layer).__name__ for _, layer in read(model).layers
    ]
    assert not any(isinstance(layer, FakeQuantized) for _, layer in read(plain).layers)
    assert sum(np.prod(w.shape) for w in plain.weights) == sum(np.prod(w.shape) for w in model.weights)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_names_and_outputs_are_kept(name):
    model = zoo.build(name)
    quantized = quietly(model)
    names = [path for path, _ in read(quantized).layers if not path.endswith("_range")]
    assert names == [path for path, _ in read(model).layers]
    assert getattr(quantized, "output_names", None) == getattr(model, "output_names", None)
    calibrated = tfopt.calibrate(quantized, zoo.inputs_for(model))
    x = zoo.inputs_for(model)
    for got, want in zip(zoo.predictions(calibrated, x), zoo.predictions(model, x), strict=True):
        assert np.abs(got - want).mean() < 0.05 * (want.max() - want.min())
        assert np.abs(got - want).max() > 0  # rounding is at work


def test_where_ranges_stand():
    model = zoo.build("residual")
    expected = {
        "image_range/output",
        "stem_relu/output",  # convolution, batch normalization and ReLU share one
        "depthwise/output",
        "pointwise/output",
        "sum_relu/output",  # addition and ReLU share one
        "alone_bn/output",
        "swish/output",
        "pool/output",
        "logits/output",
    }
    found = {path for path in ranges(tfopt.quantize(model)) if not path.startswith("multiply")}
    assert found == expected


def test_a_range_stands_on_both_sides_of_an_activation_the_file_does_not_fuse():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, "tanh", name="t"), kl.Dense(3, "gelu", name="g")])
    found = set(ranges(tfopt.quantize(model)))
    assert {"t/pre_activation", "g/pre_activation", "g/output"} <= found
    assert "t/output" not in found  # the runtime fixes the range of tanh


def test_first_batch_sets_the_range_and_later_ones_move_it():
    model = keras.Sequential([keras.Input((2,)), kl.Dense(1, use_bias=False, name="d")])
    model.layers[0].kernel.assign([[1.0], [0.0]])
    quantized = tfopt.quantize(model)
    quantized(np.array([[4.0, 0.0], [-2.0, 0.0]], "float32"), training=True)
    assert ranges(quantized)["d/output"] == pytest.approx((-2.0, 4.0), abs=0.05)
    high = ranges(quantized)["d/output"][1]
    quantized(np.array([[8.0, 0.0], [-2.0, 0.0]], "float32"), training=True)
    assert ranges(quantized)["d/output"][1] == pytest.approx(high + (8.0 - high) * 0.001, rel=1e-3)


def test_calibration_takes_the_widest_range_and_starts_anew():
    model = keras.Sequential([keras.Input((2,)), kl.Dense(1, use_bias=False, name="d")])
    model.layers[0].kernel.assign([[1.0], [0.0]])
    quantized = tfopt.quantize(model)
    x = np.array([[4.0, 0.0], [-2.0, 1.0], [9.0, 0.0]], "float32")
    calibrated = tfopt.calibrate(quantized, x, method="minmax", batch_size=1)
    assert ranges(calibrated)["d/output"] == (-2.0, 9.0)
    assert set(ranges(quantized).values()) == {(0.0, 0.0)}
    again = tfopt.calibrate(calibrated, x[:2], method="minmax")
    assert list(ranges(again).values())[-1] == (-2.0, 4.0)
    assert tfopt.calibrate(calibrated, x, samples=1) is not calibrated
    assert ranges(tfopt.calibrate(calibrated, x, method="minmax", samples=1))["d/output"] == (0.0, 4.0)


def test_calibration_shows_its_progress(capsys):
    model = zoo.build("sequential")
    tfopt.calibrate(tfopt.quantize(model), zoo.inputs_for(model), verbose=1)
    assert "calibrate" in capsys.readouterr().out


def test_evaluation_moves_nothing():
    model = zoo.build("residual")
    x = zoo.inputs_for(model)
    calibrated = tfopt.calibrate(tfopt.quantize(model), x)
    before = zoo.state(calibrated)
    calibrated.predict(x * 9, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, zoo.state(calibrated), strict=True))


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 2}, {"run_eagerly": True}], ids=str)
def test_compile_options_train_alike(options):
    model = zoo.build("residual")
    x = zoo.inputs_for(model)
    plain, other = tfopt.quantize(model), tfopt.quantize(model)
    zoo.fit(plain, x, epochs=2, optimizer=keras.optimizers.SGD(0.1))
    zoo.fit(other, x, epochs=2, optimizer=keras.optimizers.SGD(0.1), **options)
    for a, b in zip(plain.trainable_weights, other.trainable_weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-3)


def test_pruned_zeros_survive_quantization():
    model = zoo.build("residual")
    pruned = tfopt.prune(model, sparsity=0.75)
    zeros = [int((layer.kernel.numpy() == 0).sum()) for layer in pruned.layers if hasattr(layer, "kernel")]
    quantized = tfopt.quantize(pruned)
    zoo.fit(quantized, zoo.inputs_for(model), epochs=3)
    inner = [layer.layer for layer in quantized.layers if isinstance(layer, QuantizedLayer)]
    assert [int((layer.kernel.numpy() == 0).sum()) for layer in inner if hasattr(layer, "kernel")] == zeros
    assert sum(zeros) > 50


def test_layers_stay_float_by_choice_or_with_a_reason():
    model = zoo.build("residual")
    assert not isinstance(tfopt.quantize(model, exclude="logits").get_layer("logits"), QuantizedLayer)
    only = tfopt.quantize(model, include="logits")
    wrapped = [layer.name for layer in only.layers if isinstance(layer, QuantizedLayer)]
    assert wrapped == ["logits"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfopt.quantize(zoo.build("sequence"))  # recurrent layers and attention are integers
    odd = [kl.LSTM(4, recurrent_activation="hard_sigmoid", return_sequences=True, name=name) for name in ("a", "b")]
    with pytest.warns(UserWarning) as caught:
        tfopt.quantize(keras.Sequential([keras.Input((5, 3)), *odd, kl.Flatten(), kl.Dense(2)]))
    messages = [str(w.message) for w in caught if "stay float" in str(w.message)]
    assert len(messages) == 1
    assert "'a', 'b' (LSTM: " in messages[0]
    assert messages[0].count("(") == 1  # a reason that two layers share is given once


@pytest.mark.parametrize(
    ("arguments", "says"), [({"scheme": "int4"}, "int8"), ({"include": "nope"}, "'nope'"), ({"exclude": 1}, "exclude")]
)
def test_bad_arguments(arguments, says):
    with pytest.raises(tfopt.InvalidArgumentError, match=says):
        tfopt.quantize(zoo.build("sequential"), **arguments)


def test_nothing_to_do_and_nan():
    quantized = tfopt.quantize(zoo.build("sequential"))
    with pytest.raises(tfopt.NothingToDoError, match="strip"):
        tfopt.quantize(quantized)
    with pytest.raises(tfopt.NothingToDoError, match="Flatten|no layer"):
        tfopt.quantize(keras.Sequential([keras.Input((3, 3)), kl.Flatten()]))
    with pytest.raises(tfopt.NothingToDoError, match="exclude"):
        tfopt.quantize(zoo.build("sequential"), exclude="*")
    model = zoo.build("sequential")
    model.layers[0].kernel.assign(np.full((3, 3, 1, 4), np.inf))
    with pytest.raises(tfopt.NonFiniteError, match="conv/kernel"):
        tfopt.quantize(model)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (np.zeros((0, 12, 12, 1), "float32"), tfopt.InvalidArgumentError, "no sample"),
        (np.zeros((4, 9, 12, 1), "float32"), tfopt.InvalidArgumentError, "\\(4, 9, 12, 1\\)"),
        (np.full((4, 12, 12, 1), np.nan, "float32"), tfopt.NonFiniteError, "finite"),
        ("x.npz", tfopt.InvalidArgumentError, "str"),
        ({"other": np.zeros((4, 12, 12, 1))}, tfopt.InvalidArgumentError, "other"),
        (np.full((2, 12, 12, 1), "a"), tfopt.InvalidArgumentError, "numbers"),
    ],
    ids=["empty", "shape", "nan", "path", "name", "text"],
)
def test_bad_calibration_data(data, error, says):
    quantized = tfopt.quantize(zoo.build("sequential"))
    with pytest.raises(error, match=says):
        tfopt.calibrate(quantized, data)


def test_every_form_of_calibration_data_gives_the_same_ranges():
    import tensorflow as tf

    model = zoo.build("sequential")
    x = zoo.inputs_for(model, 10)
    y = np.zeros(10)
    quantized = tfopt.quantize(model)
    forms = [
        x,
        (x, y),
        {model._layers[0].name: x},
        tf.data.Dataset.from_tensor_slices((x, y)).batch(3),
        tf.data.Dataset.from_tensor_slices(x).batch(10),
        iter([x[:5], (x[5:], y[5:])]),
        x.tolist(),
    ]
    want = ranges(tfopt.calibrate(quantized, x))
    for form in forms:
        got = ranges(tfopt.calibrate(quantized, form))
        assert list(got) == list(want)
        np.testing.assert_allclose(list(got.values()), list(want.values()), atol=1e-6)
    with pytest.raises(tfopt.InvalidArgumentError, match="tfopt.quantize"):
        tfopt.calibrate(model, x)


@tfopt.register_layer(kernels={"matrix": ()}, output="range")
class Projection(kl.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 4), name="matrix")

    def call(self, x):
        return keras.ops.matmul(x, self.matrix)


def test_a_registered_layer_of_ones_own_is_quantized():
    model = keras.Sequential([keras.Input((6,)), Projection(name="mine")])
    x = zoo.inputs_for(model)
    layer = tfopt.calibrate(tfopt.quantize(model), x).get_layer("mine")
    scale = np.abs(model.layers[0].matrix.numpy()).max() / 127
    rounded = np.round(model.layers[0].matrix.numpy() / scale) * scale
    np.testing.assert_allclose(layer(x), x @ rounded, atol=0.02)


def test_a_nested_model_is_chosen_by_its_name():
    model = zoo.build("nested")
    only = tfopt.quantize(model, include="head")
    wrapped = {path for path, layer in read(only).layers if isinstance(layer, QuantizedLayer)}
    assert wrapped == {"head/deep/inner", "head/out"}
    others = tfopt.quantize(model, exclude="head")
    wrapped = {path for path, layer in read(others).layers if isinstance(layer, QuantizedLayer)}
    assert wrapped == {"first", "block/inner"}


@pytest.mark.parametrize(
    ("shape", "layer", "reason"),
    [
        ((8, 6), kl.UnitNormalization(axis=1, name="it"), "last axis only"),
        ((5, 5, 5, 2), kl.Conv3D(4, 3, name="it"), "3-D"),
    ],
    ids=["unit", "3-D"],
)
def test_what_litert_would_run_in_float_is_said_before_training(shape, layer, reason):
    model = keras.Sequential([keras.Input(shape), layer, kl.Flatten(), kl.Dense(2)])
    with pytest.warns(UserWarning, match=f"'it' .*{reason}"):
        quantized = tfopt.quantize(model)
    assert not isinstance(quantized.get_layer("it"), QuantizedLayer)
    assert "it/output" in ranges(quantized)  # the Dense layer behind it still reads integers


def test_ranges_of_frozen_layers_follow_the_data_too(tmp_path):
    base = keras.Sequential([keras.Input((6, 6, 2)), kl.Conv2D(4, 3), kl.BatchNormalization(), kl.ReLU()], name="base")
    base.trainable = False
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, kl.Dense(2)(kl.Flatten()(base(inputs, training=False))))
    x = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype("float32")
    quantized = tfopt.quantize(model)
    quantized.compile("sgd", "mse")
    quantized.fit(x, np.zeros((32, 2)), batch_size=32, verbose=0)
    inside = quantized.get_layer("base")
    low, high = np.asarray(inside.layers[-1].output_range.weight)
    assert (low, high) == pytest.approx((0, np.max(base(x))), rel=0.05)
    for new, old in zip(tfopt.strip(inside).get_weights(), base.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=x).path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_bfloat16"])
def test_models_of_other_floats_go_the_whole_road(dtype, tmp_path):
    layers = [kl.Dense(8, "relu", dtype=dtype), kl.Dense(2, dtype=dtype)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    wanted = np.asarray(model(x), "float32")
    quantized = tfopt.calibrate(tfopt.quantize(model), x)
    got = np.asarray(quantized(x), "float32")
    assert np.abs(got - wanted).mean() < 0.03 * np.ptp(wanted)
    file = tfopt.TFLiteModel(tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=x).path)
    assert np.abs(file.predict(x) - got).mean() <= 1.5 * file.output_steps()[0]
    rows = tfopt.compare({"float": model, "int8": file}, (x, wanted.argmax(-1)), verbose=0).rows
    assert rows[0].scores["accuracy"] == 1.0


@pytest.mark.parametrize("mode", ["int8", "float8"])
@pytest.mark.parametrize("verb", ["quantize", "prune", "cluster", "strip", "summary"])
def test_models_that_keras_has_quantized_are_refused(mode, verb):
    model = keras.Sequential([keras.Input((8,)), kl.Dense(4), kl.Dense(2)])
    model.quantize(mode)
    with pytest.raises(tfopt.UnsupportedModelError, match="quantized by Keras.*before Keras' `quantize`"):
        getattr(tfopt, verb)(model)
