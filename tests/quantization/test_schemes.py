"""Every scheme from `quantize` to the numbers in the .tflite file."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl
from quantized import quietly

import tfopt
from tfopt.core.models.fake_quantized import FakeQuantized
from tfopt.core.models.graph import read
from tfopt.deploy.flatbuffer.read import read_ops, read_weights, schema
from tfopt.quantization import fakequant
from tfopt.quantization.floats import FloatLayer
from tfopt.quantization.layers import QuantizedLayer
from tfopt.quantization.schemes import SCHEMES, Choice, scheme_of


def tower(units=64):
    """Two kernels large enough to be worth packing, one convolution with batch normalization, one transposed."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 8)),
            kl.Conv2D(16, 3, use_bias=False, name="conv"),
            kl.BatchNormalization(name="bn"),
            kl.ReLU(),
            kl.Conv2DTranspose(8, 3, name="up"),
            kl.GlobalAveragePooling2D(),
            kl.Dense(units, "relu", name="wide"),
            kl.Dense(3, name="logits"),
        ],
        name="tower_net",
    )


def data_for(model, samples=8):
    shape = (samples, *model.input_shape[1:])
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def integers(content):
    """`{last part of the name: (integers, scales, axis, bits)}` of the kernels that the file stores packed."""
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    types = schema().TensorType
    bits = {types.INT2: 2, types.INT4: 4, types.INT8: 8}
    found = []
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if tensor.type in bits and data is not None and len(data) and len(tensor.shape) > 1:
                size, raw = bits[tensor.type], np.asarray(data, np.uint8)
                fields = np.stack([(raw >> s) & (2**size - 1) for s in range(0, 8, size)], -1).reshape(-1)
                values = fields[: int(np.prod(tensor.shape))].astype(int).reshape(tensor.shape)
                values[values >= 2 ** (size - 1)] -= 2**size
                axis = tensor.quantization.quantizedDimension
                found.append((values, np.asarray(tensor.quantization.scale), axis, size))
    return found


def exported(model, path, **options):
    export = tfopt.export_tflite(model, path / "model.tflite", **options)
    return export, (path / "model.tflite").read_bytes()


# The numbers


def test_kernels_in_n_bits_by_hand():
    kernel = tf.constant([[7.0, -1.0], [-3.4, 0.2], [0.4, 0.6]])
    assert fakequant.fake_quantize_kernel(kernel, (-1,), 4).numpy().ravel() == pytest.approx(
        [7.0, -1.0, -3.0, 1 / 7, 0.0, 4 / 7]
    )
    assert fakequant.fake_quantize_kernel(kernel, (-1,), 2).numpy().tolist() == [[7.0, -1.0], [0.0, 0.0], [0.0, 1.0]]
    assert fakequant.fake_quantize_kernel(kernel, (), 3).numpy().ravel() == pytest.approx(
        [7.0, 0.0, -7 * 1 / 3, 0.0, 0.0, 0.0], abs=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 1000))
def test_rounding_is_numpys_and_lets_gradients_pass(bits, seed):
    kernel = np.random.default_rng(seed).normal(size=(5, 3)).astype("float32")
    levels = 2 ** (bits - 1) - 1
    scale = np.abs(kernel).max(0) / levels
    variable = tf.Variable(kernel)
    with tf.GradientTape() as tape:
        rounded = fakequant.fake_quantize_kernel(variable, (-1,), bits)
        loss = tf.reduce_sum(rounded * 3.0)
    steps = kernel / scale
    off_ties = np.abs(steps - np.floor(steps) - 0.5) > 1e-3
    np.testing.assert_allclose(rounded.numpy()[off_ties], (np.rint(steps) * scale)[off_ties], atol=1e-6)
    assert max(len(np.unique(column)) for column in rounded.numpy().T) <= 2**bits - 1
    inside = np.abs(kernel) < np.abs(kernel).max(0)  # the edge of a range may lie an ulp within its largest weight
    np.testing.assert_array_equal(np.asarray(tape.gradient(loss, variable))[inside], 3.0)


def test_sixteen_bits_are_symmetric():
    low, high = fakequant.symmetric_range(-1.0, 2.0)
    values = tf.constant([2.0, -2.0, 0.0, 2 / 32767, 0.6 * 2 / 32767, 5.0])
    rounded = fakequant.fake_quantize(values, low, high, narrow=True, bits=16)
    assert rounded.numpy() == pytest.approx([2.0, -2.0, 0.0, 2 / 32767, 2 / 32767, 2.0], abs=1e-7)


def test_half_precision_passes_gradients():
    values = tf.Variable([1.0001, 1e-9, 7e4])
    with tf.GradientTape() as tape:
        rounded = fakequant.half_precision(values)
    assert rounded.numpy().tolist() == [1.0, 0.0, 65504.0]
    assert tape.gradient(rounded, values).numpy().tolist() == [1.0, 1.0, 1.0]


