"""The part of a model that no .tflite holds: what reads or gives strings, and lookups in tables."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers as kl

from tfopt.core.keras_internals import sublayers
from tfopt.core.models.graph import Call, Graph

_TABLES = (kl.TextVectorization, kl.StringLookup, kl.IntegerLookup, kl.Hashing, kl.HashedCrossing)


def reads_raw(graph: Graph) -> list[Call]:
    """The calls that no .tflite holds, those of nested models that have some inside among them, in their order.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> lookup = kl.StringLookup(vocabulary=["a", "b"], name="lookup")
        >>> model = keras.Sequential([keras.Input((1,), dtype="string"), lookup, kl.Embedding(3, 4)])
        >>> [call.op.name for call in reads_raw(read(model))]
        ['lookup']
    """
    return [call for call in graph.calls if _is_raw(call)]


def with_what_they_need(graph: Graph, calls: Sequence[Call]) -> set[Call]:
    """The calls, and all calls that they depend on."""
    found, left = set(), list(calls)
    while left:
        call = left.pop()
        if call not in found:
            found.add(call)
            producers = map(graph.producer, call.inputs)
            left.extend(producer for producer in producers if producer is not None)
    return found


def _is_raw(call: Call) -> bool:
    tensors = [*call.inputs, *call.outputs]
    is_table = isinstance(call.op, kl.Layer) and any(isinstance(layer, _TABLES) for layer in sublayers(call.op))
    return is_table or any(keras.backend.standardize_dtype(tensor.dtype) == "string" for tensor in tensors)
