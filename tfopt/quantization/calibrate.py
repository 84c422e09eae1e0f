"""The verb `calibrate`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.progress import track

from tfopt.core.data import input_batches
from tfopt.core.errors import InvalidArgumentError, NonFiniteError
from tfopt.core.graph import check_model, walk_layers
from tfopt.core.keras_internals import functional_of
from tfopt.core.modes import FakeQuantized, mode
from tfopt.core.rewrite import rewrite


def calibrate(
    model: keras.Model, data: Any, *, samples: int | None = None, batch_size: int = 32, verbose: int = 0
) -> keras.Model:
    """Returns a copy of a quantized model with its activation ranges set from data: post-training quantization.

    Each range becomes the widest seen over the data; earlier ranges are forgotten. Weights do not change.

    Args:
        model: from `quantize`.
        data: an array (samples first), a list or dict of arrays for several inputs, `(x, y)`, a `tf.data.Dataset` or
            an iterator of batches. Some hundred samples of the training set will do.
        samples: use at most so many.
        batch_size: for arrays.
        verbose: 1 shows a progress bar.

    Raises:
        InvalidArgumentError: the model is not quantized, or data of the wrong form or shape, or empty.
        NonFiniteError: NaN or infinity in the data, or in what a layer computes from it.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> from tfopt.quantization.quantize import quantize
        >>> ready = calibrate(quantize(model), np.array([[0.0, 1.0], [2.0, -1.0]]))
        >>> ready.layers[0].ranges()["output"].bounds()
        (-1.0, 2.0)
    """
    check_model(model)
    if not any(isinstance(layer, FakeQuantized) for _, layer in walk_layers(model)):
        raise InvalidArgumentError(
            "`calibrate` sets the ranges of a quantized model.",
            received=f"'{model.name}', a float model",
            fix="Call `tfopt.quantize(model)` first.",
        )
    calibrated = rewrite(model)
    _reset(calibrated)
    structure = functional_of(calibrated).input

    @tf.function(autograph=False)
    def observe(*inputs):
        with mode("calibrate"):
            return calibrated(keras.tree.pack_sequence_as(structure, inputs), training=False)

    batches = input_batches(model, data, batch_size=batch_size, limit=samples)
    for batch in track(batches, "calibrate", total=None) if verbose else batches:
        observe(
            *[tf.convert_to_tensor(array, spec.dtype) for array, spec in zip(batch, calibrated.inputs, strict=True)]
        )
    _check_ranges(calibrated)
    return calibrated


def _check_ranges(model: keras.Model) -> None:
    overflowing = [
        f"{path}/{name}"
        for path, layer in walk_layers(model)
        if isinstance(layer, FakeQuantized)
        for name, activation_range in layer.ranges().items()
        for low, high in [activation_range.bounds()]
        if not high - low <= np.finfo(np.float32).max  # NaN is not either
    ]
    if overflowing:
        raise NonFiniteError(
            "What the layers compute has to be finite in float32, and so has the width of its range.",
            received=f"NaN, infinity or a range too wide, first of '{overflowing[0]}'",
            fix="Scale the data as it was in training, and look for very large weights in and before that layer.",
        )


def _reset(model: keras.Model) -> None:
    for _, layer in walk_layers(model):
        if isinstance(layer, FakeQuantized):
            for activation_range in layer.ranges().values():
                activation_range.reset()
