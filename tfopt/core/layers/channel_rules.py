"""How each Keras layer and op passes channels on: one rule a class, in the registry of `channels.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.keras_internals import application_layer, op_class
from tfopt.core.layers.channels import (
    FIXED,
    Channels,
    Context,
    Unsupported,
    compact,
    register_channels,
    rule_of,
    shape_rule,
)


def _axis_of_channels(layer: Any) -> int:
    """The channel axis of an input without its batch axis."""
    return 0 if getattr(layer, "data_format", None) == "channels_first" else -1


def _along(context: Context, x: Channels, axis: int = -1) -> np.ndarray:
    return context.graph.axis_labels(x, axis, f"'{context.path}' works along another axis")


def _bias(context: Context, bias: Any, labels: np.ndarray) -> None:
    if bias is not None:
        context.graph.slot(context.path, bias, -1, labels, "each")


def _keeps_zero(context: Context, function: Callable[[Any], Any]) -> bool:
    """True if a function of single values gives 0 for 0."""
    return bool(np.all(keras.ops.convert_to_numpy(function(keras.ops.zeros((1, 2)))) == 0))


def _zero_apart(context: Context, x: Channels) -> bool:
    """Zeros of a layer that keeps channels apart: from its own masked weights, or from its input if these stay."""
    layer = context.op
    masked = context.graph.masks or (x.zero and layer.bias is None)
    return masked and _keeps_zero(context, layer.activation)


def _read(context: Context, variable: Any, axis: int, x: Channels, labels: np.ndarray) -> None:
    context.graph.slot(context.path, variable, axis, labels, "in", x.zero)


# Kernels.


@register_channels(kl.Dense)
def _dense(context: Context, x: Channels, *_, **__):
    layer = context.op
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise Unsupported("Dense with LoRA or Keras' own quantization")
    _read(context, layer.kernel, 0, x, _along(context, x))
    labels = context.graph.created(context.path, layer.kernel, 1)
    _bias(context, layer.bias, labels)
    context.graph.size(layer, ("units",), lambda count: count(labels))
    return context.output(labels, zero=_keeps_zero(context, layer.activation))


@register_channels(kl.Conv1D, kl.Conv2D, kl.Conv3D)
def _conv(context: Context, x: Channels, *_, **__):
    layer, axis = context.op, _axis_of_channels(context.op)
    inputs = _along(context, x, axis)
    groups, width = layer.groups, layer.kernel.shape[-2]
    if groups > 1 and width == 1:
        return _grouped_depthwise(context, x, inputs)
    if groups > 1:  # the same place goes in each group, so that groups stay equal
        inputs = _tied_rows(context, inputs.reshape(groups, width))
    _read(context, layer.kernel, -2, x, inputs)
    labels = None
    if groups > 1:
        labels = np.tile(_first_labels(context, layer.filters // groups), groups)
    labels = context.graph.created(context.path, layer.kernel, -1, labels)
    _bias(context, layer.bias, labels)
    context.graph.size(layer, ("filters",), lambda count: count(labels))
    return context.output(labels, axis, _keeps_zero(context, layer.activation))


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
    _bias(context, layer.bias, labels)
    context.graph.size(layer, ("filters",), lambda count: count(labels))
    context.graph.size(layer, ("groups",), lambda count: count(inputs))
    return context.output(labels, _axis_of_channels(layer), _zero_apart(context, x))


@register_channels(kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)
def _transposed(context: Context, x: Channels, *_, **__):
    layer, axis = context.op, _axis_of_channels(context.op)
    _read(context, layer.kernel, -1, x, _along(context, x, axis))
    labels = context.graph.created(context.path, layer.kernel, -2)
    _bias(context, layer.bias, labels)
    context.graph.size(layer, ("filters",), lambda count: count(labels))
    return context.output(labels, axis, _keeps_zero(context, layer.activation))


@register_channels(kl.DepthwiseConv1D, kl.DepthwiseConv2D)
def _depthwise(context: Context, x: Channels, *_, **__):
    layer, axis = context.op, _axis_of_channels(context.op)
    inputs = _along(context, x, axis)
    context.graph.slot(context.path, layer.kernel, -2, inputs, "each")
    labels = np.repeat(inputs, layer.depth_multiplier)
    _bias(context, layer.bias, labels)
    return context.output(labels, axis, _zero_apart(context, x))


@register_channels(kl.SeparableConv1D, kl.SeparableConv2D)
def _separable(context: Context, x: Channels, *_, **__):
    layer, axis = context.op, _axis_of_channels(context.op)
    inputs = _along(context, x, axis)
    context.graph.slot(context.path, layer.depthwise_kernel, -2, inputs, "each")
    _read(context, layer.pointwise_kernel, -2, x, np.repeat(inputs, layer.depth_multiplier))
    labels = context.graph.created(context.path, layer.pointwise_kernel, -1)
    _bias(context, layer.bias, labels)
    context.graph.size(layer, ("filters",), lambda count: count(labels))
    return context.output(labels, axis, _keeps_zero(context, layer.activation))


@register_channels(kl.Embedding)
def _embedding(context: Context, x: Channels, *_, **__):
    layer = context.op
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise Unsupported("Embedding with LoRA or Keras' own quantization")
    context.graph.freeze(x.labels, f"'{context.path}' reads them as indices")
    labels = context.graph.created(context.path, layer.embeddings, 1)
    context.graph.size(layer, ("output_dim",), lambda count: count(labels))
    return context.output(labels)


@register_channels(kl.EinsumDense)
def _einsum_dense(context: Context, x: Channels, *_, **__):
    layer = context.op
    spec, kernel, result = layer.equation.replace(" ", "").replace("->", ",").split(",")
    new = [letter for letter in kernel if letter not in spec]
    if "..." in spec or len(new) != 1 or any(letter in kernel and letter in result for letter in spec):
        raise Unsupported(f"EinsumDense with the equation '{layer.equation}'")
    read = [letter for letter in spec if letter in kernel]
    for letter in read:
        labels = context.graph.axis_labels(x, spec.index(letter) - 1, f"'{context.path}' reads several axes")
        _read(context, layer.kernel, kernel.index(letter), x, labels)
    axis = result.index(new[0]) - 1
    labels = context.graph.created(context.path, layer.kernel, kernel.index(new[0]))
    if layer.bias is not None:
        sizes = [axis for axis, size in enumerate(layer.bias.shape) if size == len(labels)]
        if len(layer.bias.shape) != 1 or not sizes:
            raise Unsupported("EinsumDense with a bias of several axes")
        _bias(context, layer.bias, labels)
    output = context.output(labels, axis, _keeps_zero(context, layer.activation))
    context.graph.size(layer, ("output_shape",), shape_rule(output))
    return output


@register_channels(kl.MultiHeadAttention)
def _attention(context: Context, query: Channels, value: Channels, key: Channels | None = None, *_, **options):
    layer = context.op
    if len(query.shape) != 2 or len(context.shapes) > 1 or getattr(layer, "_use_gate", False):
        raise Unsupported("attention over several axes, with scores as output, or with a gate")
    key = value if key is None else key
    sources = ((layer.query_dense, query), (layer.key_dense, key), (layer.value_dense, value))
    heads = context.graph.created(context.path, layer.query_dense.kernel, 1)
    for dense, x in sources:
        _read(context, dense.kernel, 0, x, _along(context, x))
        context.graph.created(context.path, dense.kernel, 1, heads)
        if dense.bias is not None:
            context.graph.slot(context.path, dense.bias, 0, heads, "each")
    _read(context, layer.output_dense.kernel, 0, Channels(heads, (len(heads),)), heads)
    labels = context.graph.created(context.path, layer.output_dense.kernel, -1)
    _bias(context, layer.output_dense.bias, labels)
    context.graph.size(layer, ("num_heads",), lambda count: count(heads))
    context.graph.size(layer, ("output_shape",), lambda count: count(labels))
    return context.output(labels)


@register_channels(kl.LSTM, kl.GRU, kl.SimpleRNN)
def _recurrent(context: Context, x: Channels, initial_state: Any = None, **__):
    if initial_state is not None:
        raise Unsupported("a recurrent layer with an initial state")
    layer, cell = context.op, context.op.cell
    units = _units(context, cell, x)
    context.graph.size(layer, ("units",), lambda count: count(units))
    return [_sequence_or_state(shape, units) for shape in context.shapes]


def _units(context: Context, cell: Any, x: Channels, units: np.ndarray | None = None) -> np.ndarray:
    """The units of a cell; kernels hold one block of columns a gate."""
    gates = cell.kernel.shape[-1] // cell.units
    if units is None:
        known = context.graph.labels_of(cell.recurrent_kernel, 0)
        units = context.graph.fresh(cell.units) if known is None else known
    columns = np.tile(units, gates)
    _read(context, cell.kernel, 0, x, _along(context, x))
    context.graph.slot(context.path, cell.kernel, 1, columns, "each")
    context.graph.created(context.path, cell.recurrent_kernel, 0, units)
    context.graph.slot(context.path, cell.recurrent_kernel, 1, columns, "each")
    _bias(context, cell.bias, columns)
    return units


def _sequence_or_state(shape: tuple, units: np.ndarray) -> Channels:
    """Zero stays: with zero weights each gate is closed on a zero candidate, as long as states start at zero."""
    return Channels(units.reshape([1] * (len(shape) - 1) + [-1]), shape)


@register_channels(kl.Bidirectional)
def _bidirectional(context: Context, x: Channels, initial_state: Any = None, **__):
    layer = context.op
    inner = layer.forward_layer
    if initial_state is not None or len(context.shapes) > 1 or rule_of(inner) is not _recurrent:
        raise Unsupported("Bidirectional around anything but LSTM, GRU or SimpleRNN, or with states")
    units = _units(context, inner.cell, x)
    _units(context, layer.backward_layer.cell, x, units)
    context.graph.size(layer, ("layer", "config", "units"), lambda count: count(units))
    if "backward_layer" in layer.get_config():
        context.graph.size(layer, ("backward_layer", "config", "units"), lambda count: count(units))
    labels = np.tile(units, 2) if layer.merge_mode == "concat" else units
    return _sequence_or_state(context.shapes[0], labels)


@register_channels(kl.TimeDistributed)
def _time_distributed(context: Context, x: Channels, *_, **__):
    inner = context.op.layer
    rule = rule_of(inner)
    if rule is None or isinstance(inner, keras.Model) or x.labels.shape[0] > 1:
        raise Unsupported(f"TimeDistributed around {type(inner).__name__}")
    step = Channels(x.labels[0], x.shape[1:], x.zero)
    result = rule(Context(context.graph, inner, context.path, [context.shapes[0][1:]]), step)
    for size in context.graph.kept_sizes.pop(id(inner), []):
        context.graph.size(context.op, ("layer", "config", *size.key), size.value)
    return Channels(result.labels[None], context.shapes[0], result.zero)


# Normalization.


@register_channels(kl.BatchNormalization)
def _batch_normalization(context: Context, x: Channels, *_, **__):
    layer = context.op
    labels = _along(context, x, layer.axis - 1 if layer.axis > 0 else layer.axis)
    _bias(context, layer.gamma, labels)
    _bias(context, layer.beta, labels)
    for statistic in (layer.moving_mean, layer.moving_variance):
        context.graph.slot(context.path, statistic, 0, labels, "statistic")
    return Channels(x.labels, context.shapes[0], context.graph.masks and layer.gamma is not None)


@register_channels(kl.LayerNormalization, kl.RMSNormalization)
def _layer_normalization(context: Context, x: Channels, *_, **__):
    """Mean and variance are those of the old width: the layer stays as wide, with zeros where channels were."""
    layer = context.op
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if len(axes) != 1 or axes[0] not in (-1, len(x.shape)) or set(x.along()) - {len(x.shape) - 1}:
        raise Unsupported("normalization over other axes than the last")
    if not x.zero:
        raise Unsupported("the normalization counts them, and they are not zero when masked")
    if not context.graph.masks:
        raise Unsupported("the normalization makes something else than zero of zeros")
    labels = _along(context, x)
    scale = getattr(layer, "gamma", getattr(layer, "scale", None))
    weights = [scale, getattr(layer, "beta", None)]
    for weight in weights:
        if isinstance(weight, keras.Variable):
            context.graph.slot(context.path, weight, -1, labels, "each")
    context.graph.padded[id(layer)] = labels
    return Channels(x.labels, context.shapes[0], isinstance(weights[0], keras.Variable))


@register_channels(kl.GroupNormalization)
def _group_normalization(context: Context, x: Channels, *_, **__):
    layer = context.op
    labels = _along(context, x, layer.axis - 1 if layer.axis > 0 else layer.axis)
    if layer.groups not in (-1, len(labels)):
        raise Unsupported("GroupNormalization normalizes channels together")
    for weight in (layer.gamma, layer.beta):
        _bias(context, weight, labels)
    context.graph.size(layer, ("groups",), lambda count: count(labels))
    return Channels(x.labels, context.shapes[0], context.graph.masks and layer.gamma is not None)


@register_channels(kl.Normalization)
def _normalization(context: Context, x: Channels, *_, **__):
    """A mean and a variance for each index along the axes that the layer keeps, as weights or in its config."""
    layer, rank = context.op, len(x.shape) + 1
    kept = sorted(axis % rank - 1 for axis in layer.axis)
    for axis in set(x.along()) & set(kept):
        labels = _along(context, x, axis)
        place = kept.index(axis) - len(kept)
        if layer.input_mean is None:
            for statistic in (layer.adapt_mean, layer.adapt_variance):
                context.graph.slot(context.path, statistic, place, labels, "statistic")
        for key, values in (("mean", layer.input_mean), ("variance", layer.input_variance)):
            if np.ndim(values) >= -place and np.shape(values)[place] > 1:
                context.graph.size(layer, (key,), _values_of_kept(np.asarray(values), place, labels))
    return context.same(x, zero=False)


def _values_of_kept(values: np.ndarray, axis: int, labels: np.ndarray) -> Callable[[Callable[[np.ndarray], int]], list]:
    """A config entry with one value a channel along `axis`."""
    return lambda count: values.take([i for i in range(len(labels)) if count(labels[i : i + 1])], axis).tolist()


@register_channels(kl.UnitNormalization)
def _unit_normalization(context: Context, x: Channels, *_, **__):
    if not x.zero:
        raise Unsupported("the norm counts them, and they are not zero when masked")
    return context.same(x)


@register_channels(kl.PReLU)
def _prelu(context: Context, x: Channels, *_, **__):
    alpha = context.op.alpha
    for axis in x.along():
        if alpha.shape[axis] > 1:
            context.graph.slot(context.path, alpha, axis, _along(context, x, axis), "each")
    return context.same(x)


def per_channel(context: Context, x: Channels, *_, **__):
    """The rule of users' layers that keep channels apart; nothing is known of what they make of zeros."""
    labels = _along(context, x)
    for weight in context.op.weights:
        if weight.shape and weight.shape[-1] == len(labels):
            _bias(context, weight, labels)
    return context.same(x, zero=False)


