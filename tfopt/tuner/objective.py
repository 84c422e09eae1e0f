"""What a search is after: objectives, constraints, and the order of trials by several objectives. Pure numpy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfopt.core.errors import InvalidArgumentError

COSTS = ("parameters", "macs", "tflite_bytes", "latency_ms")  # known before a model is trained
_LOWER = ("loss", "mae", "mse", "rmse", "mean_absolute_error", "mean_squared_error", "root_mean_squared_error")
_HIGHER = ("accuracy", "acc", "precision", "recall", "auc", "f1", "f1_score", "r2_score")
_CONSTRAINT = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Objective:
    """A figure to make as high (`"max"`) or as low (`"min"`) as possible."""

    name: str
    direction: str

    @property
    def is_cost(self) -> bool:
        """True for what is known before training."""
        return self.name in COSTS

    def loss(self, value: float) -> float:
        """The value with the sign that makes lower better."""
        return -value if self.direction == "max" else value

    def is_better(self, value: float, other: float) -> bool:
        return self.loss(value) < self.loss(other)


@dataclass(frozen=True)
class Constraint:
    """A bound on a figure."""

    name: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {self.bound:,.12g}"

    @property
    def is_cost(self) -> bool:
        """True for what is known before training."""
        return self.name in COSTS

    def violation(self, value: float) -> float:
        """By how much a value breaks the bound, as a fraction of it; 0 if it does not.

        Example:
            >>> Constraint("macs", "<=", 100.0).violation(150.0)
            0.5
        """
        excess = value - self.bound if self.operator[0] == "<" else self.bound - value
        if excess < 0 or (excess == 0 and self.operator[1:]):
            return 0.0
        return max(excess / abs(self.bound) if self.bound else excess, 1e-12)


def as_objectives(objectives: Any) -> tuple[Objective, ...]:
    """The objectives that names, or pairs of a name and a direction, stand for.

    Example:
        >>> [objective.direction for objective in as_objectives(["val_accuracy", "tflite_bytes", ("val_iou", "max")])]
        ['max', 'min', 'max']
    """
    given = [objectives] if isinstance(objectives, str) or _is_pair(objectives) else objectives
    if not isinstance(given, (list, tuple)) or not given:
        raise InvalidArgumentError("`objectives` must hold at least one name.", received=repr(objectives))
    found = tuple(map(_as_objective, given))
    names = [objective.name for objective in found]
    if len(set(names)) < len(names):
        raise InvalidArgumentError("Each objective must be named once.", received=", ".join(names))
    return found


def as_constraints(constraints: Any) -> tuple[Constraint, ...]:
    """The constraints that texts such as `"macs <= 5e6"` stand for.

    Example:
        >>> [str(constraint) for constraint in as_constraints(["tflite_bytes <= 100_000"])]
        ['tflite_bytes <= 100,000']
    """
    given = [constraints] if isinstance(constraints, str) else constraints
    if not isinstance(given, (list, tuple)):
        raise InvalidArgumentError("`constraints` holds texts such as 'macs <= 5e6'.", received=repr(constraints))
    return tuple(map(_as_constraint, given))


def violation(constraints: Sequence[Constraint], figures: Mapping[str, float]) -> float:
    """The sum of the violations of those constraints whose figure is known."""
    return sum(
        constraint.violation(figures[constraint.name]) for constraint in constraints if constraint.name in figures
    )


def losses(objectives: Sequence[Objective], figures: Sequence[Mapping[str, float]]) -> np.ndarray:
    """The objectives of several trials as an array (trials, objectives), lower is better."""
    rows = [[objective.loss(row[objective.name]) for objective in objectives] for row in figures]
    return np.array(rows, dtype=float).reshape(len(figures), len(objectives))


def ranks(values: np.ndarray) -> np.ndarray:
    """The front that each row is in: 0 if no other row dominates it, 1 if only rows of front 0 do, and so on.

    A row dominates another if it is nowhere higher and somewhere lower.

    Args:
        values: (rows, objectives), lower is better.

    Source: non-dominated sorting, Deb et al. 2002, https://doi.org/10.1109/4235.996017.

    Example:
        >>> ranks(np.array([[0, 1], [1, 0], [1, 1], [2, 2], [1, 0]])).tolist()
        [0, 0, 1, 2, 0]
    """
    no_higher: np.ndarray = np.all(values[:, None] <= values[None], axis=-1)
    dominates = no_higher & ~no_higher.T
    found = np.full(len(values), -1)
    front = 0
    while (found < 0).any():
        open_rows = found < 0
        first = open_rows & ~dominates[open_rows].any(0)
        found[first] = front
        front += 1
    return found


def crowding(values: np.ndarray) -> np.ndarray:
    """How much room each row of one front has: the sum over objectives of the gap between its two neighbours.

    Gaps are fractions of the range of the objective; the ends of each objective have infinite room.

    Source: crowding distance, Deb et al. 2002, https://doi.org/10.1109/4235.996017.

    Example:
        >>> crowding(np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]])).tolist()
        [inf, 2.0, inf]
    """
    room = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        extent = column[order[-1]] - column[order[0]] if len(order) else 0.0
        if extent > 0:
            room[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / extent
        room[order[[0, -1]] if len(order) else order] = np.inf
    return room


def best_first(values: np.ndarray) -> list[int]:
    """Row numbers from best to worst: by front, within a front those with more room first; one objective by value.

    Example:
        >>> best_first(np.array([[0.3], [0.1], [0.2]]))
        [1, 2, 0]
    """
    fronts = ranks(values)
    room = np.zeros(len(values))
    for front in np.unique(fronts):
        room[fronts == front] = crowding(values[fronts == front])
    return np.lexsort((-room, fronts)).tolist()


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and value[1] in ("min", "max")


def _as_objective(given: Any) -> Objective:
    if isinstance(given, Objective):
        return given
    if _is_pair(given) and isinstance(given[0], str):
        return Objective(given[0], given[1])
    if not isinstance(given, str):
        raise InvalidArgumentError("An objective is a name or a pair such as ('val_iou', 'max').", received=repr(given))
    plain = given.removeprefix("val_")
    if given in COSTS or plain in _LOWER or plain.endswith("_loss"):
        return Objective(given, "min")
    if plain in _HIGHER or plain.endswith("_accuracy"):
        return Objective(given, "max")
    raise InvalidArgumentError(
        "The direction of an objective must be known.", received=repr(given), fix=f"Pass ({given!r}, 'max') or 'min'."
    )


def _as_constraint(given: Any) -> Constraint:
    if isinstance(given, Constraint):
        return given
    match = _CONSTRAINT.fullmatch(given) if isinstance(given, str) else None
    bound = _number(match[3]) if match else None
    if match is None or bound is None:
        raise InvalidArgumentError(
            "A constraint is a name, one of <=, >=, < and >, and a number.",
            received=repr(given),
            fix="Such as 'tflite_bytes <= 100_000' or 'val_accuracy >= 0.9'.",
        )
    return Constraint(match[1], match[2], bound)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
