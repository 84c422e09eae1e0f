"""Layers around one other layer."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as kl

from tfopt.core.layers import macs
from tfopt.core.layers.channels import NONE, Channels, Context, Unsupported
from tfopt.core.layers.registry import Record, Shape, enter, rule_of


def _time_distributed_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    inner = context.op.layer
    rule = rule_of(inner)
    if rule is None or isinstance(inner, keras.Model) or 1 in x.along():
        raise Unsupported(f"TimeDistributed around {type(inner).__name__}")
    step = Channels(_without_time(x.labels), _without_time(x.shape), x.zero)
    result = rule(Context(context.graph, inner, context.path, [_without_time(context.shapes[0])]), step)
    for size in context.graph.kept_sizes.pop(id(inner), []):
        context.graph.size(context.op, ("layer", "config", *size.key), size.value)
    if id(inner) in context.graph.padded:
        context.graph.padded[id(context.op)] = context.graph.padded.pop(id(inner))
    return Channels((*result.labels[:1], NONE, *result.labels[1:]), context.shapes[0], result.zero)


def _without_time(axes: tuple) -> tuple:
    return (*axes[:1], *axes[2:])


def _time_distributed_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    batch, steps, *features = inputs[0]
    results = [(shape[0], *shape[2:]) for shape in outputs]
    return macs.size([steps]) * macs.layer_macs(layer.layer, [(batch, *features)], results)


def _inner_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    return macs.layer_macs(layer.layer, inputs, outputs)


enter(Record(channels=_time_distributed_channels, macs=_time_distributed_macs), kl.TimeDistributed)
enter(Record(macs=_inner_macs), kl.Wrapper, kl.SpectralNormalization)
