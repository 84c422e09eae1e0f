"""Which layers LiteRT's sparse float kernels take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import keras
from keras import activations
from keras import layers as kl

from tfopt.core.errors import UnsupportedModelError
from tfopt.core.keras_internals import op_class
from tfopt.core.models.graph import Call, Graph

ARITHMETIC = (kl.Add, kl.Multiply, *map(op_class, ("Add", "Subtract", "Multiply")))
ELEMENTWISE = (kl.ZeroPadding2D, kl.ReLU, kl.LeakyReLU, kl.ELU, kl.Dropout)
ACTIVATIONS = (activations.relu, activations.relu6, activations.leaky_relu, activations.elu, activations.sigmoid)


def xnnpack_layers(model: keras.Model) -> list[str]:
    """The names of the layers for which XNNPACK, LiteRT's engine for float models, has sparse kernels.

    These are the 1x1 convolutions between a first 3x3 convolution with stride 2 and the global average pooling, if
    XNNPACK has a kernel in its channels-first layout for each layer between the two. Pass them on as `include`, with
    70 % sparsity or more, and export without quantization. Whether that is faster depends on processor and version: on
    the x86 machine of `benchmarks/results/sparse_latency.md` it is not. Measure on the device you ship to.

    Args:
        model: a built Functional or Sequential model on images `(height, width, 3)`, without nested models.

    Returns:
        Names in the order of the model's layers.

    Raises:
        UnsupportedModelError: the model has not that form; the error says what is missing or in the way.

    Source: TFMOT `sparsity/keras/pruning_policy.py`, `PruneForLatencyOnXNNPack`, which prunes the 1x1 convolutions
    outside that part of the model as well; Elsen et al. 2019, https://arxiv.org/abs/1911.09723.

    Example:
        >>> layers = [kl.ZeroPadding2D(1), kl.Conv2D(8, 3, 2), kl.ReLU(), kl.Conv2D(16, 1, name="pointwise")]
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), *layers, kl.GlobalAveragePooling2D(), kl.Dense(2)])
        >>> xnnpack_layers(model)
        ['pointwise']
    """
    graph = Graph(model)
    starts = _reached(_readers(graph, graph.inputs), lambda call: _is_start(call, graph), _consumers_in(graph))
    if not starts:
        raise UnsupportedModelError(
            "Each input has to lead to a Conv2D of kernel size 3, stride 2 and padding 'valid' on 3 channels, with "
            "`ZeroPadding2D(1)` before it: there XNNPACK begins to compute sparsely.",
            received=f"'{model.name}' without such a layer on every path",
            fix="Replace padding='same' of the first convolution by a `ZeroPadding2D(1)` layer and padding='valid'.",
        )
    outputs = [call for call in (graph.producer(tensor) for tensor in graph.outputs) if call is not None]
    ends = _reached(outputs, _is_end, _producers_in(graph))
    if not ends:
        raise UnsupportedModelError(
            "A GlobalAveragePooling2D has to lie before each output: there XNNPACK's sparse part ends.",
            received=f"'{model.name}' without one on every path",
        )
    between = _between(starts, ends, graph)
    names = {call.op.name for call in between if type(call.op) is kl.Conv2D}
    if not names:
        raise UnsupportedModelError(
            "1x1 convolutions are what XNNPACK computes sparsely.", received=f"'{model.name}' without any"
        )
    return [layer.name for layer in model.layers if layer.name in names]


def _reached(
    begin: list[Call], is_found: Callable[[Call], bool], following: Callable[[Call], list[Call]]
) -> list[Call]:
    """The calls that fit, on the way from `begin`; none if a way ends without one."""
    waiting, seen, found = list(begin), {id(call) for call in begin}, []
    while waiting:
        call = waiting.pop()
        if is_found(call):
            found.append(call)
            continue
        further = following(call)
        if not further:
            return []
        for other in further:
            if id(other) not in seen:
                seen.add(id(other))
                waiting.append(other)
    return found


def _between(starts: list[Call], ends: list[Call], graph: Graph) -> list[Call]:
    """The calls after the first convolutions and before the pooling, all of which XNNPACK has to know."""
    last, passed = {id(call) for call in ends}, []

    def is_last(call: Call) -> bool:
        if id(call) in last:
            return True
        if not _is_supported(call, graph):
            raise UnsupportedModelError(
                "XNNPACK has to have a kernel in its sparse part for each layer before the global average pooling.",
                received=f"{type(call.op).__name__} '{call.op.name}'",
                fix="See PruneForLatencyOnXNNPack of TFMOT for what it takes; choose layers yourself with `include`.",
            )
        passed.append(call)
        return False

    _reached([c for start in starts for c in _consumers_in(graph)(start)], is_last, _consumers_in(graph))
    return passed


def _consumers_in(graph: Graph) -> Callable[[Call], list[Call]]:
    return lambda call: _readers(graph, call.outputs)


def _producers_in(graph: Graph) -> Callable[[Call], list[Call]]:
    return lambda call: [made for made in (graph.producer(tensor) for tensor in call.inputs) if made is not None]


def _readers(graph: Graph, tensors: Iterable[keras.KerasTensor]) -> list[Call]:
    return [call for tensor in tensors for call in graph.consumers(tensor)]


def _is_start(call: Call, graph: Graph) -> bool:
    op = call.op
    return (
        type(op) is kl.Conv2D
        and tuple(op.kernel.shape[:3]) == (3, 3, 3)
        and tuple(op.strides) == (2, 2)
        and op.padding == "valid"
        and _padded_by(call, graph) == 1
    )


def _is_end(call: Call) -> bool:
    return type(call.op) is kl.GlobalAveragePooling2D


def _padded_by(call: Call, graph: Graph) -> int | None:
    """The width of the border that a ZeroPadding2D puts around the input of a call; None where it is uneven or none."""
    producer = graph.producer(call.inputs[0])
    if producer is None or type(producer.op) is not kl.ZeroPadding2D:
        return None
    sides = {side for pair in producer.op.padding for side in pair}
    return sides.pop() if len(sides) == 1 else None


def _is_supported(call: Call, graph: Graph) -> bool:
    op = call.op
    if type(op) is kl.DepthwiseConv2D:
        return _is_supported_depthwise(call, graph)
    if type(op) is kl.Conv2D:
        one = (1, 1)
        return (tuple(op.kernel_size), tuple(op.strides), tuple(op.dilation_rate), op.groups) == (one, one, one, 1)
    if type(op) is kl.BatchNormalization:
        return op.axis in (3, -1)
    if type(op) is kl.UpSampling2D:
        return op.interpolation == "bilinear"
    if type(op) is kl.Activation:
        return any(op.activation is known for known in ACTIVATIONS)
    return type(op) in (*ARITHMETIC, *ELEMENTWISE)


def _is_supported_depthwise(call: Call, graph: Graph) -> bool:
    """3x3 or 5x5; with stride 1 and padding 'same', or with stride 1 or 2 behind padding by half the kernel."""
    op = call.op
    size = op.kernel_size[0]
    if tuple(op.kernel_size) not in ((3, 3), (5, 5)) or op.depth_multiplier != 1 or math.prod(op.dilation_rate) != 1:
        return False
    if op.padding == "same":
        return tuple(op.strides) == (1, 1)
    return tuple(op.strides) in ((1, 1), (2, 2)) and _padded_by(call, graph) == size // 2
