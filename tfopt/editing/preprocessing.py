"""The verb `split_preprocessing`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tfopt.core.data.inputs import inputs_of
from tfopt.core.errors import NothingToDoError, UnsupportedModelError
from tfopt.core.keras_internals import Functional, functional_like_constructor, functional_of
from tfopt.core.models.graph import Call, Graph, read
from tfopt.core.models.opening import is_closed, opened
from tfopt.core.models.preprocessing import reads_raw, with_what_they_need
from tfopt.core.models.rewrite import rewrite


def split_preprocessing(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Cuts off what no .tflite holds: strings, lookups in vocabularies, hashing.

    `model(x)` is then `rest(preprocessing(x))`. The device, or the app around it, does the first part; the second goes
    through all verbs and into a file. It may also be the last step: split the quantized model.

    Args:
        model: any Keras model with layers such as `TextVectorization`, `StringLookup`, `IntegerLookup`, `Hashing`, or
            functions of `tf.strings`, in its front; in nested models too.

    Returns:
        `(preprocessing, rest)`, two new, uncompiled models. The first takes the inputs of `model` and gives those of
        the second: a dict if `model` takes a dict. An input of `rest` has the name of the input of `model` that it is,
        or is made of alone; else that of the layer that makes it.

    Raises:
        NothingToDoError: all of the model can be in a file.
        UnsupportedModelError: weights to train lie in front of a string or lookup, or it is an output of the model.

    Example:
        >>> words = keras.layers.StringLookup(vocabulary=["yes", "no"], name="words")
        >>> layers = [keras.Input((2,), dtype="string", name="text"), words, keras.layers.Embedding(3, 4)]
        >>> preprocessing, rest = split_preprocessing(keras.Sequential(layers))
        >>> preprocessing(keras.ops.convert_to_tensor([["no", "so"]])).numpy().tolist(), rest.input_shape
        ([[2, 0]], (None, 2))
    """
    graph = read(model)
    if not reads_raw(graph):
        raise NothingToDoError(
            "There must be strings, lookups or hashing in the model.",
            received=f"'{graph.model.name}', of layers that a .tflite can hold",
            fix="Use the model as it is: `export_tflite` takes all of it.",
        )
    return split(graph)


def split(graph: Graph) -> tuple[keras.Model, keras.Model]:
    """What `split_preprocessing` gives, of a graph with something to cut off."""
    if any(is_closed(call.op) and _holds_weights(call) for call in _inside(graph, reads_raw(graph))):
        graph = opened(graph, composed=False)
    flat = _without_nesting(rewrite(graph))
    front = with_what_they_need(flat, reads_raw(flat))
    _check_front(flat, front)
    return _two_models(flat, front)


def _inside(graph: Graph, calls: list[Call]) -> Iterator[Call]:
    """The calls, those in nested models instead of the models."""
    for call in calls:
        if isinstance(call.op, keras.Model):
            inner = graph.inner(call.op)
            yield from _inside(inner, reads_raw(inner))
        else:
            yield call


def _holds_weights(call: Call) -> bool:
    return bool(call.op.trainable_weights)


def _without_nesting(graph: Graph) -> Graph:
    """The graph of a model, with the calls of those nested models in it that have something to cut off."""
    nested = [call for call in reads_raw(graph) if isinstance(call.op, keras.Model)]
    if not nested:
        return graph
    taken = {call.op.name for call in graph.calls if isinstance(call.op, keras.layers.Layer) and call not in nested}

    def run(graph: Graph, values: dict[int, Any], prefix: str) -> list:
        raw = reads_raw(graph)
        for call in graph.calls:
            if call in raw and isinstance(call.op, keras.Model):
                inner = graph.inner(call.op)
                given = zip(inner.inputs, call.inputs, strict=True)
                outputs = run(inner, {id(own): values[id(tensor)] for own, tensor in given}, f"{prefix}{call.op.name}_")
            else:
                if prefix and call.op.name in taken:
                    call.op.name = prefix + call.op.name
                taken.add(call.op.name)
                args, kwargs = call.arguments(values)
                outputs = keras.tree.flatten(call.op(*args, **kwargs))
            values.update((id(tensor), value) for tensor, value in zip(call.outputs, outputs, strict=True))
        return [values[id(tensor)] for tensor in graph.outputs]

    functional = functional_of(graph.model)
    outputs = run(graph, {id(tensor): tensor for tensor in graph.inputs}, "")
    outputs = keras.tree.pack_sequence_as(functional.output, outputs)
    return Graph(_class_of(graph.model)(functional.input, outputs, name=graph.model.name))


def _class_of(model: keras.Model) -> type:
    is_plain = isinstance(model, Functional) and functional_like_constructor(type(model))
    return type(model) if is_plain else keras.Model


