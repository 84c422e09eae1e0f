"""Read-only index of a Sequential or Functional model: what each verb reads once, and what travels from there."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np

from tfopt.core.errors import InvalidArgumentError, NonFiniteError, UnsupportedModelError
from tfopt.core.keras_internals import (
    Node,
    compile_metrics,
    compile_options,
    functional_of,
    has_graph,
    sublayers,
    tensor_of,
    topological_nodes,
)
from tfopt.core.layers.nodes import FIXED
from tfopt.core.models.tracing import traced_model


def read(model: object) -> Graph:
    """The graph of a built Keras 3 model, else an error that says what to do.

    A verb calls it once, first of all. What stands behind the verb takes the graph and checks nothing again. A
    subclassed model, or one that holds subclassed models, is read as a Functional model over the very same layers.

    Raises:
        UnsupportedModelError: for an unbuilt model, one of tf_keras, what is no model, one that Keras has quantized, or
            a subclassed model whose `call` does not run on symbolic tensors.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> [path for path, _ in read(model).layers]
        ['d']
    """
    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(
            "A `keras.Model` of Keras 3 is expected.",
            received=f"{type(model).__module__}.{type(model).__name__}",
            fix="tf_keras models go through `prune`, `quantize`, `strip` and `export_tflite` only; port it to Keras 3."
            if type(model).__module__.startswith("tf_keras")
            else "Load a saved model with `tfopt.load_model(path)` first.",
        )
    _check_not_quantized_by_keras(model)
    return Graph(model if _is_graph(model) else traced_model(model))


def with_graph(model: Any) -> Any:
    """The model itself, or for a subclassed one a Functional model over its very layers, compiled as it is.

    What is no model stays what it is; in a list or dict each is looked at.

    Example:
        >>> class Net(keras.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.dense = keras.layers.Dense(2)
        ...     def call(self, x):
        ...         return self.dense(x)
        >>> net = Net()
        >>> net.build((None, 3))
        >>> with_graph(net).layers[-1] is net.dense
        True
    """
    if isinstance(model, (list, tuple)):
        return [with_graph(each) for each in model]
    if isinstance(model, Mapping):
        return {name: with_graph(each) for name, each in model.items()}
    if not isinstance(model, keras.Model) or isinstance(model, keras.Sequential) or _is_graph(model):
        return model
    _check_not_quantized_by_keras(model)
    seen = traced_model(model, lasting=True)
    if model.compiled:
        options = {**compile_options(model), **compile_metrics(model)}
        optimizer = options["optimizer"]
        if isinstance(optimizer, keras.optimizers.Optimizer):
            options["optimizer"] = type(optimizer).from_config(optimizer.get_config())
        seen.compile(**options)
    return seen


def _check_not_quantized_by_keras(model: keras.Model) -> None:
    for layer in sublayers(model):
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            raise UnsupportedModelError(
                "The model must hold floats; the one that is given was quantized by Keras.",
                received=f"'{layer.name}' in {mode}",
                fix="Start from the model as it was before Keras' `quantize`; `tfopt.quantize` brings it to integers.",
            )


def _is_graph(model: keras.Model) -> bool:
    """True for a model that Keras knows as a graph, with all models nested in it."""
    return has_graph(model) and all(_is_graph(layer) for layer in model.layers if isinstance(layer, keras.Model))


def check_finite(graph: Graph) -> None:
    """Raises if any floating-point weight of the model holds NaN or infinity."""
    for weight in graph.model.weights:
        if keras.backend.is_float_dtype(weight.dtype) and not np.isfinite(tensor_of(weight).numpy()).all():
            raise NonFiniteError(
                "The weights of the model must be finite.",
                received=f"NaN or infinity in '{weight.path}'",
                fix="Train again with a lower learning rate or gradient clipping, or load an earlier checkpoint.",
            )


def matches(path: str, patterns: list[str]) -> bool:
    """True if the path, or its last part, fits one of the glob `patterns`."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(path, p) or fnmatch.fnmatchcase(name, p) for p in patterns)


def is_selected(path: str, included: list[str], excluded: list[str]) -> bool:
    """True if a layer, or a model that it is nested in, is included (or nothing is) and not excluded."""
    parts = path.split("/")
    paths = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    if included and not any(matches(p, included) for p in paths):
        return False
    return not any(matches(p, excluded) for p in paths)


def as_patterns(value: object, argument: str) -> list[str]:
    """A name, a glob or a list of them as a list."""
    if value is None:
        return []
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple, set)) or not all(isinstance(item, str) for item in items):
        raise InvalidArgumentError(
            f"`{argument}` is a layer name, a glob such as 'block_*', or a list of them.", received=repr(value)
        )
    return list(items)


