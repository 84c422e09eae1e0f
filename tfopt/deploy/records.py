"""What an export found, as a frozen record that prints itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfopt.core.reporting.render import Report, Table, count, decimal, percent

if TYPE_CHECKING:
    from tfopt.core.reporting.figures import Figure


@dataclass(frozen=True)
class Difference:
    """How far one output of the file is from that of another model, on the same inputs.

    Args:
        mean_difference: mean absolute difference, in output units.
        argmax_agreement: fraction of samples whose largest value stands at the same place; None for a single value.
        sqnr_db: signal to quantization noise, 10 log10(sum of squares / sum of squared differences); inf if equal.
    """

    signature: str
    output: str
    mean_difference: float
    argmax_agreement: float | None
    sqnr_db: float


@dataclass(frozen=True)
class Check:
    """How well one signature of the file agrees with the model it comes from.

    Args:
        quantization: `"none"`, `"dynamic"`, `"float16"`, `"int8"`, `"int16x8"` or `"weight_only"`.
        mean_difference: mean absolute difference of the outputs, in output units.
        tolerance: the bound it was held to, in output units.
        samples: how many inputs were compared.
    """

    signature: str
    quantization: str
    mean_difference: float
    tolerance: float
    samples: int


@dataclass(frozen=True, repr=False)
class Export(Report):
    """What was written, and how well it agrees with the model. Prints as a table, shows in Jupyter, can be saved.

    Attributes:
        path: the file.
        size_bytes: of the file.
        sparse: whether kernels are stored in sparse encoding.
        checks: the file against its model, one a signature.
        comparison: the file against the model that it was compared with, one an output; empty without.
    """

    path: Path
    size_bytes: int
    sparse: bool
    checks: tuple[Check, ...]
    comparison: tuple[Difference, ...] = ()

    @property
    def quantization(self) -> str:
        """Of the file; of all its signatures where they differ, as in `"int8, none"`."""
        return ", ".join(dict.fromkeys(check.quantization for check in self.checks))

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference from the model, of the signature that comes closest to its bound."""
        return self._closest().mean_difference

    @property
    def tolerance(self) -> float:
        """The bound that `mean_difference` was held to, in output units."""
        return self._closest().tolerance

    @property
    def samples(self) -> int:
        """How many inputs were compared."""
        return self._closest().samples

    @property
    def title(self) -> str:
        sparse = ", kernels stored sparse" if self.sparse else ""
        return f"{self.path}: {count(self.size_bytes)} bytes, quantization {self.quantization}{sparse}"

    def tables(self) -> list[Table]:
        checks = tuple(
            (
                check.signature,
                check.quantization,
                count(check.samples),
                *map(_short, (check.mean_difference, check.tolerance)),
            )
            for check in self.checks
        )
        columns = ("signature", "quantization", "samples", "mean difference", "allowed")
        tables = [Table(self.title, columns, checks, notes=("Difference from the Keras model.",), names=2)]
        if self.comparison:
            rows = tuple(
                (
                    row.signature,
                    row.output,
                    _short(row.mean_difference),
                    percent(row.argmax_agreement),
                    decimal(row.sqnr_db, 1),
                )
                for row in self.comparison
            )
            columns = ("signature", "output", "mean difference", "same argmax", "SQNR dB")
            tables.append(Table("Against the model it was compared with", columns, rows, names=2))
        return tables

    def figures(self) -> dict[str, Figure]:
        return {}

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "path": str(self.path)}

    def _closest(self) -> Check:
        return max(self.checks, key=lambda check: check.mean_difference / check.tolerance)


def _short(value: float) -> str:
    return f"{value:.2g}"
