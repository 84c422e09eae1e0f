"""Losses of features against the formulas of the papers in float64 numpy, gradients by central differences."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from differences import slope
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.core.errors import InvalidArgumentError
from tfopt.distillation import feature_losses as fl
from tfopt.distillation.shapes import common_grid


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype("float32")


def huber(error):
    return 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5


def pooled(values, sizes):
    """Adaptive average pooling, one output at a time."""
    out = np.zeros((len(values), *sizes, values.shape[-1]))
    for index in np.ndindex(*sizes):
        windows = [
            slice(math.floor(i * width / size), math.ceil((i + 1) * width / size))
            for i, width, size in zip(index, values.shape[1:-1], sizes, strict=True)
        ]
        axes = tuple(range(1, values.ndim - 1))
        out[(slice(None), *index)] = values[(slice(None), *windows)].mean(axes)
    return out


def on_one_grid(student, teacher):
    sizes = np.minimum(student.shape[1:-1], teacher.shape[1:-1])
    return pooled(student, sizes), pooled(teacher, sizes)


def numpy_matching(student, teacher):
    student, teacher = on_one_grid(student, teacher)
    return ((student - teacher) ** 2).reshape((len(student), -1)).mean(-1)


def numpy_attention(student, teacher, power):
    maps = on_one_grid(*((np.abs(x) ** power).sum(-1, keepdims=True) for x in (student, teacher)))
    student, teacher = (
        x.reshape((len(x), -1)) / np.linalg.norm(x.reshape((len(x), -1)), axis=1)[:, None] for x in maps
    )
    return ((student - teacher) ** 2).sum(-1) / 2


def numpy_distances(features):
    """Potentials of Park et al., equation 6, by pairs."""
    rows = np.asarray(features, "float64").reshape((len(features), -1))
    distances = {(i, j): np.linalg.norm(rows[i] - rows[j]) for i, j in itertools.permutations(range(len(rows)), 2)}
    mean = sum(distances.values()) / len(distances)
    return {pair: distance / mean for pair, distance in distances.items()}


def numpy_relational_distance(student, teacher):
    student, teacher = numpy_distances(student), numpy_distances(teacher)
    loss, count = np.zeros(1 + max(i for i, _ in student)), len(student)
    for (i, j), value in student.items():
        loss[i] += huber(value - teacher[i, j])
    return loss * len(loss) / count


def numpy_cosine(rows, i, j, k):
    """Of the angle at j: Park et al., equation 8."""
    one, other = rows[i] - rows[j], rows[k] - rows[j]
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def numpy_relational_angle(student, teacher):
    student, teacher = (np.asarray(x, "float64").reshape((len(x), -1)) for x in (student, teacher))
    triples = list(itertools.permutations(range(len(student)), 3))
    loss = np.zeros(len(student))
    for i, j, k in triples:
        loss[j] += huber(numpy_cosine(student, i, j, k) - numpy_cosine(teacher, i, j, k))
    return loss * len(loss) / len(triples)


def numpy_similarity(student, teacher):
    grams = []
    for features in (student, teacher):
        rows = np.asarray(features, "float64").reshape((len(features), -1))
        gram = rows @ rows.T
        grams.append(gram / np.sqrt((gram**2).sum(1, keepdims=True)))
    return ((grams[0] - grams[1]) ** 2).sum(1) / len(student)


def numpy_contrastive(student, teacher, temperature):
    student, teacher = (np.asarray(x, "float64") / np.linalg.norm(x, axis=1)[:, None] for x in (student, teacher))
    scores = np.exp(student @ teacher.T / temperature)
    return -np.log(np.diag(scores) / scores.sum(1))


MAPS = normal(5, 4, 2, 3, seed=1), normal(5, 2, 3, 3, seed=2)
WIDER = MAPS[0], normal(5, 2, 3, 8, seed=2)
ROWS = normal(5, 7, seed=3), normal(5, 4, seed=4)

# Name -> loss, oracle, features of student and teacher.
CASES = {
    "matching": (fl.feature_matching, numpy_matching, MAPS),
    "matching rows": (fl.feature_matching, numpy_matching, (ROWS[0], normal(5, 7, seed=5))),
    "matching steps": (fl.feature_matching, numpy_matching, (normal(4, 6, 2), normal(4, 3, 2, seed=1))),
    "matching volumes": (fl.feature_matching, numpy_matching, (normal(3, 4, 3, 2, 2), normal(3, 2, 3, 5, 2, seed=1))),
    "attention": (fl.attention_transfer, lambda s, z: numpy_attention(s, z, 2), WIDER),
    "attention 1": (lambda s, z: fl.attention_transfer(s, z, 1), lambda s, z: numpy_attention(s, z, 1), WIDER),
    "attention 4": (lambda s, z: fl.attention_transfer(s, z, 4.0), lambda s, z: numpy_attention(s, z, 4), WIDER),
    "distance": (fl.relational_distance, numpy_relational_distance, ROWS),
    "distance of maps": (fl.relational_distance, numpy_relational_distance, WIDER),
    "angle": (fl.relational_angle, numpy_relational_angle, ROWS),
    "angle of maps": (fl.relational_angle, numpy_relational_angle, WIDER),
    "similarity": (fl.similarity_preserving, numpy_similarity, ROWS),
    "similarity of maps": (fl.similarity_preserving, numpy_similarity, WIDER),
    "contrastive": (
        lambda s, z: fl.contrastive(s, z, 0.2),
        lambda s, z: numpy_contrastive(s, z, 0.2),
        (ROWS[0], normal(5, 7, seed=5)),
    ),
}
RELATIONAL = [fl.relational_distance, fl.relational_angle, fl.similarity_preserving]


def run(loss, student, teacher):
    """The loss of each sample, and the gradient of the sum."""
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        values = loss(student, teacher)
    return values.numpy(), tape.gradient(values, student).numpy()


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_papers(name):
    loss, oracle, (student, teacher) = CASES[name]
    ours = loss(student, teacher).numpy()
    assert ours.dtype == "float32"
    expected = oracle(student, teacher)
    assert expected.max() > 1e-3
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_by_central_differences(name):
    loss, oracle, (student, teacher) = CASES[name]
    weights = np.array([1.0, -2.0, 0.5, 3.0, 1.5])[: len(student)]
    _, ours = run(lambda s, z: loss(s, z) * weights.astype("float32"), student, teacher)
    expected = slope(lambda s: (oracle(s, teacher) * weights).sum(), student)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_equal_features_lose_nothing(name):
    """But for contrast, which asks for more than equality."""
    loss, _, (student, _) = CASES[name]
    values, slopes = run(loss, student, student)
    if name == "contrastive":
        assert values.min() > 0
        return
    np.testing.assert_allclose(values, np.zeros(len(student)), atol=1e-12)
    np.testing.assert_allclose(slopes, np.zeros_like(student), atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["zeros", "constant", "one sample", "two equal", "huge", "tiny", "far away"])
def test_degenerate_features_stay_finite(name, kind):
    loss, _, (student, teacher) = CASES[name]
    if kind == "huge" and name.startswith("matching"):
        student, teacher = student * 1e15, teacher * 1e15  # its squares are the loss
    student = {
        "zeros": lambda x: np.zeros_like(x),
        "constant": lambda x: np.full_like(x, 3.0),
        "one sample": lambda x: x[:1],
        "two equal": lambda x: np.concatenate([x[:-1], x[:1]]),
        "huge": lambda x: x if name.startswith("matching") else x * 1e30,
        "tiny": lambda x: x * 1e-30,
        "far away": lambda x: x + 1e6,
    }[kind](student)
    values, slopes = run(loss, student, teacher[: len(student)])
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert np.isfinite(slopes).all()


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("matching")])
@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_the_scale_of_the_features_does_not_matter(name, factor):
    loss, _, (student, teacher) = CASES[name]
    scaled = (student * np.float32(factor)).astype("float32")
    (values, slopes), (expected, expected_slopes) = run(loss, scaled, teacher), run(loss, student, teacher)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)
    # A function of degree 0 has a gradient that falls with the scale.
    np.testing.assert_allclose(slopes.astype("float64") * factor, expected_slopes, rtol=1e-3, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.floats(-50, 50), st.floats(0.01, 100))
def test_relations_are_kept_by_moves_and_rotations(seed, move, scale):
    generator = np.random.default_rng(seed)
    student = generator.normal(size=(6, 4)).astype("float32")
    rotation = np.linalg.qr(generator.normal(size=(4, 4)))[0]
    moved = (scale * student @ rotation + move).astype("float32")
    if np.ptp(moved) < 1e-3 * np.abs(moved).max():
        return  # nothing of the relations is left in float32
    for loss in (fl.relational_distance, fl.relational_angle):
        np.testing.assert_allclose(loss(moved, student), np.zeros(6), atol=1e-4)


@pytest.mark.parametrize(
    "loss",
    [fl.feature_matching, lambda s, z, m=None: fl.attention_transfer(s, z, mask=m), *RELATIONAL],
    ids=["matching", "attention", "distance", "angle", "similarity"],
)
def test_padded_steps_do_not_count(loss):
    """Whatever lies at the last steps, the loss is that of the steps before; of another length for each sample too."""
    student, teacher = normal(5, 4, 3, seed=1), normal(5, 4, 3, seed=2)
    expected = loss(student[:, :2], teacher[:, :2])
    padded = [
        np.concatenate([x[:, :2], np.full((5, 2, 3), fill, "float32")], 1)
        for x, fill in ((student, 7), (teacher, np.nan))
    ]
    same = np.tile([True, True, False, False], (5, 1))
    np.testing.assert_allclose(loss(*padded, same), expected, rtol=1e-4, atol=1e-6)
    lengths = np.arange(4) < np.array([[4], [1], [2], [3], [4]])
    other = [np.where(lengths[..., None], x, 9.0) for x in (student, teacher)]
    np.testing.assert_allclose(loss(*other, lengths), loss(student, teacher, lengths), rtol=1e-6)
    with pytest.raises(
        InvalidArgumentError, match=r"same steps.*student \(5, 4, 3\), teacher \(5, 2, 3\), mask \(5, 4\)"
    ):
        loss(student, teacher[:, :2], same)


@pytest.mark.parametrize("loss", RELATIONAL)
def test_the_order_of_the_batch_does_not_matter(loss):
    order = [3, 1, 4, 0, 2]
    student, teacher = ROWS
    np.testing.assert_allclose(loss(student[order], teacher[order]), loss(student, teacher).numpy()[order], rtol=1e-4)


@pytest.mark.parametrize(
    ("loss", "smallest"), [(fl.relational_distance, 2), (fl.relational_angle, 3), (fl.similarity_preserving, 2)]
)
def test_batches_too_small_for_relations(loss, smallest):
    student, teacher = (x[: smallest - 1] for x in ROWS)
    np.testing.assert_allclose(loss(student, teacher), np.zeros(smallest - 1), atol=1e-12)


def test_distances_by_hand():
    """0, 1, 3 on a line against 0, 1, 2: distances 1, 3, 2 over 2 and 1, 2, 1 over 4/3."""
    loss = fl.relational_distance(np.array([[0.0], [1.0], [3.0]]), np.array([[0.0], [1.0], [2.0]])).numpy()
    errors = {(0, 1): 0.5 - 0.75, (0, 2): 1.5 - 1.5, (1, 2): 1 - 0.75}
    by_hand = [(errors[0, 1] ** 2 + 0) / 4, (errors[0, 1] ** 2 + errors[1, 2] ** 2) / 4, errors[1, 2] ** 2 / 4]
    np.testing.assert_allclose(loss, by_hand, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_samples_that_coincide_have_no_distance_and_no_direction(noise):
    """Inner products in float32 would give copies a distance of rounding, and a gradient of a thousand."""
    student = np.repeat(normal(20, 200, seed=7), 2, axis=0) + noise * normal(40, 200, seed=8)
    distances = fl._distances(tf.constant(student)).numpy()
    np.testing.assert_array_equal(distances[::2, 1::2].diagonal(), np.zeros(20))
    assert (distances > 0).sum() == 40 * 38
    _, slopes = run(fl.relational_angle, student, normal(40, 4))
    assert 0 < np.abs(slopes).max() < 0.1


def test_angles_at_samples_that_coincide_have_a_cosine_of_0():
    """The first two coincide in the student; in the teacher, the three have a right angle at the second."""
    student, teacher = np.array([[0.0], [0.0], [2.0]]), np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    angles = 0 - 0.5**0.5, 0 - 0.0, 1 - 0.5**0.5
    np.testing.assert_allclose(fl.relational_angle(student, teacher), [huber(x) for x in angles], atol=1e-6)


def test_embeddings_that_are_alike_tell_nothing_apart():
    alike = np.ones((6, 3), "float32")
    np.testing.assert_allclose(fl.contrastive(alike, alike), np.full(6, np.log(6)), rtol=1e-6)
    np.testing.assert_allclose(fl.contrastive(np.eye(6), np.eye(6), 0.01), np.zeros(6), atol=1e-6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((8,), (4,)),
        ((7,), (3,)),
        ((5,), (2,)),
        ((6, 9), (6, 3)),
        ((4, 7), (5, 6)),
        ((1, 8), (3, 1)),
        ((2, 5, 7), (3, 5, 4)),
    ],
)
def test_grids_meet_at_the_smaller(one, other):
    student, teacher = normal(2, *one, 3, seed=1), normal(2, *other, 2, seed=2)
    ours, expected = common_grid(student, teacher), on_one_grid(student, teacher)
    for values, wanted in zip(ours, expected, strict=True):
        assert values.shape == wanted.shape
        np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_grids_of_unknown_size():
    """Sizes that are known only when the graph runs, some equal and some not."""
    unknown = tf.TensorSpec((None, None, None, 3))
    traced = tf.function(common_grid, input_signature=[unknown, unknown])
    for one, other in [((6, 4), (4, 7)), ((5, 5), (5, 5)), ((8, 2), (4, 1))]:
        student, teacher = normal(2, *one, 3, seed=1), normal(2, *other, 3, seed=2)
        for values, wanted in zip(traced(student, teacher), on_one_grid(student, teacher), strict=True):
            np.testing.assert_allclose(values, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "shapes", "message"),
    [
        (
            fl.feature_matching,
            ((4, 8, 8, 3), (4, 8, 8, 5)),
            r"student \(4, 8, 8, 3\), teacher \(4, 8, 8, 5\)\. Use",
        ),
        (fl.feature_matching, ((4, 8, 8, 3), (4, 3)), r"student \(4, 8, 8, 3\), teacher \(4, 3\)\. Name layers"),
        (fl.feature_matching, ((4,), (4,)), r"student \(4,\), teacher \(4,\)"),
        (
            fl.attention_transfer,
            ((4, 8), (4, 8)),
            r"\(batch, positions, channels\).*student \(4, 8\), teacher \(4, 8\)",
        ),
        (fl.attention_transfer, ((4, 8, 8, 3), (4, 64, 3)), r"student \(4, 8, 8, 3\), teacher \(4, 64, 3\)"),
        (fl.contrastive, ((4, 8), (4, 9)), r"student \(4, 8\), teacher \(4, 9\)\. ContrastiveRepresentation"),
    ],
)
def test_shapes_that_do_not_go_together(loss, shapes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        loss(np.zeros(shapes[0]), np.zeros(shapes[1]))
