"""Layers and ops that move values: they reshape, permute, index, crop, pad and repeat."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers.channels import Channels, Context, Shape, Unsupported, compact, in_place, shape_rule
from tfopt.core.layers.registry import Output, Record, enter

_MOVED = Record(output=Output.SAME)
_MOVED_IN_16_BITS = Record(output=Output.SAME, in_16_bits=True)
enter(_MOVED_IN_16_BITS, kl.InputLayer)


# Reshapes.


def _flatten_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    if context.op.data_format == "channels_first":  # Keras moves the channels last before it flattens
        x = Channels(np.moveaxis(x.labels, 0, -1), (*x.shape[1:], x.shape[0]), x.zero)
    return _reshaped(context, x, context.shapes[0])


def _reshape_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    result = _reshaped(context, x, context.shapes[0])
    wanted = tuple(context.op.target_shape)
    context.graph.size(context.op, ("target_shape",), lambda count: _still_open(wanted, shape_rule(result)(count)))
    return result


def _reshape_op_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
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


enter(replace(_MOVED_IN_16_BITS, channels=_flatten_channels), kl.Flatten)
enter(replace(_MOVED_IN_16_BITS, channels=_reshape_channels), kl.Reshape)
enter(replace(_MOVED_IN_16_BITS, channels=_reshape_op_channels), op_class("Reshape"))


# Axes are permuted, added or taken away.


def _permute_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    return Channels(x.labels.transpose([axis - 1 for axis in context.op.dims]), context.shapes[0], x.zero)


def _transpose_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    axes = context.op.axes
    if not axes or axes[0] != 0:
        raise Unsupported("the batch axis is moved")
    return Channels(x.labels.transpose([axis - 1 for axis in axes[1:]]), context.shapes[0], x.zero)


def _repeat_vector_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    return Channels(x.labels[None], context.shapes[0], x.zero)


def _expand_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    axis = context.op.axis
    return Channels(np.expand_dims(x.labels, axis - 1 if axis > 0 else axis), context.shapes[0], x.zero)


def _squeeze_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    shape = [label for label, size in zip(x.labels.shape, x.shape, strict=True) if size != 1]
    if context.op.axis is not None or len(shape) != len(context.shapes[0]):
        axes = np.atleast_1d(context.op.axis)
        return Channels(x.labels.squeeze(tuple(a - 1 if a > 0 else a for a in axes)), context.shapes[0], x.zero)
    return Channels(x.labels.reshape(shape), context.shapes[0], x.zero)


enter(replace(_MOVED_IN_16_BITS, channels=_permute_channels), kl.Permute)
enter(replace(_MOVED_IN_16_BITS, channels=_transpose_channels), op_class("Transpose"))
enter(replace(_MOVED, channels=_repeat_vector_channels), kl.RepeatVector)
enter(replace(_MOVED_IN_16_BITS, channels=_expand_channels), op_class("ExpandDims"))
enter(replace(_MOVED_IN_16_BITS, channels=_squeeze_channels), op_class("Squeeze"))


# Positions are cropped, padded, repeated or picked.


def _pad_channels(context: Context, x: Channels, constant_values: Any = None, *_: Any, **__: Any) -> Channels:
    if any(size != new for axis in x.along() for size, new in [(x.shape[axis], context.shapes[0][axis])]):
        raise Unsupported("channels are padded")
    return context.same(x, zero=constant_values is None)


def _get_item_channels(context: Context, x: Channels, key: Any, *_: Any, **__: Any) -> Channels:
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


_RESIZED = replace(_MOVED, channels=in_place)
enter(
    replace(_RESIZED, in_16_bits=True),
    *(kl.Cropping1D, kl.Cropping2D, kl.ZeroPadding1D, kl.ZeroPadding2D),
)
enter(
    _RESIZED,
    *(kl.Cropping3D, kl.ZeroPadding3D, kl.UpSampling1D, kl.UpSampling2D, kl.UpSampling3D, kl.Resizing),
)
enter(_MOVED, kl.CenterCrop)
enter(replace(_MOVED_IN_16_BITS, channels=_pad_channels), op_class("Pad"))
enter(replace(_MOVED_IN_16_BITS, channels=_get_item_channels), op_class("GetItem"))
enter(
    _MOVED,
    *map(op_class, ("Split", "Tile", "Repeat", "Swapaxes", "Moveaxis", "Flip", "Take", "Ravel", "BroadcastTo")),
)
enter(
    Record(
        output=Output.FLOAT,
        reason="LiteRT's converter gives all parts the range of the first; write it with `expand_dims` and "
        "`concatenate`",
    ),
    op_class("Stack"),
)
