"""`StopAtTarget`: training ends in the epoch that reaches the target."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt
from tfopt.core.errors import InvalidArgumentError

X = np.array([[1.0], [-1.0]], "float32")


class Says(keras.callbacks.Callback):
    """Writes a curve into the logs, before the callbacks behind it see them."""

    def __init__(self, name, curve):
        super().__init__()
        self.name, self.curve = name, curve

    def on_epoch_end(self, epoch, logs=None):
        if self.curve[epoch] is not None:
            logs[self.name] = self.curve[epoch]


def run(target, name, curve, **options):
    """How many epochs are run."""
    model = keras.Sequential([keras.Input((1,)), kl.Dense(1)])
    model.compile("sgd", "mse")
    callbacks = [Says(name, curve), target]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return len(model.fit(X, X, epochs=len(curve), verbose=0, callbacks=callbacks, **options).epoch)


@pytest.mark.parametrize(
    ("name", "value", "mode", "curve", "reached"),
    [
        ("val_accuracy", 0.9, "auto", [0.5, 0.899, 0.9, 1.0], 2),
        ("out_auc", 0.5, "auto", [0.7, 0.8], 0),
        ("val_loss", 0.5, "auto", [0.7, 0.51, 0.49, 0.1], 2),
        ("val_mean_absolute_error", 1, "auto", [3.0, 1.0, 0.0], 1),
        ("mean_io_u", 0.5, "auto", [0.1, 0.6], 1),
        ("val_teacher_gap", 0.1, "auto", [0.3, 0.05], 1),
        ("score", 10.0, "max", [3.0, 12.0, 0.0], 1),
        ("accuracy", 0.9, "auto", [0.5, float("nan"), 0.6], None),
        ("loss_of_weight", 2.0, "max", [1.0, 3.0], 1),
    ],
)
def test_stops_in_the_epoch_that_reaches_it(name, value, mode, curve, reached):
    target = tfopt.StopAtTarget(name, value, mode=mode)
    assert run(target, name, curve) == (len(curve) if reached is None else reached + 1)
    assert target.reached_epoch == reached


def test_says_so_and_starts_over(capsys):
    target = tfopt.StopAtTarget("val_accuracy", 0.75, verbose=1)
    assert run(target, "val_accuracy", [0.5, 0.8]) == 2
    assert capsys.readouterr().out == "Epoch 2: val_accuracy is 0.8, the target is 0.75.\n"
    assert run(target, "val_accuracy", [0.5, 0.6]) == 2
    assert target.reached_epoch is None
    assert not capsys.readouterr().out


def test_counts_epochs_as_keras_does():
    target = tfopt.StopAtTarget("accuracy", 0.75)
    assert run(target, "accuracy", [0.0, 0.0, 0.0, 0.8, 0.9], initial_epoch=2) == 2
    assert target.reached_epoch == 3


def test_with_a_real_metric_and_in_a_distiller():
    teacher = keras.Sequential([keras.Input((1,)), kl.Dense(2, kernel_initializer=lambda *a, **k: [[-2.0, 2.0]])])
    student = keras.Sequential([keras.Input((1,)), kl.Dense(2)])
    x = np.linspace(-1, 1, 40)[:, None]
    distiller = tfopt.Distiller(student, teacher, tfopt.distillation.SoftTargets())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(1.0), loss, metrics=["accuracy"])
    y = (x[:, 0] > 0).astype(int)
    target = tfopt.StopAtTarget("val_accuracy", 0.95)
    history = distiller.fit(x, y, validation_data=(x, y), epochs=200, verbose=0, callbacks=[target])
    curve = history.history["val_accuracy"]
    assert curve[-1] >= 0.95 > max([0, *curve[:-1]])
    assert len(curve) == target.reached_epoch + 1


def test_a_metric_that_is_not_logged():
    with pytest.raises(InvalidArgumentError, match=r"'accuracy'; the logs have loss, val_f1. Name one of these"):
        run(tfopt.StopAtTarget("accuracy", 1.0), "val_f1", [0.0] * 3)
    with pytest.raises(InvalidArgumentError, match="'val_accuracy'; the logs have loss, val_f1"):
        run(tfopt.StopAtTarget("val_accuracy", 1.0), "val_f1", [0.0] * 3)


def fit(target, **options):
    model = keras.Sequential([keras.Input((1,)), kl.Dense(1)])
    model.compile("sgd", "mse")
    return model.fit(X, X, verbose=0, callbacks=[target], **options)


def test_validation_that_does_not_run_in_each_epoch_is_waited_for():
    target = tfopt.StopAtTarget("val_loss", 1e9)
    with pytest.warns(UserWarning, match="waits for 'val_loss'") as caught:
        history = fit(target, epochs=7, validation_data=(X, X), validation_freq=3)
    assert len(caught) == 1
    assert target.reached_epoch == 2 == history.epoch[-1]
    target = tfopt.StopAtTarget("val_loss", -1.0)
    with pytest.warns(UserWarning, match="waits for 'val_loss'") as caught:
        fit(target, epochs=3, validation_data=(X, X), validation_freq=2)
    assert len(caught) == 1


def test_validation_that_never_runs():
    target = tfopt.StopAtTarget("val_loss", 0.0)
    with (
        pytest.warns(UserWarning, match="waits for 'val_loss'"),
        pytest.raises(InvalidArgumentError, match="Pass `validation_data` to `fit`"),
    ):
        fit(target, epochs=2)


def test_a_training_that_is_over_already():
    target = tfopt.StopAtTarget("val_loss", 0.0)
    assert fit(target, epochs=2, initial_epoch=2).epoch == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("", 1.0), "`metric` must be a name"),
        ((None, 1.0), "`metric` must be a name"),
        (("loss", float("nan")), "`value` must be a finite number"),
        (("loss", "0.9"), "`value` must be a finite number"),
        (("loss", True), "`value` must be a finite number"),
        (("loss", 1.0, "up"), "`mode` must be one of 'auto', 'min', 'max'"),
        (("score", 1.0), "Pass mode='max' if higher is better"),
    ],
)
def test_bad_arguments(arguments, says):
    with pytest.raises(InvalidArgumentError, match=says):
        tfopt.StopAtTarget(*arguments)
