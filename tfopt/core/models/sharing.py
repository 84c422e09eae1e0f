"""Models with a layer that a model nested in them has too: Keras' files make two layers of it, which share nothing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras

from tfopt.core.keras_internals import Functional

_loading = threading.local()


def shares_layers(model: keras.Model) -> bool:
    """True if a layer of the model, or of one nested in it, is in two of them.

    Example:
        >>> dense, x = keras.layers.Dense(4), keras.Input((4,))
        >>> inner = keras.Model(x, dense(x))
        >>> shares_layers(keras.Model(x, dense(inner(x)))), shares_layers(keras.Model(x, inner(x)))
        (True, False)
    """
    return bool(_shared(model))


@keras.saving.register_keras_serializable(package="tfopt")
class SharingModel(Functional):
    """A Functional model whose config holds each layer once, however many of the models nested in it have it."""

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        _Places(_shared(self)).write(self, config)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> SharingModel:
        before = getattr(_loading, "layers", None)
        _loading.layers = {}
        try:
            return super().from_config(config, custom_objects)
        finally:
            _loading.layers = before


@keras.saving.register_keras_serializable(package="tfopt")
class SharedLayer:
    """What stands in a config for a layer of several models: the layer itself where it comes first, then its number."""

    def __init__(self, config: dict[str, Any]):
        self._config = config

    def get_config(self) -> dict[str, Any]:
        return self._config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.layers.Layer:
        if "layer" in config:
            _loading.layers[config["number"]] = keras.saving.deserialize_keras_object(config["layer"])
        return _loading.layers[config["number"]]


class _Places:
    """Puts `SharedLayer` in the places of shared layers, in the order in which Keras reads a config.

    A call of a layer has a number in the config, counted within its model. Since all models call the same object, the
    calls of the models that were read before count too.
    """

    def __init__(self, shared: set[int]):
        self._shared = shared
        self._numbers: dict[int, int] = {}
        self._calls: Counter[int] = Counter()

    def write(self, model: Functional, config: dict[str, Any]) -> None:
        """Changes the config of a model, and those of the models nested in it."""
        calls: Counter[int] = Counter()
        for op, entry in zip(model.operations, config["layers"], strict=True):
            if isinstance(op, Functional):
                self.write(op, entry["config"])
            elif id(op) in self._shared:
                self._replace(op, entry)
                calls[id(op)] = len(entry["inbound_nodes"])
        shift = {op.name: self._calls[id(op)] for op in model.operations if id(op) in calls}
        for history in _histories(config):
            history[1] += shift.get(history[0], 0)
        self._calls.update(calls)

    def _replace(self, op: keras.layers.Layer, entry: dict[str, Any]) -> None:
        layer = {key: entry.pop(key) for key in list(entry) if key not in ("name", "inbound_nodes")}
        is_first = id(op) not in self._numbers
        number = {"number": self._numbers.setdefault(id(op), len(self._numbers))}
        stands_in = SharedLayer({**number, "layer": layer} if is_first else number)
        entry.update(keras.saving.serialize_keras_object(stands_in))


def _shared(model: keras.Model) -> set[int]:
    """The ids of the layers that two models of the family have."""
    no_layers = keras.layers.InputLayer, keras.Model
    owned = [{id(op) for op in part.operations if not isinstance(op, no_layers)} for part in _family(model)]
    counts = Counter(key for keys in owned for key in keys)
    return {key for key, count in counts.items() if count > 1}


def _family(model: keras.Model) -> Iterator[Functional]:
    """The model and those nested in it, each once."""
    seen, left = set(), [model]
    while left:
        part = left.pop()
        if isinstance(part, Functional) and id(part) not in seen:
            seen.add(id(part))
            yield part
            left.extend(part.operations)


def _histories(config: dict[str, Any]) -> Iterator[list]:
    """Where a config names a call: `[layer, number of the call, number of the tensor]`."""
    yield from _of_structure([config["input_layers"], config["output_layers"]])
    for entry in config["layers"]:
        yield from _of_calls(entry["inbound_nodes"])


def _of_structure(value: Any) -> Iterator[list]:
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _of_structure(part)


def _of_calls(value: Any) -> Iterator[list]:
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        yield value["config"]["keras_history"]
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _of_calls(part)
