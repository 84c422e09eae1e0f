"""Optuna's trials for the choices of Keras Tuner: directions, values, and what a sampler may do to its study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tfopt.core.errors import InvalidArgumentError, first_line
from tfopt.tuner.objective import Objective
from tfopt.tuner.packages import load

# What samplers raise for objectives and choices that they cannot handle, and where a package of theirs is missing.
_REFUSALS = (ValueError, TypeError, NotImplementedError, ImportError)


def new_study(objectives: Sequence[Objective], sampler: Any, end: Callable[[], None], **options: Any) -> Any:
    """A study of Optuna.

    Args:
        end: called once the sampler has nothing left to propose.
        options: of `optuna.create_study`.
    """
    optuna = load("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = ["maximize" if objective.direction == "max" else "minimize" for objective in objectives]
    study = optuna.create_study(directions=directions, sampler=sampler, **options)
    study.stop = end  # Optuna's own raises an error outside of `optimize`
    return study


def ask(study: Any) -> Any:
    """A new trial of a study.

    Raises:
        InvalidArgumentError: the sampler of the study cannot handle its objectives.
    """
    with _clear_refusals(study.sampler):
        return study.ask()


def suggested(study: Any, trial: Any, space: Sequence[Any]) -> Any:
    """`HyperParameters` with a value of an Optuna trial for each choice of a space whose condition holds.

    Raises:
        InvalidArgumentError: the sampler of the study cannot handle the choices.
    """
    hps = load("keras_tuner").HyperParameters()
    for hp in space:
        hps.merge([hp])
        if hps.is_active(hp):
            with _clear_refusals(study.sampler):
                hps.values[hp.name] = _suggest(trial, hp)
    return hps


def as_params(space: Sequence[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an Optuna trial that `suggested` makes these values of."""
    found = {hp.name: hp for hp in space if hp.name in values}
    return dict(_param(hp, values[name]) for name, hp in found.items())


@contextmanager
def _clear_refusals(sampler: Any) -> Iterator[None]:
    try:
        yield
    except _REFUSALS as error:
        raise InvalidArgumentError(
            "The sampler must be able to propose values for the choices and objectives of this search.",
            received=f"{type(sampler).__name__}: {first_line(error)}",
            fix="Pass method='tpe', which handles all choices and several objectives.",
        ) from error


def _suggest(trial: Any, hp: Any) -> Any:
    """A value of a Keras Tuner hyperparameter from Optuna."""
    parts = load("keras_tuner").engine.hyperparameters
    if isinstance(hp, parts.Fixed):
        return hp.value
    if isinstance(hp, parts.Boolean):
        return trial.suggest_categorical(hp.name, [False, True])
    if isinstance(hp, parts.Choice):
        return trial.suggest_categorical(hp.name, list(hp.values))
    if _is_by_quantile(hp):
        return hp.prob_to_value(trial.suggest_float(_quantile(hp), 0.0, 1.0))
    if hp.step is None:
        return trial.suggest_float(hp.name, hp.min_value, hp.max_value, log=hp.sampling == "log")
    suggest = trial.suggest_int if isinstance(hp, parts.Int) else trial.suggest_float
    return suggest(hp.name, hp.min_value, hp.max_value, step=hp.step)


def _param(hp: Any, value: Any) -> tuple[str, Any]:
    """The parameter that `_suggest` asks Optuna for, and which value of it gives `value`."""
    return (_quantile(hp), hp.value_to_prob(value)) if _is_by_quantile(hp) else (hp.name, value)


def _is_by_quantile(hp: Any) -> bool:
    """True for a range on a scale that Optuna does not have."""
    parts = load("keras_tuner").engine.hyperparameters
    if not isinstance(hp, (parts.Int, parts.Float)):
        return False
    continuous = isinstance(hp, parts.Float) and hp.step is None
    return hp.sampling == "reverse_log" if continuous else not (hp.sampling == "linear" and hp.step is not None)


def _quantile(hp: Any) -> str:
    return f"{hp.name} (quantile)"
