"""The verb `search`: constraints, several trainings, what is on record, what is refused."""

import json
import time

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from sklearn.model_selection import KFold

from tfopt.core.errors import FileError, InvalidArgumentError, TargetNotMetError
from tfopt.tuner.journal import Run, SearchJournal, Trial
from tfopt.tuner.objective import as_objectives
from tfopt.tuner.space import SearchSpace
from tfopt.tuner.training import Stopper
from tfopt.tuner.tune import search

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
Y = (X[:, 0] + X[:, 1] > 0).astype("int64")
DATA = (X, Y)


def net(units=8):
    """Run eagerly: such models are trained faster than they are traced."""
    model = keras.Sequential([keras.Input((6,)), kl.Dense(units, "relu", name="a"), kl.Dense(2, "softmax", name="b")])
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"], run_eagerly=True)
    return model


def run(model=None, space=None, **options):
    settings = {
        "train": DATA,
        "val": DATA,
        "method": "random",
        "budget": 3,
        "epochs": 2,
        "batch_size": 32,
        "verbose": 0,
    }
    space = {"width": (0.5, 1, 2, 4), "lr": (1e-3, 1e-1)} if space is None and model is None else space
    return search(model or net(), space, **{**settings, **options})


class Toy(keras_tuner.HyperModel):
    """Its training is a formula: the loss falls with the epochs to what the learning rate allows."""

    def build(self, hp):
        units = hp.Choice("units", [4, 8, 16, 32])
        hp.Float("lr", 1e-6, 1e-1, sampling="log")
        return net(units)

    def fit(self, hp, model, x, y, *, epochs, initial_epoch, callbacks, **options):
        model.stop_training = False
        calls = keras.callbacks.CallbackList(callbacks, model=model)
        calls.on_train_begin()
        for epoch in range(initial_epoch, epochs):
            loss = abs(np.log10(hp.get("lr")) + 2) + 1 / hp.get("units") + 1 / (epoch + 1)
            calls.on_epoch_end(epoch, {"val_loss": loss})
            if model.stop_training:
                break


def no_training(*args, **options):
    raise AssertionError("trained")


def test_the_best_trial_is_the_best_and_its_model_scores_what_it_says():
    result = run(budget=4)
    assert [trial.state for trial in result.trials] == ["complete"] * 4
    accuracies = [trial.figures["val_accuracy"] for trial in result.trials]
    assert result.best.figures["val_accuracy"] == max(accuracies)
    assert [trial.figures["val_accuracy"] for trial in result.ranking] == sorted(accuracies, reverse=True)
    (model,) = result.best_models()
    assert model.evaluate(X, Y, verbose=0)[1] == pytest.approx(max(accuracies))
    for trial in result.trials:
        logs = trial.runs[0].history
        assert len(logs) == 2
        assert trial.figures["val_accuracy"] == max(epoch["val_accuracy"] for epoch in logs)
        assert trial.figures["macs"] == 8 * trial.values["width"] * (6 + 2)
        assert trial.figures["parameters"] == 8 * trial.values["width"] * (6 + 1 + 2) + 2


def test_the_given_model_is_not_changed():
    model = net()
    before = [weight.numpy().copy() for weight in model.weights]
    run(model, {"lr": (0.01, 0.1), "kernel_size": ()}, budget=2)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_constraint_is_checked_before_training(monkeypatch):
    result = run(constraints=("macs <= 64", "parameters < 1000"), budget=3)
    states = {trial.values["width"]: trial.state for trial in result.trials}
    assert states.pop(0.5, "complete") == states.pop(1.0, "complete") == "complete"
    assert set(states.values()) == {"infeasible"}
    assert sum(trial.state == "complete" for trial in result.trials) == 3  # the others cost no budget
    refused = next(trial for trial in result.trials if trial.state == "infeasible")
    assert refused.reason.startswith("breaks macs <= 64 (macs = ")
    assert refused.violation == pytest.approx(refused.figures["macs"] / 64 - 1)
    assert not result.journal.model_path(refused.number).exists()

    monkeypatch.setattr(SearchSpace, "fit", no_training)
    monkeypatch.setattr("tfopt.tuner.costs.file_figures", no_training)  # no file either: 6 * 4 + 4 * 2 bytes at least
    hopeless = run(constraints="tflite_bytes <= 31", method="grid", space={"width": (0.5, 1, 2)}, model=net())
    assert [trial.state for trial in hopeless.trials] == ["infeasible"] * 3
    assert sorted(trial.violation for trial in hopeless.trials) == pytest.approx(
        [32 / 31 - 1, 64 / 31 - 1, 128 / 31 - 1]
    )
    with pytest.raises(TargetNotMetError, match=r"3 trials; the nearest, \d, breaks by 3%"):
        _ = hopeless.best


