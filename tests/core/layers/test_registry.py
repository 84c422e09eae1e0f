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
from tfopt.core.layers.registry import known_class, record_of


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
    assert known_class(same) is kl.Dense
    tfopt.register_macs(same)(lambda layer, inputs, outputs: 1)
    assert known_class(same) is known_class(type("Again", (same,), {})) is kl.Dense


def test_one_decorator_says_all_of_a_layer():
    @tfopt.register_layer(kernels={"matrix": ()}, output="range", macs=lambda layer, inputs, outputs: 7)
    class Project(kl.Layer):
        pass

    assert layer_macs(Project(), [(None, 2)], [(None, 2)]) == 7
    tfopt.register_macs(Project)(lambda layer, inputs, outputs: 8)
    assert layer_macs(Project(), [(None, 2)], [(None, 2)]) == 8
    assert record_of(Project()).kernels == {"matrix": ()}


# What a model says in several ops or with other arguments than in `tests/conformance`.
IMAGES = {
    "AveragePooling2D": kl.AveragePooling2D(3, 1, padding="same"),
    "concatenate": lambda x: ops.concatenate([x, x * 2], axis=1),
    "x * sigmoid(x)": lambda x: x * ops.sigmoid(x),
    "x * relu6(x + 3) / 6": lambda x: x * ops.relu6(x + 3.0) / 6.0,
}


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


@pytest.mark.parametrize("name", IMAGES)
def test_the_file_computes_in_integers(name, tmp_path):
    names, difference, said = exported(IMAGES[name], (6, 6, 2), tmp_path)
    assert not names
    assert not said
    assert difference <= (2.0 if name == "AveragePooling2D" else 1.0)  # it rounds to the steps of what it averages


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
