"""One time step of each recurrent cell in 8 bits: kernels rounded, a range at each inner tensor.

A file runs the same operations: the inputs of all steps through one matrix product, then for each step a matrix product
with the state, additions, multiplications, sigmoid and tanh, all of them integer operations of LiteRT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import activations
from keras import layers as kl

from tfopt.core.layers.activations import activation_kind, spelled
from tfopt.core.layers.registry import known_class
from tfopt.core.models.fake_quantized import in_mode
from tfopt.quantization import fakequant
from tfopt.quantization.composites import Composite

Rounding = Callable[[str, tf.Tensor], tf.Tensor]  # (name of a range, values) -> rounded values

# What LiteRT gives these operations as output: 256 steps of 1/256 from 0 and of 1/128 from -1.
FIXED_RANGES: dict[Callable | None, tuple[float, float]] = {
    activations.sigmoid: (0.0, 255 / 256),
    activations.tanh: (-1.0, 127 / 128),
}
_RANGED = (activations.linear, activations.relu, activations.relu6)


class Cell:
    """A recurrent cell as the file computes it; `owner` has its ranges, the Keras cell its weights.

    Args:
        owner: the wrapper layer.
        cell: the Keras cell inside it.
        prefix: before the names of the ranges.
    """

    names: tuple[str, ...] = ()  # of the ranges; "input" is that of the projected inputs of all steps

    def __init__(self, owner: Composite, cell: keras.layers.Layer, prefix: str = ""):
        self.owner, self.cell = owner, cell
        names = ["input", *self.names, *(self.activated if _known(cell.activation) in _RANGED else ())]
        self.ranges = {name: owner.add_range(prefix + name) for name in names}

    activated: tuple[str, ...] = ()  # ranges behind the activation function, where the runtime does not fix them

    def project(self, sequences: Any, training: Any) -> Any:
        """(batch, time, features) -> (batch, time, gates * units): what each step adds to its state's product."""
        shape = tf.shape(sequences)
        if training and self.cell.dropout:
            sequences *= self._dropout(tf.ones_like(sequences[:, :1]), self.cell.dropout)
        kernel = self.owner.rounded(self.cell.kernel)
        rows = _with_bias(tf.matmul(tf.reshape(sequences, [-1, kernel.shape[0]]), kernel), self.input_bias())
        rows = self.ranges["input"](rows, training)
        return tf.reshape(rows, [shape[0], sequences.shape[1] or shape[1], kernel.shape[1]])

    def input_bias(self) -> Any:
        return self.cell.bias if self.cell.use_bias else None

    def recurrent_kernels(self) -> list:
        """Rounded, to multiply the state with in each step."""
        return [self.owner.rounded(self.cell.recurrent_kernel)]

    def state_dropout(self, batch: Any, training: Any) -> Any:
        """What the state is multiplied with in all steps of one training batch, None without such dropout."""
        rate = self.cell.recurrent_dropout
        return self._dropout(tf.ones([batch, self.cell.units]), rate) if training and rate else None

    def _dropout(self, ones: Any, rate: float) -> Any:
        return keras.random.dropout(ones, rate, seed=self.cell.seed_generator)

    def step(self, projected: Any, states: list, kernels: list, dropout: Any, rounding: Rounding) -> list:
        """The states after one step, the output first.

        What is zero in the first step is left out rather than computed: the converter would fold such constants, and
        leave operations in float around them.

        Args:
            projected: this step's part of `project`, (batch, gates * units).
            states: from the step before, (batch, units) each; None before the first one, for zeros.
            kernels: `recurrent_kernels()`.
            dropout: `state_dropout(...)`.
            rounding: to be called once for each of `names`.
        """
        raise NotImplementedError

    def product(self, state: Any, kernel: Any, dropout: Any, rounding: Rounding, bias: Any = None) -> Any:
        """The state times a recurrent kernel; None where both state and bias are zero."""
        if state is None:
            return None if bias is None else rounding("recurrent", tf.convert_to_tensor(bias)[None])
        return rounding("recurrent", _with_bias(tf.matmul(_dropped(state, dropout), kernel), bias))

    def mixed(self, name: str, state: Any, kept: Any, added: Any, rounding: Rounding) -> Any:
        """`kept * state + added` with the range of `name`; None is a state of zeros."""
        return rounding(name, added if state is None else rounding("kept", kept * state) + rounding("added", added))

    def activate(self, values: Any, rounding: Rounding, name: str = "") -> Any:
        """The cell's activation function, with the range the runtime fixes or else that of `name`."""
        function = self.cell.activation
        if _known(function) in FIXED_RANGES:
            return _fixed(function, values)
        return rounding(name, function(values)) if name in self.ranges else function(values)


class LSTM(Cell):
    names = ("recurrent", "gates", "kept", "added", "cell", "hidden")
    activated = ("candidate", "cell_activation")

    def step(self, projected: Any, states: Any, kernels: Any, dropout: Any, rounding: Any) -> list:
        hidden, cell = states
        product = self.product(hidden, kernels[0], dropout, rounding)
        gates = projected if product is None else rounding("gates", projected + product)
        entered, kept, candidate, shown = _split(gates, 4, hidden)
        entered, kept, shown = (_fixed(self.cell.recurrent_activation, gate) for gate in (entered, kept, shown))
        candidate = self.activate(candidate, rounding, "candidate")
        cell = self.mixed("cell", cell, kept, entered * candidate, rounding)
        hidden = rounding("hidden", shown * self.activate(cell, rounding, "cell_activation"))
        return [hidden, cell]


