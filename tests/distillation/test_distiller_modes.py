"""`Distiller` under XLA, mixed precision, accumulation, replicas, masks, fake quantization; saved, killed, resumed."""

import os
import signal
import subprocess
import sys
import textwrap
import warnings

import keras
import numpy as np
import pytest
import zoo
from distilled import IMAGES, SAMPLES, X, Y, cnn, copy_of, net, randomized, same, state
from keras import layers as kl

import tfopt
from tfopt import distillation as td


def distiller_of(student, teacher, layer="norm", **options):
    losses = [td.SoftTargets(), td.FeatureMatching(student_layer=layer, teacher_layer=layer)]
    return tfopt.Distiller(student, teacher, losses, **options)


def fit(distiller, x, y=Y, optimizer=None, loss="sparse_categorical_crossentropy", epochs=1, **options):
    distiller.compile(optimizer or keras.optimizers.SGD(0.1), loss, **options)
    return distiller.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history


@pytest.fixture(scope="module")
def trained():
    """Weights and logs after an epoch in the plain way."""
    student, teacher = randomized(net(4)), randomized(net(7), seed=1)
    distiller = distiller_of(student, teacher)
    projection = distiller.distillation_losses[1].get_weights()
    logs = fit(distiller, X)
    return state(student), logs, projection


