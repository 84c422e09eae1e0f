"""How some layers are written for the file, where the converter would take floats for them as Keras writes them.

Each form computes what the layer computes, up to the rounding of the range that follows it.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl

from tfopt.core.models.fake_quantized import Range
from tfopt.core.models.graph import Graph
from tfopt.quantization.affine import apply_affine
from tfopt.quantization.fakequant import fake_quantize

_AVERAGES = (kl.AveragePooling1D, kl.AveragePooling2D)


def integer_form(layer: kl.Layer, output_range: Range) -> Callable | None:
    """What to call in place of a layer whose output then gets `output_range`; None where the layer itself will do.

    Example:
        >>> class UnitRange:
        ...     def bounds(self):
        ...         return 0.0, 1.0
        >>> form = integer_form(kl.Activation("hard_sigmoid"), UnitRange())
        >>> form(tf.constant([[0.0, 1.5, 9.0]])).numpy().tolist()  # the range that follows makes 1 of the 2
        [[0.5, 0.75, 2.0]]
    """
    if isinstance(layer, kl.Activation):
        return _ACTIVATIONS.get(getattr(layer.activation, "__name__", ""))
    if isinstance(layer, kl.ELU):
        return _elu
    if isinstance(layer, kl.ReLU) and layer.max_value not in (None, 6) and _is_clip(layer):
        return tf.nn.relu
    if isinstance(layer, kl.Average):
        return lambda inputs: _average(inputs, output_range)
    if isinstance(layer, _AVERAGES):
        return lambda inputs: tf.reduce_mean(inputs, _positions(layer), keepdims=True)
    return None


def integer_activation(function: Callable) -> Callable:
    """The same for an activation function: a form of it, or the function itself."""
    return _ACTIVATIONS.get(getattr(function, "__name__", ""), function)


def float_form(op: keras.Operation, graph: Graph) -> str:
    """Why the file computes a layer in float with the arguments it has; empty if it does not."""
    if isinstance(op, kl.ELU) and op.alpha != 1:
        return "LiteRT has no integer ELU whose `alpha` is not 1"
    if isinstance(op, kl.ReLU) and not _is_clip(op) and op.max_value is not None:
        return "LiteRT has no integer ReLU with `max_value` beside `negative_slope` or `threshold`"
    if isinstance(op, kl.Average) and any(len(call.inputs) > 2 for call in graph.calls_of(op)):
        return "LiteRT averages only two in integers; write it as Add and Rescaling"
    if isinstance(op, kl.Resizing) and op.interpolation not in ("nearest", "bilinear"):
        return f"LiteRT has no {op.interpolation} interpolation"
    return ""


def averages_all(op: keras.Operation, graph: Graph) -> bool:
    """True for average pooling whose one window covers the whole input.

    LiteRT's average pooling rounds to the steps of its input, which are coarse for the mean of many values. As MEAN it
    has a range of its own.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), kl.AveragePooling2D(4), kl.AveragePooling2D(2)])
        >>> [averages_all(layer, Graph(model)) for layer in model.layers]
        [False, True]
    """
    if not isinstance(op, _AVERAGES):
        return False
    windows = dict(zip(_positions(op), op.pool_size, strict=True))
    return all(
        call.inputs[0].shape[axis] is not None
        and call.outputs[0].shape[axis] == 1
        and call.inputs[0].shape[axis] <= window
        for call in graph.calls_of(op)
        for axis, window in windows.items()
    )


def _positions(layer: kl.Layer) -> list[int]:
    """The axes that a layer pools over."""
    first = 2 if layer.data_format == "channels_first" else 1
    return list(range(first, first + len(layer.pool_size)))


def _is_clip(layer: kl.ReLU) -> bool:
    return layer.negative_slope == 0 and layer.threshold == 0


def _hard_sigmoid(values):
    """`x / 6 + 1/2`: the range of the output lies within [0, 1] and cuts off the rest."""
    channels = values.shape[-1]
    return apply_affine(values, np.full(channels, 1 / 6, np.float32), np.full(channels, 0.5, np.float32))


def _elu(values):
    """`max(x, exp(min(x, 0)) - 1)`; LiteRT has an integer ELU, but its converter does not use it."""
    exponential = fake_quantize(tf.exp(tf.minimum(values, 0.0)), 0.0, 1.0)
    return tf.maximum(values, fake_quantize(exponential - 1.0, -1.0, 0.0))


def _average(inputs, output_range: Range):
    """The half of the sum, whose range is twice that of the output, so that halving changes no integer."""
    low, high = output_range.bounds()
    return fake_quantize(tf.add(*inputs), 2 * low, 2 * high) * 0.5


_ACTIVATIONS = {"hard_sigmoid": _hard_sigmoid, "elu": _elu}
