"""The only code that clones a model or moves weights from one layer to another."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from tfopt.core.errors import TfoptError, UnsupportedModelError, first_line
from tfopt.core.keras_internals import (
    Functional,
    create_values,
    functional_like_constructor,
    only_own_values,
    set_value,
    sublayers,
    values_come_later,
)
from tfopt.core.layers.nodes import OwnWeight
from tfopt.core.models import constraints
from tfopt.core.models.copying import Copies
from tfopt.core.models.graph import Call, Graph
from tfopt.core.models.redrawing import redrawn
from tfopt.core.models.sharing import SharingModel, shares_layers

Replace = Callable[[keras.Operation, "Rewrite"], "keras.Operation | Sequence[Any] | None"]


class DoesNotFitError(UnsupportedModelError):
    """Keras could not build the changed model: shapes that do not fit together, or too little memory."""


def rewrite(
    graph: Graph,
    replace: Replace | None = None,
    *,
    bypass: Mapping[int, Any] | None = None,
    values_of: Callable[[keras.Variable], Any] | None = None,
) -> Graph:
    """Clones a model, layer by layer, and lets `replace` put something else in a layer's place.

    Works on Sequential and Functional models with nested models, shared layers, several inputs and outputs, op layers
    such as `x + y` and any dtype policy. Weights, seeds, `trainable` flags and weight constraints go with the layers,
    names are kept, the input model is never touched and the result is not compiled. Time is linear in the layers.

    Args:
        graph: of the model.
        replace: called once for each layer, op and input layer of the model and of the models nested in it, as
            `replace(op, rewrite)`. It returns None to keep a copy, an op to put in its place, or a sequence of ops to
            call one after the other: `[]` drops the layer, `[rewrite.copy(op), new]` inserts `new` behind it.
            `rewrite.copy(layer, **config)` gives a copy whose weights are carried over; `rewrite.path` is the
            slash-separated path of the layer.
        bypass: `{id(tensor): earlier tensor of the same graph}`, which is read in its place. What no output needs any
            more is left out, and `replace` does not see it.
        values_of: the array for the copy of a variable, where the copy is of another shape; weight constraints are
            then left behind.

    Returns:
        The graph of the new model, which is Sequential for a Sequential, Functional otherwise.

    Raises:
        UnsupportedModelError: for a layer that cannot be cloned; `DoesNotFitError` where Keras cannot build the model.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d"), keras.layers.ReLU()])
        >>> tanh = lambda op, rewrite: keras.layers.Activation("tanh") if isinstance(op, keras.layers.ReLU) else None
        >>> [layer.__class__.__name__ for _, layer in rewrite(read(model), tanh).layers]
        ['Dense', 'Activation']
    """
    made = Copies(graph.model, reshaped=values_of is not None)
    state = Rewrite(graph, replace or (lambda op, rewrite: None), bypass or {}, made)
    with _all_or_nothing(state):
        clone = state.model(graph.model)
        for source, target, own in state.copies:
            transfer_values(source, target, own or values_of)
        made.check()
        with _unfrozen(clone):
            create_values()
    shared: dict | None = {} if values_of is None else None
    for source, target, _ in state.copies:
        transfer_settings(source, target, shared)
    return Graph(clone, closed=graph.closed)


def untrained(graph: Graph) -> Graph:
    """A copy with new initial values, to train from the start.

    Layers with `trainable=False`, as a pretrained backbone, and adapted ones, as `Normalization`, keep their values:
    training would not bring them back. Weight constraints are left behind.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dense(2)])
        >>> model.layers[0].trainable = False
        >>> new = untrained(read(model)).model
        >>> [bool((a.kernel == b.kernel).numpy().all()) for a, b in zip(new.layers, model.layers)]
        [True, False]
    """
    made = Copies(graph.model, untrained=True)
    state = Rewrite(graph, lambda op, rewrite: None, {}, made)
    with _all_or_nothing(state):
        clone = state.model(graph.model)
        pairs = [
            pair
            for source, target, _ in state.copies
            for pair in zip(sublayers(source), sublayers(target), strict=True)
        ]
        for source, target in pairs:
            if not source.trainable or hasattr(source, "adapt"):
                transfer_values(source, target)
            elif isinstance(source, OwnWeight):
                transfer_values(source, target, redrawn)
        made.check()
        create_values()
    for source, target, _ in state.copies:
        transfer_settings(source, target, None)
    return Graph(clone)


def in_float32(graph: Graph) -> Graph:
    """The graph itself, or that of a copy of the model that computes in float32 where it has layers of another policy.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, dtype="mixed_float16")])
        >>> in_float32(read(model)).model.layers[0].compute_dtype
        'float32'
    """

    def replace(op: keras.Operation, state: Rewrite) -> keras.Operation | None:
        return None if isinstance(op, keras.Model) or not _has_other_floats(op) else state.in_float32(op)

    return rewrite(graph, replace) if _has_other_floats(graph.model) else graph


def holds_other_floats(graph: Graph) -> bool:
    """True if a weight of the model is a float of another type than float32.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> layer = keras.layers.Dense(2, dtype="bfloat16")
        >>> holds_other_floats(read(keras.Sequential([keras.Input((4,)), layer])))
        True
    """
    return any(weight.dtype in _OTHER_FLOATS for weight in graph.model.weights)


_OTHER_FLOATS = ("float16", "bfloat16", "float64")


def _has_other_floats(op: keras.Operation) -> bool:
    dtypes = {dtype for layer in sublayers(op) for dtype in (layer.compute_dtype, layer.variable_dtype)}
    return not dtypes.isdisjoint(_OTHER_FLOATS)


def computes_in_16_bits(op: keras.Operation) -> bool:
    """True if the layer, or one inside it, computes in float16 or bfloat16."""
    return any(layer.compute_dtype in ("float16", "bfloat16") for layer in sublayers(op))


@dataclass
class Rewrite:
    """One rewrite under way; what `replace` sees of it."""

    graph: Graph
    replace: Replace
    bypass: Mapping[int, Any]
    made: Copies
    copies: list[tuple] = field(default_factory=list)
    path: str = ""
    calls: list[Call] = field(default_factory=list)
    _models: dict[int, keras.Model] = field(default_factory=dict)
    _chains: dict[int, list[keras.Operation]] = field(default_factory=dict)
    _opened: set[int] = field(default_factory=set)

    def copy(self, op: keras.Operation, **config: Any) -> keras.Operation:
        """A copy of a layer or op, `config` laid over its own; its weights follow when the new model is built."""
        copied = self.made.of(op, **config)
        keeps_shapes = not config and not self.made.reshaped and isinstance(op, keras.layers.Layer)
        if keeps_shapes and op.weights and self._is_of_unknown_size():
            _build_alike(op, copied)
        return self._noted(op, copied)

    def _is_of_unknown_size(self) -> bool:
        """True if Keras could not build the layer on what it is called on."""
        return any(None in tensor.shape[1:] for call in self.calls for tensor in call.inputs)

    def in_float32(self, op: keras.layers.Layer) -> keras.layers.Layer:
        """A copy of a layer that computes in float32."""
        return self._noted(op, self.made.in_float32(op))

    def _noted(self, op: keras.Operation, copied: Any) -> Any:
        if isinstance(op, keras.layers.Layer):
            self.copies.append((op, copied, None))
        return copied

    def remade(self, op: keras.layers.Layer, **config: Any) -> Any:
        """The same, with new initial values."""
        return self.made.remade(op, config)

    def resized(self, op: keras.layers.Layer, values_of: Callable[[keras.Variable], Any], **config: Any) -> Any:
        """The same, where `values_of` gives the array for the copy of each variable.

        Weight constraints are carried over, so a variable whose shape changes may have none.
        """
        copied = self.copy(op, **config)
        self.copies[-1] = (op, copied, values_of)
        return copied

    def opened(self, op: keras.layers.Layer, inside: keras.Model) -> keras.Model:
        """The clone of a model that computes what a layer does, for the layer's place; it gets all its tensors."""
        self._opened.add(id(op))
        return self.model(inside, f"{self.path}/")

    def model(self, model: keras.Model, prefix: str = "") -> keras.Model:
        """The clone of a model, `prefix` before its layers' paths; of a shared one there is a single clone."""
        if id(model) not in self._models:
            clone = (self._sequential if isinstance(model, keras.Sequential) else self._functional)(model, prefix)
            if not model.trainable:
                clone.trainable = False
            self._models[id(model)] = clone
        return self._models[id(model)]

    def _ops(self, op: keras.Operation, prefix: str, calls: Sequence[Call] = ()) -> list[keras.Operation]:
        """What stands in the place of an op, one chain for all places that share it; graphs have their own inputs."""
        if isinstance(op, keras.layers.InputLayer):
            return self._chain(op, prefix, calls)
        if id(op) not in self._chains:
            self._chains[id(op)] = self._chain(op, prefix, calls)
        return self._chains[id(op)]

    def _chain(self, op: keras.Operation, prefix: str, calls: Sequence[Call]) -> list[keras.Operation]:
        self.path, self.calls = prefix + op.name, list(calls)
        replaced = self.replace(op, self)
        if replaced is None:
            return [self.model(op, f"{self.path}/") if isinstance(op, keras.Model) else self.copy(op)]
        return list(replaced) if isinstance(replaced, (list, tuple)) else [replaced]

    def _sequential(self, model: keras.Sequential, prefix: str) -> keras.Model:
        graph = self.graph.inner(model)
        source = graph.inputs[0]._keras_history.operation
        needed = {id(call.op) for call in graph.needed(self.bypass)}
        ops = [source, *(layer for layer in model.layers if id(layer) in needed)]
        layers = [new for op in ops for new in self._ops(op, prefix, graph.calls_of(op))]
        if not all(isinstance(layer, keras.layers.Layer) for layer in layers):
            inputs = layers[0].output
            return keras.Model(inputs, _run(layers[1:], (inputs,), {}), name=model.name)
        with values_come_later(*layers):
            return keras.Sequential(layers, name=model.name)

    def _functional(self, model: Functional, prefix: str) -> keras.Model:
        graph = self.graph.inner(model)
        values = {}
        new_inputs = {}
        for tensor in graph.inputs:
            source, *chain = self._ops(tensor._keras_history.operation, prefix)
            new_inputs[id(tensor)] = source.output
            values[id(tensor)] = _run(chain, (source.output,), {})
        needed = graph.needed(self.bypass)
        for call in graph.calls:
            if call in needed:
                chain = self._ops(call.op, prefix, graph.calls_of(call.op))
                args, kwargs = call.arguments(values)
                if id(call.op) in self._opened:
                    tensors = [values[id(tensor)] for tensor in call.inputs]
                    args, kwargs = ((tensors if len(tensors) > 1 else tensors[0]),), {}
                elif not isinstance(call.op, tuple(map(type, chain[:1]))):
                    kwargs = {key: value for key, value in kwargs.items() if value is not None}  # it may not know them
                if hasattr(call.op, "arguments_inside"):  # a wrapper that is called otherwise than what it wraps
                    args, kwargs = call.op.arguments_inside(args, kwargs)
                outputs = keras.tree.flatten(_run(chain, args, kwargs))
                values.update((id(old), new) for old, new in zip(call.outputs, outputs, strict=True))
            for old in call.outputs:
                if id(old) in self.bypass:
                    values[id(old)] = values.get(id(self.bypass[id(old)]))
        inputs = keras.tree.map_structure(lambda t: new_inputs[id(t)], model.input)
        outputs = keras.tree.map_structure(lambda t: values[id(t)], model.output)
        clone = _model_class(model)(inputs, outputs, name=model.name)
        is_plain = not prefix and type(clone) is Functional
        return SharingModel(inputs, outputs, name=model.name) if is_plain and shares_layers(clone) else clone


