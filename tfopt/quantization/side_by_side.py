"""Runs a quantized model and the float model it is rounded from side by side, call by call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfopt.core.data.batches import as_tensor
from tfopt.core.models.fake_quantized import FakeQuantized
from tfopt.core.models.graph import Call, Graph
from tfopt.core.models.rewrite import rewrite


@dataclass(frozen=True)
class Step:
    """One call of a layer or op, about to run.

    Args:
        path: of the layer or op, with nested models as folders.
        graph: that the call stands in.
        plain: the op of the float model; None for a range, which is not there.
        exact, rounded: `{id(tensor): value}` of the float and of the quantized model.
    """

    path: str
    graph: Graph
    call: Call
    plain: keras.Operation | None
    exact: dict[int, Any]
    rounded: dict[int, Any]

    def run_plain(self, values: dict[int, Any]) -> list:
        """The float model's outputs for these inputs, flat."""
        args, kwargs = self.call.arguments(values)
        if hasattr(self.call.op, "arguments_inside"):  # a wrapper that is called otherwise than what it wraps
            args, kwargs = self.call.op.arguments_inside(args, kwargs)
        return keras.tree.flatten((args, kwargs))[:1] if self.plain is None else _flat(self.plain, args, kwargs)

    def run_quantized(self, values: dict[int, Any]) -> list:
        """The quantized model's outputs for these inputs, flat."""
        args, kwargs = self.call.arguments(values)
        return _flat(self.call.op, args, kwargs)


class SideBySide:
    """A quantized model and the float model that it is rounded from, which has the same paths.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> from tfopt.quantization.quantize import quantize
        >>> model = quantize(keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1, name="d")]))
        >>> pair = SideBySide(read(model))
        >>> exact, rounded = pair.run([np.ones((1, 2))], lambda step: print(step.path))
        x_range
        d
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        plain = rewrite(graph, lambda op, state: op.stripped(state) if isinstance(op, FakeQuantized) else None)
        self.plain = dict(plain.layers)

    def run(
        self,
        inputs: list[np.ndarray],
        before: Callable[[Step], None] = lambda step: None,
        after: Callable[[Step, list, list], None] = lambda step, exact, rounded: None,
        stays_float: frozenset[str] = frozenset(),
    ) -> tuple[list, list]:
        """Runs both models.

        Args:
            inputs: arrays in the order of the model's inputs.
            before: called before each call.
            after: called with the flat outputs of both models after each call.
            stays_float: paths of layers that run unrounded in the quantized model too.

        Returns:
            The flat outputs of the float and of the quantized model.
        """
        tensors = [as_tensor(array, spec.dtype) for array, spec in zip(inputs, self.graph.inputs, strict=True)]
        return self._run(self.graph, (tensors, tensors), (before, after), stays_float, "")

    def _run(
        self, graph: Graph, inputs: tuple[list, list], visit: tuple, stays_float: frozenset[str], prefix: str
    ) -> tuple[list, list]:
        before, after = visit
        exact, rounded = (
            {id(tensor): value for tensor, value in zip(graph.inputs, values, strict=True)} for values in inputs
        )
        for call in graph.calls:
            path = f"{prefix}{call.op.name}"
            if isinstance(call.op, keras.Model):
                given = [exact[id(tensor)] for tensor in call.inputs], [rounded[id(tensor)] for tensor in call.inputs]
                outputs = self._run(graph.inner(call.op), given, visit, stays_float, f"{path}/")
            else:
                step = Step(path, graph, call, self._plain(path, call.op), exact, rounded)
                before(step)
                run = step.run_plain if path in stays_float else step.run_quantized
                outputs = step.run_plain(exact), run(rounded)
                after(step, *outputs)
            for values, made in zip((exact, rounded), outputs, strict=True):
                values.update((id(tensor), value) for tensor, value in zip(call.outputs, made, strict=True))
        return [exact[id(tensor)] for tensor in graph.outputs], [rounded[id(tensor)] for tensor in graph.outputs]

    def _plain(self, path: str, op: keras.Operation) -> keras.Operation | None:
        op = getattr(op, "layer", op)
        return self.plain.get(path) if isinstance(op, keras.layers.Layer) else op  # an op has no weights


def _flat(op: keras.Operation, args: tuple, kwargs: dict) -> list:
    return keras.tree.flatten(op(*args, **kwargs))