@register_channels(application_layer("LayerScale"))
def _layer_scale(context: Context, x: Channels, *_, **__):
    labels = _along(context, x)
    _bias(context, context.op.gamma, labels)
    context.graph.size(context.op, ("projection_dim",), lambda count: count(labels))
    return context.same(x)


# One value in, one value out.


@register_channels(
    kl.Identity,
    kl.Dropout,
    kl.SpatialDropout1D,
    kl.SpatialDropout2D,
    kl.SpatialDropout3D,
    kl.AlphaDropout,
    kl.GaussianDropout,
    kl.GaussianNoise,
    kl.ActivityRegularization,
    application_layer("StochasticDepth"),
    kl.MaxPooling1D,
    kl.MaxPooling2D,
    kl.MaxPooling3D,
    kl.AveragePooling1D,
    kl.AveragePooling2D,
    kl.AveragePooling3D,
    *(getattr(kl, name) for name in dir(kl) if name.startswith(("AdaptiveAveragePooling", "AdaptiveMaxPooling"))),
    kl.ZeroPadding1D,
    kl.ZeroPadding2D,
    kl.ZeroPadding3D,
    kl.Cropping1D,
    kl.Cropping2D,
    kl.Cropping3D,
    kl.UpSampling1D,
    kl.UpSampling2D,
    kl.UpSampling3D,
    kl.Resizing,
    *map(op_class, ("AveragePool", "MaxPool")),
)
def _in_place(context: Context, x: Channels, *_, **__):
    """Works along the spatial axes, the same for each channel."""
    axis = _axis_of_channels(context.op) % len(x.shape)
    if any(own != old for own, old in zip(context.shapes[0], x.shape, strict=True)) and set(x.along()) - {axis}:
        raise Unsupported("its axes hold channels")
    return context.same(x)


