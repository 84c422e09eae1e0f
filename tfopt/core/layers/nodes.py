"""Nodes of an opened layer that no layer or op of Keras stands for: its weights, constants, sizes and functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import Functional, mask_of, op_class
from tfopt.core.layers.channels import Channels, Context, shape_rule
from tfopt.core.layers.registry import Output, Record, enter
from tfopt.core.tracing_internals import keep_mask, kept_mask, output_spec

PACKAGE = "tfopt"
# What a model file may call when it is loaded: functions that compute, none that reach files, processes or Python code.
_MODULES = {
    "keras.ops": keras.ops,
    **{f"tf.{name}": getattr(tf, name) for name in ("math", "nn", "linalg", "image", "signal", "strings", "bitwise")},
}
# fmt: off
_OF_TF = frozenset(
    (
        "argsort",
        "boolean_mask",
        "broadcast_to",
        "cast",
        "clip_by_value",
        "concat",
        "cumsum",
        "dynamic_partition",
        "dynamic_stitch",
        "einsum",
        "expand_dims",
        "eye",
        "fill",
        "gather",
        "gather_nd",
        "identity",
        "linspace",
        "meshgrid",
        "norm",
        "one_hot",
        "ones",
        "ones_like",
        "pad",
        "range",
        "rank",
        "repeat",
        "reshape",
        "reverse",
        "reverse_sequence",
        "roll",
        "round",
        "scatter_nd",
        "sequence_mask",
        "shape",
        "size",
        "slice",
        "sort",
        "split",
        "squeeze",
        "stack",
        "stop_gradient",
        "strided_slice",
        "tensor_scatter_nd_update",
        "tensordot",
        "tile",
        "transpose",
        "unique",
        "unstack",
        "where",
        "zeros",
        "zeros_like",
    )
)
# fmt: on


class WeightTensor(keras.KerasTensor):
    """A symbolic tensor in a weight's place; code that asks a variable for its value gets it as well."""

    @property
    def value(self) -> WeightTensor:
        return self