def test_a_search_among_hopeless_trials_ends(monkeypatch):
    monkeypatch.setattr("tfopt.tuner.loop._REFUSED", 4)
    for method in ("tpe", "random"):
        result = run(constraints="macs <= 10", method=method)
        assert [trial.state for trial in result.trials] == ["infeasible"] * 4


def test_a_constraint_on_a_metric_is_checked_after_training():
    result = run(constraints="val_accuracy >= 2")
    assert [trial.state for trial in result.trials] == ["complete"] * 3
    assert result.ranking == ()
    expected = [(2 - trial.figures["val_accuracy"]) / 2 for trial in result.trials]
    assert [trial.violation for trial in result.trials] == pytest.approx(expected)


@pytest.mark.parametrize("method", ["nsga2", "tpe", "random", "grid"])
def test_several_objectives_give_a_front(method):
    result = run(Toy(), objectives=("val_loss", "macs"), method=method, budget=15)
    points = [(trial.figures["val_loss"], trial.figures["macs"]) for trial in result.trials]
    beaten = [any(a <= x and b <= y and (a, b) != (x, y) for a, b in points) for x, y in points]
    assert sorted(trial.number for trial in result.pareto) == [i for i, lost in enumerate(beaten) if not lost]
    assert result.best.figures["val_loss"] == min(loss for loss, _ in points)
    assert len(result.best_models(2)) == 2


def test_hyperband_goes_on_with_the_trials_it_keeps():
    result = run(method="hyperband", epochs=3, budget=5)
    going_on = [trial for trial in result.trials if "tuner/trial_id" in trial.values]
    assert going_on
    for trial in going_on:
        earlier = result.trials[int(trial.values["tuner/trial_id"])]
        assert earlier.values["lr"] == trial.values["lr"]
        first, last = trial.values["tuner/initial_epoch"], trial.values["tuner/epochs"]
        assert len(trial.runs[0].history) == last - first
        assert trial.runs[0].history[0]["loss"] < earlier.runs[0].history[0]["loss"]  # not from the start


def test_executions_are_averaged():
    result = run(executions=2, budget=1, inherit=False)
    (trial,) = result.trials
    assert len(trial.runs) == 2
    losses = [one.figures["val_accuracy"] for one in trial.runs]
    assert trial.figures["val_accuracy"] == pytest.approx(np.mean(losses))
    assert trial.runs[0].history != trial.runs[1].history


@pytest.mark.parametrize("cv", [4, KFold(4)], ids=["a number", "a splitter"])
def test_folds_are_trained_without_what_they_hold_out(cv):
    seen = []

    class Space(SearchSpace):
        def fit(self, hp, model, x, y, **options):
            seen.append((x, options["validation_data"][0]))
            return super().fit(hp, model, x, y, **options)

    space = Space.from_model(net(), lr=(0.01, 0.1))
    (trial,) = run(net(), space, cv=cv, val=None, budget=1).trials
    assert len(trial.runs) == 4
    for training, held_out in seen:
        assert sorted(map(tuple, np.concatenate([training, held_out]))) == sorted(map(tuple, X))
    np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in seen]), 0), np.sort(X, 0))