# The files


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_n_bits_reach_the_file(bits, tmp_path):
    model = tower()
    x = data_for(model)
    quantized = quietly(model, f"int{bits}_weight_only")
    export, content = exported(quantized, tmp_path, data=x)
    assert export.quantization == "weight_only"
    stored = min(size for size in (2, 4, 8) if size >= bits)
    kernels = integers(content)
    assert [size for *_, size in kernels] == [stored] * 4
    for values, scales, axis, _ in kernels:
        assert np.abs(values).max() == 2 ** (bits - 1) - 1  # the largest weight of a channel is at the end of the range
        assert len(scales) == values.shape[axis]
    wide = next(values * scales[:, None] for values, scales, *_ in kernels if values.shape == (64, 8))
    rounded = fakequant.fake_quantize_kernel(tf.constant(model.get_layer("wide").kernel), (-1,), bits)
    np.testing.assert_allclose(wide.T, rounded, atol=1e-6)
    # 1152 + 1152 + 512 + 192 weights; what else the file holds is under 8000 bytes.
    assert 3008 * stored / 8 < len(content) < 3008 * stored / 8 + 8000
    assert all(op.output_dtype == "float32" for op in read_ops(content))


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        *(("int16x8", name) for name in ("residual", "nested", "sequence")),
        *(("int4_weight_only", name) for name in ("shared", "mixed")),
        ("float16", "nested"),
    ],
)
def test_zoo_trains_saves_exports_and_strips(scheme, name, tmp_path):
    model = zoo.build(name)
    x = zoo.inputs_for(model)
    quantized = quietly(model, scheme)
    zoo.fit(quantized, x)
    quantized.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    for got, want in zip(zoo.predictions(loaded, x), zoo.predictions(quantized, x), strict=True):
        np.testing.assert_array_equal(got, want)
    export, content = exported(loaded, tmp_path, data=x)
    kind = "weight_only" if "weight" in scheme else scheme
    assert export.quantization == kind
    assert export.mean_difference <= export.tolerance
    dtypes = {op.input_dtype for op in read_ops(content)} | {weight.dtype for weight in read_weights(content)}
    assert {"int16x8": "int16", "float16": "float16", "weight_only": "float32"}[kind] in dtypes
    assert "int8" not in {op.input_dtype for op in read_ops(content)}
    plain = tfopt.strip(quantized)
    assert [type(layer) for _, layer in read(plain).layers] == [type(layer) for _, layer in read(model).layers]


def test_sixteen_bit_sums_do_not_overflow(tmp_path):
    model = keras.Sequential([keras.Input((4096,)), kl.Dense(1, kernel_initializer="ones", name="sum")])
    x = np.ones((2, 4096), "float32")
    calibrated = tfopt.calibrate(tfopt.quantize(model, "int16x8"), x)
    _, content = exported(calibrated, tmp_path, data=x)
    assert tfopt.TFLiteModel(content).predict(x).ravel() == pytest.approx([4096.0, 4096.0], rel=1e-3)


# Layers


def test_an_override_of_none_is_float_in_the_file(tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 4)), *(kl.Conv2D(8, 3, padding="same", name=n) for n in "abc")])
    x = data_for(model)
    for options in ({"overrides": {"b": None}}, {"exclude": "b"}):
        calibrated = tfopt.calibrate(tfopt.quantize(model, **options), x)
        _, content = exported(calibrated, tmp_path, data=x)
        ops = [(op.name, op.input_dtype) for op in read_ops(content)]
        assert [dtype for name, dtype in ops if name == "CONV_2D"] == ["int8", "float32", "int8"]
        assert not any(name == "CAST" for name, _ in ops)


