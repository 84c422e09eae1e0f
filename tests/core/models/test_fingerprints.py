"""Hashes of models: what computes the same has the same, what does not has another."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl

from tfopt.core.models.fingerprints import computation_fingerprint, fingerprint, model_fingerprint


def network(names=("a", "b", "c"), activation="relu", crossed=False, **options):
    x = keras.Input((4,), name="input")
    one, two = kl.Dense(4, activation, name=names[0], **options), kl.Dense(4, activation, name=names[1])
    h = one(x)
    h = two(x if crossed else h) + h
    model = keras.Model(x, kl.Dense(2, name=names[2])(h))
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
    return model


SAME = {
    "names": lambda: network(names=("x", "y", "z")),
    "names in another order": lambda: network(names=("b", "a", "c")),
    "what training uses": lambda: network(kernel_initializer="zeros", kernel_regularizer="l2", trainable=False),
}
OTHER = {
    "activation": lambda: network(activation="tanh"),
    "name and activation": lambda: network(names=("tanh", "b", "c"), activation="tanh"),
    "wiring": lambda: network(crossed=True),
    "dtype": lambda: network(dtype="mixed_float16"),
}


@pytest.mark.parametrize("case", SAME)
def test_what_computes_the_same(case):
    assert computation_fingerprint(SAME[case]()) == computation_fingerprint(network())


@pytest.mark.parametrize("case", OTHER)
def test_what_computes_something_else(case):
    assert computation_fingerprint(OTHER[case]()) != computation_fingerprint(network(names=("relu", "b", "c")))


@dataclasses.dataclass
class Block:
    rows: int


def raised(x, power):
    return x**power


@pytest.mark.parametrize(
    "make",
    [
        lambda number: Block(number),
        lambda number: functools.partial(raised, power=number),
        lambda number: b"text %d" % number,
        lambda number: np.array(["text", f"text {number}"], object),
    ],
)
def test_values_of_all_kinds_are_told_apart(make):
    assert fingerprint(make(1)) == fingerprint(make(1)) != fingerprint(make(2))


def test_weights_count():
    model = network()
    before = computation_fingerprint(model), model_fingerprint(model)
    model.layers[1].kernel.assign_add(np.eye(4) * 1e-6)
    assert computation_fingerprint(model) != before[0]
    assert model_fingerprint(model) != before[1]


def test_layer_names_count_in_the_fingerprint_of_a_model():
    assert model_fingerprint(network()) == model_fingerprint(network())
    assert model_fingerprint(network()) != model_fingerprint(network(names=("x", "y", "z")))


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_saved_model_has_the_same(name, tmp_path):
    model = zoo.build(name)
    model.save(tmp_path / "model.keras")
    assert computation_fingerprint(keras.models.load_model(tmp_path / "model.keras")) == computation_fingerprint(model)


def test_a_layer_without_config():
    class Scaled(kl.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, x):
            return x * 2

    models = [keras.Sequential([keras.Input((2,)), Scaled(np.ones(2)), kl.Dense(1)]) for _ in range(2)]
    assert computation_fingerprint(models[0]) != computation_fingerprint(models[1])
    models[1].set_weights(models[0].get_weights())
    assert computation_fingerprint(models[0]) == computation_fingerprint(models[1])


def test_arrays_of_the_same_bytes():
    bytes_ = np.arange(8, dtype="uint8")
    values = [bytes_, bytes_.reshape(2, 4), bytes_.view("int64"), [bytes_[:4], bytes_[4:]]]
    assert len({fingerprint(value) for value in values}) == 4
