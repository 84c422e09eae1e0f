"""How layers and ops that move values (reshape, permute, pool to one value, index) pass channels on."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers.channels import (
    FIXED,
    Channels,
    Context,
    Shape,
    Unsupported,
    compact,
    register_channels,
    shape_rule,
)


@register_channels(kl.Flatten)
def _flatten(context: Context, x: Channels, *_, **__):
    if context.op.data_format == "channels_first":  # Keras moves the channels last before it flattens
        x = Channels(np.moveaxis(x.labels, 0, -1), (*x.shape[1:], x.shape[0]), x.zero)
    return _reshaped(context, x, context.shapes[0])


@register_channels(kl.Reshape)
def _reshape(context: Context, x: Channels, *_, **__):
    result = _reshaped(context, x, context.shapes[0])
    wanted = tuple(context.op.target_shape)
    context.graph.size(context.op, ("target_shape",), lambda count: _still_open(wanted, shape_rule(result)(count)))
    return result


@register_channels(op_class("Reshape"))
def _reshape_op(context: Context, x: Channels, *_, **__):
    result = _reshaped(context, x, context.shapes[0])
    wanted = tuple(context.op.newshape)
    if not wanted or wanted[0] not in (-1, None):
        raise Unsupported("the batch axis is reshaped")
    sizes = shape_rule(result)
    context.graph.size(context.op, ("newshape",), lambda count: (wanted[0], *_still_open(wanted[1:], sizes(count))))
    return result


def _still_open(wanted: tuple, sizes: tuple) -> tuple:
    """Axes left to be inferred stay so."""
    return tuple(-1 if old in (-1, None) else new for old, new in zip(wanted, sizes, strict=True))


def _reshaped(context: Context, x: Channels, shape: Shape) -> Channels:
    """Channels that a reshape spreads over several axes are tied, so that they differ along the last of them only."""
    old, new = _known(x.shape), _known(shape)
    if prod(old) != prod(new) or _before_none(x.shape) != _before_none(shape):
        raise Unsupported("a reshape across an axis of unknown size")
    labels = compact(np.broadcast_to(x.labels, old).reshape(new))
    wide = [axis for axis, size in enumerate(labels.shape) if size > 1]
    if len(wide) > 1:
        first = labels[tuple(slice(1) if axis in wide[:-1] else slice(None) for axis in range(labels.ndim))]
        context.graph.tie(labels, first)
        labels = first
    return Channels(labels, shape, x.zero)


def _known(shape: Shape) -> tuple[int, ...]:
    return tuple(size or 1 for size in shape)


def _before_none(shape: Shape) -> list[int]:
    """How many values lie before each axis of unknown size."""
    return [prod(_known(shape[:axis])) for axis, size in enumerate(shape) if size is None]


@register_channels(kl.Permute)
def _permute(context: Context, x: Channels, *_, **__):
    return Channels(x.labels.transpose([axis - 1 for axis in context.op.dims]), context.shapes[0], x.zero)


@register_channels(op_class("Transpose"))
def _transpose(context: Context, x: Channels, *_, **__):
    axes = context.op.axes
    if not axes or axes[0] != 0:
        raise Unsupported("the batch axis is moved")
    return Channels(x.labels.transpose([axis - 1 for axis in axes[1:]]), context.shapes[0], x.zero)


@register_channels(kl.RepeatVector)
def _repeat(context: Context, x: Channels, *_, **__):
    return Channels(x.labels[None], context.shapes[0], x.zero)


@register_channels(
    kl.GlobalAveragePooling1D,
    kl.GlobalAveragePooling2D,
    kl.GlobalAveragePooling3D,
    kl.GlobalMaxPooling1D,
    kl.GlobalMaxPooling2D,
    kl.GlobalMaxPooling3D,
)
def _global_pooling(context: Context, x: Channels, *_, **__):
    axis = 0 if context.op.data_format == "channels_first" else len(x.shape) - 1
    return _reduced(context, x, [other for other in range(len(x.shape)) if other != axis], context.op.keepdims)


@register_channels(*map(op_class, ("Mean", "Sum", "Max", "Min")))
def _reduction(context: Context, x: Channels, *_, **__):
    return _reduced(context, x, _reduced_axes(context, x), context.op.keepdims)


@register_channels(op_class("Any"))
def _any(context: Context, x: Channels, *_, **__):
    """A channel that is False changes nothing in the others' result: so Keras finds the steps that Masking skips."""
    axes = _reduced_axes(context, x)
    if x.zero and set(x.along()) <= set(axes):
        return Channels(np.full([1] * len(context.shapes[0]), FIXED), context.shapes[0], zero=False)
    return _reduced(context, x, axes, context.op.keepdims)


def _reduced_axes(context: Context, x: Channels) -> list[int]:
    axes = np.atleast_1d(context.op.axis) if context.op.axis is not None else [0]
    axes = [axis - 1 if axis >= 0 else axis + len(x.shape) for axis in axes]
    if -1 in axes:
        raise Unsupported("the batch axis is reduced")
    return axes


def _reduced(context: Context, x: Channels, axes: list[int], keepdims: bool) -> Channels:
    if set(axes) & set(x.along()):
        raise Unsupported("channels are reduced to one value")
    labels = x.labels if keepdims else x.labels.squeeze(tuple(axes))
    return Channels(labels, context.shapes[0], x.zero)


@register_channels(op_class("ExpandDims"))
def _expand_dims(context: Context, x: Channels, *_, **__):
    axis = context.op.axis
    return Channels(np.expand_dims(x.labels, axis - 1 if axis > 0 else axis), context.shapes[0], x.zero)


@register_channels(op_class("Squeeze"))
def _squeeze(context: Context, x: Channels, *_, **__):
    shape = [label for label, size in zip(x.labels.shape, x.shape, strict=True) if size != 1]
    if context.op.axis is not None or len(shape) != len(context.shapes[0]):
        axes = np.atleast_1d(context.op.axis)
        return Channels(x.labels.squeeze(tuple(a - 1 if a > 0 else a for a in axes)), context.shapes[0], x.zero)
    return Channels(x.labels.reshape(shape), context.shapes[0], x.zero)


@register_channels(op_class("Pad"))
def _pad(context: Context, x: Channels, constant_values: Any = None, *_, **__):
    if any(size != new for axis in x.along() for size, new in [(x.shape[axis], context.shapes[0][axis])]):
        raise Unsupported("channels are padded")
    return context.same(x, zero=constant_values is None)


@register_channels(op_class("GetItem"))
def _get_item(context: Context, x: Channels, key: Any, *_, **__):
    """Positions may be picked; an index into channels would be another after some are gone."""
    keys = list(key) if isinstance(key, (list, tuple)) else [key]
    if Ellipsis in keys:
        place = keys.index(Ellipsis)
        keys[place : place + 1] = [slice(None)] * (len(x.shape) + 2 - len(keys))
    keys += [slice(None)] * (len(x.shape) + 1 - len(keys))
    if len(keys) != len(x.shape) + 1 or not all(isinstance(k, (int, slice)) for k in keys) or keys[0] != slice(None):
        raise Unsupported("indexing with arrays or new axes")
    if any(keys[axis + 1] != slice(None) for axis in x.along()):
        raise Unsupported("channels are picked by index")
    labels = x.labels[tuple(slice(None) if isinstance(k, slice) else 0 for k in keys[1:])]
    return Channels(labels, context.shapes[0], x.zero)
