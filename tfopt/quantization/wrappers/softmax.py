"""Softmax of scores of which a mask hides some, in 8 bits or 16."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers as kl

from tfopt.core.models.fake_quantized import in_mode
from tfopt.core.models.graph import Call, Graph
from tfopt.quantization import fakequant
from tfopt.quantization.composites import Composite, composite
from tfopt.quantization.masking import SOFTMAX_STEPS

SOFTMAX_RANGE = 0.0, 1.0 - 1.0 / SOFTMAX_STEPS[8]
MASKED = -1e9


class MaskedSoftmax(Composite):
    """What the layers with masked scores share: from scores to weights. A subclass adds the range "scores"."""

    def _weights(self, scores: Any, mask: Any, training: Any) -> Any:
        """Softmax of the scores where the mask, if any, is True; float32, in the steps of the integer kernel.

        A mask must not stretch the range of the scores by the large number that stands for minus infinity, of which
        nothing but zeros would be left. Masked scores go just so far below the lowest score that all of them together
        weigh less than half a step of the softmax.
        """
        scores = tf.cast(scores, tf.float32)
        score_range = self.ranges()["scores"]
        if in_mode("export"):
            scores = scores if mask is None else tf.where(mask, scores, score_range.bounds()[0])
        elif mask is not None:
            return self._in_steps(tf.nn.softmax(tf.where(mask, self._masked(scores, mask, training), MASKED)))
        return self._in_steps(tf.nn.softmax(score_range(scores, training)))

    def _masked(self, scores: Any, mask: Any, training: Any) -> Any:
        """The scores within a range that has room for masked ones below, in this batch or in a later one."""
        shown = tf.where(mask, scores, 0.0)
        keys = tf.cast(tf.shape(scores)[-1], tf.float32)
        room = tf.reduce_min(shown) - tf.math.log(2.0 * SOFTMAX_STEPS[self.activation_bits] * keys)
        values = tf.concat([tf.reshape(shown, [-1]), tf.stop_gradient(room)[None]], 0)
        return tf.reshape(self.ranges()["scores"](values, training)[:-1], tf.shape(scores))

    def _in_steps(self, weights: Any) -> Any:
        """The softmax in its fixed steps, as soon as the ranges are set; those of 16 bits are left to the runtime."""
        if self.activation_bits == 16:
            return weights
        rounded = fakequant.fake_quantize(weights, *SOFTMAX_RANGE)
        if in_mode("export"):
            return rounded
        if in_mode("calibrate"):
            return weights
        unset = fakequant.is_unset(*tf.unstack(tf.convert_to_tensor(self.ranges()["scores"].weight)))
        return tf.where(unset, weights, rounded)


@composite(kl.Softmax)
class QuantizedSoftmax(MaskedSoftmax):
    """A `Softmax` layer that is called with a mask, or runs over several axes.

    As Keras writes it, the file would clip the large negative number of a mask to the range of the scores, and masked
    scores would weigh as much as the lowest that is shown; several axes at once would be floats.

    Args:
        layer: a `Softmax`, over one axis or several.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.add_range("scores")

    @classmethod
    def is_needed(cls, layer: kl.Layer, graph: Graph | None) -> bool:
        has_mask = graph is not None and any(_has_mask(call) for call in graph.calls_of(layer))
        return has_mask or len(keras.tree.flatten(layer.axis)) > 1

    def call(self, inputs: Any, mask: Any = None, training: bool | None = None) -> Any:
        rank = len(inputs.shape)
        axes = [axis % rank for axis in keras.tree.flatten(self.layer.axis)]
        order = [*(axis for axis in range(rank) if axis not in axes), *axes]
        scores = tf.transpose(inputs, order)
        shown = None if mask is None else tf.transpose(_boolean(mask, rank), order)
        sizes = tf.shape(scores)
        if len(axes) > 1:
            scores, shown = (_joined(values, sizes, len(axes)) for values in (scores, shown))
        weights = self._weights(scores, shown, training)
        if shown is not None:
            weights = tf.where(shown, weights, 0.0)  # as Keras does: a row with all masked gives zeros
        weights = tf.reshape(weights, sizes) if len(axes) > 1 else weights
        return tf.cast(tf.transpose(weights, [order.index(axis) for axis in range(rank)]), self.layer.compute_dtype)


def _has_mask(call: Call) -> bool:
    args, kwargs = call.given
    return kwargs.get("mask", args[1] if len(args) > 1 else None) is not None


def _boolean(mask: Any, rank: int) -> Any:
    """The mask with as many axes as the scores, True where a score is shown."""
    mask = tf.convert_to_tensor(mask)
    mask = mask if mask.dtype.is_bool else mask > tf.cast(0.5, mask.dtype)
    return mask[(None,) * (rank - len(mask.shape))] if len(mask.shape) < rank else mask


def _joined(values: Any, sizes: Any, count: int) -> Any:
    """The last `count` axes made one; a mask has their whole sizes then."""
    if values is None:
        return None
    return tf.reshape(tf.broadcast_to(values, sizes), tf.concat([sizes[:-count], [-1]], 0))
