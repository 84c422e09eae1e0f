"""Layers that scale and shift each channel, as the one integer operation that LiteRT has for it.

Written as a multiplication and an addition they would need a range between the two, or run in float. A depthwise 1x1
convolution does both at once with a 32-bit bias, and its 8-bit kernel, one value a channel, is exact.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl

from tfopt.core.keras_internals import application_layer

_LAYER_SCALE: Any = application_layer("LayerScale")


def affine_terms(layer: kl.Layer, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """`(scale, offset)`, one a channel, if the layer computes `x * scale + offset` in inference; None otherwise.

    Example:
        >>> scale, offset = affine_terms(kl.Rescaling(0.5, offset=-1.0), channels=2)
        >>> scale.tolist(), offset.tolist()
        ([0.5, 0.5], [-1.0, -1.0])
    """
    if isinstance(layer, kl.BatchNormalization):
        terms = _batch_normalization(layer)
    elif isinstance(layer, kl.Rescaling):
        terms = np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
    elif isinstance(layer, kl.Normalization) and not layer.invert:
        deviation = np.maximum(np.sqrt(_array(layer.variance)), 1e-7)
        terms = 1.0 / deviation, -_array(layer.mean) / deviation
    elif isinstance(layer, _LAYER_SCALE):
        terms = _array(layer.gamma), np.zeros(1, np.float32)
    else:
        return None
    flat = [np.ravel(term).astype(np.float32) for term in terms] if terms else []
    if not flat or any(term.size not in (1, channels) for term in flat):
        return None
    scale, offset = (np.broadcast_to(term, (channels,)) for term in flat)
    return scale, offset


def apply_affine(values, scale: np.ndarray, offset: np.ndarray):
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


def _batch_normalization(layer):
    if layer.axis not in (-1, layer.input_spec.ndim - 1):
        return None
    scale = 1.0 / np.sqrt(_array(layer.moving_variance) + layer.epsilon)
    scale = scale * _array(layer.gamma) if layer.scale else scale
    offset = -_array(layer.moving_mean) * scale
    return scale, offset + _array(layer.beta) if layer.center else offset


def _array(weight) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(weight), np.float32)
