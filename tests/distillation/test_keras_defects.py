"""What was measured to be wrong with `keras.distillation` 3.15, each with the figure that `Distiller` gives instead."""

import keras
import numpy as np
import pytest
import zoo
from distilled import SAMPLES, X, Y, divergence, net, randomized, same, state
from keras import layers as kl

import tfopt
from tfopt import distillation as td


@keras.saving.register_keras_serializable(package="tfopt_tests")
class Counting(kl.Layer):
    """Counts its runs, in training and in inference."""

    def build(self, shape):
        self.trained = self.add_weight(shape=(), initializer="zeros", trainable=False, name="trained")
        self.inferred = self.add_weight(shape=(), initializer="zeros", trainable=False, name="inferred")

    def call(self, inputs, training=False):
        (self.trained if training else self.inferred).assign_add(1.0)
        return inputs

    def runs(self):
        return float(self.trained), float(self.inferred)


def counted(width, seed=0):
    """A model that counts, and a feature before its head."""
    inputs = keras.Input((6,))
    x = Counting(name="count")(kl.Dense(width, "relu", name="hidden")(inputs))
    x = kl.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, kl.Dense(3, "softmax", name="out")(x))
    for weight in model.get_layer("hidden").weights + model.get_layer("out").weights:
        weight.assign(np.random.default_rng(seed).normal(size=weight.shape))
    return model


def fitted(distiller, **options):
    distiller.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", run_eagerly=True)
    return distiller.fit(X, Y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **options})


def test_1_the_default_loss_is_the_softened_divergence_with_gradients():
    """Keras gave 10.475 where the divergence of one sure answer from an even one is log 3, 1.0986."""
    student = keras.Sequential([keras.Input((3,)), kl.Dense(3, kernel_initializer="zeros")])
    teacher = keras.Sequential([keras.Input((3,)), kl.Dense(3, kernel_initializer=keras.initializers.Identity(50.0))])
    x, labels = np.eye(3, dtype="float32"), np.arange(3)
    distiller = tfopt.Distiller(student, teacher, alpha=1.0, temperature=1.0)
    distiller.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logs = distiller.fit(x, labels, verbose=0, batch_size=3).history
    np.testing.assert_allclose(logs["distillation_loss"][0], np.log(3), rtol=1e-5)
    # The gradient of the softened divergence: probabilities of the student less those of the teacher.
    np.testing.assert_allclose(student.layers[0].kernel, (np.eye(3) - 1 / 3) / 3, atol=1e-6)


def test_2_the_student_runs_once_a_step_and_in_inference_where_it_is_evaluated():
    student, teacher = counted(4), counted(4, seed=1)
    losses = [td.SoftTargets(), td.FeatureMatching(student_layer="norm")]
    distiller = tfopt.Distiller(student, teacher, losses)
    fitted(distiller)
    steps = SAMPLES // 8
    assert student.get_layer("count").runs() == (steps, 0)
    before = state(student.get_layer("norm"))
    distiller.evaluate(X, Y, batch_size=8, verbose=0)
    assert student.get_layer("count").runs() == (steps, steps)
    same(state(student.get_layer("norm")), before)


def test_3_the_teacher_does_not_run_in_evaluate_nor_with_a_cache(monkeypatch):
    student, teacher = counted(4), counted(4, seed=1)
    runs = []
    monkeypatch.setattr(Counting, "call", lambda self, inputs, training=False: runs.append(self) or inputs)
    theirs = teacher.get_layer("count")
    distiller = tfopt.Distiller(student, teacher)
    fitted(distiller)
    assert runs.count(theirs) == SAMPLES // 8
    runs.clear()
    distiller.evaluate(X, Y, verbose=0)
    assert runs
    assert theirs not in runs
    cache = tfopt.cache_teacher(teacher, (X, Y), verbose=0)
    runs.clear()
    distiller.fit(cache, epochs=2, verbose=0)
    assert runs
    assert theirs not in runs


