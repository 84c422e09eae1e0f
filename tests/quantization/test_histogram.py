"""Histograms and the ranges chosen from them, against numpy on the values themselves."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.quantization import fakequant
from tfopt.quantization.histogram import Histogram, full_range, mse_range, percentile_range, rounding_error

ARRAYS = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), min_size=1, max_size=6)


def weighted(values):
    return np.sort(values), np.ones(len(values))


@given(ARRAYS)
@settings(max_examples=50, deadline=None)
def test_a_growing_histogram_counts_as_one_over_all(arrays):
    histogram = Histogram(bins=8, exact=0)
    for array in arrays:
        histogram.add(np.array(array))
    everything = np.concatenate(arrays)
    values, weights = histogram.points()
    assert weights.sum() == len(everything)
    np.testing.assert_allclose((values * weights).sum(), everything.sum(), atol=1e-6 * np.abs(everything).sum() + 1e-12)
    assert (np.diff(values) > 0).all()
    places = np.clip(np.floor(everything / histogram.width), -8, 7)
    for place in np.unique(places):
        mine = everything[places == place]
        index = np.argmin(np.abs(values - mine.mean()))
        assert weights[index] == len(mine)
        np.testing.assert_allclose(values[index], mine.mean(), atol=1e-9 * (1 + np.abs(mine).max()))


def test_few_values_are_kept_as_they_are_and_many_within_a_bin():
    values = np.random.default_rng(0).normal(size=5000)
    few, many = Histogram(), Histogram(bins=256, exact=100)
    for part in np.split(values, 10):
        few.add(part)
        many.add(part)
    np.testing.assert_array_equal(few.points()[0], np.sort(values))
    for percentile, kept in ((50.0, 2500), (99.0, 4950), (99.9, 4995), (99.91, 4996)):
        want = np.sort(np.abs(values))[kept - 1]
        assert percentile_range(*few.points(), percentile) == (-want, want)
        assert percentile_range(*many.points(), percentile)[1] == pytest.approx(want, abs=many.width)


def test_values_that_are_no_numbers_are_noted():
    histogram = Histogram()
    histogram.add(np.array([1.0, np.inf, np.nan]))
    assert not histogram.finite
    assert histogram.points()[0].tolist() == [1.0]


@pytest.mark.parametrize(
    ("values", "percentile", "want"),
    [
        ([-4.0, -1.0, 1.0, 2.0], 100.0, (-4.0, 2.0)),  # never beyond what was seen
        ([-4.0, -1.0, 1.0, 2.0], 75.0, (-2.0, 2.0)),
        ([0.0, 0.0, 0.0, 9.0], 50.0, (0.0, 9.0)),  # a bound of 0 would leave no range
        ([0.0, 0.0], 99.0, (0.0, 1.0)),
        ([3.0, 5.0], 50.0, (0.0, 3.0)),
    ],
)
def test_percentile_by_hand(values, percentile, want):
    assert percentile_range(*weighted(values), percentile) == want


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, 3.0), (-2.5, 0.0), (-0.013, 4.0)])
def test_the_rounding_error_is_that_of_the_runtime(low, high):
    values = np.random.default_rng(1).normal(size=4000).astype("float32")
    rounded = fakequant.fake_quantize(tf.constant(values), low, high).numpy()
    want = np.mean((rounded.astype(float) - values) ** 2)
    assert rounding_error(values, np.ones(4000), low, high) == pytest.approx(want, rel=1e-4)


SHAPES = {
    "normal": lambda g: g.normal(size=2000),
    "rectified": lambda g: np.maximum(g.normal(size=2000), 0),
    "one-sided tail": lambda g: g.exponential(size=2000) - 0.3,
    "outlier": lambda g: np.append(g.normal(size=2000), 60.0),
    "negative": lambda g: -np.abs(g.normal(size=2000)) - 1,
}


@pytest.mark.parametrize("steps", [15, 255])
@pytest.mark.parametrize("name", SHAPES)
def test_mean_squared_error_against_brute_force(name, steps):
    points = weighted(SHAPES[name](np.random.default_rng(2)))
    low, high = full_range(points[0])
    fractions = np.linspace(0.04, 1, 49)
    lows, highs = (low * fractions if low else [0.0]), (high * fractions if high else [0.0])
    brute = min(rounding_error(*points, *pair, steps) for pair in itertools.product(lows, highs))
    found = mse_range(*points, steps)
    assert rounding_error(*points, *found, steps) <= brute * 1.02
    assert low <= found[0] <= 0 <= found[1] <= high


def test_exact_values_keep_their_range():
    pixels = np.arange(-128, 128) / 128
    assert mse_range(*weighted(pixels)) == (-1.0, 127 / 128)
    assert mse_range(*weighted(np.zeros(5))) == (0.0, 1.0)
    low, high = mse_range(*weighted(np.array([-1e30, 1e30])))
    assert np.isfinite([low, high]).all()
    assert low < high
