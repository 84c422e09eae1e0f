"""Costs before training are those of the model after it."""

import threading

import keras
import numpy as np
import pytest
from keras import layers as kl

from tfopt.core.errors import InvalidArgumentError
from tfopt.tuner.costs import Costs, _measures_alone, file_figures, least_bytes
from tfopt.tuner.objective import as_constraints

X = np.random.default_rng(0).normal(size=(24, 8, 8, 1)).astype("float32")


def cnn():
    """Fresh: its biases are equal and zero."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            kl.Conv2D(8, 3, name="conv"),
            kl.BatchNormalization(name="bn"),
            kl.ReLU(),
            kl.Flatten(),
            kl.Dense(12, "relu", name="hidden"),
            kl.Dense(3, "softmax", name="head"),
        ]
    )


def test_the_file_of_the_trained_model_has_the_size_that_was_measured():
    model = cnn()
    before = [weight.numpy() for weight in model.weights]
    measure = Costs(["tflite_bytes"], (), X)
    figures, broken, excess = measure(model)
    assert (broken, excess) == (None, 0)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert figures["parameters"] == 8 * 9 + 8 + 4 * 8 + 288 * 12 + 12 + 12 * 3 + 3
    assert figures["macs"] >= 36 * 8 * 9 + 288 * 12 + 36
    assert figures["latency_ms"] > 0
    assert measure(cnn())[0] == figures  # not measured anew
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, np.arange(24) % 3, verbose=0)
    trained = file_figures(model, X)["tflite_bytes"]
    assert least_bytes(model) == 8 * 9 + 288 * 12 + 36 < trained
    assert abs(trained - figures["tflite_bytes"]) <= 0.01 * trained


def test_the_cheapest_constraint_is_looked_at_first():
    def broken(*constraints):
        return Costs((), as_constraints(constraints), None)(cnn())[1:]

    none, excess = broken("parameters <= 1e6", "macs <= 1e6")
    assert (none, excess) == (None, 0)
    constraint, excess = broken("tflite_bytes <= 1782", "parameters <= 1000")
    assert str(constraint) == "parameters <= 1,000"
    constraint, excess = broken("tflite_bytes <= 1782")
    assert (str(constraint), excess) == ("tflite_bytes <= 1,782", pytest.approx(3564 / 1782 - 1))


def test_unknown_macs_are_an_error_only_where_they_count():
    @keras.saving.register_keras_serializable("test_costs")
    class Odd(kl.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 2))

        def call(self, x):
            return x @ self.kernel

    model = keras.Sequential([keras.Input((4,)), Odd()])
    assert Costs((), (), None)(model)[0] == {"parameters": 8}
    with pytest.raises(InvalidArgumentError, match="MACs of each layer"):
        Costs(["macs"], (), None)(model)


def test_one_process_measures_files_at_a_time():
    order = []

    def other():
        with _measures_alone():
            order.append("other")

    thread = threading.Thread(target=other)
    with _measures_alone():
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
