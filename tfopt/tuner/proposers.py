"""What proposes the trials of a search: a method by name, or a sampler of Optuna or an oracle of Keras Tuner."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfopt.core.errors import InvalidArgumentError, first_line
from tfopt.tuner.code import code_fingerprint
from tfopt.tuner.methods import METHODS, Method
from tfopt.tuner.objective import Objective
from tfopt.tuner.oracles import OptunaOracle, keras_tuner
from tfopt.tuner.packages import load

_NOT_COMPARED = ("seed", "max_trials", "max_retries_per_trial", "max_consecutive_failed_trials")
_EXAMPLE = "Pass an object, such as method=optuna.samplers.TPESampler(n_startup_trials=20)."
_NO_OBJECTIVE: type = type(keras_tuner.Oracle().objective)  # the class of the objective of an oracle without one


@dataclass(frozen=True)
class Proposer:
    """The method of one search.

    Args:
        name: that results show.
        identity: what a search on record is compared by.
        method: makes the sampler or the oracle.
    """

    name: str
    identity: Any
    method: Method

    def oracle(self, objectives: Sequence[Objective], *, seed: int, epochs: int, constrained: bool) -> Any:
        """The oracle that proposes the trials of one process. It has no end unless its space is exhausted.

        Args:
            epochs: the most that Hyperband gives to a trial.
            constrained: trials report the metric `VIOLATION`, which Optuna's samplers learn from.
        """
        if self.method.oracle is None:
            assert self.method.sampler is not None
            sampler = self.method.sampler(seed)
            return OptunaOracle(objectives, sampler=sampler, seed=seed, constrained=constrained)
        first = keras_tuner.Objective(objectives[0].name, objectives[0].direction)
        oracle = self.method.oracle(epochs, objective=first, seed=seed + 1)  # 0 would be none
        oracle.max_consecutive_failed_trials = sys.maxsize
        oracle.verbose = 0
        return oracle

    def shared_sampler(self) -> Any:
        """The sampler of this process in a `storage`, where each process has random numbers of its own."""
        assert self.method.sampler is not None
        return self.method.sampler(None)


def as_proposer(method: Any, objectives: Sequence[Objective]) -> Proposer:
    """The method that a name, a sampler of Optuna or an oracle of Keras Tuner stands for.

    Raises:
        InvalidArgumentError: something else, or other objectives than it takes.
    """
    if isinstance(method, str) and method in METHODS:
        chosen = METHODS[method]
        if len(objectives) > 1 and not chosen.takes_several:
            raise InvalidArgumentError(
                f"`method={method!r}` takes one objective.",
                received=", ".join(objective.name for objective in objectives),
                fix="Use 'tpe' or 'nsga2', or make all but one a constraint.",
            )
        return Proposer(method, method, chosen)
    if isinstance(method, load("optuna").samplers.BaseSampler):
        return Proposer(type(method).__name__, _identity(method), _of_sampler(method))
    if isinstance(method, keras_tuner.Oracle):
        _check_oracle(method, objectives)
        return Proposer(type(method).__name__, _identity(method), _of_oracle(method))
    raise InvalidArgumentError(
        f"`method` must be one of {', '.join(METHODS)}, or a sampler of Optuna or an oracle of Keras Tuner.",
        received=f"the class {method.__name__}" if isinstance(method, type) else repr(method),
        fix=_EXAMPLE,
    )


def make_oracle(
    method: Any, objectives: Sequence[Objective], *, seed: int = 0, epochs: int = 10, constrained: bool = False
) -> Any:
    """The oracle of `as_proposer(method, objectives)`."""
    return as_proposer(method, objectives).oracle(objectives, seed=seed, epochs=epochs, constrained=constrained)


def _of_sampler(sampler: Any) -> Method:
    def made(seed: int | None) -> Any:
        own = _copied(sampler)
        if seed is None:
            own.reseed_rng()
        return own

    return Method(sampler=made)


def _of_oracle(oracle: Any) -> Method:
    def made(epochs: int, **options: Any) -> Any:
        own = _copied(oracle)
        own.max_trials, own.max_retries_per_trial = None, 0  # `budget` decides
        if type(own.objective) is _NO_OBJECTIVE:
            own.objective = options["objective"]
        return own

    return Method(oracle=made, sets_epochs=isinstance(oracle, keras_tuner.oracles.HyperbandOracle))


def _copied(proposer: Any) -> Any:
    """A copy, so that the same object proposes the same trials in the next search."""
    try:
        return copy.deepcopy(proposer)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise InvalidArgumentError(
            "A search works on a copy of `method`, which must be possible to make.",
            received=f"{type(proposer).__name__}: {first_line(error)}",
            fix="Give its class a method `__deepcopy__`, or keep open files and locks out of it.",
        ) from error


def _check_oracle(oracle: Any, objectives: Sequence[Objective]) -> None:
    if oracle.trials:
        raise InvalidArgumentError(
            "An oracle passed as `method` must be new.",
            received=f"{type(oracle).__name__} with {len(oracle.trials)} trials",
            fix="Pass one without trials; with the same `directory` a search goes on by itself.",
        )
    own = {part.name: part.direction for part in getattr(oracle.objective, "objectives", [oracle.objective])}
    wanted = {objective.name: objective.direction for objective in objectives}
    if own != wanted and not (type(oracle.objective) is _NO_OBJECTIVE and len(objectives) == 1):
        raise InvalidArgumentError(
            "The objectives of an oracle must be those of the search.",
            received=f"{_listed(own)} and `objectives` {_listed(wanted)}",
            fix=f"Pass objectives={list(own.items())}, or an oracle with those of the search.",
        )


def _listed(objectives: dict[str, str]) -> str:
    return ", ".join(f"{name} ({direction})" for name, direction in objectives.items())


def _identity(proposer: Any) -> list[Any]:
    """The class, what a user wrote of it, and the plain arguments of its constructor that it keeps."""
    kind = type(proposer)
    names = [name for name in inspect.signature(kind).parameters if name not in _NOT_COMPARED]
    kept = {name: getattr(proposer, name, getattr(proposer, f"_{name}", ...)) for name in names}
    plain = {name: value for name, value in kept.items() if _is_plain(value)}
    return [f"{kind.__module__}.{kind.__qualname__}", code_fingerprint(kind), plain]


def _is_plain(value: Any) -> bool:
    """True for numbers, texts, None, and lists and dicts of them."""
    return all(isinstance(part, (bool, int, float, str, type(None))) for part in keras.tree.flatten(value))
