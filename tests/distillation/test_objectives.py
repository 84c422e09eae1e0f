"""The losses as Keras layers: arguments, saving, training of projections, graphs, XLA, precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers as kl

import tfopt
from tfopt import distillation as td
from tfopt.core.errors import InvalidArgumentError
from tfopt.distillation import feature_losses, losses

# Class -> arguments that differ from their defaults.
OF_OUTPUTS = {
    td.SoftTargets: {"temperature": 3.0},
    td.DecoupledTargets: {"temperature": 3.0, "target_weight": 0.5, "other_weight": 2.0},
    td.BinaryTargets: {"temperature": 3.0},
    td.RegressionTargets: {"kind": "huber"},
    td.BoundedTargets: {"margin": 0.25},
}
OF_FEATURES = {
    td.FeatureMatching: {},
    td.AttentionTransfer: {"power": 4.0},
    td.RelationalDistance: {},
    td.RelationalAngle: {},
    td.SimilarityPreserving: {},
    td.ContrastiveRepresentation: {"dimensions": 5, "temperature": 0.5},
}
ALL = {**OF_OUTPUTS, **OF_FEATURES}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype("float32")


def example(cls):
    """A loss with the arguments of the table, and what it is called on: student, teacher, labels or None."""
    loss = cls(**ALL[cls])
    if cls in OF_FEATURES:
        return loss, (normal(4, 6, 6, 3), normal(4, 3, 2, 5, seed=1)), None
    labels = {
        td.DecoupledTargets: np.array([[0, 1], [2, 3], [4, 5], [0, 2]]),
        td.BoundedTargets: normal(4, 2, 6, seed=2),
    }
    return loss, (normal(4, 2, 6), normal(4, 2, 6, seed=1)), labels.get(cls)


def call(loss, values, labels):
    return loss(*values) if labels is None else loss(*values, labels=labels)


def test_layers_give_what_the_functions_give():
    student, teacher = normal(4, 6), normal(4, 6, seed=1)
    labels = np.array([0, 3, 5, 5])
    for ours, expected in (
        (td.SoftTargets(3.0)(student, teacher), losses.soft_targets(student, teacher, 3.0)),
        (
            td.DecoupledTargets(3.0, 0.5, 2.0)(student, teacher, labels=labels),
            losses.decoupled_targets(student, teacher, labels, 3.0, 0.5, 2.0),
        ),
        (td.BinaryTargets(3.0)(student, teacher), losses.binary_targets(student, teacher, 3.0)),
        (td.RegressionTargets("huber")(student, teacher), losses.regression_targets(student, teacher, "huber")),
        (
            td.BoundedTargets(0.25)(student, teacher, labels=student * 2),
            losses.bounded_targets(student, teacher, student * 2, 0.25),
        ),
        (td.FeatureMatching()(student, teacher), feature_losses.feature_matching(student, teacher)),
        (
            td.AttentionTransfer(4.0)(student[..., None], teacher[..., None]),
            feature_losses.attention_transfer(student[..., None], teacher[..., None], 4.0),
        ),
        (td.RelationalDistance()(student, teacher), feature_losses.relational_distance(student, teacher)),
        (td.RelationalAngle()(student, teacher), feature_losses.relational_angle(student, teacher)),
        (td.SimilarityPreserving()(student, teacher), feature_losses.similarity_preserving(student, teacher)),
    ):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("cls", ALL)
def test_graphs_xla_and_unknown_batches(cls):
    loss, values, labels = example(cls)
    expected = call(loss, values, labels).numpy()
    assert expected.shape == (4,)
    assert expected.max() > 1e-4
    signature = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in (*values, *([] if labels is None else [labels]))]
    for jit in (False, True):

        @tf.function(input_signature=signature, jit_compile=jit)
        def step(student, teacher, labels=None):
            with tf.GradientTape() as tape:
                tape.watch(student)
                found = call(loss, (student, teacher), labels)
            return found, tape.gradient(found, student)

        arguments = [tf.constant(x) for x in (*values, *([] if labels is None else [labels]))]
        ours, slopes = step(*arguments)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
        assert np.isfinite(slopes).all()
        assert np.abs(slopes).max() > 1e-5
        if not jit:
            first, _ = step(*(x[:1] for x in arguments))
            assert first.shape == (1,)


@pytest.mark.parametrize("cls", ALL)
def test_precision_is_float32_under_any_policy(cls):
    loss, values, labels = example(cls)
    half = [np.float16(x) for x in values]
    expected = call(loss, [x.astype("float32") for x in half], labels).numpy()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        mixed = cls(**ALL[cls])
        call(mixed, half, labels)
        mixed.set_weights(loss.get_weights())
        ours = call(mixed, half, labels)
    finally:
        keras.config.set_dtype_policy(before)
    assert ours.dtype == tf.float32
    assert {weight.dtype for weight in mixed.weights} <= {"float32"}
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("cls", ALL)
def test_configurations_come_back(cls):
    place = {"output": "scores"} if cls in OF_OUTPUTS else {"student_layer": "a/b", "teacher_layer": "c"}
    loss = cls(weight=0.5, name="mine", **place, **ALL[cls])
    same = keras.layers.deserialize(keras.layers.serialize(loss))
    assert type(same) is cls
    assert same.get_config() == loss.get_config()
    assert {**same.get_config(), **ALL[cls], **place, "weight": 0.5, "name": "mine"} == loss.get_config()
    assert loss.on == ("outputs" if cls in OF_OUTPUTS else "features")
    values = (td.RegressionTargets, td.BoundedTargets)
    assert loss.compares == (None if loss.on == "features" else "values" if cls in values else "logits")
    assert keras.saving.get_registered_name(cls) == f"tfopt>{cls.__name__}"


@pytest.mark.parametrize("cls", ALL)
def test_layers_are_saved_with_their_weights(cls, tmp_path):
    loss, values, labels = example(cls)
    arrays = [*values, *([] if labels is None else [labels])]
    inputs = [keras.Input(x.shape[1:], dtype=str(x.dtype)) for x in arrays]
    model = keras.Model(inputs, call(loss, inputs[:2], inputs[2] if labels is not None else None))
    assert model.output.shape == (None,)
    model.save(tmp_path / "loss.keras")
    again = keras.models.load_model(tmp_path / "loss.keras")
    assert len(loss.weights) == {td.FeatureMatching: 2, td.ContrastiveRepresentation: 4}.get(cls, 0)
    np.testing.assert_array_equal(zoo.called(again, arrays), zoo.called(model, arrays))


@pytest.mark.parametrize(
    ("student", "teacher", "projection", "kernel"),
    [
        ((8,), (8,), None, None),
        ((8,), (5,), kl.Dense, (8, 5)),
        ((6, 8), (3, 5), kl.Conv1D, (1, 8, 5)),
        ((6, 6, 8), (3, 3, 8), None, None),
        ((6, 6, 8), (3, 3, 5), kl.Conv2D, (1, 1, 8, 5)),
        ((4, 4, 4, 2), (2, 3, 4, 3), kl.Conv3D, (1, 1, 1, 2, 3)),
        ((2, 2, 2, 2, 2), (2, 2, 2, 2, 3), kl.Dense, (2, 3)),
    ],
)
def test_projections(student, teacher, projection, kernel):
    loss = td.FeatureMatching()
    values = normal(3, *student), normal(3, *teacher, seed=1)
    found = loss(*values)
    if projection is None:
        assert loss.projection is None
        np.testing.assert_array_equal(found, feature_losses.feature_matching(*values))
        return
    assert type(loss.projection) is projection
    assert loss.projection.kernel.shape == kernel
    matrix, bias = loss.projection.kernel.numpy().reshape(kernel[-2:]), loss.projection.bias
    np.testing.assert_allclose(found, feature_losses.feature_matching(values[0] @ matrix + bias, values[1]), rtol=1e-4)


@pytest.mark.parametrize(("cls", "count"), [(td.FeatureMatching, 2), (td.ContrastiveRepresentation, 4)])
def test_weights_are_made_by_build(cls, count):
    """Before the first call, which may be inside a graph; batch and grid may be unknown."""
    loss = cls()
    loss.build((None, None, None, 3), (None, None, None, 5))
    assert len(loss.trainable_variables) == count


def test_a_projection_learns_the_teachers_features():
    """Features that are a linear map of the student's are matched in the end."""
    student = normal(32, 4, 4, 6)
    teacher = student @ normal(6, 9, seed=1) + 1.0
    loss = td.FeatureMatching()
    optimizer = keras.optimizers.Adam(0.05)
    before = float(tf.reduce_mean(loss(student, teacher)))
    optimizer.build(loss.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            mean = tf.reduce_mean(loss(student, teacher))
        optimizer.apply(tape.gradient(mean, loss.trainable_variables))
        return mean

    for _ in range(300):
        after = float(step())
    assert before > 2
    assert after < 1e-3


def test_padded_steps_do_not_count():
    """The mask that Keras hands on with a tensor, as an Embedding makes it."""
    numbers = np.array([[3, 1, 0, 0], [2, 2, 2, 2]])
    inputs = keras.Input((4,), dtype="int32")
    student = keras.Model(inputs, kl.Dense(5)(kl.Embedding(4, 3, mask_zero=True)(inputs)))
    scores, teacher = student(numbers), normal(2, 4, 5)
    loss = td.SoftTargets(2.0)(scores, teacher)
    assert not hasattr(loss, "_keras_mask")
    expected = losses.soft_targets(scores[:, :2], teacher[:, :2], 2.0)[0], losses.soft_targets(scores, teacher, 2.0)[1]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("cls", ALL)
def test_every_loss_heeds_the_mask(cls):
    """Other values at padded steps change nothing, with widths that differ where they may."""
    _, _, labels = example(cls)
    student, teacher = normal(4, 2, 6), normal(4, 2, 6 if cls in OF_OUTPUTS else 5, seed=1)
    mask = np.array([[True, True], [True, False], [True, False], [True, True]])
    found = []
    for fill in (0.0, 50.0):
        padded = [np.where(mask[..., None], x, np.float32(fill)) for x in (student, teacher)]
        scores = tf.constant(padded[0])
        scores._keras_mask = tf.constant(mask)
        keras.utils.set_random_seed(2)
        found.append(call(cls(**ALL[cls]), (scores, padded[1]), labels))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.parametrize("cls", ALL)
def test_the_weight_is_not_applied(cls):
    _, values, labels = example(cls)
    keras.utils.set_random_seed(1)
    once = call(cls(**ALL[cls]), values, labels)
    keras.utils.set_random_seed(1)
    np.testing.assert_array_equal(call(cls(weight=7.0, **ALL[cls]), values, labels), once)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: td.SoftTargets(0.0), r"`temperature` must be a finite number above 0\. Received: 0\.0"),
        (lambda: td.SoftTargets(float("inf")), r"`temperature`.*inf"),
        (lambda: td.BinaryTargets("4"), r"`temperature`.*'4'"),
        (lambda: td.SoftTargets(True), r"`temperature`.*True"),
        (lambda: td.SoftTargets(weight=-1), r"`weight` must be a finite number of at least 0\. Received: -1"),
        (lambda: td.DecoupledTargets(other_weight=float("nan")), r"`other_weight`.*nan"),
        (lambda: td.DecoupledTargets(target_weight=-0.5), r"`target_weight`.*-0\.5"),
        (lambda: td.RegressionTargets("l2"), r"`kind` must be one of 'mse', 'mae', 'huber'\. Received: 'l2'"),
        (lambda: td.BoundedTargets(-1.0), r"`margin`"),
        (lambda: td.AttentionTransfer(0.5), r"`power` must be a finite number of at least 1"),
        (lambda: td.ContrastiveRepresentation(dimensions=0), r"`dimensions` must be a whole number of at least 1"),
        (lambda: td.ContrastiveRepresentation(dimensions=2.5), r"`dimensions` must be a whole number of at least 1"),
        (
            lambda: td.SoftTargets(student_layer="relu"),
            r"SoftTargets compares outputs.*student_layer='relu'.*`output=`",
        ),
        (lambda: td.FeatureMatching(output=1), r"FeatureMatching compares layers.*output=1"),
        (lambda: td.FeatureMatching(teacher_layer="relu"), r"teacher_layer='relu' alone\. Pass `student_layer=` too"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "shapes", "message"),
    [
        (td.SoftTargets(2.0), ((4, 10), (4, 100)), r"student \(4, 10\), teacher \(4, 100\).*FeatureMatching"),
        (td.DecoupledTargets(2.0), ((4, 10), (4, 9)), r"student \(4, 10\), teacher \(4, 9\)"),
        (td.BinaryTargets(2.0), ((4, 1), (4, 9)), r"student \(4, 1\), teacher \(4, 9\)\. Give both as many labels"),
        (td.RegressionTargets(), ((4, 1), (4, 3)), r"student \(4, 1\), teacher \(4, 3\)\. Give both as many outputs"),
        (td.BoundedTargets(), ((4, 1), (4, 3)), r"student \(4, 1\), teacher \(4, 3\)\. Give both as many outputs"),
        (td.FeatureMatching(), ((4, 8, 8, 3), (4, 3)), r"student \(4, 8, 8, 3\), teacher \(4, 3\)\. Name layers"),
        (td.AttentionTransfer(), ((4, 8), (4, 8)), r"\(batch, positions, channels\)"),
    ],
)
def test_shapes_are_checked_when_built(loss, shapes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        loss.build(*shapes)
    with pytest.raises(InvalidArgumentError, match=message):
        loss(np.zeros(shapes[0]), np.zeros(shapes[1]))


def test_what_is_missing_is_said():
    values = np.zeros((2, 3)), np.zeros((2, 3))
    with pytest.raises(InvalidArgumentError, match=r"Outside of a Distiller SoftTargets must have.*`temperature=4\.0`"):
        td.SoftTargets()(*values)
    for loss in (td.DecoupledTargets(4.0), td.BoundedTargets()):
        says = f"{type(loss).__name__} must be given the labels.*Fit with labels"
        with pytest.raises(InvalidArgumentError, match=says):
            loss(*values)
    with pytest.raises(InvalidArgumentError, match="known number of channels"):
        td.FeatureMatching().build((None, None, None), (None, None, 3))


def test_the_package_is_found_from_the_top():
    assert tfopt.__getattr__("distillation") is td
    assert "distillation" in dir(tfopt)
    losses = {
        name for name, value in vars(td).items() if isinstance(value, type) and issubclass(value, td.DistillationLoss)
    }
    assert {cls.__name__ for cls in ALL} | {"DistillationLoss"} == losses
