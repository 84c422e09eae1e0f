"""Normalizations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import application_layer
from tfopt.core.layers.channels import Channels, Context, Unsupported
from tfopt.core.layers.registry import Output, Record, enter


def _batch_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    layer = context.op
    labels = context.along(x, layer.axis - 1 if layer.axis > 0 else layer.axis)
    context.each(layer.gamma, labels)
    context.each(layer.beta, labels)
    for statistic in (layer.moving_mean, layer.moving_variance):
        context.graph.slot(context.path, statistic, 0, labels, "statistic")
    return Channels(x.labels, context.shapes[0], context.graph.masks and layer.gamma is not None)


enter(
    Record(output=Output.RANGE, in_16_bits=True, per_channel=True, channels=_batch_channels),
    kl.BatchNormalization,
)


def _layer_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """Mean and variance are those of the old width: the layer stays as wide, with zeros where channels were."""
    layer = context.op
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if len(axes) != 1 or axes[0] not in (-1, len(x.shape)) or set(x.along()) - {len(x.shape) - 1}:
        raise Unsupported("normalization over other axes than the last")
    if not x.zero:
        raise Unsupported("the normalization counts them, and they are not zero when masked")
    if not context.graph.masks:
        raise Unsupported("the normalization makes something else than zero of zeros")
    labels = context.along(x)
    scale = getattr(layer, "gamma", getattr(layer, "scale", None))
    weights = [scale, getattr(layer, "beta", None)]
    for weight in weights:
        if isinstance(weight, keras.Variable):
            context.each(weight, labels)
    context.graph.padded[id(layer)] = labels
    return Channels(x.labels, context.shapes[0], isinstance(weights[0], keras.Variable))


enter(Record(output=Output.RANGE, channels=_layer_channels), kl.LayerNormalization, kl.RMSNormalization)


def _group_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    layer = context.op
    labels = context.along(x, layer.axis - 1 if layer.axis > 0 else layer.axis)
    if layer.groups not in (-1, len(labels)):
        raise Unsupported("GroupNormalization normalizes channels together")
    for weight in (layer.gamma, layer.beta):
        context.each(weight, labels)
    context.graph.size(layer, ("groups",), lambda count: count(labels))
    return Channels(x.labels, context.shapes[0], context.graph.masks and layer.gamma is not None)


enter(Record(output=Output.RANGE, channels=_group_channels), kl.GroupNormalization)


def _unit_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    if not x.zero:
        raise Unsupported("the norm counts them, and they are not zero when masked")
    return context.same(x)


enter(Record(channels=_unit_channels), kl.UnitNormalization)


def _fixed_statistics_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    """A mean and a variance for each index along the axes that the layer keeps, as weights or in its config."""
    layer, rank = context.op, len(x.shape) + 1
    kept = sorted(axis % rank - 1 for axis in layer.axis)
    for axis in set(x.along()) & set(kept):
        labels = context.along(x, axis)
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
    labels = context.along(x)
    context.each(context.op.gamma, labels)
    context.graph.size(context.op, ("projection_dim",), lambda count: count(labels))
    return context.same(x)


enter(Record(output=Output.RANGE, channels=_layer_scale_channels), application_layer("LayerScale"))
