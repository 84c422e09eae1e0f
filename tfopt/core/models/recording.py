"""What stands in for weights, sizes and functions while `call` of a layer runs on symbolic tensors."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.keras_internals import Functional, children, functional_of, has_graph, mask_of
from tfopt.core.layers.nodes import Constant, InferenceModel, OpenedModel, OwnWeight, Size, call_of
from tfopt.core.layers.twins import twin_of
from tfopt.core.tracing_internals import in_symbolic_scope, own_variables, public_name

_here = threading.local()
_one_thread = threading.Lock()
_TRACKED = {"_trainable_variables", "_non_trainable_variables"}  # what Keras keeps of a layer, whatever its call does
# Functions of `keras.ops` that compute with sizes as with any tensor.
_ARITHMETIC = {"add", "subtract", "multiply", "floor_divide", "mod", "maximum", "minimum", "negative", "cast", "equal"}


@contextlib.contextmanager
def recording(layer: keras.layers.Layer, anchor: keras.KerasTensor) -> Iterator[None]:
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
    """`keras.ops` takes sizes of the graph; TensorFlow's functions, and layers called on constants, become nodes.

    Only the outermost recording changes anything, and one thread at a time, so that all of it is taken back.
    """
    if getattr(_here, "patched", False):
        yield
        return
    with _one_thread, _replaced():
        _here.patched = True
        try:
            yield
        finally:
            _here.patched = False


@contextlib.contextmanager
def _replaced() -> Iterator[None]:
    _Functions.register_once()
    originals = {name: function for name, function in vars(keras.ops).items() if inspect.isfunction(function)}
    call, item = keras.layers.Layer.__call__, keras.KerasTensor.__getitem__
    for name, function in originals.items():
        setattr(keras.ops, name, _shape if name == "shape" else _with_sizes(name, function))
    keras.layers.Layer.__call__ = _recorded(call)
    keras.KerasTensor.__getitem__ = functools.partialmethod(_picked, item)
    try:
        yield
    finally:
        keras.layers.Layer.__call__, keras.KerasTensor.__getitem__ = call, item
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


def _picked(tensor: keras.KerasTensor, item: Callable[..., Any], key: Any) -> Any:
    """What `tensor[key]` gives, where slices may begin and end at sizes of the graph."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if not any(isinstance(part, slice) and (_is_size(part.start) or _is_size(part.stop)) for part in parts):
        return item(tensor, (key,) if key is None or isinstance(key, slice) else key)
    place = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    for index, part in enumerate(parts):
        if isinstance(part, slice) and (_is_size(part.start) or _is_size(part.stop)):
            axis = index if index < place else index - len(parts)
            tensor = _between(tensor, axis, part)
            parts[index] = slice(None)
    return item(tensor, tuple(parts))


def _between(tensor: keras.KerasTensor, axis: int, part: slice) -> Any:
    """A slice along an axis of a tensor."""
    stop = keras.ops.shape(tensor)[axis] if part.stop is None else part.stop
    places = keras.ops.arange(0 if part.start is None else part.start, stop, 1 if part.step is None else part.step)
    return keras.ops.take(tensor, places, axis=axis)


def _with_one_unknown(x: Any, newshape: Any) -> tuple[tuple, dict]:
    """The arguments of `reshape`, with -1 for a size that follows from all others."""
    unknown = [_is_size(size) or (isinstance(size, int) and size < 0) for size in newshape]
    if sum(unknown) == 1:
        newshape = tuple(-1 if one else size for one, size in zip(unknown, newshape, strict=True))
    return (x, newshape), {}


