"""A .tflite file without what takes room in it and says nothing: equal vectors stored again, names of many layers."""

from __future__ import annotations

import itertools
from typing import Any

import flatbuffers

from tfopt.deploy.flatbuffer.read import schema

BUFFER_ALIGNMENT = 16  # `force_align` of `Buffer.data` in LiteRT's schema
HIGHEST_SIZE = 2**31  # of a FlatBuffer; the weights of a larger file lie behind it, at fixed places


def compacted(content: bytes) -> bytes:
    """The same model in fewer bytes: equal names, scales, zero points, shapes and sparse indices are written once.

    The converter writes a zero point of 8 bytes for each channel of each kernel and each bias: 4 % of an int8
    MobileNet, 8 % of a pruned one. It names a tensor after all operations that became its one, 9 % of the int8 file of
    a small network; here it has the name of the layer. The data of weights stays apart even if equal: LiteRT knows
    weights by their place.

    Source: vectors may be pointed to from several tables, https://flatbuffers.dev/internals.
    """
    if len(content) >= HIGHEST_SIZE:
        return content
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    shorten_names(model)
    return packed(model, len(content))


def shorten_names(model: Any) -> None:
    """Names each inner tensor of a `ModelT` after its layer: `net/conv_1/Relu;net/conv_1/Bias` becomes `conv_1`.

    Further tensors of the layer become `conv_1:1` and so on in a float file: tools that quantize one tell tensors apart
    by their names. In a quantized file, where that would be 15 % of an unrolled LSTM, they share the name.
    """
    apart = not any(_is_quantized(tensor) for graph in model.subgraphs for tensor in graph.tensors)
    for graph in model.subgraphs:
        kept = {*graph.inputs, *graph.outputs}
        taken = {graph.tensors[index].name for index in kept}
        for index, tensor in enumerate(graph.tensors):
            if index not in kept:
                name = _layer_path(tensor.name)
                tensor.name = _unused(name, taken) if apart else name


def _is_quantized(tensor: Any) -> bool:
    return tensor.quantization is not None and tensor.quantization.scale is not None


def _unused(name: bytes, taken: set[bytes]) -> bytes:
    """The name, with a number if it is taken; it is taken then."""
    numbered = (b"%s:%d" % (name, number) for number in itertools.count(1))
    found = next(each for each in itertools.chain([name], numbered) if each not in taken)
    taken.add(found)
    return found


def _layer_path(name: bytes) -> bytes:
    """Of `model/nested/layer/layer/op;...`: without the model, the operation and what is there twice in a row."""
    parts = name.split(b";")[0].split(b"/")
    inner = parts[1:-1] or parts[-1:]
    return b"/".join(part for part, before in zip(inner, [b"", *inner], strict=False) if part != before)


def packed(model: Any, size: int = 1024) -> bytes:
    """The file of a `ModelT`, equal vectors written once; `size` is about what to expect."""
    builder = _SharingBuilder(size)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def drop_unused_buffers(model: Any) -> None:
    """Empties the buffers of a `ModelT` that nothing refers to."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


class _SharingBuilder(flatbuffers.Builder):
    """Writes a string, or a vector of several bytes an element, only if no equal one is there."""

    def __init__(self, size: int):
        super().__init__(size)
        self._places: dict[tuple[str, bytes], int] = {}

    def CreateString(self, s: str | bytes, *options: Any) -> int:
        key = "name", s if isinstance(s, bytes) else s.encode()
        if key not in self._places:
            self._places[key] = super().CreateString(s, *options)
        return self._places[key]

    def CreateNumpyVector(self, x: Any) -> int:
        if x.itemsize == 1:
            return super().CreateNumpyVector(x)
        key = x.dtype.str, x.tobytes()
        if key not in self._places:
            self._places[key] = super().CreateNumpyVector(x)
        return self._places[key]

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
        return super().StartVector(elemSize, numElems, BUFFER_ALIGNMENT if elemSize == 1 else alignment)
