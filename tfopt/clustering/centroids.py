"""Arrays in, centroids and assignments out. All maths of choosing clusters stands here, free of Keras."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

GRID_POINTS = 30  # of "density", as in TFMOT
GRID_MARGIN = 0.01
MOST_ROUNDS = 300  # of Lloyd's iteration, which ends by itself long before

Init = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def find_centroids(
    weights: np.ndarray, count: int, init: str = "kmeans++", *, zero: bool = False, seed: int | np.random.Generator = 0
) -> np.ndarray:
    """Chooses `count` values to stand for all weights.

    `"linear"` spaces them evenly between the lowest and the highest weight; `"density"` puts them where the cumulative
    distribution of the weights passes evenly spaced fractions (on a grid of 30 points, taking the point above);
    `"random"` draws them evenly. These three are TFMOT's. `"kmeans++"` starts as TFMOT's does, each centroid drawn from
    the weights in proportion to the squared distance from those drawn before, and then runs Lloyd's iteration to its
    end, which TFMOT leaves out: centroids become the means of their members.

    Args:
        weights: array of any shape, finite.
        count: how many, zero among them if asked for; at least 2.
        init: one of `INITS`.
        zero: whether one of them is exactly 0. The others are then shared out to negative and positive weights by
            their numbers, except with `"kmeans++"`, which places them freely.
        seed: of what is drawn at random.

    Returns:
        Distinct centroids in ascending order, float32: `count` of them, or fewer where there are no more distinct
        weights (which are then the centroids) or where centroids of `"density"` coincide.

    Source: TFMOT `clustering/keras/clustering_centroids.py`; Arthur and Vassilvitskii 2007; Lloyd 1982.

    Example:
        >>> find_centroids(np.array([-1.0, -0.2, 0.1, 0.3, 1.0]), 3, "linear").tolist()
        [-1.0, 0.0, 1.0]
        >>> find_centroids(np.array([0.0, 0.0, 4.0, 5.0, 9.0]), 3, zero=True).tolist()
        [0.0, 4.5, 9.0]
    """
    values = np.sort(np.asarray(weights, np.float32), axis=None)
    generator = np.random.default_rng(seed)
    known = np.unique(np.append(values, np.float32(0)) if zero else values)
    if len(known) <= count:
        return known
    if init == "kmeans++":
        found = _kmeans(values.astype(np.float64), count, generator, zero)
    elif zero:
        found = np.concatenate([[0.0], *_on_both_sides(values, count - 1, _SPACED[init], generator)])
    else:
        found = _SPACED[init](values, count, generator)
    return np.unique(found.astype(np.float32))


def nearest(weights: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest of the ascending centroids for each weight; the lower one where two are equally near.

    Example:
        >>> nearest(np.array([[0.2, 0.5], [0.6, 7.0]]), np.array([0.0, 1.0])).tolist()
        [[0, 0], [1, 1]]
    """
    return np.searchsorted(_midpoints(centroids), weights, side="left").astype(np.int32)


def _midpoints(centroids: np.ndarray) -> np.ndarray:
    centroids = centroids.astype(np.float64)
    return (centroids[1:] + centroids[:-1]) / 2


def _on_both_sides(values: np.ndarray, count: int, init: Init, generator: np.random.Generator) -> list[np.ndarray]:
    """Centroids of the negative and of the positive weights, as many on each side as its share."""
    negative, positive = values[values < 0], values[values > 0]
    below = round(count * len(negative) / (len(negative) + len(positive)))
    sides = ((negative, below), (positive, count - below))
    return [init(side, amount, generator) for side, amount in sides if amount]


def _linear(values: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    return np.linspace(values[0], values[-1], count)


def _random(values: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    return generator.uniform(values[0], values[-1], count)


def _density(values: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    low, high = float(values[0]), float(values[-1])
    # TFMOT's margin, but never wider than the weights themselves: among tiny ones all points would fall together.
    margin = min(GRID_MARGIN, high - low)
    if low * high > 0:
        margin = min(margin, min(abs(low), abs(high)) / 2)
    grid = np.linspace(low - margin, high + margin, GRID_POINTS)
    fractions = np.searchsorted(values, grid, side="right") / len(values)
    place = np.searchsorted(fractions, np.linspace(0.01, 1, count), side="right")
    return grid[np.minimum(place, GRID_POINTS - 1)]


def _kmeans(values: np.ndarray, count: int, generator: np.random.Generator, zero: bool) -> np.ndarray:
    """Seeds of k-means++ and Lloyd's iteration over ascending values; with `zero`, one centroid is held at 0."""
    centroids = [0.0 if zero else values[generator.integers(len(values))]]
    distance = np.square(values - centroids[0])
    while len(centroids) < count:
        reached = np.cumsum(distance)
        drawn = np.searchsorted(reached, generator.random() * reached[-1], side="right")
        centroids.append(values[min(drawn, len(values) - 1)])
        distance = np.minimum(distance, np.square(values - centroids[-1]))
    found = np.sort(centroids)
    sums = np.append(0.0, np.cumsum(values))
    for _ in range(MOST_ROUNDS):
        moved = _lloyd(values, sums, found, zero)
        if np.array_equal(moved, found):
            break
        found = moved
    return found


def _lloyd(values: np.ndarray, sums: np.ndarray, centroids: np.ndarray, zero: bool) -> np.ndarray:
    """Each centroid moved to the mean of the values nearest to it; one that has none, to the value worst served."""
    edges = np.concatenate([[0], np.searchsorted(values, _midpoints(centroids), side="right"), [len(values)]])
    sizes = np.diff(edges)
    filled = sizes > 0
    means = centroids.copy()
    first, last = values[edges[:-1][filled]], values[edges[1:][filled] - 1]
    # Sums of all values before lose small ones beside huge ones: a mean lies among its members whatever is lost.
    means[filled] = np.clip(np.diff(sums[edges])[filled] / sizes[filled], first, last)
    if zero:
        means[centroids == 0] = 0.0
    if not filled.all():
        empty = np.flatnonzero(~filled & (centroids != 0 if zero else True))
        if len(empty):
            means[empty[0]] = values[np.argmax(np.abs(values - np.repeat(means, sizes)))]
    return np.sort(means)


_SPACED: dict[str, Init] = {"linear": _linear, "density": _density, "random": _random}
INITS = ("kmeans++", *_SPACED)
