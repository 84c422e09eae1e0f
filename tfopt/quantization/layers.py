"""The layers that a quantized model is made of."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfopt.core.modes import FakeQuantized, in_mode
from tfopt.quantization import fakequant
from tfopt.quantization.affine import affine_terms, apply_affine


@keras.saving.register_keras_serializable(package="tfopt")
class FakeQuantize(FakeQuantized, keras.layers.Layer):
    """Rounds activations to 8 bits within a range that follows the data during training.

    Args:
        observer: `"moving_average"` of the batches' ranges, or `"all_values"`, the widest range seen.

    Input and output: tensors of the same shape and dtype. The range is two scalar weights, `low` and `high`; (0, 0)
    means that no data was seen yet, and values then pass unchanged.
    """

    def __init__(self, observer: str = "moving_average", **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        self.observer = observer
        self.supports_masking = True

    def build(self, input_shape=None):
        self.low = self._scalar("low")
        self.high = self._scalar("high")

    def _scalar(self, name):
        return self.add_weight(
            shape=(), initializer="zeros", trainable=False, name=name, aggregation="only_first_replica"
        )

    def call(self, inputs, training=None):
        values = tf.cast(inputs, tf.float32)
        low, high = tf.convert_to_tensor(self.low), tf.convert_to_tensor(self.high)
        if in_mode("calibrate"):
            self._observe(values, low, high, fakequant.widest_range)
            return inputs
        if training and self.trainable:
            widest = self.observer == "all_values"
            low, high = self._observe(values, low, high, fakequant.widest_range if widest else fakequant.moving_range)
            return tf.cast(fakequant.fake_quantize(values, low, high), inputs.dtype)
        rounded = fakequant.fake_quantize(values, low, high)
        if not in_mode("export"):
            rounded = tf.where(fakequant.is_unset(low, high), values, rounded)
        return tf.cast(rounded, inputs.dtype)

    def _observe(self, values, low, high, follow):
        low, high = follow(low, high, *fakequant.observed_range(values))
        self.low.assign(low)
        self.high.assign(high)
        return low, high

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self):
        config = {**super().get_config(), "observer": self.observer}
        config.pop("dtype")
        return config

    def stripped(self, state):
        return []

    def unset_ranges(self):
        return [self.path] if float(self.low.numpy()) == float(self.high.numpy()) else []


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

    def __init__(self, layer, kernels=None, activation=None, quantize_output=True, affine=False, **kwargs):
        kwargs = {"name": layer.name, **kwargs, "dtype": "float32", "autocast": False}
        super().__init__(layer, **kwargs)
        self.kernels = {name: tuple(axes) for name, axes in (kernels or {}).items()}
        self.activation = keras.activations.get(activation) if activation else None
        self.affine = affine
        self.pre_activation = FakeQuantize(name="pre_activation") if activation else None
        self.output_range = FakeQuantize(name="output_range") if quantize_output else None
        self.supports_masking = layer.supports_masking

    def build(self, input_shape):
        super().build(input_shape)
        for quantizer in (self.pre_activation, self.output_range):
            if quantizer is not None:
                quantizer.build()
                quantizer.built = True

    def call(self, inputs, training=None, **kwargs):
        outputs = self._run(inputs, **kwargs)  # Keras hands `training` on to layers called inside a layer
        if self.activation is not None:
            outputs = self.activation(self.pre_activation(outputs, training=training))
        if self.output_range is not None:
            outputs = self.output_range(outputs, training=training)
        return outputs

    def _run(self, inputs, **kwargs):
        if self.affine and in_mode("export"):
            affine = affine_terms(self.layer, inputs.shape[-1])
            if affine is not None:
                return apply_affine(inputs, *affine)
        if not self.kernels:
            return self.layer(inputs, **kwargs)
        rounded = {id(getattr(self.layer, name)): axes for name, axes in self.kernels.items()}
        variables = self.layer.variables
        values = [
            _rounded(variable, rounded[id(variable)]) if id(variable) in rounded else tf.convert_to_tensor(variable)
            for variable in variables
        ]
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))) as scope:
            outputs = self.layer(inputs, **kwargs)
        for variable, before in zip(variables, values, strict=True):
            after = scope.get_current_value(variable)
            if after is not before:
                variable.assign(after)
        return outputs

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

    def unset_ranges(self):
        quantizers = [q for q in (self.pre_activation, self.output_range) if q is not None]
        return [path for quantizer in quantizers for path in quantizer.unset_ranges()]


def _rounded(kernel: keras.Variable, channel_axes: tuple[int, ...]):
    """The kernel in 8 bits; in an export a constant, which the converter then turns into the same integers."""
    if not in_mode("export"):
        return fakequant.fake_quantize_kernel(tf.convert_to_tensor(kernel), channel_axes)
    stored = keras.ops.convert_to_numpy(kernel)
    with tf.init_scope():
        return fakequant.fake_quantize_kernel(tf.constant(stored), channel_axes)
