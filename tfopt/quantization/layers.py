"""The layers that a quantized model is made of."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from tfopt.core.catalog import range_axes
from tfopt.core.modes import FakeQuantized, in_mode
from tfopt.quantization import fakequant
from tfopt.quantization.affine import affine_terms, apply_affine
from tfopt.quantization.ranges import ActivationRange


def _with_signature(method: Any) -> Any:
    """Keras asks for the signatures of `__init__` and `call` of every layer; from an attribute they cost nothing."""
    method.__signature__ = inspect.signature(method)
    return method


@keras.saving.register_keras_serializable(package="tfopt")
class FakeQuantize(FakeQuantized, keras.layers.Layer):
    """Rounds activations to 8 bits within a range that follows the data during training.

    Args:
        observer: `"moving_average"` of the batches' ranges, or `"all_values"`, the widest range seen.

    Input and output: tensors of the same shape and dtype.
    """

    def __init__(self, observer: str = "moving_average", **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        self.observer = observer
        self.range = ActivationRange(self, "range", observer)
        self.supports_masking = True

    def build(self, input_shape):
        self.range.build()

    def call(self, inputs, training=None):
        return self.range(inputs, training)

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self):
        config = {**super().get_config(), "observer": self.observer}
        config.pop("dtype")
        return config

    def stripped(self, state):
        return []

    def ranges(self):
        return {"output": self.range}


@keras.saving.register_keras_serializable(package="tfopt")
class QuantizedLayer(FakeQuantized, keras.layers.Wrapper):
    """A layer that runs with kernels rounded to 8 bits, and quantizes its output.

    The kernels themselves stay float weights, and are trained as such: the gradient passes the rounding unchanged.

    Args:
        layer: the layer; with kernels, its own activation has to be linear if `activation` is given.
        kernels: attribute of a kernel -> its channel axes (see `fakequant.fake_quantize_kernel`).
        activation: name of an activation function to apply behind the layer; a range is put between the two.
        quantize_output: whether the output gets a range.
        affine: whether the layer scales and shifts channels on its own, and is exported as one operation that does.
    """

    wraps_layer = True

    @_with_signature
    def __init__(self, layer, kernels=None, activation=None, quantize_output=True, affine=False, **kwargs):
        kwargs = {"name": layer.name, **kwargs, "dtype": "float32", "autocast": False}
        super().__init__(layer, **kwargs)
        self.kernels = {name: tuple(axes) for name, axes in (kernels or {}).items()}
        self.activation = keras.activations.get(activation) if activation else None
        self.affine = affine
        self.pre_activation = ActivationRange(self, "pre_activation_range") if activation else None
        self.output_range = ActivationRange(self, "output_range") if quantize_output else None
        self.supports_masking = layer.supports_masking

    def build(self, input_shape):
        super().build(input_shape)
        for activation_range in self.ranges().values():
            activation_range.build()

    @_with_signature
    def call(self, inputs, training=None, **kwargs):
        outputs = self._run(inputs, **kwargs)  # Keras hands `training` on to layers called inside a layer
        if self.activation is not None and self.pre_activation is not None:
            outputs = self.activation(self.pre_activation(outputs, training))
        if self.output_range is not None:
            outputs = self.output_range(outputs, training)
        return outputs

    def _run(self, inputs, **kwargs):
        if self.affine and in_mode("export"):
            affine = affine_terms(self.layer, inputs.shape[-1])
            if affine is not None:
                return apply_affine(inputs, *affine)
        if not self.kernels:
            return self.layer(inputs, **kwargs)
        rounded = {id(getattr(self.layer, name)): self._rounded(name) for name in self.kernels}
        variables = self.layer.variables
        values = [
            rounded[id(variable)] if id(variable) in rounded else tf.convert_to_tensor(variable)
            for variable in variables
        ]
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))) as scope:
            outputs = self.layer(inputs, **kwargs)
        for variable, before in zip(variables, values, strict=True):
            after = scope.get_current_value(variable)
            if after is not before:
                variable.assign(after)
        return outputs

    def _rounded(self, name: str):
        """The kernel in 8 bits; in an export a constant, which the converter then turns into the same integers."""
        kernel, channel_axes = getattr(self.layer, name), self.kernels[name]
        if not in_mode("export"):
            return fakequant.fake_quantize_kernel(tf.convert_to_tensor(kernel), channel_axes)
        stored = keras.ops.convert_to_numpy(kernel)
        with tf.init_scope():
            rounded = fakequant.fake_quantize_kernel(tf.constant(stored), channel_axes)
            if channel_axes or not range_axes(self.layer, name):
                return rounded
            stored, (low, high) = rounded.numpy(), map(float, fakequant.weight_range(rounded, per_channel=False))
        # The converter splits a convolution's range by channel unless an operation in the graph gives one for all.
        return fakequant.fake_quantize(tf.constant(stored), low, high, narrow=True)

    def compute_output_spec(self, inputs, training=None, **kwargs):
        return self.layer.compute_output_spec(inputs, **kwargs)

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self):
        config = super().get_config()
        config.pop("dtype")
        return {
            **config,
            "kernels": {name: list(axes) for name, axes in self.kernels.items()},
            "activation": keras.activations.serialize(self.activation) if self.activation else None,
            "quantize_output": self.output_range is not None,
            "affine": self.affine,
        }

    def stripped(self, state):
        config = {"activation": keras.activations.serialize(self.activation)} if self.activation else {}
        return [state.copy(self.layer, **config)]

    def ranges(self):
        found = {"pre_activation": self.pre_activation, "output": self.output_range}
        return {name: part for name, part in found.items() if part is not None}
