"""Every layer of Keras has a known behaviour in an 8-bit file; of those with integers, the file shows it."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import tfopt
from tfopt.core.layers.activations import activation_kind
from tfopt.core.layers.macs import layer_macs
from tfopt.core.layers.registry import Output, known_class, layers_named, record_of

# Layers that hold or call other layers, or compute in several steps: not one entry of the catalog.
OTHERWISE = layers_named(
    *("Layer", "Wrapper", "TimeDistributed", "Bidirectional", "RNN", "StackedRNNCells", "Pipeline"),
    *("LSTM", "GRU", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "SpectralNormalization"),
    *("MultiHeadAttention", "GroupQueryAttention", "Attention", "AdditiveAttention", "ReversibleEmbedding"),
    *("LayerNormalization", "GroupNormalization", "RMSNormalization", "UnitNormalization"),
)


def test_every_layer_of_keras_is_known():
    classes = {cls for cls in vars(kl).values() if isinstance(cls, type) and issubclass(cls, kl.Layer)}
    assert len(classes) > 140
    unknown = {cls.__name__ for cls in classes - set(OTHERWISE) if record_of(cls.__new__(cls)) is None}
    assert not unknown
    for cls in classes - set(OTHERWISE):
        record = record_of(cls.__new__(cls))
        assert record.output is not Output.FLOAT or record.reason, cls


def test_every_activation_of_keras_is_known():
    names = set(dir(keras.activations)) - {"get", "serialize", "deserialize"}
    names = {name for name in names if not name.startswith("_")}
    assert len(names) > 25
    assert not {name for name in names if activation_kind(getattr(keras.activations, name)) is None}


class Sized(kl.Dense):
    """Only made in another way."""

    def __init__(self, units=4, **kwargs):
        super().__init__(units, **kwargs)

    def get_config(self):
        return super().get_config()

    def describe(self):
        return "a method that Dense does not have"


class Halves:
    def call(self, inputs):
        return super().call(inputs) / 2


def with_own(base, **attributes):
    return type("Own", (base,), attributes)


OWN_MATHS = {
    "call": with_own(kl.Dense, call=lambda self, x: x),
    "build": with_own(kl.Dense, build=lambda self, shape: None),
    "a property": with_own(kl.Dense, kernel=property(lambda self: None)),
    "a hook": with_own(kl.Average, _merge_function=lambda self, inputs: inputs[0]),
    "the output's shape": with_own(kl.ReLU, compute_output_shape=lambda self, shape: shape),
    "a parent beside": type("Own", (Halves, kl.Dense), {}),
    "a parent's parent": type("Own", (with_own(kl.Dense, call=lambda self, x: x),), {}),
}


def test_a_subclass_that_changes_no_maths_is_its_parent():
    assert known_class(Sized) is kl.Dense
    assert record_of(Sized()) is record_of(kl.Dense(1))
    assert known_class(type("Again", (Sized,), {})) is kl.Dense


@pytest.mark.parametrize("what", OWN_MATHS)
def test_a_subclass_with_own_maths_is_unknown(what):
    assert known_class(OWN_MATHS[what]) is None


def test_registering_makes_a_subclass_known_and_keeps_its_parents_facts_where_the_maths_are_the_same():
    own = tfopt.register_layer(prunable=("kernel",), output="range")(with_own(kl.Dense, call=lambda self, x: x))
    assert known_class(own) is own
    assert record_of(own(2)).macs is None
    same = tfopt.register_layer(output="float", reason="it is wide")(with_own(kl.Dense))
    assert record_of(same(2)).macs is record_of(kl.Dense(2)).macs
    assert record_of(same(2)).prunable == ()


def test_one_decorator_says_all_of_a_layer():
    @tfopt.register_layer(kernels={"matrix": ()}, output="range", macs=lambda layer, inputs, outputs: 7)
    class Project(kl.Layer):
        pass

    assert layer_macs(Project(), [(None, 2)], [(None, 2)]) == 7
    tfopt.register_macs(Project)(lambda layer, inputs, outputs: 8)
    assert layer_macs(Project(), [(None, 2)], [(None, 2)]) == 8
    assert record_of(Project()).kernels == {"matrix": ()}


def activation(name):
    return lambda x: kl.Activation(name)(x)


FLAT = (8, 3)
# name: (what is called on the output of a convolution, the ops that compute in float in the file)
IMAGES = {
    **{
        name: (activation(name), ())
        for name in (
            *("linear", "relu", "relu6", "leaky_relu", "elu", "silu", "gelu", "hard_silu", "hard_sigmoid", "hard_tanh"),
            *("exponential", "sigmoid", "tanh", "softmax", "log_softmax"),
        )
    },
    "selu": (activation("selu"), ("MUL", "EXP", "SUB", "MUL", "SELECT")),
    "softplus": (activation("softplus"), ("EXP", "ADD", "LOG")),
    "softsign": (activation("softsign"), ("ABS", "ADD", "DIV")),
    "ReLU of 1": (kl.ReLU(1.0), ()),
    "ReLU with slope": (kl.ReLU(negative_slope=0.1), ()),
    "ReLU with threshold": (kl.ReLU(threshold=0.5), ()),
    "LeakyReLU": (kl.LeakyReLU(0.2), ()),
    "PReLU": (kl.PReLU("uniform", shared_axes=[1, 2]), ()),
    "ELU": (kl.ELU(), ()),
    "ELU of 2": (kl.ELU(2.0), ("ELU", "MUL", "SELECT")),
    "Softmax": (kl.Softmax(), ()),
    "MaxPooling2D": (kl.MaxPooling2D(2), ()),
    "AveragePooling2D": (kl.AveragePooling2D(3, 1, padding="same"), ()),
    "GlobalAveragePooling2D": (kl.GlobalAveragePooling2D(), ()),
    "GlobalMaxPooling2D": (kl.GlobalMaxPooling2D(), ()),
    "AdaptiveAveragePooling2D": (lambda x: layers_named("AdaptiveAveragePooling2D")[0](4)(x), ()),
    "AdaptiveMaxPooling2D": (lambda x: layers_named("AdaptiveMaxPooling2D")[0](4)(x), ()),
    "Resizing": (kl.Resizing(9, 9), ()),
    "UpSampling2D": (kl.UpSampling2D(), ()),
    "UpSampling2D, bilinear": (kl.UpSampling2D(interpolation="bilinear"), ()),
    "Rescaling": (kl.Rescaling(0.5, 1.0), ()),
    "Normalization": (kl.Normalization(mean=[0.1] * 4, variance=[2.0] * 4), ()),
    "Cropping2D": (kl.Cropping2D(1), ()),
    "CenterCrop": (kl.CenterCrop(4, 4), ()),
    "ZeroPadding2D": (kl.ZeroPadding2D(1), ()),
    "Permute": (kl.Permute((2, 1, 3)), ()),
    "RandomFlip": (kl.RandomFlip(), ()),
    "GaussianNoise": (kl.GaussianNoise(0.3), ()),
    "Conv2DTranspose": (kl.Conv2DTranspose(3, 3), ()),
    "DepthwiseConv2D": (kl.DepthwiseConv2D(3, depth_multiplier=2), ()),
    "Conv2D in groups": (kl.Conv2D(4, 3, groups=2, name="it"), ()),
    "Conv2D with elu": (kl.Conv2D(4, 3, activation="elu", name="it"), ()),
    "Conv2D with hard_sigmoid": (kl.Conv2D(4, 3, activation="hard_sigmoid", name="it"), ()),
    "Conv2D with softsign": (kl.Conv2D(4, 3, activation="softsign", name="it"), ("ABS", "ADD", "DIV")),
    "Add": (lambda x: kl.Add()([x, conv(x)]), ()),
    "Subtract": (lambda x: kl.Subtract()([x, conv(x)]), ()),
    "Multiply": (lambda x: kl.Multiply()([x, conv(x)]), ()),
    "Maximum": (lambda x: kl.Maximum()([x, conv(x)]), ()),
    "Minimum": (lambda x: kl.Minimum()([x, conv(x)]), ()),
    "Average": (lambda x: kl.Average()([x, conv(x)]), ()),
    "Average of 3": (lambda x: kl.Average()([x, conv(x), conv(x)]), ("ADD", "ADD", "MUL")),
    "Concatenate": (lambda x: kl.Concatenate()([x, conv(x)]), ()),
    "Dot": (lambda x: kl.Dot(2)([kl.Reshape((6, 24))(x), kl.Reshape((6, 24))(conv(x))]), ()),
    "slice": (lambda x: x[:, 1:4, :, :2], ()),
    "split": (lambda x: kl.Add()(ops.split(x, 2, axis=-1)), ()),
    "concatenate": (lambda x: ops.concatenate([x, x * 2], axis=1), ()),
    "division": (lambda x: x / (ops.relu(x) + 1.0), ()),
    "abs": (ops.absolute, ()),
    "clip": (lambda x: ops.clip(x, -0.5, 0.5), ()),
    "sum": (lambda x: ops.sum(x, axis=(1, 2)), ()),
    "matmul": (lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))), ()),
    "x * sigmoid(x)": (lambda x: x * ops.sigmoid(x), ()),
    "x * relu6(x + 3) / 6": (lambda x: x * ops.relu6(x + 3.0) / 6.0, ()),
    "ops.gelu": (ops.gelu, ()),
    "negative": (ops.negative, ("NEG",)),
    "variance": (lambda x: ops.var(x, axis=(1, 2)), ("MEAN", "SQUARED_DIFFERENCE", "MEAN")),
}
SEQUENCES = {
    "Conv1D": (kl.Conv1D(3, 3, name="it"), ()),
    "Conv1DTranspose": (kl.Conv1DTranspose(3, 3), ()),
    "DepthwiseConv1D": (kl.DepthwiseConv1D(3), ()),
    "MaxPooling1D": (kl.MaxPooling1D(2), ()),
    "AveragePooling1D": (kl.AveragePooling1D(2), ()),
    "UpSampling1D": (kl.UpSampling1D(2), ()),
    "GlobalAveragePooling1D": (kl.GlobalAveragePooling1D(), ()),
    "Dense": (kl.Dense(5, name="it"), ()),
}


# Their averages are rounded to the steps of what is averaged; the model has no range there.
ROUNDED_INSIDE = ("AveragePooling2D", "AdaptiveAveragePooling2D", "AveragePooling1D")


def conv(x):
    return (kl.Conv2D if len(x.shape) == 4 else kl.Conv1D)(4, 3, padding="same")(x)


def exported(build, shape, tmp_path):
    """(float ops of the file, mean difference from the quantized model in output steps, the warning)."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, kl.Dense(3)(kl.Flatten()(build(conv(inputs)))))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantized = tfopt.quantize(model)
    said = " ".join(str(warning.message) for warning in caught if "stay float" in str(warning.message))
    x = np.random.default_rng(0).normal(size=(16, *shape)).astype("float32")
    calibrated = tfopt.calibrate(quantized, x)
    file = tfopt.TFLiteModel(tfopt.export_tflite(calibrated, tmp_path / "m.tflite", data=x).path)
    moves = ("DEQUANTIZE", "RESHAPE")
    names = [op.name for op in file.op_types() if op.output_dtype == "float32" and op.name not in moves]
    difference = np.abs(file.predict(x) - calibrated(x, training=False).numpy()).mean() / file.output_steps()[0]
    return tuple(names), difference, said


