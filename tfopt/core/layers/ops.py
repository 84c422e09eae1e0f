"""Ops that compute: single values, and reductions of an axis to one value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tfopt.core.keras_internals import op_class
from tfopt.core.layers.channels import NONE, Channels, Context, Unsupported, normalized, reduced, value_by_value
from tfopt.core.layers.registry import Output, Record, enter

# One value in, one value out.


def _float(reason: str) -> Record:
    return Record(output=Output.FLOAT, reason=reason, channels=value_by_value)


_COMPUTED = Record(output=Output.RANGE, channels=value_by_value)
enter(_COMPUTED, *map(op_class, ("Absolute", "Abs", "Exp", "Sqrt")))
enter(_COMPUTED, op_class("ReLU"))  # what `keras.activations.relu` leaves in a graph
enter(_COMPUTED, *map(op_class, ("Clip", "Cast")))
enter(Record(output=Output.RANGE), op_class("Rsqrt"))
enter(Record(channels=value_by_value), op_class("Sign"))
enter(_float("LiteRT's converter leaves it in float; write it as `0 - x`"), op_class("Negative"))
enter(_float("LiteRT's converter leaves it in float; write it as `x * x`"), op_class("Square"))
enter(_float("the logarithm of an 8-bit value near zero would be far off"), op_class("Log"))


def _not_equal_channels(context: Context, first: Any, second: Any, *_: Any, **__: Any) -> Channels:
    if not isinstance(first, Channels) or np.ndim(second) or isinstance(second, Channels):
        raise Unsupported("a comparison with more than one value")
    return context.same(first, zero=second == 0)


enter(Record(channels=_not_equal_channels), op_class("NotEqual"))


# Reductions.


def _reduction_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    return reduced(context, x, _reduced_axes(context, x), context.op.keepdims)


def _sum_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """Masked channels that are zero add nothing to a sum."""
    axes = _reduced_axes(context, x)
    if x.zero:
        x = replace(x, labels=tuple(NONE if axis in axes else own for axis, own in enumerate(x.labels)))
    return reduced(context, x, axes, context.op.keepdims)


def _any_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """A channel that is False changes nothing in the others' result: so Keras finds the steps that Masking skips."""
    axes = _reduced_axes(context, x)
    if x.zero and set(x.along()) <= set(axes):
        return context.fixed()
    return reduced(context, x, axes, context.op.keepdims)


def _reduced_axes(context: Context, x: Channels) -> list[int]:
    axes = range(len(x.shape)) if context.op.axis is None else np.atleast_1d(context.op.axis)
    return [int(axis) % len(x.shape) for axis in axes]


_REDUCTION = Record(output=Output.RANGE, channels=_reduction_channels)
enter(replace(_REDUCTION, in_16_bits=True), op_class("Mean"))
enter(replace(_REDUCTION, channels=_sum_channels), op_class("Sum"))
enter(replace(_REDUCTION, output=Output.SAME), op_class("Max"), op_class("Min"))
enter(Record(channels=_any_channels), op_class("Any"))

_NO_INTEGERS = Record(output=Output.FLOAT, reason="LiteRT has no integer version", channels=_reduction_channels)
enter(_NO_INTEGERS, op_class("Var"), op_class("Std"))


def _normalize_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    return normalized(context, x, context.op.axis)


enter(replace(_NO_INTEGERS, channels=_normalize_channels), op_class("Normalize"))