@register_channels(kl.Masking)
def _masking(context: Context, x: Channels, *_, **__):
    if not x.zero or context.op.mask_value != 0:
        raise Unsupported("whether a step counts depends on all of its values")
    return context.same(x)


@register_channels(kl.Activation, kl.ReLU, kl.LeakyReLU, kl.ELU)
def _activation(context: Context, x: Channels, *_, **__):
    if getattr(context.op, "activation", None) in (keras.activations.softmax, keras.activations.log_softmax):
        return _softmax(context, x)
    return context.same(x, _keeps_zero(context, context.op))


_FUNCTIONS = """Abs Elu Exp Gelu HardSigmoid HardSilu LeakyRelu Log Negative Relu Relu6 Selu Sigmoid Sign Silu Softplus
Softsign Sqrt Square Tanh"""


@register_channels(*map(op_class, _FUNCTIONS.split()))
def _function(context: Context, x: Channels, *_, **__):
    return context.same(x, _keeps_zero(context, context.op))


@register_channels(kl.Softmax, op_class("Softmax"))
def _softmax(context: Context, x: Channels, *_, **__):
    axes = np.atleast_1d(getattr(context.op, "axis", -1))
    if any((axis - 1 if axis > 0 else axis % len(x.shape)) in x.along() for axis in axes):
        raise Unsupported("softmax mixes them")
    return context.same(x, zero=False)


