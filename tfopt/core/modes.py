"""What tfopt's own layers have in common, and the modes in which they run beside training and inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import keras

_MODE: ContextVar[str | None] = ContextVar("tfopt_mode", default=None)


class FakeQuantized:
    """Marks the layers that `quantize` puts into a model. Each says what stands in its place once stripped."""

    def stripped(self, state) -> list[keras.Operation]:
        """The plain ops to put in this layer's place; `state` is the `Rewrite` under way."""
        raise NotImplementedError

    def unset_ranges(self) -> list[str]:
        """Paths of the ranges of this layer that no data has set yet."""
        raise NotImplementedError


@contextmanager
def mode(name: str) -> Iterator[None]:
    """`"calibrate"`: ranges follow the data, activations stay float. `"export"`: weights become constants."""
    token = _MODE.set(name)
    try:
        yield
    finally:
        _MODE.reset(token)


def in_mode(name: str) -> bool:
    return _MODE.get() == name
