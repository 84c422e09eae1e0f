"""Layers and models that are written as code, and the graphs that they are from inside: one nested model each."""

from __future__ import annotations

from typing import Any

import keras

from tfopt.core.keras_internals import children, has_graph
from tfopt.core.layers.macs import layer_macs
from tfopt.core.layers.registry import Record, enter, record_of
from tfopt.core.layers.training_only import TrainingOnly
from tfopt.core.models.fake_quantized import FakeQuantized
from tfopt.core.models.graph import Call, Graph
from tfopt.core.models.rewrite import Rewrite, rewrite, transfer_settings, transfer_values
from tfopt.core.models.tracing import Closed, ClosedInTraining, traced


class ComposedLayer(keras.layers.Layer):
    """Base of tfopt's layers whose `call(inputs)` uses Keras layers and `keras.ops` alone."""


def is_closed(op: keras.Operation) -> bool:
    """True for a layer whose `call` is code of which tfopt knows nothing; `opened` makes a graph of it if it can.

    Example:
        >>> is_closed(keras.layers.Lambda(abs)), is_closed(keras.layers.Dense(2))
        (True, False)
    """
    if not isinstance(op, keras.layers.Layer) or isinstance(op, (keras.layers.InputLayer, FakeQuantized)):
        return False
    if getattr(op, "wraps_layer", False):
        return False
    if isinstance(op, keras.Model):
        return not has_graph(op)
    if isinstance(op, (ComposedLayer, keras.layers.Lambda)):
        return True
    return record_of(op) is None and not type(op).__module__.startswith(("keras.src.", "tfopt."))


def opened(graph: Graph, *, blocks_only: bool = False, composed: bool = True) -> Graph:
    """The graph itself, or that of a copy in which a nested model of the same name is in each closed layer's place.

    Layers whose `call` gives no graph that computes the same stay as they are; `closed` of the graph tells why. With
    `blocks_only` no layers are opened but authors' own that hold layers, without `composed` all but tfopt's own.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> half = keras.layers.Lambda(lambda inputs: inputs * 0.5, name="half")
        >>> model = keras.Sequential([keras.Input((4,)), half])
        >>> [type(call.op).__name__ for call in Graph(opened(read(model)).model.get_layer("half")).calls]
        ['Multiply']
    """

    def is_opened(op: keras.Operation) -> bool:
        own = isinstance(op, ComposedLayer)
        return is_closed(op) and not (blocks_only and (own or not children(op))) and (composed or not own)

    if not any(is_opened(layer) for _, layer in graph.layers):
        return graph
    closed: dict[str, str] = {}

    def replace(op: keras.Operation, state: Rewrite) -> keras.layers.Layer | None:
        if not is_opened(op) or not state.calls:
            return None
        try:
            return state.opened(op, traced(op, *_in_common(state.calls)))
        except ClosedInTraining:
            return TrainingOnly(state.copy(op), name=op.name)
        except Closed as reason:
            closed[state.path] = str(reason)
            return None

    return Graph(rewrite(graph, replace).model, closed=closed)


def _in_common(calls: list[Call]) -> tuple[tuple, dict]:
    """The arguments of all calls of a layer; a size that differs between them is unknown."""
    first, *others = [call.given for call in calls]
    for given in others:
        try:
            first = keras.tree.map_structure(_merged, first, given)
        except (TypeError, ValueError) as error:
            raise Closed("it is called in several ways") from error
    return first


def _merged(first: Any, second: Any) -> Any:
    if not isinstance(first, keras.KerasTensor) or not isinstance(second, keras.KerasTensor):
        if first is not second and repr(first) != repr(second):
            raise Closed("it is called with several arguments")
        return first
    if len(first.shape) != len(second.shape) or first.dtype != second.dtype:
        raise Closed("it is called on tensors of several kinds")
    if first.shape == second.shape:
        return first
    shape = [size if size == other else None for size, other in zip(first.shape, second.shape, strict=True)]
    return keras.KerasTensor(shape, dtype=first.dtype)


def _as_model(layer: ComposedLayer) -> keras.Model:
    """A model that computes what the layer computes, with copies of the layers inside it."""
    shapes = layer.get_build_config()["input_shape"]
    copied = type(layer).from_config(layer.get_config())
    copied.build(shapes)
    transfer_values(layer, copied)
    transfer_settings(layer, copied, {})
    is_list = isinstance(shapes[0], (list, tuple))
    inputs = [keras.Input(shape[1:], dtype=layer.compute_dtype) for shape in (shapes if is_list else [shapes])]
    inputs = inputs if is_list else inputs[0]
    model = keras.Model(inputs, copied.call(inputs), name=layer.name)
    if not layer.trainable:
        model.trainable = False
    return model


def _composed(layer: ComposedLayer, inputs: list, outputs: list) -> int:
    return sum(layer_macs(call.op, *_shapes(call)) for call in Graph(_as_model(layer)).calls)


enter(Record(macs=_composed, of_subclasses=True), ComposedLayer)


def _shapes(call: Call) -> tuple[list, list]:
    return [tuple(tensor.shape) for tensor in call.inputs], [tuple(tensor.shape) for tensor in call.outputs]
