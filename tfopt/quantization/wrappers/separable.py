"""Separable convolutions: the depthwise and the pointwise kernel rounded, and a range between the two."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers as kl

from tfopt.quantization.composites import composite
from tfopt.quantization.layers import QuantizedLayer, rounded_kernel


@composite(kl.SeparableConv1D, kl.SeparableConv2D)
class QuantizedSeparableConv(QuantizedLayer):
    """A separable convolution as the two integer convolutions that LiteRT has."""

    def __init__(self, layer: keras.layers.Layer, kernels: Any = None, **kwargs: Any):
        super().__init__(layer, kernels, **kwargs)
        self.add_range("depthwise")

    def run(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        layer, dtype = self.layer, self.layer.compute_dtype
        depthwise, pointwise = (
            tf.cast(rounded_kernel(getattr(layer, name), self.kernels[name]), dtype)
            for name in ("depthwise_kernel", "pointwise_kernel")
        )
        first = layer.data_format == "channels_first"  # which the CPU does not compute
        inputs = _channels_to(-1, tf.cast(inputs, dtype)) if first else tf.cast(inputs, dtype)
        middle = keras.ops.depthwise_conv(
            inputs, depthwise, layer.strides, layer.padding, "channels_last", dilation_rate=layer.dilation_rate
        )
        outputs = keras.ops.conv(self.ranges()["depthwise"](middle, training), pointwise, 1, "valid", "channels_last")
        if layer.use_bias:
            outputs += tf.cast(tf.convert_to_tensor(layer.bias), dtype)
        outputs = layer.activation(outputs)  # one that the file fuses; the others are taken out of the layer
        return _channels_to(1, outputs) if first else outputs


def _channels_to(axis: int, values: Any) -> Any:
    return keras.ops.moveaxis(values, -1 if axis == 1 else 1, axis)
