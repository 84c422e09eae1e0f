"""Layers and ops that pick indices: slices, splits, and what is taken by constant indices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from tfopt.core.keras_internals import op_class
from tfopt.core.layers.channels import NONE, Channels, Context, Unsupported, all_along
from tfopt.core.layers.registry import Output, Record, enter

Kept = Callable[[np.ndarray], np.ndarray]  # labels -> True for the channels that stay
_MOVED = Record(output=Output.SAME)


# x[...].


def _get_item_channels(context: Context, x: Channels, key: Any, *_: Any, **__: Any) -> Channels:
    """Slices of channels follow from how many stay before their ends."""
    keys = _written_out(key, len(x.shape))
    labels, axis = [], 0
    for each in keys:
        if each is None:
            labels.append(NONE)
            continue
        picked = _picked(context, x, each, axis)
        labels.extend([] if isinstance(each, int) else [picked])
        axis += 1
    if any(_cuts(each) for each in _of_axes(keys, x)):
        context.graph.argument(context.op, 1, "key", lambda kept: tuple(_new_keys(keys, x, kept)))
    return Channels(tuple(labels), context.shapes[0], x.zero)


def _written_out(key: Any, rank: int) -> list:
    """One entry an axis, None for a new one."""
    keys = list(key) if isinstance(key, (list, tuple)) else [key]
    if not all(each is None or each is Ellipsis or isinstance(each, (int, np.integer, slice)) for each in keys):
        raise Unsupported("indexing with arrays")
    ends = [end for each in keys if isinstance(each, slice) for end in (each.start, each.stop, each.step)]
    if not all(end is None or isinstance(end, (int, np.integer)) for end in ends):
        raise Unsupported("slices whose ends are computed")
    keys = [int(each) if isinstance(each, np.integer) else each for each in keys]
    missing = rank - sum(each is not None and each is not Ellipsis for each in keys)
    place = keys.index(Ellipsis) if Ellipsis in keys else len(keys)
    keys[place : place + 1] = [slice(None)] * missing
    return keys


def _picked(context: Context, x: Channels, key: Any, axis: int) -> np.ndarray:
    """The channels that a key picks out of an axis."""
    labels = x.labels[axis]
    if not labels.any() or key == slice(None):
        return labels
    if isinstance(key, int):
        context.graph.freeze(labels[[key]], f"'{context.path}' picks one by its index")
        return NONE
    if abs(key.step or 1) > 1:
        _tie_strides(context, labels, key)
    picked = labels[key]
    context.graph.keep_one(picked)
    return picked


def _tie_strides(context: Context, labels: np.ndarray, key: slice) -> None:
    """Where every n-th channel is picked, n in a row go together."""
    step = key.step
    whole = 0 <= (key.start or 0) < step and len(labels[key]) * step == len(labels)
    if not whole:
        raise Unsupported("channels are picked in steps that do not reach from the first to the last")
    rows = labels.reshape(-1, step)
    context.graph.tie(rows, rows[:, :1])


def _of_axes(keys: list, x: Channels) -> list:
    """The keys of the axes that have channels."""
    return [key for key, labels in zip([key for key in keys if key is not None], x.labels, strict=True) if labels.any()]


def _cuts(key: Any) -> bool:
    """True for a key whose numbers follow from the channels that stay; those of a stride hold for any width."""
    return isinstance(key, int) or (key != slice(None) and abs(key.step or 1) == 1)


def _new_keys(keys: list, x: Channels, kept: Kept) -> list:
    """The keys for the tensor without the channels that go."""
    new: list = []
    axis = 0
    for key in keys:
        if key is None:
            new.append(None)
            continue
        labels = all_along(x, axis)
        new.append(_new_key(key, kept(labels)) if labels.any() and _cuts(key) else key)
        axis += 1
    return new


def _new_key(key: Any, stays: np.ndarray) -> Any:
    if isinstance(key, int):
        return int(stays[: key % len(stays)].sum())
    start, stop, step = key.indices(len(stays))
    if step > 0:
        return slice(int(stays[:start].sum()), int(stays[: max(start, stop)].sum()), key.step)
    first = int(stays[: start + 1].sum()) - 1
    last = int(stays[: stop + 1].sum()) - 1
    return slice(first, None if last < 0 else last, key.step)


enter(replace(_MOVED, in_16_bits=True, channels=_get_item_channels), op_class("GetItem"))


# Split.


def _split_channels(context: Context, x: Channels, *_: Any, **__: Any) -> list[Channels]:
    """Parts may lose different numbers of channels: the op then splits at indices."""
    op = context.op
    axis = op.axis % len(x.shape)
    ends = _ends(op.indices_or_sections, x.shape[axis])
    parts = [x.labels[axis]] * len(context.shapes)
    if axis in x.along():
        parts = np.split(x.labels[axis], ends)
        for part in parts:
            context.graph.keep_one(part)
        context.graph.size(op, ("indices_or_sections",), lambda count: _sections(op, [count(part) for part in parts]))
    return [
        Channels((*x.labels[:axis], part, *x.labels[axis + 1 :]), shape, x.zero)
        for part, shape in zip(parts, context.shapes, strict=True)
    ]


def _ends(wanted: Any, size: int | None) -> list[int]:
    """Where the parts but the last end."""
    if not isinstance(wanted, int):
        return [int(end) for end in wanted]
    return [sum(map(len, np.array_split(range(size or 0), wanted)[: i + 1])) for i in range(wanted - 1)]


def _sections(op: Any, sizes: list[int]) -> int | list[int]:
    """Into so many equal parts as before where they stay equal, otherwise the index of each end but the last."""
    if isinstance(op.indices_or_sections, int) and len(set(sizes)) == 1:
        return op.indices_or_sections
    return np.cumsum(sizes)[:-1].tolist()


def _unstack_channels(context: Context, x: Channels, *_: Any, **__: Any) -> list[Channels]:
    axis = context.op.axis % len(x.shape)
    if axis in x.along():
        raise Unsupported("each is a tensor of its own")
    labels = (*x.labels[:axis], *x.labels[axis + 1 :])
    return [Channels(labels, shape, x.zero) for shape in context.shapes]


enter(replace(_MOVED, channels=_split_channels), op_class("Split"))
enter(Record(channels=_unstack_channels), op_class("Unstack"))


# Take.


def _take_channels(context: Context, x: Any, indices: Any, *_: Any, **__: Any) -> Channels:
    if not isinstance(x, Channels) or isinstance(indices, (Channels, keras.Variable)):
        raise Unsupported("indices that are computed")
    places = np.asarray(indices)
    if context.op.axis is None:
        raise Unsupported("all axes are joined before indices are taken")
    axis = context.op.axis % len(x.shape)
    labels = [NONE] * places.ndim
    if axis in x.along():
        if places.ndim > 1:
            raise Unsupported("channels are taken into several axes")
        _take_of(context, x.labels[axis], places)
        labels = [x.labels[axis][places]] * places.ndim
    return Channels((*x.labels[:axis], *labels, *x.labels[axis + 1 :]), context.shapes[0], x.zero)


def _take_of(context: Context, labels: np.ndarray, places: np.ndarray) -> None:
    """The indices of channels that stay, in the tensor without those that go."""
    picked = labels[places]
    if not places.ndim:
        context.graph.freeze(labels[[int(places)]], f"'{context.path}' picks one by its index")
    else:
        context.graph.keep_one(picked)

    def rest(kept: Kept) -> list[int] | int:
        new = np.cumsum(kept(labels)) - 1
        return new[places[kept(picked)] if places.ndim else places].tolist()

    context.graph.argument(context.op, 1, "indices", rest)


enter(replace(_MOVED, channels=_take_channels), op_class("Take"))


# Two halves, one times the sigmoid of the other.


def _glu_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    axis = context.op.axis % len(x.shape)
    labels = x.labels[axis]
    if labels.any():
        first, labels = np.split(labels, 2)
        context.graph.tie(first, labels)
    return context.replaced(x, labels, axis, x.zero)


enter(Record(channels=_glu_channels), op_class("Glu"))
