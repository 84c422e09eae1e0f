"""Normalizations over the features of one sample.

Layer, group and RMS normalization compute in float between integers. An all-integer form (mean, squared difference,
inverse root, product, each in 8 bits) was measured: 24 to 34 dB where all positions have a like variance, 6 to 24 dB
where variances differ or few features are large, against 38 and 26 to 40 dB of the float form between two ranges.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from keras import layers as kl

from tfopt.core.models.fake_quantized import in_mode
from tfopt.quantization import fakequant
from tfopt.quantization.composites import Composite, composite
from tfopt.quantization.layers import QuantizedLayer

UNIT_RANGE = -1.0, 127.0 / 128.0  # that LiteRT fixes for the output of L2_NORMALIZATION
UNIT_FEATURES = 128  # with more, the typical output is below 11 steps of that range, 30 dB


@composite(kl.LayerNormalization, kl.GroupNormalization, kl.RMSNormalization)
class FloatNormalization(QuantizedLayer):
    """A normalization in float with an 8-bit range behind it."""

    @classmethod
    def float_inside(cls, layer: kl.Layer) -> str:
        return "mean and variance in 8 bits would cost accuracy, so its inside runs in float"

    def run(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        if in_mode("export") and isinstance(self.layer, kl.GroupNormalization):
            return _group_normalization(self.layer, inputs)
        if in_mode("export") and isinstance(self.layer, kl.LayerNormalization) and not self.layer.rms_scaling:
            return _layer_normalization(self.layer, inputs)
        return super().run(inputs, training, **kwargs)


@composite(kl.UnitNormalization)
class QuantizedUnitNormalization(Composite):
    """L2 normalization of the last axis, whose output range LiteRT fixes."""

    @classmethod
    def float_reason(cls, layer: kl.Layer) -> str:
        axes = layer.axis if isinstance(layer.axis, list) else [layer.axis]
        inputs = getattr(layer, "input", None)
        if inputs is None:
            return "inside another layer its number of features is not known; apply it to the tensor itself"
        if axes not in ([-1], [len(inputs.shape) - 1]):
            return "LiteRT normalizes the last axis only"
        if inputs.shape[-1] > UNIT_FEATURES:
            return f"LiteRT's fixed step of 1/128 is too coarse for more than {UNIT_FEATURES} features"
        return ""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not in_mode("export"):
            outputs = self.layer(inputs)
            rounded = fakequant.fake_quantize(tf.cast(outputs, tf.float32), *UNIT_RANGE)
            return outputs if in_mode("calibrate") else tf.cast(rounded, outputs.dtype)
        return fakequant.fake_quantize(tf.nn.l2_normalize(inputs, -1), *UNIT_RANGE)


def _layer_normalization(layer: kl.Layer, inputs: Any) -> Any:
    shape = [size if axis in _positive(layer.axis, inputs) else 1 for axis, size in enumerate(inputs.shape)]
    return _normalized(inputs, _positive(layer.axis, inputs), shape, layer)


def _group_normalization(layer: kl.Layer, inputs: Any) -> Any:
    axis = layer.axis % len(inputs.shape)
    size = inputs.shape[axis]
    split = [layer.groups, size // layer.groups]
    grouped = tf.reshape(inputs, [*inputs.shape[:axis], *split, *inputs.shape[axis + 1 :]])
    summed = [i for i in range(1, len(grouped.shape)) if i != axis]
    shape = [1] * len(grouped.shape)
    shape[axis : axis + 2] = split
    return tf.reshape(_normalized(grouped, summed, shape, layer), inputs.shape)


def _normalized(inputs: Any, axes: list[int], shape: list[int], layer: kl.Layer) -> Any:
    """The inputs normalized over `axes`, scaled and shifted by the layer's weights in `shape`.

    By sums: of an integer tensor the converter would take the mean in integers, in steps as wide as the inputs' own.
    """
    share = 1.0 / math.prod(inputs.shape[axis] for axis in axes)
    centred = inputs - tf.reduce_sum(inputs, axes, keepdims=True) * share
    variance = tf.reduce_sum(tf.square(centred), axes, keepdims=True) * share
    outputs = centred * tf.math.rsqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        outputs *= tf.reshape(tf.convert_to_tensor(layer.gamma), shape)
    return outputs if layer.beta is None else outputs + tf.reshape(tf.convert_to_tensor(layer.beta), shape)


def _positive(axes: Any, inputs: Any) -> list[int]:
    return [axis % len(inputs.shape) for axis in axes]
