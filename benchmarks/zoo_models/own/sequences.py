"""Series and sound."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from zoo_models.entry import SAMPLES, Animal, Builder, entered_in, series

SEQUENCES: dict[str, Builder] = {}
_enter = entered_in(SEQUENCES)


# Dilated causal convolutions.


class TemporalBlock(layers.Layer):
    def __init__(self, filters, dilation, **kwargs):
        super().__init__(**kwargs)
        options = {"kernel_size": 3, "padding": "causal", "dilation_rate": dilation}
        self.convs = [layers.Conv1D(filters, **options) for _ in range(2)]
        self.norms = [layers.LayerNormalization() for _ in range(2)]
        self.dropout = layers.SpatialDropout1D(0.1)
        self.match = layers.Conv1D(filters, 1)

    def call(self, x, training=None):
        y = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = self.dropout(tf.nn.relu(norm(conv(y))), training=training)
        return ops.relu(y + self.match(x))


class TemporalNetwork(keras.Model):
    def __init__(self, classes):
        super().__init__()
        self.blocks = keras.Sequential([TemporalBlock(16, 1), TemporalBlock(24, 2), TemporalBlock(24, 4)])
        self.classifier = layers.Dense(classes)

    def call(self, x, training=None):
        return self.classifier(self.blocks(x, training=training)[:, -1, :])


@_enter
def tcn() -> Animal:
    return Animal(TemporalNetwork(4), series(32, 3))


# Who speaks: residual convolutions over a spectrum.


def residual(x, filters, count=2, activation="relu"):
    skip = layers.Conv1D(filters, 1, padding="same")(x)
    for _ in range(count - 1):
        x = layers.Activation(activation)(layers.Conv1D(filters, 3, padding="same")(x))
    x = layers.Add()([layers.Conv1D(filters, 3, padding="same")(x), skip])
    return layers.MaxPool1D(pool_size=2, strides=2)(layers.Activation(activation)(x))


class Loudness(layers.Layer):
    """Scales each sample to unit loudness."""

    def call(self, x):
        power = tf.reduce_mean(tf.square(x), axis=[1, 2], keepdims=True)
        return tf.math.divide_no_nan(x, tf.sqrt(power + 1e-6))


@_enter
def speaker_cnn() -> Animal:
    inputs = keras.Input((128, 1), name="input")
    x = Loudness()(inputs)
    for filters in (8, 16, 24):
        x = residual(x, filters)
    x = layers.Flatten()(layers.AveragePooling1D(pool_size=3, strides=3)(x))
    x = layers.Dense(24, activation="relu")(x)
    outputs = layers.Dense(5, activation="softmax", name="output")(x)
    return Animal(keras.Model(inputs, outputs), series(128, 1))


# Traffic on a graph of roads: a layer that holds a matrix, weights and an LSTM.


class GraphConvolution(layers.Layer):
    def __init__(self, size_in, size_out, links, **kwargs):
        super().__init__(**kwargs)
        self.size_in, self.size_out = size_in, size_out
        self.links = (links / links.sum(axis=1, keepdims=True)).astype("float32")
        self.weight = self.add_weight(shape=(size_in, size_out), initializer="glorot_uniform", name="weight")

    def call(self, x):  # nodes, batch, time, features
        nodes = ops.matmul(x, self.weight)
        gathered = tf.einsum("ij,jbtf->ibtf", self.links, nodes)
        return ops.relu(ops.concatenate([nodes, gathered], axis=-1))


class GraphLSTM(layers.Layer):
    def __init__(self, size_in, size_out, units, steps, links, **kwargs):
        super().__init__(**kwargs)
        self.graph = GraphConvolution(size_in, size_out, links)
        self.lstm = layers.LSTM(units, activation="relu")
        self.dense = layers.Dense(steps)
        self.steps = steps

    def call(self, inputs):
        x = self.graph(ops.transpose(inputs, [2, 0, 1, 3]))
        nodes, batch, time, features = ops.shape(x)
        x = self.dense(self.lstm(ops.reshape(x, (batch * nodes, time, features))))
        return ops.transpose(ops.reshape(x, (nodes, batch, self.steps)), [1, 2, 0])


@_enter
def traffic_graph() -> Animal:
    inputs = keras.Input((8, 5, 2))  # time, nodes, features
    links = np.eye(5) + np.eye(5, k=1)
    model = keras.Model(inputs, GraphLSTM(2, 6, 12, 3, links)(inputs))
    return Animal(model, series(8, 10).reshape(SAMPLES, 8, 5, 2))


# A transformer that classifies series.


@_enter
def series_transformer() -> Animal:
    inputs = keras.Input((32, 2))
    x = inputs
    for _ in range(2):
        y = layers.MultiHeadAttention(key_dim=8, num_heads=2, dropout=0.1)(x, x)
        y = layers.LayerNormalization(epsilon=1e-6)(layers.Dropout(0.1)(y))
        skip = y + x
        y = layers.Conv1D(filters=8, kernel_size=1, activation="relu")(skip)
        y = layers.Conv1D(filters=inputs.shape[-1], kernel_size=1)(layers.Dropout(0.1)(y))
        x = layers.LayerNormalization(epsilon=1e-6)(y) + skip
    x = layers.GlobalAveragePooling1D(data_format="channels_last")(x)
    x = layers.Dense(24, activation="relu")(x)
    return Animal(keras.Model(inputs, layers.Dense(2, activation="softmax")(x)), series(32, 2))
