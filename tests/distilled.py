"""Small students and teachers, and data for them."""

import keras
import numpy as np
from keras import layers as kl

SAMPLES = 32
X = np.random.default_rng(0).normal(size=(SAMPLES, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, SAMPLES)
IMAGES = np.random.default_rng(2).normal(size=(SAMPLES, 8, 8, 1)).astype("float32")


def net(width=4, activation="softmax", units=3, name=None, **options):
    """Dense layers with batch normalization between them: "hidden", "norm", "out"."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            kl.Dense(width, "relu", name="hidden", **options),
            kl.BatchNormalization(name="norm"),
            kl.Dense(units, activation, name="out"),
        ],
        name=name,
    )


def cnn(filters=2, **options):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            kl.Conv2D(filters, 3, name="conv", **options),
            kl.BatchNormalization(name="norm"),
            kl.ReLU(name="relu"),
            kl.Flatten(),
            kl.Dense(3, "softmax", name="out", **options),
        ]
    )


def randomized(model, seed=0, scale=0.7):
    """The model with biases and statistics away from their start values."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith(("variance", "gamma")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif "seed" not in weight.path:
            weight.assign(generator.normal(0, scale, weight.shape))
    return model


def copy_of(model):
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return twin


def state(model):
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights]


def same(one, other, **tolerance):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 0, "atol": 0, **tolerance})


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def divergence(student, teacher, temperature):
    """T^2 KL of each sample, from logits, in float64."""
    p, q = (softmax(np.asarray(logits, "float64") / temperature) for logits in (teacher, student))
    return temperature**2 * (p * np.log(p / q)).sum(-1)
