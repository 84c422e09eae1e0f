"""The loss and the step of `Distiller`, against numpy and a hand-written training step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from distilled import IMAGES, SAMPLES, X, Y, cnn, copy_of, divergence, net, randomized, same, softmax, state
from keras import layers as kl

import tfopt
from tfopt import distillation as td
from tfopt.core.data.pairs import output_names

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(distiller, loss="sparse_categorical_crossentropy", optimizer=None, **options):
    """Eager, which for a few steps takes less time than tracing."""
    distiller.compile(optimizer or keras.optimizers.SGD(0.1), loss, **{"run_eagerly": True, **options})
    return distiller


def fit(distiller, x=X, y=Y, **options):
    return distiller.fit(x, y, **{"batch_size": SAMPLES, "shuffle": False, "verbose": 0, **options}).history


def test_a_step_is_that_of_a_hand_written_tape():
    student = randomized(net(5, None, kernel_regularizer="l2", activity_regularizer=keras.regularizers.L1(0.01)))
    teacher, twin = randomized(net(5, None), seed=1), copy_of(student)
    weights = np.random.default_rng(3).uniform(0, 2, SAMPLES).astype("float32")
    losses = [td.SoftTargets(3.0), td.FeatureMatching(student_layer="norm", weight=0.5)]
    distiller = compiled(tfopt.Distiller(student, teacher, losses, alpha=0.7), CE, run_eagerly=False)
    logs = fit(distiller, sample_weight=weights)

    hidden, norm, out = twin.layers
    taught = teacher.layers[1](teacher.layers[0](X), training=False)
    soft = tf.nn.softmax(teacher.layers[2](taught) / 3.0)
    with tf.GradientTape() as tape:
        h = hidden(X)
        f = norm(h, training=True)
        logits = out(f)
        labels = tf.reduce_sum(weights * tf.nn.sparse_softmax_cross_entropy_with_logits(Y, logits)) / SAMPLES
        kl_terms = tf.reduce_sum(soft * (tf.math.log(soft) - tf.nn.log_softmax(logits / 3.0)), -1)
        distance = tf.reduce_mean(tf.square(f - taught), -1)
        both = tf.reduce_sum(weights * (9 * kl_terms + 0.5 * distance)) / SAMPLES
        more = 0.01 * tf.reduce_sum(tf.square(hidden.kernel.value)) + 0.01 * tf.reduce_sum(tf.abs(h)) / SAMPLES
        loss = 0.3 * labels + 0.7 * both + more
    for variable, gradient in zip(twin.trainable_weights, tape.gradient(loss, twin.trainable_weights), strict=True):
        variable.assign(variable - 0.1 * gradient)

    same(state(student), state(twin), atol=1e-6)
    shown = [logs[name][0] for name in ("loss", "student_loss", "distillation_loss")]
    np.testing.assert_allclose(shown, [loss, labels, both], rtol=1e-5)
    single = [logs["soft_targets_loss"][0], logs["feature_matching_loss"][0]]
    weighted = [9 * np.mean(weights * kl_terms), np.mean(weights * distance)]
    np.testing.assert_allclose(single, weighted, rtol=1e-5)


def test_without_a_share_of_the_teacher_it_is_plain_training():
    student, teacher = randomized(net(4, kernel_regularizer="l2")), randomized(net(9), seed=1)
    twin = copy_of(student)
    twin.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
    distiller = tfopt.Distiller(student, teacher, alpha=0)
    compiled(distiller, optimizer=keras.optimizers.Adam(0.01), metrics=["accuracy"])
    options = {"batch_size": 8, "epochs": 2, "class_weight": {0: 1.0, 1: 3.0, 2: 0.5}, "validation_data": (X, Y)}
    logs, plain = fit(distiller, **options), fit(twin, **options)
    same(state(student), state(twin), atol=1e-6)
    for name, values in plain.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-5)


def test_without_labels_the_loss_is_the_teachers_alone():
    student, teacher = randomized(net(4)), randomized(net(9), seed=1)
    z = [np.log(zoo.called(model, X).astype("float64")) for model in (student, teacher)]
    distiller = tfopt.Distiller(student, teacher, alpha=0.2, temperature=2.0)
    compiled(distiller)  # what an earlier `compile` was given is forgotten
    loss = compiled(distiller, None, evaluate_teacher=True).evaluate(X, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, divergence(z[0], z[1], 2.0).mean(), rtol=1e-4)
    logs = fit(distiller, y=None)
    assert sorted(logs) == ["distillation_loss", "loss"]
    assert logs["loss"] == logs["distillation_loss"]


def test_heads_with_and_without_softmax_train_alike():
    results = []
    for own, theirs in ((None, None), ("softmax", None), (None, "softmax"), ("softmax", "softmax")):
        student, teacher = randomized(net(4, own), scale=3.0), randomized(net(9, theirs), seed=1, scale=20.0)
        loss = "sparse_categorical_crossentropy" if own else CE
        logs = fit(compiled(tfopt.Distiller(student, teacher), loss), batch_size=8)
        results.append([*state(student), logs["distillation_loss"][0]])
    for result in results[1:]:  # with logits of some hundreds, whose probabilities are 0 in float32
        same(result, results[0], rtol=1e-4, atol=1e-5)
    assert results[0][-1] > 10


@pytest.mark.parametrize(
    ("own", "theirs", "loss", "chosen"),
    [
        ("softmax", "softmax", "categorical_crossentropy", "SoftTargets"),
        (None, "softmax", None, "SoftTargets"),
        (None, None, CE, "SoftTargets"),
        (None, None, "kl_divergence", "SoftTargets"),
        ("sigmoid", "sigmoid", "binary_crossentropy", "BinaryTargets"),
        ("sigmoid", "sigmoid", "mse", "RegressionTargets mse"),
        (None, None, keras.losses.BinaryCrossentropy(from_logits=True), "BinaryTargets"),
        (None, None, "mae", "RegressionTargets mae"),
        (None, None, keras.losses.Huber(), "RegressionTargets huber"),
        (None, None, keras.losses.mean_squared_error, "RegressionTargets mse"),
    ],
)
def test_the_loss_of_an_output_follows_from_its_head_and_the_labels(own, theirs, loss, chosen):
    distiller = tfopt.Distiller(net(4, own), net(5, theirs))
    distiller.compile("sgd", loss)
    (objective,) = distiller._plan.objectives
    assert " ".join([type(objective.loss).__name__, *filter(None, [getattr(objective.loss, "kind", None)])]) == chosen


def test_without_labels_the_loss_follows_from_how_the_teacher_was_trained():
    teacher = net(5, None)
    teacher.compile("sgd", "mae")
    distiller = compiled(tfopt.Distiller(net(4, None), teacher), None)
    assert distiller._plan.objectives[0].loss.kind == "mae"
    with pytest.raises(tfopt.InvalidArgumentError, match="logits or a regression.*Pass `losses="):
        tfopt.Distiller(net(4, None), net(5, None)).compile("sgd")
    with pytest.raises(tfopt.InvalidArgumentError, match="neither a cross-entropy nor a regression"):
        tfopt.Distiller(net(4, None), net(5, None)).compile("sgd", lambda y, p: p)


def two_outputs(width, keys):
    inputs = keras.Input((6,))
    x = kl.Dense(width, "relu")(inputs)
    classes, number = kl.Dense(3, "softmax")(x), kl.Dense(1)(x)
    return randomized(keras.Model(inputs, {"c": classes, "n": number} if keys else [classes, number]), seed=width)


@pytest.mark.parametrize("keys", [True, False])
def test_each_of_several_outputs_learns_by_its_own_loss(keys):
    student, teacher = two_outputs(4, keys), two_outputs(9, keys)
    mine, theirs = (keras.tree.flatten(zoo.called(model, X)) for model in (student, teacher))
    labels, parts = [Y, X[:, :1]], ["sparse_categorical_crossentropy", "mse"]
    shares, weights = [1.0, 0.25], [np.linspace(0, 2, SAMPLES), np.linspace(2, 0, SAMPLES)]

    def of(values):
        return dict(zip("cn", values, strict=True)) if keys else values

    distiller = tfopt.Distiller(student, teacher, alpha=0.5, temperature=1.0)
    distiller.compile("sgd", of(parts), loss_weights=of(shares), evaluate_teacher=True, run_eagerly=True)
    logs = distiller.evaluate(X, of(labels), sample_weight=of(weights), batch_size=8, verbose=0, return_dict=True)
    soft = np.mean(weights[0] * divergence(np.log(mine[0]), np.log(theirs[0]), 1.0))
    number = np.mean(weights[1] * (mine[1] - theirs[1])[:, 0] ** 2)
    names = [f"{name}_distillation_loss" for name in output_names(student)]
    np.testing.assert_allclose([logs[name] for name in names], [soft, number], rtol=1e-4)
    np.testing.assert_allclose(logs["distillation_loss"], soft + 0.25 * number, rtol=1e-4)
    hard = np.mean(weights[0] * -np.log(mine[0][np.arange(SAMPLES), Y]))
    squares = np.mean(weights[1] * (mine[1] - labels[1])[:, 0] ** 2)
    np.testing.assert_allclose(logs["student_loss"], hard + 0.25 * squares, rtol=1e-4)


def test_one_of_several_outputs_can_be_named():
    student, teacher = two_outputs(4, True), randomized(net(9))
    with pytest.raises(tfopt.InvalidArgumentError, match="'n', which the teacher does not have"):
        tfopt.Distiller(student, teacher, td.RegressionTargets(output="n"))
    other = two_outputs(9, True)
    distiller = tfopt.Distiller(student, other, td.RegressionTargets(output="n"))
    distiller.compile("sgd", {"c": "sparse_categorical_crossentropy"}, evaluate_teacher=True)
    logs = distiller.evaluate(X, {"c": Y, "n": X[:, :1]}, batch_size=SAMPLES, verbose=0, return_dict=True)
    difference = zoo.called(student, X)["n"] - zoo.called(other, X)["n"]
    np.testing.assert_allclose(logs["distillation_loss"], np.mean(difference**2), rtol=1e-4)


def test_several_teachers_answer_by_the_mean_of_their_probabilities():
    student = randomized(net(4, None))
    teachers = [randomized(net(5, "softmax"), seed=1), randomized(net(6, None), seed=2)]
    first, second = zoo.called(teachers[0], X), softmax(zoo.called(teachers[1], X))
    distiller = tfopt.Distiller(student, teachers, teacher_weights=[3, 1], temperature=2.0)
    compiled(distiller, CE, evaluate_teacher=True)
    logs = distiller.evaluate(X, Y, verbose=0, return_dict=True)
    taught = np.log(0.75 * first.astype("float64") + 0.25 * second)
    expected = divergence(zoo.called(student, X), taught, 2.0).mean()
    np.testing.assert_allclose(logs["distillation_loss"], expected, rtol=1e-4)


def test_features_of_one_of_several_teachers_are_named_by_it():
    teachers = [randomized(net(5, name="one"), seed=1), randomized(net(6, name="two"), seed=2)]
    student = randomized(net(6))
    loss = td.FeatureMatching(student_layer="hidden", teacher_layer="two/hidden")
    distiller = compiled(tfopt.Distiller(student, teachers, loss), None, evaluate_teacher=True)
    difference = student.layers[0](X) - teachers[1].layers[0](X)
    np.testing.assert_allclose(distiller.evaluate(X, verbose=0)[0], np.mean(difference**2), rtol=1e-5)
    with pytest.raises(tfopt.InvalidArgumentError, match="begins with the name of one of them.*one, two"):
        tfopt.Distiller(student, teachers, td.FeatureMatching(student_layer="hidden"))


def test_a_model_that_teaches_itself_stays_as_it_was():
    student = randomized(net(4))
    before = zoo.called(student, X)
    distiller = compiled(tfopt.Distiller(student, student))
    fit(distiller, epochs=3)
    assert np.abs(zoo.called(student, X) - before).max() > 0.01
    np.testing.assert_array_equal(zoo.called(distiller.teacher, X), before)
    head = keras.Sequential([keras.Input((6,)), *student.layers[:2], kl.Dense(3, "softmax")])  # shares layers
    distiller = compiled(tfopt.Distiller(student, head))
    before = zoo.called(head, X)
    fit(distiller)
    np.testing.assert_array_equal(zoo.called(distiller.teacher, X), before)


def test_teacher_gap_is_what_it_says():
    student, teacher = randomized(net(4)), randomized(net(9), seed=1)
    mine, theirs = (zoo.called(model, X).argmax(-1) for model in (student, teacher))
    compiled(distiller := tfopt.Distiller(student, teacher), teacher_gap=True, evaluate_teacher=True)
    logs = distiller.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["teacher_gap"], (theirs == Y).mean() - (mine == Y).mean(), atol=1e-6)
    np.testing.assert_allclose(logs["teacher_disagreement"], (mine != theirs).mean(), atol=1e-6)
    one_hot = distiller.evaluate(X, Y[:, None], batch_size=8, verbose=0, return_dict=True)
    assert one_hot["teacher_gap"] == logs["teacher_gap"]
    student, teacher = randomized(net(4, None, 2)), randomized(net(9, None, 2), seed=1)
    compiled(distiller := tfopt.Distiller(student, teacher), "mse", teacher_gap=True)
    errors = [np.abs(model(X, training=False) - X[:, :2]).mean() for model in (student, teacher)]
    compiled(distiller, "mse", teacher_gap=True, evaluate_teacher=True)
    logs = distiller.evaluate(X, X[:, :2], verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["teacher_gap"], errors[0] - errors[1], rtol=1e-4)


def test_cached_answers_train_as_the_teacher_does():
    student, teacher = randomized(cnn(2)), randomized(cnn(3), seed=1)
    results = []
    for cached in (False, True):
        losses = [td.SoftTargets(), td.AttentionTransfer(student_layer="relu", weight=10.0)]
        own = copy_of(student)
        distiller = compiled(tfopt.Distiller(own, None if cached else teacher, losses))
        x = IMAGES, Y
        if cached:
            options = {"layers": "relu", "dtype": "float32", "shuffle": False, "batch_size": 8, "verbose": 0}
            x = (tfopt.cache_teacher(teacher, x, **options),)
        logs = distiller.fit(*x, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        results.append([*state(own), *(logs[name] for name in sorted(logs))])
    same(*results, atol=1e-5)
    distiller = compiled(tfopt.Distiller(copy_of(student), losses=td.FeatureMatching(student_layer="relu")))
    with pytest.raises(tfopt.InvalidArgumentError, match="without 'relu'.*layers="):
        distiller.fit(tfopt.cache_teacher(teacher, (IMAGES, Y), verbose=0), verbose=0)
    with pytest.raises(tfopt.InvalidArgumentError, match="Without a teacher"):
        distiller.fit(IMAGES, Y, verbose=0)


def test_padded_steps_of_a_sequence_teach_nothing():
    def tagger(width):
        inputs = keras.Input((None,), dtype="int32")
        x = kl.LSTM(width, return_sequences=True)(kl.Embedding(9, 4, mask_zero=True)(inputs))
        return randomized(keras.Model(inputs, kl.Dense(3, "softmax")(x)), seed=width)

    student, teacher = tagger(3), tagger(5)
    tokens = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    mine, theirs = (np.log(zoo.called(model, tokens)) for model in (student, teacher))
    steps = divergence(mine, theirs, 2.0)
    distiller = tfopt.Distiller(student, teacher, temperature=2.0)
    distiller.compile("sgd", None, evaluate_teacher=True, run_eagerly=True)
    expected = (steps[0, :3].mean() + steps[1].mean()) / 2
    np.testing.assert_allclose(distiller.evaluate(tokens, verbose=0)[0], expected, rtol=1e-4)
    assert abs(expected - steps.mean()) > 1e-3
    distiller.compile(keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy", jit_compile=True)
    logs = distiller.fit(tokens, np.clip(tokens, 0, 2), epochs=15, verbose=0).history
    assert logs["distillation_loss"][-1] < 0.7 * logs["distillation_loss"][0]


def test_a_regression_comes_nearer_to_its_teacher():
    generator = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    x = generator.normal(size=(256, 6)).astype("float32")
    truth = np.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    teacher = net(64, None, 1)
    teacher.compile(keras.optimizers.Adam(0.02), "mse")
    teacher.fit(x, truth, epochs=15, verbose=0)
    student = net(12, None, 1)
    distiller = tfopt.Distiller(student, teacher, alpha=0.9)
    compiled(distiller, "mse", keras.optimizers.Adam(0.02), run_eagerly=False)
    noisy = truth + generator.normal(0, 1.0, truth.shape)
    logs = distiller.fit(x, noisy, epochs=15, verbose=0).history
    assert logs["distillation_loss"][-1] < 0.3 * logs["distillation_loss"][0]
    assert np.mean((zoo.called(student, x) - zoo.called(teacher, x)) ** 2) < 0.3
