"""What the outputs of a model are, and how they become what the losses compare.

Losses of classes want logits. Of a model that ends in a softmax or sigmoid they are taken from before it, so that
nothing is lost to rounding; log-probabilities, which are the same to a softmax, stand in where they cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import keras
import numpy as np
from keras import layers as kl
from keras import ops

from tfopt.core.keras_internals import functional_of, logits_behind, mask_of, op_class, set_mask
from tfopt.core.layers.registry import Output, record_of
from tfopt.core.models.fake_quantized import FakeQuantized
from tfopt.core.models.graph import Graph

_SMALLEST = float(np.finfo("float32").tiny)  # probability; a softmax in float32 is exact to its digits down to here
_SMALLEST_REST = 1e-7  # of 1 - probability, where smaller ones are noise of the rounding in float32
_PROBES = 4  # samples


class Head(Enum):
    """What an output is."""

    SOFTMAX = "probabilities of classes"
    LOG_SOFTMAX = "log-probabilities of classes"
    SIGMOID = "probabilities of labels that do not exclude each other"
    LINEAR = "numbers: logits, or a regression"


_HEADS = {"softmax": Head.SOFTMAX, "log_softmax": Head.LOG_SOFTMAX, "sigmoid": Head.SIGMOID}
_OPS = {op_class("Softmax"): Head.SOFTMAX, op_class("LogSoftmax"): Head.LOG_SOFTMAX, op_class("Sigmoid"): Head.SIGMOID}


def heads_of(model: keras.Model) -> list[Head | None]:
    """What each output of a model is, in flat order; None where neither its layers nor its numbers tell.

    Args:
        model: a built Sequential or Functional model, quantized or not.

    Example:
        >>> head = keras.layers.Dense(3, activation="softmax")
        >>> heads_of(keras.Sequential([keras.Input((2,)), head, keras.layers.Dropout(0.1)]))
        [<Head.SOFTMAX: 'probabilities of classes'>]
    """
    heads = [_head(model, tensor) for tensor in functional_of(model).outputs]
    if None in heads:
        probed = _probed(model)
        heads = [probed[i] if head is None else head for i, head in enumerate(heads)]
    return heads


def to_scores(head: Head | None, values: Any) -> Any:
    """Outputs as float32 logits or log-probabilities; those of a linear head as they are.

    Args:
        head: what they are.
        values: tensor (batch, ...) that the model gave.

    Example:
        >>> to_scores(Head.SIGMOID, np.array([[0.5]])).numpy().tolist()
        [[0.0]]
    """
    mask, logits = mask_of(values), logits_behind(values)
    if head not in (Head.SOFTMAX, Head.SIGMOID):
        scores = ops.cast(values, "float32")
    elif logits is not None and tuple(logits.shape) == tuple(values.shape):
        scores = ops.cast(logits, "float32")
    else:
        probabilities = ops.cast(values, "float32")
        scores = ops.log(ops.maximum(probabilities, _SMALLEST))
        if head is Head.SIGMOID:
            scores = scores - ops.log(ops.maximum(1.0 - probabilities, _SMALLEST_REST))
    if mask is not None:
        set_mask(scores, mask)
    return scores


def to_values(head: Head | None, scores: Any) -> Any:
    """The way back from `to_scores`: what a model with that head gives.

    Example:
        >>> to_values(Head.SIGMOID, np.array([[0.0]])).numpy().tolist()
        [[0.5]]
    """
    values = scores
    if head is Head.SOFTMAX:
        values = ops.softmax(scores, -1)
    elif head is Head.LOG_SOFTMAX:
        values = ops.log_softmax(scores, -1)
    elif head is Head.SIGMOID:
        values = ops.sigmoid(scores)
    if mask_of(scores) is not None:
        set_mask(values, mask_of(scores))
    return values


def averaged(head: Head | None, scores: Sequence[Any], weights: Sequence[float]) -> Any:
    """The scores of an ensemble: its probabilities (or numbers, of a regression) are the weighted mean of the members'.

    Args:
        head: of classes, of labels, or LINEAR for numbers; that of all members.
        scores: float32 (batch, ...) of each member.
        weights: sum to 1.

    Example:
        >>> mean = averaged(Head.SIGMOID, [np.log([3.0]), np.log([1 / 3])], [0.5, 0.5])  # of 0.75 and 0.25
        >>> abs(float(mean[0])) < 1e-6
        True
    """
    if len(scores) == 1:
        return scores[0]
    shares = np.log(np.maximum(weights, np.finfo("float32").tiny)).astype("float32")
    if head in (Head.SOFTMAX, Head.LOG_SOFTMAX):
        return _log_mean([ops.log_softmax(values, -1) for values in scores], shares)
    if head is Head.SIGMOID:
        yes, no = ([ops.log_sigmoid(sign * values) for values in scores] for sign in (1.0, -1.0))
        return _log_mean(yes, shares) - _log_mean(no, shares)
    return sum(weight * values for weight, values in zip(weights, scores, strict=True))


def _log_mean(logs: Sequence[Any], shares: Any) -> Any:
    return ops.logsumexp(ops.stack([value + share for value, share in zip(logs, shares, strict=True)]), 0)


def _head(model: keras.Model, tensor: keras.KerasTensor) -> Head | None:
    """What a tensor of the model's graph is; None where its layers do not tell."""
    graph = Graph(model)
    call = graph.producer(tensor)
    if call is None:
        return None
    if isinstance(call.op, keras.Model):
        index = [id(output) for output in call.outputs].index(id(tensor))
        return _head(call.op, functional_of(call.op).outputs[index])
    head = _head_of(call.op)
    if head is not None:
        return head
    if isinstance(call.op, kl.Average):
        heads = {_head(model, part) for part in call.inputs}
        return heads.pop() if len(heads) == 1 else None
    if _passes_on(call.op) and tuple(call.inputs[0].shape) == tuple(tensor.shape):
        return _head(model, call.inputs[0])
    return None


