"""Whether two models compute the same function of their weights."""

from __future__ import annotations

from typing import Any

import keras

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.fingerprints import fingerprint
from tfopt.core.models.graph import Call, Graph

# What a model computes in inference does not depend on these parts of a layer's config.
_IRRELEVANT = ("name", "trainable", "seed", "rate", "momentum")
_IRRELEVANT_ENDS = ("_initializer", "_regularizer", "_constraint")


def check_same_architecture(first: keras.Model, other: keras.Model) -> None:
    """Raises unless both are made of the same layers, wired alike; names may differ.

    Raises:
        InvalidArgumentError: names the first layers that differ.
    """
    if [tuple(tensor.shape) for tensor in first.inputs] != [tuple(tensor.shape) for tensor in other.inputs]:
        raise _differ(first, other, *(f"inputs {[tuple(t.shape) for t in m.inputs]}" for m in (first, other)))
    graphs = Graph(first), Graph(other)
    if len(graphs[0].calls) != len(graphs[1].calls):
        raise _differ(first, other, *(f"{len(graph.calls)} layers" for graph in graphs))
    numbers: tuple[dict[int, str], dict[int, str]] = (_numbered(graphs[0].inputs, 0), _numbered(graphs[1].inputs, 0))
    for place, calls in enumerate(zip(graphs[0].calls, graphs[1].calls, strict=True), start=1):
        if all(isinstance(call.op, keras.Model) for call in calls):
            check_same_architecture(calls[0].op, calls[1].op)
        pairs = zip(calls, numbers, strict=True)
        shown, wired = zip(*((_computes(call), _reads(call, known)) for call, known in pairs), strict=True)
        if shown[0] != shown[1] or wired[0] != wired[1]:
            raise _differ(first, other, *_described(calls, shown))
        for call, known in zip(calls, numbers, strict=True):
            known.update(_numbered(call.outputs, place))
    ends = [[known[id(t)] for t in graph.outputs] for graph, known in zip(graphs, numbers, strict=True)]
    if ends[0] != ends[1]:
        raise _differ(first, other, "outputs in one order", "outputs in another")


def _numbered(tensors: list, place: int) -> dict[int, str]:
    return {id(tensor): f"tensor {place}:{index}" for index, tensor in enumerate(tensors)}


def _computes(call: Call) -> dict[str, Any]:
    """What tells the function of a layer; nested models are compared layer by layer."""
    config = {} if isinstance(call.op, keras.Model) else _relevant(call.op.get_config())
    shapes = [tuple(weight.shape) for weight in getattr(call.op, "weights", [])]
    return {"class": type(call.op).__name__, **config, "weights": shapes}


def _reads(call: Call, known: dict[int, str]) -> str:
    """A hash of the arguments of the call, tensors by number."""
    return fingerprint(list(call.arguments(known)))


def _relevant(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _relevant(part)
            for key, part in value.items()
            if key not in _IRRELEVANT and not key.endswith(_IRRELEVANT_ENDS)
        }
    return [_relevant(part) for part in value] if isinstance(value, (list, tuple)) else value


def _described(calls: tuple[Call, Call], shown: tuple[dict, dict]) -> tuple[str, str]:
    """Both layers with what differs of them."""
    keys = [key for key in {**shown[0], **shown[1]} if shown[0].get(key) != shown[1].get(key)]
    texts = [", ".join(f"{key} {each.get(key)}" for key in keys) or "wired otherwise" for each in shown]
    return f"'{calls[0].op.name}' ({texts[0]})", f"'{calls[1].op.name}' ({texts[1]})"


def _differ(first: keras.Model, other: keras.Model, one: str, two: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "Weights are averaged of models with the same architecture.",
        received=f"{one} in '{first.name}', {two} in '{other.name}'",
        fix="Other models are fused by their outputs: `fuse`, `stack`.",
    )
