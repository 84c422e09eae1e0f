"""Oracles: what they propose, in which order, and that they can be taken up again."""

import itertools

import keras
import keras_tuner
import numpy as np
import pytest

from tfopt.core.errors import InvalidArgumentError
from tfopt.tuner import packages
from tfopt.tuner.methods import METHODS
from tfopt.tuner.objective import as_objectives
from tfopt.tuner.oracles import OptunaOracle, proposed_again
from tfopt.tuner.proposers import make_oracle


def space():
    hps = keras_tuner.HyperParameters()
    hps.Choice("activation", ["relu", "elu", "gelu"])
    hps.Float("lr", 1e-4, 1e-1, sampling="log")
    hps.Int("units", 4, 16, step=4)
    return hps


def distance(values):
    return {"val_loss": abs(np.log10(values["lr"]) + 2) + abs(values["units"] - 12) / 4}


def oracle_of(method, hps=None, objectives="val_loss", **options):
    oracle = make_oracle(method, as_objectives(objectives), **options)
    oracle.save = lambda: None
    oracle._save_trial = lambda trial: None
    oracle.update_space(hps or space())
    return oracle


def end(oracle, trial, metrics):
    oracle.update_trial(trial.trial_id, metrics)
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def run(oracle, trials, measure=distance):
    found = []
    for _ in range(trials):
        trial = oracle.create_trial("tuner")
        if trial.status != "RUNNING":
            break
        found.append(dict(trial.hyperparameters.values))
        end(oracle, trial, measure(found[-1]))
    return found


def test_the_grid_is_visited_once_in_an_order_of_the_seed():
    hps = keras_tuner.HyperParameters()
    hps.Choice("a", [1, 2, 3, 4])
    hps.Boolean("b")
    hps.Int("c", 0, 10, step=5)
    orders = [run(oracle_of("grid", hps, seed=seed), 100, lambda values: {"val_loss": 1.0}) for seed in (0, 0, 1)]
    points = [tuple(values.values()) for values in orders[0]]
    assert sorted(points) == sorted(itertools.product([1, 2, 3, 4], [False, True], [0, 5, 10]))
    assert orders[0] == orders[1] != orders[2]
    assert len({point[0] for point in points[:6]}) > 1  # in order of the names it would be one


def test_a_choice_whose_condition_does_not_hold_is_no_combination():
    hps = keras_tuner.HyperParameters()
    hps.Choice("kind", ["plain", "deep"])
    with hps.conditional_scope("kind", ["deep"]):
        hps.Int("layers", 2, 4)
    expected = [{"kind": "deep", "layers": 2}, {"kind": "deep", "layers": 3}, {"kind": "deep", "layers": 4}]
    for method in ("grid", "tpe", "nsga2"):
        found = run(oracle_of(method, hps), 20, lambda values: {"val_loss": 1.0})
        assert sorted(found, key=str) == [*expected, {"kind": "plain"}]


@pytest.mark.parametrize("method", sorted({*METHODS} - {"bayesian"}))
def test_the_same_trials_give_the_same_proposal(method):
    whole = run(oracle_of(method, seed=3), 14)
    assert whole == run(oracle_of(method, seed=3), 14)
    again = oracle_of(method, seed=3)
    for values in whole[:9]:
        end(again, proposed_again(again, values), distance(values))
    assert run(again, 5) == whole[9:]


def test_a_bayesian_oracle_is_taken_up_without_fitting_its_model():
    oracle = oracle_of("bayesian", seed=1)
    oracle.gpr = None  # a fit would fail
    old = [{"activation": "relu", "lr": 10 ** -(1 + i / 10), "units": 8} for i in range(15)]
    for values in old:
        end(oracle, proposed_again(oracle, values), distance(values))
    assert [trial.hyperparameters.values for trial in oracle.trials.values()] == old
    x, y = oracle._vectorize_trials()
    assert x.shape == (15, 3)
    np.testing.assert_allclose(y, [distance(values)["val_loss"] for values in old])
    assert oracle.num_initial_points is None


@pytest.mark.parametrize("method", ["tpe", "nsga2"])
def test_other_values_than_proposed_are_learned_from(method):
    oracle = oracle_of(method)
    values = {"activation": "gelu", "lr": 0.0123, "units": 16}
    end(oracle, proposed_again(oracle, values), {"val_loss": 0.5})
    told = [trial for trial in oracle._study.trials if trial.values == [0.5]]
    assert [trial.params for trial in told] == [values]


