"""The layers that a quantized model is made of."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tfopt.core.layers.activations import activation_kind, own_activation
from tfopt.core.layers.registry import prunable_weights, range_axes
from tfopt.core.models.fake_quantized import in_mode
from tfopt.quantization import fakequant
from tfopt.quantization.lowering import affine_terms, apply_affine, integer_activation, integer_form, joins
from tfopt.quantization.ranges import ActivationRange, BatchCount, RangeOwner

if TYPE_CHECKING:
    from tfopt.core.models.graph import Graph
    from tfopt.core.models.rewrite import Rewrite
    from tfopt.quantization.treatment import Treatment


def _with_signature(method: Any) -> Any:
    """Keras asks for the signatures of `__init__` and `call` of every layer; from an attribute they cost nothing."""
    method.__signature__ = inspect.signature(method)
    return method


@keras.saving.register_keras_serializable(package="tfopt")
class FakeQuantize(RangeOwner, keras.layers.Layer):
    """Rounds activations to 8 bits within a range that follows the data during training.

    Args:
        observer: `"moving_average"` of the batches' ranges, or `"all_values"`, the widest range seen.
        kwargs: of `RangeOwner` and `keras.layers.Layer`.

    Input and output: tensors of the same shape and dtype.
    """

    def __init__(self, observer: str = "moving_average", **kwargs: Any):
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        self.observer = observer
        self.range = ActivationRange(self, "range", observer)
        self.range.masking = self.masking
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        self.range.build()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.range(inputs, training)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "observer": self.observer}
        config.pop("dtype")
        return config

    def stripped(self, state: Rewrite) -> list:
        return []

    def ranges(self) -> dict:
        return {"output": self.range}


class QuantizedWrapper(RangeOwner, keras.layers.Wrapper):
    """What stands in the place of a Keras layer: holds it whole, with its weights, and owns ranges.

    Args:
        layer: the layer; its weights stay where they are, so that constraints on them go on holding.
    """

    wraps_layer = True

    @_with_signature
    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(layer, **{"name": layer.name, **kwargs, "dtype": "float32", "autocast": False})
        self._ranges: dict[str, ActivationRange] = {}
        self.supports_masking = layer.supports_masking

    @classmethod
    def is_needed(cls, layer: Any, graph: Graph | None) -> bool:
        """False where the layer itself will do; `graph` is None for a layer inside another."""
        return True

    @classmethod
    def float_reason(cls, layer: keras.layers.Layer) -> str:
        """Why this layer, with these options, stays float, and what to do about it; empty if it runs as integers."""
        return ""

    @classmethod
    def float_inside(cls, layer: keras.layers.Layer) -> str:
        """Why the inner operations of a layer run in float, between integers; empty if they do not."""
        return ""

    def add_range(self, name: str) -> ActivationRange:
        """A new range, to be called in `__init__`; its weight is created when the layer is built."""
        self._ranges[name] = ActivationRange(self, f"{name}_range")
        return self._ranges[name]

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        for activation_range in self._ranges.values():
            activation_range.build()

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("training", None)
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("dtype")
        return config

    def stripped(self, state: Rewrite) -> list:
        return [state.copy(self.layer)]

    def ranges(self) -> Any:
        return self._ranges


@keras.saving.register_keras_serializable(package="tfopt")
class QuantizedLayer(QuantizedWrapper):
    """A layer that runs with kernels rounded to 8 bits, and quantizes its output.

    The kernels themselves stay float weights, and are trained as such: the gradient passes the rounding unchanged.

    Args:
        layer: the layer; with kernels, its own activation has to be linear if `activation` is given.
        kernels: attribute of a kernel -> its channel axes (see `fakequant.fake_quantize_kernel`).
        activation: an activation function to apply behind the layer, or its name; a range is put between the two.
        quantize_output: whether the output gets a range.
        affine: whether the layer scales and shifts channels on its own, and is exported as one operation that does.
        freeze_batch_norm_after: around batch normalization: after so many calls in training it normalizes by its
            moving statistics, which stay as they are; None never.
        kwargs: of `RangeOwner` and `keras.layers.Layer`.
    """

    @_with_signature
    def __init__(
        self,
        layer: keras.layers.Layer,
        kernels: dict[str, tuple[int, ...]] | None = None,
        activation: Any = None,
        quantize_output: bool = True,
        affine: bool = False,
        freeze_batch_norm_after: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(layer, **kwargs)
        self.kernels = {name: tuple(axes) for name, axes in (kernels or {}).items()}
        self.activation = keras.activations.get(activation) if activation else None
        self.affine = affine
        self.freeze_batch_norm_after = freeze_batch_norm_after
        self.pre_activation = self.add_range("pre_activation") if activation else None
        self.output_range = self.add_range("output") if quantize_output else None
        if self.output_range is not None:
            self.output_range.masking = self.masking

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.statistics_frozen = None
        if self.freeze_batch_norm_after is not None:
            self.statistics_frozen = BatchCount(self, "statistics_batches", self.freeze_batch_norm_after)

    @classmethod
    def of(cls, layer: keras.layers.Layer, wanted: Treatment, state: Rewrite, **options: Any) -> QuantizedLayer:
        """The wrapper around a copy of `layer`, as `Rewrite` puts it in the layer's place."""
        config = {"activation": "linear"} if wanted.activation else {}
        return cls(
            state.copy(layer, **config),
            wanted.kernels,
            activation=own_activation(wanted.activation),
            quantize_output=wanted.output,
            affine=wanted.affine,
            **options,
        )

    @_with_signature
    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        if self.statistics_frozen is not None and training and self.trainable:
            outputs = self._normalize(inputs, self.statistics_frozen.reached(), **kwargs)
        else:
            outputs = self.run(inputs, training, **kwargs)  # Keras hands `training` on to layers called inside a layer
        if self.activation is not None and self.pre_activation is not None:
            outputs = self._activated(self.activation, self.pre_activation(outputs, training))
        if self.output_range is not None:
            outputs = self.output_range(outputs, training)
        return outputs

    def run(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        if self.affine and in_mode("export"):
            affine = affine_terms(self.layer, inputs.shape[-1])
            if affine is not None:
                return apply_affine(inputs, *affine)
        if self.output_range is not None and joins(self.layer) and in_mode("export"):
            return self.layer(joined(inputs, self.output_range), **kwargs)
        if self.output_range is not None and self.activation_bits == 8 and in_mode("export"):
            form = integer_form(self.layer, self.output_range)
            if form is not None:
                return form(inputs)
        return run_rounded(self.layer, self.kernels, 8, inputs, **kwargs)

    def _activated(self, activation: Any, values: Any) -> Any:
        if self.activation_bits == 8:
            return (integer_activation(activation) if in_mode("export") else activation)(values)
        kind = activation_kind(activation)
        if kind is not None and kind.in_16_bits:
            return activation(values)
        return set_apart(activation(set_apart(values)))

    def _normalize(self, inputs: Any, frozen: Any, **kwargs: Any) -> Any:
        """Batch normalization by the statistics of the batch, or by the moving ones once they are frozen."""
        statistics = self.layer.non_trainable_variables

        def run(training: Any) -> tuple:
            # Replicas agree on what is assigned, which TensorFlow does not allow inside a branch.
            with keras.StatelessScope() as scope:
                outputs = self.layer(inputs, training=training, **kwargs)
            updated = [scope.get_current_value(variable) for variable in statistics]
            return outputs, [
                tf.convert_to_tensor(variable if value is None else value)
                for variable, value in zip(statistics, updated, strict=True)
            ]

        outputs, values = tf.cond(frozen, lambda: run(False), lambda: run(True))
        for variable, value in zip(statistics, values, strict=True):
            variable.assign(value)
        return outputs

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernels": {name: list(axes) for name, axes in self.kernels.items()},
            "activation": keras.activations.serialize(self.activation) if self.activation else None,
            "quantize_output": self.output_range is not None,
            "affine": self.affine,
            "freeze_batch_norm_after": self.freeze_batch_norm_after,
        }

    def stripped(self, state: Rewrite) -> list:
        layer: Any = state.copy(self.layer)
        if self.activation is not None:
            layer.activation = own_activation(self.activation)
        return [layer]


