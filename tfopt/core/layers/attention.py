"""Attention layers: their kernels are those of the layers inside, and integers compute them in several steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers import macs
from tfopt.core.layers.channels import NONE, Channels, Context, Unsupported, all_along, tensors_in
from tfopt.core.layers.contractions import NOT_ZERO
from tfopt.core.layers.registry import Record, Shape, enter

# MultiHeadAttention and GroupQueryAttention.


def _multi_head_channels(
    context: Context, query: Channels, value: Channels, key: Channels | None = None, *args: Any, **kwargs: Any
) -> list[Channels]:
    """Whole heads go where there are several; of a single head the inner widths get smaller."""
    layer = context.op
    if len(layer.output_dense.kernel.shape) != 3:
        raise Unsupported("attention with an output of several axes")
    _read_by_projections(context, query, value, value if key is None else key, (args, kwargs))
    heads = context.graph.created(context.path, layer.query_dense.kernel, 1)
    _along_heads(context, heads, heads)
    context.graph.size(layer, ("num_heads",), lambda count: count(heads))
    if layer.num_heads == 1:
        keys = context.graph.created(context.path, layer.query_dense.kernel, 2)
        values = context.graph.created(context.path, layer.value_dense.kernel, 2)
        _within_heads(context, keys, values)
        context.graph.size(layer, ("key_dim",), lambda count: count(keys))
        context.graph.size(layer, ("value_dim",), lambda count: count(values))
    labels = context.graph.created(context.path, layer.output_dense.kernel, -1)
    context.each(layer.output_dense.bias, labels)
    context.graph.size(layer, ("output_shape",), lambda count: count(labels))
    return _attended(context, labels, heads)


def _group_query_channels(
    context: Context, query: Channels, value: Channels, key: Channels | None = None, *args: Any, **kwargs: Any
) -> list[Channels]:
    """A head of keys and values goes with all heads of queries that share it; the output is as wide as the query."""
    layer = context.op
    _read_by_projections(context, query, value, value if key is None else key, (args, kwargs))
    pairs = context.graph.created(context.path, layer._key_dense.kernel, 1)
    shared = layer.num_query_heads // layer.num_key_value_heads
    heads = np.repeat(pairs, shared) if len(pairs) > 1 else None
    heads = context.graph.created(context.path, layer._query_dense.kernel, 1, heads)
    _along_heads(context, heads, pairs)
    context.graph.size(layer, ("num_key_value_heads",), lambda count: count(pairs))
    context.graph.size(layer, ("num_query_heads",), lambda count: count(heads))
    if layer.num_query_heads == 1:
        inner = context.graph.created(context.path, layer._query_dense.kernel, 2)
        _within_heads(context, inner, inner)
        context.graph.size(layer, ("head_dim",), lambda count: count(inner))
    labels = context.graph.created(context.path, layer._output_dense.kernel, -1)
    for x in (query, value):
        context.graph.tie(labels, x.labels[-1])
    context.each(layer._output_dense.bias, labels)
    return _attended(context, labels, heads)


def _projections_of(layer: Any, *names: str) -> list[Any]:
    found = [getattr(layer, f"_{name}_dense", None) for name in names]
    return [dense for dense in found if dense is not None]


def _read_by_projections(context: Context, query: Channels, value: Channels, key: Channels, masks: tuple) -> None:
    if any(x.along() for x in tensors_in(masks)):
        raise Unsupported("a mask that has channels")
    for name, x in (("query", query), ("gate", query), ("key", key), ("value", value)):
        for dense in _projections_of(context.op, name):
            context.read(dense.kernel, 0, x, context.along(x))


def _along_heads(context: Context, heads: np.ndarray, pairs: np.ndarray) -> None:
    """The heads of queries, and those of keys and values."""
    for labels, names in ((heads, ("query", "gate")), (pairs, ("key", "value"))):
        for dense in _projections_of(context.op, *names):
            context.graph.created(context.path, dense.kernel, 1, labels)
            if dense.bias is not None:
                context.graph.slot(context.path, dense.bias, 0, labels, "each")
    (output,) = _projections_of(context.op, "output")
    context.graph.slot(context.path, output.kernel, 0, heads, "in", zero=True)


def _within_heads(context: Context, keys: np.ndarray, values: np.ndarray) -> None:
    """The inner widths of heads. Scores are divided by the root of that of keys, so queries change with it."""
    for labels, names in ((keys, ("query", "key")), (values, ("value", "gate"))):
        for dense in _projections_of(context.op, *names):
            context.graph.created(context.path, dense.kernel, 2, labels)
            context.each(dense.bias, labels)
    output, query = _projections_of(context.op, "output", "query")
    context.graph.slot(context.path, output.kernel, 1, values, "in", zero=True)
    for weight in (query.kernel, query.bias):
        if weight is not None:
            context.graph.scaled(weight, lambda count: (count(keys) / len(keys)) ** 0.5)


def _attended(context: Context, labels: np.ndarray, heads: np.ndarray) -> list[Channels]:
    """The output, and the scores of each head where the call gives them."""
    output = context.output(labels)
    if len(context.shapes) == 1:
        return [output]
    scores = context.fixed(1)
    return [output, replace(scores, labels=(NONE, heads, *scores.labels[2:]))]


def _multi_head_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    query, value = inputs[0], inputs[1]
    axes = layer.attention_axes or range(1, len(query) - 1)
    targets, sources = macs.size([query[axis] for axis in axes]), macs.size([value[axis] for axis in axes])
    rows = macs.size([query[axis] for axis in range(1, len(query) - 1) if axis not in axes])
    heads = layer.num_heads * (layer.key_dim + layer.value_dim)
    return _projections(layer, inputs) + rows * targets * sources * heads


def _group_query_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    pairs = macs.size(inputs[0][1:-1]) * macs.size(inputs[1][1:-1])
    return _projections(layer, inputs) + pairs * 2 * layer.num_query_heads * layer.head_dim


def _projections(layer: Any, inputs: list[Shape]) -> int:
    """Each projection multiplies its kernel once a position."""
    query, value = macs.size(inputs[0][1:-1]), macs.size(inputs[1][1:-1])
    positions = {"query": query, "gate": query, "key": value, "value": value, "output": query}
    dense = {name: getattr(layer, f"_{name}_dense", None) for name in positions}
    return sum(positions[name] * macs.size(part.kernel.shape) for name, part in dense.items() if part is not None)


enter(Record(channels=_multi_head_channels, macs=_multi_head_macs), kl.MultiHeadAttention)
enter(Record(channels=_group_query_channels, macs=_group_query_macs), kl.GroupQueryAttention)


# Attention, AdditiveAttention, and the op of `keras.ops.dot_product_attention`.


def _attention_channels(
    context: Context, inputs: list[Channels], *args: Any, adds: bool = False, **kwargs: Any
) -> list[Channels]:
    """Scores sum the products of queries and keys, or a function of their sums."""
    query, value, *keys = inputs
    key = keys[0] if keys else value
    if any(x.along() for x in tensors_in((args, kwargs))):
        raise Unsupported("a mask that has channels")
    read, other = context.along(query), context.along(key)
    context.graph.tie(read, other)
    if not ((query.zero and key.zero) if adds else (query.zero or key.zero)):
        context.keep(read, NOT_ZERO)
    outputs = [context.output(context.along(value), zero=value.zero)]
    return [*outputs, *map(context.fixed, range(1, len(context.shapes)))]


def _scored_channels(context: Context, inputs: list[Channels], *args: Any, **kwargs: Any) -> list[Channels]:
    return _attention_channels(context, inputs, *args, adds=context.op.score_mode != "dot", **kwargs)


def _additive_channels(context: Context, inputs: list[Channels], *args: Any, **kwargs: Any) -> list[Channels]:
    outputs = _attention_channels(context, inputs, *args, adds=True, **kwargs)
    if context.op.use_scale:
        context.each(context.op.scale, all_along(inputs[0], -1))
    return outputs


def _dot_product_channels(
    context: Context, query: Channels, key: Channels, value: Channels, *args: Any, **kwargs: Any
) -> Channels:
    """The width and the number of heads are those of all three tensors."""
    given = dict(zip(("bias", "mask", "scale"), args, strict=False)) | kwargs
    if any(x.along() for x in tensors_in(given)):
        raise Unsupported("a mask that has channels")
    for x in (query, key, value):
        context.keep(x.labels[1], "its positions are ranked by a softmax")
    heads, inner = query.labels[2:]
    for x in (key, value):
        if x.shape[2] != query.shape[2]:
            for labels in (x.labels[2], heads):
                context.keep(labels, "several heads of queries share one of keys")
        else:
            context.graph.tie(heads, x.labels[2])
        context.graph.tie(inner, x.labels[3])
    if not (query.zero or key.zero):
        context.keep(inner, NOT_ZERO)
    if inner.any() and given.get("scale") is None:
        context.graph.argument(context.op, 5, "scale", lambda kept: len(inner) ** -0.5)
    return Channels((NONE, NONE, heads, inner), context.shapes[0], value.zero)


def _attention_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    scores, weighted = _scores_and_weighted(inputs)
    return weighted + (scores if layer.score_mode == "dot" else 0)


def _additive_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    scores, weighted = _scores_and_weighted(inputs)
    return weighted + (scores if layer.use_scale else 0)


def _scores_and_weighted(inputs: list[Shape]) -> tuple[int, int]:
    query, value = inputs[0], inputs[1]
    pairs = macs.size(query[1:-1]) * macs.size(value[1:-1])
    return pairs * macs.size(query[-1:]), pairs * macs.size(value[-1:])


def _dot_product_macs(op: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    query, key, value = inputs[:3]
    return macs.size(query[1:3]) * macs.size(key[1:2]) * (macs.size(query[-1:]) + macs.size(value[-1:]))


enter(Record(channels=_scored_channels, macs=_attention_macs), kl.Attention)
enter(Record(channels=_additive_channels, macs=_additive_macs), kl.AdditiveAttention)
enter(Record(channels=_dot_product_channels, macs=_dot_product_macs), op_class("DotProductAttention"))
