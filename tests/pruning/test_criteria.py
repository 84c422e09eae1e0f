import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfopt.core.errors import InvalidArgumentError
from tfopt.pruning import criteria
from tfopt.pruning.criteria import CRITERIA, NEEDS, Criterion, as_criterion

WEIGHTS = np.array([[1.0, -2.0, 0.5], [-3.0, 0.25, 4.0]], "float32")
GRADIENTS = np.array([[0.5, 0.0, -2.0], [1.0, -8.0, 0.25]], "float32")


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (criteria.magnitude(WEIGHTS), [[1, 2, 0.5], [3, 0.25, 4]]),
        (criteria.gradient_magnitude(WEIGHTS, GRADIENTS), [[0.5, 0, 2], [1, 8, 0.25]]),
        (criteria.taylor(WEIGHTS, GRADIENTS), [[0.5, 0, 1], [3, 2, 1]]),
        (criteria.neuron(WEIGHTS), [[4, 2.25, 4.5], [4, 2.25, 4.5]]),
        (criteria.neuron(WEIGHTS, axis=0), [[3.5] * 3, [7.25] * 3]),
        (criteria.neuron(WEIGHTS, axis=(-2, -1)), [[1, 2, 0.5], [3, 0.25, 4]]),
        (criteria.bn_scale(WEIGHTS, np.array([[2.0, -3.0, 0.0]], "float32")), [[2, 3, 0], [2, 3, 0]]),
        (criteria.wanda(WEIGHTS, np.array([[2.0], [10.0]], "float32")), [[2, 4, 1], [30, 2.5, 40]]),
    ],
    ids=["magnitude", "gradient", "taylor", "neuron", "neuron_rows", "neuron_elements", "bn_scale", "wanda"],
)
def test_scores_by_hand(scores, expected):
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_neuron_sums_a_filter_over_all_its_weights():
    kernel = np.random.default_rng(0).normal(size=(3, 2, 4, 5)).astype("float32")
    sums = np.abs(kernel).sum((0, 1, 2))
    np.testing.assert_allclose(criteria.neuron(kernel), np.broadcast_to(sums, kernel.shape), rtol=1e-5)
    transposed = np.abs(kernel).sum((0, 1, 3))[:, None]
    np.testing.assert_allclose(criteria.neuron(kernel, axis=-2), np.broadcast_to(transposed, kernel.shape), rtol=1e-5)


def test_entropy_by_hand():
    """Four bins taken evenly are 2 bits, a constant unit 0, shares of 3/4 and 1/4 0.811 bits."""
    activations = np.array([[0, 7, 0], [1, 7, 0], [2, 7, 0], [3, 7, 1]], "float32")
    scores = criteria.entropy(np.ones((2, 3), "float32"), activations, bins=4)
    split = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    np.testing.assert_allclose(scores, [[2, 0, split]] * 2, rtol=1e-6)
    assert not np.signbit(scores).any()


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays("float32", st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.floats(-1e6, 1e6, width=32)),
    st.integers(1, 12),
)
def test_entropy_is_that_of_the_histogram(activations, bins):
    scores = criteria.entropy(np.zeros((activations.shape[1], 2), "float32"), activations, axis=-2, bins=bins)
    for unit, score in zip(activations.T.astype("float64"), scores, strict=True):
        counts = np.histogram(unit, bins)[0]
        shares = counts[counts > 0] / len(unit)
        np.testing.assert_allclose(score, -(shares * np.log2(shares)).sum(), atol=1e-5)
    assert scores.min() >= 0
    assert scores.max() <= np.log2(max(bins, 2)) + 1e-5


def test_random_depends_on_the_seed_alone():
    weights = np.zeros((50, 20), "float32")
    first = criteria.random(weights, seed=3).numpy()
    np.testing.assert_array_equal(first, criteria.random(weights + 1, seed=3))
    np.testing.assert_array_equal(first, tf.function(lambda w: criteria.random(w, seed=3))(weights))
    assert not np.array_equal(first, criteria.random(weights, seed=4))
    assert len(np.unique(first)) > 990
    assert abs(first.mean() - 0.5) < 0.05
    assert criteria.random(weights, seed=2**32 - 1).shape == weights.shape


# Eighths, scaled by powers of two: nothing is rounded, so that ties stay ties.
KERNELS = hnp.arrays("float32", (3, 4), elements=st.integers(-800, 800).map(lambda eighths: eighths / 8))
SCALES = st.sampled_from([2.0**-3, 0.5, 4.0, -1.0, 64.0])


