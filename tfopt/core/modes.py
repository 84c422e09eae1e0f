"""What tfopt's own layers have in common, and the modes in which they run beside training and inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import keras

from tfopt.core.errors import UnsupportedModelError
from tfopt.core.graph import walk_layers

_MODE: ContextVar[str | None] = ContextVar("tfopt_mode", default=None)


class Range(Protocol):
    """The lowest and the highest value of a tensor; both 0 as long as no data has set them."""

    @property
    def bits(self) -> int: ...

    def bounds(self) -> tuple[float, float]: ...

    def reset(self) -> None: ...


class FakeQuantized:
    """Marks the layers that `quantize` puts into a model. Each says what stands in its place once stripped."""

    weight_only_bits: int | None = None  # of the kernels of a layer that computes in float; 16 for half precision

    def __setattr__(self, name, value):
        # Keras looks into each value for layers and weights to track, which is most of the time that creating a layer
        # takes. The layers of `quantize` hold theirs as attributes of their own, so that nothing else needs the look.
        if isinstance(value, (keras.layers.Layer, keras.Variable)):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    def stripped(self, state) -> list[keras.Operation]:
        """The plain ops to put in this layer's place; `state` is the `Rewrite` under way."""
        raise NotImplementedError

    def ranges(self) -> dict[str, Range]:
        """The activation ranges of this layer by name."""
        raise NotImplementedError


def check_not_quantized(model: keras.Model, verb: str) -> None:
    """Raises for a model with fake quantization."""
    if any(isinstance(layer, FakeQuantized) for _, layer in walk_layers(model)):
        raise UnsupportedModelError(
            f"`{verb}` takes the float model, before it is quantized.",
            received=f"'{model.name}' with fake quantization",
            fix=f"Call `{verb}` first and `quantize` on its result, or `strip` this model.",
        )


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