def _check_front(graph: Graph, front: set[Call]) -> None:
    for call in graph.calls:
        if call in front and isinstance(call.op, keras.layers.Layer) and call.op.trainable_weights:
            raise UnsupportedModelError(
                "Strings, lookups and hashing must come before the layers with weights.",
                received=f"{type(call.op).__name__} '{call.op.name}' in front of such a layer",
                fix="Leave what comes behind the weights, such as a lookup of labels, out of the model: "
                "`keras.Model(model.inputs, model.get_layer(name).output)`.",
            )
        if call in front and any(map(graph.is_output, call.outputs)):
            raise UnsupportedModelError(
                "What is cut off may not give an output of the model.",
                received=f"an output of '{call.op.name}'",
                fix="Build the model without that output.",
            )


def _two_models(graph: Graph, front: set[Call]) -> tuple[keras.Model, keras.Model]:
    model, functional = graph.model, functional_of(graph.model)
    cut = _cut_tensors(graph, front)
    names = _names(graph, cut)
    new = {id(t): keras.Input(batch_shape=t.shape, dtype=t.dtype, name=names[id(t)]) for t in cut}
    given = {id(tensor) for tensor in graph.inputs}
    passed = {id(t): keras.layers.Identity(name=f"{names[id(t)]}_as_it_is")(t) if id(t) in given else t for t in cut}
    structure = _structure_like(functional.input, cut, names)
    front_outputs = keras.tree.map_structure(lambda tensor: passed[id(tensor)], structure)
    preprocessing = keras.Model(functional.input, front_outputs, name=f"{model.name}_preprocessing")
    rest_calls = [call for call in graph.calls if call not in front]
    if isinstance(model, keras.Sequential):
        (only,) = new.values()
        return preprocessing, keras.Sequential([only, *(call.op for call in rest_calls)], name=model.name)
    values = dict(new)
    for call in rest_calls:
        args, kwargs = call.arguments(values)
        outputs = keras.tree.flatten(call.op(*args, **kwargs))
        values.update((id(tensor), value) for tensor, value in zip(call.outputs, outputs, strict=True))
    inputs = keras.tree.map_structure(lambda tensor: new[id(tensor)], structure)
    outputs = keras.tree.map_structure(lambda tensor: values[id(tensor)], functional.output)
    return preprocessing, _class_of(model)(inputs, outputs, name=model.name)


def _cut_tensors(graph: Graph, front: set[Call]) -> list[keras.KerasTensor]:
    """The tensors that the rest reads of what is cut off, and inputs of the model that it reads."""
    needed = graph.needed({})
    behind = [tensor for call in graph.calls if call in needed - front for tensor in call.inputs]
    made = {id(tensor) for call in front for tensor in call.outputs} | {id(tensor) for tensor in graph.inputs}
    read_behind = {id(tensor): tensor for tensor in (*behind, *graph.outputs) if id(tensor) in made}
    in_order = [*graph.inputs, *(tensor for call in graph.calls for tensor in call.outputs)]
    return [tensor for tensor in in_order if id(tensor) in read_behind]


def _names(graph: Graph, cut: list[keras.KerasTensor]) -> dict[int, str]:
    """The name of each tensor as an input: that of the only input it is made of, if no other is; else its layer's."""
    own = {id(tensor): known.name for tensor, known in zip(graph.inputs, inputs_of(graph.model), strict=True)}
    sources = {id(tensor): _sources(graph, tensor) for tensor in cut}
    names: dict[int, str] = {}
    for tensor in cut:
        made_of = sources[id(tensor)]
        is_only = len(made_of) == 1 and sum(not made_of.isdisjoint(found) for found in sources.values()) == 1
        producer = graph.producer(tensor)
        name = own[min(made_of)] if is_only or producer is None else producer.op.name
        taken = [known for known in names.values() if known == name or known.startswith(f"{name}_")]
        names[id(tensor)] = f"{name}_{len(taken)}" if name in names.values() else name
    return names


def _sources(graph: Graph, tensor: keras.KerasTensor) -> set[int]:
    producer = graph.producer(tensor)
    if producer is None:
        return {id(tensor)}
    needed = with_what_they_need(graph, [producer])
    read_there = {id(own) for call in needed for own in call.inputs}
    return {id(own) for own in graph.inputs if id(own) in read_there}


def _structure_like(structure: Any, cut: list[keras.KerasTensor], names: Mapping[int, str]) -> Any:
    """The cut tensors as the inputs of the model are given: a dict by name, a list, or one tensor."""
    if isinstance(structure, Mapping):
        return {names[id(tensor)]: tensor for tensor in cut}
    return cut[0] if len(cut) == 1 else cut
