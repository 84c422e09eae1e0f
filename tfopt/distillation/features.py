"""Runs a model once and gives its outputs together with what layers inside it compute."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import Functional, call_in, flat_inputs, functional_of
from tfopt.core.models.graph import Call, Graph
from tfopt.distillation.folded import Folded, foldable


def observed(model: keras.Model, paths: Iterable[str], outputs: bool = True, folds: bool = False) -> keras.Model:
    """A model of the same layers, not copies of them, whose call gives `(outputs, {path: feature})` in one run.

    Layers on which nothing of this depends do not run.

    Args:
        model: a built Keras model; it is not touched.
        paths: names of layers and ops, those of nested models as `"backbone/block3/relu"`. Of one that is called
            several times, the call is named too, counted from 0: `"tower:1"`, `"tower:1/relu"`.
        outputs: False for features alone, with None for the outputs.
        folds: for a model that only answers: convolutions do the work of the batch normalizations behind them.

    Raises:
        InvalidArgumentError: for a path that does not lead to one tensor.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU(name="relu"), keras.layers.Dense(1)])
        >>> outputs, features = observed(model, ["relu"])(keras.ops.array([[-1.0, 3.0]]))
        >>> tuple(outputs.shape), features["relu"].numpy().tolist()
        ((1, 1), [[0.0, 3.0]])
    """
    return Observed(model, {path: feature_calls(model, path) for path in paths}, outputs, folds)


def feature_shape(model: keras.Model, path: str) -> tuple[int | None, ...]:
    """Shape of a feature, the batch with it; errors as `observed`.

    Example:
        >>> inside = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")], name="block")
        >>> feature_shape(keras.Sequential([keras.Input((4,)), inside]), "block/dense")
        (None, 3)
    """
    return tuple(feature_calls(model, path)[-1].outputs[0].shape)


def feature_calls(model: keras.Model, path: str) -> list[Call]:
    """The calls that a path names: those of the nested models on the way, and that of the layer itself."""
    calls: list[Call] = []
    current: keras.Operation = model
    for part in path.split("/"):
        if not isinstance(current, keras.Model):
            raise _unknown(model, path)
        calls.append(_call_named(current, part, model, path))
        current = calls[-1].op
    if len(calls[-1].outputs) != 1:
        raise InvalidArgumentError(
            "A feature is one tensor.",
            received=f"'{path}', which gives {len(calls[-1].outputs)}",
            fix="Name a layer behind it that reads the one you mean.",
        )
    return calls


def _call_named(current: keras.Model, part: str, model: keras.Model, path: str) -> Call:
    calls = Graph(current).calls
    found = [call for call in calls if call.op.name == part]
    name, _, number = part.rpartition(":")
    if not found and number.isdecimal():
        found = [call for call in calls if call.op.name == name][int(number) :][:1]
    if not found:
        raise _unknown(model, path)
    if len(found) > 1:
        raise InvalidArgumentError(
            "A layer that is called several times gives as many features.",
            received=f"'{path}', where '{part}' is called {len(found)} times",
            fix=f"Say which call, from '{part}:0' to '{part}:{len(found) - 1}'.",
        )
    return found[0]


def _unknown(model: keras.Model, path: str) -> InvalidArgumentError:
    paths = sorted(set(_paths(model)))
    last = path.rpartition("/")[-1]
    near = [known for known in paths if known.rpartition("/")[-1] == last]
    near = near or difflib.get_close_matches(path, paths, n=5, cutoff=0.5)
    shown = ", ".join(paths[:12]) + (f", ... ({len(paths)} of them)" if len(paths) > 12 else "")
    return InvalidArgumentError(
        "A feature is named by a layer of the model, in nested models by its path.",
        received=f"'{path}', which '{model.name}' does not have",
        fix=f"Did you mean {' or '.join(map(repr, near))}?" if near else f"There are: {shown}.",
    )


def _paths(model: keras.Model, prefix: str = "") -> Iterator[str]:
    for call in Graph(model).calls:
        yield prefix + call.op.name
        if isinstance(call.op, keras.Model):
            yield from _paths(call.op, f"{prefix}{call.op.name}/")


class Observed(Functional):
    """What `observed` gives.

    Args:
        model: the model.
        chains: path -> the calls it names, see `feature_calls`.
        outputs: whether those of the model are wanted.
        folds: whether convolutions do the work of batch normalizations.
    """

    def __init__(self, model: keras.Model, chains: Mapping[str, list[Call]], outputs: bool, folds: bool):
        functional = functional_of(model)
        super().__init__(functional.input, functional.output, name=model.name)
        self.dtype_policy = model.dtype_policy
        # Set past Keras, which would take the models inside for further layers of this one.
        object.__setattr__(self, "_watched", _Watched(model, chains, outputs, folds))

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> tuple:
        watched = self._watched
        values = dict(zip(map(id, self.inputs), flat_inputs(self, inputs, mask), strict=True))
        features = {}
        for call in watched.calls:
            args, kwargs = call.arguments(values)
            op = watched.runs.get(id(call.node), call.op)
            outputs = call_in(op, args, kwargs, training)
            if isinstance(op, Observed):
                outputs, found = outputs
                features.update(found)
            if outputs is not None:
                tensors = watched.given.get(id(call.node), call).outputs
                values.update(zip(map(id, tensors), keras.tree.flatten(outputs), strict=True))
        features.update({path: values[tensor] for path, tensor in watched.tensors.items()})
        if not watched.outputs:
            return None, features
        outputs = keras.tree.pack_sequence_as(self.output, [values[id(tensor)] for tensor in self.outputs])
        if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
            outputs = outputs[0]
        return outputs, features


class _Watched:
    """The calls of a model that have to run, and where its features are found then.

    Attributes:
        calls: in order.
        runs: id of a node -> what runs in place of its layer.
        given: id of a node -> the call whose outputs that gives, where it is another one.
        tensors: path of a feature -> id of the tensor, of those that are not inside nested models.
        outputs: whether those of the model are wanted.
    """

    def __init__(self, model: keras.Model, chains: Mapping[str, list[Call]], outputs: bool, folds: bool):
        graph = Graph(model)
        self.outputs = outputs
        self.tensors: dict[str, int] = {}
        wanted = list(graph.outputs) if outputs else []
        deeper: dict[int, dict[str, list[Call]]] = defaultdict(dict)
        for path, (call, *rest) in chains.items():
            if rest:
                deeper[id(call.node)][path] = rest
                wanted.extend(call.inputs)
            else:
                self.tensors[path] = id(call.outputs[0])
                wanted.append(call.outputs[0])
        needed = _needed(graph, wanted)
        calls = [call for call in graph.calls if id(call.node) in needed | set(deeper)]
        self.runs: dict[int, Any] = {
            id(call.node): Observed(call.op, deeper[id(call.node)], id(call.node) in needed, folds)
            for call in calls
            if id(call.node) in deeper or (folds and isinstance(call.op, keras.Model))
        }
        pairs = foldable(graph, self.tensors.values()) if folds else {}
        self.runs.update({node: Folded(call.op, norm.op) for node, (call, norm) in pairs.items()})
        self.given = {node: norm for node, (_, norm) in pairs.items()}
        folded = {id(norm.node) for norm in self.given.values()}
        self.calls = [call for call in calls if id(call.node) not in folded]


def _needed(graph: Graph, tensors: list) -> set[int]:
    """Ids of the nodes that tensors depend on."""
    needed: set[int] = set()
    tensors = list(tensors)
    while tensors:
        call = graph.producer(tensors.pop())
        if call is not None and id(call.node) not in needed:
            needed.add(id(call.node))
            tensors.extend(call.inputs)
    return needed
