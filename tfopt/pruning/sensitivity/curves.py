"""What `sensitivity` measures: a curve for each layer, and the sparsity of each layer under a target for all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt.core.checks import FRACTION, as_number
from tfopt.core.data.goals import drop
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.reporting.figures import COLOURS, INK, label_axes, new_figure, plain
from tfopt.core.reporting.render import Report, Table, count, decimal, percent

if TYPE_CHECKING:
    from tfopt.core.reporting.figures import Figure

CAPTION = "Score with one layer pruned, the others as they are; dashed: no layer pruned."
LINE_STYLES = ("-", "--", "-.", ":")
MOST_CURVES = len(COLOURS) * len(LINE_STYLES)


@dataclass(frozen=True)
class LayerCurve:
    """The scores of a model with one layer pruned.

    Args:
        path: of the layer, with nested models as folders.
        weights: elements of its kernels.
        points: `(sparsity, score)`, in ascending order of sparsity.
    """

    path: str
    weights: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, repr=False)
class Sensitivity(Report):
    """A curve for each layer. Prints as a table, shows in Jupyter with a plot, `save`s as HTML, Markdown, JSON, text.

    Args:
        metric, mode: name of the score, and whether it is the better the higher (`"max"`) or the lower (`"min"`).
        samples: on which the scores were taken.
        baseline: the score of the model as it is.
    """

    model: str
    metric: str
    mode: str
    samples: int
    baseline: float
    layers: tuple[LayerCurve, ...]

    def __getitem__(self, path: str) -> LayerCurve:
        """The curve of the layer at `path`."""
        return next(curve for curve in self.layers if curve.path == path)

    def sparsities(self, target: float) -> dict[str, float]:
        """The sparsity for each layer that reaches a target for all with the smallest sum of drops.

        Between measured points the curves are taken as straight, where they rise as flat, and under a bulge as the
        chord (lower convex hull of the drops). The weights that cost least score are then taken first, in every layer
        as far as that goes: exact for such curves, and the same on every call. Layers whose weights cost the same
        advance together. That drops add up is an assumption: score the pruned model, for example by `find_sparsity`.

        Args:
            target: fraction of zeros in the kernels of all these layers together, above 0.

        Returns:
            `{path: sparsity}` for `prune(model, sparsity=...)`, without the layers to be left alone. The target is met
            to within the rounding to whole weights.

        Raises:
            InvalidArgumentError: a target that is no fraction, or beyond the sparsities that were measured.

        Example:
            >>> even = LayerCurve("even", 100, ((0.5, 0.9), (0.9, 0.9)))
            >>> frail = LayerCurve("frail", 100, ((0.5, 0.6), (0.9, 0.1)))
            >>> Sensitivity("net", "accuracy", "max", 1000, 0.9, (even, frail)).sparsities(0.5)
            {'even': 0.9, 'frail': 0.1}
        """
        reach = sum(curve.weights * curve.points[-1][0] for curve in self.layers)
        total = sum(curve.weights for curve in self.layers)
        target = as_number("target", target, FRACTION)
        if target > reach / total + 1e-9:
            raise InvalidArgumentError(
                "`target` lies within what was measured.",
                received=f"{target}, where the curves end at {reach / total:.3f} overall",
                fix="Measure higher `sparsities` too.",
            )
        return _cheapest({curve.path: self._hull(curve) for curve in self.layers}, self._weights(), target * total)

    @property
    def title(self) -> str:
        return f"Sensitivity of {self.model}: {self.metric} with one layer pruned"

    def tables(self) -> list[Table]:
        measured = sorted({sparsity for curve in self.layers for sparsity, _ in curve.points})
        rows = tuple(
            (curve.path, count(curve.weights), *(decimal(dict(curve.points).get(sparsity)) for sparsity in measured))
            for curve in self.layers
        )
        better = "higher" if self.mode == "max" else "lower"
        notes = (
            f"No layer pruned: {decimal(self.baseline)}. On {count(self.samples)} samples; {better} is better.",
            "Columns: fraction of zeros in the kernels of the layer.",
        )
        return [Table(self.title, ("layer", "weights", *map(percent, measured)), rows, notes=notes)]

    def figures(self) -> dict[str, Figure]:
        return {CAPTION: self.plot()}

    def plot(self) -> Figure:
        """Score against sparsity, a curve for each layer; of many layers only the most sensitive in colour."""
        figure = new_figure(9, 5)
        axes = figure.subplots()
        order = sorted(self.layers, key=lambda curve: -self._drops(curve)[1].max())
        for place, curve in enumerate(order):
            self._draw(axes, curve, place)
        axes.axhline(self.baseline, color=INK, linestyle="--", linewidth=1)
        label_axes(axes, "sparsity of the layer's kernels, %", self.metric)
        axes.grid(axis="y", alpha=0.25)
        title = f"the {MOST_CURVES} most sensitive of {len(order)} layers" if len(order) > MOST_CURVES else None
        figure.legend(loc="outside right upper", frameon=False, labelcolor=INK, fontsize=8, title=title)
        return figure

    def _draw(self, axes: Any, curve: LayerCurve, place: int) -> None:
        sparsities, scores = zip((0.0, self.baseline), *curve.points, strict=True)
        look = {"color": "#8a93a3", "linewidth": 0.6, "alpha": 0.5}
        if place < MOST_CURVES:
            colour, style = COLOURS[place % len(COLOURS)], LINE_STYLES[place // len(COLOURS)]
            look = {"color": colour, "linestyle": style, "marker": ".", "label": plain(curve.path)}
        axes.plot([100 * sparsity for sparsity in sparsities], scores, **look)

    def _weights(self) -> dict[str, int]:
        return {curve.path: curve.weights for curve in self.layers}

    def _drops(self, curve: LayerCurve) -> tuple[np.ndarray, np.ndarray]:
        """Sparsities from 0 on, and the drop there, nowhere lower than before."""
        sparsities, scores = np.array(((0.0, self.baseline), *curve.points)).T
        drops = [drop(self.mode, self.baseline, score) for score in scores]
        return sparsities, np.maximum.accumulate(drops)

    def _hull(self, curve: LayerCurve) -> list[tuple[float, float]]:
        """The corners of the lower convex hull of the drops (Andrew's monotone chain)."""
        corners: list[tuple[float, float]] = []
        for x, y in zip(*map(np.ndarray.tolist, self._drops(curve)), strict=True):
            while len(corners) > 1 and not _turns_up(corners[-2], corners[-1], (x, y)):
                corners.pop()
            corners.append((x, y))
        return corners


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) > (c[0] - a[0]) * (b[1] - a[1])


def _cheapest(hulls: dict[str, list], weights: dict[str, int], wanted: float) -> dict[str, float]:
    """Takes the segments of all curves in ascending order of drop a weight, until `wanted` weights are zero."""
    segments = [
        ((after[1] - before[1]) / (weights[path] * (after[0] - before[0])), path, before[0], after[0])
        for path, corners in hulls.items()
        for before, after in itertools.pairwise(corners)
    ]
    chosen = dict.fromkeys(hulls, 0.0)
    for _, group in itertools.groupby(sorted(segments), key=lambda segment: segment[0]):
        steps = list(group)
        available = sum(weights[path] * (end - start) for _, path, start, end in steps)
        part = min(1.0, wanted / available)
        for _, path, start, end in steps:
            chosen[path] = round(start + part * (end - start), 9)
        wanted -= part * available
        if wanted <= 1e-6:
            break
    # Top-level names first: such a name fits nested layers too, and in `prune` a later entry wins.
    return {path: chosen[path] for path in sorted(chosen, key=lambda path: "/" in path) if chosen[path] > 0}
