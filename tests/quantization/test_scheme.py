"""What is a user's own computes in float, as the model does, whatever it is called or inherits from."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from keras import ops

import tfopt
from tfopt.quantization.layers import QuantizedLayer


@keras.saving.register_keras_serializable("own")
def hard_sigmoid(x):
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


@keras.saving.register_keras_serializable("own")
def elu(x):
    return ops.where(x > 0, x, 3.0 * (ops.exp(x) - 1.0))


@keras.saving.register_keras_serializable("own")
def relu(x):
    return ops.maximum(x, -0.5)


@keras.saving.register_keras_serializable("own")
class WeightedAverage(kl.Average):
    def _merge_function(self, inputs):
        return 0.7 * inputs[0] + 0.3 * inputs[1]


@keras.saving.register_keras_serializable("own")
class Shifted(kl.Rescaling):
    def call(self, inputs):
        return super().call(inputs) + 2.0


@keras.saving.register_keras_serializable("own")
class Softer(kl.Dense):
    def call(self, inputs):
        return super().call(inputs) / (1.0 + ops.abs(super().call(inputs)))


@keras.saving.register_keras_serializable("own")
class Floored(kl.ReLU):
    def call(self, inputs):
        return super().call(inputs) + 0.25


OWN = {  # what it is called -> what is called on the input
    "hard_sigmoid": lambda x: kl.Activation(hard_sigmoid)(kl.Dense(8)(x)),
    "elu": lambda x: kl.Activation(elu)(kl.Dense(8)(x)),
    "relu": lambda x: kl.Dense(8, activation=relu)(x),
    "WeightedAverage": lambda x: WeightedAverage()([kl.Dense(8)(x), kl.Dense(8)(x)]),
    "Shifted": lambda x: Shifted(0.5)(kl.Dense(8)(x)),
    "Softer": lambda x: Softer(8)(x),
    "Floored": lambda x: Floored()(kl.Dense(8)(x)),
}


def built(make):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = np.random.default_rng(0).normal(0, 2, (256, 6)).astype("float32")
    return keras.Model(inputs, kl.Dense(3)(make(kl.Dense(6)(inputs)))), x


@pytest.mark.parametrize("name", OWN)
def test_the_file_computes_what_is_the_users_own(name, tmp_path):
    model, x = built(OWN[name])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quantized = tfopt.quantize(model)
    # A function stays float, and is named; a class is opened, and its inside is quantized.
    assert ("stay float" in " ".join(str(warning.message) for warning in said)) == name.islower()
    calibrated = tfopt.calibrate(quantized, x)
    file = tfopt.TFLiteModel(tfopt.export_tflite(calibrated, tmp_path / "m.tflite", data=x).path)
    expected = model.predict(x, verbose=0)
    assert np.abs(file.predict(x) - expected).mean() < 2 * file.output_steps()[0]


def test_a_subclass_that_is_only_made_otherwise_runs_as_integers():
    @keras.saving.register_keras_serializable("own")
    class Eight(kl.Dense):
        def __init__(self, units=8, **kwargs):
            super().__init__(units, **kwargs)

    model, _ = built(lambda x: Eight(activation="relu", name="eight")(x))
    assert isinstance(tfopt.quantize(model).get_layer("eight"), QuantizedLayer)


def test_what_the_user_says_of_a_subclass_counts_more_than_its_parent():
    @tfopt.register_layer(output="float", reason="it shall be exact")
    class Exact(kl.LSTM):
        pass

    model = keras.Sequential([keras.Input((4, 3)), Exact(5), kl.Dense(2)])
    with pytest.warns(UserWarning, match="Exact: it shall be exact"):
        tfopt.quantize(model)


def test_the_way_out_for_an_own_function_works():
    """In an `Activation` layer behind the kernel, only the activation stays float."""
    model, _ = built(lambda x: kl.Activation(relu, name="own")(kl.Dense(8, name="dense")(x)))
    with pytest.warns(UserWarning, match="stay float: 'own'"):
        quantized = tfopt.quantize(model)
    assert isinstance(quantized.get_layer("dense"), QuantizedLayer)


def test_functions_of_tensorflow_that_keras_has_too_run_as_integers():
    model, _ = built(lambda x: kl.Dense(8, activation=tf.nn.relu, name="dense")(x))
    quantized = tfopt.quantize(model).get_layer("dense")
    assert isinstance(quantized, QuantizedLayer)
    assert quantized.activation is None  # it is part of the kernel's operation


def test_an_own_gate_of_an_lstm_is_named():
    model = keras.Sequential([keras.Input((4, 3)), kl.LSTM(5, recurrent_activation=hard_sigmoid), kl.Dense(2)])
    with pytest.warns(UserWarning, match="no integer 'hard_sigmoid'"):
        tfopt.quantize(model)


def test_activations_with_float_steps_come_back_as_the_very_function():
    model, x = built(lambda x: kl.Dense(8, activation="softsign", name="dense")(x))
    with pytest.warns(UserWarning, match="softsign"):
        quantized = tfopt.quantize(model)
    assert quantized.get_layer("dense").activation is keras.activations.softsign
    assert quantized.get_layer("dense").layer.activation is keras.activations.linear
    stripped = tfopt.strip(quantized)
    assert stripped.get_layer("dense").activation is keras.activations.softsign
    np.testing.assert_allclose(stripped(x), model(x), atol=1e-5)
