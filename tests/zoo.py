"""Small models of every shape that tfopt has to take, with data for each."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers as kl


def sequential():
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            kl.Conv2D(4, 3, activation="relu", name="conv"),
            kl.MaxPooling2D(),
            kl.Flatten(),
            kl.Dropout(0.2),
            kl.Dense(6, activation="relu", name="hidden"),
            kl.Dense(3, activation="softmax", name="probabilities"),
        ],
        name="sequential_net",
    )


def residual():
    inputs = keras.Input((12, 12, 2), name="image")
    x = kl.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = kl.BatchNormalization(name="stem_bn")(x)
    x = skip = kl.ReLU(name="stem_relu")(x)
    x = kl.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = kl.Conv2D(4, 1, name="pointwise")(x)
    x = kl.ReLU(name="sum_relu")(x + skip)
    x = kl.BatchNormalization(name="alone_bn")(x * 0.5)
    x = kl.Activation("swish", name="swish")(x)
    x = kl.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, kl.Dense(3, name="logits")(x), name="residual_net")


def nested():
    block = keras.Sequential([keras.Input((8,)), kl.Dense(8, "elu", name="inner")], name="block")
    deep = keras.Sequential([keras.Input((8,)), kl.Dense(8, "relu", name="inner")], name="deep")
    head_input = keras.Input((8,), name="head_input")
    head = keras.Model(head_input, kl.Dense(3, name="out")(deep(head_input)), name="head")
    inputs = keras.Input((5,), name="features")
    x = kl.Dense(8, "tanh", name="first")(inputs)
    return keras.Model(inputs, head(block(block(x))), name="nested_net")


def shared():
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    tower = kl.Dense(5, "relu", name="tower")
    merged = kl.Concatenate(name="merge")([tower(left), tower(right)])
    outputs = {"a": kl.Dense(2, name="a")(merged), "b": kl.Dense(3, "sigmoid", name="b")(merged)}
    return keras.Model({"left": left, "right": right}, outputs, name="shared_net")


def mixed():
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((12, 12, 1))
        x = kl.Conv2D(4, 3, activation="relu", name="conv")(inputs)
        x = kl.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, kl.Dense(3, dtype="float32", name="logits")(x), name="mixed_net")
    finally:
        keras.mixed_precision.set_dtype_policy(policy)


def sequence():
    inputs = keras.Input((5,), dtype="int32", name="tokens")
    x = kl.Embedding(20, 6, name="embedding")(inputs)
    x = kl.Bidirectional(kl.LSTM(4, return_sequences=True), name="lstm")(x)
    x = kl.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = kl.Conv1D(5, 3, activation="relu", name="conv")(x)
    return keras.Model(inputs, kl.Dense(3, name="logits")(kl.GlobalMaxPooling1D()(x)), name="sequence_net")


MODELS = {
    "sequential": sequential,
    "residual": residual,
    "nested": nested,
    "shared": shared,
    "mixed": mixed,
    "sequence": sequence,
}


def build(name: str) -> keras.Model:
    """The model with weights that matter: batch-normalization statistics and biases away from their start values."""
    model = MODELS[name]()
    generator = np.random.default_rng(7)
    for weight in model.weights:
        if "seed" in weight.path:
            continue
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif len(weight.shape) == 1:
            weight.assign(generator.normal(0, 0.2, weight.shape))
    return model


def inputs_for(model: keras.Model, samples: int = 16):
    """Random inputs in the structure of the model's inputs."""
    generator = np.random.default_rng(3)
    arrays = {
        t.name: generator.integers(0, 20, (samples, *t.shape[1:])).astype("int32")
        if t.dtype == "int32"
        else generator.uniform(-1, 1, (samples, *t.shape[1:])).astype("float32")
        for t in model.inputs
    }
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def called(model: keras.Model, x):
    """The outputs as arrays, without the graph that `predict` builds first."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(x, training=False))


def predictions(model: keras.Model, x) -> list[np.ndarray]:
    return [np.asarray(y, "float32") for y in keras.tree.flatten(called(model, x))]


def fit(model: keras.Model, x, *, epochs=1, optimizer=None, batch_size=4, **compile_options):
    """A few training steps towards zero outputs."""
    targets = keras.tree.map_structure(np.zeros_like, called(model, x))
    model.compile(optimizer or keras.optimizers.Adam(1e-2), "mse", **compile_options)
    return model.fit(x, targets, epochs=epochs, batch_size=batch_size, verbose=0, shuffle=False)


def state(model: keras.Model) -> list[np.ndarray]:
    return [w.numpy().copy() for w in model.weights]