def _head_of(op: keras.Operation) -> Head | None:
    """What a layer or op gives, as far as it alone decides."""
    if isinstance(op, kl.Softmax) or type(op) in _OPS:
        return None if getattr(op, "axis", -1) not in (-1, (-1,), [-1]) else _OPS.get(type(op), Head.SOFTMAX)
    activation = getattr(op, "activation", None)
    name = getattr(activation, "__name__", None)
    if name in _HEADS:
        return _HEADS[name]
    inner = getattr(op, "layer", None)  # of TimeDistributed, and of the layers that `quantize` puts around others
    if inner is not None:
        return _head_of(inner)
    record = record_of(op)
    return Head.LINEAR if record is not None and record.kernels else None


def _passes_on(op: keras.Operation) -> bool:
    """True for what gives the values that it gets, as `Dropout` does in inference."""
    record = record_of(op)
    if isinstance(op, kl.Activation):
        return getattr(op.activation, "__name__", None) == "linear"
    return isinstance(op, (FakeQuantized, op_class("Cast"))) or (record is not None and record.output is Output.SAME)


def _probed(model: keras.Model) -> list[Head | None]:
    """What the numbers say that a model gives for noise: only probabilities of classes always sum to 1."""
    tensors = functional_of(model).inputs
    if any(None in tensor.shape[1:] or tensor.dtype == "string" for tensor in tensors):
        return [None] * len(functional_of(model).outputs)
    generator = np.random.default_rng(0)
    noise = [
        generator.normal(size=(_PROBES, *tensor.shape[1:])).astype("float32")
        if keras.backend.is_float_dtype(tensor.dtype)
        else np.zeros((_PROBES, *tensor.shape[1:]), tensor.dtype)
        for tensor in tensors
    ]
    with keras.StatelessScope():
        given = model(keras.tree.pack_sequence_as(functional_of(model).input, noise), training=False)
    return [_kind(ops.convert_to_numpy(ops.cast(values, "float32"))) for values in keras.tree.flatten(given)]


def _kind(values: np.ndarray) -> Head | None:
    if values.ndim > 1 and values.shape[-1] > 1 and values.min() >= 0 and np.allclose(values.sum(-1), 1, atol=1e-2):
        return Head.SOFTMAX
    return None if values.min() >= 0 and values.max() <= 1 else Head.LINEAR
