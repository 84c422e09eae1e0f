"""What `call` of a layer does, as a graph: it runs on symbolic tensors, and what it calls leaves nodes.

The layer stays as it is: while `call` runs, symbolic tensors are in the place of its weights.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.errors import UnsupportedModelError
from tfopt.core.keras_internals import (
    Functional,
    children,
    functional_of,
    has_graph,
    mask_of,
    set_mask,
    sublayers,
    topological_nodes,
)
from tfopt.core.layers.nodes import MaskOf, OpenedModel, OwnWeight, WithMask
from tfopt.core.models.recording import constant, graphs_shared, is_symbolic, masks_for, recording, without_blanks
from tfopt.core.tracing_internals import adds_losses, called_in, clear_losses, forget_nodes, node_counts

# What an input holds that a layer of a class reads.
_READ = {
    keras.layers.Embedding: "int32",
    keras.layers.IntegerLookup: "int64",
    keras.layers.StringLookup: "string",
    keras.layers.TextVectorization: "string",
}


class Closed(Exception):
    """Why a layer cannot be a graph."""


class ClosedInTraining(Closed):
    """Why a layer that gives its input in inference, and no more, cannot be a graph in training."""


def traced(layer: keras.layers.Layer, args: tuple, kwargs: dict, cls: type[Functional] = OpenedModel) -> Functional:
    """The graph of one call of a layer: a model over the layers inside it, which are the very same objects.

    Args:
        layer: built; one whose `call` uses Keras layers, `keras.ops`, or functions of TensorFlow.
        args, kwargs: of the call. The symbolic tensors in them become the inputs of the model: a list in their order,
            or one tensor.
        cls: of the model.

    Raises:
        Closed: with the reason why there is no graph that computes the same.

    Example:
        >>> class Half(keras.layers.Layer):
        ...     def call(self, x):
        ...         return x * 0.5
        >>> [type(op).__name__ for op in traced(Half(name="half"), (keras.Input((4,)),), {}).operations]
        ['InputLayer', 'Multiply']
    """
    return _traced(layer, args, kwargs, lambda args, inputs: inputs if len(inputs) > 1 else inputs[0], cls)


def traced_model(model: keras.Model, inputs: Any = None, *, lasting: bool = False) -> Functional:
    """The graph of a whole model that is, or holds, one written as code, over its very layers.

    Args:
        model: built.
        inputs: what its `call` takes, as symbolic tensors; by default those of the shapes that it was built with.
        lasting: other models may be built on it; its layers then remember its calls.

    Raises:
        UnsupportedModelError: if the model was not built yet, or its `call` cannot be a graph.

    Example:
        >>> class Half(keras.Model):
        ...     def call(self, x):
        ...         return x * 0.5
        >>> traced_model(Half(), keras.Input((4,))).output_shape
        (None, 4)
    """
    if inputs is None and has_graph(model):
        inputs = functional_of(model).input
    elif inputs is None:
        found = _traced_model(model, _built_inputs(model))
        dtypes = {tensor.name: dtype for tensor in found.inputs if (dtype := _dtype_read(found, tensor))}
        if not dtypes and not lasting:
            return found
        inputs = _built_inputs(model, dtypes)
    return _traced_model(model, inputs, lasting)


def _traced_model(model: keras.Model, inputs: Any, lasting: bool = False) -> Functional:
    try:
        return _traced(model, (inputs,), {}, lambda args, inputs: args[0], Functional, lasting)
    except Closed as reason:
        raise UnsupportedModelError(
            "The `call` of a subclassed model must run on symbolic tensors, as that of a Functional model does.",
            received=f"{type(model).__name__} '{model.name}': {reason}",
            fix="Put what cannot into a layer of its own, which then stays as it is, or build a Functional model.",
        ) from reason


def _built_inputs(model: keras.Model, dtypes: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Inputs of the shapes that a model was built with, of `dtypes` by name; floats where these say nothing."""

    def made(shapes: Any, name: str | None) -> Any:
        if isinstance(shapes, dict):
            return {key: made(shape, key) for key, shape in shapes.items()}
        if shapes and isinstance(shapes[0], (tuple, list, dict)):
            return [made(shape, f"{name or 'input'}_{i}") for i, shape in enumerate(shapes)]
        return keras.Input(tuple(shapes[1:]), dtype=dtypes.get(name or ""), name=name)

    config = model.get_build_config()
    if not config or "input_shape" not in config:
        is_built = bool(model.built and model.variables)
        raise UnsupportedModelError(
            "The model has to be built: its weights and shapes are not known yet.",
            received=f"{'unbuilt ' * (not is_built)}{type(model).__name__} '{model.name}'",
            fix="Keras has not kept its shapes: take `tfopt.functional(model, x[:1])`, which reads them from data."
            if is_built
            else "Call it once on data, as `model(x[:1])`, or call `model.build(input_shape)`.",
        )
    return made(config["input_shape"], "inputs")


