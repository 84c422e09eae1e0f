"""How `fuse` is to fuse: its arguments, checked together before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras

from tfopt.core.checks import as_choice, as_flag
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of
from tfopt.fusion.chains import SERIAL_WAYS
from tfopt.fusion.combine import as_weights
from tfopt.fusion.layers import KINDS, WAYS

SHARED, SEPARATE = "shared", "separate"

# How models are fused -> the arguments that say more about it.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "parallel": ("combine", "weights"),
    "serial": ("combine",),
    "stacked": ("meta",),
    "vote": ("kind", "weights"),
    "gated": (),
    "cascade": ("thresholds",),
}


@dataclass(frozen=True)
class Plan:
    """How to fuse, arguments checked; `weights` are those of the branches that stay."""

    how: str
    combine: str
    kind: str
    meta: Any
    thresholds: Any
    weights: tuple[float, ...] | str | None
    of_features: bool


def plan_of(how: Any, given: dict[str, Any], of_features: bool) -> Plan:
    """The plan for `how` and the arguments of `fuse` that say more about it, None where they were not given.

    Raises:
        InvalidArgumentError: unknown or contradictory arguments, or such that this `how` has no use for.

    Example:
        >>> arguments = dict.fromkeys(("combine", "kind", "meta", "thresholds"))
        >>> plan_of("parallel", {**arguments, "weights": [0.5, 0.5]}, of_features=False).combine
        'weighted'
    """
    if isinstance(how, str) and how in WAYS:
        if given["combine"] is not None:
            raise InvalidArgumentError(
                f"how='{how}' says how to combine.", received=f"combine={given['combine']!r} too"
            )
        how, given = "parallel", {**given, "combine": how}
    how = as_choice("how", how, (*_ARGUMENTS, *WAYS))
    idle = [key for key, value in given.items() if value is not None and key not in _ARGUMENTS[how]]
    if idle:
        raise InvalidArgumentError(
            f"how='{how}' takes " + (f"`{'` and `'.join(_ARGUMENTS[how])}`." if _ARGUMENTS[how] else "none of these."),
            received=f"`{'`, `'.join(idle)}`",
            fix="Leave them out, or choose another `how`.",
        )
    weights = as_weights(given["weights"])
    usual = "chain" if how == "serial" else "mean" if weights is None else "weighted"
    combine = usual if given["combine"] is None else given["combine"]
    combine = as_choice("combine", combine, SERIAL_WAYS if how == "serial" else WAYS)
    if how == "parallel" and weights is not None and combine != "weighted":
        raise InvalidArgumentError("`weights` go with 'weighted'.", received=f"combine='{combine}' and weights")
    kind = as_choice("kind", "soft" if given["kind"] is None else given["kind"], KINDS)
    return Plan(how, combine, kind, given["meta"], given["thresholds"], weights, of_features)


def check_choices(plan: Plan, models: list[keras.Model], inputs: Any, layers: Any, head: Any, trainable: Any) -> None:
    """Raises for values of the other arguments that do not go with the plan."""
    several = [model.name for model in models if len(functional_of(model).outputs) != 1]
    if plan.how == "cascade" and several:
        raise InvalidArgumentError("The models of a cascade have one output.", received=f"several in {several}")
    if plan.how == "cascade" and (inputs, layers, head, trainable) != (SHARED, None, None, False):
        raise InvalidArgumentError(
            "A cascade takes whole models that read the same inputs.",
            received=f"inputs={inputs!r}, layers={layers!r}, head={head!r}, trainable={trainable!r}",
        )
    as_choice("inputs", inputs, (SHARED, SEPARATE))
    as_flag("trainable", trainable)
    if plan.how == "serial" and inputs == SEPARATE:
        raise InvalidArgumentError("In a serial fusion only the first model reads the inputs.", received=repr(inputs))


def with_weight(plan: Plan, count: int, inputs: str) -> tuple[Plan, list[int]]:
    """The plan for the models that stay, and their numbers: models of weight 0 go, where inputs are shared."""
    weights = plan.weights
    if not isinstance(weights, tuple):
        return plan, list(range(count))
    if len(weights) != count:
        raise InvalidArgumentError("There is one weight a model.", received=f"{len(weights)} weights, {count} models")
    kept = [i for i, weight in enumerate(weights) if weight != 0 or inputs == SEPARATE]
    return replace(plan, weights=tuple(weights[i] for i in kept)), kept


def layer_for(layers: Any, index: int, count: int) -> str | None:
    """Name of the layer of one of `count` models whose output is fused; None for the model's own outputs."""
    if layers is None or isinstance(layers, str):
        return layers
    if not isinstance(layers, (list, tuple)) or len(layers) != count or not all(isinstance(x, str) for x in layers):
        raise InvalidArgumentError(
            "`layers` is the name of a layer, or a list of names, one a model.",
            received=f"{layers!r} for {count} models",
        )
    return layers[index]
