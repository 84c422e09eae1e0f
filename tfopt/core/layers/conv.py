"""Convolutions.

Each output channel has a range of its own for its part of the kernel, as LiteRT's integer convolutions want it
(https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers import macs
from tfopt.core.layers.channels import Channels, Context, axis_of_channels, keeps_zero
from tfopt.core.layers.registry import KernelAxes, Output, Record, Shape, enter

_NO_3D = "LiteRT has no integer 3-D convolution"


# Conv1D, Conv2D, Conv3D.


def _conv_axes(layer: Any) -> KernelAxes:
    return KernelAxes((-1,), -2 if layer.groups == 1 else None)


def _conv_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    layer, axis = context.op, axis_of_channels(context.op)
    inputs = context.along(x, axis)
    groups, width = layer.groups, layer.kernel.shape[-2]
    if groups > 1 and width == 1:
        return _grouped_depthwise(context, x, inputs)
    if groups > 1:  # the same place goes in each group, so that groups stay equal
        inputs = _tied_rows(context, inputs.reshape(groups, width))
    context.read(layer.kernel, -2, x, inputs)
    labels = None
    if groups > 1:
        labels = np.tile(_first_labels(context, layer.filters // groups), groups)
    labels = context.graph.created(context.path, layer.kernel, -1, labels)
    context.each(layer.bias, labels)
    context.graph.size(layer, ("filters",), lambda count: count(labels))
    return context.output(labels, axis, keeps_zero(layer.activation))


def _first_labels(context: Context, count: int) -> np.ndarray:
    """The labels of one group; those of the first call if the layer is shared."""
    known = context.graph.labels_of(context.op.kernel, -1)
    return context.graph.fresh(count) if known is None else known[:count]


def _tied_rows(context: Context, labels: np.ndarray) -> np.ndarray:
    context.graph.tie(labels, labels[:1])
    return labels[0]


def _grouped_depthwise(context: Context, x: Channels, inputs: np.ndarray) -> Channels:
    """A convolution with one input channel a group: its filters belong to their input channel."""
    layer = context.op
    labels = np.repeat(inputs, layer.filters // layer.groups)
    context.graph.slot(context.path, layer.kernel, -1, labels, "each")
    context.each(layer.bias, labels)
    context.graph.size(layer, ("filters",), lambda count: count(labels))
    context.graph.size(layer, ("groups",), lambda count: count(inputs))
    return context.output(labels, axis_of_channels(layer), context.zero_apart(x))


def _conv_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    channels = macs.channels(inputs[0], layer.data_format) // layer.groups
    positions = macs.size(macs.spatial(outputs[0], layer.data_format))
    return positions * prod(layer.kernel_size) * channels * layer.filters


_CONV = Record(
    prunable=("kernel",),
    axes=_conv_axes,
    kernels={"kernel": (-1,)},
    output=Output.RANGE,
    in_16_bits=True,
    channels=_conv_channels,
    macs=_conv_macs,
)
enter(_CONV, kl.Conv1D, kl.Conv2D)
enter(replace(_CONV, kernels={}, output=Output.FLOAT, reason=_NO_3D, in_16_bits=False), kl.Conv3D)


# Conv1DTranspose, Conv2DTranspose, Conv3DTranspose.


def _transposed_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    layer, axis = context.op, axis_of_channels(context.op)
    context.read(layer.kernel, -1, x, context.along(x, axis))
    labels = context.graph.created(context.path, layer.kernel, -2)
    context.each(layer.bias, labels)
    context.graph.size(layer, ("filters",), lambda count: count(labels))
    return context.output(labels, axis, keeps_zero(layer.activation))


def _transposed_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    channels = macs.channels(inputs[0], layer.data_format)
    positions = macs.size(macs.spatial(inputs[0], layer.data_format))
    return positions * prod(layer.kernel_size) * channels * layer.filters


_TRANSPOSED = Record(
    prunable=("kernel",),
    axes=KernelAxes((-2,), -1),
    kernels={"kernel": (-2,)},
    output=Output.RANGE,
    channels=_transposed_channels,
    macs=_transposed_macs,
)
enter(_TRANSPOSED, kl.Conv1DTranspose)
enter(replace(_TRANSPOSED, in_16_bits=True), kl.Conv2DTranspose)
enter(replace(_TRANSPOSED, kernels={}, output=Output.FLOAT, reason=_NO_3D), kl.Conv3DTranspose)


# DepthwiseConv1D, DepthwiseConv2D.


def _depthwise_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    layer, axis = context.op, axis_of_channels(context.op)
    inputs = context.along(x, axis)
    context.graph.slot(context.path, layer.kernel, -2, inputs, "each")
    labels = np.repeat(inputs, layer.depth_multiplier)
    context.each(layer.bias, labels)
    return context.output(labels, axis, context.zero_apart(x))


def _depthwise_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    channels = macs.channels(inputs[0], layer.data_format) * layer.depth_multiplier
    return macs.size(macs.spatial(outputs[0], layer.data_format)) * prod(layer.kernel_size) * channels


enter(
    Record(
        prunable=(),
        kernels={"kernel": (-2, -1)},
        output=Output.RANGE,
        in_16_bits=True,
        channels=_depthwise_channels,
        macs=_depthwise_macs,
    ),
    *(kl.DepthwiseConv1D, kl.DepthwiseConv2D),
)


# SeparableConv1D, SeparableConv2D.


def _separable_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    layer, axis = context.op, axis_of_channels(context.op)
    inputs = context.along(x, axis)
    context.graph.slot(context.path, layer.depthwise_kernel, -2, inputs, "each")
    context.read(layer.pointwise_kernel, -2, x, np.repeat(inputs, layer.depth_multiplier))
    labels = context.graph.created(context.path, layer.pointwise_kernel, -1)
    context.each(layer.bias, labels)
    context.graph.size(layer, ("filters",), lambda count: count(labels))
    return context.output(labels, axis, keeps_zero(layer.activation))


def _separable_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    channels = macs.channels(inputs[0], layer.data_format) * layer.depth_multiplier
    positions = macs.size(macs.spatial(outputs[0], layer.data_format))
    return positions * channels * (prod(layer.kernel_size) + layer.filters)


enter(
    Record(
        prunable=("pointwise_kernel",),
        kernels={"depthwise_kernel": (-2, -1), "pointwise_kernel": (-1,)},
        output=Output.RANGE,
        channels=_separable_channels,
        macs=_separable_macs,
    ),
    *(kl.SeparableConv1D, kl.SeparableConv2D),
)


# Ops.


def _conv_op_macs(op: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    return macs.size(macs.spatial(outputs[0], op.data_format)) * macs.size(inputs[1])


def _separable_op_macs(op: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    return macs.size(macs.spatial(outputs[0], op.data_format)) * (macs.size(inputs[1]) + macs.size(inputs[2]))


def _transposed_op_macs(op: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    return macs.size(macs.spatial(inputs[0], op.data_format)) * macs.size(inputs[1])


enter(Record(macs=_conv_op_macs), op_class("Conv"), op_class("DepthwiseConv"))
enter(Record(macs=_separable_op_macs), op_class("SeparableConv"))
enter(Record(macs=_transposed_op_macs), op_class("ConvTranspose"))
