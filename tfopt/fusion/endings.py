"""What the outputs of a model are: probabilities, one of several classes or each of its own, or plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.models.graph import Graph
from tfopt.core.models.rewrite import Rewrite, rewrite
from tfopt.fusion.chains import StackedFusion
from tfopt.fusion.layers import GatedFusion, ParallelFusion, VotingFusion

SOFTMAX, SIGMOID, LINEAR = "softmax", "sigmoid", "linear"
# What gives probabilities where it reads them.
_PASSES = (
    kl.Reshape,
    kl.Flatten,
    kl.Identity,
    kl.Dropout,
    *map(op_class, ("Reshape", "Squeeze", "ExpandDims", "Cast")),
)


@dataclass(frozen=True, eq=False)
class Ending:
    """How one output of a model comes about.

    Args:
        kind: `"softmax"`, `"sigmoid"` or `"linear"`, which stands for anything else.
        op: the layer or op that ends in the softmax or sigmoid, where it can be taken off; None elsewhere.
    """

    kind: str
    op: Any = None


def ending_of(model: keras.Model, index: int = 0) -> Ending:
    """The ending of the output of that number.

    Example:
        >>> ending_of(keras.Sequential([keras.Input((4,)), kl.Dense(3), kl.Softmax(), kl.Reshape((3,))])).kind
        'softmax'
    """
    graph = Graph(model)
    return _ending(graph, graph.outputs[index])


def logits_of(model: keras.Model, ending: Ending) -> keras.Model:
    """A copy of the model without the softmax or sigmoid at its end."""

    def replace(op: keras.Operation, state: Rewrite):
        if op is not ending.op:
            return None
        alone = not hasattr(op, "activation") or isinstance(op, kl.Activation)
        return [] if alone else state.copy(op, activation=LINEAR)

    return rewrite(model, replace)


def _ending(graph: Graph, tensor) -> Ending:
    call = graph.producer(tensor)
    if call is None:
        return Ending(LINEAR)
    op = call.op
    if isinstance(op, keras.Model):
        inner = Graph(op)
        return _ending(inner, inner.outputs[[id(output) for output in call.outputs].index(id(tensor))])
    if isinstance(op, (VotingFusion, ParallelFusion, GatedFusion, StackedFusion)):
        return _ending_of_fusion(graph, call)
    if isinstance(op, _PASSES):
        return _ending(graph, call.inputs[0])
    kind = _kind(op)
    return Ending(kind, op if kind != LINEAR and len(graph.calls_of(op)) == 1 else None)


def _ending_of_fusion(graph: Graph, call) -> Ending:
    layer = call.op
    if isinstance(layer, StackedFusion):
        return Ending(_kind(layer.meta[-1]))
    if isinstance(layer, VotingFusion) or getattr(layer, "how", "") == "product":
        return Ending(SIGMOID if layer.multi_label or call.outputs[0].shape[-1] == 1 else SOFTMAX)
    if getattr(layer, "how", "") == "concat":
        return Ending(LINEAR)
    return Ending(_ending(graph, call.inputs[0]).kind)


def _kind(op: Any) -> str:
    name = getattr(getattr(op, "activation", None), "__name__", type(op).__name__.lower())
    return name if name in (SOFTMAX, SIGMOID) else LINEAR