@pytest.mark.parametrize(
    "options", [{"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}], ids=lambda o: next(iter(o))
)
def test_ways_to_run_the_step_agree(trained, options):
    student, teacher = randomized(net(4)), randomized(net(7), seed=1)
    distiller = distiller_of(student, teacher)
    distiller.distillation_losses[1].set_weights(trained[2])
    logs = fit(distiller, X, **options)
    same(state(student), trained[0], atol=2e-5)
    same([logs[name] for name in sorted(logs)], [trained[1][name] for name in sorted(logs)], rtol=1e-4)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    states = []
    for steps, batch in ((2, SAMPLES // 2), (None, SAMPLES)):
        student = randomized(keras.Sequential([keras.Input((6,)), kl.Dense(4, "relu"), kl.Dense(3, "softmax")]))
        distiller = tfopt.Distiller(student, randomized(net(7), seed=1))
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
        distiller.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=True)
        distiller.fit(X, Y, batch_size=batch, shuffle=False, verbose=0)
        states.append(state(student))
    same(*states, atol=1e-6)


def test_precisions_of_student_and_teacher_may_differ():
    full, half = randomized(cnn(2)), randomized(cnn(2, dtype="mixed_float16"))
    teacher, theirs = randomized(cnn(3), seed=1), randomized(cnn(3, dtype="mixed_float16"), seed=1)
    losses, distillers = [], []
    for student, other in ((full, teacher), (half, teacher), (copy_of(half), theirs)):
        distillers.append(tfopt.Distiller(student, other))
        distillers[-1].compile("adam", "sparse_categorical_crossentropy", evaluate_teacher=True)
        losses.append(distillers[-1].evaluate(IMAGES, Y, verbose=0, return_dict=True)["distillation_loss"])
    np.testing.assert_allclose(losses[1:], losses[0], rtol=0.02)
    assert not isinstance(distillers[0].optimizer, keras.optimizers.LossScaleOptimizer)
    for distiller in distillers[1:]:
        assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
        before = state(distiller.student)
        distiller.fit(IMAGES, Y, batch_size=8, epochs=2, verbose=0)
        assert all(weight.dtype == "float32" for weight in distiller.student.trainable_weights)
        assert np.abs(state(distiller.student)[0] - before[0]).max() > 1e-3  # no overflow stopped the steps


def test_masks_and_fake_quantization_hold():
    teacher = randomized(cnn(3), seed=1)
    pruned = tfopt.prune(randomized(cnn(4)), sparsity=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        student = tfopt.quantize(pruned)
    before = state(student)
    distiller = distiller_of(student, teacher, "relu")
    fit(distiller, IMAGES, optimizer=keras.optimizers.Adam(0.01))
    kernels = [w for w in student.trainable_weights if w.path.endswith("kernel")]
    assert [float(np.mean(kernel.numpy() == 0)) for kernel in kernels] == [0.5, 0.5]
    moved = [weight.path for weight, old in zip(student.weights, before, strict=True) if np.any(weight != old)]
    assert sum("range" in path for path in moved) > 2  # the ranges follow the data
    # What is taught are the logits of the quantized model.
    answer = distiller._plan.ask(IMAGES, training=False)
    probabilities = zoo.called(student, IMAGES)
    np.testing.assert_allclose(keras.ops.softmax(answer.scores[0]), probabilities, atol=2e-3)
    assert not np.allclose(probabilities, zoo.called(tfopt.strip(student), IMAGES), atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "nested", "shared", "mixed", "sequence"])
def test_models_of_every_shape(name):
    student, teacher = zoo.build(name), randomized(zoo.build(name), seed=3)
    x, before = zoo.inputs_for(student), state(teacher)
    labels = keras.tree.map_structure(lambda y: np.zeros_like(y), zoo.called(student, x))
    loss = {"a": "mse", "b": "binary_crossentropy"} if name == "shared" else "mse"
    distiller = tfopt.Distiller(student, teacher)
    distiller.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=True, evaluate_teacher=True)
    start = distiller.evaluate(x, labels, verbose=0, return_dict=True)["distillation_loss"]
    distiller.fit(x, labels, batch_size=8, epochs=2, verbose=0)
    assert distiller.evaluate(x, labels, verbose=0, return_dict=True)["distillation_loss"] < start
    same(state(teacher), before)


def test_files(tmp_path):
    student, teacher = randomized(net(4)), randomized(net(300), seed=1)
    distiller = distiller_of(student, teacher)
    distiller.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", teacher_gap=True)
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "all.keras"),
        keras.callbacks.ModelCheckpoint(tmp_path / "some.weights.h5", save_weights_only=True),
    ]
    distiller.fit(X, Y, batch_size=8, callbacks=callbacks, verbose=0)
    loaded = keras.models.load_model(tmp_path / "all.keras")
    assert loaded.get_config()["alpha"] == 0.5
    assert loaded.get_compile_config()["teacher_gap"] is True
    same(state(loaded.student) + state(loaded.teacher), state(student) + state(teacher))
    same([v.numpy() for v in loaded.optimizer.variables], [v.numpy() for v in distiller.optimizer.variables])
    other = distiller_of(randomized(net(4), seed=5), randomized(net(300), seed=6))
    other.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    other.optimizer.build(other.trainable_variables)
    kept = state(other.teacher)
    other.load_weights(tmp_path / "some.weights.h5")
    same(state(other.student), state(student))
    same(state(other.teacher), kept)
    assert (tmp_path / "some.weights.h5").stat().st_size < 80_000 < (tmp_path / "all.keras").stat().st_size * 10
    assert distiller.teacher is teacher


def test_a_loaded_distiller_says_that_masks_are_gone(tmp_path):
    distiller = tfopt.Distiller(tfopt.prune(randomized(net(4)), sparsity=0.5), randomized(net(7), seed=1))
    distiller.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    distiller.fit(X, Y, verbose=0)
    distiller.save(tmp_path / "pruned.keras")
    loaded = keras.models.load_model(tmp_path / "pruned.keras")
    loaded.save(tmp_path / "again.keras")
    for model in (loaded, keras.models.load_model(tmp_path / "again.keras")):
        with pytest.warns(UserWarning, match="sparsity='keep'"):
            model.fit(X, Y, verbose=0)
    student = tfopt.prune(keras.models.load_model(tmp_path / "pruned.keras").student, sparsity="keep")
    again = tfopt.Distiller(student, distiller.teacher)
    again.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    again.fit(X, Y, verbose=0)
    assert np.mean(student.get_layer("hidden").kernel.numpy() == 0) == 0.5


