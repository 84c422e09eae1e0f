"""What is known of channels: those of a tensor, of a weight, and each layer class's rule for passing them on."""

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


class Unsupported(Exception):
    """Raised by a rule for a call whose channels cannot be told, with the reason."""


Rule = Callable[..., Any]
_RULES: dict[type, Rule] = {}


def register_channels(*classes: type) -> Callable[[Rule], Rule]:
    """Decorator for the rule of layer or op classes: `(context, *inputs, **arguments) -> Channels` of the outputs."""

    def decorate(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(classes, rule))
        return rule

    return decorate


def rule_of(op: Any) -> Rule | None:
    return next((_RULES[cls] for cls in type(op).__mro__ if cls in _RULES), None)


def shape_rule(channels: Channels, front: tuple = ()) -> Callable[[Callable[[np.ndarray], int]], tuple]:
    """How the shape of a tensor, `front` before it, follows from the channels that stay."""

    def shape(count):
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
