"""Normalizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import application_layer
from tfopt.core.layers.channels import Channels, Context, Unsupported, all_along, normalized
from tfopt.core.layers.registry import Output, Record, enter


def _batch_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    layer = context.op
    labels = context.along(x, layer.axis)
    context.each(layer.gamma, labels)
    context.each(layer.beta, labels)
    for statistic in (layer.moving_mean, layer.moving_variance):
        context.graph.slot(context.path, statistic, 0, labels, "statistic")
    return context.output(labels, layer.axis, context.graph.masks and layer.gamma is not None)


enter(
    Record(output=Output.RANGE, in_16_bits=True, per_channel=True, channels=_batch_channels),
    kl.BatchNormalization,
)


def _layer_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """Mean and variance are those of the old width: the layer stays as wide, with zeros where channels were."""
    layer = context.op
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    last = len(x.shape) - 1
    along = {axis % len(x.shape) for axis in axes}
    if not along & set(x.along()):
        return context.same(x, zero=False)
    if along != {last}:
        raise Unsupported("normalization over other axes than the last")
    _check_counted(context, x)
    labels = all_along(x, last)
    scale = getattr(layer, "gamma", getattr(layer, "scale", None))
    weights = [weight for weight in (scale, getattr(layer, "beta", None)) if isinstance(weight, keras.Variable)]
    for weight in weights:
        context.each(weight, labels)
    context.graph.padded[id(layer)] = labels
    return context.same(x, zero=isinstance(scale, keras.Variable) and x.along() == [last])


def _check_counted(context: Context, x: Channels) -> None:
    """Raises where what takes the place of removed channels would not be what a normalization counts now."""
    if not x.zero:
        raise Unsupported("the normalization counts them, and they are not zero when masked")
    if not context.graph.masks:
        raise Unsupported("the normalization makes something else than zero of zeros")


enter(Record(output=Output.RANGE, channels=_layer_channels), kl.LayerNormalization, kl.RMSNormalization)


def _group_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """The channels of a group go together: the others' mean and variance stay as they are."""
    layer, axis = context.op, context.op.axis % len(x.shape)
    if not x.along():
        return context.same(x, zero=False)
    labels = context.along(x, axis)
    groups = len(labels) if layer.groups == -1 else layer.groups
    if groups == 1:
        _check_counted(context, x)
        if axis != len(x.shape) - 1:
            raise Unsupported("normalization of all channels over another axis than the last")
        context.graph.padded[id(layer)] = labels
    elif groups < len(labels):
        rows = labels.reshape(groups, -1)
        context.graph.tie(rows, rows[:, :1])
    for weight in (layer.gamma, layer.beta):
        context.each(weight, labels)
    if groups > 1:
        size = len(labels) // groups
        context.graph.size(layer, ("groups",), lambda count: count(labels) // size)
    return context.output(labels, axis, context.graph.masks and layer.gamma is not None)


enter(Record(output=Output.RANGE, channels=_group_channels), kl.GroupNormalization)


def _unit_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    return normalized(context, x, context.op.axis)


enter(Record(channels=_unit_channels), kl.UnitNormalization)


def _fixed_statistics_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """A mean and a variance for each index along the axes that the layer keeps, as weights or in its config."""
    layer = context.op
    kept = sorted(axis % len(x.shape) for axis in layer.axis)
    for axis in set(x.along()) & set(kept):
        labels = x.labels[axis]
        place = kept.index(axis) - len(kept)
        if layer.input_mean is None:
            for statistic in (layer.adapt_mean, layer.adapt_variance):
                context.graph.slot(context.path, statistic, place, labels, "statistic")
        for key, values in (("mean", layer.input_mean), ("variance", layer.input_variance)):
            if np.ndim(values) >= -place and np.shape(values)[place] > 1:
                context.graph.size(layer, (key,), _values_of_kept(np.asarray(values), place, labels))
    return context.same(x, zero=False)


def _values_of_kept(values: np.ndarray, axis: int, labels: np.ndarray) -> Callable[[Callable[[np.ndarray], int]], list]:
    """A config entry with one value a channel along `axis`."""
    return lambda count: values.take([i for i in range(len(labels)) if count(labels[i : i + 1])], axis).tolist()


enter(Record(output=Output.RANGE, in_16_bits=True, channels=_fixed_statistics_channels), kl.Normalization)


def _layer_scale_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    labels = all_along(x, -1)
    context.each(context.op.gamma, labels)
    context.graph.size(context.op, ("projection_dim",), lambda count: count(labels))
    return context.same(x)


enter(Record(output=Output.RANGE, channels=_layer_scale_channels), application_layer("LayerScale"))
