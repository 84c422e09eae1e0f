"""What the outputs of a model are: probabilities, their logarithms, or numbers.

This is decided here alone: by the layers that give an output, and by its values where the layers do not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import functional_of, op_class
from tfopt.core.models.fake_quantized import FakeQuantized
from tfopt.core.models.graph import Call, Graph
from tfopt.core.models.rewrite import Rewrite, rewrite

_PROBES = 4  # samples
_ROUNDING = 1e-2  # of a sum of probabilities, as 8-bit values have it


class OutputKind(Enum):
    """What an output is."""

    PROBABILITIES = "probabilities of classes"
    LOG_PROBABILITIES = "log-probabilities of classes"
    INDEPENDENT = "independent probabilities"
    LOGITS = "logits"  # only labels or a loss tell them from other numbers
    NUMBERS = "logits or numbers"


@dataclass(frozen=True, eq=False)
class End:
    """How one output of a model comes about.

    Args:
        kind: what it is; None where neither layers nor values tell.
        op: the layer or op that ends in the softmax, log_softmax or sigmoid, where nothing else reads what it gives,
            so that `end_in` can replace it; None elsewhere.
    """

    kind: OutputKind | None
    op: Any = None


class KnowsOutput:
    """A layer class that says itself what it gives."""

    def output_kind(self, kinds: Sequence[OutputKind | None], width: int | None) -> OutputKind | None:
        """What the layer gives.

        Args:
            kinds: what its inputs are.
            width: last size of its output, None where it is not known.
        """
        raise NotImplementedError


def output_kinds(model: keras.Model, predictions: Any = None) -> list[OutputKind | None]:
    """What each output of a model is, in flat order; None where neither its layers nor its values tell.

    Args:
        model: a built Keras model, quantized or not.
        predictions: arrays that it gave, in the structure of its outputs. By default it answers to noise where its
            layers do not tell.

    Example:
        >>> head = keras.layers.Dense(3, activation="softmax")
        >>> output_kinds(keras.Sequential([keras.Input((2,)), head, keras.layers.Dropout(0.1)]))
        [<OutputKind.PROBABILITIES: 'probabilities of classes'>]
    """
    return [end.kind for end in ends_of(model, predictions)]


def ends_of(model: keras.Model, predictions: Any = None) -> list[End]:
    """The end of each output of a model, in flat order; arguments as for `output_kinds`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), kl.Dense(3, name="d"), kl.Softmax(), kl.Reshape((1, 3))])
        >>> ends_of(model)[0].op is model.layers[1]
        True
    """
    graph = Graph(model)
    ends = [_end(graph, tensor) for tensor in graph.outputs]
    if any(end.kind is None for end in ends):
        given = _answers_to_noise(model) if predictions is None else predictions
        kinds = [None] * len(ends) if given is None else list(map(_kind_of_answers, keras.tree.flatten(given)))
        ends = [end if end.kind is not None else End(kind) for end, kind in zip(ends, kinds, strict=True)]
    return ends


def kind_of_values(values: np.ndarray) -> OutputKind | None:
    """What values are by themselves: rows of probabilities always sum to 1. None for other values within [0, 1].

    Args:
        values: an array (samples, ...), the classes last.

    Example:
        >>> kind_of_values(np.array([[0.25, 0.75]])).name, kind_of_values(np.log([[0.25, 0.75]])).name
        ('PROBABILITIES', 'LOG_PROBABILITIES')
        >>> kind_of_values(np.array([[0.25, 0.25]])), kind_of_values(np.array([[0.25, -0.75]])).name
        (None, 'NUMBERS')
    """
    if not values.size:
        return None
    several, lowest, highest = values.ndim > 1 and values.shape[-1] > 1, values.min(), values.max()
    if several and lowest >= 0 and np.allclose(values.sum(-1), 1, atol=_ROUNDING):
        return OutputKind.PROBABILITIES
    if several and highest <= _ROUNDING and np.allclose(np.exp(values).sum(-1), 1, atol=_ROUNDING):
        return OutputKind.LOG_PROBABILITIES
    return None if lowest >= 0 and highest <= 1 + 1e-3 else OutputKind.NUMBERS


def kind_of_layer(layer: keras.layers.Layer) -> OutputKind | None:
    """What a layer gives, as far as it alone decides; of a model, what its first output is.

    Example:
        >>> kind_of_layer(keras.layers.Dense(3, activation="sigmoid")).name
        'INDEPENDENT'
    """
    if isinstance(layer, keras.Model):
        return ends_of(layer)[0].kind
    return layer.output_kind([], None) if isinstance(layer, KnowsOutput) else _end_of_layer(layer, None).kind


def end_in(model: keras.Model, ends: Sequence[End], activation: str) -> keras.Model:
    """A copy of a model whose `ends` have another activation: "linear" to give logits, "softmax" for probabilities.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), kl.Dense(3), kl.Softmax()])
        >>> len(end_in(model, ends_of(model), "linear").layers)
        1
    """
    replaced = {id(end.op) for end in ends if end.op is not None}

    def replace(op: keras.Operation, state: Rewrite) -> Any:
        if id(op) not in replaced:
            return None
        if type(op) in _ACTIVATED and not (type(op) is kl.Activation and activation == "linear"):
            return state.copy(op, activation=activation)
        return [] if activation == "linear" else kl.Activation(activation, name=op.name, dtype=op.output.dtype)

    return rewrite(Graph(model), replace).model if replaced else model


# Reading the layers. What a class or function is, is decided by the object itself: another of the same name is unknown.


def _functions(*names: str) -> list[Callable]:
    """The functions of `keras.activations` of these names that this version of Keras has."""
    return [getattr(keras.activations, name) for name in names if hasattr(keras.activations, name)]


# Activations whose values need not lie in [0, 1].
_UNBOUNDED = _functions(
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "glu", "silu", "hard_silu", "mish"),
    *("softplus", "softsign", "squareplus", "sparse_plus", "tanh", "tanh_shrink", "hard_tanh", "hard_shrink"),
    *("soft_shrink", "threshold", "log_sigmoid"),
)
# Function -> what it gives, and whether logits stand before it.
_ACTIVATIONS: list[tuple[Callable, OutputKind, bool]] = [
    (keras.activations.softmax, OutputKind.PROBABILITIES, True),
    (keras.activations.log_softmax, OutputKind.LOG_PROBABILITIES, True),
    (keras.activations.sigmoid, OutputKind.INDEPENDENT, True),
    *((function, OutputKind.PROBABILITIES, False) for function in _functions("sparsemax")),
    *((function, OutputKind.INDEPENDENT, False) for function in _functions("hard_sigmoid", "sparse_sigmoid")),
    *((function, OutputKind.NUMBERS, False) for function in _UNBOUNDED),
]
_OPS = {
    kl.Softmax: OutputKind.PROBABILITIES,
    op_class("Softmax"): OutputKind.PROBABILITIES,
    op_class("LogSoftmax"): OutputKind.LOG_PROBABILITIES,
    op_class("Sigmoid"): OutputKind.INDEPENDENT,
}
# Layers whose last step is their activation.
_ACTIVATED = (
    *(kl.Dense, kl.EinsumDense, kl.Conv1D, kl.Conv2D, kl.Conv3D, kl.Activation),
    *(kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose, kl.DepthwiseConv1D, kl.DepthwiseConv2D),
    *(kl.SeparableConv1D, kl.SeparableConv2D),
)
# What gives the values that it reads, outside of training.
_SAME = (
    *(kl.Identity, kl.Dropout, kl.SpatialDropout1D, kl.SpatialDropout2D, kl.SpatialDropout3D, kl.AlphaDropout),
    *(kl.GaussianDropout, kl.GaussianNoise, kl.ActivityRegularization, kl.Masking, op_class("Cast")),
)
_RESHAPED = (kl.Reshape, kl.Flatten, *map(op_class, ("Reshape", "Squeeze", "ExpandDims")))


def _end(graph: Graph, tensor: Any) -> End:
    """The end of a tensor of the graph, with its op where nothing else reads what the op gives."""
    call = graph.producer(tensor)
    if call is None:
        return End(None)
    end = _end_of_call(graph, call, tensor)
    readers = len(graph.consumers(tensor)) + graph.is_output(tensor)
    return end if readers == 1 and len(graph.calls_of(call.op)) == 1 else End(end.kind)


def _end_of_call(graph: Graph, call: Call, tensor: Any) -> End:
    op: Any = call.op
    if isinstance(op, keras.Model):
        nested = graph.inner(op)
        return _end(nested, nested.outputs[[id(output) for output in call.outputs].index(id(tensor))])
    activation = None
    while isinstance(op, FakeQuantized) and (inner := getattr(op, "layer", None)) is not None:
        activation = activation or getattr(op, "activation", None)  # `quantize` has taken it out of the layer
        op = inner
    if activation is not None and activation is not keras.activations.linear:
        return End(_of_function(activation)[0])
    if isinstance(op, KnowsOutput):
        return End(op.output_kind([_end(graph, part).kind for part in call.inputs], tensor.shape[-1]))
    if type(op) is kl.Average:
        return End(mean_kind([_end(graph, part).kind for part in call.inputs]))
    if type(op) in _SAME or isinstance(op, FakeQuantized) or _is_linear(op):
        return _end(graph, call.inputs[0])
    if type(op) in _RESHAPED:
        return _reshaped(_end(graph, call.inputs[0]), call.inputs[0].shape, tensor.shape)
    end = _end_of_layer(op, len(tensor.shape))
    return end if op is call.op else End(end.kind)


def mean_kind(kinds: Sequence[OutputKind | None]) -> OutputKind | None:
    """What a weighted mean of outputs is; None where they differ. The mean of log-probabilities is another number.

    Example:
        >>> mean_kind([OutputKind.LOG_PROBABILITIES] * 2).name
        'NUMBERS'
    """
    if len(set(kinds)) != 1:
        return None
    return OutputKind.NUMBERS if kinds[0] is OutputKind.LOG_PROBABILITIES else kinds[0]


def _end_of_layer(op: Any, rank: int | None) -> End:
    """The end that a layer or op makes by itself; rank is that of its output."""
    if type(op) in _OPS:
        return End(_OPS[type(op)], op) if _is_last(getattr(op, "axis", -1), rank) else End(None)
    if type(op) is kl.TimeDistributed:
        return End(_end_of_layer(op.layer, rank and rank - 1).kind)
    if type(op) not in _ACTIVATED:
        return End(None)
    kind, has_logits = _of_function(op.activation)
    return End(kind, op if has_logits else None)


def _of_function(function: Any) -> tuple[OutputKind | None, bool]:
    return next(((kind, has_logits) for known, kind, has_logits in _ACTIVATIONS if known is function), (None, False))


def _is_linear(op: Any) -> bool:
    return type(op) is kl.Activation and op.activation is keras.activations.linear


def _is_last(axis: Any, rank: int | None) -> bool:
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    return axes in ([-1], [rank and rank - 1])


def _reshaped(end: End, before: tuple, after: tuple) -> End:
    """The end behind a change of shape, behind which classes have to lie along the last axis still."""
    of_classes = end.kind in (OutputKind.PROBABILITIES, OutputKind.LOG_PROBABILITIES)
    return end if not of_classes or (before[-1] is not None and before[-1] == after[-1]) else End(None)


# Reading the values.


def _answers_to_noise(model: keras.Model) -> Any:
    """What a model gives for a few samples of noise; None where its inputs have no sizes or are no numbers."""
    tensors = functional_of(model).inputs
    if any(None in tensor.shape[1:] or tensor.dtype == "string" for tensor in tensors):
        return None
    generator = np.random.default_rng(0)
    noise = [
        generator.normal(size=(_PROBES, *tensor.shape[1:])).astype("float32")
        if keras.backend.is_float_dtype(tensor.dtype)
        else np.zeros((_PROBES, *tensor.shape[1:]), tensor.dtype)
        for tensor in tensors
    ]
    with keras.StatelessScope():
        return model(keras.tree.pack_sequence_as(functional_of(model).input, noise), training=False)


def _kind_of_answers(values: Any) -> OutputKind | None:
    return kind_of_values(keras.ops.convert_to_numpy(keras.ops.cast(values, "float32")))
