"""What tfopt's own layers have in common, and the modes in which they run beside training and inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import keras

from tfopt.core.errors import InvalidArgumentError, UnsupportedModelError
from tfopt.core.models.graph import Graph
from tfopt.core.models.rewrite import Rewrite, rewrite

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

    def __setattr__(self, name: str, value: Any) -> None:
        # Keras looks into each value for layers and weights to track, which is most of the time that creating a layer
        # takes. The layers of `quantize` hold theirs as attributes of their own, so that nothing else needs the look.
        if isinstance(value, (keras.layers.Layer, keras.Variable)):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    def stripped(self, state: Rewrite) -> list[keras.Operation]:
        """The plain ops to put in this layer's place; `state` is the `Rewrite` under way."""
        raise NotImplementedError

    def ranges(self) -> dict[str, Range]:
        """The activation ranges of this layer by name."""
        raise NotImplementedError


def fake_quantized(graph: Graph) -> list[tuple[str, FakeQuantized]]:
    """`(path, layer)` of each layer that `quantize` put into the model; none in a float model."""
    return [(path, layer) for path, layer in graph.layers if isinstance(layer, FakeQuantized)]


def without_fake_quantization(graph: Graph) -> tuple[Graph, dict[int, keras.Variable]]:
    """The graph of the plain float model inside a quantized one, or that of a float model itself.

    Returns:
        The graph, and for each variable of its model, by id, the variable of the given model that it copies or is.
    """
    if not fake_quantized(graph):
        return graph, {id(variable): variable for variable in graph.model.variables}
    copies: list[list[tuple]] = []

    def replace(op: keras.Operation, state: Rewrite) -> list[keras.Operation] | None:
        copies.append(state.copies)
        return op.stripped(state) if isinstance(op, FakeQuantized) else None

    plain = rewrite(graph, replace)
    variables = (pair for old, new, _ in copies[0] for pair in zip(new.variables, old.variables, strict=True))
    return plain, {id(new): old for new, old in variables}


def ranges_of(graph: Graph) -> dict[str, Range]:
    """All activation ranges of the model: `{"path/name": range}`, as `"encoder/dense/output"`."""
    return {f"{path}/{name}": part for path, layer in fake_quantized(graph) for name, part in layer.ranges().items()}


def check_ranges(graph: Graph) -> None:
    """Raises for a model with fake quantization that has not seen data."""
    unset = [path for path, part in ranges_of(graph).items() if part.bounds() == (0.0, 0.0)]
    if unset:
        raise InvalidArgumentError(
            "Each activation range has to be set by data.",
            received=f"{len(unset)} unset: {', '.join(unset[:5])}" + (", ..." if len(unset) > 5 else ""),
            fix="Train the model with `fit`, or call `tfopt.calibrate(model, data)`.",
        )


def check_quantized(graph: Graph, verb: str) -> None:
    """Raises for a model without fake quantization."""
    if not fake_quantized(graph):
        raise InvalidArgumentError(
            f"`{verb}` takes a quantized model.",
            received=f"'{graph.model.name}', a float model",
            fix="Call `tfopt.quantize(model)` first.",
        )


def check_not_quantized(graph: Graph, verb: str) -> None:
    """Raises for a model with fake quantization."""
    if fake_quantized(graph):
        raise UnsupportedModelError(
            f"`{verb}` takes the float model, before it is quantized.",
            received=f"'{graph.model.name}' with fake quantization",
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
