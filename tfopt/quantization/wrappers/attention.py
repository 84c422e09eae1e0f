"""Attention layers in 8 bits: each product of matrices with a range behind it, the softmax in between in the runtime's
fixed steps of 1/256.

The factor of the scores, 1 / sqrt(key_dim), goes into the query's kernel and bias, where it costs no operation.
"""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import keras
import tensorflow as tf
from keras import layers as kl

from tfopt.core.keras_internals import children
from tfopt.quantization.composites import composite
from tfopt.quantization.wrappers.einsum import DenseEquation, dense_equation, einsum_dense, shape_of
from tfopt.quantization.wrappers.softmax import MaskedSoftmax


@composite(kl.MultiHeadAttention, kl.GroupQueryAttention)
class QuantizedMultiHeadAttention(MaskedSoftmax):
    """Multi-head or grouped-query attention with int8 projections, scores, softmax and context.

    Args:
        layer: a `MultiHeadAttention` or `GroupQueryAttention`, with any of their options.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.options = layer.get_config()
        gated = ("gate", "gated") if self.options["use_gate"] else ()
        for name in ("query", "key", "value", "scores", "context", *gated, "output"):
            self.add_range(name)

    @classmethod
    def float_reason(cls, layer: keras.layers.Layer) -> str:
        if layer.get_config()["activity_regularizer"] is not None:
            return "its activity_regularizer acts on inner tensors; drop it"
        return ""

    def build(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:  # type: ignore[override]
        if not self.layer.built:
            self.layer.build(query_shape, value_shape, key_shape)
            self.layer.built = True
        super().build(query_shape)

    def compute_output_spec(self, query: Any, value: Any, key: Any = None, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(query, value, key, **kwargs)

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: Any = False,
        training: bool | None = None,
        use_causal_mask: Any = False,
    ) -> Any:
        lengths = shape_of(query)[1], shape_of(value)[1]
        window = self.options["sliding_window"]
        mask = _all_of(
            _expanded(query_mask, -1),
            _expanded(value_mask, -2),
            _expanded(key_mask, -2),
            _distance(*lengths) >= 0 if use_causal_mask else None,
            None if window is None else tf.abs(_distance(*lengths)) < window,
            None if attention_mask is None else tf.cast(attention_mask, tf.bool),
        )
        gate = self._gate(query, training) if self.options["use_gate"] else None
        key = self._projected("key", value if key is None else key, training)
        query, value = self._projected("query", query, training), self._projected("value", value, training)
        outputs, weights = self._attend(query, key, value, mask, return_attention_scores, training)
        if gate is not None:
            outputs = self.ranges()["gated"](outputs * gate, training)
        outputs = self._projected("output", outputs, training)
        return (outputs, weights) if return_attention_scores else outputs

    def _gate(self, query: Any, training: Any) -> Any:
        return tf.sigmoid(self._projected("gate", query, training))

    def _projected(self, name: str, inputs: Any, training: Any) -> Any:
        """Inputs through one of the layer's four or five dense layers, within its range."""
        sublayer = _child(self.layer, "attention_output" if name == "output" else name)
        dtype = self.layer.compute_dtype
        scale = 1.0 / math.sqrt(self.options.get("key_dim") or self.options["head_dim"]) if name == "query" else 1.0
        kernel = tf.cast(self.rounded(sublayer.kernel) * scale, dtype)
        bias = None if sublayer.bias is None else tf.cast(tf.convert_to_tensor(sublayer.bias) * scale, dtype)
        equation = cast(DenseEquation, dense_equation(sublayer.equation, len(inputs.shape)))
        return self.ranges()[name](einsum_dense(equation, tf.cast(inputs, dtype), kernel, bias), training)

    def _attend(
        self, query: Any, key: Any, value: Any, mask: Any, return_attention_scores: Any, training: Any
    ) -> tuple:
        """The context `(batch, ..., heads, value_dim)`, and the weights in the form that Keras gives them."""
        axes = getattr(self.layer, "attention_axes", (1,))
        order = _heads_first(len(query.shape), axes)
        query_shape, key_shape = shape_of(query), shape_of(key)
        query, key, value = (_flattened(tf.transpose(part, order), len(axes)) for part in (query, key, value))
        scores = _by_group(query, key, transpose_b=True)
        spans = [query_shape[axis] for axis in axes], [key_shape[axis] for axis in axes]
        mask = _aligned(mask, len(query_shape) - 1 - len(axes), spans)
        weights = self._weights(scores, mask, training)
        if mask is not None and (self.layer.dropout > 0 or return_attention_scores or len(query_shape) != 4):
            weights = tf.where(mask, weights, 0.0)  # as Keras does on this road: a row with all masked gives zeros
        kept = tf.cast(_child(self.layer, kl.Dropout)(weights, training=training), query.dtype)
        context = self.ranges()["context"](_by_group(kept, value), training)
        if len(axes) > 1:
            context = tf.reshape(context, [*shape_of(context)[:-2], *spans[0], shape_of(context)[-1]])
            weights = tf.reshape(weights, [*shape_of(weights)[:-2], *spans[0], *spans[1]])
        back = [order.index(axis) for axis in range(len(order))]
        return tf.transpose(context, back), tf.cast(weights, query.dtype)