@keras.saving.register_keras_serializable(package=PACKAGE)
class OpenedModel(Functional):
    """The graph of a layer in the layer's place: masks stay on the tensors, where the layers inside look for them."""

    supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None  # those inside have said it

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return super().call(inputs, training=training, mask=keras.tree.map_structure(mask_of, inputs))

    def _run_through_graph(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        for value in keras.tree.flatten(inputs):
            keep_mask(value)
        return super()._run_through_graph(inputs, *args, **kwargs)


@keras.saving.register_keras_serializable(package=PACKAGE)
class InferenceModel(OpenedModel):
    """A graph that runs in inference while the model around it trains, as `layer(x, training=False)` does."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return super().call(inputs, training=False)  # whatever it is told


@keras.saving.register_keras_serializable(package=PACKAGE)
class OwnWeight(keras.layers.Layer):
    """A weight as a layer of the graph: gives it, whatever it is called on.

    Args:
        shape: of the weight.
        weight: name of the weight.
        weight_dtype: of the weight.
        trained: whether it is a trainable weight.
        regularizer, constraint: of the weight.
        variable: the weight itself; a new one of these properties by default.
        **kwargs: `name` and `dtype`, as all layers have them.

    Example:
        >>> layer = OwnWeight((3,), "scale", "float32")
        >>> layer(keras.ops.ones((2, 4))).shape
        TensorShape([3])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        weight: str,
        weight_dtype: str,
        trained: bool = True,
        regularizer: Any = None,
        constraint: Any = None,
        variable: keras.Variable | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True  # a mask of what it is called on ends here
        self._convert_input_args = False  # what it is called on stays as it is, text too
        self.weight = variable
        self._config: dict[str, Any] = {
            "shape": list(shape),
            "weight": weight,
            "weight_dtype": weight_dtype,
            "trained": trained,
            "regularizer": keras.regularizers.get(regularizer),
            "constraint": keras.constraints.get(constraint),
        }

    @classmethod
    def around(cls, variable: keras.Variable, name: str, dtype: Any) -> OwnWeight:
        """The layer of a weight that exists."""
        return cls(
            variable.shape,
            variable.name,
            variable.dtype,
            variable.trainable,
            variable.regularizer,
            variable.constraint,
            variable,
            name=name,
            dtype=dtype,
        )

    def build(self, input_shape: Any = None) -> None:
        if self.weight is None:
            config = self._config
            self.weight = self.add_weight(
                shape=config["shape"],
                initializer="zeros",
                dtype=config["weight_dtype"],
                trainable=config["trained"],
                regularizer=config["regularizer"],
                constraint=config["constraint"],
                name=config["weight"],
            )

    def call(self, inputs: Any) -> Any:
        value = keras.ops.convert_to_tensor(self.weight)
        return keras.ops.cast(value, self._dtype_given()) if value.dtype != self._dtype_given() else value

    def _dtype_given(self) -> str:
        """Weights are given as a layer with this dtype policy reads them: floats in its compute dtype."""
        dtype = self._config["weight_dtype"]
        return self.compute_dtype if keras.backend.is_float_dtype(dtype) else dtype

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        return WeightTensor(tuple(self._config["shape"]), dtype=self._dtype_given())

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None

    def get_config(self) -> dict[str, Any]:
        config = dict(self._config)
        config["regularizer"] = keras.regularizers.serialize(config["regularizer"])
        config["constraint"] = keras.constraints.serialize(config["constraint"])
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package=PACKAGE)
class MaskOf(keras.layers.Layer):
    """The mask that a tensor carries as a tensor of the graph; all True where it carries none.

    Example:
        >>> MaskOf()(keras.layers.Masking()(keras.ops.array([[[0.0], [2.0]]]))).numpy().tolist()
        [[False, True]]
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        mask = kept_mask(inputs)
        return keras.ops.ones(keras.ops.shape(inputs)[:2], "bool") if mask is None else mask

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape[:2], dtype="bool")

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None


@keras.saving.register_keras_serializable(package=PACKAGE)
class WithMask(keras.layers.Layer):
    """Its first input, which carries the second one as its mask from here on.

    Example:
        >>> mask_of(WithMask()([keras.ops.ones((1, 2, 3)), keras.ops.array([[True, False]])])).numpy().tolist()
        [[True, False]]
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        return tf.identity(inputs[0])  # the input itself keeps the mask that it has

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        return keras.KerasTensor(inputs[0].shape, dtype=inputs[0].dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return inputs[1]


@keras.saving.register_keras_serializable(package=PACKAGE)
class Constant(keras.Operation):
    """An array as an op of the graph: gives it, whatever it is called on.

    Example:
        >>> Constant(keras.ops.arange(3))(keras.ops.ones((2, 4))).numpy().tolist()
        [0, 1, 2]
    """

    def __init__(self, value: Any, dtype: str | None = None, name: str | None = None):
        super().__init__(name=name)
        self.value = tf.convert_to_tensor(value, dtype)

    def call(self, inputs: Any) -> Any:
        return self.value

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        return keras.KerasTensor(tuple(self.value.shape), dtype=keras.backend.standardize_dtype(self.value.dtype))

    def get_config(self) -> dict[str, Any]:
        return {"value": self.value.numpy().tolist(), "dtype": self.value.dtype.name, "name": self.name}


@keras.saving.register_keras_serializable(package=PACKAGE)
class Size(keras.Operation):
    """The size of a tensor along one axis, as a number of the graph.

    Example:
        >>> int(Size(0)(keras.ops.ones((2, 4))))
        2
    """

    def __init__(self, axis: int, name: str | None = None):
        super().__init__(name=name)
        self.axis = axis

    def call(self, inputs: Any) -> Any:
        return keras.ops.convert_to_tensor(keras.ops.shape(inputs)[self.axis], dtype="int32")

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        return keras.KerasTensor((), dtype="int32")

    def get_config(self) -> dict[str, Any]:
        return {"axis": self.axis, "name": self.name}


# What is the same whatever values it is called on.
FIXED = (Constant, Size, *map(op_class, ("ZerosLike", "OnesLike")))


@keras.saving.register_keras_serializable(package=PACKAGE)
class FunctionCall(keras.Operation):
    """A call of a function of `keras.ops` or TensorFlow, any of whose arguments may be tensors of the graph.

    Args:
        function: its public name, as `"tf.nn.depth_to_space"`.

    Raises:
        InvalidArgumentError: for a name that is none, or of a function that may not be called from a model file.

    Example:
        >>> FunctionCall("tf.math.squared_difference")(keras.ops.ones(2), 3.0).numpy().tolist()
        [4.0, 4.0]
    """

    def __init__(self, function: str, name: str | None = None):
        super().__init__(name=name)
        self.function = function
        self.call = function_named(function)  # itself, so that its parameters have their names

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return output_spec(self.call, args, kwargs)

    def get_config(self) -> dict[str, Any]:
        return {"function": self.function, "name": self.name}


@keras.saving.register_keras_serializable(package=PACKAGE)
class MovingCall(FunctionCall):
    """A call of a function that only moves or repeats values."""


_MOVES = {f"keras.ops.{name}" for name in ("broadcast_to", "reshape", "tile", "repeat", "slice")}
_MOVES |= {f"tf.{name}" for name in ("broadcast_to", "reshape", "tile", "repeat", "slice", "gather", "strided_slice")}


def call_of(function: str) -> FunctionCall:
    """The node of a function, by its public name."""
    return (MovingCall if function in _MOVES else FunctionCall)(function)


def function_named(name: str) -> Callable[..., Any]:
    """The function of a public name.

    Example:
        >>> function_named("keras.ops.relu") is keras.ops.relu
        True
    """
    space, _, own = name.rpartition(".")
    module = tf if space == "tf" and own in _OF_TF else _MODULES.get(space)
    function = getattr(module, own, None)
    function = getattr(function, "instead_of", function)  # while a layer is opened, others stand in their place
    if not callable(function):
        raise InvalidArgumentError(
            "A function in an opened layer must be one of `keras.ops`, or one of TensorFlow that only computes.",
            received=name,
            fix="Write that step with `keras.ops`.",
        )
    return function


def _no_channels(context: Context, *_: Any, **__: Any) -> Channels:
    """What does not depend on the values that it is called on: no channel of these ends here."""
    return context.fixed()


def _weight_channels(context: Context, *_: Any, **__: Any) -> Channels:
    """A weight follows the channels of what it meets, and its size with it."""
    if context.op.weight is None:
        return context.fixed()
    channels = context.weight(context.op.weight)
    context.graph.size(context.op, ("shape",), shape_rule(channels))
    return channels


def _first(context: Context, inputs: list[Channels], *_: Any, **__: Any) -> Channels:
    return context.same(inputs[0])


enter(Record(output=Output.RANGE, channels=_weight_channels), OwnWeight)
enter(Record(output=Output.RANGE, channels=_no_channels), Constant)
enter(Record(channels=_no_channels), Size, MaskOf)
enter(Record(output=Output.SAME, channels=_first), WithMask)
enter(Record(output=Output.SAME), MovingCall)
enter(Record(output=Output.FLOAT, reason="unknown to tfopt; `@tfopt.register_layer` makes it known"), FunctionCall)
