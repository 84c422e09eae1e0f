"""Masks written as ops: large negative numbers that are added to scores, or chosen in their place, before a softmax.

The range of such a tensor must not stretch to the large number, of whose steps one would hold all scores. It reaches
as far below as the softmax can tell apart from zero, and what is below is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import activations
from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers.activations import applies
from tfopt.core.layers.nodes import MovingCall
from tfopt.core.layers.registry import known_class
from tfopt.core.models.graph import Call, Graph

SOFTMAX_STEPS = {8: 256, 16: 32768}  # of the integer softmax, from 0 to 1
LARGE = 500.0  # a magnitude that no score has: what is beyond it hides scores
SEVERAL = 16  # masks that are added up: what is beyond the largest magnitude by this hides scores
HIDING = 1024.0  # the magnitude of a mask term that is 0 where it hides nothing
APART = 128.0  # of the values of another mask term, such as a bias by position: how far below them it hides
LARGEST_CONSTANT = 255 * HIDING  # a factor; its product with one step of another in [0, 1] still hides

_SUMS = (kl.Add, kl.Subtract, op_class("Add"), op_class("Subtract"))
_WHERE = op_class("Where")
_CHOICES = (_WHERE, kl.Minimum, op_class("Minimum"), kl.Maximum, op_class("Maximum"))
_MOVERS = (
    *(kl.Reshape, kl.Permute, kl.Flatten, kl.RepeatVector, kl.Identity, MovingCall),
    *map(op_class, ("Reshape", "Transpose", "ExpandDims", "Squeeze", "BroadcastTo", "Repeat", "Tile", "GetItem")),
)
_SOFTMAX = op_class("Softmax")
_READERS = (kl.Softmax, _SOFTMAX, kl.Activation)


@dataclass(frozen=True)
class Masking:
    """What the values of an op come to: `axes` of the softmax that reads them, () where they are terms of its scores.

    `limit` of the op's own constants, see `clipped`: "scores" of a sum that the softmax reads, "choice" of an op that
    picks one of its inputs, "factor" of any other.
    """

    axes: tuple[int, ...] = ()
    limit: str = "factor"


def maskings(graph: Graph) -> dict[int, Masking]:
    """The ops, by id, whose output only softmax reads, by way of sums, of choices and of what moves values.

    Ops that feed a softmax directly have none, unless they add or choose: they hide nothing.

    Example:
        >>> x, mask = keras.Input((4,), name="x"), keras.Input((4,), name="mask")
        >>> scores = keras.layers.Dense(4)(x)
        >>> model = keras.Model([x, mask], keras.layers.Softmax()(scores + (1.0 - mask) * -1e9))
        >>> graph = Graph(model)
        >>> found = maskings(graph)
        >>> [(type(call.op).__name__, found[id(call.op)].axes) for call in graph.calls if id(call.op) in found]
        [('Dense', ()), ('Multiply', ()), ('Add', (1,))]
    """
    has_softmax = any(isinstance(call.op, _READERS) for part in graph.graphs for call in part.calls)
    return _Search().ops(graph) if has_softmax else {}


class _Search:
    def __init__(self) -> None:
        self.found: dict[int, Masking] = {}
        self.seen: set[int] = set()

    def ops(self, graph: Graph) -> dict[int, Masking]:
        for part in graph.graphs[::-1]:
            self._visit(part)
        return self.found

    def _visit(self, graph: Graph) -> None:
        """Later calls first: what reads a tensor is known before the op that gives it."""
        if id(graph) in self.seen:
            return
        self.seen.add(id(graph))
        for call in reversed(graph.calls):
            if isinstance(call.op, keras.Model):
                self._visit(graph.inner(call.op))
                continue
            self._enter(graph, call)
        for tensor in graph.inputs:
            uses = self._uses(graph, tensor)
            if uses == {()}:
                self.found[id(tensor._keras_history.operation)] = Masking()

    def _enter(self, graph: Graph, call: Call) -> None:
        op = call.op
        tensors = [tensor for each in graph.calls_of(op) for tensor in each.outputs]
        if len(tensors) != len(graph.calls_of(op)) or not keras.backend.is_float_dtype(tensors[0].dtype):
            return
        uses = set().union(*(self._uses(graph, tensor) for tensor in tensors))
        cls = known_class(type(op)) or type(op)
        if None in uses or not uses:
            return
        if cls in _SUMS or cls in _CHOICES:
            limit = "choice" if cls in _CHOICES else "factor" if uses == {()} else "scores"
            self.found[id(op)] = Masking(uses.pop() if len(uses) == 1 else (), limit)
        elif uses == {()}:
            self.found[id(op)] = Masking()

    def _uses(self, graph: Graph, tensor: Any) -> set:
        """For each reader the axes of its softmax, () for one that adds or chooses, None for any other."""
        if graph.is_output(tensor):
            return {None}
        uses: set = set()
        for call in graph.consumers(tensor):
            uses |= self._uses_by(graph, call, tensor)
        return uses

    def _uses_by(self, graph: Graph, call: Call, tensor: Any) -> set:
        if isinstance(call.op, keras.Model):
            inner = graph.inner(call.op)
            self._visit(inner)
            pairs = zip(inner.inputs, call.inputs, strict=True)
            return set().union(*(self._uses(inner, own) for own, given in pairs if given is tensor))
        axes = _softmax_axes(call, len(tensor.shape))
        if axes is not None:
            return {axes}
        cls = known_class(type(call.op)) or type(call.op)
        if cls in _MOVERS and call.inputs[0] is tensor and len(call.outputs) == 1:
            uses = self._uses(graph, call.outputs[0])
            return {axes and axes_before(call, tensor, axes) for axes in uses}
        if id(call.op) in self.found and (cls in _SUMS or cls in _CHOICES):
            return {()}
        return {None}


def _softmax_axes(call: Call, rank: int) -> tuple[int, ...] | None:
    """The axes that a softmax without a mask of its own runs over; None for another op."""
    cls = known_class(type(call.op))
    if cls in (kl.Softmax, _SOFTMAX) and len(call.inputs) == 1:
        axis = call.op.axis
        return tuple(range(rank)) if axis is None else tuple(sorted(int(each) % rank for each in np.atleast_1d(axis)))
    return (rank - 1,) if cls is kl.Activation and applies(call.op, activations.softmax) else None


def is_where(op: keras.Operation) -> bool:
    """True for an op that chooses between two by a condition."""
    return type(op) is _WHERE


def holds_large_constants(call: Call) -> bool:
    """True if one of the constants that an op is called with hides scores, or makes another do."""
    parts = [part for part in keras.tree.flatten(call.given) if isinstance(part, (int, float, np.ndarray, tf.Tensor))]
    return any(np.size(part) and float(np.abs(np.asarray(part)).max()) >= LARGE for part in parts)


def axes_before(call: Call, tensor: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of `tensor` that `call` moves to `axes` of its output; () where they are not whole axes.

    The call runs on the places of the values, of which those of one row show the axes that they vary along.
    """
    shape = [2 + place if size is None else size for place, size in enumerate(tensor.shape)]
    places = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    try:
        args, kwargs = call.arguments({id(tensor): tf.constant(places)})
        moved = np.asarray(call.op(*args, **kwargs))
    except (TypeError, ValueError, KeyError, tf.errors.InvalidArgumentError):  # sizes that are tensors
        return ()
    rest = [axis for axis in range(moved.ndim) if axis not in axes]
    rows = moved.transpose(*rest, *axes).reshape(math.prod(moved.shape[axis] for axis in rest), -1)
    found: set = set()
    for row in (rows[0], rows[-1]):
        where = np.unravel_index(row, shape)
        varying = tuple(axis for axis, along in enumerate(where) if len(np.unique(along)) > 1)
        whole = len(row) == len(np.unique(row)) == math.prod(shape[axis] for axis in varying)
        found.add(varying if whole else ())
    return found.pop() if len(found) == 1 else ()


