"""The three ways to measure how important features are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from tfopt.core.data.evaluator import Evaluator
from tfopt.core.data.gathering import input_gradients
from tfopt.core.data.goals import as_goal, drop
from tfopt.core.data.metrics import score
from tfopt.core.data.samples import Labelled, labelled
from tfopt.core.errors import InvalidArgumentError, NonFiniteError
from tfopt.core.keras_internals import compiled_loss
from tfopt.core.models.rewrite import in_float32
from tfopt.core.reporting.progress import progress
from tfopt.core.types import Data, Loss, Metric
from tfopt.features.inputs import Features, Place


@dataclass(frozen=True)
class Importances:
    """Importance of each feature, what it is in words, and what is known beside it."""

    values: dict[Place, float]
    unit: str
    spread: dict[Place, float] = field(default_factory=dict)
    baseline: float | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Options:
    """How importances are measured; see `rank_features`."""

    data: Data
    metric: Metric
    mode: str
    loss: Loss
    repeats: int
    seed: int
    batch_size: int
    verbose: int


def by_permutation(model: keras.Model, features: Features, places: list[Place], options: Options) -> Importances:
    """Mean and standard deviation of the drops of the score when a feature is shuffled among the samples."""
    samples = labelled(model, options.data)
    evaluator = Evaluator(model, options.batch_size)
    before = evaluator.predict(samples.x)
    goal = as_goal(_default_metric(samples, before) if options.metric is None else options.metric, options.mode)
    baseline = goal(samples.y, before)
    generator = np.random.default_rng(options.seed)
    orders = [generator.permutation(len(samples)) for _ in range(options.repeats)]
    drops = {}
    with progress("permutation importance", len(places), options.verbose) as step:
        for name, index in places:
            variants = _shuffled(samples.x, features.inputs.index(name), index, orders)
            scores = [goal(samples.y, evaluator.predict(x)) for x in variants]
            drops[name, index] = [drop(goal.mode, baseline, value) for value in scores]
            step()
    return Importances(
        {place: float(np.mean(values)) for place, values in drops.items()},
        f"{'drop' if goal.mode == 'max' else 'rise'} of {goal.name} when shuffled",
        {place: float(np.std(values)) for place, values in drops.items()},
        baseline,
        len(samples),
    )


def _default_metric(samples: Labelled, predictions: Any) -> str:
    standard = score(samples.y, predictions)
    if not standard:
        raise InvalidArgumentError(
            "A model with several outputs has no standard score.",
            received="metric=None",
            fix="Pass `metric`, a function (y_true, y_pred) -> float.",
        )
    return next(iter(standard))


def _shuffled(x: Any, which: int, index: int, orders: list[np.ndarray]) -> Iterator[Any]:
    """The inputs with the values of one feature of input number `which` in other orders of the samples."""
    arrays = keras.tree.flatten(x)
    for order in orders:
        changed = arrays[which].copy()
        changed[..., index] = changed[order, ..., index]
        yield keras.tree.pack_sequence_as(x, [*arrays[:which], changed, *arrays[which + 1 :]])


def by_weights(model: keras.Model, features: Features, places: list[Place], options: Options) -> Importances:
    """Sum of the magnitudes of the weights that read each feature."""
    graph = features.graph
    sums: dict[int, float] = defaultdict(float)
    for slot in graph.slots:
        if slot.role == "in":
            array = np.moveaxis(keras.ops.convert_to_numpy(slot.variable), slot.axis, 0).astype("float64")
            for channel, total in zip(slot.labels, np.abs(array).reshape(len(array), -1).sum(1), strict=True):
                sums[int(channel)] += float(total)
    values = {(name, index): sums[int(graph.roots(features.labels[name])[index])] for name, index in places}
    return Importances(values, "sum of |w| of the weights that read it")


def by_gradients(model: keras.Model, features: Features, places: list[Place], options: Options) -> Importances:
    """Mean over samples of `|sum over positions of x * dL/dx|`."""
    loss = {"loss": options.loss} if options.loss is not None else compiled_loss(model)
    batches = input_gradients(
        in_float32(model), options.data, loss, batch_size=options.batch_size, verbose=options.verbose
    )
    totals = {name: np.zeros(features.width(name)) for name, _ in places}
    samples = 0
    for inputs, gradients in batches:
        for name, x, gradient in zip(features.inputs, inputs, gradients, strict=True):
            if name in totals:
                _check_gradient(gradient, name)
                products = (x * gradient).reshape(len(x), -1, x.shape[-1]).sum(1, dtype="float64")
                totals[name] += np.abs(products).sum(0) * len(x)  # the loss of a batch is the mean of its samples'
        samples += len(inputs[0])
    values = {(name, index): float(totals[name][index] / samples) for name, index in places}
    return Importances(values, "mean of |x * dL/dx|", samples=samples)


def _check_gradient(gradient: np.ndarray | None, name: str) -> None:
    if gradient is None:
        raise InvalidArgumentError(
            "The criterion 'taylor' needs a gradient of the loss by each input with features that can be dropped.",
            received=f"none for input '{name}': it holds whole numbers, or the loss does not depend on it",
            fix="Use the criterion 'permutation'.",
        )
    if not np.isfinite(gradient).all():
        raise NonFiniteError(
            "The gradients of the loss have to be finite.",
            received=f"NaN or infinity for input '{name}'",
            fix="Check the labels and the scale of the data.",
        )


MEASURES = {"permutation": by_permutation, "weights": by_weights, "taylor": by_gradients}
