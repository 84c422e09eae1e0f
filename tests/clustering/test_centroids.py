"""Centroids and assignments against TFMOT's, numpy and hand-made cases."""

import importlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tfopt.clustering.centroids import INITS, find_centroids, nearest
from tfopt.interop.tfmot import tfmot

tfmot()
CORE = "tensorflow_model_optimization.python.core.clustering.keras"
THEIRS = importlib.import_module(f"{CORE}.clustering_centroids")
ALGORITHM = importlib.import_module(f"{CORE}.clustering_algorithm").ClusteringAlgorithm
CLASSES = {
    "linear": THEIRS.LinearCentroidsInitialisation,
    "density": THEIRS.DensityBasedCentroidsInitialisation,
    "kmeans++": THEIRS.KmeansPlusPlusCentroidsInitialisation,
}
RNG = np.random.default_rng(0)
KERNELS = {
    "normal": RNG.normal(0, 0.3, (3, 3, 5, 16)),
    "skewed": RNG.exponential(0.5, (40, 30)) - 0.2,
    "sparse": np.where(RNG.random((50, 20)) < 0.8, 0.0, RNG.normal(0, 0.5, (50, 20))),
}


def theirs(init, weights, count, zero):
    """TFMOT's centroids, and the value that it puts in each weight's place."""
    import tensorflow as tf

    tensor = tf.constant(weights, tf.float32)
    centroids = CLASSES[init](tensor, count, preserve_sparsity=zero).get_cluster_centroids()
    places = ALGORITHM(tf.Variable(centroids)).get_pulling_indices(tensor)
    return centroids.numpy(), centroids.numpy()[places.numpy()]


def cost(weights, centroids):
    return float(np.square(weights - centroids[nearest(weights, centroids)]).sum())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("count", [3, 8, 16])
@pytest.mark.parametrize("init", ["linear", "density"])
def test_centroids_and_assignments_are_tfmots(init, count, zero, kernel):
    weights = KERNELS[kernel].astype("float32")
    expected, values = theirs(init, weights, count, zero)
    ours = find_centroids(weights, count, init, zero=zero)
    np.testing.assert_allclose(ours, np.unique(expected), atol=2e-6)
    np.testing.assert_allclose(ours[nearest(weights, ours)], values, atol=2e-6)


@pytest.mark.parametrize("kernel", ["normal", "skewed"])
def test_kmeans_ends_in_means_and_below_tfmots_cost(kernel):
    weights = KERNELS[kernel].astype("float32")
    ours = find_centroids(weights, 16)
    places = nearest(weights, ours)
    means = [weights[places == index].mean(dtype=np.float64) for index in range(16)]
    np.testing.assert_allclose(ours, means, rtol=1e-5)
    seeded = np.sort(theirs("kmeans++", weights, 16, False)[0])
    others = [seeded, *(find_centroids(weights, 16, init) for init in INITS[1:])]
    assert all(cost(weights, ours) < 0.9 * cost(weights, other) for other in others)


def test_kmeans_finds_groups_and_holds_zero():
    groups = np.array([-5.0, -5.2, 0.0, 0.0, 0.1, 3.0, 3.4, 9.0])
    assert find_centroids(groups, 4).tolist() == pytest.approx([-5.1, 0.1 / 3, 3.2, 9.0])
    assert find_centroids(groups, 4, zero=True).tolist() == pytest.approx([-5.1, 0.0, 3.2, 9.0])


@pytest.mark.parametrize("init", ["kmeans++", "linear", "density"])
@pytest.mark.parametrize("scale", [1e30, 1e-30, 3e37])
def test_extreme_weights(init, scale):
    weights = (KERNELS["normal"] * scale).astype("float32")
    found = find_centroids(weights, 8, init)
    assert np.isfinite(found).all()
    assert 4 <= len(found) <= 8
    assert np.corrcoef(weights.ravel() / scale, found[nearest(weights, found)].ravel() / scale)[0, 1] > 0.9


def test_huge_and_tiny_weights_together():
    weights = np.array([-1e30, 1e30, 2e30, -1e-30, 1e-30, 2e-30], np.float32)
    found = find_centroids(weights, 4)
    assert cost(weights / np.float32(1e30), found / np.float32(1e30)) < 1e-12


@pytest.mark.parametrize("init", INITS)
def test_few_distinct_weights_are_their_own_centroids(init):
    weights = np.array([[2.0, -1.0, 2.0], [0.5, 0.5, -1.0]])
    assert find_centroids(weights, 3, init).tolist() == [-1.0, 0.5, 2.0]
    assert find_centroids(weights, 4, init, zero=True).tolist() == [-1.0, 0.0, 0.5, 2.0]
    assert find_centroids(np.zeros(5), 2, init, zero=True).tolist() == [0.0]


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=60),
    count=st.integers(2, 9),
    init=st.sampled_from(INITS),
    zero=st.booleans(),
    seed=st.integers(0, 3),
)
@example(weights=[-1.0, -0.5, 4.0], count=2, init="linear", zero=True, seed=0)
@example(weights=[0.0, 10.0, -1.0, 11.0, 5.0], count=3, init="kmeans++", zero=False, seed=1)
def test_properties(weights, count, init, zero, seed):
    array = np.array(weights, np.float32)
    found = find_centroids(array, count, init, zero=zero, seed=seed)
    assert found.dtype == np.float32
    assert 1 <= len(found) <= count
    assert (np.diff(found) > 0).all()
    assert not zero or 0 in found
    np.testing.assert_array_equal(found, find_centroids(array[::-1], count, init, zero=zero, seed=seed))
    distances = np.abs(array[:, None].astype(np.float64) - found)
    chosen = np.take_along_axis(distances, nearest(array, found)[:, None], 1)[:, 0]
    np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-12)
    if init == "kmeans++":
        wanted = min(count, len(np.unique(np.append(array, 0) if zero else array)))
        assert len(found) == wanted
