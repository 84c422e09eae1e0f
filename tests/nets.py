"""The networks that every edit has to work on, with the shape of their input."""

import functools

import keras
import numpy as np
from keras import layers as kl

from tfopt.demo import article_cnn


def resnet8(widths=(8, 16, 32)):
    """The residual network of MLPerf Tiny, narrower: three blocks, strided ones with a 1x1 shortcut."""
    inputs = keras.Input((32, 32, 3))
    x = kl.Conv2D(widths[0], 3, padding="same", name="stem")(inputs)
    x = kl.ReLU(name="stem_relu")(kl.BatchNormalization(name="stem_bn")(x))
    for i, width in enumerate(widths):
        stride = 1 if i == 0 else 2
        y = kl.Conv2D(width, 3, stride, padding="same", name=f"b{i}_conv1")(x)
        y = kl.Activation("relu", name=f"b{i}_relu1")(kl.BatchNormalization(name=f"b{i}_bn1")(y))
        y = kl.Conv2D(width, 3, padding="same", name=f"b{i}_conv2")(y)
        y = kl.BatchNormalization(name=f"b{i}_bn2")(y)
        if stride > 1:
            x = kl.Conv2D(width, 1, stride, padding="same", name=f"b{i}_shortcut")(x)
        x = keras.ops.relu(x + y)
    x = kl.Flatten()(kl.AveragePooling2D(8, name="pool")(x))
    return keras.Model(inputs, kl.Dense(10, activation="softmax", name="head")(x), name="resnet8")


def mobilenet():
    return keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)


def nested():
    """A convolutional backbone as one layer of the model."""
    backbone = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            kl.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="conv1"),
            kl.DepthwiseConv2D(3, name="depthwise"),
            kl.LeakyReLU(name="leaky"),
            kl.AveragePooling2D(2, name="pool"),
            kl.Conv2D(8, 1, activation="relu", name="out"),
        ],
        name="backbone",
    )
    inputs = keras.Input((16, 16, 3))
    x = kl.GlobalMaxPooling2D(name="global")(backbone(inputs))
    return keras.Model(inputs, kl.Dense(2, "sigmoid", name="head")(x), name="nested")


def conv1d():
    """Conv1D over a sequence, causal and plain, in half precision."""
    inputs = keras.Input((20, 4))
    x = kl.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu", dtype="mixed_float16", name="c1")(inputs)
    x = kl.MaxPooling1D(name="pool")(x)
    x = kl.SeparableConv1D(8, 3, activation="tanh", name="c2")(x)
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalAveragePooling1D(name="global")(x)), name="conv1d")


NETS = {"article_cnn": article_cnn, "resnet8": resnet8, "mobilenet": mobilenet, "nested": nested, "conv1d": conv1d}


@functools.cache
def build(name):
    """The network with biases and batch-normalization statistics away from their start values; not to be trained."""
    model = NETS[name]()
    generator = np.random.default_rng(5)
    for weight in model.weights:
        if len(weight.shape) == 1:
            low, high = (0.5, 1.5) if weight.path.endswith(("gamma", "variance")) else (-0.2, 0.2)
            weight.assign(generator.uniform(low, high, weight.shape))
    return model


def run(model, samples=2):
    """Outputs in inference mode for fixed random inputs; faster than `predict` for a model that runs once."""
    shape = (samples, *model.input_shape[1:])
    x = np.random.default_rng(3).uniform(-1, 1, shape).astype("float32")
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(x, training=False))
