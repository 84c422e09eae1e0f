"""Ops that compute: single values, and reductions of an axis to one value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tfopt.core.keras_internals import op_class
from tfopt.core.layers.channels import FIXED, Channels, Context, Unsupported, reduced, value_by_value
from tfopt.core.layers.registry import Output, Record, enter

# One value in, one value out.


def _float(reason: str) -> Record:
    return Record(output=Output.FLOAT, reason=reason, channels=value_by_value)


_COMPUTED = Record(output=Output.RANGE, channels=value_by_value)
enter(_COMPUTED, *map(op_class, ("Absolute", "Abs", "Exp", "Sqrt")))
enter(Record(output=Output.RANGE), *map(op_class, ("Rsqrt", "Clip", "Cast")))
enter(Record(channels=value_by_value), op_class("Sign"))
enter(_float("LiteRT's converter leaves it in float; write it as `0 - x`"), op_class("Negative"))
enter(_float("LiteRT's converter leaves it in float; write it as `x * x`"), op_class("Square"))
enter(_float("the logarithm of an 8-bit value near zero would be far off"), op_class("Log"))
enter(
    Record(output=Output.FLOAT, reason="LiteRT has no integer version"),
    *map(op_class, ("Var", "Std", "Normalize")),
)


def _not_equal_channels(context: Context, first: Any, second: Any, *_: Any, **__: Any) -> Channels:
    if not isinstance(first, Channels) or np.ndim(second) or isinstance(second, Channels):
        raise Unsupported("a comparison with more than one value")
    return context.same(first, zero=second == 0)


enter(Record(channels=_not_equal_channels), op_class("NotEqual"))


# Reductions.


def _reduction_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    return reduced(context, x, _reduced_axes(context, x), context.op.keepdims)


def _any_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """A channel that is False changes nothing in the others' result: so Keras finds the steps that Masking skips."""
    axes = _reduced_axes(context, x)
    if x.zero and set(x.along()) <= set(axes):
        return Channels(np.full([1] * len(context.shapes[0]), FIXED), context.shapes[0], zero=False)
    return reduced(context, x, axes, context.op.keepdims)


def _reduced_axes(context: Context, x: Channels) -> list[int]:
    axes = np.atleast_1d(context.op.axis) if context.op.axis is not None else [0]
    axes = [axis - 1 if axis >= 0 else axis + len(x.shape) for axis in axes]
    if -1 in axes:
        raise Unsupported("the batch axis is reduced")
    return axes


_REDUCTION = Record(output=Output.RANGE, channels=_reduction_channels)
enter(replace(_REDUCTION, in_16_bits=True), op_class("Mean"))
enter(_REDUCTION, op_class("Sum"))
enter(replace(_REDUCTION, output=Output.SAME), op_class("Max"), op_class("Min"))
enter(Record(channels=_any_channels), op_class("Any"))
