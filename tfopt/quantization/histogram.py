"""Ranges from the values themselves: a histogram that grows with the data, and what to clip. Arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 4096  # on each side of zero: 16 and more bins to a step of an 8-bit range
EXACT = 1 << 14  # so many values are kept as they are
WIDTHS = (1.0, 0.1, 0.02, 0.005)  # of the search for a bound, as fractions of the widest
CANDIDATES = 20  # on each side of a bound


class Histogram:
    """Values of any number, as weighted points: each as it is while they are few, then the mean of each bin.

    The bins lie on both sides of zero and are equally wide. Where a value lies beyond them, their width doubles, so
    that two bins become one exactly.

    Example:
        >>> histogram = Histogram()
        >>> histogram.add(np.array([1.0, 3.0]))
        >>> histogram.add(np.array([-2.0]))
        >>> [part.tolist() for part in histogram.points()]
        [[-2.0, 1.0, 3.0], [1.0, 1.0, 1.0]]
    """

    def __init__(self, bins: int = BINS, exact: int = EXACT):
        self.bins, self.exact = bins, exact
        self.few: list[np.ndarray] = []
        self.width = 0.0  # 0 as long as the values are few
        self.finite = True  # whether all values were; the others are not counted
        self.counts = np.zeros(2 * bins)
        self.sums = np.zeros(2 * bins)

    def add(self, values: np.ndarray) -> None:
        """Counts the values of an array of any shape."""
        flat = np.asarray(values, np.float64).ravel()
        if not np.isfinite(flat).all():
            self.finite = False
            flat = flat[np.isfinite(flat)]
        if self.width:
            self._count(flat)
            return
        self.few.append(flat)
        if sum(map(len, self.few)) > self.exact:
            self._count(np.concatenate(self.few))
            self.few = []

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """`(values, weights)`, values in ascending order; empty if nothing was added."""
        if not self.width:
            values, counts = np.unique(np.concatenate([np.zeros(0), *self.few]), return_counts=True)
            return values, counts.astype(np.float64)
        filled = self.counts > 0
        return self.sums[filled] / self.counts[filled], self.counts[filled]

    def _count(self, values: np.ndarray) -> None:
        largest = float(np.abs(values).max(initial=0.0))
        if not self.width:
            self.width = (largest or 1.0) / self.bins
        while largest >= self.width * self.bins:
            self.width *= 2
            self.counts, self.sums = self._halved(self.counts), self._halved(self.sums)
        places = np.floor(values / self.width).astype(np.int64) + self.bins
        np.clip(places, 0, 2 * self.bins - 1, out=places)
        self.counts += np.bincount(places, minlength=2 * self.bins)
        self.sums += np.bincount(places, weights=values, minlength=2 * self.bins)

    def _halved(self, array: np.ndarray) -> np.ndarray:
        halved = np.zeros_like(array)
        halved[self.bins // 2 : self.bins // 2 + self.bins] = array.reshape(-1, 2).sum(1)
        return halved


def full_range(values: np.ndarray) -> tuple[float, float]:
    """The range of ascending values, widened to hold zero; (0, 1) where all are zero.

    Example:
        >>> full_range(np.array([2.0, 5.0]))
        (0.0, 5.0)
    """
    low, high = min(float(values[0]), 0.0), max(float(values[-1]), 0.0)
    return (low, high) if low < high else (0.0, 1.0)


def percentile_range(values: np.ndarray, weights: np.ndarray, percentile: float) -> tuple[float, float]:
    """The range without the largest magnitudes: the smallest bound that `percentile` % of the magnitudes keep to.

    Args:
        values, weights: points in ascending order, as of `Histogram.points`.
        percentile: above 0, up to 100.

    Example:
        >>> percentile_range(np.array([-9.0, 1.0, 2.0, 3.0]), np.ones(4), 75.0)
        (-3.0, 3.0)
    """
    low, high = full_range(values)
    magnitudes = np.abs(values)
    order = np.argsort(magnitudes, kind="stable")
    kept = np.cumsum(weights[order])
    wanted = kept[-1] * percentile / 100
    bound = float(magnitudes[order][min(np.searchsorted(kept, wanted * (1 - 1e-12)), len(kept) - 1)])
    return (max(low, -bound), min(high, bound)) if bound else (low, high)


def mse_range(values: np.ndarray, weights: np.ndarray, steps: int = 255) -> tuple[float, float]:
    """The range that the values are rounded in with the least mean squared error, zero being one of its steps.

    What is clipped is weighed against the width of a step. Each bound is searched with the other held, in turn: the
    error is, but for the rounding of single values, convex in both.

    Args:
        values, weights: points in ascending order, as of `Histogram.points`.
        steps: the number of integers, less one.

    Example:
        >>> values = np.append(np.linspace(-1, 1, 2001), 20.0)
        >>> low, high = mse_range(values, np.ones(2002), steps=15)
        >>> low > -1.2, high < 20
        (True, True)
    """
    bounds = np.array(full_range(values))
    ends = bounds.copy()
    best = float(rounding_error(values, weights, bounds[0], bounds[1], steps))
    for width in WIDTHS:
        for side in (1, 0, 1, 0):
            if not ends[side]:
                continue
            tried = bounds[side] + ends[side] * width * np.linspace(-1, 1, 2 * CANDIDATES + 1)
            tried = tried[(tried / ends[side] > 0) & (tried / ends[side] <= 1)]
            lows, highs = (bounds[0], tried) if side else (tried, bounds[1])
            errors = rounding_error(values, weights, lows, highs, steps)
            if errors.min() < best:
                bounds[side], best = tried[errors.argmin()], float(errors.min())
    return float(bounds[0]), float(bounds[1])


def rounding_error(values: np.ndarray, weights: np.ndarray, low: Any, high: Any, steps: int = 255) -> np.ndarray:
    """Mean squared error of values rounded in a range, nudged so that zero is a step, as the runtime has it.

    Args:
        values, weights: points, as of `Histogram.points`.
        low, high: bounds, numbers or arrays of them.
        steps: the number of integers, less one.

    Returns:
        The error in each range.

    Example:
        >>> rounding_error(np.array([0.0, 1.0, 9.0]), np.ones(3), 0.0, np.array([1.0, 9.0])).round(3).tolist()
        [21.333, 0.0]
    """
    scale = np.asarray((np.asarray(high) - low) / steps)[..., None]
    start = -np.round(-np.asarray(low)[..., None] / scale)
    rounded = (np.clip(np.round(values / scale), start, start + steps)) * scale
    return np.square(rounded - values) @ (weights / weights.sum())
