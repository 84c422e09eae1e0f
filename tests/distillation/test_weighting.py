"""Sample weights of steps and pixels in distillation losses, and callbacks that watch these losses."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt
from tfopt import distillation as td
from tfopt.core.errors import InvalidArgumentError
from tfopt.distillation.weighting import mean_loss

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 6, 3)).astype("float32")
Y = RNG.integers(0, 4, (8, 6))
WEIGHTS = np.where(np.arange(6) < 3, RNG.random((8, 6)), 0).astype("float32")


def tagger(width, activation="softmax", units=4, masked=False):
    layers = [kl.Masking()] if masked else []
    layers += [kl.Dense(width, "relu", name="hidden"), kl.Dense(units, activation)]
    return keras.Sequential([keras.Input((6, 3)), *layers])


def logs_of(student, teacher, losses=None, x=X, y=Y, weights=WEIGHTS, loss="sparse_categorical_crossentropy"):
    distiller = tfopt.Distiller(student, teacher, losses, alpha=0.5, temperature=1.0)
    distiller.compile(keras.optimizers.SGD(0.0), loss)
    history = distiller.fit(x, y, sample_weight=weights, batch_size=len(x), verbose=0).history
    return {name: values[0] for name, values in history.items()}


def divergences(student, teacher, x=X):
    taught, learned = (model.predict(x, verbose=0) for model in (teacher, student))
    return (taught * np.log(taught / learned)).sum(-1)


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1)])
def test_steps(shape):
    student, teacher = tagger(4), tagger(16)
    want = (WEIGHTS * divergences(student, teacher)).mean()
    logs = logs_of(student, teacher, weights=WEIGHTS.reshape(shape))
    assert logs["distillation_loss"] == pytest.approx(want, rel=1e-4)


def test_what_has_no_weight_teaches_nothing():
    student, teacher, other = tagger(4), tagger(16), X.copy()
    other[:, 3:] *= 5
    before, after = (logs_of(student, teacher, x=x) for x in (X, other))
    assert before["distillation_loss"] == pytest.approx(after["distillation_loss"], rel=1e-5)
    assert before["student_loss"] == pytest.approx(after["student_loss"], rel=1e-5)


@pytest.mark.parametrize(("shape", "loss"), [((8, 1), "sparse_categorical_crossentropy"), ((8, 1), None), ((8,), None)])
def test_whole_samples(shape, loss):
    """With labels at each step Keras itself does not take weights (batch,)."""
    student, teacher = tagger(4), tagger(16)
    weights = RNG.random(8).astype("float32")
    want = (weights[:, None] * divergences(student, teacher)).mean()
    logs = logs_of(student, teacher, y=Y, weights=weights.reshape(shape), loss=loss)
    assert logs["distillation_loss"] == pytest.approx(want, rel=1e-4)


def test_a_step_of_equal_weights_is_the_plain_one():
    student, teacher = tagger(4), tagger(16)
    plain, ones = (logs_of(student, teacher, weights=weights) for weights in (None, np.ones((8, 6))))
    assert plain == pytest.approx(ones, rel=1e-5)


def test_masked_steps_count_neither_with_nor_without_weights():
    student, teacher = tagger(4, masked=True), tagger(16, masked=True)
    x = X.copy()
    x[:, 4:] = 0
    weights = RNG.random((8, 6)).astype("float32")
    want = (weights * divergences(student, teacher, x))[:, :4].mean()
    assert logs_of(student, teacher, x=x, weights=weights)["distillation_loss"] == pytest.approx(want, rel=1e-4)


def test_pixels_of_two_classes():
    def net(width):
        return keras.Sequential([keras.Input((4, 4, 2)), kl.Conv2D(width, 1), kl.Conv2D(1, 1, activation="sigmoid")])

    student, teacher = net(2), net(8)
    x, y = RNG.normal(size=(5, 4, 4, 2)), RNG.integers(0, 2, (5, 4, 4, 1))
    weights = RNG.integers(0, 3, (5, 4, 4)).astype("float32")
    taught, learned = (model.predict(x, verbose=0)[..., 0].astype("float64") for model in (teacher, student))
    each = taught * np.log(taught / learned) + (1 - taught) * np.log((1 - taught) / (1 - learned))
    logs = logs_of(student, teacher, x=x, y=y, weights=weights, loss="binary_crossentropy")
    assert logs["distillation_loss"] == pytest.approx((weights * each).mean(), rel=1e-3)


def test_numbers_at_each_step():
    student, teacher = tagger(4, None, 2), tagger(16, None, 2)
    y = RNG.normal(size=(8, 6, 2))
    mine, theirs = (model.predict(X, verbose=0) for model in (student, teacher))
    want = (WEIGHTS * ((mine - theirs) ** 2).mean(-1)).mean()
    assert logs_of(student, teacher, y=y, loss="mse")["distillation_loss"] == pytest.approx(want, rel=1e-4)


def test_several_outputs_have_weights_of_their_own():
    def net(width):
        x = keras.Input((6, 3))
        hidden = kl.Dense(width, "relu")(x)
        tags = kl.Dense(4, "softmax", name="tags")(hidden)
        return keras.Model(x, {"tags": tags, "kind": kl.Dense(2, "softmax", name="kind")(kl.Flatten()(hidden))})

    student, teacher = net(4), net(8)
    weights = {"tags": WEIGHTS, "kind": np.linspace(0, 1, 8, dtype="float32")}
    y, loss = {"tags": Y, "kind": Y[:, 0] % 2}, dict.fromkeys(("tags", "kind"), "sparse_categorical_crossentropy")
    mine, theirs = (model.predict(X, verbose=0) for model in (student, teacher))
    each = {name: (theirs[name] * np.log(theirs[name] / mine[name])).sum(-1) for name in weights}
    logs = logs_of(student, teacher, y=y, weights=weights, loss=loss)
    for name, values in each.items():
        assert logs[f"{name}_distillation_loss"] == pytest.approx((weights[name] * values).mean(), rel=1e-4)


def test_features_of_the_same_steps_and_of_others():
    student, teacher = tagger(4), tagger(4)
    mine, theirs = (
        keras.Model(m.inputs, m.get_layer("hidden").output).predict(X, verbose=0) for m in (student, teacher)
    )
    logs = logs_of(student, teacher, td.FeatureMatching(student_layer="hidden"))
    want = (WEIGHTS * ((mine - theirs) ** 2).mean(-1)).mean()
    assert logs["distillation_loss"] == pytest.approx(want, rel=1e-4)
    ones = (WEIGHTS > 0).astype("float32")
    for loss in (td.AttentionTransfer, td.SimilarityPreserving, td.RelationalDistance):
        far = X.copy()
        far[:, 3:] *= 9
        near, away = (logs_of(student, teacher, loss(student_layer="hidden"), x=x, weights=ones) for x in (X, far))
        assert near["distillation_loss"] == pytest.approx(away["distillation_loss"], rel=1e-4)


class Steps(td.DistillationLoss):
    """One number a step, and no argument for a mask."""

    compares = "values"

    def call(self, student, teacher):
        return keras.losses.kl_divergence(teacher, student)


class Whole(td.DistillationLoss):
    """One number a sample."""

    compares = "values"

    def call(self, student, teacher):
        return keras.ops.mean(keras.losses.kl_divergence(teacher, student), -1)


def test_own_losses():
    student, teacher = tagger(4), tagger(16)
    each = divergences(student, teacher)
    got = logs_of(student, teacher, Steps())["distillation_loss"]
    assert got == pytest.approx((WEIGHTS * each).mean(), rel=1e-3)
    got = logs_of(student, teacher, Whole())["distillation_loss"]
    assert got == pytest.approx((WEIGHTS.mean(1) * each.mean(1)).mean(), rel=1e-3)


def test_weights_of_no_place():
    values = keras.ops.ones((8, 6, 4))
    with pytest.raises(
        InvalidArgumentError, match="one for each position.*\\(8, 5\\).*\\(8, 6, 4\\).*\\(8, 6\\) or \\(8,\\)"
    ):
        mean_loss(td.SoftTargets(temperature=1.0), values, values, np.ones((8, 5)))
    mean_loss(td.SoftTargets(temperature=1.0), values, values, np.ones((8, 6)))
    mean_loss(td.SoftTargets(temperature=1.0), values, values, np.ones(8))


# Callbacks.

WATCHED = ["val_student_loss", "student_loss", "distillation_loss", "teacher_gap", "teacher_disagreement"]


@pytest.mark.parametrize("monitor", [*WATCHED, "soft_targets_loss", "val_loss", "val_accuracy"])
def test_callbacks_know_which_way_is_better(monitor, tmp_path):
    x, y = X[:, 0], Y[:, 0] % 2
    net = [keras.Sequential([keras.Input((3,)), kl.Dense(n, name="hidden"), kl.Dense(2, "softmax")]) for n in (2, 4)]
    losses = [td.SoftTargets(), td.RelationalDistance(student_layer="hidden")]
    distiller = tfopt.Distiller(*net, losses)
    distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], teacher_gap=True)
    callbacks = [
        keras.callbacks.EarlyStopping(monitor, patience=1),
        keras.callbacks.ReduceLROnPlateau(monitor),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor, save_best_only=True),
    ]
    history = distiller.fit(x, y, validation_data=(x, y), epochs=2, callbacks=callbacks, verbose=0).history
    assert monitor in history
    higher = monitor == "val_accuracy"
    assert all(callback.monitor_op is (keras.ops.greater if higher else keras.ops.less) for callback in callbacks[::2])
