"""Labelled data, a metric and its direction: the score of a model, and of its variants, without compiling anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core import constraints
from tfopt.core.data import input_batches
from tfopt.core.errors import InvalidArgumentError, NonFiniteError
from tfopt.core.fingerprints import fingerprint, model_fingerprint
from tfopt.core.keras_internals import functional_of
from tfopt.core.rewrite import rewrite
from tfopt.core.scores import CLASSIFICATION, REGRESSION, Metric, named_metrics, score
from tfopt.pruning.criteria import as_criterion
from tfopt.pruning.masks import PruningMask

MODES = ("auto", "max", "min")
# Metrics for which lower is better, beside those that Keras has as losses too.
_ERRORS = ("mae", "rmse", "RootMeanSquaredError", "FalsePositives", "FalseNegatives")
_FROM_DATA = {"gradients", "input_norms", "activations"}  # what criteria need that is measured on data


@dataclass(frozen=True)
class Labelled:
    """Inputs in the structure of the model's inputs, and labels; samples along the first axis of every array."""

    x: Any
    y: Any

    def __len__(self) -> int:
        return len(keras.tree.flatten(self.x)[0])

    def rows(self, index: np.ndarray) -> Labelled:
        return Labelled(take(self.x, index), take(self.y, index))

    def and_more(self, other: Labelled) -> Labelled:
        """These samples, followed by the others."""
        both = keras.tree.map_structure(lambda *parts: np.concatenate(parts), (self.x, self.y), (other.x, other.y))
        return Labelled(*both)


def take(arrays: Any, index: np.ndarray | slice) -> Any:
    return keras.tree.map_structure(lambda array: array[index], arrays)


def labelled(model: keras.Model, data: Any, argument: str = "data") -> Labelled:
    """Inputs and labels of `(x, y)`, a `tf.data.Dataset`, a `keras.utils.PyDataset` or an iterator of batches.

    Raises:
        InvalidArgumentError: no labels, sample weights, an endless dataset, or shapes that do not go together.
        NonFiniteError: NaN or infinity in the inputs.
    """
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)) or hasattr(data, "__next__"):
        pairs = [_pair(batch, argument) for batch in _batches(data, argument)]
        inputs = list(input_batches(model, iter([x for x, _ in pairs])))
        y = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *(_labels(y) for _, y in pairs))
    else:
        x, y = _pair(data, argument)
        inputs, y = list(input_batches(model, x, batch_size=4096)), _labels(y)
    columns = [np.concatenate(parts) for parts in zip(*inputs, strict=True)]
    samples = Labelled(keras.tree.pack_sequence_as(functional_of(model).input, columns), y)
    lengths = {len(np.atleast_1d(part)) for part in keras.tree.flatten(y)}
    if lengths != {len(samples)}:
        raise InvalidArgumentError(
            f"`{argument}` has one label a sample.",
            received=f"{len(samples)} samples, {' or '.join(map(str, sorted(lengths)))} labels",
        )
    return samples


def _batches(data: Any, argument: str) -> Iterable:
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InvalidArgumentError(
            f"`{argument}` has an end.", received="a dataset that repeats for ever", fix="Add `.take(batches)`."
        )
    if isinstance(data, keras.utils.PyDataset):
        return (data[index] for index in range(data.num_batches or 0))
    return data


def _pair(value: Any, argument: str) -> tuple:
    if not isinstance(value, (tuple, list)) or len(value) != 2 or value[1] is None:
        parts = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise InvalidArgumentError(
            f"`{argument}` is a pair (x, y) of inputs and labels, or a dataset of batches of them.",
            received=type(value).__name__ + parts,
            fix="Leave out sample weights: scores count every sample once." if parts == " of 3" else None,
        )
    return tuple(value)


def _labels(y: Any) -> Any:
    """Labels as arrays, in the structure they came in; a list of numbers is one array."""
    if isinstance(y, (list, tuple)) and (not len(y) or np.ndim(y[0]) == 0):
        y = np.asarray(y)
    return keras.tree.map_structure(np.asarray, y)


@dataclass(frozen=True)
class Goal:
    """A metric and which way is better.

    Args:
        name: of the metric.
        mode: `"max"` or `"min"`.
        metric: `(y_true, y_pred) -> float`.
    """

    name: str
    mode: str
    metric: Metric

    def __call__(self, y_true: Any, y_pred: Any) -> float:
        value = self.metric(y_true, y_pred)
        if not np.isfinite(value):
            raise NonFiniteError("The metric has to be finite.", received=f"{self.name} = {value}")
        return value


def drop(mode: str, before: float, after: float) -> float:
    """How much worse `after` is than `before`, in the units of the metric."""
    return before - after if mode == "max" else after - before


def as_goal(metric: Any, mode: str) -> Goal:
    """The goal of a metric in any form that `named_metrics` takes, or the name of a standard score."""
    if mode not in MODES:
        raise InvalidArgumentError(f"`mode` is one of {', '.join(MODES)}.", received=repr(mode))
    if isinstance(metric, str) and metric in (*CLASSIFICATION, *REGRESSION):
        name, function = metric, _standard(metric)
    else:
        ((name, function),) = named_metrics([metric]).items()
    if mode == "auto":
        mode = "min" if _is_error(metric) else "max"
    return Goal(name, mode, function)


def _standard(name: str) -> Metric:
    def run(y_true, y_pred):
        scores = score(y_true, y_pred)
        if name not in scores:
            task = f"a task with {', '.join(scores)}" if scores else "several outputs"
            raise InvalidArgumentError(
                "A metric given by name has to suit the task.",
                received=f"'{name}' for {task}",
                fix="Pass one of these." if scores else "Pass a function (y_true, y_pred) -> float.",
            )
        return scores[name]

    return run


def _is_error(metric: Any) -> bool:
    if isinstance(metric, str) and metric not in (*CLASSIFICATION, *REGRESSION):
        metric = keras.metrics.get(metric)
    names = (metric if isinstance(metric, str) else "", getattr(metric, "__name__", ""), type(metric).__name__)
    return any(name in _ERRORS or _is_loss(name) for name in names)


def _is_loss(name: str) -> bool:
    if name.lower().replace("_", "") == "cosinesimilarity":  # as a metric more is better, as a loss its negative
        return False
    try:
        return keras.losses.get(name) is not None
    except ValueError:
        return False


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
