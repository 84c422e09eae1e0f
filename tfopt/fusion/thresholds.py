"""The verb `fit_thresholds`: how sure the models of a cascade have to be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import keras
import numpy as np

from tfopt.core.checks import Range, as_number
from tfopt.core.data.cascades import confidence
from tfopt.core.data.metrics import score
from tfopt.core.errors import InvalidArgumentError, TargetNotMetError, UnsupportedModelError
from tfopt.core.models.graph import read, with_graph
from tfopt.core.models.macs import model_macs
from tfopt.core.models.opening import opened
from tfopt.core.reporting.render import Report, Table, count, decimal, percent
from tfopt.core.types import Arrays
from tfopt.fusion.cascade import Cascade
from tfopt.fusion.fuse import fuse

_TRIALS = 4000  # combinations of thresholds of all but the last but one model; for that one all are tried


@dataclass(frozen=True)
class Stage:
    """One model of a cascade, on the samples it was fitted on.

    Args:
        threshold: confidence from which it answers; 0 for the last model, which always does.
        share: of all samples that it answers.
        accuracy: on those; None if there are none.
        accuracy_alone: on all samples.
        macs: multiply-accumulates of this model for one sample.
    """

    name: str
    threshold: float
    share: float
    accuracy: float | None
    accuracy_alone: float
    macs: int


@dataclass(frozen=True, repr=False)
class CascadeFit(Report):
    """The thresholds found. Prints as a table, shows in Jupyter, `save`s as HTML, Markdown, JSON.

    Args:
        accuracy: of the cascade on the validation samples.
        wanted: the accuracy asked for.
        mean_macs: multiply-accumulates for one sample, on the mean over these samples.
        samples: how many there are.
    """

    stages: tuple[Stage, ...]
    accuracy: float
    wanted: float
    mean_macs: float
    samples: int

    @property
    def thresholds(self) -> tuple[float, ...]:
        """For `fuse(models, "cascade", thresholds=...)`."""
        return tuple(stage.threshold for stage in self.stages[:-1])

    @property
    def title(self) -> str:
        return f"Thresholds of a cascade for an accuracy of {decimal(self.wanted)}"

    def tables(self) -> list[Table]:
        rows = tuple(
            (
                stage.name,
                decimal(stage.threshold),
                percent(stage.share),
                decimal(stage.accuracy),
                decimal(stage.accuracy_alone),
                count(stage.macs),
            )
            for stage in self.stages
        )
        columns = ("model", "threshold", "answers", "accuracy there", "accuracy alone", "MACs")
        last = self.stages[-1]
        notes = (
            f"On {count(self.samples)} samples: accuracy {decimal(self.accuracy)} at {count(round(self.mean_macs))} "
            f"MACs a sample on the mean, {percent(self.mean_macs / last.macs)} of {last.name} alone.",
            "Thresholds chosen on these samples fit them best: others come out a little worse.",
        )
        return [Table(self.title, columns, rows, notes=notes)]

    def figures(self) -> dict:
        return {}


def fit_thresholds(
    models: Sequence[keras.Model],
    x_val: Arrays,
    y_val: Arrays,
    *,
    accuracy: float | None = None,
    batch_size: int = 32,
    verbose: int = 0,
) -> CascadeFit:
    """Finds the thresholds with which a cascade of `models` reaches an accuracy at the least mean number of MACs.

    Of two models all thresholds are tried, of more the last but one's for each of many combinations of the others'
    (for three models thousands, so all of a few thousand samples).

    Args:
        models: two or more classifiers of the same classes, the cheapest first; see `fuse` with how="cascade".
        x_val, y_val: samples that the models were not trained on: arrays, or a list or dict of arrays for several
            inputs; labels are class numbers or one-hot.
        accuracy: fraction of right answers wanted on them; None is that of the last model alone.
        batch_size: samples at a time.
        verbose: 1 shows progress bars.

    Returns:
        A `CascadeFit`, whose `thresholds` go into `fuse`; a threshold of infinity says that a model is better left out.

    Raises:
        InvalidArgumentError: an accuracy out of range, labels that do not go with the models, models that are no
            classifiers of the same classes; those of `fuse`.
        UnsupportedModelError: a model whose MACs are not known.
        TargetNotMetError: no thresholds reach the accuracy.

    Source: early exits by a threshold on the confidence: Wang et al. 2018 (IDK Cascades),
    https://arxiv.org/abs/1706.00885.

    Example:
        >>> def classifier(units):
        ...     dense = keras.layers.Dense
        ...     return keras.Sequential([keras.Input((4,)), dense(units, "relu"), dense(3, "softmax")])
        >>> x, y = np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 3
        >>> fit = fit_thresholds([classifier(2), classifier(64)], x, y)
        >>> fit.mean_macs <= 14 + 448, round(sum(stage.share for stage in fit.stages), 6)
        (True, 1.0)
    """
    models = with_graph(models)
    if accuracy is not None:
        accuracy = as_number("accuracy", accuracy, Range(least=0, most=1), what="a fraction in [0, 1], or None")
    cascade = cast("Cascade", fuse(models, "cascade", thresholds=[math.inf] * (len(models) - 1)))
    macs = [_macs(model) for model in models]
    answers = [stage.predict(x_val, batch_size=batch_size, verbose=verbose) for stage in cascade.stages]
    right = np.array([_right(y_val, each) for each in answers])
    sure = np.array([confidence(each, cascade.from_logits) for each in answers])
    wanted = float(right[-1].mean()) if accuracy is None else float(accuracy)
    thresholds = _cheapest(right, sure[:-1], np.array(macs, float), wanted)
    names = [model.name for model in models]
    return _record(names, thresholds, right, sure, macs, wanted)


def _macs(model: keras.Model) -> int:
    counts = model_macs(opened(read(model)))
    unknown = [path for path, macs in counts.items() if macs is None]
    if unknown:
        raise UnsupportedModelError(
            "The MACs of each layer have to be known, to weigh one model against another.",
            received=f"no count for {', '.join(unknown)} of '{model.name}'",
            fix="Tell tfopt by `tfopt.register_macs`, or choose thresholds by hand.",
        )
    return sum(macs for macs in counts.values() if macs is not None)


def _right(y: Any, answers: np.ndarray) -> np.ndarray:
    """True for each sample whose label is the answer."""
    if "accuracy" not in score(y, answers):
        raise InvalidArgumentError("A cascade is of classifiers.", received=f"labels {np.shape(y)} of a regression")
    labels = np.asarray(y)
    if answers.shape[-1] == 1:
        return labels.reshape(-1) == (answers[:, 0] > 0.5)
    labels = labels.argmax(-1) if labels.shape == answers.shape else labels.reshape(-1)
    return labels == answers.argmax(-1)


# Search. `right` is a bool array (models, samples), `sure` the confidences of all models but the last.


def _cheapest(right: np.ndarray, sure: np.ndarray, macs: np.ndarray, wanted: float) -> list[float]:
    """The thresholds of least cost among those that reach the accuracy; of equal cost the most accurate."""
    samples = right.shape[1]
    needed = math.ceil(wanted * samples - 1e-9)
    best: tuple[float, int, list[float]] | None = None
    most = 0
    for front in _combinations(sure[:-1]):
        reached, hits, cost = _passed(right, sure, macs, front)
        thresholds, counts = _cuts(sure[-1, reached])
        own_hits = hits + _hits(right[-2:, reached], sure[-1, reached], counts)
        costs = cost + macs[-1] * (reached.sum() - counts) / samples
        most = max(most, int(own_hits.max()))
        enough = np.flatnonzero(own_hits >= needed)
        if len(enough):
            place = enough[np.lexsort((-own_hits[enough], costs[enough]))[0]]
            option = (float(costs[place]), -int(own_hits[place]), [*front, float(thresholds[place])])
            best = option if best is None else min(best, option)
    if best is None:
        raise TargetNotMetError(
            "Some thresholds have to reach the accuracy.",
            received=f"accuracy={wanted:.4f}, where {most / samples:.4f} is the best found",
            fix="Ask for less, or put a better model last.",
        )
    return best[2]


def _combinations(sure: np.ndarray) -> Iterator[list[float]]:
    """Combinations of thresholds for some models, spread over all places between their confidences."""
    each = max(2, int(_TRIALS ** (1 / max(len(sure), 1))))
    choices = []
    for confidences in sure:
        thresholds, _ = _cuts(confidences)
        places = np.linspace(0, len(thresholds) - 1, min(each, len(thresholds))).round().astype(int)
        choices.append(thresholds[places].tolist())
    for combination in itertools.product(*choices):
        yield list(combination)


def _cuts(confidences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds that let none, more and more and at last all of the samples through, and how many each lets through.

    A threshold lies in the middle between two confidences, so that rounding changes no answer.
    """
    levels, numbers = np.unique(confidences, return_counts=True)
    levels, numbers = levels[::-1].astype(np.float32), numbers[::-1]
    below = np.append(levels[1:], np.float32(0))[: len(levels)]
    middle = (levels + below) / np.float32(2)
    middle = np.where(middle > below, middle, levels)  # between neighbours in float32 there is nothing
    middle[-1:] = 0
    return np.append(np.inf, middle.astype(float)), np.append(0, np.cumsum(numbers))