@register_channels(kl.Rescaling)
def _rescaling(context: Context, x: Channels, *_, **__):
    if x.along() and (np.size(context.op.scale) > 1 or np.size(context.op.offset) > 1):
        raise Unsupported("Rescaling has a factor for each")
    return context.same(x, zero=not np.any(context.op.offset))


# Several tensors meet.


@register_channels(kl.Add, kl.Subtract, kl.Average, kl.Maximum, kl.Minimum, kl.Multiply)
def _merge(context: Context, inputs: list[Channels], *_, **__):
    ranks = {len(x.shape) for x in inputs}
    if len(ranks) > 1:
        raise Unsupported("inputs of different rank are merged")
    result = inputs[0]
    for x in inputs[1:]:
        result = _met(context, result, x)
    return Channels(result.labels, context.shapes[0], result.zero)


@register_channels(application_layer("CustomScaleLayer"))
def _scaled_sum(context: Context, inputs: list[Channels], *_, **__):
    return _merge(context, inputs)


@register_channels(*map(op_class, ("Add", "Subtract", "Maximum", "Minimum", "Multiply", "Divide", "TrueDivide")))
def _arithmetic(context: Context, first: Any, second: Any, *_, **__):
    both = [value for value in (first, second) if isinstance(value, Channels)]
    product = isinstance(context.op, op_class("Multiply"))
    divides = isinstance(context.op, (op_class("Divide"), op_class("TrueDivide")))
    if divides and isinstance(second, Channels):
        raise Unsupported("a masked divisor would be zero")
    if len(both) == 2:
        return _merge(context, both)
    (x,), constant = both, np.asarray(second if isinstance(first, Channels) else first)
    if x.along() and constant.size > 1:
        raise Unsupported("a constant has a value for each")
    return context.same(x, zero=product or divides or not np.any(constant))


