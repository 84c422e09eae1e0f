"""What is computed from what: one model of a tree of nested models, and how tensors flow through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras
from keras import layers as kl

from tfopt.core.keras_internals import op_class, sublayers
from tfopt.core.layers.registry import known_class, record_of
from tfopt.core.models.graph import Call, Graph

ADDITIONS = (kl.Add, op_class("Add"))
_CONCATENATIONS = (kl.Concatenate, op_class("Concatenate"))
# What belongs to the layer before it and goes with it.
_ATTACHED = (
    *(kl.BatchNormalization, kl.LayerNormalization, kl.GroupNormalization, kl.RMSNormalization),
    *(kl.Activation, kl.ReLU, kl.LeakyReLU, kl.PReLU, kl.ELU),
    *map(op_class, ("Relu", "Relu6", "LeakyRelu", "Elu", "Silu", "HardSilu", "HardSigmoid", "Gelu", "Tanh", "Sigmoid")),
    *(kl.Dropout, kl.SpatialDropout1D, kl.SpatialDropout2D, kl.SpatialDropout3D, kl.AlphaDropout, kl.GaussianDropout),
)
# Stands for a dimension that is not defined; no usual stride divides it.
_ANY_SIZE = 61


def is_addition(op: keras.Operation) -> bool:
    """True for a layer or op that adds tensors; not for a subclass with maths of its own."""
    return known_class(type(op)) in ADDITIONS


def has_kernel(op: keras.Operation) -> bool:
    """True for a layer with a kernel that the catalog knows, itself or in a layer inside it."""
    records = [record_of(layer) for layer in sublayers(op)]
    return any(record.prunable or record.kernels for record in records if record)


def is_alike(source, target) -> bool:
    """True if both tensors have the same dtype and, apart from the batch, the same shape."""
    return source.dtype == target.dtype and tuple(source.shape[1:]) == tuple(target.shape[1:])


def resizes(call: Call) -> bool:
    """True if a call with one input changes a dimension that is not defined, as a strided convolution does."""
    tensor = call.inputs[0]
    if None not in tensor.shape[1:]:
        return False
    shape = tuple(_ANY_SIZE if size is None else size for size in tensor.shape)
    args, kwargs = call.arguments({id(tensor): keras.KerasTensor(shape, dtype=tensor.dtype)})
    (given, *_) = keras.tree.flatten(call.op.compute_output_spec(*args, **kwargs))
    return tuple(given.shape[1:]) != shape[1:]


@dataclass(eq=False)
class Flow:
    """The graph of a model, and the calls of that model in the models around it."""

    graph: Graph
    parents: list[tuple[Flow, Call]] = field(default_factory=list)

    @cached_property
    def _bits(self) -> dict[int, int]:
        tensors = [*self.graph.inputs, *(tensor for call in self.graph.calls for tensor in call.outputs)]
        return {id(tensor): 1 << i for i, tensor in enumerate(tensors)}

    @cached_property
    def _upstream(self) -> dict[int, int]:
        """Id of each tensor -> the tensors it is computed from, itself included, as the bits of a number."""
        upstream = {id(tensor): self._bits[id(tensor)] for tensor in self.graph.inputs}
        for call in self.graph.calls:
            above = 0
            for tensor in call.inputs:
                above |= upstream[id(tensor)]
            upstream.update((id(tensor), above | self._bits[id(tensor)]) for tensor in call.outputs)
        return upstream

    def comes_from(self, tensor, source) -> bool:
        """True if `tensor` is computed from `source`, or is it."""
        return bool(self._upstream[id(tensor)] & self._bits[id(source)])

    def skip(self, merge: Call) -> Any:
        """The operand that all others are computed from, None if there is none."""
        for operand in merge.inputs:
            others = [tensor for tensor in merge.inputs if tensor is not operand]
            if others and all(self.comes_from(tensor, operand) for tensor in others):
                return operand
        return None

    def branch(self, skip, merge: Call) -> list[Call]:
        """The calls on the ways from `skip` to an operand of `merge`."""

        def on_the_way(tensor) -> bool:
            below = any(self.comes_from(operand, tensor) for operand in merge.inputs)
            return below and tensor is not skip and self.comes_from(tensor, skip)

        return [call for call in self.graph.calls if any(on_the_way(tensor) for tensor in call.outputs)]

    def join_of(self, call: Call) -> str | None:
        """Name of an op that joins what is computed from `call` with what is not, but for concatenations."""
        tensor = call.outputs[0]
        for join in self.graph.calls:
            if len(join.inputs) > 1 and not isinstance(join.op, (*_CONCATENATIONS, keras.Model)):
                below = {self.comes_from(operand, tensor) for operand in join.inputs}
                if below == {True, False}:
                    return join.op.name
        return next((name for flow, outer in self.parents if (name := flow.join_of(outer))), None)

    def leads_out(self, tensor) -> bool:
        """True if no kernel and no addition stands between `tensor` and an output of the outermost model."""
        if self.graph.is_output(tensor):
            outer = [(flow, output) for flow, call in self.parents for output in call.outputs]
            if not self.parents or any(flow.leads_out(output) for flow, output in outer):
                return True
        readers = [r for r in self.graph.consumers(tensor) if not is_addition(r.op) and not has_kernel(r.op)]
        return any(self.leads_out(output) for reader in readers for output in reader.outputs)

    def attached(self, call: Call) -> list[Call]:
        """The normalization, activation and dropout that follow a call and belong to it."""
        found: list[Call] = []
        while True:
            tensor = [call, *found][-1].outputs[0]
            readers = self.graph.consumers(tensor)
            if self.graph.is_output(tensor) or len(readers) != 1 or known_class(type(readers[0].op)) not in _ATTACHED:
                return found
            if self.leads_out(readers[0].outputs[0]) or len(self.graph.calls_of(readers[0].op)) > 1:
                return found
            found += readers

    def passed_through(self, call: Call, instead: Mapping[int, Any]) -> list:
        """The inputs of `call`, one of this model, that it gives back where `instead` leaves no layer of it."""
        given = dict(zip(map(id, self.graph.inputs), call.inputs, strict=True))
        passed = []
        for tensor in self.graph.outputs:
            while id(tensor) in instead:
                tensor = instead[id(tensor)]
            passed.append(given[id(tensor)])
        return passed
