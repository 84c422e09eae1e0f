"""What `call` of a layer does, as a graph: it runs on symbolic tensors, and what it calls leaves nodes.

The layer stays as it is: while `call` runs, symbolic tensors are in the place of its weights.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.errors import UnsupportedModelError, first_line
from tfopt.core.keras_internals import (
    Functional,
    adds_losses,
    forget_nodes,
    functional_of,
    has_graph,
    in_symbolic_scope,
    mask_of,
    node_counts,
    own_variables,
    public_name,
    set_mask,
    sublayers,
    topological_nodes,
)
from tfopt.core.layers.nodes import Constant, MaskOf, OwnWeight, Size, call_of
from tfopt.core.layers.twins import twin_of


class Closed(Exception):
    """Why a layer cannot be a graph."""


def traced(layer: keras.layers.Layer, args: tuple, kwargs: dict) -> Functional:
    """The graph of one call of a layer: a model over the layers inside it, which are the very same objects.

    Args:
        layer: built; one whose `call` uses Keras layers, `keras.ops`, or functions of TensorFlow.
        args, kwargs: of the call. The symbolic tensors in them become the inputs of the model: a list in their order,
            or one tensor.

    Raises:
        Closed: with the reason why there is no graph that computes the same.

    Example:
        >>> class Half(keras.layers.Layer):
        ...     def call(self, x):
        ...         return x * 0.5
        >>> [type(op).__name__ for op in traced(Half(name="half"), (keras.Input((4,)),), {}).operations]
        ['InputLayer', 'Multiply']
    """
    return _traced(layer, args, kwargs, lambda args, inputs: inputs if len(inputs) > 1 else inputs[0])


def traced_model(model: keras.Model, inputs: Any = None) -> Functional:
    """The graph of a whole model that is, or holds, one written as code, over its very layers.

    Args:
        model: built.
        inputs: what its `call` takes, as symbolic tensors; by default those of the shapes that it was built with.

    Raises:
        UnsupportedModelError: if the model was not built yet, or its `call` cannot be a graph.

    Example:
        >>> class Half(keras.Model):
        ...     def call(self, x):
        ...         return x * 0.5
        >>> traced_model(Half(), keras.Input((4,))).output_shape
        (None, 4)
    """
    if inputs is not None:
        return _traced_model(model, inputs)
    if has_graph(model):
        return _traced_model(model, functional_of(model).input)
    found = _traced_model(model, _built_inputs(model))
    tokens = [tensor.name for tensor in found.inputs if _is_looked_up(found, tensor)]
    return _traced_model(model, _built_inputs(model, tokens)) if tokens else found


def _traced_model(model: keras.Model, inputs: Any) -> Functional:
    try:
        return _traced(model, (inputs,), {}, lambda args, inputs: args[0])
    except Closed as reason:
        raise UnsupportedModelError(
            "The `call` of a subclassed model must run on symbolic tensors, as that of a Functional model does.",
            received=f"{type(model).__name__} '{model.name}': {reason}",
            fix="Put what cannot into a layer of its own, which then stays as it is, or build a Functional model.",
        ) from reason


def _built_inputs(model: keras.Model, tokens: Sequence[str] = ()) -> Any:
    """Inputs of the shapes that a model was built with; whole numbers for `tokens`, floats for all others."""

    def made(shapes: Any, name: str | None) -> Any:
        if isinstance(shapes, dict):
            return {key: made(shape, key) for key, shape in shapes.items()}
        if shapes and isinstance(shapes[0], (tuple, list, dict)):
            return [made(shape, f"{name or 'input'}_{i}") for i, shape in enumerate(shapes)]
        return keras.Input(tuple(shapes[1:]), dtype="int32" if name in tokens else None, name=name)

    config = model.get_build_config()
    if not model.built or not config or "input_shape" not in config:
        raise UnsupportedModelError(
            "The model has to be built: its weights and shapes are not known yet.",
            received=f"unbuilt {type(model).__name__} '{model.name}'",
            fix="Call it once on data, as `model(x[:1])`; of a Sequential, add a `keras.Input(shape)` as first layer.",
        )
    return made(config["input_shape"], "inputs")


def _is_looked_up(model: Functional, tensor: keras.KerasTensor) -> bool:
    """True for an input that only embeddings read: it holds whole numbers."""
    readers = [node.operation for node in topological_nodes(model) if any(tensor is t for t in node.input_tensors)]
    return bool(readers) and all(isinstance(op, keras.layers.Embedding) for op in readers)


def _traced(layer: keras.layers.Layer, args: tuple, kwargs: dict, structure: Callable[..., Any]) -> Functional:
    """The graph, of inputs as `structure` of the arguments and the flat inputs says.

    `call` runs twice: a graph is only known to compute the same if both, one of them in training, are equal.
    """
    kwargs = {name: value for name, value in kwargs.items() if name != "training"}
    training = True if "training" in inspect.signature(layer.call).parameters else None
    with _graphs_shared():
        model = _run(layer, args, kwargs, structure)
        again = _run(layer, args, kwargs if training is None else {**kwargs, "training": training}, structure)
    if _spelled(model, None) != _spelled(again, training):
        what = "computes something else while training" if training else "computes something else each time"
        raise Closed(f"its `call` {what}")
    return model


def _run(layer: keras.layers.Layer, args: tuple, kwargs: dict, structure: Callable[..., Any]) -> Functional:
    inputs: list[keras.KerasTensor] = []
    args, kwargs = keras.tree.map_structure(lambda value: _input(value, inputs), (args, kwargs))
    if not inputs:
        raise Closed("it is called on no tensor")
    counts = node_counts(sublayers(layer))
    try:
        with tf.GradientTape() as tape, _recording(layer, inputs[0]):
            outputs = _plain_call(layer)(*_cast(layer, args), **_cast(layer, kwargs))
        model = _model(layer, structure(args, inputs), outputs)
        _check_weights(layer, model, tape)
        return model
    except Closed:
        raise
    except Exception as error:  # whatever an author's code says of tensors that hold no values
        raise Closed(f"its `call` does not run on symbolic tensors ({first_line(error)})") from error
    finally:
        forget_nodes(counts)
        layer._clear_losses()


def _input(value: Any, inputs: list[keras.KerasTensor]) -> Any:
    """An input of the graph for a symbolic tensor among the arguments; anything else stays."""
    if not isinstance(value, keras.KerasTensor):
        return value
    source = getattr(value, "_keras_history", (None,))[0]
    name = source.name if isinstance(source, keras.layers.InputLayer) else None
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
        is_float = isinstance(value, keras.KerasTensor) and keras.backend.is_float_dtype(value.dtype)
        if is_float and layer.autocast and value.dtype != layer.compute_dtype:
            return keras.ops.cast(value, layer.compute_dtype)
        return value

    return values if isinstance(layer, keras.Model) else keras.tree.map_structure(cast, values)


def _model(layer: keras.layers.Layer, inputs: Any, outputs: Any) -> Functional:
    flat = keras.tree.flatten(outputs)
    if not flat or not all(isinstance(value, keras.KerasTensor) for value in flat):
        raise Closed("it gives something else than tensors computed from its inputs")
    if adds_losses(layer):
        raise Closed("its `call` adds a loss")
    model = Functional(inputs, outputs, name=layer.name)
    if not layer.trainable:
        object.__setattr__(model, "_trainable", False)
    return model


def _check_weights(layer: keras.layers.Layer, model: Functional, tape: tf.GradientTape) -> None:
    """Each weight that was read has to be in the graph: else its value of today would be a constant there."""
    known = {id(variable) for variable in model.variables}
    read = {id(variable) for variable in tape.watched_variables()}
    for variable in layer.trainable_variables:
        if id(variable) not in known and id(variable._value) in read:
            raise Closed(f"it computes with '{variable.path}' without calling the layer of that weight")


# How two graphs of the same layer are compared.


def _spelled(model: Functional, training: bool | None) -> list:
    """The calls of a graph, with tensors by number, and what they are told of training."""
    numbers = {id(tensor): i for i, tensor in enumerate(model.inputs)}
    calls = []
    for node in topological_nodes(model):
        fixed = dict(node.arguments.kwargs)
        told = fixed.pop("training", None)
        spelled = keras.tree.map_structure(lambda value: _spelled_value(value, numbers), (node.arguments.args, fixed))
        is_free = told is None or told is training or not any(map(_has_training, sublayers(node.operation)))
        calls.append((_who(node.operation), str(spelled), is_free))
        numbers.update((id(tensor), len(numbers) + i) for i, tensor in enumerate(node.outputs))
    return calls


def _who(op: keras.Operation) -> Any:
    """What is called: the same layer or weight, or an op of the same class and settings."""
    if isinstance(op, keras.layers.Layer):
        return id(op.weight if isinstance(op, OwnWeight) else op)
    settings = {name: value for name, value in vars(op).items() if name != "name" and not name.startswith("_")}
    return type(op), str(keras.tree.map_structure(lambda value: _spelled_value(value, {}), settings))


def _has_training(layer: keras.layers.Layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters


def _spelled_value(value: Any, numbers: Mapping[int, int]) -> Any:
    if isinstance(value, keras.KerasTensor):
        return f"tensor {numbers.get(id(value))}"
    return np.asarray(value).tolist() if hasattr(value, "shape") else repr(value)


# What stands in for weights, sizes and functions while `call` runs.

_here = threading.local()
_TRACKED = {"_trainable_variables", "_non_trainable_variables"}  # what Keras keeps of a layer, whatever its call does
# Functions of `keras.ops` that compute with sizes as with any tensor.
_ARITHMETIC = {"add", "subtract", "multiply", "floor_divide", "mod", "maximum", "minimum", "negative", "cast", "equal"}


@contextlib.contextmanager
def _recording(layer: keras.layers.Layer, anchor: keras.KerasTensor) -> Iterator[None]:
    """While it lasts, calls in this thread leave nodes that Keras itself would not make.

    Args:
        layer: whose `call` runs.
        anchor: an input of the graph, on which weights and constants are called.
    """
    attributes = dict(vars(layer))
    before, _here.anchor = getattr(_here, "anchor", None), anchor
    try:
        with _patched():
            vars(layer).update(_stand_ins(layer, anchor))
            yield
    finally:
        _here.anchor = before
        vars(layer).clear()
        vars(layer).update(attributes)


def _stand_ins(layer: keras.layers.Layer, anchor: keras.KerasTensor) -> dict[str, Any]:
    """The attributes that hold weights of the layer, with symbolic tensors in their place."""
    known = {id(variable): variable for variable in own_variables(layer)}
    made: dict[int, keras.KerasTensor] = {}

    def stand_in(value: Any) -> Any:
        if id(value) not in known:
            return value
        if id(value) not in made:
            names = [variable.name for variable in known.values()]
            own = value.name if names.count(value.name) == 1 else f"{value.name}_{len(made)}"
            made[id(value)] = OwnWeight.around(value, own, layer.dtype_policy)(anchor)
        return made[id(value)]

    changed = {}
    for name, value in vars(layer).items():
        if id(value) in known:
            changed[name] = stand_in(value)
        elif isinstance(value, (list, tuple)) and any(id(item) in known for item in value):
            changed[name] = [stand_in(item) for item in value]
        elif isinstance(value, dict) and any(id(item) in known for item in value.values()):
            changed[name] = {key: stand_in(item) for key, item in value.items()}
    return {name: value for name, value in changed.items() if name not in _TRACKED}


@contextlib.contextmanager
def _patched() -> Iterator[None]:
    """`keras.ops` takes sizes of the graph; TensorFlow's functions, and layers called on constants, become nodes."""
    _Functions.register_once()
    originals = {name: function for name, function in vars(keras.ops).items() if inspect.isfunction(function)}
    call = keras.layers.Layer.__call__
    for name, function in originals.items():
        setattr(keras.ops, name, _shape if name == "shape" else _with_sizes(name, function))
    keras.layers.Layer.__call__ = _recorded(call)
    try:
        yield
    finally:
        keras.layers.Layer.__call__ = call
        for name, function in originals.items():
            setattr(keras.ops, name, function)


