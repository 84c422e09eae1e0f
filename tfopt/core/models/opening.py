"""Layers that are written with Keras layers and ops, and what they look like from inside: one nested model each."""

from __future__ import annotations

import keras

from tfopt.core.layers.macs import layer_macs
from tfopt.core.layers.registry import Record, enter
from tfopt.core.models.graph import Call, Graph
from tfopt.core.models.rewrite import rewrite, transfer_settings, transfer_values


class ComposedLayer(keras.layers.Layer):
    """Base of layers whose `call(inputs)` uses Keras layers and `keras.ops` alone, and reads no other argument.

    Techniques that treat a model layer by layer, as `quantize` does, look into such a layer through `opened`. What
    `call` computes from weights of the layer itself, outside of layers inside it, becomes constants there.
    """


def opened(graph: Graph) -> Graph:
    """The graph itself, or that of a copy in which a nested model of the same name is in each composed layer's place.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> @keras.saving.register_keras_serializable(package="example")
        ... class Half(ComposedLayer):
        ...     def call(self, inputs):
        ...         return keras.ops.multiply(inputs, 0.5)
        >>> model = keras.Sequential([keras.Input((4,)), Half(name="half")])
        >>> [type(call.op).__name__ for call in Graph(opened(read(model)).model.get_layer("half")).calls]
        ['Multiply']
    """
    if not any(isinstance(layer, ComposedLayer) for _, layer in graph.layers):
        return graph
    return rewrite(graph, lambda op, state: _as_model(op) if isinstance(op, ComposedLayer) else None)


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
