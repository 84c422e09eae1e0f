"""How much each hyperparameter matters: functional ANOVA over the trials of a search, by Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfopt.core.errors import InvalidArgumentError
from tfopt.tuner.journal import Trial
from tfopt.tuner.objective import Objective
from tfopt.tuner.packages import load

_FEWEST = 5  # trials; of fewer, chance alone decides


def importances(objective: Objective, trials: Sequence[Trial]) -> dict[str, float]:
    """The share of the differences in the objective that each hyperparameter explains, largest first; they sum to 1.

    Numbers are replaced by their rank among the trials, so that the scale of a range makes no difference and each
    value weighs the same.

    Args:
        trials: trained ones.

    Raises:
        InvalidArgumentError: too few trials, or nothing differs among them.

    Source: functional ANOVA, Hutter et al. 2014, https://proceedings.mlr.press/v32/hutter14.html.
    """
    reason = reason_for_none(objective, trials)
    if reason is not None:
        raise InvalidArgumentError(
            f"Importance takes at least {_FEWEST} trained trials that differ in a hyperparameter and in the objective.",
            received=reason,
            fix="Search longer, or over a larger space.",
        )
    optuna = load("optuna")
    load("sklearn")  # Optuna grows its trees with it
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    columns = {name: _column(values) for name, values in _varied(trials).items()}
    domains = {name: domain for name, (_, domain) in columns.items()}
    for row, trial in enumerate(trials):
        params = {name: codes[row] for name, (codes, _) in columns.items()}
        value = trial.figures[objective.name]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=domains, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def reason_for_none(objective: Objective, trials: Sequence[Trial]) -> str | None:
    """Why these trials do not tell which hyperparameter matters; None if they do."""
    if len(trials) < _FEWEST:
        return f"{len(trials)} trained trials"
    if len({trial.figures[objective.name] for trial in trials}) == 1:
        return f"the same {objective.name} in all {len(trials)} trials"
    return None if _varied(trials) else "trials without a difference in a hyperparameter that all of them have"


def _varied(trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """`{name: value in each trial}` of the hyperparameters that all trials have, with more than one value."""
    shared = [name for name in trials[0].values if all(name in trial.values for trial in trials)]
    columns = {name: [trial.values[name] for trial in trials] for name in shared if not name.startswith("tuner/")}
    return {name: values for name, values in columns.items() if len(set(values)) > 1}


def _column(values: Sequence[Any]) -> tuple[list[Any], Any]:
    """The values as Optuna takes them, ranks or texts, and their domain."""
    distributions = load("optuna").distributions
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        ordered = sorted(set(values))
        return [ordered.index(value) for value in values], distributions.IntDistribution(0, len(ordered) - 1)
    texts = list(map(str, values))
    return texts, distributions.CategoricalDistribution(sorted(set(texts)))
