"""Multiply-accumulates of one layer or op: one rule a class, in a registry open to users' own layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeVar

import keras
from keras import layers as kl

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import op_class

Shape = tuple[int | None, ...]
Rule = Callable[[Any, list[Shape], list[Shape]], int]
AnyRule = TypeVar("AnyRule", bound=Rule)

_RULES: dict[type, Rule] = {}


def register_macs(*classes: type) -> Callable[[AnyRule], AnyRule]:
    """Decorator that tells how many multiply-accumulates a layer of your own does for one sample.

    The function takes `(layer, input_shapes, output_shapes)`: two lists of shapes whose first dimension is the batch.
    Subclasses inherit the rule.

    Args:
        classes: the layer classes it counts.

    Example:
        >>> class Project(keras.layers.Layer):
        ...     pass
        >>> @register_macs(Project)
        ... def project_macs(layer, input_shapes, output_shapes):
        ...     return input_shapes[0][-1] * output_shapes[0][-1]
        >>> layer_macs(Project(), [(None, 8)], [(None, 4)])
        32
    """

    def decorate(rule: AnyRule) -> AnyRule:
        _RULES.update(dict.fromkeys(classes, rule))
        return rule

    return decorate


def layer_macs(op: Any, input_shapes: Sequence[Shape], output_shapes: Sequence[Shape]) -> int:
    """Multiply-accumulates (MACs) of one call of a layer or op, for one sample.

    Counted are the products in convolutions and matrix multiplications, as the field does (one MAC = two FLOPs).
    Biases, element-wise layers, normalization, pooling, look-ups and FFTs count 0. A transposed convolution counts each
    input value once a kernel element, those cropped away by `padding="same"` included.

    Args:
        op: a Keras layer, a `keras.ops` operation of a graph, or a model.
        input_shapes: shapes of its inputs in the order of its `call` arguments, each with the batch dimension first,
            which counts 1 whatever it is.
        output_shapes: shapes of its outputs.

    Returns:
        The number of MACs.

    Raises:
        InvalidArgumentError: if a dimension that counts is None, or the layer is a user's own, has matrices as weights
            and no rule.

    Example:
        >>> layer_macs(keras.layers.Conv2D(16, 3), [(None, 8, 8, 3)], [(None, 6, 6, 16)])
        15552
    """
    if getattr(op, "wraps_layer", False):
        return layer_macs(op.layer, input_shapes, output_shapes)
    inputs, outputs = [tuple(shape) for shape in input_shapes], [tuple(shape) for shape in output_shapes]
    rule = next((_RULES[cls] for cls in type(op).__mro__ if cls in _RULES), None)
    if rule is not None:
        return rule(op, inputs, outputs)
    _check_counts_nothing(op)
    return 0


def _check_counts_nothing(op: Any) -> None:
    """An own layer without a rule may only be element-wise; one that holds a matrix surely is not."""
    own = isinstance(op, kl.Layer) and not type(op).__module__.startswith("keras.")
    if own and any(len(weight.shape) > 1 for weight in op.weights):
        raise InvalidArgumentError(
            "A layer class with matrices as weights needs a rule that counts its MACs.",
            received=f"{type(op).__name__} '{op.name}'",
            fix=f"Decorate a function with `@register_macs({type(op).__name__})`.",
        )


def _size(dims: Sequence[int | None]) -> int:
    sizes = [dim for dim in dims if dim is not None]
    if len(sizes) < len(dims):
        raise InvalidArgumentError(
            "MACs can only be counted where shapes are defined.",
            received=str(tuple(dims)),
            fix="Give `keras.Input` a full shape, or pass `input_shapes` to `model_macs`.",
        )
    return prod(sizes)


# Convolutions


def _spatial(shape: Shape, data_format: str | None) -> Shape:
    return shape[2:] if (data_format or keras.config.image_data_format()) == "channels_first" else shape[1:-1]


def _channels(shape: Shape, data_format: str) -> int:
    return _size(shape[1:2] if data_format == "channels_first" else shape[-1:])


@register_macs(kl.Conv1D, kl.Conv2D, kl.Conv3D)
def _conv(layer, inputs, outputs):
    channels = _channels(inputs[0], layer.data_format) // layer.groups
    return _size(_spatial(outputs[0], layer.data_format)) * prod(layer.kernel_size) * channels * layer.filters


@register_macs(kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)
def _conv_transpose(layer, inputs, outputs):
    channels = _channels(inputs[0], layer.data_format)
    return _size(_spatial(inputs[0], layer.data_format)) * prod(layer.kernel_size) * channels * layer.filters


@register_macs(kl.DepthwiseConv1D, kl.DepthwiseConv2D)
def _depthwise(layer, inputs, outputs):
    channels = _channels(inputs[0], layer.data_format) * layer.depth_multiplier
    return _size(_spatial(outputs[0], layer.data_format)) * prod(layer.kernel_size) * channels


@register_macs(kl.SeparableConv1D, kl.SeparableConv2D)
def _separable(layer, inputs, outputs):
    channels = _channels(inputs[0], layer.data_format) * layer.depth_multiplier
    positions = _size(_spatial(outputs[0], layer.data_format))
    return positions * channels * (prod(layer.kernel_size) + layer.filters)


@register_macs(op_class("Conv"), op_class("DepthwiseConv"))
def _conv_op(op, inputs, outputs):
    return _size(_spatial(outputs[0], op.data_format)) * _size(inputs[1])


@register_macs(op_class("SeparableConv"))
def _separable_op(op, inputs, outputs):
    return _size(_spatial(outputs[0], op.data_format)) * (_size(inputs[1]) + _size(inputs[2]))


@register_macs(op_class("ConvTranspose"))
def _conv_transpose_op(op, inputs, outputs):
    return _size(_spatial(inputs[0], op.data_format)) * _size(inputs[1])


# Matrix products


@register_macs(kl.Dense)
def _dense(layer, inputs, outputs):
    return _size(outputs[0][1:]) * _size(inputs[0][-1:])


@register_macs(kl.EinsumDense)
def _einsum_dense(layer, inputs, outputs):
    return _einsum_macs(layer.equation, [inputs[0], tuple(layer.kernel.shape)])


@register_macs(kl.Embedding, getattr(kl, "ReversibleEmbedding", kl.Embedding))  # the latter since Keras 3.13
def _embedding(layer, inputs, outputs):
    looked_up = len(outputs[0]) > len(inputs[0])
    return 0 if looked_up else _size(outputs[0][1:]) * layer.output_dim


@register_macs(kl.Dot)
def _dot_layer(layer, inputs, outputs):
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return _size(inputs[0][1:]) * _size(inputs[1][1:]) // _size([inputs[0][axis]])


@register_macs(op_class("Matmul"), op_class("Dot"), op_class("Inner"))
def _matmul(op, inputs, outputs):
    """The last axis of the first operand is summed over."""
    return _size(outputs[0][1:]) * (_size(inputs[0][-1:]) if len(inputs) == 2 and all(inputs) else 0)


@register_macs(op_class("Tensordot"))
def _tensordot(op, inputs, outputs):
    first = inputs[0]
    summed = first[len(first) - op.axes :] if isinstance(op.axes, int) else [first[axis] for axis in op.axes[0]]
    return _size(outputs[0][1:]) * _size(summed)


@register_macs(op_class("Einsum"))
def _einsum(op, inputs, outputs):
    return _einsum_macs(op.subscripts, inputs)


def _einsum_macs(equation: str, operands: Sequence[Shape]) -> int:
    """Products of the naive evaluation: sizes of all indices, times the operands less one."""
    terms, _, result = equation.replace(" ", "").partition("->")
    sizes: dict[object, int | None] = {}
    leading = []
    for term, shape in zip(terms.split(","), operands, strict=True):
        indices = _indices(term, len(shape))
        leading.append((indices[0], shape[0]))
        known = zip(indices, shape, strict=True)
        sizes.update((index, dim) for index, dim in known if sizes.get(index, 1) in (1, None))
    batch = [index for index, dim in leading if dim is None]
    rank = max(len(shape) for shape in operands)
    sizes[batch[0] if batch else _indices(result, rank)[0] if result else leading[0][0]] = 1
    return _size(list(sizes.values())) * (len(operands) - 1)


def _indices(term: str, rank: int) -> list:
    """Letters of an einsum term; the axes under its ellipsis are counted from the last, as broadcasting aligns them."""
    before, ellipsis, after = term.partition("...")
    hidden = range(-(rank - len(before) - len(after)), 0) if ellipsis else ()
    return [*before, *hidden, *after]


# Attention


@register_macs(kl.MultiHeadAttention)
def _multi_head_attention(layer, inputs, outputs):
    query, value = inputs[0], inputs[1]
    axes = layer.attention_axes or range(1, len(query) - 1)
    targets, sources = _size([query[axis] for axis in axes]), _size([value[axis] for axis in axes])
    rows = _size([query[axis] for axis in range(1, len(query) - 1) if axis not in axes])
    heads = layer.num_heads * (layer.key_dim + layer.value_dim)
    return _projections(layer, inputs) + rows * targets * sources * heads


@register_macs(kl.GroupQueryAttention)
def _group_query_attention(layer, inputs, outputs):
    pairs = _size(inputs[0][1:-1]) * _size(inputs[1][1:-1])
    return _projections(layer, inputs) + pairs * 2 * layer.num_query_heads * layer.head_dim


def _projections(layer, inputs: list[Shape]) -> int:
    """Each projection multiplies its kernel once a position."""
    query, value = _size(inputs[0][1:-1]), _size(inputs[1][1:-1])
    positions = {"query": query, "gate": query, "key": value, "value": value, "output": query}
    dense = {name: getattr(layer, f"_{name}_dense", None) for name in positions}
    return sum(positions[name] * _size(part.kernel.shape) for name, part in dense.items() if part is not None)


@register_macs(kl.Attention)
def _attention(layer, inputs, outputs):
    scores, weighted = _scores_and_weighted(inputs)
    return weighted + (scores if layer.score_mode == "dot" else 0)


@register_macs(kl.AdditiveAttention)
def _additive_attention(layer, inputs, outputs):
    scores, weighted = _scores_and_weighted(inputs)
    return weighted + (scores if layer.use_scale else 0)


def _scores_and_weighted(inputs: list[Shape]) -> tuple[int, int]:
    query, value = inputs[0], inputs[1]
    pairs = _size(query[1:-1]) * _size(value[1:-1])
    return pairs * _size(query[-1:]), pairs * _size(value[-1:])


@register_macs(op_class("DotProductAttention"))
def _dot_product_attention(op, inputs, outputs):
    query, key, value = inputs[:3]
    return _size(query[1:3]) * _size(key[1:2]) * (_size(query[-1:]) + _size(value[-1:]))


# Recurrent layers, cells and wrappers

_GATES: dict[type, int] = {kl.SimpleRNNCell: 1, kl.GRUCell: 3, kl.LSTMCell: 4}


@register_macs(*_GATES)
def _cell(cell, inputs, outputs):
    gates = next(_GATES[cls] for cls in type(cell).__mro__ if cls in _GATES)
    return gates * cell.units * (_size(inputs[0][-1:]) + cell.units)


@register_macs(kl.StackedRNNCells)
def _stacked_cells(stack, inputs, outputs):
    total, features = 0, inputs[0]
    for cell in stack.cells:
        result = (features[0], getattr(cell, "output_size", None) or cell.state_size)
        total += layer_macs(cell, [features], [result])
        features = result
    return total


@register_macs(kl.RNN)
def _rnn(layer, inputs, outputs):
    batch, steps, *features = inputs[0]
    return _size([steps]) * layer_macs(layer.cell, [(batch, *features)], outputs)


@register_macs(kl.ConvLSTM1D, kl.ConvLSTM2D, kl.ConvLSTM3D)
def _conv_lstm(layer, inputs, outputs):
    frames = outputs[0][2:] if layer.return_sequences else outputs[0][1:]
    positions = _size(frames[1:] if layer.data_format == "channels_first" else frames[:-1])
    channels = _channels((None, *inputs[0][2:]), layer.data_format)
    return _size(inputs[0][1:2]) * positions * 4 * prod(layer.kernel_size) * layer.filters * (channels + layer.filters)


@register_macs(kl.Bidirectional)
def _bidirectional(layer, inputs, outputs):
    return sum(layer_macs(child, inputs, outputs) for child in (layer.forward_layer, layer.backward_layer))


@register_macs(kl.TimeDistributed)
def _time_distributed(layer, inputs, outputs):
    batch, steps, *features = inputs[0]
    results = [(shape[0], *shape[2:]) for shape in outputs]
    return _size([steps]) * layer_macs(layer.layer, [(batch, *features)], results)


@register_macs(kl.Wrapper)
def _wrapper(layer, inputs, outputs):
    return layer_macs(layer.layer, inputs, outputs)
