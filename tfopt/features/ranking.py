"""What `rank_features` measures: the importance of each feature of a model's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfopt.core.checks import FRACTION, as_number, as_whole
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.reporting.figures import COLOURS, INK, label_axes, new_figure, plain
from tfopt.core.reporting.render import UNKNOWN, Report, Table, count, decimal

if TYPE_CHECKING:
    from tfopt.core.reporting.figures import Figure

CAPTION = "Importance of the features."
SPREAD = " Lines: standard deviation over the repeats."
MOST_BARS = 40


@dataclass(frozen=True)
class Feature:
    """One feature.

    Args:
        input: name of the model's input.
        index: along the last axis of that input.
        name: as the user calls it, else its index.
        importance: in the units of the criterion.
        std: standard deviation over repeats; None for a criterion without.
    """

    input: str
    index: int
    name: str
    importance: float
    std: float | None = None


@dataclass(frozen=True, repr=False)
class FeatureRanking(Report):
    """Importance of each feature that can be dropped. Prints as a table, shows in Jupyter with a plot, `save`s.

    Args:
        criterion: `"permutation"`, `"weights"` or `"taylor"`.
        unit: what an importance is, in words.
        baseline: for permutation, the score of the model as it is.
        samples: for permutation and Taylor, how many were measured on.
        inputs: `(name, number of features)` of each input of the model.
        features: those that can be dropped, in the order of the inputs.
        kept: why the other features stay, one sentence an input and reason.
    """

    model: str
    criterion: str
    unit: str
    baseline: float | None
    samples: int | None
    inputs: tuple[tuple[str, int], ...]
    features: tuple[Feature, ...]
    kept: tuple[str, ...] = ()

    def lowest(self, number: int | None = None, *, fraction: float | None = None) -> Any:
        """The features of lowest importance, for `drop_features`; of equal ones those that come first.

        Args:
            number: how many.
            fraction: instead, how many of all features of this ranking, above 0 and below 1, rounded, at least one.

        Returns:
            Ascending indices; for a model with several inputs a dict `{name of the input: indices}`.

        Raises:
            InvalidArgumentError: a number out of range.

        Example:
            >>> features = tuple(Feature("x", i, str(i), value) for i, value in enumerate((3.0, 0.5, 2.0, 0.1)))
            >>> ranking = FeatureRanking("net", "weights", "sum", None, None, (("x", 4),), features)
            >>> ranking.lowest(2), ranking.lowest(fraction=0.25), ranking.highest(2)
            ([1, 3], [3], [0, 2])
        """
        chosen = self._ascending()[: self._number(number, fraction)]
        return self._by_input((feature.input, feature.index) for feature in chosen)

    def highest(self, number: int | None = None, *, fraction: float | None = None) -> Any:
        """The features of highest importance, for `drop_features(model, keep=...)`; the complement of `lowest`.

        Features that cannot be dropped come on top of the number where they belong to an input with others.
        """
        low = self._ascending()[: len(self.features) - self._number(number, fraction)]
        gone = {(feature.input, feature.index) for feature in low}
        ranked = {feature.input for feature in self.features}
        every = ((name, index) for name, width in self.inputs if name in ranked for index in range(width))
        return self._by_input(feature for feature in every if feature not in gone)

    @property
    def title(self) -> str:
        return f"Features of {self.model}: {self.unit}"

    def tables(self) -> list[Table]:
        several, spread = len(self.inputs) > 1, self._has_spread()
        columns = (*(["input"] * several), "feature", "importance", *(["std"] * spread))
        rows = tuple(
            (
                *([feature.input] * several),
                feature.name,
                _short(feature.importance),
                *([_short(feature.std)] * spread),
            )
            for feature in reversed(self._ascending())
        )
        return [Table(self.title, columns, rows, notes=self._notes(), names=1 + several)]

    def figures(self) -> dict[str, Figure]:
        return {CAPTION + SPREAD * self._has_spread(): self.plot()}

    def plot(self) -> Figure:
        """Horizontal bars, the most important feature on top; of many features the first 40."""
        shown = self._ascending()[::-1][:MOST_BARS]
        figure = new_figure(8, 1.2 + 0.24 * len(shown))
        axes = figure.subplots()
        spread = [feature.std for feature in shown] if self._has_spread() else None
        axes.barh(range(len(shown)), [f.importance for f in shown], xerr=spread, color=COLOURS[0], ecolor=INK)
        several = len(self.inputs) > 1
        axes.set_yticks(range(len(shown)), [plain(f"{f.input}: {f.name}" if several else f.name) for f in shown])
        axes.invert_yaxis()
        hidden = len(self.features) - len(shown)
        label_axes(axes, self.unit + (f" (the first {len(shown)} of {len(self.features)} features)" if hidden else ""))
        axes.grid(axis="x", alpha=0.25)
        return figure

    def _notes(self) -> tuple[str, ...]:
        measured = f"On {count(self.samples)} samples." if self.samples is not None else ""
        score = f"All features as they are: {decimal(self.baseline)}." if self.baseline is not None else ""
        return tuple(filter(None, (" ".join(filter(None, (score, measured))), *self.kept)))

    def _has_spread(self) -> bool:
        return any(feature.std is not None for feature in self.features)

    def _ascending(self) -> list[Feature]:
        return sorted(self.features, key=lambda feature: feature.importance)

    def _number(self, number: Any, fraction: Any) -> int:
        total = len(self.features)
        if (number is None) == (fraction is None):
            raise InvalidArgumentError("Either a number or `fraction` says how many features.")
        if fraction is not None:
            fraction = as_number("fraction", fraction, FRACTION)
            return max(1, math.floor(fraction * total + 0.5))
        return as_whole("number", number, least=1, most=total)

    def _by_input(self, chosen: Iterable[tuple[str, int]]) -> Any:
        indices: dict[str, list[int]] = {}
        for name, index in sorted(chosen, key=lambda feature: feature[1]):
            indices.setdefault(name, []).append(index)
        if len(self.inputs) == 1:
            return indices.get(self.inputs[0][0], [])
        return {name: indices[name] for name, _ in self.inputs if name in indices}


def _short(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"
