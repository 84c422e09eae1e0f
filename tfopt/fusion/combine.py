"""The arithmetic of fusion: branches and weights in, one tensor out, in operations that LiteRT has for integers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np
from keras import ops

from tfopt.core.errors import InvalidArgumentError

LEARNED = "learned"
_TOLERANCE = 1e-5  # of the sum of weights
_SMALLEST = {"float16": 1e-4}  # probability, before its logarithm is taken; 1e-7 in wider types
_DENOMINATOR = 10_000  # of the fractions that votes are counted in


def as_weights(weights: Any) -> tuple[float, ...] | str | None:
    """`weights` as a tuple if they are non-negative and sum to 1; None and `"learned"` as they are.

    Raises:
        InvalidArgumentError: anything else, NaN among it.

    Example:
        >>> as_weights([0.25, 0.75])
        (0.25, 0.75)
    """
    if weights is None or (isinstance(weights, str) and weights == LEARNED):
        return weights
    values = np.array([np.nan]) if isinstance(weights, (str, dict)) else _as_array(weights)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (values < 0).any():
        raise InvalidArgumentError(
            "`weights` is a list of numbers of at least 0, one a branch, 'learned', or None for equal ones.",
            received=repr(weights),
        )
    if abs(values.sum() - 1) > _TOLERANCE:
        raise InvalidArgumentError(
            "`weights` sum to 1.",
            received=f"{values.tolist()}, which sum to {values.sum():.6g}",
            fix="Divide them by their sum.",
        )
    return tuple(values.tolist())


def _as_array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return np.array([np.nan])


def mean(branches: list) -> Any:
    return ops.multiply(functools.reduce(ops.add, branches), 1.0 / len(branches)) if len(branches) > 1 else branches[0]


def weighted(branches: Any, weights: Any) -> Any:
    """The sum of the branches times their weights; a branch of weight 0, whose products would have no range, is out."""
    given = isinstance(weights, tuple)
    parts = [ops.multiply(branch, weights[i]) for i, branch in enumerate(branches) if not given or weights[i] != 0]
    return functools.reduce(ops.add, parts)


def product(branches: list, from_logits: bool, multi_label: bool) -> Any:
    """The product of probabilities, normalised: the softmax of the sum of logits, of which logarithms are a form."""
    single = multi_label or branches[0].shape[-1] == 1
    if not from_logits:
        smallest = _SMALLEST.get(keras.backend.standardize_dtype(branches[0].dtype), 1e-7)
        logarithms = [ops.log(ops.maximum(x, smallest)) for x in branches]
        if single:
            others = [ops.log(ops.maximum(1.0 - x, smallest)) for x in branches]
            logarithms = [ops.subtract(x, other) for x, other in zip(logarithms, others, strict=True)]
        branches = logarithms
    total = functools.reduce(ops.add, branches)
    return ops.sigmoid(total) if single else ops.softmax(total, -1)


def first_highest(scores: Any) -> Any:
    """Index of the highest score on the last axis, the lowest of equal ones; in operations that LiteRT has."""
    highest = ops.greater_equal(scores, ops.max(scores, -1, keepdims=True))
    return ops.argmax(ops.cast(highest, "int32"), -1)


def whole_numbers(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of the weights.

    Example:
        >>> whole_numbers([0.5, 1 / 3, 1 / 6])
        [3, 2, 1]
    """
    fractions = [Fraction(weight).limit_denominator(_DENOMINATOR) for weight in weights]
    common = math.lcm(*(fraction.denominator for fraction in fractions))
    if common > 2**20:  # weights of no common measure, as fitted ones are: they tie by chance only
        return [round(weight * 2**20) for weight in weights]
    return [int(fraction * common) for fraction in fractions]
