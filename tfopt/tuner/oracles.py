"""Oracles of Keras Tuner: a shuffled grid, and Optuna's samplers in the shape of one."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from typing import Any

from tfopt.tuner.objective import Objective
from tfopt.tuner.packages import load
from tfopt.tuner.samplers import as_params, ask, new_study, suggested

keras_tuner: Any = load("keras_tuner")
Oracle: Any = keras_tuner.Oracle
VIOLATION = "violation"  # the metric that holds by how much a trial breaks its constraints
_GRID = 100_000  # at most so many points of a grid are visited
_COLLISIONS = 20  # proposals that were there before, until a random one is taken instead


def proposed_again(oracle: Any, values: dict[str, Any], tuner: str = "tuner") -> Any:
    """The next trial, for a tuner of that name, with the values that it had in an earlier session.

    With the same trials before it a seeded oracle proposes them by itself. One without a seed proposes others, or
    nothing; its proposal is replaced. Keras Tuner's Bayesian oracle is spared the fit of its model, which takes
    seconds; it goes on with other random numbers then.
    """
    if isinstance(oracle, keras_tuner.oracles.BayesianOptimizationOracle):
        initial, oracle.num_initial_points = oracle.num_initial_points, sys.maxsize
        trial = oracle.create_trial(tuner)
        oracle.num_initial_points = initial
    else:
        trial = oracle.create_trial(tuner)
    if trial.status != "RUNNING":
        oracle.populate_space = lambda trial_id: {"status": "RUNNING", "values": dict(values)}
        trial = oracle.create_trial(tuner)
        del oracle.populate_space  # that of its class again
    is_another = any(values.get(name) != value for name, value in trial.hyperparameters.values.items())
    trial.hyperparameters.values = dict(values)
    if is_another:
        oracle._record_values(trial)  # what it proposed instead may be proposed again
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
    """A sampler of Optuna as an Oracle of Keras Tuner, for one objective or several, with constraints.

    Args:
        objectives: as `tfopt.tuner.objective` has them; trials report each as a metric.
        sampler: of Optuna; None is its TPE.
        seed: of the random points that are taken where the sampler only repeats itself.
        constrained: trials report the metric `"violation"`, above 0 where a constraint is broken.
        max_trials: as other oracles have it; None for no end.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        sampler: Any = None,
        seed: int = 0,
        constrained: bool = False,
        max_trials: int | None = None,
    ):
        first = keras_tuner.Objective(objectives[0].name, objectives[0].direction)
        failures = sys.maxsize
        super().__init__(first, max_trials=max_trials, seed=seed + 1, max_consecutive_failed_trials=failures)
        self.verbose = 0
        self.objectives, self.constrained = tuple(objectives), constrained
        chosen = load("optuna").samplers.TPESampler(seed=seed) if sampler is None else sampler
        self._study = new_study(self.objectives, chosen, self._end)
        self._asked: dict[str, tuple[Any, dict[str, Any]]] = {}  # id of a running trial -> Optuna's, and its values
        self._is_exhausted = False

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if self._is_exhausted:
            return {"status": "STOPPED", "values": None}
        for _ in range(_COLLISIONS):
            trial = ask(self._study)
            values = suggested(self._study, trial, self.get_space().space).values
            if self._compute_values_hash(values) not in self._tried_so_far:
                self._asked[trial_id] = trial, values
                return {"status": "RUNNING", "values": values}
            self._study.tell(trial, state=load("optuna").trial.TrialState.FAIL)
        values = self._random_values()
        return {"status": "STOPPED" if values is None else "RUNNING", "values": values}

    def end_trial(self, trial: Any) -> None:
        """Ends the trial for Keras Tuner, and tells the sampler."""
        super().end_trial(trial)
        ended = self.trials[trial.trial_id]
        asked, proposed = self._asked.pop(trial.trial_id, (None, {}))
        values = ended.hyperparameters.values
        if asked is None or any(values.get(name) != value for name, value in proposed.items()):
            self._fail(asked)
            self._study.enqueue_trial(as_params(self.get_space().space, values))
            asked = ask(self._study)
            suggested(self._study, asked, self.get_space().space)
        if ended.status != "COMPLETED":
            self._fail(asked)
            return
        if self.constrained:
            asked.set_constraint(VIOLATION, ended.metrics.get_best_value(VIOLATION))
        self._study.tell(asked, [ended.metrics.get_best_value(objective.name) for objective in self.objectives])

    def _end(self) -> None:
        self._is_exhausted = True

    def _fail(self, trial: Any) -> None:
        if trial is not None:
            self._study.tell(trial, state=load("optuna").trial.TrialState.FAIL)