def _is_recording() -> bool:
    """True in the thread that records, outside of the calls in which Keras works out shapes."""
    return getattr(_here, "anchor", None) is not None and not in_symbolic_scope()


_shape_of = keras.ops.shape


def _shape(x: Any) -> tuple:
    """`keras.ops.shape`, where each unknown size is a number of the graph."""
    if not (_is_recording() and isinstance(x, keras.KerasTensor)):
        return _shape_of(x)
    return tuple(Size(axis)(x) if size is None else size for axis, size in enumerate(x.shape))


def _with_sizes(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `keras.ops` that takes sizes of the graph wherever it takes numbers."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _is_recording() and name not in _ARITHMETIC and any(map(_is_size, keras.tree.flatten((args, kwargs)))):
            if name == "reshape":
                args, kwargs = _with_one_unknown(*args, **kwargs)
                if not any(map(_is_size, keras.tree.flatten((args, kwargs)))):
                    return function(*args, **kwargs)
            return call_of(f"keras.ops.{name}")(*args, **kwargs)
        return function(*args, **kwargs)

    call.instead_of = function  # type: ignore[attr-defined]
    return call


def _with_one_unknown(x: Any, newshape: Any) -> tuple[tuple, dict]:
    """The arguments of `reshape`, with -1 for a size that follows from all others."""
    unknown = [_is_size(size) or (isinstance(size, int) and size < 0) for size in newshape]
    if sum(unknown) == 1:
        newshape = tuple(-1 if one else size for one, size in zip(unknown, newshape, strict=True))
    return (x, newshape), {}


def _is_size(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor) and value.shape == () and "int" in value.dtype


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`Layer.__call__` for which models written as code are graphs, and layers called on constants are nodes too."""

    @functools.wraps(function)
    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if not _is_recording():
            return function(layer, *args, **kwargs)
        given = [value for value in keras.tree.flatten((args, kwargs)) if isinstance(value, keras.KerasTensor)]
        if not given:
            args = keras.tree.map_structure(_constant, args)
        elif isinstance(layer, keras.Model) and not has_graph(layer):
            told = {"training": kwargs["training"]} if "training" in kwargs else {}
            return function(_graph_of(layer, args, kwargs), given if len(given) > 1 else given[0], **told)
        return function(layer, *args, **kwargs)

    return call


@contextlib.contextmanager
def _graphs_shared() -> Iterator[None]:
    """Within the outermost of these, each model written as code has one graph for all its calls."""
    if getattr(_here, "models", None) is not None:
        yield
        return
    _here.models = {}
    try:
        yield
    finally:
        _here.models = None


def _graph_of(model: keras.Model, args: tuple, kwargs: dict) -> Functional:
    """The graph of a model written as code, one for all its calls with tensors of the same shapes."""
    given = {name: value for name, value in kwargs.items() if name != "training"}
    shapes = keras.tree.map_structure(lambda x: getattr(x, "shape", x), (args, given))
    key = id(model), str(shapes)
    if key not in _here.models:
        _here.models[key] = traced(model, args, kwargs)
    return _here.models[key]


def _constant(value: Any) -> Any:
    return Constant(value)(_here.anchor) if isinstance(value, np.ndarray) or tf.is_tensor(value) else value


class _Functions(tf.__internal__.dispatch.GlobalOpDispatcher):
    """Makes functions of TensorFlow that are called on symbolic tensors nodes of the graph."""

    _registered = False

    @classmethod
    def register_once(cls) -> None:
        if not cls._registered:
            cls._registered = True
            cls().register()

    def handle(self, op: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        given = keras.tree.flatten((args, kwargs))
        if not (_is_recording() and any(isinstance(value, keras.KerasTensor) for value in given)):
            return self.NOT_SUPPORTED
        name = public_name(op)
        if name is None:
            return self.NOT_SUPPORTED
        result = twin_of(name, op, args, kwargs)
        return call_of(f"tf.{name}")(*args, **kwargs) if result is NotImplemented else result
