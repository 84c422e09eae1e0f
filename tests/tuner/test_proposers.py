"""Samplers of Optuna and oracles of Keras Tuner as `method`: what they propose, what is on record, what is refused."""

import threading

import keras
import keras_tuner
import optuna
import pytest
from searched import DATA, Watched, net

from tfopt.core.errors import InvalidArgumentError
from tfopt.tuner.objective import as_objectives
from tfopt.tuner.proposers import as_proposer
from tfopt.tuner.tune import search

TPE = optuna.samplers.TPESampler


class Curve(keras_tuner.HyperModel):
    """Its training is a formula."""

    def build(self, hp):
        hp.Float("lr", 1e-6, 1e-1, sampling="log")
        return net(hp.Choice("units", [1, 2, 3, 4]))

    def fit(self, hp, model, x, y, *, epochs, callbacks, **options):
        calls = keras.callbacks.CallbackList(callbacks, model=model)
        calls.on_train_begin()
        for epoch in range(epochs):
            calls.on_epoch_end(epoch, {"val_loss": abs(hp.get("lr") - 0.01) + 1 / (hp.get("units") + epoch)})


class Mine(optuna.samplers.RandomSampler):
    """A sampler of a user's own."""


def run(method, space=None, **options):
    settings = {"train": DATA, "val": DATA, "objectives": "val_loss", "epochs": 1, "budget": 5, "verbose": 0}
    return search(space or Curve(), method=method, **{**settings, **options})


def points(found):
    return [trial.values for trial in found.trials]


def random_oracle(**options):
    return keras_tuner.oracles.RandomSearchOracle(**options)


@pytest.mark.parametrize("options", [{}, {"objectives": ("val_loss", "macs"), "constraints": "macs <= 15"}])
def test_a_sampler_proposes_what_the_method_of_that_name_does(options):
    """Objectives and constraints reach Optuna in the same way."""
    sampler = TPE(seed=3, multivariate=True)
    named = run("tpe", seed=3, budget=13, **options)
    found = run(sampler, seed=3, budget=13, **options)
    assert found.trials[0].values["units"] in (1, 2, 3, 4)
    assert points(found) == points(named) == points(run(sampler, seed=3, budget=13, **options))  # it is not used up
    assert found.title == "Search of builder by TPESampler"


def test_an_oracle_proposes_what_the_method_of_that_name_does():
    found = run(random_oracle(objective="val_loss", seed=1, max_trials=2))  # `budget` counts
    assert points(found) == points(run("random", seed=0))
    assert len(found.trials) == 5
    assert points(run(random_oracle(seed=1))) == points(found)  # takes the objective of the search


def test_an_oracle_that_sets_epochs_is_not_stopped_early():
    oracle = keras_tuner.oracles.HyperbandOracle(objective="val_loss", max_epochs=3, seed=1)
    assert as_proposer(oracle, as_objectives("val_loss")).method.sets_epochs
    found = run(oracle, budget=5, epochs=9)
    assert {len(trial.runs[0].history) for trial in found.trials} <= {1, 2, 3}


@pytest.mark.parametrize("method", [TPE, random_oracle, Mine])
def test_without_a_seed_a_second_call_goes_on(tmp_path, method):
    """What is proposed anew is replaced by what is on record, until the six points are used up."""
    options = {"space": Watched(tmp_path), "directory": tmp_path / "search"}
    first = run(method(), budget=4, **options)
    whole = run(method(), budget=9, **options)
    assert whole.trials[:4] == first.trials
    assert sorted(trial.values["units"] for trial in whole.trials) == [1, 2, 3, 4, 5, 6]


def test_another_method_does_not_go_on(tmp_path):
    run(TPE(n_startup_trials=3), budget=1, directory=tmp_path)
    run(TPE(n_startup_trials=3, seed=5), budget=1, directory=tmp_path)
    for other in (TPE(n_startup_trials=4), Mine(), "tpe", random_oracle()):
        with pytest.raises(InvalidArgumentError, match="differs in settings"):
            run(other, budget=1, directory=tmp_path)


def test_a_sampler_that_is_at_its_end_ends_the_search():
    """Optuna's own grid, in one process: each point once."""
    found = run(optuna.samplers.GridSampler({"units": [1, 2, 3, 4], "lr": [0.01, 0.001]}), budget=50)
    assert sorted((values["units"], values["lr"]) for values in points(found)) == [
        (units, lr) for units in (1, 2, 3, 4) for lr in (0.001, 0.01)
    ]


def test_in_a_storage(tmp_path):
    storage = {"storage": f"sqlite:///{tmp_path}/studies.db", "directory": tmp_path / "search"}
    grid = optuna.samplers.GridSampler({"units": [2, 3], "lr": [0.01]})
    found = run(grid, budget=9, name="grid", **storage)
    assert sorted(values["units"] for values in points(found)) == [2, 3]
    assert points(run(grid, budget=9, name="grid", **storage)) == points(found)
    seeded = [points(run(Mine(seed=0), name=name, budget=2, storage=storage["storage"])) for name in ("a", "b")]
    assert seeded[0] != seeded[1]  # workers with one seed would have the same ideas
    with pytest.raises(InvalidArgumentError, match=r"tpe, nsga2, random, or a sampler.*RandomSearchOracle"):
        run(random_oracle(), name="c", **storage)


def test_with_workers(tmp_path):
    oracle = keras_tuner.oracles.GridSearchOracle(objective="val_loss")
    found = run(oracle, Watched(tmp_path), budget=3, workers=2)
    assert [trial.state for trial in found.trials] == ["complete"] * 3
    assert len({trial.values["units"] for trial in found.trials}) == 3


def test_what_proposes_no_trials_is_refused(tmp_path):
    used = random_oracle(objective="val_loss", seed=1)
    used.trials["0"] = None
    locked = Mine()
    locked.lock = threading.Lock()
    for method, said in (
        ("anneal", r"must be one of tpe, .* or a sampler of Optuna or an oracle of Keras Tuner.*'anneal'"),
        (["tpe"], "must be one of"),
        (TPE, "the class TPESampler.*Pass an object"),
        (used, "must be new.*with 1 trials"),
        (random_oracle(objective="val_accuracy"), r"must be those of the search.*val_accuracy \(max\)"),
        (locked, "works on a copy.*lock"),
    ):
        with pytest.raises(InvalidArgumentError, match=said):
            run(method, directory=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidArgumentError, match="must be those of the search"):
        run(random_oracle(objective="val_loss"), objectives=("val_loss", "macs"))
    both = random_oracle(objective=["val_loss", keras_tuner.Objective("macs", "min")])
    assert len(run(both, objectives=("val_loss", "macs"), budget=2).trials) == 2


def test_a_sampler_that_cannot_handle_the_search_is_named(tmp_path):
    class Simple(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, param_name, param_distribution):
            if len(study.directions) > 1:
                raise ValueError("one objective only")
            return super().sample_independent(study, trial, param_name, param_distribution)

    assert len(run(Simple(), budget=2).trials) == 2
    for options in ({}, {"storage": f"sqlite:///{tmp_path}/studies.db", "name": "a"}):
        with pytest.raises(InvalidArgumentError, match="must be able to propose.*Simple: one objective only.*'tpe'"):
            run(Simple(), objectives=("val_loss", "macs"), **options)