@pytest.mark.parametrize("name", [*IMAGES, *SEQUENCES])
def test_the_file_computes_in_integers_or_the_warning_says_why_not(name, tmp_path):
    build, expected = {**IMAGES, **SEQUENCES}[name]
    names, difference, said = exported(build, (6, 6, 2) if name in IMAGES else FLAT, tmp_path)
    assert names == expected
    assert bool(said) == bool(expected)
    assert difference <= (2.0 if name in ROUNDED_INSIDE else 1.0)


def test_what_the_converter_gets_wrong_is_said_before():
    inputs = keras.Input((6, 6, 2))
    x = conv(inputs)
    model = keras.Model(inputs, kl.Dense(3)(kl.Flatten()(ops.stack([x, x * 2], axis=1))))
    with pytest.warns(UserWarning, match=r"'stack' \(Stack: .*concatenate"):
        tfopt.quantize(model)


def test_an_embedding_is_looked_up_in_integers(tmp_path):
    model = keras.Sequential([keras.Input((7,), dtype="int32"), kl.Embedding(10, 4), kl.Flatten(), kl.Dense(3)])
    x = np.random.default_rng(0).integers(0, 10, (16, 7))
    calibrated = tfopt.calibrate(tfopt.quantize(model), x)
    file = tfopt.TFLiteModel(tfopt.export_tflite(calibrated, tmp_path / "m.tflite", data=x).path)
    assert {op.name for op in file.op_types() if op.output_dtype == "float32"} == {"DEQUANTIZE"}
    np.testing.assert_allclose(file.predict(x), calibrated(x), atol=file.output_steps()[0])


def test_indices_that_are_computed_have_no_range(tmp_path):
    inputs = keras.Input((7,), dtype="int32", name="tokens")
    x = kl.Embedding(300, 4)(ops.maximum(inputs, 2) + 1)
    model = keras.Model(inputs, kl.Dense(3)(kl.Flatten()(x)))
    tokens = np.random.default_rng(0).integers(0, 290, (16, 7))
    calibrated = tfopt.calibrate(tfopt.quantize(model), tokens)
    assert [layer.name for layer in calibrated.layers if layer.name.endswith("_range")] == []
    np.testing.assert_allclose(calibrated(tokens), model(tokens), atol=0.02)