class GRU(Cell):
    activated = ("candidate_activation",)

    def __init__(self, owner: Any, cell: Any, prefix: Any = ""):
        self.names = ("recurrent", "gates", "reset", "candidate", "kept", "complement", "added", "hidden")
        if not cell.reset_after:
            self.names += ("recurrent_candidate",)
        super().__init__(owner, cell, prefix)

    def input_bias(self) -> Any:
        bias = super().input_bias()
        return bias[0] if bias is not None and self.cell.reset_after else bias

    def recurrent_kernels(self) -> Any:
        if self.cell.reset_after:
            return super().recurrent_kernels()
        # Two matrix products in the file: each has a range of its own there.
        return self.owner.rounded_parts(self.cell.recurrent_kernel, 2 * self.cell.units)

    def step(self, projected: Any, states: Any, kernels: Any, dropout: Any, rounding: Any) -> list:
        (hidden,) = states
        bias = self.cell.bias[1] if self.cell.use_bias and self.cell.reset_after else None
        product = self.product(hidden, kernels[0], dropout, rounding, bias)
        gates, candidate = self._gates_and_candidate(projected)
        recurrent_candidate = None
        if product is not None and self.cell.reset_after:
            product, recurrent_candidate = self._gates_and_candidate(product)
        gates = gates if product is None else rounding("gates", gates + product)
        update, reset = (_fixed(self.cell.recurrent_activation, gate) for gate in _split(gates, 2, product))
        if recurrent_candidate is not None:
            recurrent_candidate = rounding("reset", reset * recurrent_candidate)
        elif hidden is not None:
            product = tf.matmul(rounding("reset", reset * _dropped(hidden, dropout)), kernels[1])
            recurrent_candidate = rounding("recurrent_candidate", product)
        if recurrent_candidate is not None:
            candidate = rounding("candidate", candidate + recurrent_candidate)
        candidate = self.activate(candidate, rounding, "candidate_activation")
        added = rounding("complement", 1.0 - update) * candidate
        return [self.mixed("hidden", hidden, update, added, rounding)]

    def _gates_and_candidate(self, values: Any) -> Any:
        return tf.split(values, [2 * self.cell.units, self.cell.units], axis=-1)


class SimpleRNN(Cell):
    names = ("recurrent", "sum")
    activated = ("hidden",)

    def step(self, projected: Any, states: Any, kernels: Any, dropout: Any, rounding: Any) -> list:
        product = self.product(states[0], kernels[0], dropout, rounding)
        total = projected if product is None else rounding("sum", projected + product)
        return [self.activate(total, rounding, "hidden")]


_CELLS: dict[type | None, type[Cell]] = {kl.LSTMCell: LSTM, kl.GRUCell: GRU, kl.SimpleRNNCell: SimpleRNN}


def cell_for(cell: keras.layers.Layer) -> type[Cell]:
    """The class that computes the steps of a Keras cell, one for which `float_reason` has none."""
    return _CELLS[known_class(type(cell))]


def float_reason(cell: Any) -> str:
    """Why a Keras cell cannot run as integers, empty if it can."""
    if isinstance(cell, kl.StackedRNNCells):
        return "several cells in one layer; use one LSTM, GRU or SimpleRNN layer for each"
    if known_class(type(cell)) not in _CELLS:
        return f"the cell {type(cell).__name__} is unknown; LSTMCell, GRUCell and SimpleRNNCell run as integers"
    gate = getattr(cell, "recurrent_activation", activations.sigmoid)
    if _known(gate) not in FIXED_RANGES:
        return f"LiteRT has no integer '{spelled(gate)}'; use recurrent_activation='sigmoid'"
    if _known(cell.activation) not in (*FIXED_RANGES, *_RANGED):
        return f"LiteRT has no integer '{spelled(cell.activation)}'; use activation='tanh', 'sigmoid' or 'relu'"
    return ""


def _fixed(function: Any, values: Any) -> Any:
    """Sigmoid or tanh, rounded as the runtime does; there the output's range is fixed."""
    activated = function(values)
    if in_mode("export") or in_mode("calibrate"):
        return activated
    return fakequant.fake_quantize(activated, *FIXED_RANGES[_known(function)])


def _split(values: Any, count: int, state: Any) -> list:
    """Equal parts; where there is no state yet not all of them are read, and LiteRT splits in float then."""
    if state is not None:
        return tf.split(values, count, axis=-1)
    width = values.shape[-1] // count
    return [values[..., start : start + width] for start in range(0, count * width, width)]


def _known(function: Callable) -> Callable | None:
    """The function of `keras.activations` that a function is; None for a user's own."""
    kind = activation_kind(function)
    return kind.function if kind is not None else None


def _with_bias(values: Any, bias: Any) -> Any:
    return values if bias is None else values + tf.convert_to_tensor(bias)


def _dropped(state: Any, dropout: Any) -> Any:
    return state if dropout is None else state * dropout
