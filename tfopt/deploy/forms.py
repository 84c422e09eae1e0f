"""Layers of Keras that run on TensorFlow operations which no .tflite has, written with others."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from tfopt.core.layers.registry import known_class
from tfopt.core.models.graph import Graph
from tfopt.core.models.rewrite import Rewrite, rewrite


def in_forms_of_files(graph: Graph) -> Graph:
    """The graph itself, or that of a copy with other forms of layers that the converter refuses; they compute the same.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> model = keras.Sequential([keras.Input((3,), dtype="int32"), kl.CategoryEncoding(4, "multi_hot")])
        >>> in_forms_of_files(read(model)).model(keras.ops.array([[3, 0, 3]])).numpy().tolist()
        [[1.0, 0.0, 0.0, 1.0]]
    """

    def replace(op: keras.Operation, state: Rewrite) -> Any:
        if not _counts_in_bins(_inner(op), state):
            return None
        if op is _inner(op):
            return _Encoding(op)
        wrapper = state.copy(op)
        wrapper.layer = _Encoding(wrapper.layer)
        return wrapper

    is_needed = any(known_class(type(_inner(layer))) is kl.CategoryEncoding for _, layer in graph.layers)
    return rewrite(graph, replace) if is_needed else graph


def _inner(op: Any) -> Any:
    """The layer inside a wrapper of `quantize`."""
    return op.layer if getattr(op, "wraps_layer", False) else op


def _counts_in_bins(op: Any, state: Rewrite) -> bool:
    if known_class(type(op)) is not kl.CategoryEncoding or op.output_mode == "one_hot":
        return False
    return all(len(call.inputs[0].shape) == 2 for call in state.calls)


class _Encoding(keras.layers.Layer):
    """What `CategoryEncoding` computes of `(batch, n)` indices: each as a one-hot vector, then their maximum or sum."""

    def __init__(self, source: Any):
        super().__init__(name=source.name, dtype=source.dtype_policy)
        self.tokens, self.counts = source.num_tokens, source.output_mode == "count"

    def call(self, inputs: Any, count_weights: Any = None) -> Any:
        vectors = keras.ops.one_hot(keras.ops.cast(inputs, "int32"), self.tokens, dtype=self.compute_dtype)
        if not self.counts:
            return keras.ops.max(vectors, axis=1)
        if count_weights is not None:
            vectors = vectors * keras.ops.expand_dims(keras.ops.cast(count_weights, self.compute_dtype), -1)
        return keras.ops.sum(vectors, axis=1)
