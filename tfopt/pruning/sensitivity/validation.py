"""The score of a model's variants, without compiling anew, and what scores depend on."""

from __future__ import annotations

from typing import Any

import keras

from tfopt.core.data.goals import Goal
from tfopt.core.data.samples import Labelled
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models import constraints
from tfopt.core.models.fingerprints import fingerprint, model_fingerprint
from tfopt.core.models.graph import Graph
from tfopt.pruning.criteria import as_criterion
from tfopt.pruning.masks import PruningMask


def check_prune_options(options: dict[str, Any]) -> None:
    """Raises for options of `prune` that say how much to prune, which is what is looked for here."""
    taken = sorted({"schedule", "sparsity", "threshold"} & set(options))
    if taken:
        raise InvalidArgumentError(
            "How much is pruned is what is tried here: other options of `prune` are passed on, these are not.",
            received=", ".join(f"{name}={options[name]!r}" for name in taken),
            fix="Pass `sparsities`, the fractions to try.",
        )


def with_data(options: dict[str, Any], samples: Labelled) -> dict[str, Any]:
    """The options of `prune`, with data for a criterion that needs some."""
    criterion = as_criterion(options.get("criterion", "magnitude"))
    return {**options, "data": samples.parts} if criterion.reads_data else options


def fingerprints(graph: Graph, samples: Labelled, goal: Goal, options: dict[str, Any]) -> dict[str, str]:
    """What any score depends on, for its journal."""
    return {
        "model": model_fingerprint(graph),
        "data": fingerprint(list(samples.parts)),
        "metric": f"{goal.name} {goal.mode}",
        "options of prune": fingerprint(options),
    }


def checked_sparsities(sparsities: Any) -> tuple[float, ...]:
    """Fractions above 0 and below 1, in ascending order, each once."""
    try:
        values = sorted({float(sparsity) for sparsity in sparsities})
    except (TypeError, ValueError):
        values = []
    if not values or not all(0.0 < value < 1.0 for value in values):
        raise InvalidArgumentError(
            "`sparsities` must be fractions of zeros to try, each above 0 and below 1.",
            received=repr(sparsities),
            fix="For example (0.5, 0.7, 0.9).",
        )
    return tuple(values)


def masked_kernels(model: keras.Model) -> list[keras.Variable]:
    """The weights that hold a mask of `prune`."""
    return [weight for weight in model.weights if constraints.find(weight, PruningMask) is not None]
