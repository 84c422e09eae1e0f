"""Multiply-accumulates of a model, layer by layer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.layers.macs import layer_macs, register_macs
from tfopt.core.layers.registry import Record, Shape, enter
from tfopt.core.models.graph import Call, Graph, check_model

__all__ = ["layer_macs", "model_macs", "register_macs"]


def model_macs(model: keras.Model, *, input_shapes: Sequence[Shape] | None = None) -> dict[str, int | None]:
    """Multiply-accumulates (MACs) for one sample of each layer and op of a model; `layer_macs` says what counts.

    Nested models are entered, at the shapes they are called with. A layer called several times counts each call.

    Args:
        model: a built Sequential or Functional model.
        input_shapes: shapes to count at, one an input and with the batch dimension first, where those of the model
            hold None besides the batch: `[(None, 224, 224, 3)]`.

    Returns:
        `{path: MACs}` in the order of computation, paths such as `"encoder/conv1"`. The MACs of a layer are None where
        its shapes are not defined, or its class has no rule (`register_macs`).

    Raises:
        UnsupportedModelError: for a subclassed or unbuilt model.
        InvalidArgumentError: if `input_shapes` does not fit the inputs of the model.

    Example:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((4,)), dense(3, name="a"), dense(2, name="b")])
        >>> model_macs(model)
        {'a': 12, 'b': 6}
    """
    counts: dict[str, int | None] = {}
    _count(check_model(model), _specs(model, input_shapes), "", counts)
    return counts


def _nested(model: keras.Model, inputs: list[Shape], outputs: list[Shape]) -> int:
    """A model inside a wrapper such as TimeDistributed."""
    counts = model_macs(model, input_shapes=inputs)
    unknown = [path for path, macs in counts.items() if macs is None]
    if unknown:
        raise InvalidArgumentError("The MACs of each layer have to be known.", received=f"no count for {unknown}")
    return sum(macs for macs in counts.values() if macs is not None)


enter(Record(macs=_nested, of_subclasses=True), keras.Model)


def _specs(model: keras.Model, input_shapes: Sequence[Shape] | None) -> list:
    tensors = Graph(model).inputs
    if input_shapes is None:
        return tensors
    if len(input_shapes) != len(tensors):
        raise InvalidArgumentError(
            "`input_shapes` holds one shape an input of the model.", received=f"{len(input_shapes)} for {len(tensors)}"
        )
    for shape, tensor in zip(input_shapes, tensors, strict=True):
        fits = len(shape) == len(tensor.shape) and all(
            own in (None, given) for own, given in zip(tensor.shape[1:], shape[1:], strict=True)
        )
        if not fits:
            raise InvalidArgumentError(
                f"The shape of input '{tensor.name}' has to fit {tuple(tensor.shape)}.", received=str(tuple(shape))
            )
    return [keras.KerasTensor(shape, dtype=t.dtype) for shape, t in zip(input_shapes, tensors, strict=True)]


def _count(model: keras.Model, specs: list, prefix: str, counts: dict[str, int | None]) -> list:
    """Adds the calls of one model to `counts`, called with `specs`; gives the specs of its outputs."""
    graph = Graph(model)
    as_built = all(spec.shape == tensor.shape for spec, tensor in zip(specs, graph.inputs, strict=True))
    values = {id(tensor): spec for tensor, spec in zip(graph.inputs, specs, strict=True)}
    for call in graph.calls:
        path = prefix + call.op.name
        args, kwargs = call.arguments(values)
        if isinstance(call.op, keras.Model):
            tensors = [value for value in keras.tree.flatten((args, kwargs)) if isinstance(value, keras.KerasTensor)]
            inner = tensors[: len(Graph(call.op).inputs)]
            outputs = _count(call.op, inner, f"{path}/", counts)
        else:
            outputs = call.outputs if as_built else keras.tree.flatten(call.op.compute_output_spec(*args, **kwargs))
            shapes = _shapes(_in_order_of_call(call, args, kwargs))
            counts[path] = _sum(counts.get(path, 0), _call_macs(call.op, shapes, _shapes(outputs)))
        values.update((id(old), new) for old, new in zip(call.outputs, outputs, strict=True))
    return [values[id(tensor)] for tensor in graph.outputs]


def _in_order_of_call(call: Call, args: tuple, kwargs: dict) -> list:
    """Flat arguments in the order of the parameters of `call`, which a graph sorts by name where they are named."""
    bound = inspect.signature(call.op.call).bind(*args, **kwargs)
    return keras.tree.flatten([*bound.arguments.values()])


def _shapes(values: Sequence[Any]) -> list[Shape]:
    """Shapes of the tensors among the arguments, constants included."""
    return [tuple(value.shape) for value in values if hasattr(value, "shape")]


def _call_macs(op: Any, inputs: list[Shape], outputs: list[Shape]) -> int | None:
    try:
        return layer_macs(op, inputs, outputs)
    except InvalidArgumentError:
        return None


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
