"""What a fused model is made of: its branches, how good and how different they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfopt.core.data.metrics import calibration_error, classes_of, score
from tfopt.core.models.branches import Branch, branches_of
from tfopt.core.models.graph import Graph
from tfopt.core.models.macs import model_macs
from tfopt.core.reporting.render import UNKNOWN, Table, count, decimal, percent

BINS = 15


@dataclass(frozen=True)
class Member:
    """A branch of a fused model, or the fusion itself; None where a number is not known or has no meaning.

    Args:
        weight: with which the branch counts.
        score: the first of the standard scores: accuracy, or the mean absolute error.
        calibration_error: ECE with 15 bins.
        agreement: fraction of samples to which it gives the class that the fusion gives.
        parameters, macs: of the branch, of the whole model for the fusion.
    """

    name: str
    weight: float | None
    score: float
    calibration_error: float | None
    agreement: float | None
    parameters: int | None
    macs: int | None


@dataclass(frozen=True)
class Ensemble:
    """A fused model and its branches.

    Args:
        name: of the contender.
        metric: name of the score.
        fusion: the model itself.
        disagreement: for each two branches the fraction of samples to which they give different classes; empty for a
            task that is not one of classes.
    """

    name: str
    metric: str
    members: tuple[Member, ...]
    fusion: Member
    disagreement: tuple[tuple[float, ...], ...]

    @property
    def diversity(self) -> float | None:
        """The mean disagreement of two branches, None where it has no meaning."""
        pairs = [row[j] for i, row in enumerate(self.disagreement) for j in range(i)]
        return sum(pairs) / len(pairs) if pairs else None

    def tables(self) -> list[Table]:
        columns = ("branch", "weight", self.metric, "ECE", "agreement", "parameters", "MACs")
        rows = tuple(map(_cells, self.members))
        title = f"Branches of {self.name}"
        tables = [Table(title, columns, rows, _cells(self.fusion), self._notes())]
        if self.disagreement:
            names = tuple(member.name for member in self.members)
            cells = tuple(
                (name, *(UNKNOWN if i == j else percent(value) for j, value in enumerate(row)))
                for i, (name, row) in enumerate(zip(names, self.disagreement, strict=True))
            )
            note = f"Samples to which two branches give different classes; {percent(self.diversity)} on the mean."
            tables.append(Table(f"Disagreement of the branches of {self.name}", ("branch", *names), cells, (), (note,)))
        return tables

    def _notes(self) -> tuple[str, ...]:
        if not self.disagreement:
            return ()
        return (
            f"ECE: expected calibration error, {BINS} bins. Agreement: samples to which the branch gives the class "
            "that the fusion gives. All of the Keras model.",
        )


def ensemble_of(name: str, graph: Graph, x: Any, y: Any, batch_size: int) -> Ensemble | None:
    """The branches of a fused model, measured on samples; None for a model that is no fusion, or has other outputs.

    Args:
        name: of the contender.
        graph: of the model.
        x, y: as for `compare`.
        batch_size: samples at a time.

    Source: disagreement as a measure of diversity: Fort et al. 2019, https://arxiv.org/abs/1912.02757.
    """
    branches, model = branches_of(graph), graph.model
    if len(branches) < 2:
        return None
    parts = keras.Model(model.input, [*(branch.output for branch in branches), model.output])
    *outputs, fused = keras.tree.flatten(parts.predict(x, batch_size=batch_size, verbose=0))
    answer = classes_of(y, fused)
    macs = model_macs(graph)
    members = [_member(branch, each, y, answer, macs) for branch, each in zip(branches, outputs, strict=True)]
    whole = Member("fusion", None, _main(y, fused)[1], _ece(y, fused), None, model.count_params(), _sum(macs.values()))
    classes = [] if answer is None else [classes_of(y, each) for each in outputs]
    return Ensemble(
        name,
        _main(y, fused)[0],
        tuple(members),
        whole,
        tuple(tuple(float(np.mean(one != other)) for other in classes) for one in classes),
    )


def _member(branch: Branch, outputs: np.ndarray, y: Any, answer: np.ndarray | None, macs: dict) -> Member:
    model = branch.model
    return Member(
        branch.name,
        branch.weight,
        _main(y, outputs)[1],
        _ece(y, outputs),
        None if answer is None else float(np.mean(classes_of(y, outputs) == answer)),
        None if model is None else model.count_params(),
        None if model is None else _sum(value for path, value in macs.items() if path.startswith(f"{branch.name}/")),
    )


def _ece(y: Any, outputs: np.ndarray) -> float | None:
    return calibration_error(y, outputs, BINS)


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _main(y: Any, outputs: np.ndarray) -> tuple[str, float]:
    """Name and value of the first standard score."""
    return next(iter(score(y, outputs).items()))


def _cells(member: Member) -> tuple[str, ...]:
    return (
        member.name,
        decimal(member.weight),
        decimal(member.score),
        decimal(member.calibration_error),
        percent(member.agreement),
        count(member.parameters),
        count(member.macs),
    )
