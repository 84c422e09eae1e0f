"""The verb `fit_weights`: how much each model counts in a weighted sum, by validation data."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt.core.checks import as_choice
from tfopt.core.data.goals import Goal
from tfopt.core.data.outputs import OutputKind
from tfopt.core.data.splits import Split, make_folds
from tfopt.core.models.graph import with_graph
from tfopt.core.reporting.figures import COLOURS, label_axes, new_figure, plain
from tfopt.core.reporting.render import UNKNOWN, Report, Table, count, decimal
from tfopt.core.types import Arrays, Folds, Metric
from tfopt.fusion.predictions import Predictions, check_in_memory, names_of, predicted_by
from tfopt.fusion.simplex import greedy, logloss, nnls

if TYPE_CHECKING:
    from tfopt.core.reporting.figures import Figure

METHODS = ("greedy", "nnls", "logloss")
GUARDS = (None, "cv")
MEAN, FIT = "plain mean", "fit"


def fit_weights(
    models: Sequence[Any],
    x_val: Arrays,
    y_val: Arrays,
    *,
    method: str = "greedy",
    guard: str | None = None,
    folds: Folds = 5,
    metric: Metric = None,
    mode: str = "auto",
    seed: int = 0,
    batch_size: int = 32,
) -> FittedWeights:
    """Weights for `fuse(models, "weighted", weights=...)`: never negative, their sum is one.

    Of the fitted weights, the plain mean and each model alone, what does best on the validation data is given: never
    worse there than the best model or the mean. What is best is told by the metric, and between equals by the log
    loss, or the mean squared error of a regression; if that is equal too, the mean is given.

    Weights fitted to few samples can be worse than the mean on new ones. With `guard="cv"` the whole choice is made
    anew on all folds but one and scored on that one, for each fold. Unless that beats the mean on the same folds, the
    mean is given, even if a model alone is better on these validation data.

    Args:
        models: models of one output with the same classes, or arrays: their predictions for `x_val`. Outputs are
            summed as they are, all probabilities or all logits; of log-probabilities the probabilities, as `fuse` does.
        x_val: inputs that no model was trained on, as arrays: a dict by name, or a list in the order of the first
            model, from which the others get theirs by name; None where all predictions are given.
        y_val: labels `(n,)`, `(n, 1)` or one-hot `(n, C)`, or the targets of a regression.
        method: `"greedy"`, ensemble selection with replacement by the metric; `"nnls"`, non-negative least squares;
            `"logloss"`, the least log loss. The last two need SciPy.
        guard: `"cv"` or None.
        folds: for the guard: a number of folds, a splitter of scikit-learn, or pairs (train, held out) of arrays.
        metric: accuracy by default, or the mean squared error of a regression; else as in `find_sparsity`.
        mode: `"max"`, `"min"` or `"auto"`: whether a higher score is better.
        seed: of the folds.
        batch_size: of the predictions.

    Returns:
        A frozen `FittedWeights`: `weights`, all scores. Prints as a table, shows in Jupyter, `save`s.

    Raises:
        InvalidArgumentError: for outputs that cannot be summed or do not go with the labels, an unknown option, or a
            missing package.
        NothingToDoError: for a single model.
        UnsupportedModelError, NonFiniteError: for models that tfopt cannot read, NaN or infinity.

    Source: Caruana et al. 2004, "Ensemble Selection from Libraries of Models", ICML; Breiman 1996, "Stacked
        Regressions", Machine Learning 24.

    Example:
        >>> right, wrong = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.1, 0.9], [0.6, 0.4]])
        >>> fit_weights([right, wrong], None, np.array([0, 1])).weights
        (1.0, 0.0)
    """
    models = with_graph(models)
    _check_options(method, guard)
    check_in_memory(x_val, y_val, "x_val, y_val")
    predictions = Predictions.of(*predicted_by(models, x_val, y_val, batch_size), y_val)
    goal = predictions.goal(metric, mode)
    fit, mean, singles = _candidates(predictions, method, goal, names_of(models))
    kept = max((mean, fit, *singles), key=lambda candidate: candidate.rank(goal))
    if guard == "cv":
        stratify = predictions.kind is not OutputKind.NUMBERS
        splits = make_folds(folds, predictions.y, len(predictions.y), stratify=stratify, seed=seed)
        fit, mean = _cross_validated(predictions, method, goal, splits, fit, mean)
        kept = _guarded(kept, fit, mean, goal)
    return FittedWeights(
        weights=kept.weights,
        score=kept.score,
        kept=kept.name,
        method=method,
        metric=goal.name,
        mode=goal.mode,
        loss=predictions.loss_name,
        samples=len(predictions.y),
        singles=singles,
        mean=mean,
        fit=fit,
    )


@dataclass(frozen=True)
class Candidate:
    """Weights and how good the weighted sum is on the validation data.

    Args:
        name: of the model, or `"plain mean"` or `"fit"`.
        weights: one a model.
        score: by the metric.
        loss: log loss, or mean squared error.
        cv_scores, cv_losses: on each fold, of weights chosen without it; empty without a guard.
    """

    name: str
    weights: tuple[float, ...]
    score: float
    loss: float
    cv_scores: tuple[float, ...] = ()
    cv_losses: tuple[float, ...] = ()

    @property
    def cv_score(self) -> float | None:
        """Mean over the folds."""
        return statistics.fmean(self.cv_scores) if self.cv_scores else None

    def rank(self, goal: Goal) -> tuple[float, float]:
        return _signed(goal, self.score), -self.loss

    def cv_rank(self, goal: Goal) -> tuple[float, float]:
        return _signed(goal, statistics.fmean(self.cv_scores)), -statistics.fmean(self.cv_losses)


@dataclass(frozen=True, repr=False)
class FittedWeights(Report):
    """Fitted weights, and what each model, their mean and the fit score. Prints as a table, shows in Jupyter, `save`s.

    Args:
        weights: of the models, in their order: what to pass on to `fuse`.
        score: of these weights on the validation data.
        kept: whose weights these are: `"fit"`, `"plain mean"` or the name of a model.
        method: of the fit.
        metric, mode: name of the score, and whether it is the better the higher (`"max"`) or the lower (`"min"`).
        loss: what decides between equal scores.
        samples: of the validation data.
        singles: each model alone.
        mean: equal weights.
        fit: what the method found.
    """

    weights: tuple[float, ...]
    score: float
    kept: str
    method: str
    metric: str
    mode: str
    loss: str
    samples: int
    singles: tuple[Candidate, ...]
    mean: Candidate
    fit: Candidate

    @property
    def title(self) -> str:
        return f"Weights of {len(self.weights)} models by {self.metric}"

    def tables(self) -> list[Table]:
        pairs = zip(self.singles, self.weights, strict=True)
        rows = [(each.name, decimal(weight, 3), *_cells(each)) for each, weight in pairs]
        rows += [(self.mean.name, UNKNOWN, *_cells(self.mean)), (f"fit, {self.method}", UNKNOWN, *_cells(self.fit))]
        columns = ("model", "weight", self.metric, self.loss, f"{self.metric}, held-out folds")
        shown = [place for place in range(5) if place < 4 or self.fit.cv_scores]
        notes = (
            f"On {count(self.samples)} samples. Kept: {self.kept}, {self.metric} {decimal(self.score)}.",
            *self._guard_note(),
        )
        picked = [tuple(row[place] for place in shown) for row in (columns, *rows)]
        return [Table(self.title, picked[0], tuple(picked[1:]), notes=notes)]

    def figures(self) -> dict[str, Figure]:
        return {"What each model counts.": self.plot()}

    def plot(self) -> Figure:
        """The weights as bars."""
        figure = new_figure(8, 0.6 + 0.4 * len(self.weights))
        axes = figure.subplots()
        axes.barh([plain(each.name) for each in self.singles], self.weights, color=COLOURS[0])
        axes.invert_yaxis()
        label_axes(axes, "weight")
        return figure

    def _guard_note(self) -> tuple[str, ...]:
        if not self.fit.cv_scores:
            return ()
        verdict = "is no better than" if self.kept == MEAN else "beats"
        return (
            f"Chosen without the fold it is scored on, in {len(self.fit.cv_scores)} folds, the choice of weights "
            f"{verdict} the mean.",
        )


def _check_options(method: str, guard: str | None) -> None:
    as_choice("method", method, METHODS)
    as_choice("guard", guard, GUARDS)


def _candidates(
    predictions: Predictions, method: str, goal: Goal, names: Sequence[str]
) -> tuple[Candidate, Candidate, tuple[Candidate, ...]]:
    """The fit, the mean and each model alone."""

    def candidate(name: str, weights: np.ndarray) -> Candidate:
        predicted = predictions.weighted(weights)
        shown = tuple(float(weight) for weight in weights)
        return Candidate(name, shown, goal(predictions.y, predicted), predictions.loss(predicted))

    models = len(predictions.values)
    if method == "greedy":
        fitted = greedy(predictions, lambda predicted: predictions.rank(predicted, goal))
    else:
        fitted = nnls(predictions) if method == "nnls" else logloss(predictions)
    singles = tuple(candidate(name, row) for name, row in zip(names, np.eye(models), strict=True))
    return candidate(FIT, fitted), candidate(MEAN, np.full(models, 1 / models)), singles


def _cross_validated(
    predictions: Predictions, method: str, goal: Goal, splits: Sequence[Split], fit: Candidate, mean: Candidate
) -> tuple[Candidate, Candidate]:
    """Fit and mean with their scores on held-out folds; the fit is the whole choice, made on the other folds."""
    scores: dict[str, list[tuple[float, float]]] = {FIT: [], MEAN: []}
    for split in splits:
        train, held_out = predictions.rows(split.train), predictions.rows(split.held_out)
        fitted, equal, singles = _candidates(train, method, goal, [""] * len(predictions.values))
        chosen = max((equal, fitted, *singles), key=lambda candidate: candidate.rank(goal))
        for name, each in ((FIT, chosen), (MEAN, equal)):
            predicted = held_out.weighted(np.array(each.weights))
            scores[name].append((goal(held_out.y, predicted), held_out.loss(predicted)))

    def with_scores(candidate: Candidate) -> Candidate:
        cv_scores, cv_losses = zip(*scores[candidate.name], strict=True)
        return dataclasses.replace(candidate, cv_scores=cv_scores, cv_losses=cv_losses)

    return with_scores(fit), with_scores(mean)


def _guarded(kept: Candidate, fit: Candidate, mean: Candidate, goal: Goal) -> Candidate:
    return kept if fit.cv_rank(goal) > mean.cv_rank(goal) else mean


def _signed(goal: Goal, value: float) -> float:
    return value if goal.mode == "max" else -value


def _cells(candidate: Candidate) -> tuple[str, str, str]:
    return decimal(candidate.score), decimal(candidate.loss), decimal(candidate.cv_score)