def _dtype_read(model: Functional, tensor: keras.KerasTensor) -> str:
    """What an input holds that only embeddings or lookups read; empty for floats."""
    readers = [node.operation for node in topological_nodes(model) if any(tensor is t for t in node.input_tensors)]
    found = {next((dtype for cls, dtype in _READ.items() if isinstance(op, cls)), "") for op in readers}
    return found.pop() if len(found) == 1 else ""


def _traced(
    layer: keras.layers.Layer,
    args: tuple,
    kwargs: dict,
    structure: Callable[..., Any],
    cls: type[Functional],
    lasting: bool = False,
) -> Functional:
    """The graph, of inputs as `structure` of the arguments and the flat inputs says, as a model of class `cls`.

    `call` runs three times, the last time in training: a graph is only known to compute the same if all are equal.
    """
    with graphs_shared(traced, lasting) as lasts:
        first, second = (_run(layer, args, kwargs, structure, cls, None, lasts) for lasts in (lasts, False))
        if _spelled(layer, first) != _spelled(layer, second):
            raise Closed("its `call` computes something else each time")
        in_training = functools.partial(_run, layer, args, kwargs, structure, cls, True, False)
        different = _difference_in_training(layer, first, in_training)
    if different:
        raise (ClosedInTraining if _gives_its_input(first) else Closed)(different)
    return first


def _difference_in_training(layer: keras.layers.Layer, first: Functional, run: Callable[[], Functional]) -> str:
    """What `call` does in training, where that is not the same; empty else."""
    try:
        training = run()
    except Closed as reason:
        return f"in training {reason}"
    fixed = _fixed_in_inference(training)
    if fixed:
        return f"its `call` has '{fixed}' run in inference while it trains; freeze that by `trainable = False`"
    is_same = _spelled(layer, first) == _spelled(layer, training)
    return "" if is_same else "its `call` computes something else while training"


def _gives_its_input(model: Functional) -> bool:
    ops = [node.operation for node in topological_nodes(model)]
    return len(model.inputs) == len(model.outputs) == 1 and all(isinstance(op, keras.layers.Identity) for op in ops)


def _run(
    layer: keras.layers.Layer,
    args: tuple,
    kwargs: dict,
    structure: Callable[..., Any],
    cls: type[Functional],
    training: bool | None,
    lasting: bool,
) -> Functional:
    inputs: list[keras.KerasTensor] = []
    kwargs = {name: value for name, value in kwargs.items() if name != "training"}
    args, kwargs = keras.tree.map_structure(lambda value: _input(value, inputs), (args, kwargs))
    if not inputs:
        raise Closed("it is called on no tensor")
    counts = node_counts(sublayers(layer))
    try:
        with tf.GradientTape() as tape, recording(layer, inputs[0]), called_in(layer, training):
            told = {"training": training} if _has_training(layer) else {}
            kwargs = {**kwargs, **masks_for(layer, args, kwargs)}
            outputs = _plain_call(layer)(*_cast(layer, args), **_cast(layer, kwargs), **told)
            outputs = _finished(layer, args, inputs, outputs)
        model = _model(layer, structure(args, inputs), outputs, cls)
        _check_weights(layer, model, tape)
        return model
    except Closed:
        raise
    except Exception as error:  # whatever an author's code says of tensors that hold no values
        raise Closed(f"its `call` does not run on symbolic tensors ({_reason(error)})") from error
    finally:
        if not lasting:
            forget_nodes(counts)
        clear_losses(layer)


