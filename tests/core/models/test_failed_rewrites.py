"""A rewrite that fails leaves nothing behind in the process, and fails as an error of tfopt."""

import gc

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt
from tfopt.core.keras_internals import create_values, values_come_later
from tfopt.core.models.graph import read
from tfopt.core.models.rewrite import rewrite, untrained

X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")


def other():
    return keras.Sequential([keras.Input((6,)), kl.Dense(4, name="d"), kl.Dense(2)])


def convolutions():
    return keras.Sequential(
        [keras.Input((8, 8, 2)), kl.Conv2D(4, 3, padding="same", name="c"), kl.Flatten(), kl.Dense(2)]
    )


class Failing(kl.Layer):
    """Fails when it is called once more."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def call(self, x):
        self.calls += 1
        if self.calls > 1:
            raise KeyError("not twice")
        return x


def replaced(op, new):
    return lambda old, state: new() if old.name == op else None


def initializer_fails(shape, dtype=None):
    raise OSError("no such file")


CASES = {
    "a kernel that no number counts": lambda: tfopt.swap_kernel_size(convolutions(), 10**30 + 1),
    "a kernel that no memory holds": lambda: tfopt.swap_kernel_size(convolutions(), 10**8 + 1),
    "a width that no memory holds": lambda: tfopt.scale_width(other(), 1e12),
    "a width that no number counts": lambda: tfopt.scale_width(other(), 1e30),
    "an initializer": lambda: rewrite(
        read(other()), replaced("d", lambda: [kl.Dense(4, kernel_initializer=initializer_fails)])
    ),
    "values of another shape": lambda: rewrite(read(other()), values_of=lambda variable: np.zeros((3, 3))),
    "values that fail": lambda: rewrite(read(other()), values_of=lambda variable: 1 / 0),
    "shapes that do not fit": lambda: rewrite(read(other()), replaced("d", lambda: [kl.Conv2D(2, 3)])),
    "a call": lambda: rewrite(read(keras.Sequential([keras.Input((6,)), kl.Dense(3), Failing(), kl.Dense(2)]))),
}


@pytest.mark.parametrize("name", CASES)
def test_later_verbs_work(name, tmp_path):
    with pytest.raises(tfopt.TfoptError):
        CASES[name]()
    assert gc.isenabled()
    model = other()
    want = model.predict(X, verbose=0)
    np.testing.assert_array_equal(rewrite(read(model)).model.predict(X, verbose=0), want)
    assert untrained(read(model)).model.predict(X, verbose=0).shape == want.shape
    tfopt.prune(model, sparsity=0.5)
    tfopt.calibrate(tfopt.quantize(model), X)
    tfopt.export_tflite(model, tmp_path / "m.tflite")
    np.testing.assert_array_equal(model.predict(X, verbose=0), want)


def test_the_model_of_a_failed_rewrite_is_as_before():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, kl.Dense(2)(kl.Dense(4, name="d")(inputs)))
    counts = [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in model.layers]
    with pytest.raises(tfopt.UnsupportedModelError, match=r"at 'd'.*ValueError"):
        rewrite(read(model), replaced("d", lambda: [kl.Conv2D(2, 3)]))
    assert [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in model.layers] == counts


def test_variables_of_the_user_that_have_no_values_yet_stay():
    mine = kl.Dense(2)
    with values_come_later(mine):
        mine.build((None, 3))
    with pytest.raises(tfopt.TfoptError):
        CASES["values that fail"]()
    rewrite(read(other()))
    assert mine.kernel._value is None
    create_values()
    assert mine.kernel.numpy().shape == (3, 2)
