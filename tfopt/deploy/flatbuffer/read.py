"""What a .tflite file holds, read from its FlatBuffer: signatures, ops, weights, metadata. Nothing is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np

from tfopt.core.errors import FileError

METADATA = "TFOPT_METADATA"  # name of the file's metadata entry that holds tfopt's, as JSON

_PACKED_BITS = {"int4": 4, "uint4": 4, "int2": 2}


@dataclass(frozen=True)
class Signature:
    """A model in the file: its subgraph, and `{name: tensor}` of inputs and outputs in the order of the subgraph."""

    key: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


@dataclass(frozen=True)
class Op:
    """One op of the file, with the dtypes of its first input and first output ("" if it has none)."""

    name: str
    input_dtype: str
    output_dtype: str


@dataclass(frozen=True)
class Weight:
    """One constant of the file that holds parameters.

    Args:
        nonzero: elements that stand for a value other than 0; in a sparsely encoded tensor, of those stored.
        size_bytes: bytes of its data in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    nonzero: int
    size_bytes: int


def read_signatures(content: bytes) -> tuple[Signature, ...]:
    """The signatures of a verified .tflite file, in its order."""
    model = schema().Model.GetRootAs(content, 0)
    return tuple(_signature(model, model.SignatureDefs(index)) for index in range(model.SignatureDefsLength()))


def read_metadata(content: bytes) -> dict[str, Any]:
    """What tfopt wrote into a verified .tflite file beside the model; empty where it wrote nothing.

    Raises:
        FileError: the entry is there, but damaged.
    """
    model = schema().Model.GetRootAs(content, 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == METADATA.encode():
            try:
                return dict(json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()))
            except (ValueError, TypeError, AttributeError) as error:
                raise FileError(
                    "The metadata of the file has to be JSON.", received=str(error), fix="Export the file again."
                ) from error
    return {}


def read_ops(content: bytes) -> tuple[Op, ...]:
    """The ops of all subgraphs of a verified .tflite file, in the order of the file."""
    model = schema().Model.GetRootAs(content, 0)
    names = _op_names(model)
    return tuple(op for graph in _subgraphs(model) for op in _graph_ops(graph, names))


def read_weights(content: bytes) -> tuple[Weight, ...]:
    """The parameters of a verified .tflite file: float constants and quantized ones; shape constants are left out."""
    model = schema().Model.GetRootAs(content, 0)
    seen: set[int] = set()
    weights = []
    for graph in _subgraphs(model):
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            data = _data(model, tensor, content)
            if len(data) and tensor.Buffer() not in seen and _holds_parameters(tensor):
                seen.add(tensor.Buffer())
                weights.append(_weight(tensor, data))
    return tuple(weights)


def read_output_steps(content: bytes, outputs: list[int], subgraph: int) -> list[float]:
    """Scale of each output tensor of a subgraph, or of the integers it is dequantized from; 0.0 for floats."""
    model = schema().Model.GetRootAs(content, 0)
    names = _op_names(model)
    main = model.Subgraphs(subgraph)
    sources = {}
    for index in range(main.OperatorsLength()):
        op = main.Operators(index)
        if names[op.OpcodeIndex()] == "DEQUANTIZE":
            sources[op.Outputs(0)] = op.Inputs(0)
    return [_scale(main.Tensors(sources.get(index, index))) for index in outputs]


@cache
def schema() -> Any:
    """The classes of LiteRT's FlatBuffer schema."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def op_name(code: Any) -> str:
    """Old files hold the code in a byte, later ones in a word of its own; the larger is the one in use."""
    name = _names("BuiltinOperator").get(max(code.builtinCode, code.deprecatedBuiltinCode), "UNKNOWN")
    return code.customCode.decode() if name == "CUSTOM" and code.customCode else name


@cache
def _names(enum: str) -> dict[int, str]:
    return {code: name for name, code in vars(getattr(schema(), enum)).items() if name.isupper()}


def _subgraphs(model: Any) -> Iterator[Any]:
    return (model.Subgraphs(index) for index in range(model.SubgraphsLength()))


def _signature(model: Any, definition: Any) -> Signature:
    graph = model.Subgraphs(definition.SubgraphIndex())
    inputs = {definition.Inputs(i).Name().decode(): definition.Inputs(i) for i in range(definition.InputsLength())}
    outputs = {definition.Outputs(i).Name().decode(): definition.Outputs(i) for i in range(definition.OutputsLength())}
    return Signature(
        definition.SignatureKey().decode(),
        definition.SubgraphIndex(),
        _in_order(inputs, graph.InputsAsNumpy()),
        _in_order(outputs, graph.OutputsAsNumpy()),
    )


def _in_order(tensors: dict[str, Any], order: np.ndarray) -> dict[str, int]:
    indices = {name: tensor.TensorIndex() for name, tensor in tensors.items()}
    return dict(sorted(indices.items(), key=lambda item: order.tolist().index(item[1])))


def _op_names(model: Any) -> list[str]:
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    return [op_name(schema().OperatorCodeT.InitFromObj(code)) for code in codes]


def _graph_ops(graph: Any, names: list[str]) -> Iterator[Op]:
    dtypes = [_dtype(graph.Tensors(index)) for index in range(graph.TensorsLength())]
    for index in range(graph.OperatorsLength()):
        op = graph.Operators(index)
        inputs = dtypes[op.Inputs(0)] if op.InputsLength() and op.Inputs(0) >= 0 else ""
        outputs = dtypes[op.Outputs(0)] if op.OutputsLength() else ""
        yield Op(names[op.OpcodeIndex()], inputs, outputs)


def _dtype(tensor: Any) -> str:
    return _names("TensorType").get(tensor.Type(), "unknown").lower()


def _data(model: Any, tensor: Any, content: bytes) -> np.ndarray:
    """The bytes of a constant, inside the FlatBuffer or, in files above 2 GB, behind it."""
    buffer = model.Buffers(tensor.Buffer())
    if buffer.Offset() > 1:
        return np.frombuffer(content, np.uint8, buffer.Size(), buffer.Offset())
    return np.empty(0, np.uint8) if buffer.DataIsNone() else buffer.DataAsNumpy()


def _scale(tensor: Any) -> float:
    quantization = tensor.Quantization()
    return float(quantization.Scale(0)) if quantization is not None and quantization.ScaleLength() else 0.0


def _holds_parameters(tensor: Any) -> bool:
    return _scale(tensor) > 0 or "float" in _dtype(tensor)


def _weight(tensor: Any, data: np.ndarray) -> Weight:
    shape = tuple(int(dim) for dim in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
    values = _values(data, _dtype(tensor))[: prod(shape)]
    quantization = tensor.Quantization()
    zero = quantization.ZeroPoint(0) if quantization is not None and quantization.ZeroPointLength() else 0
    nonzero = int(np.count_nonzero(values != zero))
    return Weight(tensor.Name().decode(), shape, _dtype(tensor), prod(shape), nonzero, data.nbytes)


def _values(data: np.ndarray, dtype: str) -> np.ndarray:
    """Elements to compare with the zero point; of formats numpy lacks, only whether they are 0 is right."""
    if dtype in _PACKED_BITS:
        bits = _PACKED_BITS[dtype]
        return np.stack([(data >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], axis=-1).reshape(-1)
    if dtype.startswith(("bfloat", "float8")):
        return data.view(np.uint16) if dtype == "bfloat16" else data
    return data.view(dtype)
