"""Each way to extend tfopt by the smallest class or function of a user's own; `docs/extending.md` explains them."""

import keras
import keras_tuner
import numpy as np
import optuna
import pytest
from keras import layers as kl

import tfopt


class InTurn(optuna.samplers.BaseSampler):
    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return param_distribution.choices[trial.number % len(param_distribution.choices)]


class Upwards(keras_tuner.Oracle):
    def populate_space(self, trial_id):
        return {"status": "RUNNING", "values": {"units": [3, 1, 2][len(self.trials)]}}


@pytest.mark.parametrize("method", [InTurn(), Upwards()])
def test_a_search_method_is_a_sampler_or_an_oracle(method):
    def builder(hp):
        model = keras.Sequential([keras.Input((2,)), kl.Dense(hp.Choice("units", [3, 1, 2])), kl.Dense(1)])
        model.compile("sgd", "mse")
        return model

    data = np.eye(2, dtype="float32"), np.zeros(2)
    found = tfopt.search(
        builder, train=data, val=data, method=method, objectives="val_loss", budget=3, epochs=1, verbose=0
    )
    assert [trial.values["units"] for trial in found.trials] == [3, 1, 2]