@composite(kl.Attention, kl.AdditiveAttention)
class QuantizedAttention(MaskedSoftmax):
    """Dot-product or additive attention with int8 scores, softmax and output.

    Args:
        layer: an `Attention` or `AdditiveAttention`, with any of their options.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.is_dot = layer.score_mode == "dot" and not isinstance(layer, kl.AdditiveAttention)
        self.scales_inputs = layer.use_scale and not isinstance(layer, kl.AdditiveAttention)
        sums = () if self.is_dot else ("sum",)
        for name in (*sums, *(("scaled",) if self.scales_inputs else ()), "scores", "output"):
            self.add_range(name)

    def compute_output_spec(self, inputs: Any, mask: Any = None, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(inputs, mask, **kwargs)

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        training: bool | None = None,
        return_attention_scores: Any = False,
        use_causal_mask: Any = False,
    ) -> Any:
        dtype = self.layer.compute_dtype
        query, value, key = (tf.cast(part, dtype) for part in (*inputs, inputs[1])[:3])
        query_mask, value_mask = (mask[0], mask[1]) if mask else (None, None)
        scores = (self._products if self.is_dot else self._sums)(query, key, training)
        shown = _all_of(
            _expanded(value_mask, -2),
            _distance(shape_of(query)[1], shape_of(key)[1]) >= 0 if use_causal_mask else None,
        )
        weights = self._weights(scores, shown, training)
        kept = tf.cast(weights, dtype)
        if training and self.layer.dropout > 0:
            kept = keras.random.dropout(kept, self.layer.dropout, seed=self.layer.seed_generator)
        outputs = tf.matmul(kept, value)
        if query_mask is not None:
            outputs = tf.where(_expanded(query_mask, -1), outputs, tf.zeros((), dtype))
        outputs = self.ranges()["output"](outputs, training)
        return (outputs, tf.cast(weights, dtype)) if return_attention_scores else outputs

    def _products(self, query: Any, key: Any, training: Any) -> Any:
        return tf.matmul(self._scaled(query, training), key, transpose_b=True)

    def _sums(self, query: Any, key: Any, training: Any) -> Any:
        """Scores `sum(weight * tanh(query + key))`, the sum as a product with the weight as kernel."""
        sums = self.ranges()["sum"](query[:, :, None] + key[:, None], training)
        kernel = self._sum_kernel(query.shape[-1])
        return tf.matmul(tf.tanh(self._scaled(sums, training)), tf.cast(kernel, sums.dtype)[:, None])[..., 0]

    def _sum_kernel(self, size: int) -> Any:
        if isinstance(self.layer, kl.AdditiveAttention):
            return tf.ones((size,)) if self.layer.scale is None else self.rounded(self.layer.scale)
        return tf.fill([size], tf.convert_to_tensor(self.layer.concat_score_weight))

    def _scaled(self, values: Any, training: Any) -> Any:
        if not self.scales_inputs:
            return values
        return self.ranges()["scaled"](values * tf.cast(tf.convert_to_tensor(self.layer.scale), values.dtype), training)


def _child(layer: kl.Layer, wanted: str | type) -> kl.Layer:
    """The sublayer of a name or a class."""
    return next(child for child in children(layer) if wanted in (child.name, type(child)))


def _all_of(*masks: Any) -> Any:
    """True where all masks are; None if there is none."""
    given = [mask for mask in masks if mask is not None]
    return functools.reduce(tf.logical_and, given) if given else None


def _expanded(mask: Any, axis: int) -> Any:
    return None if mask is None else tf.expand_dims(tf.cast(mask, tf.bool), axis)


def _distance(queries: Any, keys: Any) -> Any:
    """How many steps each key lies before each query, shape `(1, queries, keys)`."""
    return tf.range(queries)[None, :, None] - tf.range(keys)[None, None, :]


def _heads_first(rank: int, axes: tuple[int, ...]) -> list[int]:
    """The order of axes `(batch, ..., heads, attention axes, features)` of a tensor `(batch, ..., heads, features)`."""
    return [axis for axis in range(rank - 1) if axis not in axes] + [*axes, rank - 1]


def _flattened(values: Any, count: int) -> Any:
    """`count` axes before the last made one."""
    if count == 1:
        return values
    sizes = shape_of(values)
    return tf.reshape(values, [*sizes[: -count - 1], -1, sizes[-1]])


def _by_group(left: Any, right: Any, transpose_b: bool = False) -> Any:
    """Matrix product for each head; where heads of `left` share one of `right`, their rows go into one product."""
    heads, shared = left.shape[-3], right.shape[-3]
    if heads == shared:
        return tf.matmul(left, right, transpose_b=transpose_b)
    sizes = shape_of(left)
    product = tf.matmul(tf.reshape(left, [*sizes[:-3], shared, -1, sizes[-1]]), right, transpose_b=transpose_b)
    return tf.reshape(product, [*sizes[:-1], shape_of(product)[-1]])


def _aligned(mask: Any, leading: int, spans: tuple[list, list]) -> Any:
    """A mask `(batch, [...,] queries, keys)` of the rank of the scores, each side's axes made one."""
    if mask is None:
        return None
    count = len(spans[0])
    for _ in range(leading + 2 * count - len(mask.shape)):
        mask = tf.expand_dims(mask, -2 * count - 1)
    if count == 1:
        return mask
    sizes = shape_of(mask)[: -2 * count]
    whole = tf.broadcast_to(mask, [*sizes, *spans[0], *spans[1]])
    return tf.reshape(whole, [*sizes, math.prod(spans[0]), math.prod(spans[1])])
