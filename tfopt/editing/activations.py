"""The activations of a model: where they are, which of them a swap may touch, and what takes their place."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers as kl

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import op_class, sublayers
from tfopt.core.layers.activations import activation_kind, applies, spelled
from tfopt.core.layers.registry import known_class
from tfopt.core.models.graph import Call, trace_back
from tfopt.core.models.rewrite import Rewrite
from tfopt.editing.places import Outcome, Place, Plan, new_name, policy_of

# Those that turn a value into a probability, a gate or an exponent: what reads them counts on their range.
_GATES = ("sigmoid", "hard_sigmoid", "sparse_sigmoid", "log_sigmoid", "softmax", "log_softmax", "sparsemax", "glu")
_OPS = {
    op_class(name): re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    for name in (
        *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Silu", "HardSilu", "Softplus", "Softsign"),
        *("Tanh", "HardTanh", "Sigmoid", "HardSigmoid", "LogSigmoid", "Softmax", "LogSoftmax", "Glu"),
    )
}
_RELUS = (kl.ReLU, op_class("ReLU"))  # the layer, and what `keras.activations.relu` leaves in a graph
# Ops behind an activation that still give its values as the output of the model.
_PASSING = (
    *(kl.Reshape, kl.Flatten, kl.Permute, kl.Identity, kl.Dropout, kl.Concatenate, kl.Activation),
    *map(op_class, ("Reshape", "Squeeze", "ExpandDims", "Transpose", "Cast", "Concatenate", "GetItem", "Ravel")),
)


@dataclass(frozen=True)
class Target:
    """What is put in: an activation function, or a layer made for a tensor of a rank. One of the two is None."""

    name: str
    function: Callable | None = None
    layer: Callable[[int], kl.Layer] | None = None


def as_target(to: Any) -> Target:
    """The target that a name, an activation function or a function that makes a layer stands for."""
    if isinstance(to, str):
        return Target("prelu", layer=_prelu) if to == "prelu" else _checked(_by_name(to))
    if isinstance(to, keras.Operation) or not callable(to):
        raise InvalidArgumentError(
            "`to` is the name of an activation, an activation function, or a function (or class) that makes a layer.",
            received=repr(to),
            fix="Each place needs a layer of its own: pass `lambda: keras.layers.LeakyReLU(0.1)`.",
        )
    if not _makes_layers(to):
        return _checked(to)
    made = to()
    if not isinstance(made, kl.Layer) or isinstance(made, keras.Model):
        raise InvalidArgumentError("A function without arguments in `to` makes a layer.", received=repr(made))
    return Target(type(made).__name__, layer=lambda rank: to())


def plan_activations(model: keras.Model, places: list[Place], target: Target) -> tuple[Plan, Outcome]:
    """What to put where, and what is said of it and of the rest."""
    outcome = Outcome("swap_activation")
    heads = _heads(model)
    plan: Plan = {}
    for place in places:
        name = activation_of(place.op)
        if not place.chosen:
            continue
        if name is None:
            if _hides_activation(place.op):
                outcome.missed[place.path] = "its activation is inside of another layer"
        elif _applies_already(place.op, target):
            outcome.left[place.path] = f"it is {name} already"
        elif id(place.op) in heads and not place.named:
            outcome.left[place.path] = f"{name} gives an output of the model"
        elif name in _GATES and not place.named:
            outcome.left[place.path] = f"{name} is a gate or a probability"
        else:
            behind = new_name(f"{place.op.name}_{target.name.lower()}", places)
            plan[id(place.op)] = functools.partial(_put, place, target, behind)
            outcome.swapped[place.path] = f"{name} -> {target.name}"
    return plan, outcome


def activation_of(op: Any) -> str | None:
    """The activation that a layer or op applies, with its slope where that is not the usual one; None without one.

    Example:
        >>> activation_of(kl.Dense(2, "swish")), activation_of(kl.LeakyReLU(0.1)), activation_of(kl.Dense(2))
        ('silu', 'leaky_relu(0.1)', None)
    """
    function = _function_of(op)
    if function is not None:
        return None if applies(op, keras.activations.linear) else _spelled(function)
    if type(op) in _RELUS:
        plain = op.threshold == 0 and op.negative_slope == 0
        return {None: "relu", 6: "relu6"}.get(op.max_value, "relu(...)") if plain else "relu(...)"
    if known_class(type(op)) is kl.PReLU:
        return "prelu"
    name = {kl.LeakyReLU: "leaky_relu", kl.ELU: "elu", kl.Softmax: "softmax"}.get(type(op)) or _OPS.get(type(op))
    for attribute, usual in (("negative_slope", 0.2), ("alpha", 1.0)):
        value = getattr(op, attribute, usual)
        if name and value != usual:
            return f"{name}({value:g})"
    return name


def _function_of(op: Any) -> Callable | None:
    """The activation function that a layer was given; None for an op, and for a layer that is an activation itself."""
    given = _is_inline(op) or known_class(type(op)) is kl.Activation
    return getattr(op, "activation", None) if given else None


def _spelled(function: Callable) -> str:
    kind = activation_kind(function)
    return f"your own {spelled(function)}" if kind is None else spelled(kind.function)


def _applies_already(op: Any, target: Target) -> bool:
    """True if an op applies what the target stands for; of users' own functions, only the very same one."""
    function = _function_of(op)
    if function is not None and activation_kind(function) is None:
        return function is target.function
    return activation_of(op) == target.name


