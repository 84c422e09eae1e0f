"""Multiply-accumulates of one layer or op, by the rule in its record, and what such rules count with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeVar

import keras
from keras import layers as kl

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.layers.registry import MacsRule, Shape, add_facts, inherits_macs, record_of

AnyRule = TypeVar("AnyRule", bound=MacsRule)


def register_macs(*classes: type) -> Callable[[AnyRule], AnyRule]:
    """Decorator that tells how many multiply-accumulates a layer of your own does for one sample.

    The function takes `(layer, input_shapes, output_shapes)`: two lists of shapes whose first dimension is the batch.

    Args:
        classes: the layer classes it counts. A subclass that computes something else, by a `call` of its own, needs a
            rule of its own.

    Returns:
        The decorator; it returns the function unchanged.

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
        for cls in classes:
            add_facts(cls, macs=rule)
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
        InvalidArgumentError: if a dimension that counts is None, or the layer is a user's own without a rule, and has
            matrices as weights or a parent class that multiplies matrices.

    Example:
        >>> layer_macs(keras.layers.Conv2D(16, 3), [(None, 8, 8, 3)], [(None, 6, 6, 16)])
        15552
    """
    if getattr(op, "wraps_layer", False):
        return layer_macs(op.layer, input_shapes, output_shapes)
    inputs, outputs = [tuple(shape) for shape in input_shapes], [tuple(shape) for shape in output_shapes]
    record = record_of(op)
    if record is not None and record.macs is not None:
        return record.macs(op, inputs, outputs)
    _check_counts_nothing(op)
    return 0


def _check_counts_nothing(op: Any) -> None:
    """An own layer without a rule may only be element-wise: without matrices, and without a parent that multiplies."""
    own = isinstance(op, kl.Layer) and not type(op).__module__.startswith("keras.")
    if own and (any(len(weight.shape) > 1 for weight in op.weights) or inherits_macs(type(op))):
        raise InvalidArgumentError(
            "A layer class that multiplies matrices must have a rule that counts its MACs.",
            received=f"{type(op).__name__} '{op.name}'",
            fix=f"Decorate a function with `@tfopt.register_macs({type(op).__name__})`.",
        )


# What the rules count with.


def size(dims: Sequence[int | None]) -> int:
    """The product of dimensions, all of which have to be known."""
    sizes = [dim for dim in dims if dim is not None]
    if len(sizes) < len(dims):
        raise InvalidArgumentError(
            "MACs can only be counted where shapes are defined.",
            received=str(tuple(dims)),
            fix="Give `keras.Input` a full shape, or pass `input_shapes` to `model_macs`.",
        )
    return prod(sizes)


def spatial(shape: Shape, data_format: str | None) -> Shape:
    """The dimensions of a shape that are neither batch nor channels."""
    return shape[2:] if (data_format or keras.config.image_data_format()) == "channels_first" else shape[1:-1]


def channels(shape: Shape, data_format: str) -> int:
    """The number of channels in a shape."""
    return size(shape[1:2] if data_format == "channels_first" else shape[-1:])
