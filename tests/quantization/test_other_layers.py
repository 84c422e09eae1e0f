"""Separable convolutions, EinsumDense, normalizations and 3-D convolutions in quantized models."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from quantized import file_outputs, float_ops, inputs_for, outputs_of, quietly, randomize

import tfopt
from tfopt.quantization.fakequant import fake_quantize_kernel

SEPARABLE = ["CONV_2D", "DEPTHWISE_CONV_2D"]
NORMALIZING = ["ADD", "MUL", "RSQRT", "SUB", "SUM"]


def chain(shape, *layers):
    return lambda: randomize(keras.Sequential([keras.Input(shape), *(make() for make in layers)]))


def between(layer):
    return chain((4, 6, 16), lambda: kl.Dense(16), layer, lambda: kl.Dense(4))


# name: (model, ops of the file besides moves of data, ops of it in float32)
CASES = {
    "separable": (
        chain(
            (8, 8, 3),
            lambda: kl.SeparableConv2D(6, 3, use_bias=False),
            kl.BatchNormalization,
            kl.ReLU,
            lambda: kl.SeparableConv2D(4, 3, 2, "same", depth_multiplier=2, activation="relu"),
        ),
        SEPARABLE,
        [],
    ),
    "separable_gelu": (chain((12, 3), lambda: kl.SeparableConv1D(6, 3, activation="gelu")), [*SEPARABLE, "GELU"], []),
    "separable_first": (
        chain((3, 8, 8), lambda: kl.SeparableConv2D(5, 3, dilation_rate=2, data_format="channels_first")),
        SEPARABLE,
        [],
    ),
    "einsum": (
        chain(
            (6, 8),
            lambda: kl.EinsumDense("abc,cde->abde", (6, 2, 3), bias_axes="e", activation="relu"),
            lambda: kl.EinsumDense("abde,fed->afb", (4, 6), bias_axes="f"),
        ),
        ["FULLY_CONNECTED"],
        [],
    ),
    "einsum_batch": (
        chain((6, 8), lambda: kl.EinsumDense("abc,bcd->abd", (6, 3), bias_axes="bd")),
        ["ADD", "BATCH_MATMUL"],
        [],
    ),
    "layer": (between(kl.LayerNormalization), ["FULLY_CONNECTED", *NORMALIZING, "SQUARED_DIFFERENCE"], None),
    "layer_axes": (
        between(lambda: kl.LayerNormalization(axis=(1, 3), center=False)),
        ["FULLY_CONNECTED", *NORMALIZING, "SQUARED_DIFFERENCE"],
        None,
    ),
    "group": (between(lambda: kl.GroupNormalization(4)), ["FULLY_CONNECTED", *NORMALIZING, "SQUARE"], None),
    "group_axis": (
        between(lambda: kl.GroupNormalization(2, axis=1, scale=False)),
        ["FULLY_CONNECTED", *NORMALIZING, "SQUARE"],
        None,
    ),
    "rms": (
        between(kl.RMSNormalization),
        ["FULLY_CONNECTED", "SQUARE", "MEAN", "ADD", "RSQRT", "MUL"],
        None,
    ),
    "unit": (between(kl.UnitNormalization), ["FULLY_CONNECTED", "L2_NORMALIZATION"], []),
}
MOVES = {"RESHAPE", "TRANSPOSE", "QUANTIZE", "DEQUANTIZE"}


def with_rounded_kernels(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    axes = {"kernel": (), "depthwise_kernel": (-2, -1), "pointwise_kernel": (-1,)}
    for layer in copy.layers:
        for name in axes:
            if hasattr(layer, name):
                getattr(layer, name).assign(fake_quantize_kernel(getattr(layer, name).numpy(), axes[name]))
    return copy


@pytest.mark.parametrize("name", CASES)
def test_model_and_file_compute_what_keras_does(name, tmp_path):
    build, ops, floats = CASES[name]
    model = build()
    x = inputs_for(model)
    quantized = quietly(model)
    if name != "unit":  # whose range is fixed, and at work from the start
        np.testing.assert_allclose(
            outputs_of(quantized, x)[0], outputs_of(with_rounded_kernels(model), x)[0], atol=5e-5
        )
    ready = tfopt.calibrate(quantized, x)
    tfopt.export_tflite(ready, tmp_path / "m.tflite", data=x)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert {op.name for op in file.op_types()} - MOVES == set(ops)
    assert float_ops(file) == (sorted(set(ops) - {"FULLY_CONNECTED"}) if floats is None else floats)
    got, want, exact = file_outputs(file, model, x)[0], outputs_of(ready, x)[0], outputs_of(model, x)[0]
    assert np.abs(got - want).mean() <= 0.3 * file.output_steps()[0]
    assert 10 * np.log10((exact**2).sum() / ((got - exact) ** 2).sum()) > 28
    assert [type(layer) for layer in tfopt.strip(ready).layers] == [type(layer) for layer in model.layers]


def test_ranges_between_the_two_convolutions_are_saved(tmp_path):
    model = CASES["separable"][0]()
    ready = tfopt.calibrate(quietly(model), inputs_for(model))
    found = [layer.ranges() for layer in ready.layers if "depthwise" in getattr(layer, "ranges", dict)()]
    assert len(found) == 2
    ready.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(outputs_of(loaded, inputs_for(model))[0], outputs_of(ready, inputs_for(model))[0])


def test_a_model_of_nothing_but_float_insides_is_refused():
    with pytest.raises(tfopt.NothingToDoError, match="mean and variance"):
        tfopt.quantize(chain((6, 4), kl.LayerNormalization)())


def test_unit_normalization_of_many_features_stays_float():
    model = chain((200,), kl.UnitNormalization, lambda: kl.Dense(3))()
    with pytest.warns(UserWarning, match="too coarse for more than 128 features"):
        tfopt.quantize(model)


# name: (what TimeDistributed holds, what does the same on the whole sequence)
INSIDE = {
    "layer_normalization": (kl.LayerNormalization, kl.LayerNormalization),
    "rms_normalization": (kl.RMSNormalization, kl.RMSNormalization),
    "einsum": (lambda: kl.EinsumDense("ab,bc->ac", 3), lambda: kl.Dense(3, use_bias=False)),
}


@pytest.mark.parametrize("name", INSIDE)
def test_time_distributed_around_layers_with_arithmetic_of_their_own(name):
    x = np.random.default_rng(0).normal(size=(32, 5, 4)).astype("float32")
    models = []
    for last in (kl.TimeDistributed(INSIDE[name][0]()), INSIDE[name][1]()):
        model = randomize(keras.Sequential([keras.Input((5, 4)), kl.Dense(4), last]))
        models.append(tfopt.calibrate(quietly(model), x, bias_correction=False))
    inside, whole = (outputs_of(model, x)[0] for model in models)
    np.testing.assert_allclose(inside, whole, atol=1e-6)
    assert len(np.unique(inside)) <= 256
    plain = tfopt.strip(models[0]).layers[-1]
    assert type(plain) is kl.TimeDistributed


def test_unit_normalization_inside_another_layer_stays_float_with_the_reason():
    model = keras.Sequential([keras.Input((5, 4)), kl.Dense(4), kl.TimeDistributed(kl.UnitNormalization())])
    with pytest.warns(UserWarning, match="UnitNormalization: inside another layer its number of features"):
        tfopt.quantize(model)
