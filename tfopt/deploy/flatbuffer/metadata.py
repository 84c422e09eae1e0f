"""What a file says about itself beside its model: the user's words, and what tfopt knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import keras

from tfopt.core.checks import plain, shown
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.version import VERSION
from tfopt.deploy.verify import input_ranges

TEXTS = ("name", "description", "version", "author", "license")
OWN = "tfopt"  # key of what tfopt adds


def checked_metadata(metadata: Any) -> dict[str, Any] | None:
    """The metadata as JSON holds it, numbers of numpy as Python's own; None stays None.

    Raises:
        InvalidArgumentError: anything but a dict that can be written as JSON.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise InvalidArgumentError("`metadata` must be a dict with texts as keys.", received=f"{metadata!r:.100}")
    if OWN in metadata:
        raise InvalidArgumentError(f"The key '{OWN}' of `metadata` is for what tfopt adds.", received=f"'{OWN}'")
    _check_known(metadata)
    try:
        return json.loads(json.dumps(dict(metadata), allow_nan=False, default=_plain))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            "`metadata` must hold what JSON can: texts, numbers, lists and dicts.",
            received=str(error),
            fix="Turn arrays into lists.",
        ) from error


def _check_known(metadata: Mapping[str, Any]) -> None:
    """Raises where a key that has a meaning holds something else."""
    for key in TEXTS:
        if key in metadata and not isinstance(metadata[key], str):
            raise InvalidArgumentError(f"`metadata['{key}']` must be a text.", received=shown(metadata[key]))
    labels = metadata.get("labels", [])
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
        raise InvalidArgumentError(
            "`metadata['labels']` must be a list of texts, in the order of the outputs.", received=shown(labels)
        )


def _plain(value: Any) -> Any:
    """A number or flag of numpy as JSON takes it; raises for what JSON cannot hold."""
    found = plain(value)
    if found is value:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return found


def all_metadata(metadata: Mapping[str, Any] | None, parts: Mapping[str, tuple[Any, str]]) -> dict[str, Any] | None:
    """The user's metadata with what tfopt knows: its version, quantization and input ranges of each signature.

    Args:
        metadata: of the user; None stays None.
        parts: signature -> (model, kind of file).
    """
    if metadata is None:
        return None
    signatures = {
        name: {
            "quantization": kind,
            "input_range": {key: list(bounds) for key, bounds in input_ranges(model).items()}
            if isinstance(model, keras.Model)
            else {},
        }
        for name, (model, kind) in parts.items()
    }
    return {**metadata, OWN: {"version": VERSION, "signatures": signatures}}
