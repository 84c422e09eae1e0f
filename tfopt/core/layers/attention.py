"""Attention layers: their kernels are those of the layers inside, and integers compute them in several steps."""

from __future__ import annotations

from typing import Any

from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers import macs
from tfopt.core.layers.channels import Channels, Context, Unsupported
from tfopt.core.layers.registry import Record, Shape, enter

# MultiHeadAttention and GroupQueryAttention.


def _multi_head_channels(
    context: Context, query: Channels, value: Channels, key: Channels | None = None, *_: Any, **__: Any
) -> Channels:
    layer = context.op
    if len(query.shape) != 2 or len(context.shapes) > 1 or getattr(layer, "_use_gate", False):
        raise Unsupported("attention over several axes, with scores as output, or with a gate")
    key = value if key is None else key
    sources = ((layer.query_dense, query), (layer.key_dense, key), (layer.value_dense, value))
    heads = context.graph.created(context.path, layer.query_dense.kernel, 1)
    for dense, x in sources:
        context.read(dense.kernel, 0, x, context.along(x))
        context.graph.created(context.path, dense.kernel, 1, heads)
        if dense.bias is not None:
            context.graph.slot(context.path, dense.bias, 0, heads, "each")
    context.read(layer.output_dense.kernel, 0, Channels(heads, (len(heads),)), heads)
    labels = context.graph.created(context.path, layer.output_dense.kernel, -1)
    context.each(layer.output_dense.bias, labels)
    context.graph.size(layer, ("num_heads",), lambda count: count(heads))
    context.graph.size(layer, ("output_shape",), lambda count: count(labels))
    return context.output(labels)


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
enter(Record(macs=_group_query_macs), kl.GroupQueryAttention)


# Attention, AdditiveAttention, and the op of `keras.ops.dot_product_attention`.


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


enter(Record(macs=_attention_macs), kl.Attention)
enter(Record(macs=_additive_macs), kl.AdditiveAttention)
enter(Record(macs=_dot_product_macs), op_class("DotProductAttention"))
