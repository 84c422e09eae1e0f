"""Preprocessing, code of other frameworks, and `Lambda`."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers as kl

from tfopt.core.layers.channels import Channels, Context, Unsupported
from tfopt.core.layers.registry import Output, Record, enter, layers_named


def _rescaling_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    if x.along() and (np.size(context.op.scale) > 1 or np.size(context.op.offset) > 1):
        raise Unsupported("Rescaling has a factor for each")
    return context.same(x, zero=not np.any(context.op.offset))


enter(Record(output=Output.RANGE, in_16_bits=True, channels=_rescaling_channels), kl.Rescaling)

# What changes nothing outside of training, or crops.
enter(
    Record(output=Output.SAME),
    *layers_named(
        *("AugMix", "CutMix", "MixUp", "RandAugment", "RandomBrightness", "RandomColorDegeneration"),
        *("RandomColorJitter", "RandomContrast", "RandomCrop", "RandomElasticTransform", "RandomErasing", "RandomFlip"),
        *("RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert", "RandomPerspective"),
        *("RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear"),
        *("RandomTranslation", "RandomZoom"),
    ),
)

# What runs in float, and why.
_FLOAT = {
    "preprocessing of images that LiteRT has no integers for": (
        *("AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization", "Equalization", "Solarization"),
    ),
    "preprocessing of sound that LiteRT has no integers for": ("MelSpectrogram", "STFTSpectrogram"),
    "it makes indices or encodings of raw data, before there is anything to quantize": (
        *("CategoryEncoding", "Discretization", "HashedCrossing", "Hashing", "IntegerLookup", "StringLookup"),
        *("TextVectorization", "MaxNumBoundingBoxes"),
    ),
    "it runs code of another framework": ("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    "what its function does cannot be seen; write it with `keras.ops`, or as a layer with `@tfopt.register_layer`": (
        "Lambda",
    ),
}
for _reason, _names in _FLOAT.items():
    enter(Record(output=Output.FLOAT, reason=_reason), *layers_named(*_names))