def test_datasets_and_sample_weights_are_trained_on(capsys):
    batches = tf.data.Dataset.from_tensor_slices(DATA).batch(16)
    result = run(train=batches, val=batches, budget=1, constraints="tflite_bytes <= 1e5", verbose=1)
    assert result.best.figures["tflite_bytes"] < 1e5
    assert "search" in capsys.readouterr().out

    nothing = np.zeros(32)  # no sample counts: the loss is zero and the weights stay
    model = net()
    result = run(model, {"lr": (0.01, 0.1)}, train=(X, Y, nothing), budget=1)
    assert result.best.figures["loss"] == 0
    for old, new in zip(model.weights, result.best_models()[0].weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_failed_trials_are_recorded_and_do_not_end_it():
    def builder(hp):
        units = hp.Choice("units", [1, 2, 3, 4, 5])
        if units == 3:
            raise MemoryError("three is too many")
        if units == 4:
            return keras.Sequential([kl.Dense("wide")])
        model = net(units)
        model.optimizer.learning_rate = 1e30 if units == 5 else 0.01
        return model

    result = run(builder, method="grid", budget=20, objectives="val_loss")
    reasons = {trial.values["units"]: (trial.state, trial.reason) for trial in result.trials}
    assert len(reasons) == 5
    assert reasons[3] == ("failed", "MemoryError: three is too many")
    assert reasons[4][0] == "failed"
    assert "ValueError" in reasons[4][1]
    assert {reasons[1][0], reasons[2][0]} == {"complete"}
    assert "Failed, 1: MemoryError: three is too many." in str(result)


def test_trials_that_are_never_finite_fail():
    def builder(hp):
        hp.Float("rate", 0, 1)
        model = net()
        model.compile(loss=lambda y_true, y_pred: keras.ops.mean(y_pred) * np.nan, run_eagerly=True)
        return model

    result = run(builder, objectives="val_loss", budget=4)
    assert {(trial.state, trial.reason) for trial in result.trials} == {
        ("failed", "its objective is not finite at any epoch")
    }
    with pytest.raises(TargetNotMetError, match="not finite"):
        result.best_models()


@pytest.mark.parametrize("method", ["tpe", "nsga2", "random", "grid", "hyperband", "bayesian"])
def test_a_second_call_goes_on(tmp_path, method):
    options = {"method": method, "objectives": "val_loss", "directory": tmp_path / "a"}
    first = run(Toy(), budget=4, **options)
    second = run(Toy(), budget=9, **options)
    assert second.trials[:4] == first.trials
    whole = run(Toy(), budget=9, **{**options, "directory": tmp_path / "b"})
    assert [(trial.values, trial.figures) for trial in second.trials] == [(t.values, t.figures) for t in whole.trials]
    assert run(Toy(), budget=9, **options).trials == second.trials


def test_a_relative_folder_is_found_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(directory="here", budget=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert len(result.best_models()) == 1


def test_a_folder_of_another_search_is_refused(tmp_path, monkeypatch):
    model, space = net(), {"lr": (1e-3, 1e-1)}
    run(model, space, directory=tmp_path, budget=1)
    monkeypatch.setattr(SearchSpace, "fit", no_training)
    run(model, space, directory=tmp_path, budget=1)
    others = {"settings": {"seed": 1}, "space": {"space": {"lr": (1e-3, 1e-2)}}, "data": {"val": (X[:9], Y[:9])}}
    for said, options in others.items():
        with pytest.raises(InvalidArgumentError, match=f"differs in {said}"):
            run(model, **{"space": space, "directory": tmp_path, **options})
    with pytest.raises(InvalidArgumentError, match="differs in space"):  # which has other weights to inherit
        run(net(), space, directory=tmp_path)


def test_a_budget_of_seconds_ends_in_time():
    start = time.monotonic()
    result = run(budget="2s", epochs=100_000)
    assert 1.5 < time.monotonic() - start < 15
    assert result.trials[-1].reason == "the time is up"
    assert result.trials[-1].state == "stopped"
    assert "val_accuracy" in result.best.figures


def test_training_without_hope_is_stopped():
    good = [[{"val_loss": 1.0}, {"val_loss": 0.5 + i / 10}] for i in range(5)]  # the best so far: 0.5 to 0.9

    def reason(history, rivals=good, objective="val_loss", epochs=9):
        class Epochs:
            epochs = len(history)

        Epochs.history = [{"val_loss": value} for value in history]
        stopper = Stopper(Epochs(), as_objectives(objective)[0], rivals, np.inf)
        stopper.set_model(keras.Sequential())
        stopper.set_params({"epochs": epochs})
        stopper.model.stop_training = False
        stopper.on_epoch_end(len(history) - 1)
        assert stopper.model.stop_training is (stopper.reason is not None)
        return stopper.reason

    assert reason([2.0, 0.71]) == "worse than the median after epoch 2"
    assert reason([2.0, 0.70]) is None
    assert reason([0.6, 2.0]) is None  # its best counts
    assert reason([2.0]) is None  # too early
    assert reason([2.0, 0.71], epochs=2) is None  # at its end
    assert reason([2.0, 0.71], good[:4]) is None  # too few to compare with
    assert reason([2.0, 2.0, 2.0]) is None  # none has come that far


def test_only_cheaper_trials_are_rivals():
    plain = run(Toy(), objectives="val_loss", epochs=6, budget=14)
    assert any(trial.state == "stopped" for trial in plain.trials)
    for trial in plain.trials:
        earlier = [other.runs[0].history for other in plain.trials[: trial.number]]
        expected = 6
        for epochs in range(6, 1, -1):  # the first epoch after which it is worse than the median
            rivals = [min(logs["val_loss"] for logs in one[:epochs]) for one in earlier if len(one) >= epochs]
            own = min(logs["val_loss"] for logs in trial.runs[0].history[:epochs])
            known = len(trial.runs[0].history) >= epochs
            expected = epochs if known and len(rivals) >= 5 and own > np.median(rivals) else expected
        assert len(trial.runs[0].history) == expected
    several = run(Toy(), objectives=("val_loss", "macs"), epochs=6, budget=14)
    stopped = [trial for trial in several.trials if trial.state == "stopped"]
    for trial in stopped:
        before = several.trials[: trial.number]
        assert sum(other.figures["macs"] <= trial.figures["macs"] for other in before) >= 5
    patient = run(Toy(), objectives="val_loss", budget=9, stop_early=False)
    assert {trial.state for trial in patient.trials} == {"complete"}


def test_results_are_shown(tmp_path):
    result = run(objectives=("val_accuracy", "parameters"), constraints="macs <= 200", budget=3)
    text = str(result)
    assert "Constraints: macs <= 200." in text
    assert f"{result.best.number} *" in text
    frame = result.to_dataframe()
    assert list(frame["number"]) == [trial.number for trial in result.trials]
    assert list(frame["macs"]) == [trial.figures["macs"] for trial in result.trials]
    assert result._repr_html_().count("<svg") == 2
    saved = json.loads(result.save(tmp_path / "result.json").read_text())
    assert saved["pareto"] == [trial.number for trial in result.pareto]
    assert len(saved["trials"]) == len(result.trials)
    assert result.save(tmp_path / "result.html").stat().st_size > 5000
    axes = result.plot_history().axes[0]
    assert sum(len(points.get_offsets()) for points in axes.collections) == sum(t.is_trained for t in result.trials)
    with pytest.raises(InvalidArgumentError, match="two objectives"):
        run(budget=1).plot_front()
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        result.best_models(0)


def test_trials_survive_being_written(tmp_path):
    settings = {"space": "s", "data": "d"}
    trial = Trial(
        7, {"lr": 0.1, "kind": "deep"}, "complete", {"loss": 0.25}, 0.0, (Run({"loss": 0.25}, [{"loss": 0.25}]),), 1.5
    )
    SearchJournal(tmp_path, settings).write(trial)
    backup = tmp_path / "00007.npz"
    backup.touch()  # of a process that was killed before it removed it
    assert SearchJournal(tmp_path, settings).trials() == [trial]
    assert not backup.exists()
    (tmp_path / "00008.json").write_text("{")
    with pytest.raises(FileError, match="must be as `search` wrote it.*00008.json"):
        SearchJournal(tmp_path, settings).trials()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 0}, "number of trials, or seconds"),
        ({"budget": "3 hours"}, "number of trials, or seconds"),
        ({"budget": "-3s"}, "number of trials, or seconds"),
        ({"epochs": 0}, "`epochs`"),
        ({"executions": 1.5}, "`executions`"),
        ({"seed": -1}, "`seed`"),
        ({"train": [X, Y]}, "`train` must be"),
        ({"val": None}, "Pass `val` or `cv`"),
        ({"cv": 3}, "instead of `val`"),
        ({"cv": 1, "val": None}, "`cv` must be a number of folds"),
        ({"method": "bayesian", "objectives": ("val_loss", "macs")}, "takes one objective"),
        ({"method": "annealing"}, "`method` must be one of"),
        ({"objectives": "val_iou"}, "direction"),
        ({"objectives": (("val_iou", "max"),)}, "logged are accuracy, loss, val_accuracy, val_loss"),
        ({"constraints": "gzip_bytes <= 3"}, "'gzip_bytes'"),
        ({"constraints": "macs = 3"}, "A constraint is"),
        ({"space": {"widths": (1, 2)}}, "unexpected keyword"),
        ({"space": {}}, "hold a choice"),
    ],
)
def test_other_options_are_refused(options, said):
    error = TypeError if "keyword" in said else InvalidArgumentError
    with pytest.raises(error, match=said):
        run(net(), **{"space": {"lr": (0.01, 0.1)}, **options})


def test_other_models_are_refused():
    with pytest.raises(InvalidArgumentError, match="makes its own space"):
        search(lambda hp: net(), {"lr": (0.01, 0.1)}, train=DATA, val=DATA)
    with pytest.raises(InvalidArgumentError, match="`model_or_builder` must be"):
        search(3, train=DATA, val=DATA)
    batches = tf.data.Dataset.from_tensor_slices(DATA).batch(8)
    with pytest.raises(InvalidArgumentError, match="needs arrays"):
        search(net(), {"batch_size": (8, 16)}, train=batches, val=batches, verbose=0)
