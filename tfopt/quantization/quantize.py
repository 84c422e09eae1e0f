"""The verbs `quantize` and `calibrate`."""

from __future__ import annotations

import warnings

import keras

from tfopt.core.errors import InvalidArgumentError, NothingToDoError
from tfopt.core.graph import Graph, as_patterns, check_finite, check_model, check_patterns, is_selected, walk_layers
from tfopt.core.modes import FakeQuantized
from tfopt.core.rewrite import Rewrite, rewrite
from tfopt.interop import tfmot
from tfopt.quantization.layers import FakeQuantize, QuantizedLayer
from tfopt.quantization.scheme import Treatment, treatment

CHOSEN = "left out by `include` or `exclude`"


def quantize(
    model: keras.Model,
    scheme: str = "int8",
    *,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
) -> keras.Model:
    """Returns a copy of `model` that computes as its int8 .tflite will; train it on, or `calibrate` it, then export.

    The scheme is TFMOT's 8-bit scheme: kernels symmetric and narrow, one range for each output channel of a
    convolution and one for a whole Dense kernel; activations asymmetric, their ranges moving averages over the
    training batches, starting from the first batch. Convolution, batch normalization and rectifier share one range.

    Args:
        model: a built Sequential or Functional model (a tf_keras model is handed to TFMOT's `quantize_model`).
        scheme: `"int8"`.
        include: layer names or globs to quantize; all by default. Nested layers by path, as `"encoder/conv1"`.
        exclude: layer names or globs to leave in float.

    Returns:
        A new, uncompiled model with the same layer names; each quantized layer is a `QuantizedLayer` around the
        original's copy. Pruning masks go with the weights. The input model is not changed.

    Raises:
        InvalidArgumentError: unknown scheme or layer name.
        UnsupportedModelError: a subclassed or unbuilt model.
        NonFiniteError: NaN or infinity in the weights.
        NothingToDoError: no layer to quantize, or the model is quantized already.

    Warns:
        Once, with the layers that stay float and why.

    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877; TFMOT `quantization/keras/default_8bit`.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
        >>> quantized = quantize(model)
        >>> [layer.name for layer in quantized.layers[1:]] == [layer.name for layer in model.layers]
        True
    """
    if tfmot.is_tf_keras_model(model):
        return tfmot.quantize(model, include=include, exclude=exclude)
    check_model(model)
    if scheme != "int8":
        raise InvalidArgumentError("`scheme` is 'int8'.", received=repr(scheme))
    included, excluded = as_patterns(include, "include"), as_patterns(exclude, "exclude")
    check_patterns(model, included, "include")
    check_patterns(model, excluded, "exclude")
    if any(isinstance(layer, FakeQuantized) for _, layer in walk_layers(model)):
        raise NothingToDoError(
            "The model is quantized already.", received=f"'{model.name}'", fix="`tfopt.strip(model)` undoes it."
        )
    check_finite(model)
    plan = _Plan(model, included, excluded)
    quantized = rewrite(model, plan.replace)
    plan.report(model)
    return quantized


class _Plan:
    """Decides for each op of a model and of its nested models, and remembers what stays float."""

    def __init__(self, model: keras.Model, included: list[str], excluded: list[str]):
        self.included, self.excluded = included, excluded
        self.graphs = {id(op): graph for graph in _graphs(model) for op in _ops(graph)}
        self.model_inputs = {id(tensor._keras_history.operation) for tensor in Graph(model).inputs}
        self.float_layers: list[str] = []
        self.count = 0

    def replace(self, op: keras.Operation, state: Rewrite):
        if isinstance(op, keras.layers.InputLayer):
            return self._input(op, state)
        if isinstance(op, keras.Model):
            return None
        wanted = self._treatment(op, state.path)
        if wanted.is_float:
            if wanted.reason != CHOSEN:
                self.float_layers.append(f"'{state.path}' ({type(op).__name__}: {wanted.reason})")
            return [state.copy(op), FakeQuantize(name=f"{op.name}_range")] if self._feeds_integers(op, state) else None
        if wanted.note:
            self.float_layers.append(f"'{state.path}' in part ({type(op).__name__}: {wanted.note})")
        if wanted.is_plain:
            return None
        self.count += 1
        if not isinstance(op, keras.layers.Layer):
            return [state.copy(op), FakeQuantize(name=f"{op.name}_range")]
        config = {"activation": "linear"} if wanted.activation else {}
        return QuantizedLayer(
            state.copy(op, **config),
            wanted.kernels,
            activation=keras.activations.serialize(op.activation) if wanted.activation else None,
            quantize_output=wanted.output,
            affine=wanted.affine,
        )

    def _input(self, op, state):
        if id(op) not in self.model_inputs or not keras.backend.is_float_dtype(op.dtype):
            return None
        readers = self.graphs[id(op)].consumers(op.output)
        if readers and all(isinstance(call.op, keras.layers.Embedding) for call in readers):
            return None
        return [state.copy(op), FakeQuantize("all_values", name=f"{op.name}_range")]

    def _treatment(self, op, path: str) -> Treatment:
        if not is_selected(path, self.included, self.excluded):
            return Treatment({}, reason=CHOSEN)
        return treatment(op, self.graphs[id(op)])

    def _feeds_integers(self, op, state) -> bool:
        """True if a quantized op reads the float op's only output, which then needs a range to become an integer."""
        graph = self.graphs[id(op)]
        tensors = [tensor for call in graph.calls_of(op) for tensor in call.outputs]
        if len(tensors) != 1 or graph.is_output(tensors[0]):
            return False
        prefix = state.path.removesuffix(op.name)
        readers = [call.op for call in graph.consumers(tensors[0]) if not isinstance(call.op, keras.Model)]
        return any(not self._treatment(reader, prefix + reader.name).is_float for reader in readers)

    def report(self, model: keras.Model) -> None:
        if not self.count:
            raise NothingToDoError(
                "The model has to have a layer that can be quantized.",
                received=f"'{model.name}': " + (", ".join(self.float_layers) or "no layer selected"),
                fix="Check `include` and `exclude`; layers of your own join with `@tfopt.register_layer(kernels=...)`.",
            )
        if self.float_layers:
            warnings.warn("These layers stay float: " + ", ".join(self.float_layers) + ".", stacklevel=3)


def _graphs(model: keras.Model):
    yield Graph(model)
    for _, layer in walk_layers(model):
        if isinstance(layer, keras.Model):
            yield Graph(layer)


def _ops(graph: Graph):
    yield from (tensor._keras_history.operation for tensor in graph.inputs)
    yield from (call.op for call in graph.calls)
