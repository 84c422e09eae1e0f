"""What LiteRT asks of integer files beyond what its converter writes, done in the FlatBuffer."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfopt.deploy.flatbuffer.naming import drop_unused_buffers, packed
from tfopt.deploy.flatbuffer.read import op_name, schema

_BIAS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}  # place among the inputs
_INPUT = {"TRANSPOSE_CONV": 2}
SIGMOID_SCALE = 2.0**-15  # of its 16-bit outputs, around zero as all of 16 bits


def finished(content: bytes) -> bytes:
    """The file without the casts of `set_apart`, and with the types and scales that 16-bit operations need.

    The converter gives a 16-bit convolution or matrix product a bias of 32 bits, and LiteRT then sums in 32 bits, which
    overflow: 16-bit activations times 8-bit weights leave room for 512 products. With a bias of 64 bits it sums in 64.
    """
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    names = [op_name(code) for code in model.operatorCodes]
    wide: dict[int, int] = {}
    for graph in model.subgraphs:
        _remove_casts(graph, names)
        _requantize(graph, names)
        for op in graph.operators:
            if names[op.opcodeIndex] in _BIAS:
                _widen_bias(model, graph.tensors, op, names[op.opcodeIndex], wide)
        for tensor in graph.tensors:
            _center(tensor)
    drop_unused_buffers(model)
    return packed(model, len(content))


def _remove_casts(graph: Any, names: list[str]) -> None:
    """Takes out each pair of casts to 64-bit floats and back; what read the second reads what came before the first."""
    wide_floats = {
        op.outputs[0]: op
        for op in graph.operators
        if names[op.opcodeIndex] == "CAST" and graph.tensors[op.outputs[0]].type == schema().TensorType.FLOAT64
    }
    source: dict[int, int] = {}
    removed: set[int] = set()
    for op in graph.operators:
        first = wide_floats.get(op.inputs[0]) if names[op.opcodeIndex] == "CAST" else None
        if first is not None and op.outputs[0] not in graph.outputs:
            source[op.outputs[0]] = source.get(first.inputs[0], first.inputs[0])
            removed |= {id(first), id(op)}
    graph.operators = [op for op in graph.operators if id(op) not in removed]
    for op in graph.operators:
        op.inputs = np.array([source.get(index, index) for index in op.inputs], np.int32)


def _requantize(graph: Any, names: list[str]) -> None:
    """Makes one operation on integers of each DEQUANTIZE and QUANTIZE behind it; none where both ranges are equal."""
    made = {op.outputs[0]: op for op in graph.operators if names[op.opcodeIndex] == "DEQUANTIZE"}
    same: dict[int, int] = {}
    for op in [op for op in graph.operators if names[op.opcodeIndex] == "QUANTIZE"]:
        first = made.get(op.inputs[0])
        if first is None or graph.tensors[first.inputs[0]].type != graph.tensors[op.outputs[0]].type:
            continue
        op.inputs = np.array([first.inputs[0]], np.int32)
        if (
            _range(graph.tensors[op.inputs[0]]) == _range(graph.tensors[op.outputs[0]])
            and op.outputs[0] not in graph.outputs
        ):
            same[op.outputs[0]] = op.inputs[0]
            graph.operators.remove(op)
    for op in graph.operators:
        op.inputs = np.array([same.get(index, index) for index in op.inputs], np.int32)
    read = {index for op in graph.operators for index in op.inputs} | set(graph.outputs)
    graph.operators = [op for op in graph.operators if id(op) not in map(id, made.values()) or op.outputs[0] in read]


def _range(tensor: Any) -> tuple[list, list]:
    return np.ravel(tensor.quantization.scale).tolist(), np.ravel(tensor.quantization.zeroPoint).tolist()


def _widen_bias(model: Any, tensors: list, op: Any, name: str, wide: dict[int, int]) -> None:
    types, place = schema().TensorType, _BIAS[name]
    if tensors[op.inputs[_INPUT.get(name, 0)]].type != types.INT16:
        return
    if hasattr(op.builtinOptions, "quantizedBiasType"):
        op.builtinOptions.quantizedBiasType = types.INT64
    if len(op.inputs) <= place or op.inputs[place] < 0 or tensors[op.inputs[place]].type != types.INT32:
        return
    bias = tensors[op.inputs[place]]
    bias.type = types.INT64
    if bias.buffer not in wide:
        buffer = schema().BufferT()
        values = np.asarray(model.buffers[bias.buffer].data, np.uint8).view(np.int32).astype(np.int64)
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        wide[bias.buffer] = len(model.buffers)
        model.buffers.append(buffer)
    bias.buffer = wide[bias.buffer]


def _center(tensor: Any) -> None:
    """The range of a sigmoid's output as LiteRT wants it: the converter writes [0, 1), also of what only moves it."""
    quantized = tensor.type == schema().TensorType.INT16 and tensor.quantization is not None
    if quantized and tensor.quantization.zeroPoint is not None and np.any(tensor.quantization.zeroPoint):
        tensor.quantization.scale = np.array([SIGMOID_SCALE], np.float32)
        tensor.quantization.zeroPoint = np.zeros(1, np.int64)
