"""Hashes that tell whether arrays, settings or models are the same as in an earlier call, in any process."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfopt.core.models.graph import walk_layers

# Parts of a model's config that say how it was made and is trained, not what it computes.
_TRAINING = ("trainable", "initializer", "regularizer", "constraint", "build_config", "compile_config")
# Keys of the config under which the names of layers stand.
_NAMES = ("name", "keras_history", "input_layers", "output_layers")


def model_fingerprint(model: keras.Model) -> str:
    """A hash of layer paths, layer classes and weights."""
    layers = [f"{path} {type(layer).__name__}" for path, layer in walk_layers(model)]
    return fingerprint([layers, [keras.ops.convert_to_numpy(weight) for weight in model.weights]])


def computation_fingerprint(model: keras.Model) -> str:
    """A hash of what a model computes: its weights, layers and their order, whatever the layers are named.

    Example:
        >>> models = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "relu", False)]) for _ in range(2)]
        >>> models[1].set_weights(models[0].get_weights())
        >>> computation_fingerprint(models[0]) == computation_fingerprint(models[1])
        True
    """
    weights = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    return fingerprint([architecture_fingerprint(model), weights])


def architecture_fingerprint(model: keras.Model) -> str:
    """A hash of a model's layers and their order, whatever they are named and weigh."""
    try:
        config = _computation(keras.saving.serialize_keras_object(model), {})
    except NotImplementedError:  # a layer without `get_config`
        config = [type(layer).__name__ for _, layer in walk_layers(model)]
    return fingerprint(config)


def fingerprint(value: Any) -> str:
    """A hash of arrays, numbers, texts, functions (by name) and what is made of them; the same in every process.

    Example:
        >>> fingerprint({"a": np.ones(2), "b": [1, "x"]}) == fingerprint({"b": [1, "x"], "a": np.ones(2)})
        True
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        value = [part for key in sorted(value) for part in (key, value[key])]
    elif isinstance(value, np.ndarray) and value.dtype.kind == "O":  # whose bytes are addresses
        value = [list(value.shape), *value.ravel().tolist()]
    elif isinstance(value, functools.partial):
        value = [value.func, list(value.args), value.keywords]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        value = [type(value).__qualname__, fields]
    if isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} parts;".encode())
        for part in value:
            _feed(digest, part)
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif value is None or isinstance(value, (str, bytes, int, float, np.number)):
        digest.update(f"{value!r};".encode())
    elif hasattr(value, "__array__"):
        _feed(digest, np.asarray(value))
    elif hasattr(value, "get_config"):
        config = {name: part for name, part in value.get_config().items() if name != "name"}  # "adam", then "adam_1"
        _feed(digest, [type(value).__qualname__, config])
    else:  # other objects and functions have no value that is the same in another process: their name has to do
        name = getattr(value, "__qualname__", None) or getattr(value, "name", None) or type(value).__qualname__
        digest.update(f"{name};".encode())


def _computation(config: Any, numbers: dict[str, int], key: str = "") -> Any:
    """The config without what does not matter to the outputs, and with numbers in place of the names of layers."""
    if isinstance(config, Mapping):
        if "DType" in str(config.get("class_name")):  # the name of a dtype policy says what it is
            return config
        kept = {name: part for name, part in config.items() if not any(word in name for word in _TRAINING)}
        return {name: _computation(part, numbers, name) for name, part in kept.items()}
    if isinstance(config, (list, tuple)):
        return [_computation(part, numbers, key) for part in config]
    if key in _NAMES and isinstance(config, str):
        return numbers.setdefault(config, len(numbers))
    return config
