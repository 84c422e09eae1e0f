"""Float kernels of a .tflite file that hold few values a channel, as packed integers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfopt.deploy.flatbuffer.naming import drop_unused_buffers, packed
from tfopt.deploy.flatbuffer.read import schema

STORAGE = {2: "INT2", 4: "INT4", 8: "INT8"}  # bits of an element -> type of the tensor
OVERHEAD_BYTES = 256  # about what another tensor and its operation take in the file
_OFF_GRID = 1e-3  # of a step: far above the rounding of floats, far below what a kernel off the grid has


def pack_kernels(content: bytes, bits: Collection[int]) -> bytes:
    """The file with each float constant that lies on a grid of n-bit integers stored as those, where that is smaller.

    A DEQUANTIZE operation, which LiteRT runs once, gives the floats that the kernel was read as before: the file
    computes what it did. Batch normalization that the converter has folded in scales whole channels, so that a rounded
    kernel stays on its grid, and the grid is found in the numbers alone.

    Args:
        content: a file from the converter.
        bits: the numbers of bits to look for, 2 to 8. `2^bits - 1` integers around zero, a scale a channel.
    """
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    found: dict[tuple, tuple[_Grid, int] | None] = {}
    for graph in model.subgraphs:
        dequantize = []
        for index, tensor in enumerate(list(graph.tensors)):
            key = tensor.buffer, tensor.type, _shape(tensor)
            if key not in found:
                found[key] = _packed_buffer(model, tensor, sorted(bits))
            grid = found[key]
            if grid is not None:
                dequantize.append(_dequantize(model, graph, index, *grid))
        graph.operators = dequantize + graph.operators
    drop_unused_buffers(model)
    return packed(model, len(content))


@dataclass(frozen=True)
class _Grid:
    """Integers and scales that stand for a kernel: kernel = integers * scales along the axis."""

    integers: np.ndarray
    scales: np.ndarray
    axis: int
    stored_bits: int


def _packed_buffer(model: Any, tensor: Any, bits: list[int]) -> tuple[_Grid, int] | None:
    """The grid of a kernel and the place of a new buffer with its integers; None for other tensors."""
    data = model.buffers[tensor.buffer].data
    is_kernel = tensor.type == schema().TensorType.FLOAT32 and tensor.sparsity is None and len(_shape(tensor)) > 1
    if not is_kernel or data is None or not len(data):
        return None
    grid = _grid(np.asarray(data, np.uint8).view(np.float32).reshape(_shape(tensor)), bits)
    if grid is None:
        return None
    content = _packed_integers(grid)
    if len(content) + grid.scales.nbytes + OVERHEAD_BYTES >= len(data):
        return None
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    return grid, len(model.buffers) - 1


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(tensor.shape)


def _grid(kernel: np.ndarray, bits: list[int]) -> _Grid | None:
    """The coarsest grid that the kernel lies on, the channels along any axis."""
    for number in bits:
        levels = 2 ** (number - 1) - 1
        for axis in range(kernel.ndim):
            others = tuple(other for other in range(kernel.ndim) if other != axis)
            highest = np.abs(kernel).max(axis=others, keepdims=True)
            scales = np.where(highest > 0, highest / levels, 1.0).astype(np.float32)
            steps = kernel / scales
            integers = np.rint(steps)
            if np.abs(steps - integers).max() < _OFF_GRID:
                stored = min(size for size in STORAGE if size >= number)
                return _Grid(integers.astype(np.int8), scales.ravel(), axis, stored)
    return None


def _packed_integers(grid: _Grid) -> bytes:
    """Several elements a byte, the first in the lowest bits."""
    fields = grid.integers.ravel().view(np.uint8) & np.uint8(2**grid.stored_bits - 1)
    count = 8 // grid.stored_bits
    rows = np.pad(fields, (0, -len(fields) % count)).reshape(-1, count)
    shifted = rows << (np.arange(count, dtype=np.uint8) * np.uint8(grid.stored_bits))
    return np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8).tobytes()


def _dequantize(model: Any, graph: Any, index: int, grid: _Grid, buffer: int) -> Any:
    """Turns the constant at `index` into the output of the operation returned, whose input is a new constant."""
    floats = graph.tensors[index]
    floats.buffer = 0
    integers = schema().TensorT()
    integers.name, integers.shape, integers.hasRank = floats.name + b"_integers", floats.shape, floats.hasRank
    integers.type, integers.buffer = getattr(schema().TensorType, STORAGE[grid.stored_bits]), buffer
    quantization = schema().QuantizationParametersT()
    quantization.scale, quantization.quantizedDimension = grid.scales, grid.axis
    quantization.zeroPoint = np.zeros(len(grid.scales), np.int64)
    integers.quantization = quantization
    graph.tensors.append(integers)
    op = schema().OperatorT()
    op.opcodeIndex = _dequantize_code(model, grid.stored_bits)
    op.inputs, op.outputs = np.array([len(graph.tensors) - 1], np.int32), np.array([index], np.int32)
    return op


def _dequantize_code(model: Any, stored_bits: int) -> int:
    """Place of the operation among the file's, added if it is not there; version 5 reads channels, 6 packed ones."""
    builtin, version = schema().BuiltinOperator.DEQUANTIZE, 5 if stored_bits == 8 else 6
    for index, code in enumerate(model.operatorCodes):
        if (code.builtinCode, code.version) == (builtin, version):
            return index
    code = schema().OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
