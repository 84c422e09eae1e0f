"""The only code that clones a model or moves weights from one layer to another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import keras

from tfopt.core import constraints
from tfopt.core.errors import UnsupportedModelError
from tfopt.core.graph import Graph, check_model
from tfopt.core.keras_internals import Functional, functional_like_constructor, functional_of, sublayers

Replacement = "keras.Operation | Sequence[keras.Operation] | None"
Replace = Callable[[keras.Operation, "Rewrite"], Replacement]


def rewrite(model: keras.Model, replace: Replace | None = None) -> keras.Model:
    """Clones `model`, layer by layer, and lets `replace` put something else in a layer's place.

    Works on Sequential and Functional models with nested models, shared layers, several inputs and outputs, op layers
    such as `x + y` and any dtype policy. Weights, seeds, `trainable` flags and weight constraints go with the layers,
    names are kept, the input model is never touched and the result is not compiled. Time is linear in the layers.

    Args:
        model: a built Sequential or Functional model.
        replace: called once for each layer, op and input layer of the model and of the models nested in it, as
            `replace(op, rewrite)`. It returns None to keep a copy, an op to put in its place, or a sequence of ops to
            call one after the other: `[]` drops the layer, `[rewrite.copy(op), new]` inserts `new` behind it.
            `rewrite.copy(layer, **config)` gives a copy whose weights are carried over; `rewrite.path` is the
            slash-separated path of the layer.

    Returns:
        A new model: Sequential for a Sequential, Functional otherwise.

    Raises:
        UnsupportedModelError: for a subclassed or unbuilt model, or a layer that cannot be cloned.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d"), keras.layers.ReLU()])
        >>> tanh = lambda op, rewrite: keras.layers.Activation("tanh") if isinstance(op, keras.layers.ReLU) else None
        >>> [layer.__class__.__name__ for layer in rewrite(model, tanh).layers]
        ['Dense', 'Activation']
    """
    check_model(model)
    state = Rewrite(replace or (lambda op, rewrite: None))
    clone = state.model(model)
    for source, target in state.copies:
        transfer(source, target)
    return clone


@dataclass
class Rewrite:
    """One rewrite under way; what `replace` sees of it."""

    replace: Replace
    copies: list[tuple] = field(default_factory=list)
    path: str = ""
    _models: dict[int, keras.Model] = field(default_factory=dict)

    def copy(self, op: keras.Operation, **config) -> keras.Operation:
        """A copy of a layer or op, `config` laid over its own; its weights follow when the new model is built."""
        try:
            copied = type(op).from_config({**op.get_config(), **config})
        except Exception as error:
            raise UnsupportedModelError(
                "Each layer has to be cloneable from its config.",
                received=f"{type(op).__name__} '{self.path}': {str(error).strip().splitlines()[0]}",
                fix="Give the class `get_config` (and `from_config` where the config holds objects).",
            ) from error
        if isinstance(op, keras.layers.Layer):
            self.copies.append((op, copied))
        return copied

    def model(self, model: keras.Model) -> keras.Model:
        """The clone of a model or nested model; asked twice for a shared one, it gives the same clone."""
        if id(model) not in self._models:
            outer, self.path = self.path, self.path + "/" if self._models else ""
            self._models[id(model)] = None
            build = self._sequential if isinstance(model, keras.Sequential) else self._functional
            clone = build(model, self.path)
            if not model.trainable:
                clone.trainable = False
            self._models[id(model)] = clone
            self.path = outer
        return self._models[id(model)]

    def _ops(self, op: keras.Operation, prefix: str) -> list[keras.Operation]:
        self.path = prefix + op.name
        replaced = self.replace(op, self)
        if replaced is None:
            return [self.model(op) if isinstance(op, keras.Model) else self.copy(op)]
        return list(replaced) if isinstance(replaced, (list, tuple)) else [replaced]

    def _sequential(self, model: keras.Sequential, prefix: str) -> keras.Model:
        source = functional_of(model).inputs[0]._keras_history.operation
        layers = [new for op in [source, *model.layers] for new in self._ops(op, prefix)]
        return keras.Sequential(layers, name=model.name)

    def _functional(self, model: Functional, prefix: str) -> keras.Model:
        graph = Graph(model)
        new_ops: dict[int, list] = {}
        values = {}
        new_inputs = {}
        for tensor in graph.inputs:
            source, *chain = self._ops(tensor._keras_history.operation, prefix)
            new_inputs[id(tensor)] = source.output
            values[id(tensor)] = _run(chain, (source.output,), {})
        for call in graph.calls:
            if id(call.op) not in new_ops:
                new_ops[id(call.op)] = self._ops(call.op, prefix)
            args, kwargs = call.arguments(values)
            outputs = keras.tree.flatten(_run(new_ops[id(call.op)], args, kwargs))
            values.update((id(old), new) for old, new in zip(call.outputs, outputs, strict=True))
        inputs = keras.tree.map_structure(lambda t: new_inputs[id(t)], model.input)
        outputs = keras.tree.map_structure(lambda t: values[id(t)], model.output)
        return _model_class(model)(inputs, outputs, name=model.name)


def transfer(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies variables, `trainable` flags and tfopt's constraints from a layer to its copy of the same structure."""
    if len(source.variables) != len(target.variables):
        raise UnsupportedModelError(
            "A copied layer has to create the same variables as its original.",
            received=f"{len(source.variables)} in '{source.name}', {len(target.variables)} in the copy",
            fix="Create all weights in `__init__` or `build`, from the config alone.",
        )
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(old)
        constraints.carry(old, new)
    for old_layer, new_layer in zip(sublayers(source), sublayers(target), strict=True):
        if old_layer.trainable != new_layer.trainable:
            new_layer.trainable = old_layer.trainable


def _run(ops: list, args: tuple, kwargs: dict):
    """Calls `ops` in a chain; only the first gets the call's further arguments."""
    if not ops:
        return keras.tree.flatten((args, kwargs))[0]
    result = ops[0](*args, **kwargs)
    for op in ops[1:]:
        result = op(result)
    return result


def _model_class(model: Functional) -> type:
    if functional_like_constructor(type(model)):
        return type(model)
    warnings.warn(
        f"'{model.name}' is a {type(model).__name__} whose constructor does not take (inputs, outputs): the result is "
        "a plain Functional model, without the methods of that class.",
        stacklevel=2,
    )
    return keras.Model
