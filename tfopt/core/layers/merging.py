"""Layers and ops in which several tensors meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import application_layer, op_class
from tfopt.core.layers.channels import FIXED, NONE, Channels, Context, Unsupported, all_along
from tfopt.core.layers.registry import Output, Record, enter

Merge = Callable[..., Channels]


def _merging(product: bool = False) -> Merge:
    """The rule of a layer that merges a list of tensors; `product`: zero in one of them makes zero."""

    def rule(context: Context, inputs: list[Channels], *_: Any, **__: Any) -> Channels:
        result = inputs[0]
        for x in inputs[1:]:
            result = _met(context, result, x, product)
        return Channels(result.labels, context.shapes[0], result.zero)

    return rule


def _met(context: Context, first: Channels, second: Channels, product: bool) -> Channels:
    """Channels of two tensors, broadcast to each other as numpy does it, become one.

    One that is spread over several stays, so that in a sum they are not zero.
    """
    rank = max(len(first.shape), len(second.shape))
    first, second = _of_rank(first, rank), _of_rank(second, rank)
    both = (first.zero or second.zero) if product else (first.zero and second.zero)
    labels, sizes, zero = [], [], True
    for own, other, size, other_size in zip(first.labels, second.labels, first.shape, second.shape, strict=True):
        if (size == 1) == (other_size == 1):
            context.graph.tie(own, other)
            wide, size, zero_here = max(own, other, key=len), size, both
        else:
            wide, narrow, x = (other, own, second) if size == 1 else (own, other, first)
            context.graph.freeze(narrow[narrow != FIXED], f"'{context.path}' spreads one over several")
            size, zero_here = other_size if size == 1 else size, product and x.zero
        labels.append(wide)
        sizes.append(size)
        zero = zero and (zero_here or not wide.any())
    return Channels(tuple(labels), tuple(sizes), zero)


def _of_rank(x: Channels, rank: int) -> Channels:
    """The tensor with axes of size 1 in front."""
    missing = rank - len(x.shape)
    return Channels((*[NONE] * missing, *x.labels), (*[1] * missing, *x.shape), x.zero)


def _arithmetic(product: bool = False, divides: bool = False) -> Merge:
    """The rule of an op of two operands, of which one may be a constant."""

    def rule(context: Context, first: Any, second: Any, *_: Any, **__: Any) -> Channels:
        both = [value for value in (first, second) if isinstance(value, Channels)]
        if divides and isinstance(second, Channels):
            raise Unsupported("a masked divisor would be zero")
        if len(both) == 2:
            return _merging(product)(context, both)
        place = int(isinstance(first, Channels))
        return _with_constant(context, both[0], (first, second)[place], place, product or divides)

    return rule


def _with_constant(context: Context, x: Channels, constant: Any, place: int, product: bool) -> Channels:
    """A constant with a value for each channel loses those of the channels that go."""
    if isinstance(constant, keras.Variable) and x.along() and np.size(constant) > 1:
        raise Unsupported("a weight of another layer has a value for each")
    values = np.asarray(constant)
    x = _of_rank(x, max(values.ndim, len(x.shape)))
    labels = list(x.labels)
    for axis in x.along():
        place_there = axis - len(x.shape) + values.ndim
        if x.shape[axis] == 1 != context.shapes[0][axis]:
            context.graph.freeze(x.labels[axis], f"'{context.path}' spreads one over several")
            labels[axis] = NONE
        elif place_there >= 0 and values.shape[place_there] > 1:
            context.graph.argument(context.op, place, ("x1", "x2")[place], _cut(values, x.labels, constant))
    return Channels(tuple(labels), context.shapes[0], x.zero and (product or not np.any(values)))


def _cut(values: np.ndarray, labels: tuple[np.ndarray, ...], constant: Any) -> Callable[[Callable], Any]:
    """The values of a constant for the channels that stay."""

    def rest(kept: Callable[[np.ndarray], np.ndarray]) -> Any:
        array = values
        for axis, own in zip(range(-array.ndim, 0), labels[-array.ndim :], strict=True):
            if array.shape[axis] == len(own) > 1:
                array = array.compress(kept(own), axis)
        return array if isinstance(constant, np.ndarray) else keras.ops.convert_to_tensor(array)

    return rest


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
    axis = context.op.axis % len(inputs[0].shape)
    labels = list(_tied(context, [_without(x.labels, axis) for x in inputs]))
    joined = [all_along(x, axis) for x in inputs]
    labels.insert(axis, np.concatenate(joined) if any(own.any() for own in joined) else NONE)
    return Channels(tuple(labels), context.shapes[0], all(x.zero for x in inputs))


def _stack_channels(context: Context, inputs: list[Channels], *_: Any, **__: Any) -> Channels:
    labels = list(_tied(context, [x.labels for x in inputs]))
    labels.insert(context.op.axis % len(context.shapes[0]), NONE)
    return Channels(tuple(labels), context.shapes[0], all(x.zero for x in inputs))


def _tied(context: Context, labels: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """The labels of tensors that are laid side by side: each brings the same channels along the other axes."""
    for own in labels[1:]:
        for first, other in zip(labels[0], own, strict=True):
            context.graph.tie(first, other)
    return tuple(max(axis, key=len) for axis in zip(*labels, strict=True))


def _without(axes: tuple, axis: int) -> tuple:
    return (*axes[:axis], *axes[axis + 1 :])


enter(Record(output=Output.RANGE, channels=_concatenate_channels), kl.Concatenate, op_class("Concatenate"))
enter(
    Record(
        output=Output.FLOAT,
        reason="LiteRT's converter gives all parts the range of the first; write it with `expand_dims` and "
        "`concatenate`",
        channels=_stack_channels,
    ),
    op_class("Stack"),
)
