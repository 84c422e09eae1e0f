"""Tables: numbers, categories, ids."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from zoo_models.entry import SAMPLES, Animal, Builder, entered_in, tokens

TABLES: dict[str, Builder] = {}
_enter = entered_in(TABLES)


def _numbers(columns: int) -> np.ndarray:
    return np.random.default_rng(8).normal(size=(SAMPLES, columns)).astype("float32")


# Categories of strings, each embedded, with attention among the columns.

JOBS, TOWNS = ["teacher", "farmer", "nurse", "smith"], ["north", "south", "east"]


@_enter
def tab_transformer() -> Animal:
    inputs = {
        "job": keras.Input((1,), dtype="string", name="job"),
        "town": keras.Input((1,), dtype="string", name="town"),
        "numbers": keras.Input((3,), name="numbers"),
    }
    embedded = []
    for name, words in (("job", JOBS), ("town", TOWNS)):
        index = layers.StringLookup(vocabulary=words, mask_token=None, num_oov_indices=0, output_mode="int")
        embedded.append(layers.Embedding(len(words), 16)(index(inputs[name])))
    x = layers.concatenate(embedded, axis=1)
    x = x + layers.Embedding(2, 16)(ops.arange(start=0, stop=2, step=1))
    for _ in range(2):
        attention = layers.MultiHeadAttention(2, 8, dropout=0.1)(x, x)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([attention, x]))
        dense = keras.Sequential([layers.Dense(32, keras.activations.gelu), layers.Dense(16), layers.Dropout(0.1)])
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([dense(x), x]))
    x = layers.concatenate([layers.Flatten()(x), layers.LayerNormalization()(inputs["numbers"])])
    x = layers.Dense(32, activation="selu")(layers.BatchNormalization()(x))
    outputs = layers.Dense(1, activation="sigmoid")(x)
    generator = np.random.default_rng(9)
    data = {
        "job": tf.constant(generator.choice(JOBS, (SAMPLES, 1))),
        "town": tf.constant(generator.choice(TOWNS, (SAMPLES, 1))),
        "numbers": tf.constant(_numbers(3)),
    }
    return Animal(keras.Model(inputs, outputs), data, from_text=True)


# Gated residual networks that weigh the variables.


class GatedLinearUnit(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.linear = layers.Dense(units)
        self.sigmoid = layers.Dense(units, activation="sigmoid")

    def call(self, inputs):
        return self.linear(inputs) * self.sigmoid(inputs)


class GatedResidual(layers.Layer):
    def __init__(self, units, dropout=0.1):
        super().__init__()
        self.units = units
        self.elu_dense = layers.Dense(units, activation="elu")
        self.linear_dense = layers.Dense(units)
        self.dropout = layers.Dropout(dropout)
        self.gate = GatedLinearUnit(units)
        self.norm = layers.LayerNormalization()
        self.project = layers.Dense(units)

    def call(self, inputs):
        x = self.dropout(self.linear_dense(self.elu_dense(inputs)))
        if inputs.shape[-1] != self.units:
            inputs = self.project(inputs)
        return self.norm(inputs + self.gate(x))


class VariableSelection(layers.Layer):
    def __init__(self, names, units):
        super().__init__()
        self.names = names
        self.networks = {name: GatedResidual(units) for name in names}
        self.weigher = GatedResidual(units)
        self.softmax = layers.Dense(len(names), activation="softmax")

    def call(self, inputs):
        values = [inputs[name] for name in self.names]
        weights = ops.expand_dims(self.softmax(self.weigher(ops.concatenate(values, axis=-1))), axis=-1)
        columns = [self.networks[name](value) for name, value in zip(self.names, values, strict=True)]
        return ops.squeeze(ops.matmul(ops.transpose(weights, (0, 2, 1)), ops.stack(columns, axis=1)), axis=1)


@_enter
def variable_selection() -> Animal:
    names = ["age", "income", "rooms"]
    inputs = {name: keras.Input((1,), name=name) for name in names}
    inputs["kind"] = keras.Input((1,), dtype="int32", name="kind")
    features = {name: layers.Dense(16)(inputs[name]) for name in names}
    features["kind"] = layers.Flatten()(layers.Embedding(5, 16)(inputs["kind"]))
    x = VariableSelection([*names, "kind"], 16)(features)
    numbers = _numbers(3)
    data = {name: numbers[:, i : i + 1] for i, name in enumerate(names)}
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
    return Animal(model, {**data, "kind": tokens(1, 5)})


# Users, films and their ratings.


class Recommender(keras.Model):
    def __init__(self, users, films, size, **kwargs):
        super().__init__(**kwargs)
        options = {"embeddings_initializer": "he_normal", "embeddings_regularizer": keras.regularizers.l2(1e-6)}
        self.users, self.user_bias = layers.Embedding(users, size, **options), layers.Embedding(users, 1)
        self.films, self.film_bias = layers.Embedding(films, size, **options), layers.Embedding(films, 1)
        self.deep = layers.Dense(8, activation="relu")
        self.score = layers.Dense(1)
        self.dot = layers.Dot(axes=1)

    def call(self, inputs):
        user, film = inputs[:, 0], inputs[:, 1]
        users, films = self.users(user), self.films(film)
        x = self.dot([users, films]) + self.user_bias(user) + self.film_bias(film)
        deep = self.score(self.deep(tf.concat([users, films], axis=1)))
        return tf.nn.sigmoid(x + deep)


@_enter
def recommender() -> Animal:
    return Animal(Recommender(30, 40, 16), tokens(2, 30))


# Crosses of features beside a deep network.


class Cross(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[0][-1], shape[0][-1]), initializer="glorot_uniform")
        self.bias = self.add_weight(name="bias", shape=(shape[0][-1],), initializer="zeros")

    def call(self, inputs):
        first, x = inputs
        return first * (tf.matmul(x, self.kernel) + self.bias) + x


class DeepAndCross(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = layers.Normalization()
        self.crosses = [Cross(), Cross()]
        self.deep = keras.Sequential([layers.Dense(24, activation="relu"), layers.Dense(12, activation="relu")])
        self.out = layers.Dense(1, activation="sigmoid")

    def call(self, inputs, training=None):
        first = x = self.norm(inputs)
        for cross in self.crosses:
            x = cross([first, x])
        return self.out(ops.concatenate([x, self.deep(first, training=training)], axis=-1))


@_enter
def deep_and_cross() -> Animal:
    model, data = DeepAndCross(), _numbers(12)
    model.norm.adapt(data)
    return Animal(model, data)
