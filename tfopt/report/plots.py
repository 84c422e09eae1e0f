"""Plots of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import TYPE_CHECKING, Any

from tfopt.core.reporting.figures import COLOURS, INK, label_axes, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tfopt.report.rows import LayerRow

LAYERS_CAPTION = "Parameters and sparsity of each layer. The solid part of a bar is not zero."
SCATTER_CAPTION = "Score against size of the .tflite file: better is up (down for an error) and to the left."
MOST_LAYERS = 40


def layer_figure(summaries: Mapping[str, Sequence[LayerRow]]) -> Figure:
    """Bars, from `{model: layers}`: parameters of each layer on the left, sparsity of its kernels on the right."""
    names = list(summaries)
    layers = {name: {row.path: row for row in summaries[name] if row.parameters} for name in names}
    paths = _largest(layers)
    figure = new_figure(11, 1.6 + 0.19 * len(paths) * (len(names) + 0.6))
    parameters, sparsity = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, name in enumerate(names):
        heights = [index + (place + 0.5) / len(names) * 0.8 - 0.4 for index in range(len(paths))]
        rows = [layers[name].get(path) for path in paths]
        _parameter_bars(parameters, heights, rows, 0.8 / len(names), COLOURS[place % len(COLOURS)], name)
        _sparsity_bars(sparsity, heights, rows, 0.8 / len(names), COLOURS[place % len(COLOURS)])
    parameters.set_yticks(range(len(paths)), paths)
    parameters.set_ylim(len(paths) - 0.4, -0.6)
    label_axes(parameters, "parameters")
    parameters.xaxis.set_major_formatter("{x:,.0f}")
    parameters.margins(x=0.18)
    label_axes(sparsity, "sparsity of the kernel, %")
    sparsity.set_xlim(0, 112)
    hidden = max(len(rows) for rows in layers.values()) - len(paths)
    more = f" (the {len(paths)} largest of {len(paths) + hidden} layers)" if hidden > 0 else ""
    _legend(figure, names, more)
    return figure


def scatter_figure(points: Sequence[tuple[str, int, float]], score: str) -> Figure:
    """Labelled points `(name, size in bytes, score)`; the size on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_figure(8, 4.6)
    axes = figure.subplots()
    for place, (name, size_bytes, value) in enumerate(points):
        axes.scatter([size_bytes / 1000], [value], s=70, color=COLOURS[place % len(COLOURS)], zorder=3)
        beside = (8, 6) if _above_its_neighbour(points, place) else (8, -14)
        axes.annotate(plain(name), (size_bytes / 1000, value), xytext=beside, textcoords="offset points", color=INK)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.6g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.18, y=0.18)
    label_axes(axes, "size of the .tflite file, kB (1000 bytes)", score)
    axes.grid(axis="y", alpha=0.25)
    return figure


def _above_its_neighbour(points: Sequence[tuple[str, int, float]], place: int) -> bool:
    """True if a point is not lower than the one nearest in size: labels then lean away from each other."""
    _, size, value = points[place]
    others = [other for i, other in enumerate(points) if i != place]
    if not others:
        return True
    _, _, nearest = min(others, key=lambda other: abs(log(other[1] / size)))
    return value >= nearest


def _largest(layers: Mapping[str, Mapping[str, LayerRow]]) -> list[str]:
    """Paths of the layers with most parameters, in the order of the models."""
    sizes: dict[str, int] = {}
    for rows in layers.values():
        for path, row in rows.items():
            sizes[path] = max(sizes.get(path, 0), row.parameters)
    kept = set(sorted(sizes, key=lambda path: -sizes[path])[:MOST_LAYERS])
    return [path for path in sizes if path in kept]


def _parameter_bars(axes: Any, heights: list[float], rows: list, thickness: float, colour: str, name: str) -> None:
    known = [(height, row) for height, row in zip(heights, rows, strict=True) if row is not None]
    places = [height for height, _ in known]
    axes.barh(places, [row.parameters for _, row in known], thickness, color=colour, alpha=0.3)
    axes.barh(places, [row.nonzero_parameters for _, row in known], thickness, color=colour, label=plain(name))
    for height, row in known:
        axes.annotate(f"{row.parameters:,}", (row.parameters, height), **_beside_the_bar())


def _sparsity_bars(axes: Any, heights: list[float], rows: list, thickness: float, colour: str) -> None:
    for height, row in zip(heights, rows, strict=True):
        if row is not None and row.sparsity is not None:
            axes.barh([height], [100 * row.sparsity], thickness, color=colour)
            axes.annotate(f"{100 * row.sparsity:.0f}", (100 * row.sparsity, height), **_beside_the_bar())


def _beside_the_bar() -> dict[str, Any]:
    return {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7, "color": INK}


def _legend(figure: Figure, names: list[str], more: str) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=COLOURS[i % len(COLOURS)], label=plain(name)) for i, name in enumerate(names)]
    columns = min(len(names), 6)
    figure.legend(handles=patches, loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK, title=more)
