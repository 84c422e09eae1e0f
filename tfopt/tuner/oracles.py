"""What proposes the next trial: Keras Tuner's oracles, a shuffled grid, and Optuna's samplers inside an Oracle."""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from tfopt.core.checks import as_choice
from tfopt.core.errors import InvalidArgumentError
from tfopt.tuner.objective import Objective
from tfopt.tuner.packages import load

keras_tuner: Any = load("keras_tuner")
Oracle: Any = keras_tuner.Oracle
METHODS = ("random", "grid", "bayesian", "hyperband", "tpe", "nsga2")
SEVERAL = ("random", "grid", "tpe", "nsga2")  # that take several objectives
IN_STORAGE = ("tpe", "nsga2", "random")  # that work over a database
VIOLATION = "violation"  # the metric that holds by how much a trial breaks its constraints
_GRID = 100_000  # at most so many points of a grid are visited
_POPULATION = 10  # of NSGA-II: trainings are dear, and the first generation is random
_COLLISIONS = 20  # proposals that were there before, until a random one is taken instead


def make_oracle(
    method: str, objectives: Sequence[Objective], *, seed: int = 0, epochs: int = 10, constrained: bool = False
) -> Any:
    """The Keras Tuner Oracle of that name; it proposes trials without end unless its space is exhausted.

    Args:
        method: one of `METHODS`.
        objectives: one for `"bayesian"` and `"hyperband"`.
        epochs: the most that Hyperband gives to a trial.
        constrained: trials report the metric `VIOLATION`; TPE and NSGA-II then go for trials without.

    Raises:
        InvalidArgumentError: another method, or more objectives than it takes.
    """
    method = as_choice("method", method, METHODS)
    if len(objectives) > 1 and method not in SEVERAL:
        raise InvalidArgumentError(
            f"`method={method!r}` takes one objective.",
            received=", ".join(objective.name for objective in objectives),
            fix="Use 'tpe' or 'nsga2', or make all but one a constraint.",
        )
    if method in ("tpe", "nsga2"):
        return OptunaOracle(objectives, sampler=method, seed=seed, constrained=constrained)
    options = {
        "objective": keras_tuner.Objective(objectives[0].name, objectives[0].direction),
        "seed": seed + 1,  # 0 would be none
        "max_consecutive_failed_trials": sys.maxsize,
    }
    if method == "hyperband":
        oracle = keras_tuner.oracles.HyperbandOracle(max_epochs=epochs, hyperband_iterations=None, **options)
    else:
        classes = {
            "random": keras_tuner.oracles.RandomSearchOracle,
            "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
            "grid": ShuffledGridOracle,
        }
        oracle = classes[method](max_trials=None, **options)
    oracle.verbose = 0
    return oracle


def proposed_again(oracle: Any, values: dict[str, Any], tuner: str = "tuner") -> Any:
    """The next trial, for a tuner of that name, with the values that it had in an earlier session.

    With the same trials before it the oracle proposes them by itself. Keras Tuner's Bayesian oracle is spared the fit
    of its model, which takes seconds; it goes on with other random numbers then.
    """
    if isinstance(oracle, keras_tuner.oracles.BayesianOptimizationOracle):
        initial, oracle.num_initial_points = oracle.num_initial_points, sys.maxsize
        trial = oracle.create_trial(tuner)
        oracle.num_initial_points = initial
    else:
        trial = oracle.create_trial(tuner)
    trial.hyperparameters.values = dict(values)
    return trial


class ShuffledGridOracle(Oracle):
    """Every combination of the space once, in an order that depends on the seed alone.

    A range without a step counts as ten values. Choices under a condition that does not hold make no difference. Of
    more than 100 000 combinations as many are drawn.
    """

    def __init__(self, objective: Any = None, max_trials: int | None = None, seed: int | None = None, **options: Any):
        super().__init__(objective=objective, max_trials=max_trials, seed=seed, **options)
        self._order: list[int] = []
        self._next, self._points = 0, 0

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        space = self.get_space().space
        choices = [sorted(set(hp.values)) for hp in space]
        points = math.prod(map(len, choices))
        if points != self._points:  # the space grew: start anew, what was tried is known
            self._points, self._next = points, 0
            self._order = random.Random(self.seed).sample(range(points), min(points, _GRID))
        while self._next < len(self._order):
            number = self._order[self._next]
            self._next += 1
            hps = keras_tuner.HyperParameters()
            for hp, values in zip(space, choices, strict=True):
                number, place = divmod(number, len(values))
                hps.merge([hp])
                if hps.is_active(hp):
                    hps.values[hp.name] = values[place]
            if self._compute_values_hash(hps.values) not in self._tried_so_far:
                return {"status": "RUNNING", "values": hps.values}
        return {"status": "STOPPED", "values": None}


