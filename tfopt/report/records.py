"""What `summary` measures, as frozen records that print themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfopt.core.reporting.render import Report, Table, count, percent, shape_text
from tfopt.report.rows import LayerRow, fraction_of_zeros

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class ModelSummary(Report):
    """A Keras model, layer by layer. Weights shared by layers count once in the totals."""

    name: str
    layers: tuple[LayerRow, ...]
    parameters: int
    nonzero_parameters: int
    kernel_parameters: int
    kernel_nonzero: int
    macs: int | None

    @property
    def title(self) -> str:
        return f"Summary of {self.name}"

    @property
    def sparsity(self) -> float | None:
        """Fraction of zeros in all kernels."""
        return fraction_of_zeros(self.kernel_parameters, self.kernel_nonzero)

    @property
    def kept_ratio(self) -> float | None:
        """Fraction of kernel elements that are not 0, the P_r of the pruning literature."""
        return None if self.sparsity is None else 1 - self.sparsity

    @property
    def float32_bytes(self) -> int:
        """Bytes of all parameters as float32: not the size of any file."""
        return 4 * self.parameters

    def tables(self) -> list[Table]:
        total = ("total", "", "", *_numbers(self))
        return [
            Table(
                self.title,
                ("layer", "class", "output shape", "parameters", "non-zero", "sparsity", "MACs"),
                tuple((row.path, row.kind, shape_text(row.output_shape), *_numbers(row)) for row in self.layers),
                total,
                self._notes(),
                names=3,
            )
        ]

    def figures(self) -> dict[str, Figure]:
        from tfopt.report.plots import LAYERS_CAPTION

        return {LAYERS_CAPTION: self.plot()}

    def plot(self) -> Figure:
        """Bars of parameters and sparsity per layer."""
        from tfopt.report.plots import layer_figure

        return layer_figure({self.name: self.layers})

    def to_dict(self) -> dict[str, Any]:
        own = {"sparsity": self.sparsity, "kept_ratio": self.kept_ratio, "float32_bytes": self.float32_bytes}
        return {**super().to_dict(), **own}

    def _notes(self) -> tuple[str, ...]:
        notes = [f"{count(self.float32_bytes)} bytes of weights as float32."]
        if self.kept_ratio is not None:
            notes.append(f"Sparsity: zeros in the kernels; {percent(self.kept_ratio)} of their elements are kept.")
        unknown = [row.path for row in self.layers if row.macs is None]
        if unknown:
            notes.append(f"MACs unknown, the shape is not defined or the class has no rule: {', '.join(unknown)}.")
        return tuple(notes)


@dataclass(frozen=True)
class OpRow:
    """Ops of one name and dtype in a .tflite file."""

    name: str
    input_dtype: str
    output_dtype: str
    ops: int


@dataclass(frozen=True)
class WeightRow:
    """Weights of one dtype in a .tflite file."""

    dtype: str
    tensors: int
    parameters: int
    nonzero_parameters: int
    size_bytes: int


@dataclass(frozen=True, repr=False)
class FileSummary(Report):
    """A .tflite file: its ops and weights by dtype. Batch normalization is folded into the weights."""

    name: str
    size_bytes: int
    gzip_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: tuple[OpRow, ...]
    weights: tuple[WeightRow, ...]

    @property
    def title(self) -> str:
        return f"Summary of {self.name}"

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.weights)

    @property
    def nonzero_parameters(self) -> int:
        return sum(row.nonzero_parameters for row in self.weights)

    def tables(self) -> list[Table]:
        ops = tuple((row.name, row.input_dtype, row.output_dtype, count(row.ops)) for row in self.ops)
        weights = tuple(
            (row.dtype, *map(count, (row.tensors, row.parameters, row.nonzero_parameters, row.size_bytes)))
            for row in self.weights
        )
        notes = (
            f"{count(self.size_bytes)} bytes, {count(self.gzip_bytes)} after gzip.",
            f"{', '.join(self.inputs)} -> {', '.join(self.outputs)}",
        )
        return [
            Table(f"Ops of {self.name}", ("op", "input", "output", "number"), ops, notes=notes, names=3),
            Table(f"Weights of {self.name}", ("dtype", "tensors", "parameters", "non-zero", "bytes"), weights),
        ]

    def figures(self) -> dict[str, Figure]:
        return {}


def _numbers(row: LayerRow | ModelSummary) -> tuple[str, ...]:
    return count(row.parameters), count(row.nonzero_parameters), percent(row.sparsity), count(row.macs)
