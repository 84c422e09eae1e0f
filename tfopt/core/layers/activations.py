"""Activation functions, and the layers and ops that apply one.

What a function is, is decided by the object: a user's own function is the user's, whatever its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import activations
from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers.channels import Channels, Context, Unsupported, value_by_value
from tfopt.core.layers.registry import Output, Record, enter

_NO_INTEGERS = "LiteRT has no integer version"


@dataclass(frozen=True, eq=False)
class Activation:
    """What is known of an activation function.

    Args:
        function: the one of `keras.activations`.
        output: how its output is quantized.
        in_16_bits: LiteRT and its converter have an integer operation with 16-bit activations for it. Found by
            converting and running each with LiteRT 2.3 and the converter of TensorFlow 2.21.
        per_value: each value of the output depends on one value of the input.
    """

    function: Callable
    output: Output
    in_16_bits: bool = False
    per_value: bool = True


_KINDS: dict[int, Activation] = {}  # by the id of a function: a user's callable may compare as it likes


def _enter_functions(*functions: Callable, **facts: Any) -> None:
    for function in functions:
        _KINDS[id(function)] = Activation(function, **facts)


_enter_functions(
    *(activations.linear, activations.relu, activations.relu6, activations.leaky_relu, activations.silu),
    output=Output.RANGE,
    in_16_bits=True,
)
_enter_functions(
    *(activations.elu, activations.gelu, activations.hard_silu, activations.hard_sigmoid, activations.hard_tanh),
    activations.exponential,
    output=Output.RANGE,
)
_enter_functions(activations.sigmoid, activations.tanh, output=Output.FIXED, in_16_bits=True)
_enter_functions(activations.softmax, output=Output.FIXED, in_16_bits=True, per_value=False)
_enter_functions(activations.log_softmax, output=Output.FIXED, per_value=False)
_enter_functions(
    *(activations.celu, activations.selu, activations.softplus, activations.softsign, activations.squareplus),
    *(activations.mish, activations.log_sigmoid, activations.tanh_shrink, activations.hard_shrink),
    *(activations.soft_shrink, activations.sparse_plus, activations.sparse_sigmoid, activations.threshold),
    output=Output.FLOAT,
)
_enter_functions(activations.sparsemax, activations.glu, output=Output.FLOAT, per_value=False)

# Functions of `keras.ops` and TensorFlow that compute the same with their default arguments.
_SAME = {
    activations.linear: (tf.identity,),
    activations.relu: (keras.ops.relu, tf.nn.relu),
    activations.relu6: (keras.ops.relu6, tf.nn.relu6),
    activations.leaky_relu: (keras.ops.leaky_relu, tf.nn.leaky_relu),
    activations.elu: (keras.ops.elu, tf.nn.elu),
    activations.selu: (keras.ops.selu, tf.nn.selu),
    activations.silu: (keras.ops.silu, tf.nn.silu),
    activations.gelu: (tf.nn.gelu,),
    activations.hard_silu: (keras.ops.hard_silu,),
    activations.hard_sigmoid: (keras.ops.hard_sigmoid,),
    activations.hard_tanh: (keras.ops.hard_tanh,),
    activations.exponential: (keras.ops.exp, tf.exp),
    activations.sigmoid: (keras.ops.sigmoid, tf.sigmoid),
    activations.tanh: (keras.ops.tanh, tf.tanh),
    activations.softmax: (keras.ops.softmax, tf.nn.softmax),
    activations.log_softmax: (keras.ops.log_softmax, tf.nn.log_softmax),
    activations.softplus: (keras.ops.softplus, tf.nn.softplus),
    activations.softsign: (keras.ops.softsign, tf.nn.softsign),
}
_KINDS.update((id(other), _KINDS[id(function)]) for function, others in _SAME.items() for other in others)


def activation_kind(function: Any) -> Activation | None:
    """What is known of an activation function, or of a layer given as one; None for a user's own and anything else.

    Example:
        >>> activation_kind(keras.activations.get("swish")).function is keras.activations.silu
        True
        >>> def relu(x):
        ...     return x + 1.0
        >>> activation_kind(relu) is None
        True
        >>> activation_kind(kl.ReLU(6.0)).function is keras.activations.relu6
        True
    """
    return _kind_of_layer(function) if isinstance(function, kl.Layer) else _KINDS.get(id(function))


def _kind_of_layer(layer: kl.Layer) -> Activation | None:
    """The same for an activation given as a layer: that of the function that computes the same, if there is one."""
    twin: Any = None
    if type(layer) is kl.Activation:
        twin = layer.activation
    elif type(layer) is kl.ReLU and layer.negative_slope == 0 and layer.threshold == 0:
        twin = {None: activations.relu, 6.0: activations.relu6}.get(layer.max_value)
    elif type(layer) is kl.ELU and layer.alpha == 1:
        twin = activations.elu
    elif type(layer) is kl.Softmax and layer.axis == -1:
        twin = activations.softmax
    elif type(layer) is kl.LeakyReLU:
        return replace(_KINDS[id(activations.leaky_relu)], function=layer)
    return _KINDS.get(id(twin))


def own_activation(function: Any) -> Any:
    """An activation for one more layer: the function itself, or a layer like the one that is given.

    Example:
        >>> slope = kl.LeakyReLU(0.1)
        >>> own_activation(tf.nn.silu) is tf.nn.silu, own_activation(slope) is slope
        (True, False)
    """
    if type(function) is kl.Activation:
        return function.activation
    return type(function).from_config(function.get_config()) if isinstance(function, kl.Layer) else function


def applies(op: Any, *functions: Callable) -> bool:
    """True if the activation of a layer is one of these functions of `keras.activations`.

    Example:
        >>> applies(kl.Dense(2, "relu"), keras.activations.relu, keras.activations.relu6)
        True
    """
    kind = activation_kind(getattr(op, "activation", None))
    return kind is not None and any(kind.function is function for function in functions)


def spelled(function: Any) -> str:
    """The name of an activation function or object, to be shown."""
    return getattr(function, "__name__", type(function).__name__)


def keeps_apart(function: Callable) -> bool:
    """True if no channel of a function's output depends on another channel of its input.

    A function that is not known is tried on a few values: where a channel becomes zero, the others must stay.

    Example:
        >>> keeps_apart(keras.activations.softmax), keeps_apart(lambda x: x * keras.ops.sigmoid(2.0 * x))
        (False, True)
    """
    kind = activation_kind(function)
    if kind is not None:
        return kind.per_value
    values = np.random.default_rng(0).normal(0, 3, (16, 4)).astype("float32")
    given = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(values)))
    if given.shape != values.shape:
        return False
    for channel in range(values.shape[1]):
        masked = values.copy()
        masked[:, channel] = 0.0
        changed = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(masked))) != given
        if changed[:, np.arange(values.shape[1]) != channel].any():
            return False
    return True


# Activation.


def _activation_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    if applies(context.op, activations.softmax, activations.log_softmax):
        return _softmax_channels(context, x)
    if not keeps_apart(context.op.activation):
        raise Unsupported(f"the function '{spelled(context.op.activation)}' mixes them")
    return value_by_value(context, x)


def _softmax_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    axes = np.atleast_1d(getattr(context.op, "axis", -1))
    for axis in {int(axis) % len(x.shape) for axis in axes} & set(x.along()):
        context.keep(x.labels[axis], "softmax mixes them")
    return context.same(x, zero=False)


def _function_in_16_bits(op: Any, tensors: int) -> bool:
    kind = activation_kind(op.activation)
    return kind is not None and kind.in_16_bits


enter(
    Record(
        output=Output.RANGE,
        in_16_bits=_function_in_16_bits,
        per_channel=lambda op: keeps_apart(op.activation),
        channels=_activation_channels,
    ),
    kl.Activation,
)


# Layers of one function.


def _relu_in_16_bits(op: Any, tensors: int) -> bool:
    return op.threshold == 0 and op.negative_slope == 0 and op.max_value in (None, 6)


def _prelu_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    alpha = context.op.alpha
    for axis in x.along():
        if alpha.shape[axis - 1] > 1:
            context.graph.slot(context.path, alpha, axis - 1, x.labels[axis], "each")
    return context.same(x)


_VALUE = Record(output=Output.RANGE, per_channel=True, channels=value_by_value)
enter(replace(_VALUE, in_16_bits=_relu_in_16_bits), kl.ReLU)
enter(replace(_VALUE, in_16_bits=True), kl.LeakyReLU)
enter(_VALUE, kl.ELU)
enter(replace(_VALUE, channels=_prelu_channels), kl.PReLU)
_SOFTMAX = Record(output=Output.FIXED, in_16_bits=True, channels=_softmax_channels)
enter(_SOFTMAX, kl.Softmax, op_class("Softmax"))


# Ops.


def _float(reason: str, per_channel: bool = False) -> Record:
    return Record(output=Output.FLOAT, reason=reason, per_channel=per_channel, channels=value_by_value)


enter(replace(_VALUE, in_16_bits=True), *map(op_class, ("Relu", "Relu6", "LeakyRelu", "Silu")))
enter(_VALUE, op_class("HardSilu"), op_class("Gelu"))
enter(replace(_VALUE, output=Output.FIXED, in_16_bits=True), op_class("Sigmoid"), op_class("Tanh"))
enter(
    _float("LiteRT's converter leaves it in float; write it as `layers.Activation('hard_sigmoid')`", per_channel=True),
    op_class("HardSigmoid"),
)
enter(_float("LiteRT's converter leaves it in float; write it as `layers.Activation('elu')`"), op_class("Elu"))
enter(_float(_NO_INTEGERS), *map(op_class, ("Celu", "Selu", "Softplus", "Softsign")))
