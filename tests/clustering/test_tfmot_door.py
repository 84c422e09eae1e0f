"""A tf_keras model is clustered and stripped by TFMOT itself."""

import numpy as np
import pytest

import tfopt
from tfopt.interop import tfmot

api = tfmot.tfmot().clustering.keras
tf_keras = __import__("tf_keras")
layers = tf_keras.layers


def network():
    tf_keras.utils.set_random_seed(0)
    return tf_keras.Sequential(
        [
            layers.Conv2D(6, 3, input_shape=(8, 8, 2), name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flatten"),
            layers.Dense(5, name="dense"),
        ]
    )


def distinct(model):
    return {layer.name: len(np.unique(layer.kernel.numpy())) for layer in model.layers if hasattr(layer, "kernel")}


def trained(model):
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 2)).astype("float32")
    model.fit(x, x[:, 0, :5, 0], batch_size=8, verbose=0)
    return model


def test_clusters_are_tfmots_and_stay_through_fit_and_strip():
    model = network()
    before = model.get_weights()
    ours = tfopt.strip(tfopt.cluster(model, 4, init="linear"))
    theirs = api.strip_clustering(api.cluster_weights(network(), 4, api.CentroidInitialization.LINEAR))
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    plain = tfopt.strip(trained(tfopt.cluster(model, 4)))
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    assert all(2 <= count <= 4 for count in distinct(plain).values())
    assert not np.array_equal(plain.get_weights()[0], before[0])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_layers_dict_channels_and_zeros():
    model = network()
    assert distinct(tfopt.strip(tfopt.cluster(model, 4, include="conv", init="linear"))) == {"conv": 4, "dense": 1080}
    assert distinct(tfopt.strip(tfopt.cluster(model, {"dense": 3, "c*": 5}, init="linear"))) == {"conv": 5, "dense": 3}
    by_channel = tfopt.strip(tfopt.cluster(model, 4, init="linear", per_channel=True))
    assert distinct(by_channel) == {"conv": 24, "dense": 4}
    pruned = tfopt.strip(tfopt.prune(model, sparsity=0.8))
    clustered = tfopt.strip(trained(tfopt.cluster(pruned, 6)))
    for name in ("conv", "dense"):
        kernel, held = clustered.get_layer(name).kernel.numpy(), pruned.get_layer(name).kernel.numpy()
        assert (kernel[held == 0] == 0).all()
        assert len(np.unique(kernel)) <= 6


def test_errors():
    clustered = tfopt.cluster(network(), 4)
    with pytest.raises(tfopt.NothingToDoError, match="clustered"):
        tfopt.cluster(clustered, 4)
    with pytest.raises(tfopt.NothingToDoError, match="pruned"):
        tfopt.cluster(tfopt.prune(network(), sparsity=0.5), 4)
    with pytest.raises(tfopt.UnsupportedModelError, match="clustering and pruning wrappers"):
        tfopt.quantize(clustered)
    with pytest.raises(tfopt.NothingToDoError, match="none for TFMOT"):
        tfopt.cluster(network(), 4, include="bn")
    with pytest.raises(tfopt.InvalidArgumentError, match="'nope'"):
        tfopt.cluster(network(), {"nope": 4})
    with pytest.raises(tfopt.InvalidArgumentError, match="at least 2"):
        tfopt.cluster(network(), 1)
    broken = network()
    broken.layers[0].bias.assign([np.nan] * 6)
    with pytest.raises(tfopt.NonFiniteError, match="bias"):
        tfopt.cluster(broken, 4)
