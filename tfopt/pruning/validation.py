"""The score of a model's variants, without compiling anew, and what scores depend on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core import constraints
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.fingerprints import fingerprint, model_fingerprint
from tfopt.core.goals import Goal
from tfopt.core.rewrite import rewrite
from tfopt.core.samples import Labelled, take
from tfopt.pruning.criteria import as_criterion
from tfopt.pruning.masks import PruningMask

_FROM_DATA = {"gradients", "input_norms", "activations"}  # what criteria need that is measured on data


class Stand:
    """One copy of a model that takes the weights of its variants and predicts.

    Its function is traced once for all of them, and has none of the set-up of `Model.predict`, which for the small
    data of a validation takes longer than the predictions.
    """

    def __init__(self, model: keras.Model, batch_size: int):
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise InvalidArgumentError("`batch_size` is a whole number of at least 1.", received=repr(batch_size))
        self.model = rewrite(model)
        self._batch_size = batch_size
        self._run = tf.function(lambda x: self.model(x, training=False), reduce_retracing=True)

    def put(self, variables: Iterable[keras.Variable], sources: Iterable[keras.Variable]) -> None:
        for variable, source in zip(variables, sources, strict=True):
            variable.assign(source.value)

    def predict(self, x: Any) -> Any:
        samples = len(keras.tree.flatten(x)[0])
        starts = range(0, samples, self._batch_size)
        outputs = [self._run(take(x, slice(start, start + self._batch_size))) for start in starts]
        return keras.tree.map_structure(lambda *parts: np.concatenate([part.numpy() for part in parts]), *outputs)


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
    return {**options, "data": (samples.x, samples.y)} if _FROM_DATA & set(criterion.needs) else options


def fingerprints(model: keras.Model, samples: Labelled, goal: Goal, options: dict[str, Any]) -> dict[str, str]:
    """What any score depends on, for `Journal`."""
    return {
        "model": model_fingerprint(model),
        "data": fingerprint([samples.x, samples.y]),
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
            "`sparsities` are fractions of zeros to try, each above 0 and below 1.",
            received=repr(sparsities),
            fix="For example (0.5, 0.7, 0.9).",
        )
    return tuple(values)


def masked_kernels(model: keras.Model) -> list[keras.Variable]:
    """The weights that hold a mask of `prune`."""
    return [weight for weight in model.weights if constraints.find(weight, PruningMask) is not None]