def _reason(error: Exception) -> str:
    """The first line of what was said, not of what Keras puts before it."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return (said or [type(error).__name__])[0].rstrip(".")


def _finished(layer: keras.layers.Layer, args: tuple, inputs: list[keras.KerasTensor], outputs: Any) -> Any:
    """The outputs as the layer gives them: with the mask that it makes, or passes on."""
    outputs = keras.tree.map_structure(constant, outputs)
    first = args[0] if args else inputs[0]
    if layer.supports_masking and is_symbolic(outputs) and mask_of(outputs) is None:
        masks = layer.compute_mask(first, keras.tree.map_structure(mask_of, first))
        mask = next(iter(keras.tree.flatten(masks)), None)
        outputs = WithMask()([outputs, mask]) if is_symbolic(mask) else outputs
    return keras.tree.map_structure(lambda value: _apart(value, inputs), outputs)


def _apart(value: Any, inputs: list[keras.KerasTensor]) -> Any:
    """A tensor of its own where a layer gives its input: a model that does would not be called anew."""
    return keras.layers.Identity()(value) if any(value is tensor for tensor in inputs) else value


def _input(value: Any, inputs: list[keras.KerasTensor]) -> Any:
    """An input of the graph for a symbolic tensor among the arguments; anything else stays."""
    if not is_symbolic(value):
        return value
    source = getattr(value, "_keras_history", (None,))[0]
    name = source.name if isinstance(source, keras.layers.InputLayer) else None
    if any(tensor.name == name for tensor in inputs):
        name = None
    inputs.append(keras.Input(batch_shape=value.shape, dtype=value.dtype, sparse=value.sparse, name=name))
    if mask_of(value) is not None:
        set_mask(inputs[-1], MaskOf()(inputs[-1]))
    return inputs[-1]


def _plain_call(layer: keras.layers.Layer) -> Callable[..., Any]:
    """`call` without the compiled function that an author may have made of it."""
    compiled = getattr(layer.call, "python_function", None)
    return layer.call if compiled is None else functools.partial(compiled, layer)


def _cast(layer: keras.layers.Layer, values: Any) -> Any:
    """The arguments as the layer gets them: floats in the dtype that it computes in."""

    def cast(value: Any) -> Any:
        is_float = is_symbolic(value) and keras.backend.is_float_dtype(value.dtype)
        if is_float and layer.autocast and value.dtype != layer.compute_dtype:
            return keras.ops.cast(value, layer.compute_dtype)
        return value

    return values if isinstance(layer, keras.Model) else keras.tree.map_structure(cast, values)


def _model(layer: keras.layers.Layer, inputs: Any, outputs: Any, cls: type[Functional]) -> Functional:
    flat = keras.tree.flatten(outputs)
    may_be_blank = issubclass(cls, OpenedModel) and any(map(is_symbolic, flat))
    if not flat or not all(is_symbolic(value) or (value is None and may_be_blank) for value in flat):
        raise Closed("it gives something else than tensors computed from its inputs")
    if adds_losses(layer):
        raise Closed("its `call` adds a loss")

    def model_of(outputs: Any) -> Functional:
        return cls(inputs, outputs, name=layer.name)

    model = without_blanks(model_of, outputs) if any(value is None for value in flat) else model_of(outputs)
    if not layer.trainable:
        object.__setattr__(model, "_trainable", False)
    return model


def _check_weights(layer: keras.layers.Layer, model: Functional, tape: tf.GradientTape) -> None:
    """Each weight that was read has to be in the graph: else its value of today would be a constant there."""
    known = {id(variable) for variable in model.variables}
    read = {id(variable) for variable in tape.watched_variables()}
    for variable in layer.trainable_variables:
        if id(variable) not in known and id(variable.value) in read:
            raise Closed(f"it computes with '{variable.path}' without calling the layer of that weight")


# How two graphs of the same layer are compared.


def _spelled(layer: keras.layers.Layer, model: Functional) -> list:
    """The calls of a graph, with tensors by number, but for what they are told of training."""
    known = set(map(id, sublayers(layer)))
    numbers = {id(tensor): i for i, tensor in enumerate(model.inputs)}
    calls = []
    for node in topological_nodes(model):
        named = {name: value for name, value in node.arguments.kwargs.items() if name != "training"}
        spelled = keras.tree.map_structure(lambda value: _spelled_value(value, numbers), (node.arguments.args, named))
        calls.append((_who(node.operation, known), str(spelled)))
        numbers.update((id(tensor), len(numbers) + i) for i, tensor in enumerate(node.outputs))
    return [*calls, [numbers[id(tensor)] for tensor in model.outputs]]


def _fixed_in_inference(model: Functional) -> str:
    """The name of a layer that is told to run in inference by a call in training, and would run otherwise."""
    for node in topological_nodes(model):
        told = node.arguments.kwargs.get("training", True)
        if told is not True and any(map(_differs_in_training, sublayers(node.operation))):
            return node.operation.name
    return ""


def _who(op: keras.Operation, known: set[int]) -> Any:
    """What is called: the same layer or weight, or one that is made in `call`, or an op, of same class and settings."""
    if isinstance(op, OwnWeight):
        return id(op.weight)
    if isinstance(op, keras.layers.Layer) and (id(op) in known or op.weights):
        return id(op)
    if isinstance(op, keras.layers.Layer):
        settings = {name: value for name, value in op.get_config().items() if name != "name"}
    else:
        settings = {name: value for name, value in vars(op).items() if name != "name" and not name.startswith("_")}
    return type(op), str(keras.tree.map_structure(lambda value: _spelled_value(value, {}), settings))


def _has_training(layer: keras.layers.Layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters


def _differs_in_training(layer: keras.layers.Layer) -> bool:
    """True for a layer that has something of its own to do in training; one around others has not."""
    frozen = isinstance(layer, keras.layers.BatchNormalization) and not layer.trainable
    return _has_training(layer) and not children(layer) and not frozen and getattr(layer, "rate", None) != 0


def _spelled_value(value: Any, numbers: Mapping[int, int]) -> Any:
    if is_symbolic(value):
        return f"tensor {numbers.get(id(value))}"
    return np.asarray(value).tolist() if hasattr(value, "shape") else repr(value)
