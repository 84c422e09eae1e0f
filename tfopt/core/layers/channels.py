"""What is known of channels: those of a tensor, of a weight, and what a layer's rule for passing them on works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np

Shape = tuple[int | None, ...]
FIXED = 0  # the number of all channels that stay whatever happens


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of one tensor.

    Args:
        labels: channel numbers, with an axis for each of the tensor's but the batch; of size 1 where the channel does
            not depend on the position along it.
        shape: of the tensor, without the batch.
        zero: True if the values of a masked channel are exactly zero here.
    """

    labels: np.ndarray
    shape: Shape
    zero: bool = True

    def along(self) -> list[int]:
        """The axes along which channels differ."""
        return [axis for axis, size in enumerate(self.labels.shape) if size > 1]


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
    """

    paths: tuple[str, ...]
    channels: np.ndarray
    slots: tuple[Slot, ...]


@dataclass(frozen=True, eq=False)
class Size:
    """A config entry, by its path of keys, and how it follows from the number of channels that stay."""

    key: tuple[str, ...]
    value: Callable[[Callable[[np.ndarray], int]], Any]


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

    def axis_labels(self, x: Channels, axis: int, reason: str) -> np.ndarray: ...

    def slot(self, path: str, variable: Any, axis: int, labels: np.ndarray, role: str, zero: bool = False) -> None: ...

    def created(self, path: str, variable: Any, axis: int, labels: np.ndarray | None = None) -> np.ndarray: ...

    def labels_of(self, variable: Any, axis: int) -> np.ndarray | None: ...

    def size(self, op: Any, key: tuple[str, ...], value: Callable[[Callable[[np.ndarray], int]], Any]) -> None: ...


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
        """An output whose axis `axis` has the channels `labels`."""
        shape = [1] * len(self.shapes[0])
        shape[axis] = len(labels)
        return Channels(labels.reshape(shape), self.shapes[0], zero)

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
    """The channel axis of an input without its batch axis."""
    return 0 if getattr(layer, "data_format", None) == "channels_first" else -1


def in_place(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """The rule of layers that work along the spatial axes, the same for each channel."""
    axis = axis_of_channels(context.op) % len(x.shape)
    if any(own != old for own, old in zip(context.shapes[0], x.shape, strict=True)) and set(x.along()) - {axis}:
        raise Unsupported("its axes hold channels")
    return context.same(x)


def value_by_value(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """The rule of a layer or op that computes each value of its output from one value of its input."""
    return context.same(x, keeps_zero(context.op))


def reduced(context: Context, x: Channels, axes: list[int], keepdims: bool) -> Channels:
    """The output of a layer that makes one value of all along some axes."""
    if set(axes) & set(x.along()):
        raise Unsupported("channels are reduced to one value")
    labels = x.labels if keepdims else x.labels.squeeze(tuple(axes))
    return Channels(labels, context.shapes[0], x.zero)


def per_channel(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """The rule of users' layers that keep channels apart; nothing is known of what they make of zeros."""
    labels = context.along(x)
    for weight in context.op.weights:
        if weight.shape and weight.shape[-1] == len(labels):
            context.each(weight, labels)
    return context.same(x, zero=False)


def shape_rule(channels: Channels, front: tuple = ()) -> Callable[[Callable[[np.ndarray], int]], tuple]:
    """How the shape of a tensor, `front` before it, follows from the channels that stay."""

    def shape(count: Any) -> tuple:
        sizes = list(channels.shape)
        for axis in channels.along():
            sizes[axis] = count(channels.labels.reshape(-1))
        return (*front, *sizes)

    return shape


def compact(labels: np.ndarray) -> np.ndarray:
    """The labels with each axis along which they are constant reduced to size 1."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis)
        if labels.shape[axis] > 1 and np.array_equal(np.broadcast_to(first, labels.shape), labels):
            labels = first
    return labels


def tensors_in(arguments: Any) -> list[Channels]:
    return [value for value in keras.tree.flatten(arguments) if isinstance(value, Channels)]
