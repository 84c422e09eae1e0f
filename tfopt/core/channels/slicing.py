"""Removes channels from a model: every weight that they index gets smaller, and every layer's config with it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import keras
import numpy as np

from tfopt.core.channels.graph import ChannelGraph
from tfopt.core.keras_internals import children, op_class
from tfopt.core.layers.channels import Argument
from tfopt.core.models.copying import config_of
from tfopt.core.models.graph import Graph
from tfopt.core.models.rewrite import Rewrite, rewrite


def without_channels(channels: ChannelGraph, removed: np.ndarray) -> Graph:
    """The graph of a model's copy without some channels: plain Keras layers of smaller shapes, no weight constraints.

    Where the removed channels are zero through their group, the outputs stay as they were.

    Args:
        channels: of the model.
        removed: channel numbers out of the groups of `channels`; each weight has to keep one channel an axis.
    """

    def kept(labels: np.ndarray) -> np.ndarray:
        return ~np.isin(channels.roots(labels), removed)

    def count(labels: np.ndarray) -> int:
        return int(kept(labels).sum())

    cuts = defaultdict(list)
    for slot in channels.slots:
        cuts[id(slot.variable)].append((slot.axis, kept(slot.labels)))
    padded = {key: kept(labels) for key, labels in channels.padded.items() if not kept(labels).all()}
    full_width: set[int] = set()

    def replace(op: Any, state: Rewrite) -> Any:
        if id(op) in padded:
            full_width.update(id(weight) for weight in op.weights)
            return _at_full_width(op, state, padded[id(op)])
        if id(op) in channels.arguments:
            values = [(each, each.value(kept)) for each in channels.arguments[id(op)]]
            return [_called_with(state.copy(op), values)]
        changes = {size.key: size.value(count) for size in channels.sizes_of(op)}
        has_smaller_parts = bool(children(op)) and not isinstance(op, keras.Model) and loses(op)
        return _resized(op, state, changes) if changes or has_smaller_parts else None

    def loses(op: Any) -> bool:
        return not all(mask.all() for variable in op.variables for _, mask in cuts.get(id(variable), ()))

    def values_of(variable: keras.Variable) -> np.ndarray:
        array = keras.ops.convert_to_numpy(variable)
        for axis, mask in cuts[id(variable)]:
            places = np.argsort(~mask, kind="stable") if id(variable) in full_width else np.flatnonzero(mask)
            array = array.take(places, axis)
        factor = channels.factors.get(id(variable))
        return array if factor is None else array * np.asarray(factor(count), array.dtype)

    return rewrite(channels.graph, replace, values_of=values_of)


def _called_with(op: Any, values: list[tuple[Argument, Any]]) -> Any:
    """The op as a function that puts other values in the place of some arguments."""

    def call(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        for argument, value in values:
            if argument.position < len(given):
                given[argument.position] = value
            else:
                kwargs[argument.name] = value
        return op(*given, **kwargs)

    return call


def _resized(op: Any, state: Rewrite, changes: dict[tuple[str, ...], Any]) -> Any:
    """A copy of the layer with some entries of its config, nested ones by their path of keys, changed."""
    config = _unbuilt(config_of(op))
    for (*folders, name), value in changes.items():
        inner = config
        for folder in folders:
            inner = inner[folder]
        inner[name] = value
    return state.copy(op, **config)


def _unbuilt(config: Any) -> Any:
    """The config without the old shapes at which layers inside a layer would be built again."""
    if isinstance(config, dict):
        return {key: _unbuilt(value) for key, value in config.items() if key != "build_config"}
    return [_unbuilt(value) for value in config] if isinstance(config, list) else config


def _at_full_width(op: Any, state: Rewrite, kept: np.ndarray) -> list:
    """A normalization over channels as it was, zeros in the place of those that are gone.

    It divides by the old number of channels and so gives what it gave. The kept channels come first, the zeros last.
    """
    width, count = len(kept), int(kept.sum())

    def with_zeros(x: Any) -> Any:
        return op_class("Pad")([(0, 0)] * (len(x.shape) - 1) + [(0, width - count)])(x)

    return [with_zeros, state.copy(op), lambda x: x[..., :count]]