def _hits(right: np.ndarray, confidences: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many answers are right if the most confident `counts` samples go to the first of two models."""
    first, second = right[:, np.argsort(-confidences, kind="stable")].astype(int)
    return np.append(0, np.cumsum(first))[counts] + second.sum() - np.append(0, np.cumsum(second))[counts]


def _passed(
    right: np.ndarray, sure: np.ndarray, macs: np.ndarray, front: Sequence[float]
) -> tuple[np.ndarray, int, float]:
    """Which samples the first models leave, how many others are right, and the mean MACs up to the next model."""
    reached = np.ones(right.shape[1], bool)
    hits, cost = 0, 0.0
    for number, threshold in enumerate(front):
        cost += macs[number] * reached.mean()
        answers = reached & (sure[number] >= np.float32(threshold))
        hits += int(right[number, answers].sum())
        reached &= ~answers
    return reached, hits, float(cost + macs[len(front)] * reached.mean())


def _record(
    names: list[str], thresholds: list[float], right: np.ndarray, sure: np.ndarray, macs: list[int], wanted: float
) -> CascadeFit:
    reached = np.ones(right.shape[1], bool)
    stages, hits, mean_macs = [], 0, 0.0
    for number, (name, threshold) in enumerate(zip(names, (*thresholds, 0.0), strict=True)):
        mean_macs += macs[number] * float(reached.mean())
        answers = reached & (sure[number] >= np.float32(threshold))
        hits += int(right[number, answers].sum())
        own = float(right[number, answers].mean()) if answers.any() else None
        alone = float(right[number].mean())
        stages.append(Stage(name, threshold, float(answers.mean()), own, alone, macs[number]))
        reached &= ~answers
    return CascadeFit(tuple(stages), hits / right.shape[1], wanted, mean_macs, right.shape[1])
