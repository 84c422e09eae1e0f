"""Patterns of a tf_keras model are TFMOT's own."""

import numpy as np
import pytest

import tfopt
from tfopt.interop import tfmot

tfmot.tfmot()
tf_keras = __import__("tf_keras")


def network():
    tf_keras.utils.set_random_seed(0)
    layers = [tf_keras.layers.Dense(8, input_shape=(12,), name="a"), tf_keras.layers.Dense(4, name="b")]
    return tf_keras.Sequential(layers)


def trained(model):
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(32, 12)).astype("float32")
    model.fit(x, x[:, :4], batch_size=8, verbose=0)
    return tfopt.strip(model)


@pytest.mark.parametrize("kind", ["at once", "scheduled"])
def test_groups(kind):
    schedule = tfopt.ConstantSparsity(0.5, begin_step=0) if kind == "scheduled" else None
    pruned = tfopt.prune(network(), schedule, pattern="2:4")
    if schedule is None:
        start = [layer.kernel.numpy() == 0 for layer in tfopt.strip(pruned).layers]
        assert [int(mask.sum()) for mask in start] == [48, 16]
    for layer in trained(pruned).layers:
        assert ((layer.kernel.numpy().T.reshape(-1, 4) == 0).sum(1) == 2).all()


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_blocks_are_those_of_keras_3(pooling):
    import keras

    pattern = tfopt.Block(4, 1, pooling)
    theirs = tfopt.strip(tfopt.prune(network(), sparsity=0.5, pattern=pattern))
    ours = keras.Sequential([keras.Input((12,)), keras.layers.Dense(8), keras.layers.Dense(4)])
    ours.set_weights(network().get_weights())
    for layer, twin in zip(theirs.layers, tfopt.prune(ours, sparsity=0.5, pattern=pattern).layers, strict=True):
        np.testing.assert_array_equal(layer.kernel.numpy(), twin.kernel.numpy())


def test_what_tfmot_cannot_do():
    for arguments in ({"scope": "global"}, {"threshold": 0.1}, {"criterion": np.square}, {"min_kept": 0.1}):
        with pytest.raises(tfopt.InvalidArgumentError, match="one by one, by magnitude"):
            tfopt.prune(network(), **arguments)
    convolution = tf_keras.Sequential([tf_keras.layers.Conv2D(4, 3, input_shape=(8, 8, 1))])
    with pytest.raises(tfopt.UnsupportedModelError, match="2-dimensional"):
        tfopt.prune(convolution, pattern="2x2")
