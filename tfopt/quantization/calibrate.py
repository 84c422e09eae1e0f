"""The verb `calibrate`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf
from rich.progress import track

from tfopt.core.checks import Range, as_choice, as_number
from tfopt.core.data.batches import as_inputs, input_batches
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, NothingToDoError
from tfopt.core.models.fake_quantized import check_quantized, mode, ranges_of
from tfopt.core.models.graph import Graph, read
from tfopt.core.models.rewrite import rewrite
from tfopt.core.types import Data
from tfopt.quantization import histogram
from tfopt.quantization.corrections import correct_biases, reestimate_batch_norms
from tfopt.quantization.ranges import ActivationRange
from tfopt.quantization.side_by_side import SideBySide

METHODS = ("mse", "minmax", "percentile")
CORRECTED_AT_ONCE = 32  # samples of a batch in corrections, however the user batched them


def calibrate(
    model: keras.Model,
    data: Data,
    *,
    method: str = "mse",
    percentile: float = 99.99,
    bias_correction: bool | None = None,
    batch_norm: bool = False,
    samples: int | None = None,
    batch_size: int = 32,
    verbose: int = 0,
) -> keras.Model:
    """Returns a copy of a quantized model with its activation ranges set from data: post-training quantization.

    Earlier ranges are forgotten. Kernels do not change. With corrections, the data is held in memory; without, it is
    read once, batch by batch.

    Args:
        model: from `quantize`.
        data: an array (samples first), a list or dict of arrays for several inputs, `(x, y)`, a `tf.data.Dataset` or
            an iterator of batches. Some hundred samples of the training set will do.
        method: `"mse"`: the range in which rounding and clipping together give the least mean squared error, over a
            histogram of the values; `"minmax"`: the widest seen; `"percentile"`: without the largest magnitudes.
        percentile: for that method, how many per cent of the magnitudes of a tensor lie within its range.
        bias_correction: takes the mean shift that rounding the kernels causes in each channel out of the bias, or of
            the mean of the batch normalization behind. None: for a model fresh from `quantize`; a trained model, or
            one that was calibrated before, keeps its biases.
        batch_norm: sets the statistics of batch normalizations anew from the data first.
        samples: use at most so many.
        batch_size: for arrays.
        verbose: 1 shows a progress bar.

    Raises:
        NothingToDoError: only the weights of the model are quantized.
        InvalidArgumentError: the model is not quantized; an unknown method; `bias_correction=True` for a model whose
            ranges were set before; data of the wrong form or shape, or empty.
        NonFiniteError: NaN or infinity in the data, or in what a layer computes from it.

    Warns:
        With `bias_correction=True`, which layers have neither a bias nor batch normalization to take it.

    Source: mean squared error: Nagel et al. 2021, https://arxiv.org/abs/2106.08295; bias correction: Nagel et al.
        2019, https://arxiv.org/abs/1906.04721.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> from tfopt.quantization.quantize import quantize
        >>> ready = calibrate(quantize(model), np.array([[0.0, 1.0], [2.0, -1.0]]), method="minmax")
        >>> ready.layers[0].ranges()["output"].bounds()
        (-1.0, 2.0)
    """
    graph = read(model)
    _check(graph, method, percentile)
    correct = _wants_correction(graph, bias_correction)
    calibrated = rewrite(graph)
    batches: Iterable[list[np.ndarray]] = input_batches(model, data, batch_size=batch_size, limit=samples)
    if correct or batch_norm:
        batches = list(batches)
        left = _correct(calibrated, batches, correct, batch_norm)
        if left and bias_correction:
            warnings.warn(
                f"Not corrected, for want of a bias or of batch normalization behind: {', '.join(left)}.", stacklevel=2
            )
    _observe(calibrated, track(batches, "calibrate", total=None) if verbose else batches, method, percentile)
    return calibrated.model


def _check(graph: Graph, method: str, percentile: float) -> None:
    check_quantized(graph, "calibrate")
    if not ranges_of(graph):
        raise NothingToDoError(
            "`calibrate` sets the ranges of activations.",
            received=f"'{graph.model.name}', of which only weights are quantized",
            fix="Export it as it is, or quantize with scheme='int8' or 'int16x8'.",
        )
    as_choice("method", method, METHODS)
    as_number("percentile", percentile, Range(above=0, most=100), fix="99.99 leaves out one value in ten thousand.")


def _wants_correction(graph: Graph, bias_correction: bool | None) -> bool:
    fresh = all(activation_range.bounds() == (0.0, 0.0) for activation_range in ranges_of(graph).values())
    if bias_correction is None:
        return fresh
    bias_correction = as_choice("bias_correction", bias_correction, (True, False, None))
    if bias_correction and not fresh:
        raise InvalidArgumentError(
            "Biases are corrected once, in a model fresh from `quantize`: its weights say what the outputs should be.",
            received=f"'{graph.model.name}', whose ranges were set by training or by an earlier `calibrate`",
            fix="Calibrate the model as `quantize` returned it, or leave `bias_correction` out.",
        )
    return bool(bias_correction)


def _correct(graph: Graph, batches: list, correct: bool, batch_norm: bool) -> list[str]:
    """Corrects in place; gives the layers for which there was no way."""
    whole = [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
    starts = range(0, len(whole[0]), CORRECTED_AT_ONCE)
    even = [[array[start : start + CORRECTED_AT_ONCE] for array in whole] for start in starts]
    pair = SideBySide(graph)
    if batch_norm:
        reestimate_batch_norms(pair, even)
    return correct_biases(pair, even) if correct else []


def _observe(graph: Graph, batches: Iterable, method: str, percentile: float) -> None:
    """Sets all ranges, in one pass over the data."""
    ranges = cast(dict[str, ActivationRange], ranges_of(graph))
    for activation_range in ranges.values():
        activation_range.reset()
        by_extremes = method == "minmax" or (method == "mse" and activation_range.bits == 16)  # of so many steps
        activation_range.histogram = None if by_extremes else histogram.Histogram()

    @tf.function(autograph=False)
    def observe(inputs: Any) -> Any:
        with mode("calibrate"):
            return graph.model(inputs, training=False)

    for batch in batches:
        observe(as_inputs(graph.model, batch))
    for path, activation_range in ranges.items():
        _settle(activation_range, path, method, percentile)


def _settle(activation_range: ActivationRange, path: str, method: str, percentile: float) -> None:
    seen, activation_range.histogram = activation_range.histogram, None
    low, high = activation_range.bounds()
    points = seen.points() if seen is not None else ((), ())
    if len(points[0]):
        choose = histogram.mse_range if method == "mse" else partial(histogram.percentile_range, percentile=percentile)
        low, high = choose(*points)
    widest = float(np.finfo(np.float32).max)
    if (seen is not None and not seen.finite) or not high - low <= widest:  # NaN is not either
        raise NonFiniteError(
            "What the layers compute has to be finite in float32, and so has the width of its range.",
            received=f"NaN, infinity or a range too wide, first of '{path}'",
            fix="Scale the data as it was in training, and look for very large weights in and before that layer.",
        )
    activation_range.set(low, high)
