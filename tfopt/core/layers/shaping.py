"""Layers and ops that move values: they reshape, permute, crop, pad and repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers.channels import NONE, Channels, Context, Shape, Unsupported, all_along, in_place, shape_rule
from tfopt.core.layers.registry import Output, Record, enter

_MOVED = Record(output=Output.SAME)
_MOVED_IN_16_BITS = Record(output=Output.SAME, in_16_bits=True)
enter(_MOVED_IN_16_BITS, kl.InputLayer)


# Reshapes.


def _flatten_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    if context.op.data_format == "channels_first":  # Keras moves the channels last before it flattens
        x = _permuted(x, [0, *range(2, len(x.shape)), 1])
    return _reshaped(context, x)


def _reshape_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    result = _reshaped(context, x)
    context.graph.size(context.op, ("target_shape",), shape_rule(result, tuple(context.op.target_shape)))
    return result


def _reshape_op_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    result = _reshaped(context, x)
    context.graph.size(context.op, ("newshape",), shape_rule(result, tuple(context.op.newshape)))
    return result


def _reshaped(context: Context, x: Channels) -> Channels:
    """Axes that a reshape joins or splits keep their channels; those that it joins with axes of unknown size stay."""
    shape = context.shapes[0]
    labels = [NONE] * len(shape)
    left = len(x.shape)
    for old, new in _matched(x.shape, shape):
        sizes = [shape[axis] or 1 for axis in new]
        for axis, own in zip(new, _regrouped(context, [all_along(x, axis) for axis in old], sizes), strict=True):
            labels[axis] = own
        left = old[0]
    for axis in range(left):
        context.graph.freeze(x.labels[axis], f"'{context.path}' joins them with the batch, or an axis of unknown size")
    return Channels(tuple(labels), shape, x.zero)


def _matched(old: Shape, new: Shape) -> Iterator[tuple[range, range]]:
    """Groups of axes of two shapes that hold the same values in the same order, from the last on.

    Example:
        >>> list(_matched((None, 4, 6, 8), (None, 24, 2, 4)))
        [(range(3, 4), range(2, 4)), (range(1, 3), range(1, 2))]
    """
    old_start, new_start = len(old), len(new)
    while old_start and new_start:
        old_end, new_end = old_start, new_start
        old_start, new_start = old_start - 1, new_start - 1
        size, new_size = old[old_start], new[new_start]
        while size != new_size and size is not None and new_size is not None:
            if size < new_size and old_start:
                old_start -= 1
                size = _product(size, old[old_start])
            elif size > new_size and new_start:
                new_start -= 1
                new_size = _product(new_size, new[new_start])
            else:
                return
        if size is None or new_size is None:
            return
        yield range(old_start, old_end), range(new_start, new_end)


def _product(first: int, second: int | None) -> int | None:
    return None if second is None else first * second


def _regrouped(context: Context, labels: Sequence[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
    """The channels of axes of these sizes, which hold the values of axes with the channels `labels`.

    Of several axes that are joined the last keeps its channels. Channels that are spread over several new axes are
    tied, so that they differ along the last of them only.
    """
    wide = [axis for axis, own in enumerate(labels) if own.any()]
    if not wide:
        return [NONE] * len(sizes)
    kept = ([axis for axis in wide if context.graph.may_go(labels[axis])] or wide)[-1]
    for axis in set(wide) - {kept}:
        context.graph.freeze(labels[axis], f"'{context.path}' joins their axis with one of other channels")
    old = [len(own) for own in labels]
    own = labels[kept].reshape([-1 if axis == kept else 1 for axis in range(len(old))])
    spread = np.broadcast_to(own, old).reshape(sizes)
    last = max((axis for axis in range(len(sizes)) if _differs(spread, axis)), default=len(sizes) - 1)
    along = np.moveaxis(spread, last, -1).reshape(-1, sizes[last])
    context.graph.tie(along, along[:1])
    return [along[0] if axis == last else NONE for axis in range(len(sizes))]


def _differs(labels: np.ndarray, axis: int) -> bool:
    return not np.array_equal(np.broadcast_to(labels.take([0], axis), labels.shape), labels)


enter(replace(_MOVED_IN_16_BITS, channels=_flatten_channels), kl.Flatten)
enter(replace(_MOVED_IN_16_BITS, channels=_reshape_channels), kl.Reshape)
enter(replace(_MOVED_IN_16_BITS, channels=_reshape_op_channels), op_class("Reshape"))
enter(replace(_MOVED, channels=lambda context, x, *_, **__: _reshaped(context, x)), op_class("Ravel"))


# Axes are permuted, added or taken away.


def _permuted(x: Channels, order: Sequence[int]) -> Channels:
    return Channels(tuple(x.labels[axis] for axis in order), tuple(x.shape[axis] for axis in order), x.zero)


def _permute_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    return _permuted(x, [0, *context.op.dims])


def _transpose_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    axes = context.op.axes
    return _permuted(x, range(len(x.shape))[::-1] if axes is None else list(axes))


def _swapaxes_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    order = list(range(len(x.shape)))
    first, second = context.op.axis1, context.op.axis2
    order[first], order[second] = order[second], order[first]
    return _permuted(x, order)


def _moveaxis_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    rank = len(x.shape)
    source, destination = ([axis % rank for axis in axes] for axes in (context.op.source, context.op.destination))
    order = [axis for axis in range(rank) if axis not in source]
    for place, axis in sorted(zip(destination, source, strict=True)):
        order.insert(place, axis)
    return _permuted(x, order)


def _repeat_vector_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    return Channels((x.labels[0], NONE, x.labels[1]), context.shapes[0], x.zero)


def _expand_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    labels, rank = list(x.labels), len(context.shapes[0])
    for axis in sorted(int(axis) % rank for axis in np.atleast_1d(context.op.axis)):
        labels.insert(axis, NONE)
    return Channels(tuple(labels), context.shapes[0], x.zero)


def _squeeze_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    rank = len(x.shape)
    ones = [axis for axis in range(rank) if x.shape[axis] == 1]
    gone = ones if context.op.axis is None else [int(axis) % rank for axis in np.atleast_1d(context.op.axis)]
    if set(gone) & set(x.along()):
        raise Unsupported("an axis of one channel is taken away")
    labels = tuple(own for axis, own in enumerate(x.labels) if axis not in gone)
    return Channels(labels, context.shapes[0], x.zero)


enter(replace(_MOVED_IN_16_BITS, channels=_permute_channels), kl.Permute)
enter(replace(_MOVED_IN_16_BITS, channels=_transpose_channels), op_class("Transpose"))
enter(replace(_MOVED, channels=_swapaxes_channels), op_class("Swapaxes"))
enter(replace(_MOVED, channels=_moveaxis_channels), op_class("Moveaxis"))
enter(replace(_MOVED, channels=_repeat_vector_channels), kl.RepeatVector)
enter(replace(_MOVED_IN_16_BITS, channels=_expand_channels), op_class("ExpandDims"))
enter(replace(_MOVED_IN_16_BITS, channels=_squeeze_channels), op_class("Squeeze"))


# Positions are cropped or padded.


def _pad_channels(context: Context, x: Channels, constant_values: Any = None, *_: Any, **__: Any) -> Channels:
    if any(x.shape[axis] != context.shapes[0][axis] for axis in x.along()):
        raise Unsupported("channels are padded")
    return context.same(x, zero=constant_values is None)


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


# Indices are repeated, reversed or turned.


def _along_each(context: Context, x: Channels, labels: dict[int, np.ndarray]) -> Channels:
    """The output with other channels along some axes."""
    axes = tuple(labels.get(axis, own) for axis, own in enumerate(x.labels))
    return Channels(axes, context.shapes[0], x.zero)


def _tile_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    rank = len(context.shapes[0])
    repeats = np.atleast_1d(context.op.repeats).tolist()
    repeats = [1] * (rank - len(repeats)) + repeats
    x = Channels((*[NONE] * (rank - len(x.labels)), *x.labels), context.shapes[0], x.zero)
    return _along_each(context, x, {axis: np.tile(x.labels[axis], repeats[axis]) for axis in x.along()})


def _repeat_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    if context.op.axis is None:
        raise Unsupported("all axes are joined and repeated")
    axis = context.op.axis % len(x.shape)
    if axis not in x.along():
        return context.same(x)
    if np.size(context.op.repeats) > 1:
        raise Unsupported("each channel is repeated by a number of its own")
    return _along_each(context, x, {axis: np.repeat(x.labels[axis], int(np.max(context.op.repeats)))})


def _flip_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    axes = range(len(x.shape)) if context.op.axis is None else np.atleast_1d(context.op.axis) % len(x.shape)
    return _along_each(context, x, {int(axis): x.labels[axis][::-1] for axis in axes})


def _roll_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """What is rolled over the end is as much as stays of the last channels."""
    op = context.op
    if op.axis is None:
        raise Unsupported("all axes are joined and rolled")
    if not {int(axis) % len(x.shape) for axis in np.atleast_1d(op.axis)} & set(x.along()):
        return context.same(x)
    if np.size(op.shift) > 1 or np.size(op.axis) > 1:
        raise Unsupported("channels are rolled along several axes")
    axis = int(np.max(op.axis)) % len(x.shape)
    labels = x.labels[axis]
    over = int(np.max(op.shift)) % len(labels)
    context.graph.size(op, ("shift",), lambda count: count(labels[len(labels) - over :]))
    return _along_each(context, x, {axis: np.roll(labels, over)})


def _broadcast_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    missing = len(context.shapes[0]) - len(x.shape)
    x = Channels((*[NONE] * missing, *x.labels), (*[1] * missing, *x.shape), x.zero)
    spread = [axis for axis in x.along() if x.shape[axis] == 1 != context.shapes[0][axis]]
    for axis in spread:
        context.graph.freeze(x.labels[axis], f"'{context.path}' spreads one over several")
    result = _along_each(context, x, dict.fromkeys(spread, NONE))
    context.graph.size(context.op, ("shape",), shape_rule(result, tuple(context.op.shape)))
    return result


enter(replace(_MOVED, channels=_tile_channels), op_class("Tile"))
enter(replace(_MOVED, channels=_repeat_channels), op_class("Repeat"))
enter(replace(_MOVED, channels=_flip_channels), op_class("Flip"))
enter(Record(channels=_roll_channels), op_class("Roll"))
enter(replace(_MOVED, channels=_broadcast_channels), op_class("BroadcastTo"))
