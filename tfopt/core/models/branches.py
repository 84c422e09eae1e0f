"""The branches of a fused model, recognised by the layer that fuses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from tfopt.core.models.graph import Call, Graph


@dataclass(frozen=True, eq=False)
class Branch:
    """One branch.

    Args:
        name: of its model, or of the layer that gives its output.
        output: the tensor that the fusion reads.
        weight: with which it counts; None where branches have none.
        model: the nested model; None for layers.
    """

    name: str
    output: Any
    weight: float | None
    model: keras.Model | None


def branches_of(graph: Graph) -> list[Branch]:
    """The branches that a model fuses into its one output, each with an output of that shape; empty if it does not.

    A layer that fuses says so: it has `fuses_branches = True` and `weights_of(count)`.

    Example:
        >>> class Mean(keras.layers.Average):
        ...     fuses_branches = True
        ...     def weights_of(self, count):
        ...         return (1 / count,) * count
        >>> inputs = keras.Input((4,))
        >>> dense = [keras.layers.Dense(2, name=name)(inputs) for name in "ab"]
        >>> [(branch.name, branch.weight) for branch in branches_of(Graph(keras.Model(inputs, Mean()(dense))))]
        [('a', 0.5), ('b', 0.5)]
    """
    if len(graph.outputs) != 1:
        return []
    for call in reversed(graph.calls):
        shapes = {tuple(tensor.shape) for tensor in call.inputs}
        if getattr(call.op, "fuses_branches", False) and shapes == {tuple(graph.outputs[0].shape)}:
            weights = call.op.weights_of(len(call.inputs)) or [None] * len(call.inputs)
            return [_branch(graph, tensor, weight) for tensor, weight in zip(call.inputs, weights, strict=True)]
    return []


def _branch(graph: Graph, tensor: Any, weight: float | None) -> Branch:
    """The branch that ends in `tensor`: the nearest model before it, else the layer or input that gives it."""
    nearest = tensor._keras_history.operation
    call: Call | None = graph.producer(tensor)
    while call is not None:
        if isinstance(call.op, keras.Model):
            return Branch(call.op.name, tensor, weight, call.op)
        call = graph.producer(call.inputs[0]) if len(call.inputs) == 1 else None
    return Branch(nearest.name, tensor, weight, None)
