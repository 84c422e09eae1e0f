"""The verbs `quantize` and `calibrate`."""

from __future__ import annotations

import warnings

import keras

from tfopt.core.errors import InvalidArgumentError, NothingToDoError
from tfopt.core.graph import Graph, as_patterns, check_finite, check_model, check_patterns, is_selected, walk_layers
from tfopt.core.modes import FakeQuantized
from tfopt.core.rewrite import Rewrite, rewrite
from tfopt.interop import tfmot
from tfopt.quantization import (  # noqa: F401 - they enter their wrapper classes
    attention,
    einsum,
    normalization,
    recurrent,
    separable,
    timedistributed,
)
from tfopt.quantization.composites import composite_for
from tfopt.quantization.layers import FakeQuantize, QuantizedLayer
from tfopt.quantization.scheme import Treatment, masks_a_number, treatment
from tfopt.quantization.training import Training

CHOSEN = "left out by `include` or `exclude`"


def quantize(
    model: keras.Model,
    scheme: str = "int8",
    *,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
    freeze_ranges_after: int | None = None,
    freeze_batch_norm_after: int | None = None,
    learn_ranges: bool = False,
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
        freeze_ranges_after: after so many training batches the activation ranges stay as they are; 0 takes those of
            `calibrate`, or of the first batch. Each batch counts, also where gradients are accumulated; a resumed
            training goes on counting. None never freezes them.
        freeze_batch_norm_after: after so many training batches batch normalization normalizes by its moving mean and
            variance, as in inference, and these stay as they are; its scale and offset train on. None never does.
        learn_ranges: True trains the activation ranges with the weights, by the gradients of learned step size
            quantization (LSQ), from those of `calibrate` or of the first batch on. Ranges of model inputs still follow
            the data, kernels keep the range of their weights. The optimizer's weight decay, if any, shrinks ranges too.

    Returns:
        A new, uncompiled model with the same layer names; each quantized layer is a `QuantizedLayer` around the
        original's copy. Pruning masks go with the weights. The input model is not changed.

    Raises:
        InvalidArgumentError: unknown scheme or layer name, a number of batches that is none, both
            `freeze_ranges_after` and `learn_ranges`.
        UnsupportedModelError: a subclassed or unbuilt model; synchronized batch normalization to freeze.
        NonFiniteError: NaN or infinity in the weights.
        NothingToDoError: no layer to quantize, or the model is quantized already.

    Warns:
        Once, with the layers that stay float and why.

    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877; TFMOT `quantization/keras/default_8bit`. Freezing:
    Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 3.2. LSQ: Esser et al. 2020,
    https://arxiv.org/abs/1902.08153.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
        >>> quantized = quantize(model)
        >>> [layer.name for layer in quantized.layers[1:]] == [layer.name for layer in model.layers]
        True
    """
    training = Training(freeze_ranges_after, freeze_batch_norm_after, learn_ranges)
    if tfmot.is_tf_keras_model(model):
        training.check_default()
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
    plan = _Plan(model, included, excluded, training)
    quantized = rewrite(model, plan.replace)
    plan.report(model)
    return quantized


class _Plan:
    """Decides for each op of a model and of its nested models, and remembers what stays float."""

    def __init__(self, model: keras.Model, included: list[str], excluded: list[str], training: Training):
        self.included, self.excluded = included, excluded
        self.training = training.of(model)
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
            return [state.copy(op), self._range_behind(op)] if self._feeds_integers(op, state) else None
        if wanted.note:
            self.float_layers.append(f"'{state.path}' in part ({type(op).__name__}: {wanted.note})")
        options = self.training.layer_arguments(op, state.path)
        if wanted.is_plain and "freeze_batch_norm_after" not in options:
            return None
        wrapper = composite_for(op) or QuantizedLayer
        inside = wrapper.float_inside(op)
        if inside:
            self.float_layers.append(f"'{state.path}' ({type(op).__name__}: {inside})")
        elif not wanted.is_plain:
            self.count += 1
        if not isinstance(op, keras.layers.Layer):
            return [state.copy(op), self._range_behind(op)]
        if wanted.composite:
            return wrapper.of(op, state).with_training(**options)
        return wrapper.of(op, wanted, state, **options)

    def _range_behind(self, op, observer: str = "moving_average") -> FakeQuantize:
        return FakeQuantize(observer, name=f"{op.name}_range", **self.training.range_arguments(op))

    def _input(self, op, state):
        if id(op) not in self.model_inputs or not keras.backend.is_float_dtype(op.dtype):
            return None
        readers = self.graphs[id(op)].consumers(op.output)
        if any(isinstance(call.op, keras.layers.Embedding) or masks_a_number(call.op) for call in readers):
            return None
        return [state.copy(op), self._range_behind(op, "all_values")]

    def _treatment(self, op, path: str) -> Treatment:
        if not is_selected(path, self.included, self.excluded):
            return Treatment({}, reason=CHOSEN)
        return treatment(op, self.graphs[id(op)])

    def _feeds_integers(self, op, state) -> bool:
        """True if a quantized op reads the float op's only output, which then needs a range to become an integer."""
        graph = self.graphs[id(op)]
        tensors = [tensor for call in graph.calls_of(op) for tensor in call.outputs]
        if len(tensors) != 1 or graph.is_output(tensors[0]) or not keras.backend.is_float_dtype(tensors[0].dtype):
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
