"""A small classifier and data to train it on, for what has to hold during `fit`."""

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.layers.registry import prunable_weights
from tfopt.core.models.graph import read

DATA = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 3, 64)


def dense_net(dtype=None):
    return keras.Sequential(
        [keras.Input((12,)), kl.Dense(32, "relu", dtype=dtype, name="a"), kl.Dense(3, dtype=dtype, name="b")]
    )


def train(model, optimizer=None, epochs=2, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss, **options)
    return model.fit(DATA, LABELS, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


def kernels(model):
    found = {}
    for path, layer in read(model).layers:
        if not isinstance(layer, keras.Model):
            found.update({f"{path}/{name}": weight for name, weight in prunable_weights(layer).items()})
    return found


def zeros(model):
    return {path: int((w.numpy() == 0).sum()) for path, w in kernels(model).items()}
