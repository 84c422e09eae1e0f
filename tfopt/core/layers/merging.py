"""Layers and ops in which several tensors meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import application_layer, op_class
from tfopt.core.layers.channels import FIXED, Channels, Context, Unsupported, compact
from tfopt.core.layers.registry import Output, Record, enter

Merge = Callable[..., Channels]


def _merging(product: bool = False) -> Merge:
    """The rule of a layer that merges a list of tensors; `product`: zero in one of them makes zero."""

    def rule(context: Context, inputs: list[Channels], *_: Any, **__: Any) -> Channels:
        ranks = {len(x.shape) for x in inputs}
        if len(ranks) > 1:
            raise Unsupported("inputs of different rank are merged")
        result = inputs[0]
        for x in inputs[1:]:
            result = _met(context, result, x, product)
        return Channels(result.labels, context.shapes[0], result.zero)

    return rule


def _met(context: Context, first: Channels, second: Channels, product: bool) -> Channels:
    """Channels of two tensors of equal rank, broadcast to each other, become one.

    One that is spread over several stays, so that in a sum they are not zero.
    """
    stretched = {
        id(a)
        for a, b in ((first, second), (second, first))
        if any(a.shape[axis] == 1 and b.shape[axis] != 1 for axis in b.along())
    }
    for x in (first, second):
        if id(x) in stretched and x.labels.any():
            context.graph.freeze(x.labels, f"'{context.path}' spreads one over several")
    if len(stretched) == 2:
        return Channels(np.full([1] * len(first.shape), FIXED), context.shapes[0], zero=False)
    if stretched:
        wide = second if id(first) in stretched else first
        return Channels(wide.labels, context.shapes[0], wide.zero and product)
    context.graph.tie(first.labels, second.labels)
    shape = np.broadcast_shapes(first.labels.shape, second.labels.shape)
    zero = (first.zero or second.zero) if product else (first.zero and second.zero)
    return Channels(np.broadcast_to(first.labels, shape), context.shapes[0], zero)


def _arithmetic(product: bool = False, divides: bool = False) -> Merge:
    """The rule of an op of two operands, of which one may be a constant."""

    def rule(context: Context, first: Any, second: Any, *_: Any, **__: Any) -> Channels:
        both = [value for value in (first, second) if isinstance(value, Channels)]
        if divides and isinstance(second, Channels):
            raise Unsupported("a masked divisor would be zero")
        if len(both) == 2:
            return _merging(product)(context, both)
        (x,), constant = both, np.asarray(second if isinstance(first, Channels) else first)
        if x.along() and constant.size > 1:
            raise Unsupported("a constant has a value for each")
        return context.same(x, zero=product or divides or not np.any(constant))

    return rule


def _reads_tensors(op: Any, tensors: int) -> bool:
    """The converter knows no 16-bit constants."""
    return tensors > 1


_MERGE = Record(output=Output.RANGE, in_16_bits=True, channels=_merging())
enter(_MERGE, kl.Add, kl.Subtract, kl.Maximum, kl.Minimum)
enter(replace(_MERGE, channels=_merging(product=True)), kl.Multiply)
enter(replace(_MERGE, in_16_bits=False), kl.Average)
_OP = Record(output=Output.RANGE, in_16_bits=_reads_tensors, channels=_arithmetic())
enter(_OP, *map(op_class, ("Add", "Subtract", "Maximum", "Minimum")))
enter(replace(_OP, channels=_arithmetic(product=True)), op_class("Multiply"))
enter(
    replace(_OP, in_16_bits=False, channels=_arithmetic(divides=True)),
    *(op_class("Divide"), op_class("TrueDivide")),
)
enter(
    Record(
        output=Output.FLOAT,
        reason="it scales and adds, with no range between the two",
        channels=_merging(),
    ),
    application_layer("CustomScaleLayer"),
)


# Concatenations.


def _concatenate_channels(context: Context, inputs: list[Channels], *_: Any, **__: Any) -> Channels:
    rank = len(inputs[0].shape)
    axis = context.op.axis - 1 if context.op.axis > 0 else context.op.axis % rank
    others = np.broadcast_shapes(*(_with(x.labels.shape, axis, 1) for x in inputs))
    if any(size > 1 for size in others):
        if any(x.labels.shape[axis] > 1 for x in inputs):
            raise Unsupported("channels along several axes are joined")
        for x in inputs[1:]:  # positions are joined: each input brings the same channels
            context.graph.tie(inputs[0].labels, x.labels)
        labels = np.broadcast_to(inputs[0].labels, others)
    else:
        labels = np.concatenate(
            [np.broadcast_to(x.labels, _with(others, axis, x.shape[axis] or 1)) for x in inputs], axis
        )
    return Channels(compact(labels), context.shapes[0], all(x.zero for x in inputs))


def _with(shape: tuple, axis: int, size: int) -> tuple:
    return (*shape[:axis], size, *shape[axis + 1 :])


enter(Record(output=Output.RANGE, channels=_concatenate_channels), kl.Concatenate, op_class("Concatenate"))
