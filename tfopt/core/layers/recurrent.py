"""Recurrent layers and their cells. Kernels hold one block of columns a gate."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from keras import layers as kl

from tfopt.core.layers import macs
from tfopt.core.layers.channels import NONE, Channels, Context, Unsupported
from tfopt.core.layers.registry import MacsRule, Output, Record, Shape, enter, rule_of

# Cells.


def _cell_macs(gates: int) -> MacsRule:
    def count(cell: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
        return gates * cell.units * (macs.size(inputs[0][-1:]) + cell.units)

    return count


def _stacked_macs(stack: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    total, features = 0, inputs[0]
    for cell in stack.cells:
        result = (features[0], getattr(cell, "output_size", None) or cell.state_size)
        total += macs.layer_macs(cell, [features], [result])
        features = result
    return total


_CELL = Record(prunable=("kernel", "recurrent_kernel"))
enter(replace(_CELL, macs=_cell_macs(gates=1)), kl.SimpleRNNCell)
enter(replace(_CELL, macs=_cell_macs(gates=3)), kl.GRUCell)
enter(replace(_CELL, macs=_cell_macs(gates=4)), kl.LSTMCell)
enter(Record(macs=_stacked_macs), kl.StackedRNNCells)


# RNN, and LSTM, GRU and SimpleRNN, which are an RNN of one cell each.


def _recurrent_channels(context: Context, x: Channels, initial_state: Any = None, **__: Any) -> list[Channels]:
    if initial_state is not None:
        raise Unsupported("a recurrent layer with an initial state")
    layer, cell = context.op, context.op.cell
    units = _units(context, cell, x)
    context.graph.size(layer, ("units",), lambda count: count(units))
    return _sequences_and_states(context, units)


def _units(context: Context, cell: Any, x: Channels, units: np.ndarray | None = None) -> np.ndarray:
    """The units of a cell; kernels hold one block of columns a gate."""
    gates = cell.kernel.shape[-1] // cell.units
    if units is None:
        known = context.graph.labels_of(cell.recurrent_kernel, 0)
        units = context.graph.fresh(cell.units) if known is None else known
    columns = np.tile(units, gates)
    context.read(cell.kernel, 0, x, context.along(x))
    context.graph.slot(context.path, cell.kernel, 1, columns, "each")
    context.graph.created(context.path, cell.recurrent_kernel, 0, units)
    context.graph.slot(context.path, cell.recurrent_kernel, 1, columns, "each")
    context.each(cell.bias, columns)
    return units


def _sequences_and_states(context: Context, units: np.ndarray) -> list[Channels]:
    """Zero stays: with zero weights each gate is closed on a zero candidate, as long as states start at zero."""
    return [Channels((*[NONE] * (len(shape) - 1), units), shape) for shape in context.shapes]


def _rnn_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    batch, steps, *features = inputs[0]
    return macs.size([steps]) * macs.layer_macs(layer.cell, [(batch, *features)], outputs)


enter(Record(macs=_rnn_macs), kl.RNN)
enter(Record(channels=_recurrent_channels, macs=_rnn_macs), kl.LSTM, kl.GRU, kl.SimpleRNN)


# Bidirectional.


def _bidirectional_channels(context: Context, x: Channels, initial_state: Any = None, **__: Any) -> Channels:
    layer = context.op
    inner = layer.forward_layer
    if initial_state is not None or len(context.shapes) > 1 or rule_of(inner) is not _recurrent_channels:
        raise Unsupported("Bidirectional around anything but LSTM, GRU or SimpleRNN, or with states")
    units = _units(context, inner.cell, x)
    _units(context, layer.backward_layer.cell, x, units)
    context.graph.size(layer, ("layer", "config", "units"), lambda count: count(units))
    if "backward_layer" in layer.get_config():
        context.graph.size(layer, ("backward_layer", "config", "units"), lambda count: count(units))
    labels = np.tile(units, 2) if layer.merge_mode == "concat" else units
    return context.output(labels)


def _bidirectional_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    return sum(macs.layer_macs(child, inputs, outputs) for child in (layer.forward_layer, layer.backward_layer))


enter(Record(channels=_bidirectional_channels, macs=_bidirectional_macs), kl.Bidirectional)


# ConvLSTM1D, ConvLSTM2D, ConvLSTM3D.


def _conv_lstm_macs(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> int:
    frames = outputs[0][2:] if layer.return_sequences else outputs[0][1:]
    positions = macs.size(frames[1:] if layer.data_format == "channels_first" else frames[:-1])
    channels = macs.channels((None, *inputs[0][2:]), layer.data_format)
    products = prod(layer.kernel_size) * layer.filters * (channels + layer.filters)
    return macs.size(inputs[0][1:2]) * positions * 4 * products


enter(
    Record(
        output=Output.FLOAT,
        reason="its convolutions run inside a loop; TimeDistributed(Conv2D) and an LSTM behind it run as integers",
        macs=_conv_lstm_macs,
    ),
    *(kl.ConvLSTM1D, kl.ConvLSTM2D, kl.ConvLSTM3D),
)
