"""What is known of channels: those of a tensor, of a weight, and what a layer's rule for passing them on works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np

Shape = tuple[int | None, ...]
FIXED = 0  # the number of all channels that stay whatever happens
NONE = np.full(1, FIXED)  # the labels of an axis all of whose indices stay


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of one tensor. A value belongs to one channel of each axis, and goes with any of them.

    Args:
        labels: for each axis, the batch axis too, the channel number of each index; `NONE` where all stay.
        shape: of the tensor.
        zero: True if the values of a masked channel are exactly zero here.
    """

    labels: tuple[np.ndarray, ...]
    shape: Shape
    zero: bool = True

    def along(self) -> list[int]:
        """The axes that have channels."""
        return [axis for axis, labels in enumerate(self.labels) if labels.any()]


@dataclass(frozen=True, eq=False)
class Slot:
    """An axis of a weight, indexed by channels.

    Args:
        role: `"out"` for channels that the weight creates, `"in"` for those it reads, `"each"` for one value a channel
            (bias, scale), `"statistic"` for one that is not trained.
        zero: for `"in"`, True if masked channels arrive as exact zeros.
    """

    path: str
    variable: keras.Variable
    axis: int
    labels: np.ndarray
    role: str
    zero: bool = False


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that are ranked together: those that one layer creates, and all layers tied to it.

    Args:
        paths: the layers that create the channels.
        channels: their numbers; each stands for one or more slices of the weights in `slots`.
        parts: channels of which one at least stays, as those of a slice of a tensor.
    """

    paths: tuple[str, ...]
    channels: np.ndarray
    slots: tuple[Slot, ...]
    parts: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, eq=False)
class Size:
    """A config entry, by its path of keys, and how it follows from the number of channels that stay."""

    key: tuple[str, ...]
    value: Callable[[Callable[[np.ndarray], int]], Any]


@dataclass(frozen=True, eq=False)
class Argument:
    """An argument of a call, by its position and name, and how it follows from which channels stay."""

    position: int
    name: str
    value: Callable[[Callable[[np.ndarray], np.ndarray]], Any]


class Labels(Protocol):
    """What a rule asks of the graph that it works for; `core.channels.graph.ChannelGraph` is one.

    Args:
        masks: weights of removed channels are masked first; otherwise features of the inputs are removed.
    """

    masks: bool
    padded: dict[int, np.ndarray]
    kept_sizes: dict[int, list[Size]]

    def fresh(self, count: int) -> np.ndarray: ...

    def tie(self, first: np.ndarray, second: np.ndarray) -> None: ...

    def freeze(self, labels: np.ndarray, reason: str) -> None: ...

    def may_go(self, labels: np.ndarray) -> bool: ...

    def keep_one(self, labels: np.ndarray) -> None: ...

    def axis_labels(self, x: Channels, axis: int, reason: str) -> np.ndarray: ...

    def slot(self, path: str, variable: Any, axis: int, labels: np.ndarray, role: str, zero: bool = False) -> None: ...

    def created(self, path: str, variable: Any, axis: int, labels: np.ndarray | None = None) -> np.ndarray: ...

    def labels_of(self, variable: Any, axis: int) -> np.ndarray | None: ...

    def size(self, op: Any, key: tuple[str, ...], value: Callable[[Callable[[np.ndarray], int]], Any]) -> None: ...

    def argument(self, op: Any, position: int, name: str, value: Callable[[Any], Any]) -> None: ...

    def scaled(self, variable: Any, factor: Callable[[Callable[[np.ndarray], int]], float]) -> None: ...


@dataclass(frozen=True, eq=False)
class Context:
    """One call of a layer or op, as its rule sees it: the graph, the layer, its path and the shapes of its outputs."""

    graph: Labels
    op: Any
    path: str
    shapes: list[Shape]

    def same(self, x: Channels, zero: bool = True) -> Channels:
        """The output of a layer that keeps channels apart; `zero`: it maps zero to zero."""
        return Channels(x.labels, self.shapes[0], x.zero and zero)

    def output(self, labels: np.ndarray, axis: int = -1, zero: bool = True) -> Channels:
        """An output whose axis `axis` has the channels `labels`, and no other axis any."""
        axes = [NONE] * len(self.shapes[0])
        axes[axis] = labels
        return Channels(tuple(axes), self.shapes[0], zero)

    def replaced(self, x: Channels, labels: np.ndarray, axis: int = -1, zero: bool = True) -> Channels:
        """An output with the channels of `x`, but `labels` along one axis."""
        axes = list(x.labels)
        axes[axis] = labels
        return Channels(tuple(axes), self.shapes[0], zero)

    def fixed(self, index: int = 0) -> Channels:
        """An output without channels."""
        return Channels((NONE,) * len(self.shapes[index]), self.shapes[index], zero=False)

    def keep(self, labels: np.ndarray, reason: str) -> None:
        """Channels that the layer reads have to stay."""
        self.graph.freeze(labels, f"read by '{self.path}': {reason}")

    def along(self, x: Channels, axis: int = -1) -> np.ndarray:
        """The channels of `x` along one axis, one for each index; those along other axes have to stay."""
        return self.graph.axis_labels(x, axis, f"'{self.path}' works along another axis")

    def read(self, variable: Any, axis: int, x: Channels, labels: np.ndarray) -> None:
        """An axis of a weight is multiplied with the channels `labels` of the input `x`, and summed over."""
        self.graph.slot(self.path, variable, axis, labels, "in", x.zero)

    def each(self, variable: Any, labels: np.ndarray) -> None:
        """The last axis of a weight, such as a bias, has one value a channel; nothing for None."""
        if variable is not None:
            self.graph.slot(self.path, variable, -1, labels, "each")

    def weight(self, variable: Any) -> Channels:
        """A weight that is an output itself: what it meets says which channels its axes have.

        The last axis of a matrix creates channels, as that of a kernel does; a vector only scales or shifts them.
        """
        wide = [axis for axis, size in enumerate(variable.shape) if size > 1]
        labels = [NONE] * len(variable.shape)
        for axis in wide:
            known = self.graph.labels_of(variable, axis)
            labels[axis] = self.graph.fresh(variable.shape[axis]) if known is None else known
            role = "out" if len(wide) > 1 and axis == wide[-1] else "each"
            self.graph.slot(self.path, variable, axis, labels[axis], role)
        return Channels(tuple(labels), tuple(variable.shape), self.graph.masks)

    def zero_apart(self, x: Channels) -> bool:
        """Zeros of a layer that keeps channels apart: by its own masked weights, or from its input if these stay."""
        masked = self.graph.masks or (x.zero and self.op.bias is None)
        return masked and keeps_zero(self.op.activation)


class Unsupported(Exception):
    """Raised by a rule for a call whose channels cannot be told, with the reason."""


def keeps_zero(function: Callable[[Any], Any]) -> bool:
    """True if a function of single values gives 0 for 0."""
    return bool(np.all(keras.ops.convert_to_numpy(function(keras.ops.zeros((1, 2)))) == 0))


def axis_of_channels(layer: Any) -> int:
    """The channel axis of an input."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def all_along(x: Channels, axis: int) -> np.ndarray:
    """The channels of `x` along one axis, one for each index."""
    return np.broadcast_to(x.labels[axis], (x.shape[axis] or 1,))