def test_a_list_of_teachers_and_cached_shapes_are_saved_too(tmp_path):
    teachers = [randomized(net(5, name="one"), seed=1), randomized(net(6, name="two"), seed=2)]
    distiller = tfopt.Distiller(net(4), teachers, teacher_weights=[3, 1])
    distiller.compile("sgd", None, evaluate_teacher=True, run_eagerly=True)
    distiller.save(tmp_path / "several.keras")
    loaded = keras.models.load_model(tmp_path / "several.keras")
    assert loaded.evaluate(X, verbose=0) == pytest.approx(distiller.evaluate(X, verbose=0))
    cache = tfopt.cache_teacher(teachers[0], (X, Y), layers="hidden", verbose=0)
    cached = tfopt.Distiller(net(4), losses=td.FeatureMatching(student_layer="hidden"))
    cached.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", run_eagerly=True)
    cached.fit(cache, verbose=0)
    cached.save(tmp_path / "cached.keras")
    loaded = keras.models.load_model(tmp_path / "cached.keras")
    same(loaded.get_weights(), cached.get_weights())
    one, other = (model.fit(cache, verbose=0).history["loss"] for model in (cached, loaded))
    np.testing.assert_allclose(one, other, rtol=1e-4)


# Processes

NETS = """
    import os, signal, sys
    sys.path.insert(0, "tests")
    import keras, numpy as np, tensorflow as tf, tfopt
    from tfopt import distillation as td
    from distilled import X, Y, net, randomized

    def distiller():
        losses = [td.SoftTargets(), td.FeatureMatching(student_layer="hidden", teacher_layer="hidden")]
        student = randomized(net(4, kernel_regularizer="l2"))
        made = tfopt.Distiller(student, randomized(net(7), seed=1), losses)
        made.distillation_losses[1].set_weights([np.full(w.shape, 0.1) for w in made.distillation_losses[1].weights])
        made.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return made
"""


def run(script, *arguments, killed=False):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NETS) + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=300,
    )
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr[-2000:]
    return done.stdout


def test_killed_in_fit_and_run_again_it_ends_as_an_uninterrupted_run(tmp_path):
    script = """
        class Kill(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if self.model.optimizer.iterations == 6:
                    os.kill(os.getpid(), signal.SIGKILL)

        backup = keras.callbacks.BackupAndRestore(sys.argv[1])
        distiller().fit(X, Y, batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=[backup, Kill()])
    """
    run(script, tmp_path / "backup", killed=True)
    space = {}
    exec(textwrap.dedent(NETS), space)
    resumed, whole = space["distiller"](), space["distiller"]()
    options = {"batch_size": 8, "epochs": 4, "shuffle": False, "verbose": 0}
    logs = resumed.fit(X, Y, **options, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    whole_logs = whole.fit(X, Y, **options)
    assert len(logs.epoch) == 3  # the first was done; the second was cut and is done again
    same(resumed.get_weights(), whole.get_weights(), atol=1e-6)
    assert {name: pytest.approx(values[1:], rel=1e-5) for name, values in whole_logs.history.items()} == logs.history


def test_two_replicas_train_as_one_on_the_whole_batch():
    script = """
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        one = distiller()
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            two = distiller()
        for made in (one, two):  # normalization by the batch would differ: it is frozen
            made.student.get_layer("norm").trainable = False
            made.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
        logs = [made.fit(X, Y, batch_size=8, shuffle=False, verbose=0, validation_data=(X, Y)).history
                for made in (one, two)]
        print(max(abs(logs[0][name][0] - logs[1][name][0]) for name in logs[0]))
        print(max(np.abs(a - b).max() for a, b in zip(one.get_weights(), two.get_weights())))
        print(sorted(logs[1]))
    """
    logs, weights, names = run(script).splitlines()
    assert float(logs) < 1e-5
    assert float(weights) < 1e-5
    assert "val_student_loss" in names
