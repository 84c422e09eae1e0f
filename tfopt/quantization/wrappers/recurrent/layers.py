"""LSTM, GRU, SimpleRNN and Bidirectional in 8 bits: the loop over time around the steps of `cells.py`.

The cell state of an LSTM has 8 bits like all else, which costs most of the precision: spoken digits, 32 steps, leave a
signal-to-noise ratio of 17.5 dB in the last hidden state, 22.2 dB with a cell state that is not rounded, and 25.6 dB in
a GRU. Neither lost accuracy after training as integers (`benchmarks/results/qat_sequences.md`). For short sequences of
few features the file is larger than the float one, as each time step has its own operations in it.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers as kl

from tfopt.core.models.fake_quantized import in_mode
from tfopt.quantization import fakequant
from tfopt.quantization.composites import Composite, composite, composite_for
from tfopt.quantization.ranges import ActivationRange
from tfopt.quantization.wrappers.recurrent import cells


class Recurrence:
    """A recurrent Keras layer as the file computes it; `owner` has its ranges.

    Training and inference loop over time, for sequences of any length; the export writes one step after the other.
    """

    def __init__(self, owner: Composite, layer: kl.RNN, prefix: str = ""):
        layer.supports_jit = True  # its own call, which may be cuDNN's, is never run
        self.layer = layer
        self.cell = cells.cell_for(layer.cell)(owner, layer.cell, prefix)

    @staticmethod
    def float_reason(layer: kl.RNN) -> str:
        if layer.stateful:
            return "its states outlive a call and a .tflite keeps none; use stateful=False and pass `initial_state`"
        return cells.float_reason(layer.cell)

    def run(self, sequences: Any, initial_state: Any, mask: Any, training: Any, flip: bool = False) -> tuple:
        """`(output, states)`, float32; the output as the layer's `return_sequences` asks.

        Args:
            sequences: (batch, time, features).
            initial_state: None for zeros, or a tensor or list of tensors, (batch, units) each.
            mask: (batch, time), False where a step is to be skipped, or None.
            training: whether ranges follow the data and dropout is at work.
            flip: whether to turn the order of the outputs round.
        """
        sequences = tf.cast(sequences, tf.float32)
        states = self._initial(sequences, initial_state, training)
        projected = self.cell.project(sequences, training)
        steps = self._unrolled if in_mode("export") else self._looped
        outputs, last, states = steps(projected, states, mask, training, flip)
        return (outputs if self.layer.return_sequences else last), states

    def _initial(self, sequences: Any, initial_state: Any, training: Any) -> list:
        sizes = keras.tree.flatten(self.layer.cell.state_size)
        if initial_state is None and in_mode("export"):
            return [None] * len(sizes)
        if initial_state is None:
            return [tf.zeros([sequences.shape[0] or tf.shape(sequences)[0], size]) for size in sizes]
        names = ("hidden", "cell")[: len(sizes)]
        values = [tf.cast(state, tf.float32) for state in keras.tree.flatten(initial_state)]
        ranges = self.cell.ranges
        return [
            ranges[name](value, training) if name in ranges else value
            for name, value in zip(names, values, strict=True)
        ]

    def _stepper(self, batch: Any, training: Any) -> Any:
        """`step(projected, mask, output, states, rounding)` -> the next output and states."""
        kernels = self.cell.recurrent_kernels()
        dropout = self.cell.state_dropout(batch, training)
        names = ("hidden", "hidden", "cell")

        def step(projected: Any, mask: Any, output: Any, states: Any, rounding: Any) -> tuple:
            new = self.cell.step(projected, states, kernels, dropout, rounding)
            if mask is None:
                return new[0], new
            before = None if self.layer.zero_output_for_mask else output
            triples = zip(names, [new[0], *new], [before, *states], strict=False)
            output, *states = (self._select(mask, name, new, old) for name, new, old in triples)
            return output, states

        return step

    def _select(self, mask: Any, name: str, new: Any, old: Any) -> Any:
        """`new` where the mask is set, `old` elsewhere; None is zeros."""
        if old is not None:
            return tf.where(mask, new, old)
        if not in_mode("export"):
            return tf.where(mask, new, tf.zeros_like(new))
        # The converter merges all constants of zeros into one, and fails as it cannot have the scales of all.
        kept = new * fakequant.fake_quantize(tf.cast(mask, tf.float32), 0.0, 1.0)
        return self.cell.ranges[name](kept, False) if name in self.cell.ranges else kept

    def _unrolled(self, projected: Any, states: Any, mask: Any, training: Any, flip: Any) -> tuple:
        step = self._stepper(1, training)
        times = range(projected.shape[1])
        parts = tf.unstack(projected, axis=1)
        masks = [None if mask is None else mask[:, time : time + 1] for time in times]  # LiteRT splits no booleans
        output, outputs = None, []
        for time in reversed(times) if self.layer.go_backwards else times:
            output, states = step(parts[time], masks[time], output, states, lambda n, x: self.cell.ranges[n](x, False))
            outputs.append(output)
        return tf.stack(outputs[::-1] if flip else outputs, axis=1), output, states

    def _looped(self, projected: Any, states: Any, mask: Any, training: Any, flip: Any) -> tuple:
        backwards = self.layer.go_backwards
        parts = _time_first(projected, backwards)
        masks = None if mask is None else _time_first(tf.cast(mask, tf.bool)[:, :, None], backwards)
        length = parts.shape[0] or tf.shape(parts)[0]
        step = self._stepper(tf.shape(projected)[0], training)
        observed = self._observed(training)
        arrays = {name: tf.TensorArray(tf.float32, length) for name in ("", *observed)}

        def body(time: Any, output: Any, states: Any, arrays: Any) -> tuple:
            tape = _Tape(self.cell.ranges)
            output, states = step(parts[time], None if masks is None else masks[time], output, states, tape)
            values = {"": output, **tape.values}
            return time + 1, output, states, {name: array.write(time, values[name]) for name, array in arrays.items()}

        start = (tf.constant(0), tf.zeros_like(states[0]), states, arrays)
        _, output, states, arrays = tf.while_loop(
            lambda time, *rest: time < length, body, start, maximum_iterations=length
        )
        for name in observed:
            self.cell.ranges[name](arrays[name].stack(), training)
        outputs = arrays[""].stack()
        outputs = tf.transpose(tf.reverse(outputs, [0]) if flip else outputs, [1, 0, 2])
        return tf.ensure_shape(outputs, [*projected.shape[:2], states[0].shape[-1]]), output, states

    def _observed(self, training: Any) -> list[str]:
        """The ranges that follow the data of this call; "input" does so outside the loop."""
        if not training and not in_mode("calibrate"):
            return []
        return [name for name in self.cell.ranges if name != "input"]


class _Tape:
    """Rounds the inner tensors of a step with the ranges as they are, and keeps what they were.

    A range moves once a call, with the values of all steps, so that it does not depend on the length of the sequences.
    """

    def __init__(self, ranges: dict[str, ActivationRange]):
        self.ranges = ranges
        self.values: dict[str, tf.Tensor] = {}

    def __call__(self, name: str, values: Any) -> Any:
        self.values[name] = values
        return values if in_mode("calibrate") else self.ranges[name](values, False)


def _time_first(values: Any, backwards: bool) -> Any:
    values = tf.transpose(values, [1, 0, 2])
    return tf.reverse(values, [0]) if backwards else values


class _RecurrentComposite(Composite):
    """What the wrappers of recurrent layers share: their signature is that of Keras' recurrent layers."""

    def compute_output_spec(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(sequences)

    def _cast(self, values: Any) -> Any:
        return tf.cast(values, self.layer.compute_dtype)


@composite(kl.LSTM, kl.GRU, kl.SimpleRNN, kl.RNN)
class QuantizedRNN(_RecurrentComposite):
    """LSTM, GRU, SimpleRNN, or RNN around one of their cells, with integer kernels, gates and states.

    Ranges are shared by all time steps. Dropout uses one mask for all gates.

    Args:
        layer: the Keras layer.

    Input: (batch, time, features). Output: as of the Keras layer.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.recurrence = Recurrence(self, layer)

    @classmethod
    def float_reason(cls, layer: keras.layers.Layer) -> str:
        return Recurrence.float_reason(layer)

    def call(self, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
        output, states = self.recurrence.run(sequences, initial_state, mask, training)
        if self.layer.return_state:
            return self._cast(output), *map(self._cast, states)
        return self._cast(output)


@composite(kl.Bidirectional)
class QuantizedBidirectional(_RecurrentComposite):
    """Bidirectional around the layers that `QuantizedRNN` takes.

    Args:
        layer: the Keras layer.

    Input: (batch, time, features). Output: as of the Keras layer.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.forward_recurrence = Recurrence(self, layer.forward_layer, "forward_")
        self.backward_recurrence = Recurrence(self, layer.backward_layer, "backward_")
        if layer.merge_mode == "ave":
            self.sum_range = self.add_range("sum")
        if layer.merge_mode is not None:
            self.output_range = self.add_range("output")

    @classmethod
    def float_reason(cls, layer: keras.layers.Layer) -> str:
        sides = [layer.forward_layer, layer.backward_layer]
        if any(composite_for(side) is not QuantizedRNN for side in sides):
            return "it runs as integers around LSTM, GRU, SimpleRNN, or RNN of one of their cells"
        return next(filter(None, map(Recurrence.float_reason, sides)), "")

    def call(self, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = False) -> Any:
        half = 0 if initial_state is None else len(initial_state) // 2
        first, second = (initial_state[:half], initial_state[half:]) if half else (None, None)
        there, states = self.forward_recurrence.run(sequences, first, mask, training)
        back, more = self.backward_recurrence.run(sequences, second, mask, training, self.layer.return_sequences)
        output = self._merged(there, back, training)
        if self.layer.return_state:
            merged = output if isinstance(output, tuple) else (output,)
            return *merged, *map(self._cast, [*states, *more])
        return output

    def _merged(self, there: Any, back: Any, training: Any) -> Any:
        how = self.layer.merge_mode
        if how is None:
            return self._cast(there), self._cast(back)
        if how == "concat":
            merged = tf.concat([there, back], axis=-1)
        elif how == "mul":
            merged = there * back
        elif how == "sum":
            merged = there + back
        else:
            merged = self.sum_range(there + back, training) * 0.5
        return self._cast(self.output_range(merged, training))
