"""What `stack` made and measured."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfopt.core.reporting.figures import COLOURS, label_axes, new_figure, plain
from tfopt.core.reporting.render import UNKNOWN, Report, Table, count, decimal

if TYPE_CHECKING:
    from tfopt.core.reporting.figures import Figure

INPUTS = "inputs"


@dataclass(frozen=True, repr=False, eq=False)
class StackResult(Report):
    """A stack and its scores. Prints as a table, shows in Jupyter, `save`s as HTML, Markdown, JSON.

    Args:
        model: base models, trained on all samples and frozen, under the meta-model; compiled.
        out_of_fold: float64, shape (samples, sum of the models' widths): what each model, trained without the sample,
            predicts for it; NaN for samples that were never held out.
        models: names of the base models; then `"inputs"` if they are passed through.
        metric, mode: name of the score, and whether it is the better the higher (`"max"`) or the lower (`"min"`).
        samples: with out-of-fold predictions, on which the meta-model was trained.
        scores: of each base model, on each held-out fold.
        mean_scores: of the plain mean of the base models; empty where their outputs have different widths.
        stack_scores: of meta-models trained on the other folds; empty for a single fold. Folds that leave nothing to
            train a meta-model on, as the first of a time series, have no scores.
        contributions: how much worse the score of the meta-model gets on the out-of-fold predictions when those of one
            model are shuffled among the samples.
        epochs: of each base model, that ran in each fold.
    """

    model: keras.Model
    out_of_fold: np.ndarray
    models: tuple[str, ...]
    metric: str
    mode: str
    samples: int
    scores: tuple[tuple[float, ...], ...]
    mean_scores: tuple[float, ...]
    stack_scores: tuple[float, ...]
    contributions: tuple[float, ...]
    epochs: tuple[tuple[int, ...], ...]

    @property
    def score(self) -> float | None:
        """Of the stack, mean over the held-out folds; None for a single fold."""
        return statistics.fmean(self.stack_scores) if self.stack_scores else None

    @property
    def title(self) -> str:
        return f"Stack of {len(self.scores)} models by {self.metric}"

    def tables(self) -> list[Table]:
        rows = []
        for place, (name, contribution) in enumerate(zip(self.models, self.contributions, strict=True)):
            is_model = place < len(self.scores)
            scores, epochs = (self.scores[place], self.epochs[place]) if is_model else ((), ())
            rows.append((name, *_mean_and_std(scores), decimal(contribution), _range(epochs)))
        rows.append(("plain mean", *_mean_and_std(self.mean_scores), UNKNOWN, UNKNOWN))
        rows.append(("stack", *_mean_and_std(self.stack_scores), UNKNOWN, UNKNOWN))
        notes = (
            f"On held-out folds, {len(self.scores[0])} of them; the meta-model was trained on the out-of-fold "
            f"predictions for {count(self.samples)} of {count(len(self.out_of_fold))} samples.",
            "Contribution: how much worse the score gets when that model's predictions are shuffled.",
        )
        return [Table(self.title, ("model", self.metric, "std", "contribution", "epochs"), tuple(rows), notes=notes)]

    def figures(self) -> dict[str, Figure]:
        return {"What each model contributes.": self.plot()}

    def plot(self) -> Figure:
        """The contributions as bars."""
        figure = new_figure(8, 0.6 + 0.4 * len(self.models))
        axes = figure.subplots()
        axes.barh([plain(name) for name in self.models], self.contributions, color=COLOURS[0])
        axes.invert_yaxis()
        label_axes(axes, f"{self.metric} lost without it")
        return figure

    def to_dict(self) -> dict[str, Any]:
        """The numbers, unrounded, without the model and the predictions."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("model", "out_of_fold")]
        return {"model": self.model.name, "score": self.score, **{name: getattr(self, name) for name in names}}


def _mean_and_std(scores: Sequence[float]) -> tuple[str, str]:
    mean = statistics.fmean(scores) if scores else None
    return decimal(mean), decimal(statistics.stdev(scores) if len(scores) > 1 else None)


def _range(epochs: Sequence[int]) -> str:
    if not epochs:
        return UNKNOWN
    return str(min(epochs)) if min(epochs) == max(epochs) else f"{min(epochs)}-{max(epochs)}"
