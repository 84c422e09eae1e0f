"""The range of one activation tensor: follows the data, and rounds to 8 bits."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfopt.core.modes import in_mode
from tfopt.quantization import fakequant
from tfopt.quantization.histogram import Histogram


class ActivationRange:
    """Range of one tensor, a weight `[low, high]` of the layer that owns it: follows the data and rounds to 8 bits.

    Both bounds are 0 until data was seen; values then pass unchanged.
    """

    def __init__(self, owner: keras.layers.Layer, name: str, observer: str = "moving_average"):
        self.owner, self.name = owner, name
        self.follow = fakequant.widest_range if observer == "all_values" else fakequant.moving_range
        self.histogram: Histogram | None = None  # takes the values of a calibration, where `calibrate` puts one

    def build(self):
        self.weight = self.owner.add_weight(
            shape=(2,), initializer=_unset, trainable=False, name=self.name, aggregation="only_first_replica"
        )

    def __call__(self, inputs, training):
        values = tf.cast(inputs, tf.float32)
        if in_mode("export"):
            return fakequant.fake_quantize(values, *(tf.constant(bound) for bound in self.bounds()))
        low, high = tf.unstack(tf.convert_to_tensor(self.weight))
        if in_mode("calibrate"):
            if self.histogram is None:
                self._move(low, high, values, fakequant.widest_range)
            else:
                tf.numpy_function(self.histogram.add, [values], [])
            return inputs
        if training and self.owner.trainable:
            low, high = self._move(low, high, values, self.follow)
            return tf.cast(fakequant.fake_quantize(values, low, high), inputs.dtype)
        rounded = fakequant.fake_quantize(values, low, high)
        return tf.cast(tf.where(fakequant.is_unset(low, high), values, rounded), inputs.dtype)

    def _move(self, low, high, values, follow):
        low, high = follow(low, high, *fakequant.observed_range(values))
        self.weight.assign(tf.stack([low, high]))
        return low, high

    def bounds(self) -> tuple[float, float]:
        low, high = keras.ops.convert_to_numpy(self.weight)
        return float(low), float(high)

    def set(self, low: float, high: float) -> None:
        self.weight.assign([low, high])

    def reset(self) -> None:
        self.set(0.0, 0.0)


def _unset(shape, dtype):
    return tf.constant((0.0, 0.0), dtype)
