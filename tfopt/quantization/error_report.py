"""What `quantization_errors` measures, as a record that prints and plots."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.reporting.figures import COLOURS, INK, label_axes, new_figure, plain
from tfopt.core.reporting.render import Report, Table, count

if TYPE_CHECKING:
    from tfopt.core.reporting.figures import Figure

CAPTION = "Signal-to-quantization-noise ratio of each layer's output, in the order of the network."
MOST_BARS = 40


@dataclass(frozen=True)
class LayerError:
    """What rounding does to one output.

    Args:
        path: of the layer whose output is rounded, with nested models as folders.
        layers: paths of the layers that become one operation with it, itself among them; empty where there is no
            quantized layer, as for the input of the model.
        position: place in the network, from 0.
        alone_db: SQNR with these layers rounded and all before them exact; None if the output is exact.
        accumulated_db: SQNR with the whole network rounded; None if the output is exact.
    """

    path: str
    layers: tuple[str, ...]
    position: int
    alone_db: float | None
    accumulated_db: float | None


@dataclass(frozen=True, repr=False)
class QuantizationErrors(Report):
    """SQNR of each quantized layer, worst first. Prints as a table, shows in Jupyter, `save`s as HTML, Markdown, JSON.

    Args:
        samples: on which it was measured.
        output_db: SQNR of the model's output, of the worst one if there are several; None if it is exact.
    """

    model: str
    samples: int
    output_db: float | None
    layers: tuple[LayerError, ...]

    def __getitem__(self, path: str) -> LayerError:
        """The error of the layer at `path`, or of the operation that it is part of."""
        for layer in self.layers:
            if path == layer.path or path in layer.layers:
                return layer
        raise InvalidArgumentError(
            "The path is that of a quantized layer.",
            received=repr(path),
            fix=f"The layers are: {', '.join(layer.path for layer in self.layers[:12])}.",
        )

    @property
    def title(self) -> str:
        return f"Quantization errors of {self.model}"

    def tables(self) -> list[Table]:
        rows = tuple(
            (layer.path, _others(layer), decibels(layer.alone_db), decibels(layer.accumulated_db))
            for layer in self.layers
        )
        notes = (
            f"Signal-to-quantization-noise ratios in dB, on {count(self.samples)} samples: 6 dB less, twice the noise.",
            f"Alone: all layers before are exact. Accumulated: all are rounded. Output: {decibels(self.output_db)}.",
        )
        return [Table(self.title, ("layer", "with", "alone", "accumulated"), rows, notes=notes, names=2)]

    def figures(self) -> dict[str, Figure]:
        return {CAPTION: self.plot()}

    def plot(self) -> Figure:
        """Both ratios along the network; of a large one the layers that are worst alone."""
        shown = sorted(self.layers[:MOST_BARS], key=lambda layer: layer.position)
        figure = new_figure(9, 1.6 + 0.24 * len(shown))
        axes = figure.subplots()
        places = range(len(shown))
        for name, colour, marker in (("alone_db", COLOURS[0], "o"), ("accumulated_db", COLOURS[1], "s")):
            known = [(getattr(layer, name), place) for layer, place in zip(shown, places, strict=True)]
            known = [(value, place) for value, place in known if value is not None]
            axes.plot(
                *zip(*known, strict=True), marker, color=colour, label=name.removesuffix("_db")
            ) if known else None
        axes.set_yticks(places, [plain(layer.path) for layer in shown])
        axes.invert_yaxis()
        label_axes(axes, "SQNR, dB")
        axes.grid(axis="x", alpha=0.25)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        return figure

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def decibels(value: float | None) -> str:
    """37.04 -> "37.0"."""
    return "exact" if value is None else f"{value:.1f}"


def _others(layer: LayerError) -> str:
    return ", ".join(path.rsplit("/", 1)[-1] for path in layer.layers if path != layer.path)
