"""Figures of trainings: the same names in every trial, one number each."""

import keras
import keras_tuner
import numpy as np
import pytest
from keras import layers as kl
from searched import DATA, X, Y

from tfopt.core.keras_internals import name_counts
from tfopt.tuner.names import Figures, names_made_since
from tfopt.tuner.tune import search

LABELS = (Y > 0).astype("float32")[:, None]


def run(builder, data=(X, LABELS), **options):
    return search(builder, train=data, val=data, method="random", budget=3, epochs=1, verbose=0, **options)


def test_unnamed_metrics_have_the_names_of_a_fresh_process():
    keras.metrics.AUC()

    def builder(hp):
        hp.Int("units", 1, 9)
        model = keras.Sequential([keras.Input((4,)), kl.Dense(1, "sigmoid")])
        model.compile("adam", "mse", metrics=[keras.metrics.AUC(), keras.metrics.AUC(curve="PR"), "accuracy"])
        return model

    found = run(builder, objectives="val_auc", constraints="val_auc_1 >= 0")
    assert [trial.state for trial in found.trials] == ["complete"] * 3
    names = {"accuracy", "auc", "auc_1", "loss"}
    for trial in found.trials:
        assert set(trial.runs[0].history[0]) == names | {f"val_{name}" for name in names}


def test_unnamed_outputs_have_the_names_of_a_fresh_process():
    kl.Dense(1)

    def builder(hp):
        hp.Int("units", 1, 9)
        inputs = keras.Input((4,))
        model = keras.Model(inputs, [kl.Dense(1)(inputs), kl.Dense(1)(inputs)])
        model.compile("adam", ["mse", "mse"], metrics=[["mae"], [keras.metrics.MeanAbsoluteError(name="own")]])
        return model

    found = run(builder, (X, (Y, Y)), objectives=[("val_dense_1_own", "min")], constraints="val_dense_mae >= 0")
    assert [trial.state for trial in found.trials] == ["complete"] * 3


def test_names_of_the_users_stay():
    own = keras.metrics.AUC(name="auc_7")
    before = name_counts()
    model = keras.Sequential([keras.Input((4,)), kl.Dense(1)])
    model.compile("adam", "mse", metrics=[own, keras.metrics.AUC()])
    logs = {"auc_7": 0.5, model._compile_config.config["metrics"][1].name: 0.25, "loss": 1.0}
    figures = Figures(model, names_made_since(before))
    assert figures({**logs, "val_auc_7": 0.75}) == {"auc_7": 0.5, "auc": 0.25, "loss": 1.0, "val_auc_7": 0.75}


def test_two_figures_never_get_one_name():
    before = {**name_counts(), "auc": 4}
    named = keras.metrics.AUC(name="auc")
    unnamed = keras.metrics.AUC()
    while name_counts()["auc"] < 6:
        unnamed = keras.metrics.AUC()
    model = keras.Sequential([keras.Input((4,)), kl.Dense(1)])
    model.compile("adam", "mse", metrics=[named, unnamed])
    made = {**names_made_since(before), unnamed.name: "auc"}
    assert Figures(model, made)({"auc": 1, unnamed.name: 2}) == {"auc": 1.0, unnamed.name: 2.0}


def test_a_metric_of_each_class_counts_with_its_mean():
    def builder(hp):
        hp.Int("units", 1, 9)
        model = keras.Sequential([keras.Input((4,)), kl.Dense(3, "softmax")])
        model.compile("adam", "categorical_crossentropy", metrics=[keras.metrics.F1Score(name="f1")])
        return model

    labels = np.eye(3, dtype="float32")[np.digitize(Y, [-1, 1])]
    found = run(builder, (X, labels), objectives="val_f1")
    for trial, model in zip(found.ranking, found.best_models(3), strict=True):
        f1 = model.evaluate(X, labels, verbose=0, return_dict=True)["f1"]
        assert f1.shape == (3,)
        assert trial.figures["val_f1"] == pytest.approx(np.mean(f1))


def refusing(error, most=4):
    def builder(hp):
        units = hp.Choice("units", [8, 1, 2, 3, 4])
        hp.Float("lr", 1e-3, 1e-1)
        if units > most:
            raise error("too many units")
        model = keras.Sequential([keras.Input((4,)), kl.Dense(units), kl.Dense(1)])
        model.compile("adam", "mse")
        return model

    return builder


def test_a_builder_refuses_a_trial_or_ends_the_search():
    found = run(refusing(keras_tuner.errors.FailedTrialError, 2), DATA, objectives="val_loss")
    states = {trial.state: trial.reason for trial in found.trials}
    assert states["failed"] == "FailedTrialError: too many units"
    assert "complete" in states
    with pytest.raises(keras_tuner.errors.FatalValueError, match="too many units"):
        run(refusing(keras_tuner.errors.FatalValueError, 2), DATA, objectives="val_loss")
