"""Convolutions that do the work of the batch normalization behind them, where a model only answers."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import keras
import tensorflow as tf
from keras import layers as kl
from keras import ops

from tfopt.core.keras_internals import tensor_of
from tfopt.core.layers.registry import channel_axis
from tfopt.core.models.graph import Call, Graph

# Axes of the kernel that count the channels of the output.
_CHANNELS: dict[type, tuple[int, ...]] = {
    **dict.fromkeys((kl.Conv1D, kl.Conv2D, kl.Conv3D), (-1,)),
    **dict.fromkeys((kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose), (-2,)),
    **dict.fromkeys((kl.DepthwiseConv1D, kl.DepthwiseConv2D), (-2, -1)),
}


class Folded:
    """A convolution, run in inference mode as one with the batch normalization behind it.

    In each run the kernel is scaled, not the output, which is far larger. Both layers stay as they are, and what is
    assigned to them later counts.

    Args:
        layer: the convolution.
        norm: the normalization.

    Example:
        >>> model = keras.Sequential([keras.Input((4, 1)), kl.Conv1D(2, 3), kl.BatchNormalization(epsilon=3.0)])
        >>> x = keras.ops.ones((1, 4, 1))
        >>> bool(keras.ops.all(keras.ops.isclose(Folded(*model.layers)(x), model.layers[0](x) / 2)))
        True
    """

    def __init__(self, layer: kl.Layer, norm: kl.BatchNormalization):
        self._layer, self._norm = layer, norm
        kernel, axes = layer.kernel.shape, _CHANNELS[type(layer)]
        self._shape = [size if axis - len(kernel) in axes else 1 for axis, size in enumerate(kernel)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer, norm = self._layer, self._norm
        factor = ops.rsqrt(tensor_of(norm.moving_variance) + norm.epsilon)
        if norm.scale:
            factor *= tensor_of(norm.gamma)
        shift = -tensor_of(norm.moving_mean) * factor
        if norm.center:
            shift += tensor_of(norm.beta)
        # The layers may have weights of different precision, which `ops` reconciles.
        values = [(layer.kernel, ops.multiply(tensor_of(layer.kernel), ops.reshape(factor, self._shape)))]
        if layer.use_bias:
            values.append((layer.bias, ops.add(ops.multiply(tensor_of(layer.bias), factor), shift)))
        with keras.StatelessScope(values):
            outputs = layer(*args, **kwargs)
        outputs = ops.cast(outputs, norm.compute_dtype)
        # TensorFlow computes this op, but not a sum of two tensors, together with the convolution before it.
        return outputs if layer.use_bias else tf.nn.bias_add(outputs, ops.cast(shift, outputs.dtype))


def foldable(graph: Graph, kept: Container[int]) -> dict[int, tuple[Call, Call]]:
    """The calls of convolutions whose output only a batch normalization reads, each with that call, by its node's id.

    Args:
        graph: of a model.
        kept: ids of tensors that are wanted as they are.
    """
    pairs = {}
    for call in graph.calls:
        tensor = call.outputs[0]
        readers = [] if graph.is_output(tensor) or id(tensor) in kept else graph.consumers(tensor)
        if len(readers) == 1 and _folds(call.op, readers[0].op, last_axis=len(tensor.shape) - 1):
            pairs[id(call.node)] = call, readers[0]
    return pairs


def _folds(layer: keras.Operation, norm: keras.Operation, last_axis: int) -> bool:
    """Whether the outputs of both are the same as those of one convolution; not for classes made from them."""
    return (
        type(layer) in _CHANNELS
        and type(norm) is kl.BatchNormalization
        and layer.activation is keras.activations.linear
        and channel_axis(layer) == -1
        and norm.axis in (-1, last_axis)
        and isinstance(layer.kernel, keras.Variable)  # not where LoRA adds to it
        and keras.backend.is_float_dtype(layer.kernel.dtype)
    )
