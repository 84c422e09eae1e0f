"""What LiteRT and its converter ask of single layers: in which form one is written for the file, and what joins.

Each form computes what the layer computes, up to the rounding of the range that follows it. As Keras writes these
layers the converter would take floats for them, or need a range within.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import activations
from keras import layers as kl

from tfopt.core.keras_internals import application_layer, op_class
from tfopt.core.layers.activations import activation_kind, applies
from tfopt.core.layers.registry import known_class
from tfopt.core.models.fake_quantized import Range
from tfopt.core.models.graph import Graph
from tfopt.quantization.fakequant import fake_quantize

Form = Callable[[Any], Any]  # tensor, or list of tensors -> tensor
Terms = tuple[np.ndarray, np.ndarray]

_AVERAGES = (kl.AveragePooling1D, kl.AveragePooling2D)
# Their kernels have a scale for each channel, and so the same integers before and after the channels are scaled. With
# one scale for a whole kernel, as in Dense, rounding the folded kernel would give other integers than those trained.
_FOLDS_NORMALIZATION = (kl.Conv1D, kl.Conv2D, kl.DepthwiseConv1D, kl.DepthwiseConv2D)
_FUSES_RECTIFIER = (kl.BatchNormalization, kl.Add, op_class("Add"))
_RECTIFIERS = (activations.relu, activations.relu6)


# What becomes one operation.


def folds_normalization(op: keras.Operation) -> bool:
    """True if batch normalization behind a layer goes into its kernel."""
    return known_class(type(op)) in _FOLDS_NORMALIZATION


def fuses_rectifier(op: keras.Operation) -> bool:
    """True if a rectifier behind a layer or op without kernels becomes part of its operation."""
    return known_class(type(op)) in _FUSES_RECTIFIER


def is_rectifier(op: keras.Operation) -> bool:
    """ReLU, and ReLU with a highest value, in their forms as layer, activation and op."""
    cls = known_class(type(op))
    if cls is kl.ReLU:
        return _is_clip(op)
    if cls is kl.Activation:
        return applies(op, *_RECTIFIERS)
    return cls in (op_class("Relu"), op_class("Relu6"))


def fuses_activation(op: keras.Operation) -> bool:
    """True if a layer applies no function, or one that becomes part of its kernel's operation."""
    return applies(op, activations.linear, *_RECTIFIERS)


# What has inputs and output of one range.

_JOINS = (kl.Concatenate, kl.Maximum, kl.Minimum, *map(op_class, ("Concatenate", "Maximum", "Minimum", "Stack")))


def joins(op: keras.Operation) -> bool:
    """True for a layer or op whose integer operation takes inputs in the range of its output.

    Where the ranges differ, the converter picks one of them, and clips what is beyond it: each input gets the range of
    the output before it gets there. Rounding to it before or behind is the same, since values are only moved.
    """
    return known_class(type(op)) in _JOINS


# What stays float with the arguments it has.


def float_form(op: Any, graph: Graph) -> str:
    """Why the file computes a layer in float with the arguments it has; empty if it does not."""
    cls = known_class(type(op))
    if cls is kl.ELU and op.alpha != 1:
        return "LiteRT has no integer ELU whose `alpha` is not 1"
    if cls is kl.ReLU and not _is_clip(op) and op.max_value is not None:
        return "LiteRT has no integer ReLU with `max_value` beside `negative_slope` or `threshold`"
    if cls is kl.Average and any(len(call.inputs) > 2 for call in graph.calls_of(op)):
        return "LiteRT averages only two in integers; write it as Add and Rescaling"
    if cls is kl.Resizing and op.interpolation not in ("nearest", "bilinear"):
        return f"LiteRT has no {op.interpolation} interpolation"
    return ""


def masks_a_number(op: Any) -> bool:
    """True for a masking layer that looks for another value than zero, which rounding would change."""
    return known_class(type(op)) is kl.Masking and op.mask_value != 0


def averages_all(op: Any, graph: Graph) -> bool:
    """True for average pooling whose one window covers the whole input.

    LiteRT's average pooling rounds to the steps of its input, which are coarse for the mean of many values. As MEAN it
    has a range of its own.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), kl.AveragePooling2D(4), kl.AveragePooling2D(2)])
        >>> [averages_all(layer, Graph(model)) for layer in model.layers]
        [False, True]
    """
    if known_class(type(op)) not in _AVERAGES:
        return False
    windows = dict(zip(_positions(op), op.pool_size, strict=True))
    return all(
        call.inputs[0].shape[axis] is not None
        and call.outputs[0].shape[axis] == 1
        and call.inputs[0].shape[axis] <= window
        for call in graph.calls_of(op)
        for axis, window in windows.items()
    )


# How layers are written for the file.


def integer_form(layer: Any, output_range: Range) -> Form | None:
    """What to call in place of a layer whose output then gets `output_range`; None where the layer itself will do.

    Example:
        >>> class UnitRange:
        ...     def bounds(self):
        ...         return 0.0, 1.0
        >>> form = integer_form(kl.Activation("hard_sigmoid"), UnitRange())
        >>> form(tf.constant([[0.0, 1.5, 9.0]])).numpy().tolist()  # the range that follows makes 1 of the 2
        [[0.5, 0.75, 2.0]]
    """
    cls = known_class(type(layer))
    if cls is kl.Activation:
        return _function_form(layer.activation)
    if cls is kl.ELU:
        return _elu
    if cls is kl.ReLU and layer.max_value not in (None, 6) and _is_clip(layer):
        return tf.nn.relu
    if cls is kl.Average:
        return lambda inputs: _average(inputs, output_range)
    if cls in _AVERAGES:
        return lambda inputs: tf.reduce_mean(inputs, _positions(layer), keepdims=True)
    return None