def check_patterns(graph: Graph, patterns: list[str], argument: str) -> None:
    """Raises if a pattern fits no layer of the model."""
    paths = [path for path, _ in graph.layers]
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in paths):
            shown = ", ".join(paths[:12]) + (f", ... ({len(paths)} layers)" if len(paths) > 12 else "")
            raise InvalidArgumentError(
                f"Each name or glob in `{argument}` must fit a layer of the model.",
                received=repr(pattern),
                fix=f"The layers are: {shown}.",
            )


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or op in the graph."""

    node: Node

    @property
    def op(self) -> keras.Operation:
        return self.node.operation

    @property
    def inputs(self) -> list:
        return self.node.input_tensors

    @property
    def outputs(self) -> list:
        return self.node.outputs

    @property
    def given(self) -> tuple[tuple, dict]:
        """The call's positional and keyword arguments."""
        return self.node.arguments.args, self.node.arguments.kwargs

    def arguments(self, values: dict) -> tuple[tuple, dict]:
        """The call's positional and keyword arguments, each tensor `t` replaced by `values[id(t)]`."""
        return self.node.arguments.fill_in(values)


class Graph:
    """The index of a model: its calls in topological order, producers and consumers, and its layers by path.

    Nested models are single calls here and have graphs of their own. Everything is indexed when it is first asked for.

    Args:
        model: that `read` or a rewrite vouches for.
        nested: the graphs of nested models that are known, by id of the model; shared by all graphs of one model.
        closed: layers written as code of which `opened` could make no graph, by path, with the reasons.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.ReLU()])
        >>> [call.op.__class__.__name__ for call in Graph(model).calls]
        ['Dense', 'ReLU']
    """

    def __init__(
        self, model: keras.Model, nested: dict[int, Graph] | None = None, closed: Mapping[str, str] | None = None
    ):
        self.model = model
        self.closed = closed or {}
        self._nested: dict[int, Graph] = {} if nested is None else nested
        self._nested[id(model)] = self

    def inner(self, model: keras.Model) -> Graph:
        """The graph of a nested model, or of the model itself."""
        if id(model) not in self._nested:
            self._nested[id(model)] = Graph(model, self._nested)
        return self._nested[id(model)]

    @cached_property
    def layers(self) -> tuple[tuple[str, keras.layers.Layer], ...]:
        """`(path, layer)` of each layer, nested models entered: `"encoder/conv1"`. A shared one comes once a model."""
        return tuple(_walk(self.model))

    @cached_property
    def graphs(self) -> tuple[Graph, ...]:
        """The graph itself and those of all nested models, each once."""
        models = {id(layer): layer for _, layer in self.layers if isinstance(layer, keras.Model)}
        return (self, *map(self.inner, models.values()))

    @cached_property
    def inputs(self) -> list[keras.KerasTensor]:
        return functional_of(self.model).inputs

    @cached_property
    def outputs(self) -> list[keras.KerasTensor]:
        return functional_of(self.model).outputs

    @cached_property
    def calls(self) -> list[Call]:
        return [Call(node) for node in topological_nodes(functional_of(self.model))]

    @cached_property
    def _producers(self) -> dict[int, Call]:
        return {id(tensor): call for call in self.calls for tensor in call.outputs}

    @cached_property
    def _consumers(self) -> dict[int, list[Call]]:
        consumers = defaultdict(list)
        for call in self.calls:
            for tensor in call.inputs:
                consumers[id(tensor)].append(call)
        return consumers

    @cached_property
    def _calls_of(self) -> dict[int, list[Call]]:
        calls = defaultdict(list)
        for call in self.calls:
            calls[id(call.op)].append(call)
        return calls

    @cached_property
    def _output_ids(self) -> set[int]:
        return {id(tensor) for tensor in self.outputs}

    @cached_property
    def fixed(self) -> set[int]:
        """Tensors, by id, that follow from constants and sizes alone, whatever the inputs hold."""
        found: set[int] = set()
        for call in self.calls:
            is_op = not isinstance(call.op, keras.layers.Layer)
            if isinstance(call.op, FIXED) or (is_op and call.inputs and all(id(t) in found for t in call.inputs)):
                found.update(map(id, call.outputs))
        return found

    def producer(self, tensor: Any) -> Call | None:
        """The call that gives `tensor`, None for an input of the model."""
        return self._producers.get(id(tensor))

    def consumers(self, tensor: Any) -> list[Call]:
        return self._consumers[id(tensor)]

    def calls_of(self, op: keras.Operation) -> list[Call]:
        return self._calls_of[id(op)]

    def is_output(self, tensor: Any) -> bool:
        return id(tensor) in self._output_ids

    def needed(self, instead: Mapping[int, Any]) -> set[Call]:
        """The calls that the outputs depend on, where `instead[id(tensor)]` is read in place of a tensor."""
        needed: set[Call] = set()
        tensors = list(self.outputs)
        while tensors:
            tensor = tensors.pop()
            if id(tensor) in instead:
                tensors.append(instead[id(tensor)])
                continue
            call = self.producer(tensor)
            if call is not None and call not in needed:
                needed.add(call)
                tensors.extend(call.inputs)
        return needed

    def sole_consumer(self, op: keras.Operation) -> keras.Operation | None:
        """The op that alone reads the output of `op`, None if it is shared, branches or is an output of the model."""
        calls = self.calls_of(op)
        if len(calls) != 1 or len(calls[0].outputs) != 1:
            return None
        tensor = calls[0].outputs[0]
        readers = self.consumers(tensor)
        if self.is_output(tensor) or len(readers) != 1 or len(self.calls_of(readers[0].op)) != 1:
            return None
        return readers[0].op

    def sole_producer(self, op: keras.Operation) -> keras.Operation | None:
        """The op that gives the only input of `op`, None if there are several, or it is an input of the model."""
        calls = self.calls_of(op)
        if len(calls) != 1 or len(calls[0].inputs) != 1:
            return None
        producer = self.producer(calls[0].inputs[0])
        return producer.op if producer else None