def _is_inline(op: keras.Operation) -> bool:
    """True for a layer that computes something and has an activation of its own, such as `Dense`."""
    own = isinstance(op, kl.Layer) and known_class(type(op)) is not kl.Activation and len(sublayers(op)) == 1
    return own and callable(getattr(op, "activation", None))


def _hides_activation(op: keras.Operation) -> bool:
    """True for a wrapper around a layer with an activation to swap; those of recurrent layers are gates."""
    inside = sublayers(op)[1:]
    hidden = [activation_of(layer) for layer in inside]
    return not any(isinstance(layer, kl.RNN) for layer in [op, *inside]) and any(
        name is not None and name not in _GATES for name in hidden
    )


def _heads(model: keras.Model) -> set[int]:
    """Ids of the ops whose activation gives an output of the model."""
    heads = set()

    def goes_on(call: Call) -> bool:
        if activation_of(call.op) is not None:
            heads.add(id(call.op))
        return id(call.op) not in heads and isinstance(call.op, _PASSING)

    trace_back(model, goes_on)
    return heads


def _put(place: Place, target: Target, behind: str, state: Rewrite) -> list[keras.Operation]:
    """The ops for the place; a layer with an activation of its own is copied, and a new one comes `behind` it."""
    rank = len(place.calls[0].outputs[0].shape)
    if not _is_inline(place.op):
        if target.layer is not None:
            return [_named(target.layer(rank), place.op.name, place)]
        return [kl.Activation(target.function, name=place.op.name, dtype=policy_of(place))]
    copied: Any = state.copy(place.op)
    copied.activation = target.function or keras.activations.linear
    return [copied] if target.layer is None else [copied, _named(target.layer(rank), behind, place)]


def _by_name(name: str) -> Callable:
    try:
        return keras.activations.get(name)
    except ValueError as error:
        raise InvalidArgumentError(
            "`to` is the name of an activation of Keras, or 'prelu'.",
            received=repr(name),
            fix="Such as 'relu', 'relu6', 'leaky_relu', 'prelu', 'elu', 'gelu', 'silu', 'hard_silu' or 'tanh'.",
        ) from error


def _checked(function: Callable) -> Target:
    shape = getattr(function(keras.ops.zeros((2, 4))), "shape", None)
    if shape is None or tuple(shape) != (2, 4):
        raise InvalidArgumentError(
            "An activation gives a tensor of the shape that it gets.",
            received=f"{function!r}, which turns (2, 4) into {shape}",
        )
    return Target(_spelled(function), function=function)


def _makes_layers(to: Callable) -> bool:
    """True for a layer class and for a function that can be called without arguments."""
    if inspect.isclass(to):
        return True
    parameters = inspect.signature(to).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in variadic for p in parameters)


def _prelu(rank: int) -> kl.Layer:
    """A slope for each channel, 0.25 at the start, as He et al. 2015 (https://arxiv.org/abs/1502.01852)."""
    first = 2 if keras.config.image_data_format() == "channels_first" else 1
    spatial = [*range(first, first + rank - 2)]
    return kl.PReLU(alpha_initializer=keras.initializers.Constant(0.25), shared_axes=spatial or None)


def _named(layer: kl.Layer, name: str, place: Place) -> kl.Layer:
    """A fresh layer like `layer`, of this name and of the dtype policy of the place."""
    return type(layer).from_config({**layer.get_config(), "name": name, "dtype": policy_of(place)})
