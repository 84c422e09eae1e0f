"""Which kernels of a model a technique works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from tfopt.core.keras_internals import children
from tfopt.core.layers.registry import prunable_weights, record_of
from tfopt.core.models.graph import as_patterns, check_patterns, is_selected, matches, walk_layers
from tfopt.core.types import Names

_NOT_NAMED = object()


@dataclass(frozen=True)
class Selection:
    """The layers that a call names, by names and globs."""

    included: list[str]
    excluded: list[str]

    def __contains__(self, path: str) -> bool:
        return is_selected(path, self.included, self.excluded)


def checked_selection(model: keras.Model, include: Names, exclude: Names) -> Selection:
    """What `include` and `exclude` name; raises if one of them fits no layer of the model."""
    selection = Selection(as_patterns(include, "include"), as_patterns(exclude, "exclude"))
    check_patterns(model, selection.included, "include")
    check_patterns(model, selection.excluded, "exclude")
    return selection


@dataclass(frozen=True)
class Kernel:
    """A kernel, the first layer that holds it, its name there (`"cell/kernel"`) and how much is wanted of it."""

    variable: keras.Variable
    layer: keras.layers.Layer
    name: str
    amount: Any


def select_kernels(model: keras.Model, selection: Selection, amount: Any) -> tuple[list[Kernel], list[str]]:
    """The prunable kernels of the chosen layers, each once, and the chosen layers that tfopt does not know.

    Args:
        amount: the same for all, or a dict from layer names or globs: layers not named in it are left out, and a later
            entry wins over an earlier one.
    """
    kernels: dict[int, Kernel] = {}
    unknown = []
    for path, layer in walk_layers(model):
        own = _amount_for(path, amount)
        if isinstance(layer, keras.Model) or own is _NOT_NAMED or path not in selection:
            continue
        found = prunable_weights(layer)
        if not found and _is_unknown(layer):
            unknown.append(f"'{path}' ({type(layer).__name__})")
        for name, variable in found.items():
            kernels.setdefault(id(variable), Kernel(variable, layer, name, own))
    return list(kernels.values()), unknown


def _amount_for(path: str, amount: Any) -> Any:
    if not isinstance(amount, Mapping):
        return amount
    named = [value for pattern, value in amount.items() if matches(path, [pattern])]
    return named[-1] if named else _NOT_NAMED


def _is_unknown(layer: keras.layers.Layer) -> bool:
    record = record_of(layer)
    known = record is not None and (record.prunable is not None or record.output is not None)
    return not known and not children(layer) and any(len(weight.shape) >= 2 for weight in layer.weights)
