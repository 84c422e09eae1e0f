"""What `find_sparsity` tried and chose."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from tfopt.core.reporting.figures import COLOURS, INK, label_axes, new_figure
from tfopt.core.reporting.render import UNKNOWN, Report, Table, count, decimal, percent

if TYPE_CHECKING:
    from tfopt.core.reporting.figures import Figure

CAPTION = "Score of the pruned model. Bars: one standard error of the drop. Dotted: the limit. Filled: chosen."


@dataclass(frozen=True)
class Trial:
    """One sparsity, tried on each fold.

    Args:
        sparsity: fraction of zeros that was asked for.
        scores: of the pruned model, one a fold.
        drops: how much worse that is than the model as it is on the same fold, in the units of the metric.
        thresholds: `{layer: largest magnitude that was cut}`; empty where magnitude is not what decides.
    """

    sparsity: float
    scores: tuple[float, ...]
    drops: tuple[float, ...]
    thresholds: dict[str, float]

    @property
    def score(self) -> float:
        """Mean over the folds."""
        return statistics.fmean(self.scores)

    @property
    def score_std(self) -> float | None:
        """Standard deviation over the folds, None for one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def drop(self) -> float:
        """Mean over the folds."""
        return statistics.fmean(self.drops)

    @property
    def drop_error(self) -> float:
        """Standard error of the mean drop: the standard deviation over the folds by the root of their number."""
        return statistics.stdev(self.drops) / len(self.drops) ** 0.5 if len(self.drops) > 1 else 0.0

    def within(self, max_drop: float) -> bool:
        """True if the drop, plus one standard error where there are folds, is at most `max_drop`."""
        return self.drop + self.drop_error <= max_drop + 1e-12

    def to_dict(self) -> dict[str, Any]:
        derived = ("score", "score_std", "drop", "drop_error")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in derived}}


@dataclass(frozen=True, repr=False)
class SparsityChoice(Report):
    """The chosen sparsity and all that was tried. Prints as a table, shows in Jupyter, `save`s as HTML, Markdown, JSON.

    Args:
        sparsity: the chosen one.
        model: the pruned model; where fine-tuning was asked for, fine-tuned on all the data, and compiled.
        metric, mode: name of the score, and whether it is the better the higher (`"max"`) or the lower (`"min"`).
        baseline: the score of the unpruned model: mean over the folds, fine-tuned alike.
        samples: on which scores were taken, over all folds.
        finetune: epochs of training before each score, None for none.
        kernel_weights, kernel_nonzero: elements of the pruned kernels, and those of `model` that are not zero.
        trials: in ascending order of sparsity.
    """

    sparsity: float
    model: keras.Model
    metric: str
    mode: str
    max_drop: float
    baseline: float
    samples: int
    finetune: int | None
    kernel_weights: int
    kernel_nonzero: int
    trials: tuple[Trial, ...]

    @property
    def chosen(self) -> Trial:
        """The trial of the chosen sparsity."""
        return next(trial for trial in self.trials if trial.sparsity == self.sparsity)

    @property
    def thresholds(self) -> dict[str, float]:
        """`{layer: largest magnitude cut}` at the chosen sparsity; empty where magnitude is not what decides."""
        return self.chosen.thresholds

    @property
    def title(self) -> str:
        return f"Sparsity of {self.model.name} with a drop in {self.metric} of at most {self.max_drop:g}"

    def tables(self) -> list[Table]:
        table = trial_table(self.title, self.trials, self.max_drop, self.sparsity)
        folds = len(self.chosen.scores)
        training = f", after {self.finetune} epochs of fine-tuning each" if self.finetune else ""
        per_fold = f" in {folds} folds, one standard error counted against the pruned model" if folds > 1 else ""
        notes = (
            f"Unpruned: {decimal(self.baseline)}. On {count(self.samples)} samples{per_fold}{training}.",
            f"Chosen: {percent(self.sparsity)}, {count(self.kernel_nonzero)} of {count(self.kernel_weights)} kernel "
            f"weights not zero.",
            *(["Nothing tried failed: higher `sparsities` may hold too."] if self.sparsity == self._highest else []),
        )
        return [dataclasses.replace(table, notes=notes)]

    def figures(self) -> dict[str, Figure]:
        return {CAPTION: self.plot()}

    def plot(self) -> Figure:
        """Score against sparsity, with the limit and the chosen point."""
        figure = new_figure(8, 4.6)
        axes = figure.subplots()
        scores = [trial.score for trial in self.trials]
        errors = [trial.drop_error for trial in self.trials]
        places = [100 * trial.sparsity for trial in self.trials]
        limit = self.baseline - self.max_drop if self.mode == "max" else self.baseline + self.max_drop
        axes.errorbar(places, scores, errors, color=COLOURS[0], marker="o", markerfacecolor="none", capsize=2)
        axes.plot([100 * self.sparsity], [self.chosen.score], "o", color=COLOURS[1], markersize=9, label="chosen")
        axes.axhline(self.baseline, color=INK, linestyle="--", linewidth=1, label="unpruned")
        axes.axhline(limit, color=COLOURS[1], linestyle=":", label=f"limit: {self.max_drop:g} worse")
        label_axes(axes, "sparsity of the pruned kernels, %", self.metric)
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False, labelcolor=INK)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """The numbers, unrounded, without the model."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("model", "trials")]
        trials = [trial.to_dict() for trial in self.trials]
        return {"model": self.model.name, **{name: getattr(self, name) for name in names}, "trials": trials}

    @property
    def _highest(self) -> float:
        return self.trials[-1].sparsity


def trial_table(title: str, trials: Sequence[Trial], max_drop: float, chosen: float | None = None) -> Table:
    """A row a trial; columns without a number are left out."""
    columns = {
        "score": [decimal(trial.score) for trial in trials],
        "std": [decimal(trial.score_std) for trial in trials],
        "drop": [decimal(trial.drop) for trial in trials],
        "std error": [decimal(trial.drop_error) if len(trial.drops) > 1 else UNKNOWN for trial in trials],
        "largest weight cut": [decimal(max(trial.thresholds.values(), default=None), 6) for trial in trials],
        "within the limit": [
            "chosen" if trial.sparsity == chosen else "yes" if trial.within(max_drop) else "no" for trial in trials
        ],
    }
    shown = {name: cells for name, cells in columns.items() if set(cells) != {UNKNOWN}}
    sparsities = [percent(trial.sparsity) for trial in trials]
    return Table(title, ("sparsity", *shown), tuple(zip(sparsities, *shown.values(), strict=True)))