def _is_size(value: Any) -> bool:
    return is_symbolic(value) and value.shape == () and "int" in value.dtype


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`Layer.__call__` for which models written as code are graphs, and layers called on constants are nodes too."""

    @functools.wraps(function)
    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if not _is_recording():
            return function(layer, *args, **kwargs)
        if not any(map(is_symbolic, keras.tree.flatten((args, kwargs)))):
            args = keras.tree.map_structure(constant, args)
        if not children(layer) and "training" not in inspect.signature(layer.call).parameters:
            kwargs.pop("training", None)  # as Keras does
        closed = isinstance(layer, keras.Model) and not has_graph(layer)
        in_inference = kwargs.get("training") is False and isinstance(layer, keras.Model)
        if closed:
            return _inside(function, layer, args, kwargs, in_inference)
        if in_inference:
            told = {name: value for name, value in kwargs.items() if name != "training"}
            return function(_in_inference(functional_of(layer)), *args, **told)
        try:
            return function(layer, *args, **{**kwargs, **masks_for(layer, args, kwargs)})
        except Exception:
            if type(layer).__module__.startswith("keras.src."):
                raise
            return _inside(function, layer, args, kwargs)  # Keras cannot tell what an author's own layer gives

    return call


def _inside(
    function: Callable[..., Any], layer: keras.layers.Layer, args: tuple, kwargs: dict, in_inference: bool = False
) -> Any:
    """What a layer or model gives that is called as the graph of its `call`."""
    given = [value for value in keras.tree.flatten((args, kwargs)) if is_symbolic(value)]
    graph = _graph_of(layer, args, kwargs, InferenceModel if in_inference else OpenedModel)
    told = {"training": kwargs["training"]} if "training" in kwargs and not in_inference else {}
    outputs = function(graph, given if len(given) > 1 else given[0], **told)
    return _with_blanks(outputs, _here.given[id(graph)]) if id(graph) in _here.given else outputs


def _with_blanks(outputs: Any, structure: Any) -> Any:
    """The tensors that a graph gives, in the structure that the layer gives them in, with None beside them."""
    tensors = iter(keras.tree.flatten(outputs))
    return keras.tree.map_structure(lambda value: None if value is None else next(tensors), structure)


def without_blanks(model_of: Callable[[Any], Functional], outputs: Any) -> Functional:
    """The graph that `model_of` makes of the tensors in `outputs` alone; its calls give None beside them."""
    tensors = [value for value in keras.tree.flatten(outputs) if value is not None]
    model = model_of(tensors if len(tensors) > 1 else tensors[0])
    _here.given[id(model)] = outputs
    return model


def _in_inference(graph: Functional) -> Functional:
    """A model of the same layers that runs in inference whatever it is told, one for all calls."""
    key = id(graph), "in inference"
    if key not in _here.models:
        _here.models[key] = InferenceModel(graph.input, graph.output, name=graph.name)
    return _here.models[key]


def masks_for(layer: keras.layers.Layer, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The masks of tensors that `call` asks for and Keras hands over by itself."""
    parameters = inspect.signature(layer.call).parameters
    kwargs = {name: value for name, value in kwargs.items() if name != "training"}  # Keras takes it from who has none
    given = inspect.signature(layer.call).bind_partial(*args, **kwargs).arguments
    tensors = {name: value for name, value in given.items() if any(map(is_symbolic, keras.tree.flatten(value)))}
    wanted = {"mask" if len(tensors) == 1 else f"{name}_mask": value for name, value in tensors.items()}
    masks = {name: keras.tree.map_structure(mask_of, value) for name, value in wanted.items() if name in parameters}
    return {
        name: mask
        for name, mask in masks.items()
        if given.get(name) is None and any(map(is_symbolic, keras.tree.flatten(mask)))
    }


def is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


@contextlib.contextmanager
def graphs_shared(
    trace: Callable[[keras.layers.Layer, tuple, dict, type[Functional]], Functional], lasting: bool
) -> Iterator[bool]:
    """Within the outermost of these, each model written as code has one graph for all its calls, made by `trace`.

    Gives whether other models may be built on these graphs.
    """
    if getattr(_here, "models", None) is not None:
        yield _here.lasting
        return
    _here.models, _here.given, _here.trace, _here.lasting = {}, {}, trace, lasting
    try:
        yield lasting
    finally:
        _here.models = None


def _graph_of(model: keras.layers.Layer, args: tuple, kwargs: dict, cls: type[Functional]) -> Functional:
    """The graph of a model or layer written as code, one for all its calls with tensors of the same shapes."""
    given = {name: value for name, value in kwargs.items() if name != "training"}
    shapes = keras.tree.map_structure(lambda x: getattr(x, "shape", x), (args, given))
    key = id(model), str(shapes), cls
    if key not in _here.models:
        _here.models[key] = _here.trace(model, args, kwargs, cls)
    return _here.models[key]


def constant(value: Any) -> Any:
    """A node for an array; anything else stays."""
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
        if not (_is_recording() and any(is_symbolic(value) for value in given)):
            return self.NOT_SUPPORTED
        name = public_name(op)
        if name is None:
            return self.NOT_SUPPORTED
        result = twin_of(name, op, args, kwargs)
        return call_of(f"tf.{name}")(*args, **kwargs) if result is NotImplemented else result
