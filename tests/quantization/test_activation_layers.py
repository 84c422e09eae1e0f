"""Activations that are functions of TensorFlow, or layers, are integers in the file as their twins of Keras are."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import tfopt
from tfopt.core.layers.activations import activation_kind

X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")

TWINS = {
    "relu": (tf.nn.relu, kl.ReLU()),
    "relu6": (tf.nn.relu6, kl.ReLU(6.0)),
    "leaky_relu": (tf.nn.leaky_relu, kl.LeakyReLU(0.2)),
    "silu": (tf.nn.silu, tf.nn.swish, kl.Activation("silu")),
    "gelu": (tf.nn.gelu, kl.Activation(tf.nn.gelu)),
    "elu": (tf.nn.elu, kl.ELU()),
    "sigmoid": (tf.sigmoid, tf.nn.sigmoid, tf.math.sigmoid),
    "tanh": (tf.tanh, tf.nn.tanh, tf.math.tanh),
    "exponential": (tf.exp, tf.math.exp),
    "softmax": (tf.nn.softmax, kl.Softmax()),
    "linear": (tf.identity,),
}
PAIRS = [(name, given) for name, twins in TWINS.items() for given in twins]


@pytest.mark.parametrize(("name", "given"), PAIRS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(PAIRS)])
def test_twins_compute_the_same(name, given):
    function = keras.activations.get(name)
    np.testing.assert_allclose(given(tf.constant(X)), function(X), rtol=1e-6, atol=1e-6)
    kind = activation_kind(given)
    assert kind.output == activation_kind(function).output
    assert kind.function in (function, given)


@pytest.mark.parametrize(
    "layer", [kl.ReLU(3.0), kl.ReLU(negative_slope=0.1), kl.ELU(0.5), kl.Softmax(axis=1), kl.PReLU()]
)
def test_layers_without_a_twin_are_unknown(layer):
    assert activation_kind(layer) is None


@pytest.mark.parametrize(
    "activation", [tf.nn.swish, tf.nn.elu, kl.LeakyReLU(0.1), kl.ReLU(6.0), kl.ELU(), kl.Activation("tanh")]
)
def test_integers_in_the_file(activation, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), kl.Dense(16, activation=activation, name="d"), kl.Dense(3)])
    want = model.predict(X, verbose=0)
    quantized = tfopt.calibrate(tfopt.quantize(model), X)
    tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=X)
    assert tfopt.TFLiteModel(tmp_path / "m.tflite").float_compute_ops() == ()
    assert np.abs(quantized.predict(X, verbose=0) - want).mean() < 0.05 * want.std()
    plain = tfopt.strip(tfopt.quantize(model))  # `calibrate` moves biases
    np.testing.assert_allclose(plain.predict(X, verbose=0), want, rtol=1e-5, atol=1e-6)
    assert type(plain.get_layer("d").activation) in (type(activation), type(keras.activations.tanh))
    if isinstance(activation, kl.Layer):
        assert plain.get_layer("d").activation is not model.get_layer("d").activation
        quantized.save(tmp_path / "m.keras")
        loaded = tfopt.load_model(tmp_path / "m.keras")
        np.testing.assert_array_equal(loaded.predict(X, verbose=0), quantized.predict(X, verbose=0))


def test_a_layer_with_weights_as_activation_stays_float():
    model = keras.Sequential(
        [keras.Input((8,)), kl.Dense(16, activation=kl.PReLU(alpha_initializer="ones")), kl.Dense(3)]
    )
    model.predict(X, verbose=0)
    quantized = tfopt.quantize(model)
    np.testing.assert_allclose(tfopt.strip(quantized).predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)
