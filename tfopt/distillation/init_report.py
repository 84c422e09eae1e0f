"""What `init_from` took from the teacher, as a record that prints as a table."""

from __future__ import annotations

from dataclasses import dataclass

from tfopt.core.reporting.render import UNKNOWN, Report, Table, count, percent

EXACT, SLICED, OWN = "exact", "sliced", "own init"
_SHOWN = 8


@dataclass(frozen=True)
class InitLayer:
    """Where the weights of one layer of the student come from.

    Args:
        path: of the layer, with nested models as folders.
        how: `"exact"`, `"sliced"` (some channels of a wider layer) or `"own init"`.
        source: path of the teacher's layer; None where nothing was taken.
        block: `(k, n)` where the layer lies in the k-th of n blocks that the teacher repeats more often.
        parameters: taken from the teacher.
        total: parameters of the layer.
        reason: why weights kept their own initialisation; empty if none did.
    """

    path: str
    how: str
    source: str | None
    block: tuple[int, int] | None
    parameters: int
    total: int
    reason: str = ""


@dataclass(frozen=True, repr=False)
class InitReport(Report):
    """What a student took from its teacher. Prints as a table, shows in Jupyter, `save`s as HTML, Markdown, JSON.

    Args:
        student, teacher: names of the models.
        layers: those of the student with weights, in the order of computation.
    """

    student: str
    teacher: str
    layers: tuple[InitLayer, ...]

    @property
    def parameters(self) -> int:
        """How many parameters were taken."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def kept(self) -> dict[str, str]:
        """Layers with weights that kept their own initialisation, with the reason."""
        return {layer.path: layer.reason for layer in self.layers if layer.reason}

    @property
    def summary(self) -> str:
        """A few sentences."""
        total = sum(layer.total for layer in self.layers)
        numbers = {how: sum(layer.how == how for layer in self.layers) for how in (EXACT, SLICED, OWN)}
        text = (
            f"{self.student} from {self.teacher}: {count(self.parameters)} of {count(total)} parameters "
            f"({percent(self.parameters / total)}); {numbers[EXACT]} layers exact, {numbers[SLICED]} sliced, "
            f"{numbers[OWN]} with their own initialisation."
        )
        kept = [f"'{path}' ({reason})" for path, reason in self.kept.items()]
        more = f", ... ({len(kept)} layers)" if len(kept) > _SHOWN else ""
        return f"{text} Not taken: {', '.join(kept[:_SHOWN])}{more}." if kept else text

    @property
    def title(self) -> str:
        return f"Initialisation of {self.student} from {self.teacher}"

    def tables(self) -> list[Table]:
        columns = ("layer", "weights", "from", "block", "not taken", "taken", "of")
        return [Table(self.title, columns, tuple(map(_row, self.layers)), notes=(self.summary,), names=5)]

    def figures(self) -> dict:
        return {}


def _row(layer: InitLayer) -> tuple[str, ...]:
    block = f"{layer.block[0]} of {layer.block[1]}" if layer.block else ""
    source = layer.source or UNKNOWN
    return (layer.path, layer.how, source, block, layer.reason, count(layer.parameters), count(layer.total))
