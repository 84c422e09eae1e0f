import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.pruning.criteria import magnitude
from tfopt.pruning.patterns import element_mask, kept_count


def test_by_hand():
    weights = np.array([[0.1, -4.0, 3.0], [2.0, 0.0, -0.2]], "float32")
    mask = element_mask(magnitude(weights), 3).numpy()
    assert mask.tolist() == [[False, True, True], [True, False, False]]


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.999),
    values=st.sampled_from(["random", "constant", "ties"]),
)
def test_exact_count_whatever_the_ties(shape, sparsity, values):
    generator = np.random.default_rng(0)
    weights = {
        "random": generator.normal(size=shape),
        "constant": np.full(shape, 0.5),
        "ties": generator.integers(-1, 2, shape),
    }[values].astype("float32")
    kept = int(kept_count(weights.size, sparsity))
    mask = element_mask(magnitude(weights), kept).numpy()
    assert kept == max(1, round(weights.size * (1 - float(np.float32(sparsity)))))
    assert mask.sum() == kept
    if 0 < kept < weights.size:
        assert np.abs(weights[mask]).min() >= np.abs(weights[~mask]).max()


@settings(deadline=None, max_examples=30)
@given(low=st.floats(0, 0.99), high=st.floats(0, 0.99), seed=st.integers(0, 99))
def test_masks_are_nested(low, high, seed):
    low, high = sorted((low, high))
    scores = np.random.default_rng(seed).uniform(size=(7, 5)).astype("float32")
    wide = element_mask(scores, kept_count(35, low)).numpy()
    narrow = element_mask(scores, kept_count(35, high)).numpy()
    assert not (narrow & ~wide).any()


@pytest.mark.parametrize("scale", [1e-20, 3.0, 1e20])
def test_scale_invariance(scale):
    weights = np.random.default_rng(1).normal(size=(9, 4)).astype("float32")
    np.testing.assert_array_equal(
        element_mask(magnitude(weights * np.float32(scale)), 10), element_mask(magnitude(weights), 10)
    )
