"""Channel groups: which channels of which weights belong together, so that removing one means removing all.

Each index along each axis of each tensor carries the number of the channel that it belongs to. A layer's rule, in
`core/layers`, says which axes of its weights its inputs' channels index, and which channels its output has. Where two
channels meet, as in an addition, they become one (Fang et al. 2023, DepGraph, https://arxiv.org/abs/2301.12900, solves
the same task on traced gradients).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.channels.union_find import DisjointSets
from tfopt.core.errors import first_line
from tfopt.core.layers.activations import keeps_apart, spelled
from tfopt.core.layers.channels import (
    FIXED,
    NONE,
    Argument,
    Channels,
    Context,
    Group,
    Shape,
    Size,
    Slot,
    Unsupported,
    all_along,
    shape_rule,
    tensors_in,
)
from tfopt.core.layers.registry import record_of, rule_of
from tfopt.core.models.graph import Graph

INPUT_STAYS = "an input of the model keeps its shape"
OUTPUT_STAYS = "an output of the model keeps its shape"


class ChannelGraph:
    """The channels of a model: slots of its weights, groups, and why others stay.

    Args:
        graph: of the model; nested models are entered.
        features: gives each feature (index of the last axis) of the model's inputs a channel of its own; otherwise the
            inputs keep their shape. Weights then stay as they are where features are removed; otherwise those of
            removed channels are masked.
        zero: the value of a removed feature is 0.
        ties_only: channels are followed, and told apart, where none can be removed too: through layers that need exact
            zeros, and at the outputs. For what asks which channels belong together, not which can go.

    Example:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((4,)), dense(3, name="a"), dense(2, name="b")])
        >>> [(group.paths, len(group.channels)) for group in ChannelGraph(Graph(model)).groups]
        [(('a',), 3)]
    """

    def __init__(self, graph: Graph, *, features: bool = False, zero: bool = True, ties_only: bool = False):
        self.graph = graph
        self.slots: list[Slot] = []
        self.ties_only = ties_only
        self.masks = not features
        self.reasons: dict[int, str] = {FIXED: INPUT_STAYS}
        self.kept_sizes: dict[int, list[Size]] = {}
        self.padded: dict[int, np.ndarray] = {}
        self.arguments: dict[int, list[Argument]] = {}
        self.factors: dict[int, Callable[[Callable[[np.ndarray], int]], float]] = {}
        self.parts: list[np.ndarray] = []
        self._passed_over: dict[str, str] = {}
        self._read_by: dict[int, list[Channels]] = {}
        self._sets = DisjointSets(1)
        self._by_place: dict[tuple[int, int], Slot] = {}
        self._inputs_of: dict[int, list[Channels]] = {}
        self.features = [self._input(tensor, features, zero) for tensor in graph.inputs]
        outputs = self._run(graph, self.features, "")
        self._check_weights()
        for labels in (labels for channels in outputs for labels in channels.labels):
            for root in np.unique(self._sets.roots(labels)):
                if root != FIXED:
                    self.reasons[int(root)] = OUTPUT_STAYS
        self.slots = [
            Slot(s.path, s.variable, s.axis, self.roots(s.labels), s.role, s.zero) for s in self._by_place.values()
        ]
        self.parts = [self.roots(labels) for labels in self.parts]
        self.groups = list(self._grouped())

    @property
    def count(self) -> int:
        """One more than the highest channel number."""
        return self._sets.count

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """One number for all channels that are tied together; `FIXED` for those that stay."""
        roots = self._sets.roots(labels)
        if self.ties_only:
            return roots
        frozen = np.isin(roots, np.fromiter(self.reasons, np.int64))
        return np.where(frozen, FIXED, roots)

    def reason(self, labels: np.ndarray) -> str:
        """Why channels stay, the first of them that do."""
        found = (self.reasons.get(int(root)) for root in np.unique(self._sets.roots(labels)))
        return next(reason for reason in found if reason)

    def kept_layers(self) -> dict[str, str]:
        """The layers that cannot lose any of the channels they create, with the reason."""
        kept = dict(self._passed_over)
        for slot in self._by_place.values():
            if slot.role == "out" and (self.roots(slot.labels) == FIXED).all():
                kept[slot.path] = self.reason(slot.labels)
        return kept

    def zero_channels(self) -> np.ndarray:
        """The channels all of whose weights are zero, so that removing them changes no output.

        A weight that reads a channel may be anything where the channel arrives as an exact zero. Of a weight's axis,
        and of a part that is picked out of a tensor, at least one channel is left.
        """
        dead = {int(channel) for group in self.groups for channel in group.channels if group.paths}
        for slot in self.slots:
            if slot.role != "statistic" and not (slot.role == "in" and slot.zero):
                array = np.moveaxis(keras.ops.convert_to_numpy(slot.variable), slot.axis, 0)
                alive = (array != 0).reshape(len(slot.labels), -1).any(1)
                dead.difference_update(slot.labels[alive].tolist())
        for labels in [*(slot.labels for slot in self.slots), *self.parts]:
            if dead.issuperset(labels.tolist()):
                dead.discard(int(labels[0]))
        return np.array(sorted(dead), np.int64)

    # What rules use.

    def fresh(self, count: int) -> np.ndarray:
        """New channels."""
        return self._sets.add(count)

    def tie(self, first: np.ndarray, second: np.ndarray) -> None:
        """Makes channels of two label arrays, broadcast to each other, one and the same."""
        if first is second:
            return
        for low, high in self._sets.join(first, second):
            reason = self.reasons.get(low) or self.reasons.get(high)
            if reason:
                self.reasons[low] = reason

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        """Channels that cannot be removed."""
        for root in np.unique(self._sets.roots(labels)):
            self.reasons.setdefault(int(root), reason)

    def may_go(self, labels: np.ndarray) -> bool:
        """True if nothing is known yet that keeps all of these channels."""
        roots = np.unique(self._sets.roots(labels))
        return any(root != FIXED and (self.ties_only or root not in self.reasons) for root in roots.tolist())

    def keep_one(self, labels: np.ndarray) -> None:
        """At least one of these channels has to stay."""
        self.parts.append(labels)

    def axis_labels(self, x: Channels, axis: int, reason: str) -> np.ndarray:
        """The channels along one axis of `x`, one for each index; those along another axis have to stay."""
        for other in set(x.along()) - {axis % len(x.shape)}:
            self.freeze(x.labels[other], reason)
        return all_along(x, axis)

    def slot(self, path: str, variable: Any, axis: int, labels: np.ndarray, role: str, zero: bool = False) -> None:
        """The axis of `variable` is indexed by `labels`."""
        axis %= len(variable.shape)
        place = (id(variable), axis)
        if place in self._by_place:
            known = self._by_place[place]
            self.tie(known.labels, labels)
            zero = zero and known.zero
        self._by_place[place] = Slot(path, variable, axis, labels, role, zero)

    def created(self, path: str, variable: Any, axis: int, labels: np.ndarray | None = None) -> np.ndarray:
        """The channels that an axis of `variable` creates: `labels` if given, those it had before, or new ones."""
        if labels is None:
            labels = self.labels_of(variable, axis)
        if labels is None:
            labels = self.fresh(variable.shape[axis])
        self.slot(path, variable, axis, labels, "out")
        return labels

    def labels_of(self, variable: Any, axis: int) -> np.ndarray | None:
        """The channels of an axis of a weight that was met before, in an earlier call of a shared layer."""
        known = self._by_place.get((id(variable), axis % len(variable.shape)))
        return None if known is None else known.labels

    def size(self, op: Any, key: tuple[str, ...], value: Callable[[Callable[[np.ndarray], int]], Any]) -> None:
        """A config entry of `op` that follows from how many channels stay: `value(count)`, `count(labels) -> int`."""
        self.kept_sizes.setdefault(id(op), []).append(Size(key, value))

    def sizes_of(self, op: Any) -> list[Size]:
        """The config entries of `op` that follow from how many channels stay."""
        return self.kept_sizes.get(id(op), [])

    def argument(self, op: Any, position: int, name: str, value: Callable[[Any], Any]) -> None:
        """An argument of the calls of `op` follows from which channels stay: `value(kept)`, `kept(labels) -> mask`."""
        self.arguments.setdefault(id(op), []).append(Argument(position, name, value))

    def scaled(self, variable: Any, factor: Callable[[Callable[[np.ndarray], int]], float]) -> None:
        """The values of a weight are multiplied by a factor that follows from how many channels stay."""
        self.factors[id(variable)] = factor

    # The walk.

    def _input(self, tensor: keras.KerasTensor, features: bool, zero: bool) -> Channels:
        shape = tuple(tensor.shape)
        labels = [NONE] * len(shape)
        if features and len(shape) > 1 and shape[-1]:
            labels[-1] = self.fresh(shape[-1])
        return Channels(tuple(labels), shape, zero=self.ties_only or (features and zero))

    def _run(self, graph: Graph, inputs: Sequence[Channels], prefix: str) -> list[Channels]:
        """The channels of a model's outputs, given those of its inputs."""
        self._enter_inputs(graph, inputs)
        values = {id(tensor): channels for tensor, channels in zip(graph.inputs, inputs, strict=True)}
        for call in graph.calls:
            args, kwargs = call.arguments(values)
            shapes = [tuple(tensor.shape) for tensor in call.outputs]
            results = self._call(graph, call.op, prefix + call.op.name, shapes, args, kwargs)
            results = [self._known_to_stay(each) for each in results]
            values.update((id(tensor), result) for tensor, result in zip(call.outputs, results, strict=True))
        return [values[id(tensor)] for tensor in graph.outputs]

    def _known_to_stay(self, x: Channels) -> Channels:
        """The channels of a tensor without those of axes that met an axis of the inputs, and so are none."""
        labels = tuple(own if own is NONE or self._some_differ(own) else NONE for own in x.labels)
        return replace(x, labels=labels)

    def _some_differ(self, labels: np.ndarray) -> bool:
        """True if not all of these channels are those of the inputs; mostly the first one tells."""
        return bool(self._sets.roots(labels[:1])[0] != FIXED or self._sets.roots(labels).any())

    def _enter_inputs(self, graph: Graph, inputs: Sequence[Channels]) -> None:
        """Each call of a nested model has to bring the same channels; its input layers follow their number."""
        if id(graph.model) in self._inputs_of:
            self._tie_all(self._inputs_of[id(graph.model)], inputs)
            return
        self._inputs_of[id(graph.model)] = list(inputs)
        for tensor, channels in zip(graph.inputs, inputs, strict=True):
            layer = tensor._keras_history.operation
            self.size(layer, ("batch_shape",), shape_rule(channels, tuple(layer.batch_shape)))

    def _tie_all(self, known: Sequence[Channels], new: Sequence[Channels]) -> None:
        """What is called more than once is called on the same channels."""
        pairs = list(zip(known, new, strict=False))
        axes = [pair for first, second in pairs for pair in zip(first.labels, second.labels, strict=False)]
        alike = len(known) == len(new) and all(len(first.labels) == len(second.labels) for first, second in pairs)
        if alike and all(1 in (len(own), len(other)) or len(own) == len(other) for own, other in axes):
            for own, other in axes:
                self.tie(own, other)
            return
        for labels in (labels for x in (*known, *new) for labels in x.labels if labels.any()):
            self.freeze(labels, "what reads them is called on tensors of several shapes")

    def _call(self, graph: Graph, op: Any, path: str, shapes: list[Shape], args: tuple, kwargs: dict) -> list[Channels]:
        if isinstance(op, keras.Model):
            inner = graph.inner(op)
            return self._run(inner, tensors_in((args, kwargs))[: len(inner.inputs)], f"{path}/")
        rule = rule_of(op)
        if rule is None:
            return self.stop(
                Context(self, op, path, shapes), (args, kwargs), f"tfopt does not know {type(op).__name__}"
            )
        try:
            result = rule(Context(self, op, path, shapes), *args, **kwargs)
        except (
            TypeError,
            AttributeError,
            Unsupported,
        ) as error:  # a call with arguments that the rule does not foresee
            return self.stop(Context(self, op, path, shapes), (args, kwargs), first_line(error))
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        self._check_calls(op, tensors_in((args, kwargs)))
        self._check_activation(op, path, results)
        self._check_regularizer(op, path, results)
        return [replace(channels, zero=True) for channels in results] if self.ties_only else results

    def _check_calls(self, op: Any, inputs: list[Channels]) -> None:
        """The config of a layer follows from the channels that it reads, so each call has to bring the same."""
        if any(id(op) in facts for facts in (self.kept_sizes, self.padded, self.arguments)):
            known = self._read_by.setdefault(id(op), inputs)
            self._tie_all(known, inputs)

    def _check_activation(self, op: Any, path: str, results: list[Channels]) -> None:
        """Channels that the activation function of a layer mixes, as softmax does, have to stay."""
        function = getattr(op, "activation", None)
        if function is not None and not keeps_apart(function):
            for channels in results:
                for axis in channels.along():
                    self.freeze(channels.labels[axis], f"the {spelled(function)} of '{path}' mixes them")

    def _check_regularizer(self, op: Any, path: str, results: list[Channels]) -> None:
        """Channels stay where a regularizer of the output, as one of a user may, takes no other number of them."""
        regularizer = getattr(op, "activity_regularizer", None)
        for channels in results:
            for axis in channels.along():
                if not takes_fewer(regularizer, channels.shape, axis):
                    self.freeze(channels.labels[axis], f"the regularizer of '{path}' counts them")

    def _check_weights(self) -> None:
        for slot in self._by_place.values():
            if not takes_fewer(getattr(slot.variable, "regularizer", None), slot.variable.shape, slot.axis):
                self.freeze(slot.labels, f"the regularizer of '{slot.path}' counts them")

    def stop(self, context: Context, arguments: Any, reason: str) -> list[Channels]:
        """The channels that end in a layer which cannot lose any; those of its output stay too."""
        for channels in tensors_in(arguments):
            for axis in channels.along():
                self.freeze(channels.labels[axis], f"read by '{context.path}': {reason}")
        if _has_kernels(context.op):
            self._passed_over[context.path] = reason
        return [context.fixed(index) for index in range(len(context.shapes))]

    def _grouped(self) -> Iterator[Group]:
        """Channels created by the same axis of a weight form a group, and groups with a common channel are one."""
        sets = DisjointSets(self._sets.count)
        makers = [slot for slot in self.slots if slot.role == "out"]
        features = [self.roots(channels.labels[-1]) for channels in self.features if channels.labels]
        for labels in [slot.labels for slot in makers] + features:
            free = labels[labels != FIXED]
            if len(free):
                sets.join(free[:1], free)
        by_group: dict[int, list[Slot]] = {}
        for slot in self.slots:
            for root in np.unique(sets.roots(slot.labels[slot.labels != FIXED])):
                by_group.setdefault(int(root), []).append(slot)
        for root, slots in by_group.items():
            labels = np.unique(np.concatenate([slot.labels for slot in slots]))
            channels = labels[(labels != FIXED) & (sets.roots(labels) == root)]
            paths = dict.fromkeys(
                slot.path for slot in slots if slot.role == "out" and np.isin(slot.labels, channels).any()
            )
            parts = [part for part in self.parts if np.isin(part, channels).all()]
            yield Group(tuple(paths), channels, tuple(slots), tuple(parts))


def takes_fewer(regularizer: Any, shape: Sequence[int | None], axis: int) -> bool:
    """Whether a regularizer is none, one of Keras, or runs on values with one index less along an axis.

    Example:
        >>> takes_fewer(lambda x: keras.ops.sum(keras.ops.reshape(x, (3, 3))), (9,), 0)
        False
    """
    if regularizer is None or type(regularizer).__module__.startswith(("keras.", "tfopt.")):
        return True
    sizes = [1 if size is None else size for size in shape]
    sizes[axis] = max(sizes[axis] - 1, 1)
    try:
        regularizer(keras.ops.zeros(sizes))
    except (ValueError, TypeError, tf.errors.InvalidArgumentError):
        return False
    return True


def _has_kernels(op: Any) -> bool:
    """True for a layer that multiplies with weights of its own, as far as is known of it."""
    record = record_of(op)
    if not isinstance(op, keras.layers.Layer) or (record is not None and record.macs is None):
        return False
    return any(len(weight.shape) > 1 for weight in op.trainable_weights)
