"""What an activation function is, is decided by the object."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import activations
from keras import layers as kl

from tfopt.core.layers.activations import activation_kind, applies, keeps_apart


def test_functions_known_by_other_names_compute_the_same():
    functions = {id(f): f for module in (activations, keras.ops, tf.nn, tf) for f in vars(module).values()}
    known = [(f, activation_kind(f)) for f in functions.values()]
    others = [(f, kind.function) for f, kind in known if kind is not None and f is not kind.function]
    assert len(others) > 28
    x = np.random.default_rng(0).normal(0, 4, (32, 6)).astype("float32")
    for other, function in others:
        np.testing.assert_allclose(other(x), function(x), rtol=1e-5, atol=1e-6, err_msg=str(other))


def relu(x):
    return keras.ops.maximum(x, 0.0) + 1.0


class Callable:
    __name__ = "relu"

    def __call__(self, x):
        return x

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash(activations.relu)


OWN = [relu, functools.partial(activations.relu, max_value=1), lambda x: x, Callable(), kl.PReLU(), keras.ops.gelu]


@pytest.mark.parametrize("function", OWN)
def test_own_functions_and_objects_are_unknown(function):
    assert activation_kind(function) is None
    assert not applies(kl.Dense(2, activation=function), activations.relu, activations.gelu)


def test_a_function_is_known_however_a_layer_was_given_it():
    for given in ("silu", "swish", activations.silu, keras.ops.silu, tf.nn.silu, tf.nn.swish):
        assert applies(kl.Dense(2, activation=given), activations.silu)
    assert not applies(kl.Flatten(), activations.linear)


def softplus(x):
    return x / (1.0 + keras.ops.sum(keras.ops.abs(x), -1, keepdims=True))


APART = {activations.mish: True, activations.glu: False, activations.sparsemax: False, relu: True, softplus: False}


@pytest.mark.parametrize(("function", "apart"), APART.items())
def test_what_keeps_channels_apart(function, apart):
    assert keeps_apart(function) is apart
