"""Weight constraints of tfopt: attach, find, carry over, remove.

A constraint on the variable is applied by the Keras optimizer after each update. It needs no wrapper and no callback,
and is not part of the saved model: a `.keras` file written from a constrained model is a plain Keras file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import keras

from tfopt.core.errors import UnsupportedModelError


class WeightConstraint(keras.constraints.Constraint):
    """A constraint that knows its variable and can be carried to another variable of the same shape.

    Args:
        rank: those of lower rank run first.
        makes_zeros: whether it holds weights at exactly zero.
        shares_values: whether it gives all weights of the variable values from one small set.
    """

    rank = 0
    makes_zeros = False
    shares_values = False
    variable: keras.Variable

    def bind(self, variable: keras.Variable) -> None:
        """Called once, when attached."""
        self.variable = variable

    def carried(self, memo: dict) -> WeightConstraint:
        """An unbound copy with the same state, to attach to another variable of the same shape.

        Args:
            memo: one dict for all variables carried from a model to another, to remember what they share.
        """
        raise NotImplementedError


class ConstraintChain(keras.constraints.Constraint):
    """The user's own constraint, if any, followed by tfopt's by rank, then in the order they were attached."""

    def __init__(self, constraints: Iterable):
        self.constraints = tuple(constraints)

    def __call__(self, value: Any) -> Any:
        for constraint in self.constraints:
            value = constraint(value)
        return value


Kind = TypeVar("Kind", bound=WeightConstraint)


def _parts(variable: keras.Variable) -> tuple:
    if variable.constraint is None:
        return ()
    if isinstance(variable.constraint, ConstraintChain):
        return variable.constraint.constraints
    return (variable.constraint,)


def attach(variable: keras.Variable, constraint: WeightConstraint) -> None:
    """Adds `constraint`; one of the same class on the variable is replaced, the user's own is kept and runs first."""
    constraint.bind(variable)
    others = [part for part in _parts(variable) if type(part) is not type(constraint)]
    _set(variable, sorted([*others, constraint], key=_rank))


def _rank(part: Any) -> int:
    return part.rank if isinstance(part, WeightConstraint) else -1


def holds_zeros(variable: keras.Variable) -> bool:
    """True if a constraint on the variable keeps weights at exactly zero."""
    return any(isinstance(part, WeightConstraint) and part.makes_zeros for part in _parts(variable))


def holds_shared_values(variable: keras.Variable) -> bool:
    """True if a constraint on the variable gives all its weights values from one small set."""
    return any(isinstance(part, WeightConstraint) and part.shares_values for part in _parts(variable))


def holds_zeros_only(variable: keras.Variable) -> bool:
    """True if no constraint of tfopt on the variable does more than keep weights at zero."""
    return all(part.makes_zeros for part in _parts(variable) if isinstance(part, WeightConstraint))


def find(variable: keras.Variable, kind: type[Kind]) -> Kind | None:
    """The constraint of class `kind` on the variable, or None."""
    return next((part for part in _parts(variable) if isinstance(part, kind)), None)


def carry(source: keras.Variable, target: keras.Variable, memo: dict) -> None:
    """Attaches copies of tfopt's constraints on `source` to `target`; `memo` as `WeightConstraint.carried` takes it."""
    for part in _parts(source):
        if isinstance(part, WeightConstraint):
            attach(target, part.carried(memo))


def own_of(variable: keras.Variable) -> Any:
    """The constraint of a variable without what tfopt attached to it, or None."""
    return _joined([part for part in _parts(variable) if not isinstance(part, WeightConstraint)])


def under_own(variable: keras.Variable) -> Any:
    """The value of the variable as the user's own constraint, if any, leaves it."""
    value = variable
    for part in _parts(variable):
        value = value if isinstance(part, WeightConstraint) else part(value)
    return value


def reapply(variable: keras.Variable) -> None:
    """Brings a variable that was given new values under its constraints.

    Those that share values are left out: they find new ones for foreign weights at the next update.
    """
    value = variable
    for part in _parts(variable):
        if not (isinstance(part, WeightConstraint) and part.shares_values):
            value = part(value)
    variable.assign(value)


def remove(variable: keras.Variable) -> bool:
    """Takes tfopt's constraints off; the user's own stays. True if there was one."""
    parts = _parts(variable)
    own = [part for part in parts if not isinstance(part, WeightConstraint)]
    _set(variable, own)
    return len(own) < len(parts)


def constrained(model: keras.Model) -> list[keras.Variable]:
    """The variables of `model` that hold a constraint of tfopt."""
    return [v for v in model.variables if any(isinstance(part, WeightConstraint) for part in _parts(v))]


def _set(variable: keras.Variable, parts: list) -> None:
    if not hasattr(variable, "constraint"):
        raise UnsupportedModelError(
            "Only `keras.Variable` weights can be constrained.",
            received=type(variable).__name__,
            fix="Create the weight with `layer.add_weight`.",
        )
    variable.constraint = _joined(parts)


def _joined(parts: list) -> Any:
    return None if not parts else parts[0] if len(parts) == 1 else ConstraintChain(parts)