class OptunaOracle(Oracle):
    """Optuna's TPE or NSGA-II as an Oracle of Keras Tuner, for one objective or several, with constraints.

    Args:
        objectives: as `tfopt.tuner.objective` has them; trials report each as a metric.
        sampler: `"tpe"` or `"nsga2"`.
        seed: of the sampler.
        constrained: trials report the metric `"violation"`, above 0 where a constraint is broken.
        max_trials: as other oracles have it; None for no end.

    Source: TPE, Bergstra et al. 2011; NSGA-II, Deb et al. 2002, https://doi.org/10.1109/4235.996017.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        sampler: str = "tpe",
        seed: int = 0,
        constrained: bool = False,
        max_trials: int | None = None,
    ):
        first = keras_tuner.Objective(objectives[0].name, objectives[0].direction)
        failures = sys.maxsize
        super().__init__(first, max_trials=max_trials, seed=seed + 1, max_consecutive_failed_trials=failures)
        self.verbose = 0
        self.objectives, self.constrained = tuple(objectives), constrained
        made = make_sampler(sampler, seed)
        self._study = load("optuna").create_study(directions=directions(self.objectives), sampler=made)
        self._asked: dict[str, Any] = {}  # id of a running trial -> Optuna's

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        for _ in range(_COLLISIONS):
            trial = self._study.ask()
            values = suggested(trial, self.get_space().space).values
            if self._compute_values_hash(values) not in self._tried_so_far:
                self._asked[trial_id] = trial
                return {"status": "RUNNING", "values": values}
            self._study.tell(trial, state=load("optuna").trial.TrialState.FAIL)
        values = self._random_values()
        return {"status": "STOPPED" if values is None else "RUNNING", "values": values}

    def end_trial(self, trial: Any) -> None:
        """Ends the trial for Keras Tuner, and tells the sampler."""
        super().end_trial(trial)
        ended = self.trials[trial.trial_id]
        asked = self._asked.pop(trial.trial_id, None)
        values = ended.hyperparameters.values
        if asked is None or any(values.get(name) != value for name, value in asked.params.items()):
            self._fail(asked)
            self._study.enqueue_trial(values)
            asked = self._study.ask()
            suggested(asked, self.get_space().space)
        if ended.status != "COMPLETED":
            self._fail(asked)
            return
        if self.constrained:
            asked.set_constraint(VIOLATION, ended.metrics.get_best_value(VIOLATION))
        self._study.tell(asked, [ended.metrics.get_best_value(objective.name) for objective in self.objectives])

    def _fail(self, trial: Any) -> None:
        if trial is not None:
            self._study.tell(trial, state=load("optuna").trial.TrialState.FAIL)


def make_sampler(method: str, seed: int | None) -> Any:
    """Optuna's sampler of that name, one of `IN_STORAGE`; without a seed it is another in each process."""
    optuna = load("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if method == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if method == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)
    parts = optuna.samplers.nsgaii
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        operators = {"crossover": parts.SBXCrossover(), "mutation": parts.PolynomialMutation()}  # those of the paper
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=_POPULATION, **operators)


def directions(objectives: Sequence[Objective]) -> list[str]:
    """The directions of objectives as Optuna has them."""
    return ["maximize" if objective.direction == "max" else "minimize" for objective in objectives]


def suggested(trial: Any, space: Sequence[Any]) -> Any:
    """`HyperParameters` with a value of an Optuna trial for each choice of a space whose condition holds."""
    hps = keras_tuner.HyperParameters()
    for hp in space:
        hps.merge([hp])
        if hps.is_active(hp):
            hps.values[hp.name] = _suggest(trial, hp)
    return hps


def _suggest(trial: Any, hp: Any) -> Any:
    """A value of a Keras Tuner hyperparameter from Optuna."""
    parts = keras_tuner.engine.hyperparameters
    if isinstance(hp, parts.Fixed):
        return hp.value
    if isinstance(hp, parts.Boolean):
        return trial.suggest_categorical(hp.name, [False, True])
    if isinstance(hp, parts.Choice):
        return trial.suggest_categorical(hp.name, list(hp.values))
    if hp.sampling == "linear" and hp.step is not None:
        suggest = trial.suggest_int if isinstance(hp, parts.Int) else trial.suggest_float
        return suggest(hp.name, hp.min_value, hp.max_value, step=hp.step)
    if isinstance(hp, parts.Float) and hp.step is None and hp.sampling != "reverse_log":
        return trial.suggest_float(hp.name, hp.min_value, hp.max_value, log=hp.sampling == "log")
    return hp.prob_to_value(trial.suggest_float(f"{hp.name} (quantile)", 0.0, 1.0))
