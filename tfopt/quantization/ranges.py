"""The range of one activation tensor: follows the data or is trained, and rounds to 8 bits."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfopt.core.models.fake_quantized import FakeQuantized, in_mode
from tfopt.quantization import fakequant, masking
from tfopt.quantization.histogram import Histogram


class RangeOwner(FakeQuantized, keras.layers.Layer):
    """What the layers with activation ranges have in common: how these ranges are trained.

    Args:
        freeze_ranges_after: after so many calls in training the ranges stay as they are; None never.
        learn_ranges: whether the optimizer trains the ranges, in place of a moving average.
        activation_bits: that the ranges round to, 8 or 16.
        masking: of an output that softmax reads, the axes that it runs over, () of a term of it: what hides scores,
            see `masking.py`, does not stretch the range of the output. None for any other.
    """

    def __init__(
        self,
        *args: Any,
        freeze_ranges_after: int | None = None,
        learn_ranges: bool = False,
        activation_bits: int = 8,
        masking: tuple[int, ...] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.activation_bits = activation_bits
        self.masking = None if masking is None else tuple(masking)
        self.with_training(freeze_ranges_after, learn_ranges)

    def with_training(self, freeze_ranges_after: int | None = None, learn_ranges: bool = False) -> RangeOwner:
        """Sets how the ranges are trained, before the layer is built."""
        self.freeze_ranges_after, self.learn_ranges = freeze_ranges_after, learn_ranges
        return self

    def get_config(self) -> dict[str, Any]:
        reads = {} if self.masking is None else {"masking": list(self.masking)}
        return {
            **super().get_config(),
            **reads,
            "freeze_ranges_after": self.freeze_ranges_after,
            "learn_ranges": self.learn_ranges,
            "activation_bits": self.activation_bits,
        }


class ActivationRange:
    """Range of one tensor, a weight `[low, high]` of the layer that owns it: rounds the tensor to 8 bits.

    To 16 bits, where the owner says so, in the symmetric range that holds both bounds. Both bounds are 0 until data was
    seen; values then pass unchanged.
    """

    def __init__(self, owner: RangeOwner, name: str, observer: str = "moving_average"):
        self.owner, self.name, self.observer = owner, name, observer
        self.masking: tuple[int, ...] | None = None  # as of the owner, for its output
        self.histogram: Histogram | None = None  # takes the values of a calibration, where `calibrate` puts one

    def build(self) -> None:
        # What arrives at the model's inputs is not to be clipped, so their range is the widest seen, never learned.
        self.learned = self.owner.learn_ranges and self.observer != "all_values"
        self.follow = {
            "all_values": fakequant.widest_range,
            "moving_average": fakequant.first_range if self.learned else fakequant.moving_range,
        }[self.observer]
        self.weight = self.owner.add_weight(
            shape=(2,),
            initializer=_unset,
            trainable=self.learned,
            constraint=HoldsZero() if self.learned else None,
            name=self.name,
            aggregation="mean" if self.learned else "only_first_replica",  # as of other trained weights
        )
        setattr(self.owner, f"{self.name}_weight", self.weight)  # `tf.train.Checkpoint` saves what is an attribute
        self.frozen = None
        if self.owner.freeze_ranges_after is not None:
            self.frozen = BatchCount(self.owner, f"{self.name}_batches", self.owner.freeze_ranges_after)

    def __call__(self, inputs: Any, training: Any) -> Any:
        values = tf.cast(inputs, tf.float32)
        if in_mode("export"):
            return self.rounded(values)
        low, high = tf.unstack(tf.convert_to_tensor(self.weight))
        if in_mode("calibrate"):
            if self.histogram is None:
                self._assign(*fakequant.widest_range(low, high, *fakequant.observed_range(self._shown(values))))
            else:
                tf.numpy_function(self.histogram.add, [self._shown(values)], [])
            return inputs
        if training:  # of a frozen layer too: its weights stay, what arrives at it has to be seen all the same
            low, high = self._moved(low, high, values)
            return tf.cast(self._rounded(values, low, high), inputs.dtype)
        rounded = self._rounded(values, low, high)
        return tf.cast(tf.where(fakequant.is_unset(low, high), values, rounded), inputs.dtype)

    def rounded(self, values: Any) -> Any:
        """The values in the range as it is now."""
        return self._rounded(tf.cast(values, tf.float32), *self.bounds())

    def _rounded(self, values: Any, low: Any, high: Any) -> Any:
        if self.learned and not in_mode("export"):
            return fakequant.fake_quantize_learned(values, low, high)
        if self.bits == 16:
            low, high = fakequant.symmetric_range(low, high)
        return fakequant.fake_quantize(values, low, high, narrow=self.bits == 16, bits=self.bits)

    def _moved(self, low: Any, high: Any, values: Any) -> tuple:
        """The range for this batch of a training, stored where it is one to keep."""
        moved_low, moved_high = self.follow(low, high, *fakequant.observed_range(self._shown(values)))
        if self.frozen is not None:
            stays = tf.logical_and(self.frozen.reached(), tf.logical_not(fakequant.is_unset(low, high)))
            moved_low, moved_high = tf.where(stays, low, moved_low), tf.where(stays, high, moved_high)
        # Loss scaling skips a batch that overflows; the range has to forget it too.
        finite = tf.math.is_finite(moved_high - moved_low)
        self._assign(tf.where(finite, moved_low, low), tf.where(finite, moved_high, high))
        return moved_low, moved_high

    def _shown(self, values: Any) -> Any:
        return values if self.masking is None else masking.shown(values, self.masking, self.bits)

    def _assign(self, low: Any, high: Any) -> None:
        self.weight.assign(tf.stop_gradient(tf.stack([low, high])))

    @property
    def bits(self) -> int:
        return self.owner.activation_bits

    def bounds(self) -> tuple[float, float]:
        low, high = keras.ops.convert_to_numpy(self.weight)
        return float(low), float(high)

    def set(self, low: float, high: float) -> None:
        self.weight.assign([low, high])

    def reset(self) -> None:
        self.set(0.0, 0.0)


class BatchCount:
    """Counts the calls of a layer in training, in a weight of the layer: a resumed training goes on counting.

    A layer does not see its optimizer, so that with accumulated gradients each batch counts, not each update.
    """

    def __init__(self, owner: keras.layers.Layer, name: str, limit: int):
        self.limit = limit
        self.weight = owner.add_weight(
            shape=(), initializer="zeros", dtype="int64", trainable=False, name=name, aggregation="only_first_replica"
        )
        setattr(owner, f"{name}_weight", self.weight)

    def reached(self) -> Any:
        """Whether as many calls were counted before this one; counts this one."""
        count = tf.convert_to_tensor(self.weight)
        self.weight.assign(count + 1)
        return count >= self.limit


class HoldsZero(keras.constraints.Constraint):
    """Keeps zero within a learned range `[low, high]`."""

    def __call__(self, value: Any) -> Any:
        low, high = tf.unstack(tf.convert_to_tensor(value))
        return tf.stack([tf.minimum(low, 0.0), tf.maximum(high, 0.0)])


def _unset(shape: Any, dtype: Any) -> Any:
    return tf.constant((0.0, 0.0), dtype)
