"""The layer of a quantized model that computes in float."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.models.fake_quantized import in_mode
from tfopt.quantization.layers import joined, run_rounded, set_apart
from tfopt.quantization.masking import clipped
from tfopt.quantization.ranges import ActivationRange, RangeOwner

NAMES = "tensor_arguments"  # of the call around an op: the names of the op's arguments that are tensors, with blanks


@keras.saving.register_keras_serializable(package="tfopt")
class FloatLayer(RangeOwner, keras.layers.Layer):
    """A layer or op that computes in float: its kernels are rounded, or it stands between layers that are integers.

    Args:
        layer: the layer, or the op that a `keras.ops` function left in the graph.
        kernels: name of a kernel, with the names of the layers that it lies in, as `"cell/kernel"` -> its channel axes
            (see `fakequant.fake_quantize_kernel`); the others stay as they are.
        bits: of the kernels.
        quantize_output: whether the output gets a range, for a layer of integers that reads it.
        apart: whether integers come in, of which the converter is not to make an integer operation.
        kwargs: of `RangeOwner` and `keras.layers.Layer`.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        kernels: dict[str, tuple[int, ...]] | None = None,
        bits: int | None = 8,
        quantize_output: bool = False,
        apart: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**{"name": layer.name, **kwargs, "dtype": "float32", "autocast": False})
        self.layer = layer
        self.kernels = {name: tuple(axes) for name, axes in (kernels or {}).items()}
        self.weight_only_bits = bits if kernels else None
        self.apart = apart
        self.output_range = ActivationRange(self, "output_range") if quantize_output else None
        if self.output_range is not None:
            self.output_range.masking = self.masking
        self.supports_masking = True

    @property
    def wraps_layer(self) -> bool:
        return isinstance(self.layer, keras.layers.Layer)

    def build(self, input_shape: Any) -> None:
        if isinstance(self.layer, keras.layers.RNN) and not self.layer.built:
            self.layer.build(input_shape)  # a stateful one creates its states here, and could not within `call`
            self.layer.built = True
        if self.output_range is not None:
            self.output_range.build()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (self.wraps_layer and args) or NAMES in kwargs:
            return super().__call__(*args, **kwargs)
        # Ops take constants in any place, as `1 - x`, and a layer may be called by names alone. Tensors go first here.
        named = {**inspect.signature(self.layer.call).bind(*args, **kwargs).arguments}
        names = [name for name, value in named.items() if _is_tensors(value)]
        tensors = [named.pop(name) for name in names]
        # Keras takes no arrays beside symbolic tensors, and a config none at all.
        if self.masking is not None:
            named = {name: _as_list(value) for name, value in named.items()}
        return super().__call__(*tensors, **{**named, NAMES: " ".join(names)})

    def arguments_inside(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments that the op was called with, of those of this layer's call."""
        if NAMES not in kwargs:
            return args, kwargs
        constants = self._constants({name: value for name, value in kwargs.items() if name != NAMES})
        tensors = dict(zip(kwargs[NAMES].split(), args, strict=True))
        bound = inspect.signature(self.layer.call).bind(**tensors, **constants)
        return bound.args, bound.kwargs

    def _constants(self, constants: dict) -> dict:
        """The constant arguments of a mask, lists of floats made arrays again."""
        if self.masking is None:
            return constants
        arrays = {name: np.asarray(value) for name, value in constants.items() if isinstance(value, list)}
        return {
            **constants,
            **{name: each.astype("float32") for name, each in arrays.items() if each.dtype.kind == "f"},
        }

    def call(self, inputs: Any, *others: Any, training: Any = None, **kwargs: Any) -> Any:
        if self.apart:
            inputs, others, kwargs = keras.tree.map_structure(set_apart, (inputs, others, kwargs))
        if NAMES in kwargs:
            tensors = dict(zip(kwargs.pop(NAMES).split(), (inputs, *others), strict=True))
            outputs = self.layer(**tensors, **self._constants(kwargs))
        else:
            outputs = run_rounded(self.layer, self.kernels, self.weight_only_bits or 8, inputs, *others, **kwargs)
        if self.output_range is None:
            return outputs
        if in_mode("export") and self.masking is not None:  # LiteRT's rounding takes no number that is beyond 32 bits
            outputs = tf.clip_by_value(outputs, *self.output_range.bounds())
        return self.output_range(set_apart(outputs), training)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        if self.wraps_layer:
            return super().compute_output_spec(*args, **kwargs)
        kwargs.pop("training", None)
        args, kwargs = self.arguments_inside(args, kwargs)
        spec = self.layer.compute_output_spec(*args, **kwargs)
        # Keras takes the product with a number for sparse, which no layer behind it may find.
        return keras.tree.map_structure(lambda tensor: keras.KerasTensor(tensor.shape, tensor.dtype), spec)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        if not self.wraps_layer or isinstance(previous_mask, (list, tuple)):
            return None
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("dtype")
        return {
            **config,
            "layer": keras.saving.serialize_keras_object(self.layer),
            "kernels": {name: list(axes) for name, axes in self.kernels.items()},
            "bits": self.weight_only_bits,
            "quantize_output": self.output_range is not None,
            "apart": self.apart,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        layer = keras.saving.deserialize_keras_object(config["layer"], custom_objects=custom_objects)
        return cls(**{**config, "layer": layer})

    def stripped(self, state: Any) -> list:
        return [state.copy(self.layer)]

    def ranges(self) -> Any:
        return {} if self.output_range is None else {"output": self.output_range}


@keras.saving.register_keras_serializable(package="tfopt")
class JoiningOp(FloatLayer):
    """An op that takes its inputs in the range of its output, see `lowering.joins`."""

    def call(self, inputs: Any, *others: Any, training: Any = None, **kwargs: Any) -> Any:
        tensors = dict(zip(kwargs.pop(NAMES).split(), (inputs, *others), strict=True))
        own_range: Any = self.output_range
        if in_mode("export"):
            tensors = joined(tensors, own_range)
        return own_range(self.layer(**tensors, **kwargs), training)


@keras.saving.register_keras_serializable(package="tfopt")
class MaskingOp(FloatLayer):
    """An op that hides scores from a softmax, in integers: the constants among its arguments are clipped for the file.

    Args:
        limit: of the constants, as `masking.clipped` takes it; "choice": all inputs are in the range of the output.
        kwargs: of `FloatLayer`.
    """

    def __init__(self, layer: Any, limit: str = "factor", **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.limit = limit

    def call(self, inputs: Any, *others: Any, training: Any = None, **kwargs: Any) -> Any:
        tensors = dict(zip(kwargs.pop(NAMES).split(), (inputs, *others), strict=True))
        kwargs = self._constants(kwargs)
        own_range: Any = self.output_range
        if in_mode("export"):
            clip = clipped(self.limit, own_range.bounds())
            kwargs = {name: clip(value) for name, value in kwargs.items()}
            if self.limit == "choice":
                values = {name: value for name, value in tensors.items() if value.dtype.is_floating}
                tensors = {**tensors, **joined(values, own_range)}
        return own_range(self.layer(**tensors, **kwargs), training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "limit": self.limit}


def takes_tensors_only(op: keras.Operation, arguments: tuple[tuple, dict]) -> bool:
    """False for a call with a structure of tensors and numbers, as a shape with a size, or with any number of tensors.

    Layers do not take these.
    """
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in inspect.signature(op.call).parameters.values()):
        return False
    args, kwargs = arguments
    parts = [keras.tree.flatten(value) for value in (*args, *kwargs.values())]
    tensors = [[isinstance(part, keras.KerasTensor) for part in flat] for flat in parts]
    return all(all(flat) or not any(flat) for flat in tensors)


def _is_tensors(value: Any) -> bool:
    """True for a tensor, or a structure of nothing else; a shape of sizes and numbers is none."""
    parts = keras.tree.flatten(value)
    return bool(parts) and all(isinstance(part, keras.KerasTensor) for part in parts)


def _as_list(value: Any) -> Any:
    """An array of floats, or a tensor of which the values are known, as lists of numbers."""
    if isinstance(value, keras.KerasTensor) or (not hasattr(value, "numpy") and not isinstance(value, np.ndarray)):
        return value
    return np.asarray(value).tolist()