def integer_activation(function: Callable) -> Form:
    """The same for an activation function: a form of it, or the function itself."""
    return _function_form(function) or function


def _function_form(function: Callable) -> Form | None:
    kind = activation_kind(function)
    return _FUNCTIONS.get(kind.function) if kind is not None else None


def _positions(layer: Any) -> list[int]:
    """The axes that a layer pools over."""
    first = 2 if layer.data_format == "channels_first" else 1
    return list(range(first, first + len(layer.pool_size)))


def _is_clip(layer: Any) -> bool:
    return layer.negative_slope == 0 and layer.threshold == 0


def _hard_sigmoid(values: Any) -> Any:
    """`x / 6 + 1/2`: the range of the output lies within [0, 1] and cuts off the rest."""
    channels = values.shape[-1]
    return apply_affine(values, np.full(channels, 1 / 6, np.float32), np.full(channels, 0.5, np.float32))


def _elu(values: Any) -> Any:
    """`max(x, exp(min(x, 0)) - 1)`; LiteRT has an integer ELU, but its converter does not use it."""
    exponential = fake_quantize(tf.exp(tf.minimum(values, 0.0)), 0.0, 1.0)
    return tf.maximum(values, fake_quantize(exponential - 1.0, -1.0, 0.0))


def _average(inputs: Any, output_range: Range) -> Any:
    """The half of the sum, whose range is twice that of the output, so that halving changes no integer."""
    low, high = output_range.bounds()
    return fake_quantize(tf.add(*inputs), 2 * low, 2 * high) * 0.5


_FUNCTIONS: dict[Callable, Form] = {activations.hard_sigmoid: _hard_sigmoid, activations.elu: _elu}


# Layers that scale and shift each channel, as the one integer operation that LiteRT has for it. Written as a
# multiplication and an addition they would need a range between the two, or run in float. A depthwise 1x1 convolution
# does both at once with a 32-bit bias, and its 8-bit kernel, one value a channel, is exact.


def is_affine(op: keras.Operation) -> bool:
    """True for a layer that scales and shifts channels in inference."""
    return known_class(type(op)) in _AFFINE


def affine_terms(layer: kl.Layer, channels: int) -> Terms | None:
    """`(scale, offset)`, one a channel, if the layer computes `x * scale + offset` in inference; None otherwise.

    Example:
        >>> scale, offset = affine_terms(kl.Rescaling(0.5, offset=-1.0), channels=2)
        >>> scale.tolist(), offset.tolist()
        ([0.5, 0.5], [-1.0, -1.0])
    """
    terms = _AFFINE[known_class(type(layer))](layer) if is_affine(layer) else None
    flat = [np.ravel(term).astype(np.float32) for term in terms] if terms else []
    if not flat or any(term.size not in (1, channels) for term in flat):
        return None
    scale, offset = (np.broadcast_to(term, (channels,)) for term in flat)
    return scale, offset


def apply_affine(values: Any, scale: np.ndarray, offset: np.ndarray) -> Any:
    """`values * scale + offset` over the last axis, as a depthwise 1x1 convolution.

    Example:
        >>> scale, offset = np.array([2.0, 3.0], "f"), np.array([1.0, 0.0], "f")
        >>> apply_affine(tf.constant([[1.0, 2.0]]), scale, offset).numpy().tolist()
        [[3.0, 6.0]]
    """
    shape = values.shape
    if len(shape) != 4:
        values = tf.reshape(values, [-1, math.prod(shape[1:-1]), 1, shape[-1]])
    kernel = tf.constant(scale.reshape(1, 1, -1, 1))
    values = tf.nn.depthwise_conv2d(values, kernel, [1, 1, 1, 1], "VALID") + tf.constant(offset)
    return values if len(shape) == 4 else tf.reshape(values, [-1, *shape[1:]])


def _batch_normalization(layer: Any) -> Terms | None:
    if layer.axis not in (-1, layer.input_spec.ndim - 1):
        return None
    scale = 1.0 / np.sqrt(_array(layer.moving_variance) + layer.epsilon)
    scale = scale * _array(layer.gamma) if layer.scale else scale
    offset = -_array(layer.moving_mean) * scale
    return scale, offset + _array(layer.beta) if layer.center else offset


def _rescaling(layer: Any) -> Terms:
    return np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)


def _normalization(layer: Any) -> Terms | None:
    if layer.invert:
        return None
    deviation = np.maximum(np.sqrt(_array(layer.variance)), 1e-7)
    return 1.0 / deviation, -_array(layer.mean) / deviation


def _layer_scale(layer: Any) -> Terms:
    return _array(layer.gamma), np.zeros(1, np.float32)


def _array(weight: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(weight), np.float32)


_AFFINE: dict[type | None, Callable[[Any], Terms | None]] = {
    kl.BatchNormalization: _batch_normalization,
    kl.Rescaling: _rescaling,
    kl.Normalization: _normalization,
    application_layer("LayerScale"): _layer_scale,
}
