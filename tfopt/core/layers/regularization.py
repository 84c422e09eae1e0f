"""Layers that do something in training alone, and masking."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from keras import layers as kl

from tfopt.core.keras_internals import application_layer
from tfopt.core.layers.channels import Channels, Context, Unsupported, passed
from tfopt.core.layers.registry import Output, Record, enter

_PASSES = Record(output=Output.SAME, in_16_bits=True, per_channel=True, channels=passed)
enter(
    _PASSES,
    *(kl.Identity, kl.Dropout, kl.SpatialDropout1D, kl.SpatialDropout2D, kl.SpatialDropout3D),
    *(kl.AlphaDropout, kl.GaussianDropout, kl.GaussianNoise),
)
enter(replace(_PASSES, per_channel=False), kl.ActivityRegularization)
enter(replace(_PASSES, per_channel=False, in_16_bits=False), application_layer("StochasticDepth"))


def _masking_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    if not x.zero or context.op.mask_value != 0:
        raise Unsupported("whether a step counts depends on all of its values")
    return context.same(x)


enter(Record(output=Output.SAME, channels=_masking_channels), kl.Masking)