# Tensors in, tensors out: what a range is to see of scores and of mask terms.


def shown(values: Any, axes: tuple[int, ...], bits: int) -> Any:
    """The values with large ones clipped: no range has to reach them.

    Args:
        values: float32 tensor of scores or, without `axes`, of one term of them.
        axes: that a softmax of the scores runs over.
        bits: of the range, 8 or 16.

    Example:
        >>> [round(float(value), 2) for value in shown(tf.constant([2.0, 1.0, -1e9]), (0,), 8)]
        [2.0, 1.0, -5.34]
        >>> shown(tf.constant([0.0, -1e9]), (), 8).numpy().tolist()
        [0.0, -1024.0]
    """
    values = tf.where(tf.math.is_nan(values), values, tf.clip_by_value(values, -tf.float32.max / 4, tf.float32.max / 4))
    if not axes:
        return -_above_hidden(-_above_hidden(values))
    sizes = [tf.cast(tf.shape(values)[axis], tf.float32) for axis in axes]
    room = tf.math.log(2.0 * SOFTMAX_STEPS[bits] * math.prod(sizes[1:], start=sizes[0]))
    highest = tf.reduce_max(values, axes, keepdims=True)
    hidden = highest < _hiding(values)  # a row that is hidden as a whole
    return tf.where(hidden, 0.0, tf.maximum(values, highest - room))


def _hiding(values: Any) -> Any:
    """What lies below hides scores."""
    return tf.minimum(tf.reduce_min(values) / SEVERAL, -LARGE)


def _above_hidden(values: Any) -> Any:
    hidden = values < _hiding(values)
    rest = tf.where(hidden, 0.0, values)
    lowest, highest = tf.reduce_min(rest), tf.reduce_max(rest)
    alone = tf.logical_and(tf.equal(lowest, 0.0), tf.equal(highest, 0.0))
    return tf.where(hidden, tf.where(alone, -HIDING, lowest - APART), values)


def clipped(limit: str, bounds: tuple[float, float]) -> Callable[[Any], Any]:
    """What makes the constants in the arguments of an op small enough for integers, for a range of its output."""
    width = 2 * (bounds[1] - bounds[0])  # which is beyond the lowest score, added to the highest
    low, high = {"choice": bounds, "scores": (-width, width), "factor": (-LARGEST_CONSTANT, LARGEST_CONSTANT)}[limit]

    def clip(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.ndarray)):
            return value
        return value if np.asarray(value).dtype == bool else np.clip(np.asarray(value, np.float32), low, high)

    return clip
