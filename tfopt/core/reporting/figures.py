"""What all plots have in common. Figures are made without pyplot, so that no global state is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure

COLOURS = ("#3b7dd8", "#e07a3f", "#3f9e6e", "#b0589e", "#9a8636", "#6b7789")
INK = "#010203"  # of text and axes; becomes the text colour of the page, light or dark


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def label_axes(axes: Any, x: str, y: str = "") -> None:
    """Names the axes, in the ink of the page, and takes the frame away."""
    axes.set_xlabel(plain(x), color=INK)
    axes.set_ylabel(plain(y), color=INK)
    axes.tick_params(colors=INK, which="both", labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def plain(name: str) -> str:
    """A name as it is: a dollar sign would start a formula.

    Example:
        >>> plain("cost in $")
        'cost in \\\\$'
    """
    return name.replace("$", r"\$")
