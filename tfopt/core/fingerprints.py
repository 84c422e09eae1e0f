"""Hashes of models, data and settings that are the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfopt.core.graph import walk_layers


def model_fingerprint(model: keras.Model) -> str:
    """A hash of layer paths, layer classes and weights."""
    layers = [f"{path} {type(layer).__name__}" for path, layer in walk_layers(model)]
    return fingerprint([layers, [keras.ops.convert_to_numpy(weight) for weight in model.weights]])


def fingerprint(value: Any) -> str:
    """A hash of arrays, numbers, names, functions (by name) and what is made of them; the same in every process.

    Example:
        >>> fingerprint({"a": np.ones(2), "b": [1, "x"]}) == fingerprint({"b": [1, "x"], "a": np.ones(2)})
        True
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest, value: Any) -> None:
    if isinstance(value, Mapping):
        value = [part for key in sorted(value) for part in (key, value[key])]
    if isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} parts;".encode())
        for part in value:
            _feed(digest, part)
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif value is None or isinstance(value, (str, int, float, np.number)):
        digest.update(f"{value!r};".encode())
    elif hasattr(value, "get_config"):
        config = {name: part for name, part in value.get_config().items() if name != "name"}  # "adam", then "adam_1"
        _feed(digest, [type(value).__qualname__, config])
    else:  # other objects and functions have no value that is the same in another process: their name has to do
        name = getattr(value, "__qualname__", None) or getattr(value, "name", None) or type(value).__qualname__
        digest.update(f"{name};".encode())
