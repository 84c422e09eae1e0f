"""Matrix products and embeddings. A kernel has one range, as LiteRT wants it of a matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers import macs
from tfopt.core.layers.channels import Channels, Context, Unsupported, keeps_zero, shape_rule
from tfopt.core.layers.registry import KernelAxes, Output, Record, Shape, enter, layers_named

# Dense.


def _dense_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    layer = context.op
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise Unsupported("Dense with LoRA or Keras' own quantization")
    context.read(layer.kernel, 0, x, context.along(x))
    labels = context.graph.created(context.path, layer.kernel, 1)
    context.each(layer.bias, labels)
    context.graph.size(layer, ("units",), lambda count: count(labels))
    return context.output(labels, zero=keeps_zero(layer.activation))


def _dense_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    return macs.size(outputs[0][1:]) * macs.size(inputs[0][-1:])


enter(
    Record(
        prunable=("kernel",),
        axes=KernelAxes((-1,), -2),
        kernels={"kernel": ()},
        output=Output.RANGE,
        in_16_bits=True,
        channels=_dense_channels,
        macs=_dense_macs,
    ),
    kl.Dense,
)


# EinsumDense.


def _einsum_axes(layer: Any) -> KernelAxes:
    """The units lie along the axes of the kernel that are axes of the output too."""
    operands, output = layer.equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1]
    units = tuple(i - len(kernel) for i, letter in enumerate(kernel) if letter in output)
    return KernelAxes(units, None, channels=False)


def _einsum_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    layer = context.op
    spec, kernel, result = layer.equation.replace(" ", "").replace("->", ",").split(",")
    new = [letter for letter in kernel if letter not in spec]
    if "..." in spec or len(new) != 1 or any(letter in kernel and letter in result for letter in spec):
        raise Unsupported(f"EinsumDense with the equation '{layer.equation}'")
    read = [letter for letter in spec if letter in kernel]
    for letter in read:
        labels = context.graph.axis_labels(x, spec.index(letter) - 1, f"'{context.path}' reads several axes")
        context.read(layer.kernel, kernel.index(letter), x, labels)
    axis = result.index(new[0]) - 1
    labels = context.graph.created(context.path, layer.kernel, kernel.index(new[0]))
    if layer.bias is not None:
        sizes = [axis for axis, size in enumerate(layer.bias.shape) if size == len(labels)]
        if len(layer.bias.shape) != 1 or not sizes:
            raise Unsupported("EinsumDense with a bias of several axes")
        context.each(layer.bias, labels)
    output = context.output(labels, axis, keeps_zero(layer.activation))
    context.graph.size(layer, ("output_shape",), shape_rule(output))
    return output


def _einsum_dense_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    return _equation_macs(layer.equation, [inputs[0], tuple(layer.kernel.shape)])


def _equation_macs(equation: str, operands: Sequence[Shape]) -> int:
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
    return macs.size(list(sizes.values())) * (len(operands) - 1)


def _indices(term: str, rank: int) -> list:
    """Letters of an einsum term; the axes under its ellipsis are counted from the last, as broadcasting aligns them."""
    before, ellipsis, after = term.partition("...")
    hidden = range(-(rank - len(before) - len(after)), 0) if ellipsis else ()
    return [*before, *hidden, *after]


enter(
    Record(
        prunable=("kernel",),
        axes=_einsum_axes,
        kernels={"kernel": ()},
        output=Output.RANGE,
        in_16_bits=True,
        channels=_einsum_channels,
        macs=_einsum_dense_macs,
    ),
    kl.EinsumDense,
)


# Embedding, and ReversibleEmbedding since Keras 3.13.


def _embedding_channels(context: Context, x: Channels, reverse: bool = False, *_: Any, **__: Any) -> Channels:
    layer = context.op
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise Unsupported("Embedding with LoRA or Keras' own quantization")
    if reverse:
        labels = context.graph.created(context.path, layer.embeddings, 1)
        context.graph.freeze(labels, f"'{context.path}' turns them back into tokens")
        raise Unsupported("it turns them back into tokens")
    context.graph.freeze(x.labels, f"'{context.path}' reads them as indices")
    labels = context.graph.created(context.path, layer.embeddings, 1)
    context.graph.size(layer, ("output_dim",), lambda count: count(labels))
    return context.output(labels)


def _embedding_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    looked_up = len(outputs[0]) > len(inputs[0])
    return 0 if looked_up else macs.size(outputs[0][1:]) * layer.output_dim


enter(
    Record(
        prunable=("embeddings",),
        axes=KernelAxes((-1,), None, channels=False),  # its weights are looked up, not multiplied
        kernels={"embeddings": ()},
        output=Output.RANGE,
        in_16_bits=True,
        channels=_embedding_channels,
        macs=_embedding_macs,
    ),
    *(kl.Embedding, *layers_named("ReversibleEmbedding")),
)


# Products of two tensors.


def _dot_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return macs.size(inputs[0][1:]) * macs.size(inputs[1][1:]) // macs.size([inputs[0][axis]])


def _matmul_macs(op: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    """The last axis of the first operand is summed over."""
    return macs.size(outputs[0][1:]) * (macs.size(inputs[0][-1:]) if len(inputs) == 2 and all(inputs) else 0)


def _tensordot_macs(op: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    first = inputs[0]
    summed = first[len(first) - op.axes :] if isinstance(op.axes, int) else [first[axis] for axis in op.axes[0]]
    return macs.size(outputs[0][1:]) * macs.size(summed)


def _einsum_macs(op: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    return _equation_macs(op.subscripts, inputs)


enter(Record(output=Output.RANGE, macs=_dot_macs), kl.Dot)
enter(Record(output=Output.RANGE, macs=_matmul_macs), op_class("Matmul"))
enter(Record(macs=_matmul_macs), op_class("Dot"), op_class("Inner"))
enter(Record(macs=_tensordot_macs), op_class("Tensordot"))
enter(Record(output=Output.RANGE, macs=_einsum_macs), op_class("Einsum"))
