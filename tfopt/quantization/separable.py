"""Separable convolutions: the depthwise and the pointwise kernel rounded, and a range between the two."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import layers as kl

from tfopt.quantization.composites import composite
from tfopt.quantization.layers import QuantizedLayer, rounded_kernel


@composite(kl.SeparableConv1D, kl.SeparableConv2D)
class QuantizedSeparableConv(QuantizedLayer):
    """A separable convolution as the two integer convolutions that LiteRT has."""

    def __init__(self, layer, kernels=None, **kwargs):
        super().__init__(layer, kernels, **kwargs)
        self.add_range("depthwise")

    def _run(self, inputs, training, **kwargs):
        layer, dtype = self.layer, self.layer.compute_dtype
        depthwise, pointwise = (
            tf.cast(rounded_kernel(getattr(layer, name), self.kernels[name]), dtype)
            for name in ("depthwise_kernel", "pointwise_kernel")
        )
        where = {"data_format": layer.data_format}
        middle = keras.ops.depthwise_conv(
            tf.cast(inputs, dtype), depthwise, layer.strides, layer.padding, dilation_rate=layer.dilation_rate, **where
        )
        outputs = keras.ops.conv(self.ranges()["depthwise"](middle, training), pointwise, padding="valid", **where)
        if layer.use_bias:
            shape = (-1, *[1] * layer.rank) if layer.data_format == "channels_first" else (-1,)
            outputs += tf.reshape(tf.cast(tf.convert_to_tensor(layer.bias), dtype), shape)
        return layer.activation(outputs)  # one that the file fuses; the others are taken out of the layer
