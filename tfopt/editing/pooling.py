"""Adaptive pooling, and the swap of one pooling for another."""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import layers as kl

from tfopt.core.checks import as_choice, is_whole, plain
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import op_class, sublayers
from tfopt.core.layers.registry import layers_named, register_layer
from tfopt.core.models.graph import Call
from tfopt.core.models.rewrite import Rewrite
from tfopt.editing.places import Outcome, Place, Plan, policy_of

KINDS = {"max": "Max", "average": "Average"}


class AdaptivePooling(kl.Layer):
    """Adaptive pooling; `_adaptive_layer` makes the classes of it.

    Not those of Keras 3.13 and later, which fail where an axis has one bin, since one of their two windows is longer
    than the axis: in `fit` and `predict` with an error, and max pooling, called eagerly, ends the process.

    Bin i of m over an axis of length n reaches from floor(i n / m) to ceil((i + 1) n / m): an axis is cut into bins of
    almost the same size, neighbours share an element where n is no multiple of m.

    Args:
        output_size: the number of bins along each spatial axis, or one number for all, 1 or more.
        data_format: "channels_last" or "channels_first"; None for that of the Keras configuration.
        **kwargs: those of `keras.layers.Layer`.

    Called on (batch, *lengths, channels), gives (batch, *output_size, channels); the lengths have to be known.

    Raises:
        InvalidArgumentError: if `output_size` does not fit; when built, if a length is not known.

    Example:
        >>> x = keras.ops.reshape([1.0, 4.0, 3.0, 2.0, 0.0], (1, 5, 1))
        >>> AdaptiveMaxPooling1D(2)(x).numpy().ravel().tolist()
        [4.0, 3.0]
    """

    reduction: Any
    rank: int

    def __init__(self, output_size: Any, data_format: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        sizes = tuple(map(plain, [output_size] * self.rank if is_whole(output_size) else output_size))
        if len(sizes) != self.rank or any(bins < 1 for bins in sizes):
            raise InvalidArgumentError(
                "`output_size` must hold a number of bins for each spatial axis, 1 or more.", received=repr(output_size)
            )
        self.output_size = sizes
        self.data_format = data_format or keras.config.image_data_format()

    def _axes(self) -> range:
        first = 2 if self.data_format == "channels_first" else 1
        return range(first, first + self.rank)

    def build(self, input_shape: Any) -> None:
        """Raises if a length is not known."""
        if None in [input_shape[axis] for axis in self._axes()]:
            raise InvalidArgumentError("Adaptive pooling needs known lengths.", received=f"inputs {tuple(input_shape)}")

    def call(self, inputs: Any) -> Any:
        for axis, bins in zip(self._axes(), self.output_size, strict=True):
            length = inputs.shape[axis]
            edges = [(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]
            parts = [inputs[(slice(None),) * axis + (slice(*edge),)] for edge in edges]
            inputs = keras.ops.concatenate([self.reduction(part, axis=axis, keepdims=True) for part in parts], axis)
        return inputs

    def compute_output_shape(self, input_shape: Any) -> tuple:
        shape = list(input_shape)
        for axis, bins in zip(self._axes(), self.output_size, strict=True):
            shape[axis] = bins
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "output_size": self.output_size, "data_format": self.data_format}


def _adaptive_layer(kind: str, rank: int) -> type:
    reduction = {"Max": keras.ops.max, "Average": keras.ops.mean}[kind]
    body = {
        "reduction": staticmethod(reduction),
        "rank": rank,
        "__module__": __name__,
        "__doc__": AdaptivePooling.__doc__,
    }
    cls = type(f"Adaptive{kind}Pooling{rank}D", (AdaptivePooling,), body)
    return register_layer(output="same", channels="same")(keras.saving.register_keras_serializable("tfopt")(cls))


# (family, kind, rank) -> class.
_CLASSES = {
    (family, kind, rank): getattr(kl, f"{family}{kind}Pooling{rank}D")
    for family in ("", "Global")
    for kind in KINDS.values()
    for rank in (1, 2, 3)
} | {("Adaptive", kind, rank): _adaptive_layer(kind, rank) for kind in KINDS.values() for rank in (1, 2, 3)}
_FACTS = {
    cls: (family, kind, rank)
    for (family, kind, rank), own in _CLASSES.items()
    for cls in (own, *layers_named(f"{family}{kind}Pooling{rank}D"))
}
AdaptiveAveragePooling1D = _CLASSES["Adaptive", "Average", 1]
AdaptiveAveragePooling2D = _CLASSES["Adaptive", "Average", 2]
AdaptiveMaxPooling1D = _CLASSES["Adaptive", "Max", 1]
AdaptiveMaxPooling2D = _CLASSES["Adaptive", "Max", 2]
_OPS = {op_class("MaxPool"): "Max", op_class("AveragePool"): "Average"}


def plan_pooling(model: keras.Model, places: list[Place], to: str) -> tuple[Plan, Outcome]:
    """What to put where, and what is said of it and of the rest."""
    to = as_choice("to", to, (*KINDS, "adaptive"))
    outcome = Outcome("swap_pooling")
    plan: Plan = {}
    for place in places:
        facts = _facts(place)
        if not place.chosen:
            continue
        if facts is None:
            if any(type(layer) in _FACTS for layer in sublayers(place.op)):
                outcome.missed[place.path] = "its pooling is inside a wrapper"
            continue
        family, kind, rank = facts
        wanted = ("Adaptive", kind, rank) if to == "adaptive" else (family, KINDS[to], rank)
        if to == "adaptive" and family == "Global":
            outcome.left[place.path] = "its output grid is fixed already"
        elif wanted == facts:
            outcome.left[place.path] = f"it is {to} pooling already"
        elif family == "Global" and any(_mask(call) is not None for call in place.calls):
            outcome.missed[place.path] = "it leaves out masked steps, as max pooling cannot"
        elif to == "adaptive" and _grid(place, rank) is None:
            outcome.missed[place.path] = "its output grid is not known, or not the same at each call"
        else:
            plan[id(place.op)] = functools.partial(_put, place, _CLASSES[wanted])
            outcome.swapped[place.path] = f"{_spelled(facts)} -> {_spelled(wanted)}"
    return plan, outcome


def _facts(place: Place) -> tuple[str, str, int] | None:
    """Family, kind and number of spatial axes of a pooling layer or op; None for another."""
    kind = _OPS.get(type(place.op))
    return ("", kind, len(place.calls[0].inputs[0].shape) - 2) if kind else _FACTS.get(type(place.op))


def _mask(call: Call) -> Any:
    """The mask that a layer is called with."""
    return call.node.arguments.kwargs.get("mask")


def _put(place: Place, cls: type, state: Rewrite) -> list[keras.Operation]:
    op: Any = place.op
    config = {"name": op.name, "dtype": policy_of(place), "data_format": op.data_format}
    family, _, rank = _FACTS[cls]
    if family == "Adaptive":
        config["output_size"] = _grid(place, rank)
    elif family == "Global":
        config["keepdims"] = op.keepdims
    else:
        config |= {"pool_size": op.pool_size, "strides": op.strides, "padding": op.padding}
    return [cls(**config)]


def _grid(place: Place, rank: int) -> tuple[int, ...] | None:
    """The output grid of a pooling; None if it is not known or not the same at each call."""
    op: Any = place.op
    first = 2 if op.data_format == "channels_first" else 1
    grids = {tuple(call.outputs[0].shape[first : first + rank]) for call in place.calls}
    (grid,) = grids if len(grids) == 1 else (None,)
    return None if grid is None or None in grid else grid


def _spelled(facts: tuple[str, str, int]) -> str:
    family, kind, _ = facts
    return f"{family} {kind}".strip().lower()