def in_place(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """The rule of layers that work along the spatial axes, the same for each channel."""
    if set(x.along()) - {axis_of_channels(context.op) % len(x.shape)}:
        raise Unsupported("its axes hold channels")
    return context.same(x)


def passed(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """The rule of layers that pass values on, or make them zero."""
    return context.same(x)


def value_by_value(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """The rule of a layer or op that computes each value of its output from one value of its input."""
    return context.same(x, keeps_zero(context.op))


def reduced(context: Context, x: Channels, axes: list[int], keepdims: bool) -> Channels:
    """The output of a layer that makes one value of all along some axes."""
    for axis in set(axes) & set(x.along()):
        context.keep(x.labels[axis], "channels are reduced to one value")
    labels = x.labels if keepdims else [labels for axis, labels in enumerate(x.labels) if axis not in axes]
    return Channels(tuple(labels), context.shapes[0], x.zero)


def normalized(context: Context, x: Channels, axes: Any) -> Channels:
    """The output of a layer that divides by the norm along some axes."""
    if {int(axis) % len(x.shape) for axis in np.atleast_1d(axes)} & set(x.along()) and not x.zero:
        raise Unsupported("the norm counts them, and they are not zero when masked")
    return context.same(x)


def per_channel(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """The rule of users' layers that keep channels apart; nothing is known of what they make of zeros."""
    labels = context.along(x)
    for weight in context.op.weights:
        if weight.shape and weight.shape[-1] == len(labels):
            context.each(weight, labels)
    return context.output(labels, zero=False)


def shape_rule(channels: Channels, wanted: Shape | None = None) -> Callable[[Callable[[np.ndarray], int]], tuple]:
    """How the shape of a tensor, as a config has it in `wanted`, follows from the channels that stay.

    Axes that `wanted` leaves open, as None or -1, stay so. It may lack the first axes of the tensor.
    """
    given = tuple(channels.shape if wanted is None else wanted)
    labels = channels.labels[len(channels.labels) - len(given) :]

    def shape(count: Any) -> tuple:
        sized = zip(given, labels, strict=True)
        return tuple(count(own) if own.any() and size not in (-1, None) else size for size, own in sized)

    return shape


def tensors_in(arguments: Any) -> list[Channels]:
    return [value for value in keras.tree.flatten(arguments) if isinstance(value, Channels)]
