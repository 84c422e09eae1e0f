"""Pooling. An average by an integer kernel that asks for one range on both sides counts as moved, not as computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers.channels import Channels, Context, axis_of_channels, in_place, reduced
from tfopt.core.layers.registry import Output, Record, enter, layers_named

_POOLING = Record(output=Output.SAME, in_16_bits=True, channels=in_place)
enter(_POOLING, kl.MaxPooling1D, kl.MaxPooling2D, kl.AveragePooling1D, kl.AveragePooling2D)
enter(
    replace(_POOLING, in_16_bits=False),
    *(kl.MaxPooling3D, kl.AveragePooling3D),
    *layers_named("AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D"),
    *layers_named("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D"),
    *(op_class("MaxPool"), op_class("AveragePool")),
)


def _global_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    axis = axis_of_channels(context.op) % len(x.shape)
    return reduced(context, x, [other for other in range(1, len(x.shape)) if other != axis], context.op.keepdims)


_GLOBAL_MAX = Record(output=Output.SAME, in_16_bits=True, channels=_global_channels)
enter(_GLOBAL_MAX, kl.GlobalMaxPooling1D, kl.GlobalMaxPooling2D)
enter(replace(_GLOBAL_MAX, in_16_bits=False), kl.GlobalMaxPooling3D)
_GLOBAL_AVERAGE = replace(_GLOBAL_MAX, output=Output.RANGE)
enter(_GLOBAL_AVERAGE, kl.GlobalAveragePooling1D, kl.GlobalAveragePooling2D)
enter(replace(_GLOBAL_AVERAGE, in_16_bits=False), kl.GlobalAveragePooling3D)
