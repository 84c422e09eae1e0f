"""What a search found."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfopt.core.checks import as_count
from tfopt.core.errors import InvalidArgumentError, TargetNotMetError
from tfopt.core.reporting.figures import COLOURS, INK, label_axes, new_figure, plain
from tfopt.core.reporting.render import UNKNOWN, Report, Table
from tfopt.tuner.hparams import write_hparams
from tfopt.tuner.importance import importances, reason_for_none
from tfopt.tuner.journal import SearchJournal, Trial
from tfopt.tuner.objective import COSTS, Constraint, Objective, best_first, losses, ranks
from tfopt.tuner.packages import load

if TYPE_CHECKING:
    from tfopt.core.reporting.figures import Figure

HISTORY = "Each trial in the order of the search; the line is the best so far of those that keep to the constraints."
FRONT = "Trials by two objectives; those on the front are beaten by none in both."
IMPORTANCE = "Which share of the differences in {} each hyperparameter explains, interactions included (fANOVA)."


@dataclass(frozen=True, repr=False)
class SearchResult(Report):
    """All trials of a search. Prints as a table, shows in Jupyter with plots, `save`s as HTML, Markdown, JSON, text.

    Args:
        model: its name.
        trials: in the order of the search.
        journal: the folder of the search, which holds the trained models.
    """

    model: str
    method: str
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    trials: tuple[Trial, ...]
    journal: SearchJournal

    @property
    def ranking(self) -> tuple[Trial, ...]:
        """The trained trials that keep to the constraints, best first: by Pareto front, then by room on it."""
        kept = [trial for trial in self.trials if trial.is_trained and trial.violation == 0]
        return tuple(kept[row] for row in best_first(self._losses(kept)))

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """The trials of `ranking` that no other is better than in one objective without being worse in another."""
        ranked = self.ranking
        fronts = ranks(self._losses(ranked))
        return tuple(trial for trial, front in zip(ranked, fronts, strict=True) if front == 0)

    @property
    def best(self) -> Trial:
        """The best trial; with several objectives the one on the front that is best in the first.

        Raises:
            TargetNotMetError: no trial was trained and keeps to the constraints; says how near they came.
        """
        front = self.pareto
        if not front:
            raise self._nothing_found()
        return min(front, key=lambda trial: self.objectives[0].loss(trial.figures[self.objectives[0].name]))

    def best_models(self, n: int = 1) -> list[keras.Model]:
        """The trained, compiled models of the first `n` trials of `ranking`, `best` before the others.

        Raises:
            TargetNotMetError: as for `best`.
            FileError: one was trained by a worker that does not share the `directory`.
        """
        n = as_count("n", n)
        if not self.ranking:
            raise self._nothing_found()
        return [self.journal.load_model(trial) for trial in self._best_first()[:n]]

    def to_dataframe(self) -> Any:
        """A pandas `DataFrame`, a row a trial.

        Raises:
            InvalidArgumentError: pandas is not installed.
        """
        rows = [
            {"number": trial.number, "state": trial.state, **trial.values, **trial.figures}
            | {"violation": trial.violation, "seconds": trial.seconds, "reason": trial.reason}
            for trial in self.trials
        ]
        return load("pandas").DataFrame(rows)

    def importance(self) -> dict[str, float]:
        """Which share of the differences in the first objective each hyperparameter explains, largest first.

        Over the trained trials, of the hyperparameters that all of them have; the shares sum to 1. The more trials,
        the better the shares: of ten or so they are a hint.

        Raises:
            InvalidArgumentError: too few trials, or nothing differs among them.

        Source: functional ANOVA, Hutter et al. 2014, https://proceedings.mlr.press/v32/hutter14.html, by Optuna.
        """
        return importances(self.objectives[0], self._trained)

    def to_tensorboard(self, directory: str | os.PathLike) -> Path:
        """Writes the search for the HParams tab of TensorBoard, whole or not at all: a run a trial.

        Of each trial the hyperparameters, its figures, and of its first training the logs of each epoch as scalars.
        Show it with `tensorboard --logdir DIRECTORY`.

        Args:
            directory: a folder that is not there yet, or is empty.

        Raises:
            FileError: `directory` holds files or cannot be written.
            InvalidArgumentError: the package tensorboard is not installed.
        """
        return write_hparams(directory, self.objectives, self.trials)

    @property
    def title(self) -> str:
        return f"Search of {self.model} by {self.method}"

    def tables(self) -> list[Table]:
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.values if "tuner/" not in name))
        bounded = [constraint.name for constraint in self.constraints]
        shown = dict.fromkeys([*(goal.name for goal in self.objectives), *bounded, *COSTS])
        figures = [name for name in shown if any(name in trial.figures for trial in self.trials)]
        ranked = self._best_first()
        others = [trial for trial in self.trials if all(trial is not other for other in ranked)]
        on_front = {trial.number for trial in self.pareto}
        rows = tuple(
            (
                f"{trial.number}{' *' if trial.number in on_front else ''}",
                trial.state,
                *(_cell(trial.values.get(name)) for name in names),
                *(_cell(trial.figures.get(name)) for name in figures),
                f"{trial.seconds:.1f}",
            )
            for trial in (*ranked, *others)
        )
        columns = ("trial", "state", *names, *figures, "seconds")
        return [Table(self.title, columns, rows, notes=self._notes(), names=2)]

    def figures(self) -> dict[str, Figure]:
        plots = {HISTORY: self.plot_history()} if self._trained else {}
        if plots and len(self.objectives) > 1:
            plots[FRONT] = self.plot_front()
        if reason_for_none(self.objectives[0], self._trained) is None:
            plots[IMPORTANCE.format(self.objectives[0].name)] = self.plot_importance()
        return plots

    def plot_history(self) -> Figure:
        """The first objective of each trial, and the best so far."""
        from matplotlib.ticker import MaxNLocator

        goal = self.objectives[0]
        trained = self._trained
        figure = new_figure(9, 4.2)
        axes = figure.subplots()
        for keeps, colour, label in ((True, COLOURS[0], "keeps to the constraints"), (False, COLOURS[1], "breaks one")):
            part = [trial for trial in trained if (trial.violation == 0) is keeps]
            if part:
                numbers, values = zip(*((trial.number, trial.figures[goal.name]) for trial in part), strict=True)
                axes.scatter(numbers, values, s=28, color=colour, label=label, zorder=3)
        kept = [trial for trial in trained if trial.violation == 0]
        if kept:
            best = np.minimum.accumulate([goal.loss(trial.figures[goal.name]) for trial in kept])
            so_far = [goal.loss(value) for value in best]
            axes.step([trial.number for trial in kept], so_far, where="post", color=INK, linewidth=1, label="best")
        label_axes(axes, "trial", goal.name)
        axes.grid(axis="y", alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)
        return figure

    def plot_front(self) -> Figure:
        """The first objective against the second.

        Raises:
            InvalidArgumentError: there is one objective only.
        """
        if len(self.objectives) < 2:
            raise InvalidArgumentError("A front must have two objectives.", received=self.objectives[0].name)
        second, first = self.objectives[1], self.objectives[0]
        figure = new_figure(8, 4.6)
        axes = figure.subplots()
        on_front = {trial.number for trial in self.pareto}
        for inside, colour, label in ((False, "#8a93a3", "others"), (True, COLOURS[0], "on the front")):
            part = [trial for trial in self.ranking if (trial.number in on_front) is inside]
            points = sorted((trial.figures[second.name], trial.figures[first.name]) for trial in part)
            if points:
                axes.plot(*zip(*points, strict=True), "o-" if inside else "o", color=colour, label=label)
        label_axes(axes, second.name, first.name)
        axes.grid(alpha=0.25)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK)
        return figure

    def plot_importance(self) -> Figure:
        """Bars: how much each hyperparameter matters for the first objective, as `importance` has it.

        Raises:
            InvalidArgumentError: as for `importance`.
        """
        shares = dict(reversed(self.importance().items()))
        figure = new_figure(8, 1.2 + 0.32 * len(shares))
        axes = figure.subplots()
        axes.barh([plain(name) for name in shares], [100 * share for share in shares.values()], color=COLOURS[0])
        label_axes(axes, f"importance for {self.objectives[0].name} in %")
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        return figure

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "method": self.method,
            "objectives": [asdict(objective) for objective in self.objectives],
            "constraints": [str(constraint) for constraint in self.constraints],
            "pareto": [trial.number for trial in self.pareto],
            "trials": [asdict(trial) for trial in self.trials],
        }

    @property
    def _trained(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.is_trained]

    def _best_first(self) -> list[Trial]:
        """`ranking`, with `best` before the others."""
        ranked = self.ranking
        best = self.best if ranked else None
        return sorted(ranked, key=lambda trial: trial is not best)

    def _losses(self, trials: Any) -> np.ndarray:
        return losses(self.objectives, [trial.figures for trial in trials])

    def _notes(self) -> tuple[str, ...]:
        goals = ", ".join(f"{goal.name} ({goal.direction})" for goal in self.objectives)
        notes = [f"Objectives: {goals}. Best first; * on the Pareto front."]
        if self.constraints:
            notes.append(f"Constraints: {'; '.join(map(str, self.constraints))}.")
        states = Counter(trial.state for trial in self.trials)
        notes.append(f"Trials: {', '.join(f'{count} {state}' for state, count in states.items()) or 'none'}.")
        for reason, count in Counter(trial.reason for trial in self.trials if trial.state == "failed").most_common(3):
            notes.append(f"Failed, {count}: {reason}.")
        return tuple(notes)

    def _nothing_found(self) -> TargetNotMetError:
        tried = [trial for trial in self.trials if trial.violation > 0]
        nearest = min(tried, key=lambda trial: trial.violation, default=None)
        if nearest is not None:
            received = f"{len(self.trials)} trials; the nearest, {nearest.number}, breaks by {nearest.violation:.0%}"
        else:
            received = "; ".join(self._notes()[1:])
        return TargetNotMetError(
            "At least one trial must be trained and keep to the constraints.",
            received=received,
            fix="Loosen the constraints, let the space hold smaller models, or search longer.",
        )


def _cell(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.4g}"
