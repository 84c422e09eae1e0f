"""The verb `average_weights`: one model whose weights are the mean of several models' weights, a soup."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfopt.core.checks import as_choice
from tfopt.core.data.batches import input_batches
from tfopt.core.data.goals import Goal, as_goal
from tfopt.core.data.inputs import inputs_of
from tfopt.core.data.metrics import score
from tfopt.core.data.pairs import paired
from tfopt.core.data.samples import Labelled, labelled
from tfopt.core.errors import InvalidArgumentError, NothingToDoError, UnsupportedModelError
from tfopt.core.keras_internals import input_names
from tfopt.core.models import constraints
from tfopt.core.models.batch_norm import has_batch_norm, reestimate_batch_norms
from tfopt.core.models.fake_quantized import check_not_quantized
from tfopt.core.models.graph import check_finite, read, with_graph
from tfopt.core.models.rewrite import rewrite
from tfopt.core.types import Arrays, Metric
from tfopt.fusion.architecture import check_same_architecture
from tfopt.fusion.predictions import check_in_memory, names_of
from tfopt.fusion.soup_result import Mix, Soup

METHODS = ("uniform", "greedy")


def average_weights(
    models: Sequence[keras.Model],
    x_val: Arrays = None,
    y_val: Arrays = None,
    *,
    method: str = "uniform",
    metric: Metric = None,
    mode: str = "auto",
    batch_norm: Any = None,
    batch_size: int = 32,
) -> Soup:
    """One model with the mean of the models' weights: the accuracy of several at the cost of one.

    The models have to be fine-tuned from one start, with other seeds, data orders or hyperparameters. Means of models
    that were trained from different initial values are no better than chance. With validation data the result is
    never worse there than the best of the models: where their mean is, that model is given and a warning says so.

    Args:
        models: two or more of the same architecture; names, regularizers and dropout rates may differ. None is
            changed.
        x_val, y_val: arrays that no model was trained on. Without them the mean is taken on trust.
        method: `"uniform"`, the mean of all; or `"greedy"`: from the best on, each next is taken in unless the score
            falls.
        metric: accuracy by default, or the mean squared error of a regression; else as in `find_sparsity`.
        mode: `"max"`, `"min"` or `"auto"`: whether a higher score is better.
        batch_norm: inputs, at best some hundreds of the training data, from which the statistics of batch
            normalizations are taken anew, in any form that `calibrate` takes; by default `x_val`. The mean of the
            models' statistics, which is all there is without data, does not fit the mean of their weights.
        batch_size: of predictions and statistics.

    Returns:
        A frozen `Soup`: `model`, not compiled, with the names of the first model and its pruning masks; `members`, the
        numbers of the models in it; all scores. Prints as a table, shows in Jupyter, `save`s.

    Raises:
        InvalidArgumentError: for other architectures, masks that differ, `greedy` without validation data, or
            `batch_norm` without such layers.
        NothingToDoError: for a single model.
        UnsupportedModelError: for models that tfopt cannot read, clustered or quantized ones.
        NonFiniteError: NaN or infinity in weights or data.

    Source: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, algorithm 1; Izmailov et al. 2018,
        https://arxiv.org/abs/1803.05407, for the statistics; Zimmer et al. 2023, https://arxiv.org/abs/2306.16788, for
        masks.

    Example:
        >>> a, b = (keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)]) for _ in "ab")
        >>> a.set_weights([np.array([[1.0], [0.0]])])
        >>> b.set_weights([np.array([[3.0], [1.0]])])
        >>> average_weights([a, b]).model.get_weights()[0].ravel().tolist()
        [2.0, 0.5]
    """
    models = with_graph(models)
    _check(models, method, x_val, y_val)
    mixer = _Mixer(models, _statistics_batches(models[0], x_val, batch_norm, batch_size), batch_size)
    everyone = tuple(range(len(models)))
    if y_val is None:
        mixer.mix(everyone)
        return Soup(mixer.model, everyone, names_of(models), method)
    samples = labelled(models[0], (x_val, y_val), "x_val, y_val")
    goal = _goal(metric, mode, samples.y, mixer.predicted((0,), samples.x))
    kitchen = _Kitchen(mixer, samples, goal)
    singles = [kitchen.mix((place,)) for place in everyone]
    tried = kitchen.greedy(singles) if method == "greedy" else [kitchen.mix(everyone)]
    best = max([*tried, *singles], key=kitchen.worth)
    mixer.mix(best.members)
    if len(best.members) == 1:
        _warn_of_bad_soup(tried, singles, best, kitchen)
    return Soup(
        model=mixer.model,
        members=best.members,
        models=names_of(models),
        method=method,
        metric=goal.name,
        mode=goal.mode,
        samples=len(samples),
        score=best.score,
        scores=tuple(single.score for single in singles),
        tried=tuple(tried),
    )


class _Mixer:
    """One model that takes the weights of some of the models, or their mean."""

    def __init__(self, models: Sequence[keras.Model], batches: list[list[np.ndarray]], batch_size: int):
        self._graph = rewrite(read(models[0]))
        self.model = self._graph.model
        self._weights = [[keras.ops.convert_to_numpy(weight) for weight in model.weights] for model in models]
        self._batches, self._batch_size = batches, batch_size

    def mix(self, members: Sequence[int]) -> None:
        """Whole numbers and booleans, as counters, are those of the first member."""
        for place, variable in enumerate(self.model.weights):
            values = [self._weights[member][place] for member in members]
            is_float = keras.backend.is_float_dtype(variable.dtype)
            variable.assign(np.mean(values, 0, dtype=np.float64) if is_float else values[0])
        if len(members) > 1:
            reestimate_batch_norms(self._graph, self._batches)

    def predicted(self, members: Sequence[int], x: Any) -> Any:
        self.mix(members)
        return self.model.predict(x, batch_size=self._batch_size, verbose=0)


@dataclass(frozen=True)
class _Kitchen:
    """Mixes, and tastes."""

    mixer: _Mixer
    samples: Labelled
    goal: Goal

    def mix(self, members: Sequence[int]) -> Mix:
        return Mix(tuple(members), self.goal(self.samples.y, self.mixer.predicted(members, self.samples.x)))

    def worth(self, mix: Mix) -> tuple[float, int]:
        """Higher for better; of equally good ones that of more models."""
        return (mix.score if self.goal.mode == "max" else -mix.score), len(mix.members)

    def greedy(self, singles: Sequence[Mix]) -> list[Mix]:
        """All that was tried, from the two best on."""
        first, *others = sorted(singles, key=self.worth, reverse=True)
        soup, tried = first, []
        for other in others:
            tried.append(self.mix((*soup.members, *other.members)))
            if self.worth(tried[-1]) >= self.worth(soup):
                soup = tried[-1]
        return tried


def _check(models: Any, method: str, x_val: Any, y_val: Any) -> None:
    if isinstance(models, (keras.Model, str)) or not isinstance(models, Sequence) or not len(models):
        raise InvalidArgumentError("`models` is a list of models.", received=repr(models))
    for model in models:
        graph = read(model)
        check_finite(graph)
        check_not_quantized(graph, "average_weights")
    if len(models) == 1:
        raise NothingToDoError("A mean is of two models or more.", received=f"'{models[0].name}' alone")
    as_choice("method", method, METHODS)
    if x_val is not None or y_val is not None:
        check_in_memory(x_val, y_val, "x_val, y_val")
    elif method == "greedy":
        raise InvalidArgumentError("`method='greedy'` chooses by validation data.", received="no `x_val` and `y_val`")
    for other in models[1:]:
        check_same_architecture(models[0], other)
        _check_inputs(models[0], other)
        _check_masks(models[0], other)


def _check_inputs(first: keras.Model, other: keras.Model) -> None:
    """Raises where the weights of two models of one architecture belong to inputs of other names."""
    order = paired(inputs_of(first), inputs_of(other), first.name, other.name)
    if order != sorted(order):
        raise InvalidArgumentError(
            "Models whose weights are averaged must have their inputs in one order.",
            received=f"{input_names(first)} in '{first.name}', {input_names(other)} in '{other.name}'",
            fix="Fuse them by their outputs: `fuse` connects inputs by name.",
        )


def _check_masks(first: keras.Model, other: keras.Model) -> None:
    """Raises unless what is held at zero in one is held at zero in the other, or for clusters."""
    for one, two in zip(first.weights, other.weights, strict=True):
        if not (constraints.holds_zeros_only(one) and constraints.holds_zeros_only(two)):
            raise UnsupportedModelError(
                "The mean of clustered weights has no clusters.",
                received=f"'{one.path}' with clusters",
                fix="Average first, then `cluster`.",
            )
        if not (constraints.holds_zeros(one) or constraints.holds_zeros(two)):
            continue
        if not np.array_equal(*(keras.ops.convert_to_numpy(weight) == 0 for weight in (one, two))):
            raise InvalidArgumentError(
                "Pruned models are averaged if they have the same mask: the mean of others is less sparse.",
                received=f"'{one.path}' with zeros in other places in '{other.name}'",
                fix="Fine-tune copies of one pruned model, or average first, then `prune`.",
            )


def _statistics_batches(model: keras.Model, x_val: Any, batch_norm: Any, batch_size: int) -> list[list[np.ndarray]]:
    """Inputs to take the statistics of batch normalizations from; none where there are no such layers."""
    if not has_batch_norm(read(model)):
        if batch_norm is not None:
            raise InvalidArgumentError(
                "`batch_norm` is for models with batch normalization.", received=f"'{model.name}' without it"
            )
        return []
    data = x_val if batch_norm is None else batch_norm
    if data is None:
        warnings.warn(
            f"The statistics of the batch normalizations in '{model.name}' are averaged, for want of data: they do not "
            "fit the mean of the weights. Pass inputs as `batch_norm`.",
            stacklevel=3,
        )
        return []
    return list(input_batches(model, data, batch_size=batch_size))


def _goal(metric: Any, mode: str, y: Any, predicted: Any) -> Goal:
    if metric is None and isinstance(predicted, (list, tuple, dict)):
        raise InvalidArgumentError(
            "Models of several outputs are told apart by a metric of yours.",
            received="metric=None",
            fix="Pass a function (y_true, y_pred) -> float.",
        )
    default = None if metric is not None else "accuracy" if "accuracy" in score(y, predicted) else "mse"
    return as_goal(default or metric, mode)


def _warn_of_bad_soup(tried: Sequence[Mix], singles: Sequence[Mix], best: Mix, kitchen: _Kitchen) -> None:
    """Says that the result is no mean, and the likely reason."""
    top, worst = max(tried, key=kitchen.worth), min(singles, key=kitchen.worth)
    message = (
        f"No mean of the models is as good as the best of them alone, which is the result: {kitchen.goal.name} "
        f"{best.score:.4f}, of the best mean {top.score:.4f}, of the worst model {worst.score:.4f}."
    )
    if kitchen.worth(top)[0] < kitchen.worth(worst)[0]:
        message += (
            " It seems that they were trained from different initial values: such weights lie in different basins of "
            "the loss, and their mean in none (Frankle et al. 2020, https://arxiv.org/abs/1912.05671). Fine-tune "
            "copies of one model, or fuse these by their outputs."
        )
    warnings.warn(message, stacklevel=3)