@settings(max_examples=40, deadline=None)
@given(KERNELS, KERNELS, SCALES)
def test_ranking_does_not_depend_on_the_scale_of_the_weights(weights, gradients, scale):
    norms = np.abs(gradients[:, :1])
    for score in (
        criteria.magnitude,
        criteria.neuron,
        lambda w: criteria.taylor(w, gradients),
        lambda w: criteria.wanda(w, norms),
    ):
        before, after = np.ravel(score(weights)), np.ravel(score(np.float32(scale) * weights))
        np.testing.assert_array_equal(np.argsort(before, kind="stable"), np.argsort(after, kind="stable"))


@settings(max_examples=40, deadline=None)
@given(KERNELS, KERNELS, st.permutations(range(4)))
def test_permuted_units_have_permuted_scores(weights, others, order):
    assert others.shape == weights.shape
    for score in (
        lambda w, o: criteria.magnitude(w),
        lambda w, o: criteria.neuron(w),
        criteria.gradient_magnitude,
        criteria.taylor,
        criteria.entropy,
        lambda w, o: criteria.bn_scale(w, o[:1]),
    ):
        permuted = score(weights[:, order], others[:, order])
        np.testing.assert_array_equal(np.asarray(score(weights, others))[:, order], permuted)


def test_flags_are_true_to_the_scores():
    """All weights of a unit score the same exactly where `per_unit` says so, for a kernel of any rank."""
    generator = np.random.default_rng(1)
    weights = generator.normal(size=(2, 3, 5)).astype("float32")
    given = {
        "gradients": generator.normal(size=(2, 3, 5)).astype("float32"),
        "input_norms": generator.uniform(1, 2, (1, 3, 1)).astype("float32"),
        "activations": generator.normal(size=(9, 5)),
        "gamma": generator.normal(size=(1, 1, 5)).astype("float32"),
        "seed": 1,
        "axis": (-1,),
    }
    assert set(given) == set(NEEDS)
    for name, criterion in CRITERIA.items():
        scores = np.asarray(criterion.score(weights, **{need: given[need] for need in criterion.needs}))
        assert scores.shape == weights.shape
        assert criterion.per_unit == (np.ptp(scores, axis=(0, 1)).max() < 1e-7), name
    assert {name for name, criterion in CRITERIA.items() if criterion.comparable} == {
        "magnitude",
        "gradient",
        "taylor",
        "entropy",
        "random",
    }


def test_names():
    assert list(CRITERIA) == ["magnitude", "gradient", "taylor", "random", "entropy", "neuron", "bn_scale", "wanda"]
    for name, criterion in CRITERIA.items():
        assert as_criterion(name) is criterion
        assert criterion.name == name


class Shifted:
    def __call__(self, weights, *, gamma, seed):
        return abs(weights) + gamma + seed


def many(weights, axis, gradients=None, power=2, *args, activations, **others):
    return weights


@pytest.mark.parametrize(
    ("function", "name", "needs"),
    [
        (lambda w: w**2, "<lambda>", ()),
        (np.abs, "absolute", ()),
        (tf.abs, "abs", ()),
        (many, "many", ("axis", "gradients", "activations")),
        (Shifted(), "Shifted", ("gamma", "seed")),
        (functools.partial(criteria.random, seed=3), "partial", ()),
        (functools.partial(criteria.entropy, bins=4), "partial", ("activations", "axis")),
        (Shifted().__call__, "__call__", ("gamma", "seed")),
    ],
    ids=["lambda", "ufunc", "tf", "many", "object", "partial_seed", "partial", "method"],
)
def test_functions_become_criteria(function, name, needs):
    assert as_criterion(function) == Criterion(name, function, needs)


def test_a_criterion_stays_what_it_is():
    criterion = Criterion("own", lambda w, axis: w, ("axis",), per_unit=True)
    assert as_criterion(criterion) is criterion


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("l2", "one of magnitude, gradient, taylor.*'l2'"),
        (["magnitude"], "or a function of the weights"),
        (None, "Received: None"),
        (lambda: 1, r"takes the weights first.*<lambda>\(\)"),
        (lambda weights, batch: 1, r"<lambda>\(weights, batch\)"),
        (lambda weights, *, batch: 1, "functools.partial"),
        (lambda *, weights: 1, "takes the weights first"),
        (lambda gradients: 1, r"<lambda>\(gradients\)"),
        (lambda weights, gradients, /: 1, "by keyword"),
        (Criterion("own", None), "has a function `score`"),
        (Criterion("own", abs, ("hessian",)), "`needs` out of gradients"),
    ],
)
def test_what_is_no_criterion(wrong, message):
    with pytest.raises(InvalidArgumentError, match=message):
        as_criterion(wrong)
