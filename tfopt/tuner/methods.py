"""The search methods that have a name. To add one, add its entry to `METHODS`: nothing else knows the names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tfopt.tuner.packages import load

_POPULATION = 10  # of NSGA-II: trainings are dear, and the first generation is random


@dataclass(frozen=True)
class Method:
    """How trials are proposed: by a sampler of Optuna, by an oracle of Keras Tuner, or by either.

    Args:
        sampler: makes an Optuna sampler from a seed, or from None for a seed of its own. A method with a sampler also
            works in a `storage`.
        oracle: makes a Keras Tuner oracle from the most epochs of a trial and the options of `keras_tuner.Oracle`.
            Without one, a search in one process takes the sampler.
        takes_several: it handles several objectives.
        sets_epochs: it decides how many epochs each trial gets, so that no training is stopped early.
    """

    sampler: Callable[[int | None], Any] | None = None
    oracle: Callable[..., Any] | None = None
    takes_several: bool = True
    sets_epochs: bool = False


def _tpe(seed: int | None) -> Any:
    return load("optuna").samplers.TPESampler(seed=seed, multivariate=True)


def _nsga2(seed: int | None) -> Any:
    optuna = load("optuna")
    parts = optuna.samplers.nsgaii
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        operators = {"crossover": parts.SBXCrossover(), "mutation": parts.PolynomialMutation()}  # those of the paper
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=_POPULATION, **operators)


def _random_sampler(seed: int | None) -> Any:
    return load("optuna").samplers.RandomSampler(seed=seed)


def _random(epochs: int, **options: Any) -> Any:
    return load("keras_tuner").oracles.RandomSearchOracle(max_trials=None, **options)


def _grid(epochs: int, **options: Any) -> Any:
    from tfopt.tuner.oracles import ShuffledGridOracle  # needs Keras Tuner, which the command only loads to search

    return ShuffledGridOracle(max_trials=None, **options)


def _bayesian(epochs: int, **options: Any) -> Any:
    return load("keras_tuner").oracles.BayesianOptimizationOracle(max_trials=None, **options)


def _hyperband(epochs: int, **options: Any) -> Any:
    return load("keras_tuner").oracles.HyperbandOracle(max_epochs=epochs, hyperband_iterations=None, **options)


METHODS = {
    "tpe": Method(sampler=_tpe),
    "nsga2": Method(sampler=_nsga2),
    "random": Method(sampler=_random_sampler, oracle=_random),
    "grid": Method(oracle=_grid),
    "bayesian": Method(oracle=_bayesian, takes_several=False),
    "hyperband": Method(oracle=_hyperband, takes_several=False, sets_epochs=True),
}
