"""Folds the constants that stand for dropped features into the biases of the layers that read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl

from tfopt.core.channels.graph import ChannelGraph
from tfopt.core.data.gathering import counterparts
from tfopt.core.errors import UnsupportedModelError, first_line
from tfopt.core.keras_internals import sublayers
from tfopt.core.layers.channels import Slot
from tfopt.core.layers.registry import channel_axis
from tfopt.core.models.graph import Call, Graph, compute
from tfopt.core.models.rewrite import in_float32

# Layers whose response to a constant input is one constant, unless they pad it, and whose bias is added to that.
_FOLDING = (kl.Dense, kl.EinsumDense, kl.Conv1D, kl.Conv2D, kl.Conv3D, kl.LSTMCell, kl.GRUCell, kl.SimpleRNNCell)
_UNKNOWN_SIZE = 64  # stands for a size that the model leaves open
_FIX = "Pass `fill=` values that arrive there as 0: those of a Normalization layer are its means."

Shift = tuple[keras.Variable, np.ndarray]


def bias_shifts(
    channels: ChannelGraph, removed: np.ndarray, constants: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> list[Shift]:
    """What has to be added to which biases when channels of input features are removed.

    Args:
        channels: of the model, with the features as channels.
        removed: channels of features.
        constants: name of an input -> indices of the features that are removed, and the values they count as.

    Raises:
        UnsupportedModelError: a constant other than 0 reaches a layer that cannot take it in.
    """
    readers = [s for s in channels.slots if s.role == "in" and not s.zero and np.isin(s.labels, removed).any()]
    if not readers:
        return []
    arrived = _arrived(channels.graph, readers, constants)
    shifts = []
    for slot in readers:
        op = next(call.op for call in _calls(channels.graph) if _holds(call.op, slot.variable))
        gone = np.isin(slot.labels, removed)
        values = _constants(slot, gone, [np.moveaxis(a, _axis(op, slot), -1) for a in arrived[id(slot.variable)]])
        if values.any():
            shifts.append(_shift(op, slot, gone, values))
    return shifts


def _arrived(graph: Graph, readers: list[Slot], constants: Mapping) -> dict[int, list[np.ndarray]]:
    """What each reader's inputs are, by the id of its kernel, where the other features are random."""
    working = in_float32(graph)
    kernels = counterparts(graph.model, working.model, [slot.variable for slot in readers])
    wanted = defaultdict(list)
    for slot, kernel in zip(readers, kernels, strict=True):
        for call in _calls(working):
            if _holds(call.op, kernel):
                for tensor in call.inputs:
                    wanted[id(tensor)].append(id(slot.variable))
    found = defaultdict(list)

    def visit(values: dict[int, Any]) -> None:
        for tensor in wanted.keys() & values.keys():
            for kernel in wanted[tensor]:
                found[kernel].append(keras.ops.convert_to_numpy(values[tensor]).astype("float64"))

    try:
        for seed in range(2):
            compute(working, _probe(working, constants, seed), visit)
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise UnsupportedModelError(
            "The model has to run where the sizes that it leaves open are 64.",
            received=first_line(error),
            fix="Give `keras.Input` a full shape.",
        ) from error
    return found


def _probe(graph: Graph, constants: Mapping, seed: int) -> list[np.ndarray]:
    """An array for each input: random values beside the constants, so that what depends on them shows."""
    generator = np.random.default_rng(seed)
    arrays = []
    for tensor in graph.inputs:
        shape = (tensor.shape[0] or 1, *(size or _UNKNOWN_SIZE for size in tensor.shape[1:]))
        floating = keras.backend.is_float_dtype(tensor.dtype)
        array = generator.uniform(size=shape) if floating else np.zeros(shape)
        name = tensor._keras_history.operation.name
        if name in constants:
            indices, values = constants[name]
            array[..., indices] = values
        arrays.append(array.astype(tensor.dtype if floating else "int64"))
    return arrays


def _calls(graph: Graph) -> Iterator[Call]:
    """The calls of layers and ops, those of nested models instead of their own."""
    for call in graph.calls:
        if isinstance(call.op, keras.Model):
            yield from _calls(graph.inner(call.op))
        else:
            yield call


def _holds(op: Any, variable: keras.Variable) -> bool:
    return isinstance(op, kl.Layer) and any(weight is variable for weight in op.weights)


def _axis(op: Any, slot: Slot) -> int:
    """The axis of the op's input that the slot's channels are along."""
    if isinstance(op, kl.EinsumDense):
        inputs, kernel = op.equation.replace(" ", "").split("->")[0].split(",")
        return inputs.index(kernel[slot.axis])
    return channel_axis(op.layer if isinstance(op, kl.TimeDistributed) else op)


def _constants(slot: Slot, gone: np.ndarray, inputs: list[np.ndarray]) -> np.ndarray:
    """The one value that each removed channel has in all samples, at all positions, in all calls of the layer."""
    if any(array.shape[-1] != len(gone) for array in inputs):
        raise UnsupportedModelError(
            "A layer that reads dropped features reads one tensor.", received=f"'{slot.path}' with several", fix=_FIX
        )
    values = np.concatenate([array[..., gone].reshape(-1, int(gone.sum())) for array in inputs])
    if (np.ptp(values, axis=0) > 1e-5 * np.maximum(1, np.abs(values[0]))).any():
        raise UnsupportedModelError(
            "A dropped feature arrives as one constant at the layer that reads it.",
            received=f"different values for samples, positions or calls at '{slot.path}'",
            fix=_FIX,
        )
    return values[0]


def _shift(op: kl.Layer, slot: Slot, gone: np.ndarray, values: np.ndarray) -> Shift:
    """The bias of the layer, and what its kernel makes of the constants."""
    owner = next((layer for layer in sublayers(op) if getattr(layer, "kernel", None) is slot.variable), None)
    if not isinstance(owner, _FOLDING) or getattr(owner, "groups", 1) > 1 or _pads(owner):
        raise UnsupportedModelError(
            "A dropped feature that counts as a constant other than 0 is taken into a bias: in Dense, recurrent layers "
            "and convolutions without padding or groups.",
            received=f"'{slot.path}' ({type(op).__name__})",
            fix=_FIX,
        )
    if owner.bias is None:
        raise UnsupportedModelError(
            "The layer that reads a dropped feature needs a bias to take in the constant that it counts as.",
            received=f"'{slot.path}' with use_bias=False",
            fix=f"Build it with `use_bias=True`. {_FIX}",
        )
    kernel = keras.ops.convert_to_numpy(slot.variable).astype("float64")
    response = np.tensordot(values, kernel.compress(gone, slot.axis), (0, slot.axis))
    if hasattr(owner, "kernel_size"):
        response = response.reshape(-1, response.shape[-1]).sum(0)
    shift = np.zeros(owner.bias.shape)
    if isinstance(owner, kl.GRUCell) and shift.ndim == 2:  # the second row is added behind the recurrent kernel
        shift[0] = response
    else:
        shift += response
    return owner.bias, shift


def _pads(layer: kl.Layer) -> bool:
    return getattr(layer, "padding", "valid") != "valid" and any(size > 1 for size in layer.kernel_size)