def run_rounded(layer: Any, kernels: dict[str, tuple[int, ...]], bits: int, *args: Any, **kwargs: Any) -> Any:
    """What `layer` gives with rounded kernels; their float values stay its weights.

    Args:
        layer: a built Keras layer or an op.
        kernels: name of a kernel as `prunable_weights` gives it, or of an attribute -> its channel axes.
        bits: of the kernels, as `fakequant.fake_quantize_kernel` takes them.
        args, kwargs: of the layer's call.
    """
    if not kernels:
        return layer(*args, **kwargs)
    if not layer.built:
        layer(*args, **kwargs)
    rounded = {
        id(kernel_of(layer, name)): (axes, not axes and len(range_axes(layer, name)) == 1)
        for name, axes in kernels.items()
    }
    variables = layer.variables
    values = [
        rounded_kernel(variable, rounded[id(variable)][0], bits=bits, is_one_range=rounded[id(variable)][1])
        if id(variable) in rounded
        else tf.convert_to_tensor(variable)
        for variable in variables
    ]
    with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))) as scope:
        outputs = layer(*args, **kwargs)
    for variable, before in zip(variables, values, strict=True):
        after = scope.get_current_value(variable)
        if after is not before:
            variable.assign(after)
    return outputs


def kernel_of(layer: keras.layers.Layer, name: str) -> keras.Variable:
    """A kernel by its name in `prunable_weights`, or by the name of the attribute."""
    return prunable_weights(layer)[name] if "/" in name else getattr(layer, name)


def rounded_kernel(
    kernel: keras.Variable,
    channel_axes: tuple[int, ...],
    columns: slice = slice(None),
    bits: int = 8,
    is_one_range: bool = False,
) -> Any:
    """The kernel (or some columns of it) rounded; in an export a constant, which the converter then turns into the
    same integers. `is_one_range`: LiteRT takes a range for each channel, but this kernel has one for all."""
    if not in_mode("export"):
        return fakequant.fake_quantize_kernel(tf.convert_to_tensor(kernel)[..., columns], channel_axes, bits)
    stored = keras.ops.convert_to_numpy(kernel)
    with tf.init_scope():
        rounded = fakequant.fake_quantize_kernel(tf.constant(stored[..., columns]), channel_axes, bits)
        if not is_one_range:
            return rounded
        stored, (low, high) = rounded.numpy(), map(float, fakequant.weight_range(rounded, per_channel=False))
    # The converter splits a convolution's range by channel unless an operation in the graph gives one for all.
    return fakequant.fake_quantize(tf.constant(stored), low, high, narrow=True)


def joined(tensors: Any, own_range: ActivationRange) -> Any:
    """Each tensor in one and the same range, for an operation that `lowering.joins` them."""
    return keras.tree.map_structure(lambda values: own_range.rounded(set_apart(values)), tensors)


def set_apart(values: Any) -> Any:
    """The same values; in an export behind two casts, across which the converter carries no integers.

    It quantizes each operation between two quantized tensors. The casts are taken out of the file afterwards, see
    `deploy/integers.py`.
    """
    if not in_mode("export") or not tf.is_tensor(values) or not values.dtype.is_floating:
        return values
    return tf.cast(tf.cast(values, tf.float64), values.dtype)
