"""TimeDistributed in 8 bits: the layer inside is quantized as if it stood alone, with the time steps in the batch."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf
from keras import layers as kl

from tfopt.core.models.graph import Graph
from tfopt.quantization.composites import Composite, composite, composite_for
from tfopt.quantization.layers import QuantizedLayer
from tfopt.quantization.scheme import treatment


class Alone(Graph):
    """The graph of a layer without neighbours to be fused with."""

    def __init__(self) -> None:
        self.inputs, self.outputs, self.calls = [], [], []


@composite(kl.TimeDistributed)
class QuantizedTimeDistributed(Composite):
    """TimeDistributed around a quantized layer, which sees all time steps at once, as further samples of the batch.

    A batch normalization inside takes its statistics over batch and time, where Keras takes them step by step.

    Args:
        layer: the quantized layer.

    Input: (batch, time, ...). Output: as of `keras.layers.TimeDistributed`.
    """

    @classmethod
    def float_reason(cls, layer: keras.layers.Layer) -> str:
        inner = layer.layer
        if isinstance(inner, keras.Model):
            return "a model inside a layer; apply TimeDistributed to its layers one by one"
        reason = treatment(inner, Alone()).reason
        return f"inside it, {type(inner).__name__}: {reason}" if reason else ""

    @classmethod
    def of(cls, layer: keras.layers.Layer, state: Any) -> Any:
        inner = layer.layer
        known: Any = composite_for(inner)
        if known is not None and not issubclass(known, QuantizedLayer):
            return cls(known.of(inner, state), name=layer.name)
        return cls((known or QuantizedLayer).of(inner, treatment(inner, Alone()), state), name=layer.name)

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.supports_masking = True
        self.hands_mask_on = "mask" in inspect.signature(layer.layer.call).parameters

    def with_training(self, freeze_ranges_after: int | None = None, learn_ranges: bool = False) -> Any:
        if freeze_ranges_after is not None or learn_ranges:
            self.layer.with_training(freeze_ranges_after, learn_ranges)  # the ranges are those of the layer inside
        return super().with_training(freeze_ranges_after, learn_ranges)

    def build(self, input_shape: Any) -> None:
        super().build((None, *input_shape[2:]))

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        shape = tf.shape(inputs)
        folded = tf.reshape(inputs, [-1, *inputs.shape[2:]])
        options = {}
        if mask is not None and self.hands_mask_on:
            options["mask"] = tf.reshape(mask, [-1, *mask.shape[2:]])
        outputs = self.layer(folded, **options)  # Keras hands `training` on to layers called inside a layer
        batch, time = (inputs.shape[axis] or shape[axis] for axis in (0, 1))
        return tf.reshape(outputs, [batch, time, *outputs.shape[1:]])

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        spec = self.layer.compute_output_spec(keras.KerasTensor((None, *inputs.shape[2:]), inputs.dtype))
        return keras.KerasTensor((*inputs.shape[:2], *spec.shape[1:]), spec.dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return previous_mask

    def stripped(self, state: Any) -> list:
        (inner,) = self.layer.stripped(state)
        return [kl.TimeDistributed(inner, name=self.name, dtype=inner.dtype_policy)]

    def ranges(self) -> Any:
        return self.layer.ranges()
