"""Random weights at which a network tells its inputs apart as a trained one does, and random images to tell apart.

With initial weights a deep network gives nearly the same output for every input, and whether two versions of it agree
says nothing. Here each layer is set, from the first to the last, by what it makes of the images: every channel gets
the same mean and unit variance, as in the data-dependent initialization of Salimans & Kingma 2016
(https://arxiv.org/abs/1602.07868). A mean of 2 before a nonlinearity keeps most of the signal, so that a rounding error
does not grow from layer to layer, as it does in other random networks but not in trained ones. In the last layer the
n-th image is made the example of class n; the other classes stay random. Between 1000 random outputs the two largest
would lie closer together than the rounding of one tensor.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.models.graph import Call, Graph, read

_WITH_KERNEL = (kl.Conv2D, kl.DepthwiseConv2D, kl.Dense)
_LINEAR = (None, "linear")
_MEAN = 2.0  # before a nonlinearity, in standard deviations


def spread_out(model: keras.Model, images: np.ndarray, seed: int = 0) -> keras.Model:
    """Sets the weights of a model in place, by `images`, so that its outputs differ; returns it."""
    generator = np.random.default_rng(seed)
    graph = read(model)
    values = {id(graph.inputs[0]): keras.ops.convert_to_tensor(images)}
    last = [call for call in graph.calls if isinstance(call.op, _WITH_KERNEL)][-1]
    for call in graph.calls:
        args, kwargs = call.arguments(values)
        if call is last:
            _set_classes(call.op, args[0])
        else:
            _set(call, graph, args[0], generator)
        outputs = keras.tree.flatten(call.op(*args, **kwargs))
        values.update((id(tensor), value) for tensor, value in zip(call.outputs, outputs, strict=True))
    return model


def random_images(count: int, size: int, *, high: float = 1.0, seed: int = 1) -> np.ndarray:
    """Blurred patterns in [0, high], each with a colour and contrast of its own: `(count, size, size, 3)`."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(count, 4, 4, 3)) * generator.uniform(0.3, 1, (count, 1, 1, 1))
    patterns = np.asarray(keras.ops.image.resize(coarse + generator.normal(size=(count, 1, 1, 3)), (size, size)))
    noise = generator.normal(0, 0.3, patterns.shape)
    return (high / (1 + np.exp(-patterns - noise))).astype("float32")


def input_high(model: keras.Model) -> float:
    """The largest value of a pixel that the model is made for."""
    return 255.0 if any(isinstance(layer, (kl.Rescaling, kl.Normalization)) for layer in model.layers) else 1.0


def _set(call: Call, graph: Graph, inputs, generator: np.random.Generator) -> None:
    layer = call.op
    if isinstance(layer, kl.BatchNormalization):
        mean, deviation = _moments(inputs)
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(deviation**2)
        if layer.scale:
            layer.gamma.assign(generator.uniform(0.8, 1.2, mean.shape))
        if layer.center:
            layer.beta.assign(_wanted_mean(call, graph) + generator.uniform(-0.2, 0.2, mean.shape))
    elif isinstance(layer, _WITH_KERNEL):
        _set_kernel(layer, inputs, _wanted_mean(call, graph))
    elif type(layer).__name__ == "LayerScale":  # of ConvNeXt: starts at 1e-6, which would hide its branch
        layer.gamma.assign(generator.uniform(0.5, 1.0, layer.gamma.shape))


def _set_kernel(layer: kl.Layer, inputs, wanted: float) -> None:
    activation, layer.activation = layer.activation, keras.activations.linear
    mean, deviation = _moments(layer(inputs))
    layer.activation = activation
    if layer.use_bias:
        layer.bias.assign((layer.bias - mean) / deviation + wanted)
    per_channel = deviation.reshape(layer.kernel.shape[2:]) if isinstance(layer, kl.DepthwiseConv2D) else deviation
    layer.kernel.assign(layer.kernel / per_channel)


def _set_classes(layer: kl.Layer, inputs) -> None:
    """Class n: how much alike the features are to those of image n, as far as they differ from the mean."""
    features = np.asarray(inputs).reshape(len(inputs), -1)
    mean = features.mean(axis=0)
    kernel = keras.ops.convert_to_numpy(layer.kernel).copy().reshape(features.shape[1], -1)
    kernel[:, : len(features)] = (features - mean).T
    kernel /= np.linalg.norm(kernel, axis=0)
    layer.kernel.assign(kernel.reshape(layer.kernel.shape))
    layer.bias.assign(-mean @ kernel)


def _wanted_mean(call: Call, graph: Graph) -> float:
    """`_MEAN` before a nonlinearity, else 0."""
    readers = graph.consumers(call.outputs[0])
    curved = bool(readers) and all(
        isinstance(reader.op, (kl.ReLU, kl.Activation)) or not isinstance(reader.op, kl.Layer) for reader in readers
    )
    own = getattr(getattr(call.op, "activation", None), "__name__", None)
    return _MEAN if curved or own not in _LINEAR else 0.0


def _moments(values) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(values).reshape(-1, values.shape[-1])
    deviation = array.std(axis=0)
    return array.mean(axis=0), np.maximum(deviation, 1e-3 * deviation.max() + 1e-12)
