"""The packages that only a search needs, with a clear error where they are not installed."""

from __future__ import annotations

import importlib
from typing import Any

from tfopt.core.errors import InvalidArgumentError


def load(name: str) -> Any:
    """The module of that name.

    Raises:
        InvalidArgumentError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidArgumentError(
            f"A search needs the package '{name}'.", received=str(error), fix="pip install tfopt[search]"
        ) from error
