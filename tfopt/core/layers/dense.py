"""Matrix products and embeddings. A kernel has one range, as LiteRT wants it of a matrix product."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers import macs
from tfopt.core.layers.channels import Channels, Context, Unsupported, all_along, keeps_zero, shape_rule
from tfopt.core.layers.contractions import dot_channels, einsum_channels, matmul_channels
from tfopt.core.layers.registry import KernelAxes, Output, Record, Shape, enter, layers_named

# Dense.


def _dense_channels(context: Context, x: Channels, *_: Any, **__: Any) -> Channels:
    layer = context.op
    _check_plain(layer)
    context.read(layer.kernel, 0, x, all_along(x, -1))
    labels = context.graph.created(context.path, layer.kernel, 1)
    context.each(layer.bias, labels)
    context.graph.size(layer, ("units",), lambda count: count(labels))
    return context.replaced(x, labels, zero=_zero_beside(context, x, [len(x.shape) - 1]))


def _check_plain(layer: Any) -> None:
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise Unsupported(f"{type(layer).__name__} with LoRA or Keras' own quantization")


def _zero_beside(context: Context, x: Channels, read: list[int]) -> bool:
    """Whether masked channels are zero behind a kernel; along axes that it does not read, they get the bias."""
    beside = set(x.along()) - set(read)
    return keeps_zero(context.op.activation) and (not beside or (x.zero and context.op.bias is None))


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
    _check_plain(layer)
    spec, kernel, result = _spelled_out(layer.equation, len(x.shape))
    if len(set(spec)) < len(spec) or any(letter not in kernel + result for letter in spec):
        raise Unsupported(f"EinsumDense with the equation '{layer.equation}'")
    known = dict(zip(spec, x.labels, strict=True))
    for axis, letter in enumerate(kernel):
        if letter not in spec:
            known[letter] = context.graph.created(context.path, layer.kernel, axis)
        elif letter not in result:
            context.read(layer.kernel, axis, x, all_along(x, spec.index(letter)))
        elif known[letter].any():
            context.graph.slot(context.path, layer.kernel, axis, known[letter], "each")
    labels = [known[letter] for letter in result]
    if layer.bias is not None:
        for axis in range(-len(layer.bias.shape), 0):
            if layer.bias.shape[axis] > 1 and labels[axis].any():
                context.graph.slot(context.path, layer.bias, axis, labels[axis], "each")
    zero = _zero_beside(context, x, [axis for axis, letter in enumerate(spec) if letter not in result])
    output = Channels(tuple(labels), context.shapes[0], zero)
    wanted = layer.partial_output_shape
    wanted = (wanted,) if isinstance(wanted, int) else tuple(wanted)
    context.graph.size(layer, ("output_shape",), shape_rule(output, wanted))
    return output


def _spelled_out(equation: str, rank: int) -> tuple[str, str, str]:
    """The terms of the input, the kernel and the output, an ellipsis in front written out as letters."""
    spec, kernel, result = equation.replace(" ", "").replace("->", ",").split(",")
    if "..." in spec[1:]:
        raise Unsupported(f"EinsumDense with the equation '{equation}'")
    unused = [letter for letter in string.ascii_letters if letter not in equation]
    hidden = "".join(unused[: rank - len(spec.removeprefix("..."))])
    return spec.replace("...", hidden), kernel, result.replace("...", hidden)


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
    _check_plain(layer)
    if reverse:
        labels = context.graph.created(context.path, layer.embeddings, 1)
        context.graph.freeze(labels, f"'{context.path}' turns them back into tokens")
        raise Unsupported("it turns them back into tokens")
    for axis in x.along():
        context.graph.freeze(x.labels[axis], f"'{context.path}' reads them as indices")
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


enter(Record(output=Output.RANGE, channels=dot_channels, macs=_dot_macs), kl.Dot)
enter(Record(output=Output.RANGE, channels=matmul_channels, macs=_matmul_macs), op_class("Matmul"))
enter(Record(macs=_matmul_macs), op_class("Dot"), op_class("Inner"))
enter(Record(macs=_tensordot_macs), op_class("Tensordot"))
enter(Record(output=Output.RANGE, channels=einsum_channels, macs=_einsum_macs), op_class("Einsum"))