@register_channels(op_class("NotEqual"))
def _not_equal(context: Context, first: Any, second: Any, *_, **__):
    if not isinstance(first, Channels) or np.ndim(second) or isinstance(second, Channels):
        raise Unsupported("a comparison with more than one value")
    return context.same(first, zero=second == 0)


def _met(context: Context, first: Channels, second: Channels) -> Channels:
    """Channels of two tensors of equal rank, broadcast to each other, become one.

    One that is spread over several stays, so that in a sum they are not zero.
    """
    product = isinstance(context.op, (kl.Multiply, op_class("Multiply")))
    stretched = {
        id(a)
        for a, b in ((first, second), (second, first))
        if any(a.shape[axis] == 1 and b.shape[axis] != 1 for axis in b.along())
    }
    for x in (first, second):
        if id(x) in stretched and x.labels.any():
            context.graph.freeze(x.labels, f"'{context.path}' spreads one over several")
    if len(stretched) == 2:
        return Channels(np.full([1] * len(first.shape), FIXED), context.shapes[0], zero=False)
    if stretched:
        wide = second if id(first) in stretched else first
        return Channels(wide.labels, context.shapes[0], wide.zero and product)
    context.graph.tie(first.labels, second.labels)
    shape = np.broadcast_shapes(first.labels.shape, second.labels.shape)
    zero = (first.zero or second.zero) if product else (first.zero and second.zero)
    return Channels(np.broadcast_to(first.labels, shape), context.shapes[0], zero)


@register_channels(kl.Concatenate, op_class("Concatenate"))
def _concatenate(context: Context, inputs: list[Channels], *_, **__):
    rank = len(inputs[0].shape)
    axis = context.op.axis - 1 if context.op.axis > 0 else context.op.axis % rank
    others = np.broadcast_shapes(*(_with(x.labels.shape, axis, 1) for x in inputs))
    if any(size > 1 for size in others):
        if any(x.labels.shape[axis] > 1 for x in inputs):
            raise Unsupported("channels along several axes are joined")
        for x in inputs[1:]:  # positions are joined: each input brings the same channels
            context.graph.tie(inputs[0].labels, x.labels)
        labels = np.broadcast_to(inputs[0].labels, others)
    else:
        labels = np.concatenate(
            [np.broadcast_to(x.labels, _with(others, axis, x.shape[axis] or 1)) for x in inputs], axis
        )
    return Channels(compact(labels), context.shapes[0], all(x.zero for x in inputs))


def _with(shape: tuple, axis: int, size: int) -> tuple:
    return (*shape[:axis], size, *shape[axis + 1 :])