def transfer_values(source: keras.layers.Layer, target: keras.layers.Layer, values_of: Callable | None = None) -> None:
    """Copies the variables of a layer to its copy, each through `values_of` if given."""
    if len(source.variables) != len(target.variables):
        raise UnsupportedModelError(
            "A copied layer has to create the same variables as its original.",
            received=f"{len(source.variables)} in '{source.name}', {len(target.variables)} in the copy",
            fix="Create all weights in `__init__` or `build`, from the config alone.",
        )
    for old, new in zip(source.variables, target.variables, strict=True):
        value = old if values_of is None else values_of(old)
        if tuple(value.shape) != tuple(new.shape):
            raise UnsupportedModelError(
                "A copied layer has to create its variables in the shapes of their values.",
                received=f"{tuple(new.shape)} for a value of {tuple(value.shape)} in '{source.name}'",
                fix="Create all weights in `build`, from the shape of the input and the config alone.",
            )
        set_value(new, value)


def transfer_settings(source: keras.layers.Layer, target: keras.layers.Layer, shared: dict | None) -> None:
    """Copies `trainable` flags and tfopt's constraints of a layer to its copy, once the values are there.

    `shared` is one dict for all layers of a model: what their constraints have in common is copied once. With None,
    constraints are left behind.
    """
    if shared is not None:
        for old, new in zip(source.variables, target.variables, strict=True):
            constraints.carry(old, new, shared)
    for old_layer, new_layer in zip(sublayers(source), sublayers(target), strict=False):  # an activation layer may go
        if old_layer.trainable != new_layer.trainable:
            new_layer.trainable = old_layer.trainable
        if isinstance(new_layer, keras.layers.Normalization):  # it keeps what derives from its variables
            new_layer.finalize_state()


