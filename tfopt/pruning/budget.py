"""The sparsity at which a model fits a budget of multiply-accumulates or parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras

from tfopt.core.checks import FRACTION, as_number
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.macs import model_macs

STEPS = 14  # of the bisection: sparsity to 1/16384


@dataclass(frozen=True)
class Budget:
    """What may be left: a fraction, in (0, 1), of the model's `"macs"` or `"params"`."""

    kind: str
    fraction: float

    def limit(self, model: keras.Model) -> float:
        """What may be left of `model`, in the unit of `measured`."""
        return self.fraction * self.measured(model)

    def measured(self, model: keras.Model) -> int:
        """Multiply-accumulates for one sample, or the number of parameters."""
        if self.kind == "params":
            return model.count_params()
        counts = model_macs(model)
        unknown = [path for path, macs in counts.items() if macs is None]
        if unknown:
            raise InvalidArgumentError(
                "`to_macs` needs the multiply-accumulates of each layer.",
                received=f"no count for {', '.join(unknown)}",
                fix="Give their rule with `register_macs`, give inputs a fixed shape, or use `to_params`.",
            )
        return sum(macs for macs in counts.values() if macs is not None)


def as_budget(to_macs: float | None, to_params: float | None) -> Budget | None:
    """The budget asked for, checked."""
    if to_macs is not None and to_params is not None:
        raise InvalidArgumentError(
            "`to_macs` and `to_params` exclude each other.", received=f"to_macs={to_macs!r}, to_params={to_params!r}"
        )
    kind, fraction = ("macs", to_macs) if to_macs is not None else ("params", to_params)
    if fraction is None:
        return None
    what = f"the fraction of the model's {kind} that may be left, above 0 and below 1"
    return Budget(kind, float(as_number(f"to_{kind}", fraction, FRACTION, what=what)))


def sparsity_within(budget: Budget, limit: float, size_left: Callable[[float], int]) -> float:
    """The lowest sparsity at which `size_left(sparsity)` is within `limit`, that of the budget, by bisection.

    Args:
        size_left: gives what is left at a sparsity, no more the higher that is.

    Raises:
        InvalidArgumentError: if the budget cannot be reached.
    """
    low, high = 0.0, 1.0
    least = size_left(high)
    if least > limit:
        raise InvalidArgumentError(
            f"`to_{budget.kind}` has to be within reach of the layers that may be pruned.",
            received=f"{budget.fraction}; at best {least / limit * budget.fraction:.3f} is left",
            fix="Ask for less, lower `min_kept` or `round_to`, or include more layers.",
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if size_left(middle) <= limit else (middle, high)
    return high