@pytest.mark.parametrize("merge", [lambda a, b: a - b, lambda a, b: 0.3 * a - b * 0.7, keras.ops.maximum])
def test_ops_of_two_tensors_are_left_in_float(merge, tmp_path):
    inputs = keras.Input((6,))
    branches = [kl.Dense(4, name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, kl.Dense(3, name="last")(merge(*branches)))
    x = data_for(model)
    calibrated = tfopt.calibrate(tfopt.quantize(model, include="last"), x)
    calibrated.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(zoo.called(loaded, x), zoo.called(calibrated, x))
    _, content = exported(loaded, tmp_path, data=x)
    ops = [(op.name, op.input_dtype) for op in read_ops(content)]
    assert [dtype for name, dtype in ops if name == "FULLY_CONNECTED"] == ["float32", "float32", "int8"]
    assert {dtype for name, dtype in ops if name in ("SUB", "MUL", "MAXIMUM")} == {"float32"}


def test_weight_only_layers_in_an_int8_file(tmp_path):
    model = tower()
    x = data_for(model)
    quantized = quietly(model, overrides={"wide": "int4_weight_only", "conv": "int2_weight_only"})
    _, content = exported(tfopt.calibrate(quantized, x), tmp_path, data=x)
    bits = {values.shape: size for values, _, _, size in integers(content)}
    assert bits == {(16, 3, 3, 8): 2, (8, 3, 3, 16): 8, (64, 8): 4, (3, 64): 8}
    ops = [(op.name, op.input_dtype) for op in read_ops(content)]
    assert ("CONV_2D", "float32") in ops
    assert ("FULLY_CONNECTED", "float32") in ops
    assert ("FULLY_CONNECTED", "int8") in ops
    assert not {"MUL", "ADD", "CAST"} & {name for name, _ in ops}  # batch normalization is in the kernel


def test_bits_by_layer_and_the_last_match_wins(tmp_path):
    model = tower()
    quantized = quietly(
        model, "int8_weight_only", overrides={"*": "int4_weight_only", "up": "int2_weight_only", "conv": None}
    )
    kinds = {layer.name: layer.weight_only_bits for layer in quantized.layers if isinstance(layer, FloatLayer)}
    assert kinds == {"up": 2, "wide": 4, "logits": 4}
    _, content = exported(quantized, tmp_path)
    assert {values.shape: size for values, _, _, size in integers(content)} == {
        (8, 3, 3, 16): 2,
        (64, 8): 4,
        (3, 64): 4,
    }
    assert any(w.shape == (16, 3, 3, 8) and w.dtype == "float32" for w in read_weights(content))


def test_the_one_float_layer_that_the_converter_stores_in_8_bits_is_named():
    with pytest.warns(UserWarning, match="'up' in 8 bits"):
        tfopt.quantize(tower(), overrides={"up": "int4_weight_only"})


def test_nested_layers_by_path():
    quantized = quietly(zoo.build("nested"), overrides={"head/deep": "int4_weight_only", "block/inner": None})
    kinds = {path: type(layer).__name__ for path, layer in read(quantized).layers if isinstance(layer, FakeQuantized)}
    assert kinds["head/deep/inner"] == "FloatLayer"
    assert kinds["head/out"] == "QuantizedLayer"
    assert not isinstance(dict(read(quantized).layers)["block/inner"], QuantizedLayer)


# Refusals


def test_names_and_mixtures_that_cannot_be():
    model = tower()
    with pytest.raises(tfopt.InvalidArgumentError, match="'int16x8', 'float16', 'int8_weight_only'"):
        tfopt.quantize(model, "int4")
    with pytest.raises(tfopt.InvalidArgumentError, match=r"overrides\['conv'\]"):
        tfopt.quantize(model, overrides={"conv": "int1"})
    with pytest.raises(tfopt.InvalidArgumentError, match="'nope'"):
        tfopt.quantize(model, overrides={"nope": None})
    with pytest.raises(tfopt.InvalidArgumentError, match="is a dict"):
        tfopt.quantize(model, overrides=["conv"])
    for base, other in (("int8", "int16x8"), ("int16x8", "int8"), ("int4_weight_only", "int8"), ("int8", "float16")):
        with pytest.raises(tfopt.InvalidArgumentError, match="two kinds"):
            tfopt.quantize(model, base, overrides={"conv": other})
    with pytest.raises(tfopt.InvalidArgumentError, match="float16 file"):
        tfopt.quantize(model, "float16", exclude="conv")
    with pytest.raises(tfopt.InvalidArgumentError, match="where activations are"):
        tfopt.quantize(model, "int4_weight_only", learn_ranges=True)
    with pytest.raises(tfopt.InvalidArgumentError, match="8-bit activations"):
        tfopt.quantize(model, "int16x8", learn_ranges=True)


def test_what_the_file_cannot_hold_is_said_at_once():
    with pytest.warns(UserWarning, match="no 3-bit tensors.*4 bits a weight"):
        tfopt.quantize(tower(), "int3_weight_only")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfopt.quantize(tower(), "int4_weight_only")


def test_weight_only_models_have_nothing_to_calibrate(tmp_path):
    model = tower()
    for scheme in ("float16", "int4_weight_only"):
        with pytest.raises(tfopt.NothingToDoError, match="only weights"):
            tfopt.calibrate(quietly(model, scheme), data_for(model))
    with pytest.raises(tfopt.InvalidArgumentError, match="here weight_only"):
        tfopt.export_tflite(quietly(model, "int4_weight_only"), tmp_path / "m.tflite", "int8")
    with pytest.raises(tfopt.InvalidArgumentError, match="quantized so"):
        tfopt.export_tflite(model, tmp_path / "m.tflite", "int16x8")


@given(st.lists(st.tuples(st.sampled_from("ab*"), st.sampled_from([None, "int8", "int4_weight_only"])), max_size=4))
@settings(max_examples=20, deadline=None)
def test_the_last_override_counts(pairs):
    model = keras.Sequential([keras.Input((2,)), kl.Dense(2, name="a"), kl.Dense(2, name="b")])
    overrides = dict(pairs)
    choice = Choice(read(model), SCHEMES["int8"], overrides=overrides)
    for name in "ab":
        fitting = [value for pattern, value in overrides.items() if pattern in (name, "*")]
        want = (None if fitting[-1] is None else scheme_of(fitting[-1])) if fitting else SCHEMES["int8"]
        assert choice.of(name) == want
