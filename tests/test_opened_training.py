"""Opened models train: compiled by XLA, in mixed precision, and on replicas, as they do without."""

import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt

X = np.random.default_rng(0).normal(size=(32, 5, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 32)


class Steps(kl.Layer):
    """Recurrent steps, a normalization and a gain of its own."""

    def __init__(self, units=6, **kwargs):
        super().__init__(**kwargs)
        self.gru, self.norm = kl.GRU(units, return_sequences=True, name="gru"), kl.LayerNormalization(name="norm")

    def build(self, shape):
        self.gru.build(shape)
        self.norm.build((*shape[:-1], self.gru.units))
        self.gain = self.add_weight(shape=(self.gru.units,), initializer="ones", name="gain")
        self.built = True

    def call(self, x):
        return self.norm(self.gru(x)) * self.gain


class Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.steps, self.pool, self.head = Steps(name="steps"), kl.GlobalAveragePooling1D(), kl.Dense(3, name="head")

    def call(self, x):
        return self.head(self.pool(self.steps(x)))


def net(seed=0):
    keras.utils.set_random_seed(seed)
    model = Net()
    model(X[:1])
    return model


def quantized():
    return tfopt.quantize(net())


def distilled():
    return tfopt.Distiller(net(), net(1))


MADE = {"quantize": quantized, "Distiller": distilled}


def fitted(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, **options)
    return model.fit(X, Y, batch_size=16, epochs=3, shuffle=False, verbose=0).history["loss"]


@pytest.mark.parametrize("verb", MADE)
def test_xla_trains_the_same(verb):
    plain, compiled = MADE[verb](), MADE[verb]()
    before = [np.array(weight) for weight in plain.trainable_weights]
    np.testing.assert_allclose(fitted(compiled, jit_compile=True), fitted(plain, jit_compile=False), rtol=0.01)
    for old, one, other in zip(before, plain.trainable_weights, compiled.trainable_weights, strict=True):
        moved = np.abs(np.array(one) - old).max()
        assert moved > 0, one.path
        assert np.abs(np.array(other) - old).max() > 0, other.path
        assert np.abs(np.array(one) - np.array(other)).max() <= 0.1 * moved + 1e-4, one.path


@pytest.mark.parametrize("verb", MADE)
def test_mixed_precision_trains_nearly_the_same(verb):
    plain = fitted(MADE[verb](), jit_compile=False)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = MADE[verb]()
    finally:
        keras.config.set_dtype_policy("float32")
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}
    np.testing.assert_allclose(fitted(model, jit_compile=False), plain, rtol=0.02)


REPLICAS = textwrap.dedent(
    """
    import sys
    import keras, numpy as np, tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, sys.argv[1])
    from test_opened_training import MADE, fitted
    for verb, make in MADE.items():
        one = make()
        losses = [fitted(one)]
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            two = make()
            losses.append(fitted(two))
        if verb == "Distiller":  # ranges are those of each replica's part of a batch
            np.testing.assert_allclose(*losses, rtol=1e-4, err_msg=verb)
        assert losses[1][2] < losses[1][1] < losses[1][0], verb
        for weight in two.trainable_weights:
            assert np.array_equal(*(copy.numpy() for copy in weight.value.values)), weight.path
    """
)


def test_two_replicas_train_as_one():
    here = str(Path(__file__).resolve().parent)
    command = [sys.executable, "-c", REPLICAS, here]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
