"""Losses of outputs against the formulas of the papers in float64 numpy, and their gradients by central differences."""

import numpy as np
import pytest
import tensorflow as tf
from differences import slope
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfopt.core.errors import InvalidArgumentError
from tfopt.distillation import losses
from tfopt.distillation.shapes import sample_mean


def normal(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype("float32")


def log_probabilities(logits, temperature):
    scaled = np.asarray(logits, "float64") / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


def kl(log_p, log_q):
    """Sum of p log(p / q), from the logarithms."""
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def inner_mean(values):
    return values.reshape((len(values), -1)).mean(-1)


def numpy_soft(student, teacher, temperature):
    return inner_mean(
        temperature**2 * kl(log_probabilities(teacher, temperature), log_probabilities(student, temperature))
    )


def numpy_decoupled(student, teacher, labels, temperature, alpha, beta):
    """Sample by sample, with the target taken out of the arrays."""
    loss = np.zeros(labels.shape)
    for index in np.ndindex(labels.shape):
        pairs, rests = [], []
        for logits in (teacher[index], student[index]):
            log_p = log_probabilities(logits, temperature)
            rest = np.delete(log_p, labels[index])
            of_rest = np.logaddexp.reduce(rest)
            pairs.append(np.array([log_p[labels[index]], of_rest]))
            rests.append(rest - of_rest)
        loss[index] = alpha * kl(*pairs) + beta * kl(*rests)
    return inner_mean(temperature**2 * loss)


def numpy_binary(student, teacher, temperature):
    student, teacher = (np.asarray(x, "float64") / temperature for x in (student, teacher))
    log_p, log_not_p, log_q, log_not_q = (-np.logaddexp(0, -x) for x in (teacher, -teacher, student, -student))
    loss = np.exp(log_p) * (log_p - log_q) + np.exp(log_not_p) * (log_not_p - log_not_q)
    return inner_mean(temperature**2 * loss)


def numpy_regression(student, teacher, kind):
    error = np.abs(np.asarray(student, "float64") - teacher)
    return inner_mean({"mse": error**2, "mae": error, "huber": np.where(error < 1, error**2 / 2, error - 0.5)}[kind])


def numpy_bounded(student, teacher, labels, margin):
    own, bound = (inner_mean((np.asarray(x, "float64") - labels) ** 2) for x in (student, teacher))
    return np.where(own + margin > bound, own, 0)


LABELS = np.array([[0, 5], [2, 2], [4, 1], [5, 3]])
OUTPUTS = normal(4, 2, 6, seed=1), normal(4, 2, 6, seed=2)

# Name -> the loss and its oracle, functions of student and teacher (4, 2, 6).
CASES = {
    **{
        f"soft {t:g}": (
            lambda s, z, t=t: losses.soft_targets(s, z, t),
            lambda s, z, t=t: numpy_soft(s, z, t),
        )
        for t in (0.5, 1.0, 4.0, 20.0, 1000.0)
    },
    **{
        f"decoupled {t:g}": (
            lambda s, z, t=t: losses.decoupled_targets(s, z, LABELS, t, 0.5, 3.0),
            lambda s, z, t=t: numpy_decoupled(s, z, LABELS, t, 0.5, 3.0),
        )
        for t in (1.0, 4.0, 100.0)
    },
    **{
        f"binary {t:g}": (
            lambda s, z, t=t: losses.binary_targets(s, z, t),
            lambda s, z, t=t: numpy_binary(s, z, t),
        )
        for t in (1.0, 3.0, 100.0)
    },
    **{
        kind: (
            lambda s, z, k=kind: losses.regression_targets(s, z, k),
            lambda s, z, k=kind: numpy_regression(s, z, k),
        )
        for kind in losses.REGRESSIONS
    },
    "bounded": (
        lambda s, z: losses.bounded_targets(s, z, normal(4, 2, 6, seed=3), 0.25),
        lambda s, z: numpy_bounded(s, z, normal(4, 2, 6, seed=3), 0.25),
    ),
}


def gradient(loss, student, *rest):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        total = tf.reduce_sum(loss(student, *rest))
    return tape.gradient(total, student).numpy()


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_papers(name):
    loss, oracle = CASES[name]
    ours = loss(*OUTPUTS).numpy()
    assert ours.shape == (4,)
    assert ours.dtype == "float32"
    np.testing.assert_allclose(ours, oracle(*OUTPUTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_by_central_differences(name):
    loss, oracle = CASES[name]
    student, teacher = OUTPUTS
    weights = np.array([1.0, -2.0, 0.5, 3.0])
    ours = gradient(lambda s: loss(s, teacher) * weights.astype("float32"), student)
    expected = slope(lambda s: (oracle(s, teacher) * weights).sum(), student)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["soft 4", "binary 3", *losses.REGRESSIONS])
def test_the_batch_is_not_mixed(name):
    """Each sample has the loss that it has alone, so that sample weights mean something."""
    loss, _ = CASES[name]
    alone = [loss(OUTPUTS[0][i : i + 1], OUTPUTS[1][i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(loss(*OUTPUTS), alone, rtol=1e-6)


WITH_TEMPERATURE = {
    "soft": lambda s, z, labels, t: losses.soft_targets(s, z, t),
    "decoupled": lambda s, z, labels, t: losses.decoupled_targets(s, z, labels, t),
    "binary": lambda s, z, labels, t: losses.binary_targets(s, z, t),
}


@tf.function
def losses_and_gradients(student, teacher, labels, temperature):
    """All losses of `WITH_TEMPERATURE`, and the gradient of each sum."""
    found = []
    for loss in WITH_TEMPERATURE.values():
        with tf.GradientTape() as tape:
            tape.watch(student)
            values = loss(student, teacher, labels, temperature)
        found.append((values, tape.gradient(values, student)))
    return found


def run(student, teacher, labels, temperature):
    arguments = tf.constant(student), tf.constant(teacher), tf.constant(labels, tf.int32), tf.constant(temperature)
    return [(values.numpy(), slopes.numpy()) for values, slopes in losses_and_gradients(*arguments)]


FINITE = st.floats(-20, 20, width=32)
EXTREME = st.one_of(FINITE, st.sampled_from([-1e4, 1e4, -1e30, -np.inf, np.inf, -3e38]))
LOGITS = hnp.arrays("float32", (6, 5), elements=EXTREME)
LABELLED = hnp.arrays("int32", (6,), elements=st.integers(0, 4))
TEMPERATURES = st.sampled_from([0.1, 1.0, 4.0, 100.0, 1e4])


@settings(max_examples=60, deadline=None)
@given(LOGITS, LABELLED, TEMPERATURES)
def test_equal_logits_lose_nothing(logits, labels, temperature):
    for values, slopes in run(logits, logits, labels, temperature):
        np.testing.assert_array_equal(values, np.zeros(6))
        np.testing.assert_array_equal(slopes, np.zeros((6, 5)))


@settings(max_examples=100, deadline=None)
@given(LOGITS, LOGITS, LABELLED, TEMPERATURES)
def test_extreme_logits_stay_finite(student, teacher, labels, temperature):
    """Losses of at least 0 but for rounding, and gradients no larger than T (q - p) with the weights 1 and 8."""
    for values, slopes in run(student, teacher, labels, temperature):
        assert np.isfinite(values).all()
        assert (values >= -1e-5 * temperature**2).all()
        assert np.isfinite(slopes).all()
        assert np.abs(slopes).max() <= 9 * temperature * 1.001


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays("float32", (2, 6, 5), elements=st.integers(-80, 80).map(lambda n: n / 8)),
    LABELLED,
    st.integers(-1000, 1000),
    st.integers(-1000, 1000),
    st.sampled_from([1.0, 2.0, 8.0, 64.0]),
)
def test_a_constant_added_to_all_logits_changes_nothing(pair, labels, to_student, to_teacher, temperature):
    """Eighths and whole numbers over powers of two: no logit is rounded."""
    student, teacher = pair
    before = run(student, teacher, labels, temperature)
    after = run(student + to_student, teacher + to_teacher, labels, temperature)
    for name, (values, slopes), (moved, moved_slopes) in zip(WITH_TEMPERATURE, before, after, strict=True):
        if name == "binary":
            continue  # has no such freedom
        np.testing.assert_allclose(moved, values, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(moved_slopes, slopes, rtol=1e-5, atol=1e-5)


def test_hot_soft_targets_match_logits():
    """Hinton et al., section 2.1: with T the loss nears half the mean squared difference of the centred logits."""
    student, teacher = normal(8, 10, seed=5).astype("float64"), normal(8, 10, seed=6).astype("float64")
    centred = (student - student.mean(-1, keepdims=True)) - (teacher - teacher.mean(-1, keepdims=True))
    limit, limit_slope = (centred**2).sum(-1) / 20, centred / 10
    cube = (np.abs(student).max() + np.abs(teacher).max()) ** 3  # bounds the next term of the series, over T
    last = np.inf
    for temperature in (10.0, 100.0, 1000.0, 10000.0):
        error = np.abs(losses.soft_targets(student, teacher, temperature) - limit).max()
        slope_error = np.abs(gradient(losses.soft_targets, normal(8, 10, seed=5), teacher, temperature) - limit_slope)
        assert error <= cube / temperature
        assert error <= 0.15 * last
        assert slope_error.max() <= cube / temperature
        last = error
    assert last < 2e-3


def test_the_factor_is_the_squared_temperature():
    """By hand: at T = 2 the odds 9 to 1 become 3 to 1."""
    student, teacher = np.zeros((1, 2), "float32"), np.log(np.array([[9.0, 1.0]], "float32"))
    by_hand = 4 * (0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5))
    np.testing.assert_allclose(losses.soft_targets(student, teacher, 2.0), [by_hand], rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_log_probabilities_are_logits_too(temperature):
    student, teacher = (log_probabilities(logits, 1.0).astype("float32") for logits in OUTPUTS)
    np.testing.assert_allclose(
        losses.soft_targets(student, teacher, temperature), numpy_soft(*OUTPUTS, temperature), rtol=1e-5, atol=1e-5
    )


def test_a_teacher_that_is_sure():
    """Probabilities of exactly 0 and 1: the divergence is the student's cross-entropy."""
    with np.errstate(divide="ignore"):
        teacher = np.log(np.array([[0.0, 1.0, 0.0]], "float32"))
    student = normal(1, 3)
    expected = -log_probabilities(student, 1.0)[:, 1]
    np.testing.assert_allclose(losses.soft_targets(student, teacher, 1.0), expected, rtol=1e-5)
    decoupled = losses.decoupled_targets(student, teacher, np.array([1]), 1.0, other_weight=0.0)
    np.testing.assert_allclose(decoupled, expected, rtol=1e-5)
    # Among the other classes it knows no difference, at any temperature.
    rest = log_probabilities(student[:, [0, 2]], 0.25)
    of_rest = losses.decoupled_targets(student, teacher, np.array([1]), 0.25, target_weight=0.0, other_weight=1.0)
    np.testing.assert_allclose(of_rest, kl(np.log([0.5, 0.5]), rest) / 16, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_tckd_and_nckd(temperature):
    """Zhao et al., section 3.1: KD = TCKD + (1 - p) NCKD."""
    student, teacher, labels = normal(9, 7, seed=3), normal(9, 7, seed=4), np.arange(9) % 7
    tckd = losses.decoupled_targets(student, teacher, labels, temperature, 1.0, 0.0).numpy()
    nckd = losses.decoupled_targets(student, teacher, labels, temperature, 0.0, 1.0).numpy()
    p = np.exp(log_probabilities(teacher, temperature))[np.arange(9), labels]
    np.testing.assert_allclose(
        losses.soft_targets(student, teacher, temperature), tckd + (1 - p) * nckd, rtol=1e-5, atol=1e-5
    )
    assert tckd.min() > 0
    assert nckd.min() > 0


def test_with_two_classes_nothing_is_left_to_the_others():
    student, teacher, labels = normal(5, 2, seed=3), normal(5, 2, seed=4), np.array([0, 1, 1, 0, 1])
    np.testing.assert_allclose(
        losses.decoupled_targets(student, teacher, labels, 2.0, 1.0, 100.0),
        losses.soft_targets(student, teacher, 2.0),
        rtol=1e-5,
    )


def test_forms_of_labels():
    expected = losses.decoupled_targets(*OUTPUTS, LABELS, 2.0)
    smoothed = 0.9 * np.eye(6, dtype="float32")[LABELS] + 0.1 / 6
    for labels in (LABELS[..., None], LABELS.astype("float32"), LABELS.astype("uint8"), np.eye(6)[LABELS], smoothed):
        np.testing.assert_array_equal(losses.decoupled_targets(*OUTPUTS, labels, 2.0), expected)


@pytest.mark.parametrize("wrong", [-1, 6])
def test_a_label_out_of_range_is_seen(wrong):
    labels = np.array([[0, 1], [wrong, 2], [3, 4], [5, 0]])
    loss = losses.decoupled_targets(*OUTPUTS, labels, 2.0).numpy()
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False, False])


@pytest.mark.parametrize("shape", [(4,), (4, 2, 5), (4, 2, 6, 1)])
def test_labels_of_another_shape(shape):
    with pytest.raises(InvalidArgumentError, match=r"class numbers.*labels \(.*\) for scores \(4, 2, 6\)"):
        losses.decoupled_targets(*OUTPUTS, np.zeros(shape, int), 2.0)


def test_one_sigmoid_is_a_softmax_of_two():
    student, teacher = normal(6, 1, seed=1), normal(6, 1, seed=2)
    pairs = [np.concatenate([logits, np.zeros_like(logits)], -1) for logits in (student, teacher)]
    np.testing.assert_allclose(
        losses.binary_targets(student, teacher, 3.0), losses.soft_targets(*pairs, 3.0), rtol=1e-5
    )
    np.testing.assert_array_equal(
        losses.binary_targets(student[:, 0], teacher[:, 0], 3.0), losses.binary_targets(student, teacher, 3.0)
    )


def test_the_bound_is_the_teachers_error():
    labels = np.zeros((3, 1), "float32")
    student, teacher = np.array([[1.0], [2.0], [3.0]], "float32"), np.full((3, 1), 2.0, "float32")
    np.testing.assert_array_equal(losses.bounded_targets(student, teacher, labels), [0, 0, 9])
    np.testing.assert_array_equal(losses.bounded_targets(student, teacher, labels, 1.0), [0, 4, 9])
    np.testing.assert_array_equal(losses.bounded_targets(student, teacher, labels[:, 0], 3.5), [1, 4, 9])


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, z, **k: losses.soft_targets(s, z, 2.0, **k),
        lambda s, z, **k: losses.decoupled_targets(s, z, LABELS[: len(s)], 2.0, **k),
        lambda s, z, **k: losses.binary_targets(s, z, 2.0, **k),
        lambda s, z, **k: losses.regression_targets(s, z, "mae", **k),
        lambda s, z, **k: losses.bounded_targets(s, z, np.ones_like(z), 1e9, **k),
    ],
    ids=["soft", "decoupled", "binary", "mae", "bounded"],
)
def test_masked_positions_do_not_count(loss):
    mask = np.array([[True, True], [True, False], [False, False]])
    student, teacher = (x[:3].copy() for x in OUTPUTS)
    for outputs in (student, teacher):
        outputs[1, 1] = outputs[1, 0]  # the label is the same, so the mean of both is the loss of the first
    expected = loss(student, teacher).numpy()
    student[~mask] = np.nan
    np.testing.assert_allclose(loss(student, teacher, mask=mask), [*expected[:2], 0], rtol=1e-6)


def test_means_over_positions():
    values = np.arange(12.0).reshape((2, 3, 2))
    mask = np.array([[True, False, True], [False, True, False]])
    np.testing.assert_array_equal(sample_mean(values), [2.5, 8.5])
    np.testing.assert_array_equal(sample_mean(values, mask), [2.5, 8.5])
    np.testing.assert_array_equal(sample_mean(values, np.roll(mask, 1, 1)), [1.5, 10.5])
    np.testing.assert_array_equal(sample_mean(values[:, 0, 0]), [0, 6])
    with pytest.raises(InvalidArgumentError, match=r"mask \(2, 3\), positions \(2,\)"):
        sample_mean(values[:, 0, 0], mask)


@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_computed_in_float32(name):
    """Squares of 300 are beyond float16."""
    student, teacher = (np.float16(100 * x) for x in OUTPUTS)
    loss, oracle = CASES[name]
    ours = loss(student, teacher).numpy()
    assert ours.dtype == "float32"
    np.testing.assert_allclose(ours, oracle(student.astype("float64"), teacher.astype("float64")), rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "shapes", "message"),
    [
        (losses.soft_targets, ((4, 10), (4, 100)), r"student \(4, 10\), teacher \(4, 100\)\. .*FeatureMatching"),
        (losses.soft_targets, ((4, 10), (4, 3, 10)), r"student \(4, 10\), teacher \(4, 3, 10\)"),
        (losses.soft_targets, ((4, 1), (4, 1)), r"student \(4, 1\), teacher \(4, 1\)\. .*BinaryTargets"),
        (losses.soft_targets, ((4,), (4,)), r"student \(4,\), teacher \(4,\)\. .*BinaryTargets"),
        (losses.binary_targets, ((4, 1), (4, 5)), r"student \(4, 1\), teacher \(4, 5\)\. Give both as many labels"),
        (losses.binary_targets, ((4,), (4, 1)), r"student \(4,\), teacher \(4, 1\)"),
    ],
)
def test_shapes_that_do_not_go_together(loss, shapes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        loss(np.zeros(shapes[0]), np.zeros(shapes[1]), 2.0)


def test_regressions_do_not_broadcast():
    with pytest.raises(InvalidArgumentError, match=r"student \(4, 1\), teacher \(4, 3\)"):
        losses.regression_targets(np.zeros((4, 1)), np.zeros((4, 3)))
    with pytest.raises(InvalidArgumentError, match=r"labels \(4, 3\), outputs \(4, 1\)"):
        losses.bounded_targets(np.zeros((4, 1)), np.zeros((4, 1)), np.zeros((4, 3)))