@pytest.mark.parametrize("method", ["tpe", "nsga2", "random"])
def test_values_are_of_the_space(method):
    for values in run(oracle_of(method), 25):
        assert values["activation"] in ("relu", "elu", "gelu")
        assert 1e-4 <= values["lr"] <= 1e-1
        assert values["units"] in (4, 8, 12, 16)


def test_every_kind_of_hyperparameter_is_sampled():
    hps = keras_tuner.HyperParameters()
    hps.Fixed("fixed", 7)
    hps.Boolean("flag")
    hps.Int("layers", 1, 100, sampling="log")
    hps.Float("drop", 0.0, 0.5, step=0.25)
    hps.Float("momentum", 0.9, 0.999, sampling="reverse_log")
    for values in run(oracle_of("tpe", hps), 20, lambda values: {"val_loss": 1.0}):
        assert values["fixed"] == 7
        assert isinstance(values["flag"], bool)
        assert isinstance(values["layers"], int)
        assert 1 <= values["layers"] <= 100
        assert values["drop"] in (0, 0.25, 0.5)
        assert 0.9 <= values["momentum"] <= 0.999


def test_tpe_finds_what_is_good():
    found = run(oracle_of("tpe"), 60)
    drawn = run(oracle_of("random"), 60)
    later = [np.mean([distance(values)["val_loss"] for values in part[30:]]) for part in (found, drawn)]
    assert later[0] < later[1] / 2


@pytest.mark.parametrize("method", ["tpe", "nsga2"])
def test_constraints_are_learned(method):
    def measure(values):  # the best units, 12, are not allowed
        return {**distance(values), "macs": values["units"], "violation": max(0, values["units"] - 8) / 8}

    oracle = oracle_of(method, objectives=("val_loss", "macs"), constrained=True)
    later = run(oracle, 160, measure)[100:]
    share = np.mean([values["units"] <= 8 for values in later])
    assert share > 0.65  # by chance it is a half


def test_failed_trials_do_not_end_it():
    for method in ("tpe", "random", "grid"):
        oracle = oracle_of(method)
        for _ in range(8):
            trial = oracle.create_trial("tuner")
            trial.status = "FAILED"
            oracle.end_trial(trial)
        assert len(run(oracle, 3)) == 3


def test_it_works_inside_a_tuner_of_keras_tuner(tmp_path):
    class Tuner(keras_tuner.Tuner):
        def run_trial(self, trial, *args, **options):
            return distance({"lr": trial.hyperparameters.Float("lr", 1e-4, 1e-1, sampling="log"), "units": 12})

    tuner = Tuner(OptunaOracle(as_objectives("val_loss"), max_trials=25), directory=tmp_path)
    tuner.search()
    assert len(tuner.oracle.trials) == 25
    assert 1e-3 < tuner.get_best_hyperparameters()[0]["lr"] < 1e-1


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InvalidArgumentError, match="`method` must be one of"):
        make_oracle("anneal", as_objectives("val_loss"))
    for method in ("bayesian", "hyperband"):
        with pytest.raises(InvalidArgumentError, match="takes one objective"):
            make_oracle(method, as_objectives(["val_loss", "macs"]))


def test_a_missing_package_is_named():
    with pytest.raises(InvalidArgumentError, match=r"needs the package 'no_such'.*pip install tfopt\[search\]"):
        packages.load("no_such")
    assert packages.load("keras") is keras


def test_ranges_on_scales_that_optuna_does_not_have_are_learned_as_they_were_tried():
    hps = keras_tuner.HyperParameters()
    hps.Int("layers", 1, 100, sampling="log")
    hps.Float("momentum", 0.9, 0.999, sampling="reverse_log")
    oracle = oracle_of("tpe", hps)
    for layers, momentum in ((7, 0.95), (60, 0.99)):
        end(oracle, proposed_again(oracle, {"layers": layers, "momentum": momentum}), {"val_loss": float(layers)})
    told = {trial.value: trial for trial in oracle._study.trials if trial.state.name == "COMPLETE"}
    for value, momentum in ((7, 0.95), (60, 0.99)):
        params = told[value].params
        assert hps.space[0].prob_to_value(params["layers (quantile)"]) == value
        assert hps.space[1].prob_to_value(params["momentum (quantile)"]) == pytest.approx(momentum)
