"""The edits of a model that a search chooses among: what they are called, which values are possible where."""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfopt.core.checks import as_whole, plain
from tfopt.core.errors import InvalidArgumentError, NothingToDoError, TfoptError, first_line
from tfopt.core.models.blocks import Blocks
from tfopt.editing.activations import as_target, plan_activations
from tfopt.editing.depth import drop_layers
from tfopt.editing.kernels import plan_kernels
from tfopt.editing.places import Outcome, Place, places_of
from tfopt.editing.pooling import plan_pooling
from tfopt.editing.swap import swap_activation, swap_kernel_size, swap_pooling
from tfopt.editing.width import scale_width

PER = ("model", "stage", "layer")
Value = str | int | float


@dataclass(frozen=True)
class Swap:
    """A kind of swap: its verb, and what it would do where, as the verb itself plans it."""

    name: str
    verb: Callable[..., keras.Model]
    plan: Callable[[keras.Model, list[Place], Any], Outcome]


@dataclass(frozen=True)
class Axis:
    """One choice of a space.

    Args:
        name: of the hyperparameter.
        values: that are possible; at most one of them leaves the model as it is.
        default: the value that changes the model least.
        edits: for each value that changes the model the paths to swap at, or without `swap` a function that edits.
        swap: the kind, for a choice among swaps.
    """

    name: str
    values: tuple[Value, ...]
    default: Value
    edits: Mapping[Value, Any]
    swap: Swap | None = None


def edited(model: keras.Model, axes: Sequence[Axis], chosen: Mapping[str, Value]) -> keras.Model:
    """The model with the chosen value of each axis, and all swaps to one value in one go."""
    for swap, group in itertools.groupby(axes, key=lambda axis: axis.swap):
        together: dict[Value, list[str]] = defaultdict(list)
        for axis in group:
            value = chosen[axis.name]
            if value in axis.edits and swap is None:
                model = axis.edits[value](model)
            elif value in axis.edits:
                together[value] += axis.edits[value]
        for value, paths in together.items():
            model = _swapped(swap, paths, model, value)
    return model


def swap_axes(model: keras.Model, swap: Swap, values: Sequence[Any], per: str, missed: dict[str, str]) -> list[Axis]:
    """An axis for each group of places; values that a group cannot take are left out, with the reason in `missed`."""
    places = places_of(model, None, f"swap_{swap.name}")
    groups = _groups(places, per)
    outcomes = {}
    for value in dict.fromkeys(map(plain, values)):
        outcome = swap.plan(model, places, value)
        try:
            if outcome.swapped:
                _swapped(swap, [*outcome.swapped], model, value)
            outcomes[value] = outcome
        except (TfoptError, ValueError) as error:
            missed[f"{swap.name}={value}"] = first_line(error)
        missed |= {f"{swap.name}={value} at {path}": reason for path, reason in outcome.missed.items()}
    axes = [_group_axis(swap, group, paths, outcomes) for group, paths in groups.items()]
    return [axis for axis in axes if axis is not None]


def depth_axes(model: keras.Model, fractions: Sequence[float], missed: dict[str, str]) -> list[Axis]:
    """One axis: which fraction of the blocks that can be dropped stays; those that go are spread evenly."""
    names = [block.name for block in Blocks(model).candidates]
    if not names:
        missed["depth"] = "no block can be dropped"
        return []
    dropped: dict[Value, list[str]] = {}
    for fraction in sorted(set(map(plain, fractions)), reverse=True):
        count = math.floor((1 - fraction) * len(names) + 0.5)
        gone = [names[int((i + 0.5) * len(names) / count)] for i in range(count)]
        if gone in dropped.values():
            missed[f"depth={fraction:g}"] = f"of {len(names)} blocks it leaves as many as another does"
        else:
            dropped[float(fraction)] = gone
    edits = {value: functools.partial(drop_layers, names=gone) for value, gone in dropped.items() if gone}
    return _whole_axis(model, "depth", tuple(dropped), edits, missed)