def _run(ops: list, args: tuple, kwargs: dict) -> Any:
    """Calls `ops` in a chain; only the first gets the call's further arguments."""
    if not ops:
        return keras.tree.flatten((args, kwargs))[0]
    result = _call(ops[0], *args, **kwargs)
    for op in ops[1:]:
        result = _call(op, result)
    return result


@contextlib.contextmanager
def _all_or_nothing(state: Rewrite) -> Iterator[None]:
    """Nothing of a rewrite that fails stays in the process, and what Keras says of it is told as an error of tfopt."""
    try:
        with _collector_paused(), only_own_values():
            yield
    except (TfoptError, NameError):
        raise
    except Exception as error:  # of Keras, TensorFlow or a user's layer
        raise DoesNotFitError(
            "The layers of the changed model must fit together and in memory.",
            received=f"at '{state.path}': {type(error).__name__}: {first_line(error)}",
            fix="Leave out the layer, or choose other sizes.",
        ) from error


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Python's cycle collector would walk all layers again and again while they are created: a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _unfrozen(model: keras.Model) -> Iterator[None]:
    """TensorFlow records gradients for variables only that are created trainable, even if they become it later."""
    flags = [(layer, layer.trainable) for layer in sublayers(model)]
    for layer, _ in flags:  # one by one: a model that is trainable itself does not tell its layers
        layer.trainable = True
    yield
    for layer, flag in flags:
        if layer.trainable != flag:
            layer.trainable = flag


def _build_alike(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Builds a copy for the sizes that its original was built for."""
    config = source.get_build_config() if source.built and not target.built else None
    if config:
        with values_come_later(target):
            target.build_from_config(config)


def _call(op: keras.Operation, *args: Any, **kwargs: Any) -> Any:
    with values_come_later(op):
        return op(*args, **kwargs)


def _model_class(model: Functional) -> type:
    if functional_like_constructor(type(model)):
        return type(model)
    warnings.warn(
        f"'{model.name}' is a {type(model).__name__} whose constructor does not take (inputs, outputs): the result is "
        "a plain Functional model, without the methods of that class.",
        stacklevel=2,
    )
    return keras.Model
