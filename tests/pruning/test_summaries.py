from collections import defaultdict

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import tfopt

X = np.random.default_rng(0).normal(size=(32, 12)).astype("float32")


def net():
    return keras.Sequential([keras.Input((12,)), kl.Dense(8, name="a"), kl.Dense(3, name="b")], name="net")


def scalars(folder):
    """tag -> {step: value} of all event files in a folder."""
    found = defaultdict(dict)
    for file in sorted(folder.iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                found[value.tag][event.step] = float(tf.make_ndarray(value.tensor))
    return found


def fit(model, epochs, callback):
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(X, X[:, :3], batch_size=8, epochs=epochs, verbose=0, callbacks=[callback])


def test_written_at_the_end_of_each_epoch(tmp_path):
    schedule = tfopt.PolynomialDecay(0.0, 0.75, 0, 8, power=1, frequency=4)
    pruned = tfopt.prune(net(), schedule)
    fit(pruned, 2, tfopt.PruningSummaries(tmp_path))
    found = scalars(tmp_path)
    assert set(found) == {
        "sparsity/net/a/kernel",
        "sparsity/net/b/kernel",
        "threshold/net/a/kernel",
        "threshold/net/b/kernel",
        "sparsity/all",
    }
    assert found["sparsity/net/a/kernel"] == pytest.approx({4: 36 / 96, 8: 0.75})
    assert found["sparsity/all"] == pytest.approx({4: (36 + 24 - round(24 * 0.625)) / 120, 8: 0.75})
    kernel = np.abs(pruned.layers[0].kernel.numpy())
    assert found["threshold/net/a/kernel"][8] == pytest.approx(kernel[kernel > 0].min())


def test_written_after_so_many_batches(tmp_path):
    pruned = tfopt.quantize(tfopt.prune(net(), sparsity=0.5, include="a"))
    fit(pruned, 2, tfopt.PruningSummaries(str(tmp_path / "logs"), update_freq=3))
    found = scalars(tmp_path / "logs")
    (sparsity,) = [values for tag, values in found.items() if tag.startswith("sparsity/") and tag != "sparsity/all"]
    assert sparsity == found["sparsity/all"] == {3: 0.5, 6: 0.5}


def test_channels_count_in_every_kernel_that_they_index(tmp_path):
    fit(tfopt.prune(net(), pattern="channel", sparsity=0.75), 1, tfopt.PruningSummaries(tmp_path))
    found = scalars(tmp_path)
    assert found["sparsity/net/a/kernel"] == found["sparsity/net/b/kernel"] == found["sparsity/all"] == {4: 0.75}


def test_errors(tmp_path):
    for frequency in ("batch", 0, -1, True, 1.5, None):
        with pytest.raises(tfopt.InvalidArgumentError, match="update_freq"):
            tfopt.PruningSummaries(tmp_path, update_freq=frequency)
    with pytest.raises(tfopt.NothingToDoError, match="pruning masks"):
        fit(net(), 1, tfopt.PruningSummaries(tmp_path))