def width_axes(model: keras.Model, factors: Sequence[float], missed: dict[str, str]) -> list[Axis]:
    """One axis: the factor of all widths."""
    values = tuple(dict.fromkeys(map(float, factors)))
    edits = {value: functools.partial(scale_width, factor=value) for value in values if value != 1}
    return _whole_axis(model, "width", values, edits, missed)


def _activations(model: keras.Model, places: list[Place], value: Any) -> Outcome:
    if not isinstance(value, str):
        raise InvalidArgumentError("`activation` holds names of activations.", received=repr(value))
    return plan_activations(model, places, as_target(value))[1]


def _kernels(model: keras.Model, places: list[Place], value: Any) -> Outcome:
    """A kernel larger than its input only reads padding at its rim; it is no choice."""
    value = as_whole("kernel_size", value, least=1, what="a list of whole numbers of at least 1")
    outcome = plan_kernels(model, places, value)[1]
    for place in places:
        smallest = min((size for size in _grid(place) if size is not None), default=value)
        if place.path in outcome.swapped and value > smallest:
            del outcome.swapped[place.path]
            outcome.missed[place.path] = f"its input is {smallest} wide"
    return outcome


def _poolings(model: keras.Model, places: list[Place], value: Any) -> Outcome:
    return plan_pooling(model, places, value)[1]


ACTIVATION = Swap("activation", swap_activation, _activations)
KERNEL_SIZE = Swap("kernel_size", swap_kernel_size, _kernels)
POOLING = Swap("pooling", swap_pooling, _poolings)


def _groups(places: Iterable[Place], per: str) -> dict[str, set[str]]:
    """Suffix of a name -> paths; a stage is all that reads a grid of one size, numbered in the order of computation."""
    groups: dict[str, set[str]] = defaultdict(set)
    stages: dict[tuple, int] = {}
    for place in places:
        stage = stages.setdefault(_grid(place), len(stages) + 1)
        groups[{"model": "", "stage": f"/stage{stage}", "layer": f"/{place.path}"}[per]].add(place.path)
    return groups


def _grid(place: Place) -> tuple[int | None, ...]:
    """The spatial size of the first input."""
    inputs = place.calls[0].inputs
    shape = tuple(inputs[0].shape)[1:] if inputs else ()
    return shape[:-1] if keras.config.image_data_format() == "channels_last" else shape[1:]


def _group_axis(swap: Swap, group: str, paths: set[str], outcomes: dict[Any, Outcome]) -> Axis | None:
    swapped = {value: [path for path in outcome.swapped if path in paths] for value, outcome in outcomes.items()}
    already = {value: paths & outcome.left.keys() - outcome.missed.keys() for value, outcome in outcomes.items()}
    touched = {path for found in swapped.values() for path in found}
    same = [value for value, found in swapped.items() if not found and already[value] & touched]
    values = tuple(value for value, found in swapped.items() if found or value in same[:1])
    if not touched:
        return None
    default = (same or [max(values, key=lambda value: len(already[value] & touched))])[0]
    edits = {value: found for value, found in swapped.items() if found}
    return Axis(swap.name + group, values, default, edits, swap)


def _swapped(swap: Swap, paths: list[str], model: keras.Model, value: Any) -> keras.Model:
    """The model with the swap at those of the paths that it has."""
    places = places_of(model, None, f"swap_{swap.name}")
    chosen = {id(place.op) for place in places if place.path in paths}
    return swap.verb(model, value, lambda op: id(op) in chosen) if chosen else model


def _whole_axis(
    model: keras.Model, name: str, values: tuple, edits: Mapping[Any, Any], missed: dict[str, str]
) -> list[Axis]:
    possible = []
    for value in values:
        try:
            if value in edits:
                edits[value](model)
            possible.append(value)
        except NothingToDoError:
            missed[f"{name}={value:g}"] = "it changes nothing"
        except TfoptError as error:
            missed[f"{name}={value:g}"] = first_line(error)
    if not any(value in edits for value in possible):
        return []
    default = next((value for value in possible if value not in edits), max(possible))
    return [Axis(name, tuple(possible), default, {value: edits[value] for value in possible if value in edits})]