def test_4_sample_weights_and_what_the_student_adds_to_the_loss_count():
    student, teacher = randomized(net(4)), randomized(net(9), seed=1)
    z = [np.log(zoo.called(model, X)) for model in (student, teacher)]
    weights = np.linspace(0, 2, SAMPLES)
    distiller = tfopt.Distiller(student, teacher, temperature=2.0)
    distiller.compile("sgd", "sparse_categorical_crossentropy", evaluate_teacher=True, run_eagerly=True)
    logs = distiller.evaluate(X, Y, sample_weight=weights, batch_size=SAMPLES, verbose=0, return_dict=True)
    expected = np.mean(weights * divergence(*z, 2.0))
    np.testing.assert_allclose(logs["distillation_loss"], expected, rtol=1e-4)

    @keras.saving.register_keras_serializable(package="tfopt_tests")
    class Adding(kl.Layer):
        def call(self, inputs):
            self.add_loss(7.0 * keras.ops.mean(inputs))
            return inputs

    inputs = keras.Input((6,))
    x = kl.Dense(4, kernel_regularizer=keras.regularizers.L2(0.1), activity_regularizer="l2")(Adding()(inputs))
    student = randomized(keras.Model(inputs, kl.Dense(3, "softmax")(x)))
    distiller = tfopt.Distiller(student, teacher)
    distiller.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    logs = distiller.evaluate(X, Y, batch_size=SAMPLES, verbose=0, return_dict=True)
    hidden = X @ student.layers[2].kernel.numpy() + student.layers[2].bias.numpy()
    added = 7 * X.mean() + 0.1 * np.sum(student.layers[2].kernel.numpy() ** 2) + 0.01 * np.sum(hidden**2) / SAMPLES
    np.testing.assert_allclose(logs["loss"] - logs["student_loss"], added, rtol=1e-4)


def test_5_a_saved_distiller_goes_on_with_fit_and_the_students_file_is_without_the_teacher(tmp_path):
    student, teacher = randomized(net(4)), randomized(net(300), seed=1)
    distiller = tfopt.Distiller(student, teacher, [td.SoftTargets(), td.FeatureMatching(student_layer="hidden")])
    distiller.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    distiller.fit(X, Y, epochs=2, **options)
    distiller.save(tmp_path / "distiller.keras")
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    one, other = (model.fit(X, Y, epochs=2, **options).history for model in (distiller, loaded))
    assert {name: pytest.approx(values, rel=1e-5) for name, values in one.items()} == other
    same(state(loaded.student), state(student), atol=1e-6)
    assert keras.models.load_model(tmp_path / "student.keras").count_params() == student.count_params()
    assert (tmp_path / "student.keras").stat().st_size < 0.5 * (tmp_path / "distiller.keras").stat().st_size


def test_6_widths_heads_nested_layers_and_flags():
    block = keras.Sequential([keras.Input((6,)), kl.Dense(5, "relu", name="inner")], name="block")
    teacher = randomized(keras.Sequential([keras.Input((6,)), block, kl.Dense(3, "softmax")]), seed=1)
    block.layers[0].trainable = False
    flags = [layer.trainable for layer in [teacher, *teacher.layers, *block.layers]]
    weights, trainable = state(teacher), len(teacher.trainable_weights)
    student = randomized(net(2))
    losses = [td.FeatureMatching(student_layer="hidden", teacher_layer="block/inner"), td.SoftTargets(1.0)]
    distiller = tfopt.Distiller(student, teacher, losses)
    mine, theirs = (np.log(zoo.called(model, X)) for model in (student, teacher))
    distiller.compile("sgd", None, evaluate_teacher=True, run_eagerly=True)
    logs = distiller.evaluate(X, batch_size=SAMPLES, verbose=0, return_dict=True)
    # Probabilities are not softened a second time, which would have given a small part of it.
    np.testing.assert_allclose(logs["soft_targets_loss"], divergence(mine, theirs, 1.0).mean(), rtol=1e-4)
    fitted(distiller)
    assert losses[0].projection.kernel.shape[-2:] == (2, 5)
    assert [layer.trainable for layer in [teacher, *teacher.layers, *block.layers]] == flags
    assert len(teacher.trainable_weights) == trainable
    same(state(teacher), weights)