def trace_back(graph: Graph, goes_on: Callable[[Call], bool]) -> bool:
    """Visits calls from the outputs back towards the inputs, those of nested models instead of the models.

    Args:
        goes_on: told of each call, says whether to visit what the call reads.

    Returns:
        True if an input of the model was reached.

    Example:
        >>> layers = [keras.layers.Dense(2, name="a"), keras.layers.Dense(3, name="b"), keras.layers.Softmax(name="c")]
        >>> seen = []
        >>> def until_dense(call):
        ...     seen.append(call.op.name)
        ...     return not isinstance(call.op, keras.layers.Dense)
        >>> trace_back(read(keras.Sequential([keras.Input((4,)), *layers])), until_dense), seen
        (False, ['c', 'b'])
    """
    reached = False
    tensors, seen = list(graph.outputs), set()
    while tensors:
        tensor = tensors.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        call = graph.producer(tensor)
        if call is None:
            reached = True
        elif trace_back(graph.inner(call.op), goes_on) if isinstance(call.op, keras.Model) else goes_on(call):
            tensors.extend(call.inputs)
    return reached


def compute(
    graph: Graph,
    inputs: list,
    visit: Callable[[dict[int, Any]], None] = lambda values: None,
    *,
    before: Callable[[Call, dict[int, Any]], None] = lambda call, values: None,
) -> list:
    """Runs a model call by call in inference mode; gives the outputs, flat.

    Args:
        graph: of the model.
        inputs: arrays in the order of its inputs.
        visit: called after each run of the model, and of the models nested in it, with `{id(tensor): value}` of all
            tensors of its graph.
        before: called before each call of a layer or op, with the values so far.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(), keras.layers.Flatten()])
        >>> compute(read(model), [np.array([[-1.0, 3.0]])], lambda values: print(len(values)))[0].numpy().tolist()
        3
        [[0.0, 3.0]]
    """
    values = {
        id(tensor): keras.ops.convert_to_tensor(value, dtype=tensor.dtype)
        for tensor, value in zip(graph.inputs, inputs, strict=True)
    }
    for call in graph.calls:
        if isinstance(call.op, keras.Model):
            given = [values[id(tensor)] for tensor in call.inputs]
            outputs = compute(graph.inner(call.op), given, visit, before=before)
        else:
            before(call, values)
            args, kwargs = call.arguments(values)
            outputs = keras.tree.flatten(call.op(*args, **kwargs))
        values.update((id(tensor), value) for tensor, value in zip(call.outputs, outputs, strict=True))
    visit(values)
    return [values[id(tensor)] for tensor in graph.outputs]


def _walk(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        yield path, layer
        if isinstance(layer, keras.Model):
            yield from _walk(layer, f"{path}/")
