"""EinsumDense as the matrix product that LiteRT has integers for.

The converter turns an einsum into a product, a reshape and an addition of the bias, and the bias behind the reshape
keeps all three in float. Written with the bias before the reshape, they become one integer FULLY_CONNECTED.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, cast

import tensorflow as tf
from keras import layers as kl

from tfopt.quantization.composites import composite
from tfopt.quantization.layers import QuantizedLayer, rounded_kernel


@dataclass(frozen=True)
class DenseEquation:
    """An einsum `inputs,kernel->outputs` that sums over axes of the inputs and puts axes of the kernel in their place.

    Args:
        inputs, kernel, outputs: one letter an axis, without an ellipsis.
    """

    inputs: str
    kernel: str
    outputs: str

    @property
    def free(self) -> str:
        """Axes of the inputs that the outputs keep, in their order."""
        return "".join(letter for letter in self.inputs if letter not in self.kernel)

    @property
    def summed(self) -> str:
        return "".join(letter for letter in self.inputs if letter in self.kernel)

    @property
    def units(self) -> str:
        return "".join(letter for letter in self.kernel if letter not in self.inputs)


def dense_equation(equation: str, rank: int) -> DenseEquation | None:
    """The equation for inputs of a rank, its ellipsis spelled out; None if it is not one matrix product.

    Example:
        >>> dense_equation("...x,xy->...y", 3)
        DenseEquation(inputs='ABx', kernel='xy', outputs='ABy')
        >>> dense_equation("abc,abd->abcd", 3) is None
        True
    """
    operands, outputs = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    elided = "".join(letter for letter in "ABCDEFGHIJ" if letter not in equation)[: rank - len(inputs.replace(".", ""))]
    dense = DenseEquation(inputs.replace("...", elided), kernel, outputs.replace("...", elided))
    is_product = set(dense.outputs) == set(dense.free + dense.units) and not set(dense.summed) & set(dense.outputs)
    return dense if is_product and dense.summed else None


def einsum_dense(equation: DenseEquation, inputs: Any, kernel: Any, bias: Any = None) -> Any:
    """`einsum(inputs, kernel) + bias` as one matrix product.

    Args:
        equation: from `dense_equation`.
        inputs, kernel: tensors of the same dtype.
        bias: of a shape that broadcasts to the outputs, 1 along the axes that come from the inputs; or None.

    Example:
        >>> equation = dense_equation("abc,cde->abde", 3)
        >>> einsum_dense(equation, tf.ones((2, 3, 4)), tf.ones((4, 5, 6)), tf.ones((5, 6)))[0, 0, 0, 0].numpy().item()
        5.0
    """
    sizes = dict(zip(equation.inputs, shape_of(inputs), strict=True))
    units = dict(zip(equation.kernel, kernel.shape, strict=True))
    summed, free = equation.summed, equation.free
    inputs = _ordered(inputs, equation.inputs, free + summed)
    if len(summed) != 1:
        inputs = tf.reshape(inputs, [*(sizes[letter] for letter in free), prod(units[letter] for letter in summed)])
    kernel = _ordered(kernel, equation.kernel, summed + equation.units)
    outputs = tf.matmul(inputs, tf.reshape(kernel, [prod(units[letter] for letter in summed), -1]))
    if bias is not None:
        outputs += _flat_bias(equation, units, bias)
    if len(equation.units) != 1:
        outputs = tf.reshape(outputs, [*(sizes[i] for i in free), *(units[i] for i in equation.units)])
    return _ordered(outputs, free + equation.units, equation.outputs)


def shape_of(values: Any) -> list:
    """The shape, with numbers where they are known and scalar tensors elsewhere."""
    dynamic = tf.shape(values)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(values.shape)]


def _flat_bias(equation: DenseEquation, units: dict, bias: Any) -> Any:
    """The bias as a vector, in the order of the product's columns."""
    bias = tf.reshape(bias, [1] * (len(equation.outputs) - len(bias.shape)) + list(bias.shape))
    kept = [axis for axis, letter in enumerate(equation.outputs) if letter in equation.units]
    bias = tf.reshape(bias, [bias.shape[axis] for axis in kept])
    letters = [equation.outputs[axis] for axis in kept]
    bias = tf.broadcast_to(bias, [units[letter] for letter in letters])
    return tf.reshape(_ordered(bias, "".join(letters), equation.units), [-1])


def _ordered(values: Any, letters: str, wanted: str) -> Any:
    return values if letters == wanted else tf.transpose(values, [letters.index(letter) for letter in wanted])


@composite(kl.EinsumDense)
class QuantizedEinsumDense(QuantizedLayer):
    """An `EinsumDense` with one range for its kernel: one matrix product with its bias where the equation allows it."""

    def __init__(self, layer: kl.Layer, kernels: Any = None, **kwargs: Any):
        super().__init__(layer, kernels, **kwargs)
        self.is_dense = _is_dense(layer)
        if layer.bias_axes and not self.is_dense:
            self.add_range("product")

    def run(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        layer, dtype = self.layer, self.layer.compute_dtype
        inputs = tf.cast(inputs, dtype)
        kernel = tf.cast(rounded_kernel(layer.kernel, ()), dtype)
        bias = None if layer.bias is None else tf.cast(tf.convert_to_tensor(layer.bias), dtype)
        if self.is_dense:
            equation = cast(DenseEquation, dense_equation(layer.equation, len(inputs.shape)))
            outputs = einsum_dense(equation, inputs, kernel, bias)
        else:
            outputs = tf.einsum(layer.equation, inputs, kernel)
            outputs = outputs if bias is None else self.ranges()["product"](outputs, training) + bias
        return layer.activation(outputs)  # one that the file fuses; the others are taken out of the layer


def _is_dense(layer: kl.EinsumDense) -> bool:
    letters = layer.equation.split(",")[0].replace(".", "").strip()
    equation = dense_equation(layer.equation, len(letters))
    return equation is not None and set(layer.bias_axes or "") <= set(equation.units)
