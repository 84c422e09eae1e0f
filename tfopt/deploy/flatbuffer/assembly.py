"""Several .tflite files into one with a signature each, and what else is written into files beside their model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.core.errors import ExportError
from tfopt.deploy.flatbuffer.naming import HIGHEST_SIZE, compacted, packed, shorten_names
from tfopt.deploy.flatbuffer.read import METADATA, schema


def assemble(files: Mapping[str, bytes], metadata: Mapping[str, Any] | None = None) -> bytes:
    """One file with a signature for each of `files`; weights that are equal to the byte are stored once.

    Args:
        files: signature -> a file with one signature, or none. The first is what an interpreter runs that asks for no
            signature. A single file keeps the name that the converter gave its signature.
        metadata: what can be written as JSON; None leaves the file without.

    Raises:
        ExportError: a file is too large to be read as one FlatBuffer.
    """
    first, *others = files.values()
    if not others and metadata is None:
        return compacted(first)
    if sum(map(len, files.values())) >= HIGHEST_SIZE:
        raise ExportError(
            "Several signatures, or metadata, go into files below 2 GB.",
            received=f"{sum(map(len, files.values())):,} bytes",
            fix="Export each model on its own, without metadata.",
        )
    models = [schema().ModelT.InitFromPackedBuf(content, 0) for content in files.values()]
    whole = models[0]
    if others:
        merging = _Merging(whole)
        for model in models[1:]:
            merging.add(model)
        for definition, name in zip(whole.signatureDefs, files, strict=True):
            definition.signatureKey = name
    if metadata is not None:
        _write_metadata(whole, metadata)
    shorten_names(whole)
    return packed(whole, sum(map(len, files.values())))


class _Merging:
    """Adds models to one: their subgraphs point into its op codes and buffers."""

    def __init__(self, whole: Any):
        self.whole = whole
        self.codes = {_code_key(code): index for index, code in enumerate(whole.operatorCodes)}
        self.buffers = {_bytes(buffer): index for index, buffer in reversed([*enumerate(whole.buffers)])}

    def add(self, model: Any) -> None:
        before = len(self.whole.subgraphs)
        codes = [
            self._place(self.codes, _code_key(code), self.whole.operatorCodes, code) for code in model.operatorCodes
        ]
        buffers = [self._place(self.buffers, _bytes(data), self.whole.buffers, data) for data in model.buffers]
        for graph in model.subgraphs:
            for tensor in graph.tensors:
                tensor.buffer = buffers[tensor.buffer]
            for op in graph.operators:
                op.opcodeIndex = codes[op.opcodeIndex]
                _shift_subgraphs(op.builtinOptions, before)
                _shift_subgraphs(op.builtinOptions2, before)
        for definition in model.signatureDefs:
            definition.subgraphIndex += before
        self.whole.subgraphs += model.subgraphs
        self.whole.signatureDefs += model.signatureDefs

    @staticmethod
    def _place(known: dict, key: Any, items: list, item: Any) -> int:
        """Where an equal item stands; appended if there is none."""
        if key not in known:
            known[key] = len(items)
            items.append(item)
        return known[key]


def _code_key(code: Any) -> tuple:
    return code.builtinCode, code.deprecatedBuiltinCode, code.customCode, code.version


def _bytes(buffer: Any) -> bytes:
    """Content of a buffer; tensors without a constant have an empty one, the first of every file."""
    return b"" if buffer.data is None else np.asarray(buffer.data, np.uint8).tobytes()


def _shift_subgraphs(options: Any, by: int) -> None:
    """Loops, branches and calls name the subgraphs that they run by number."""
    for name, value in vars(options).items() if options is not None else ():
        if name.lower().endswith(("subgraphindex", "subgraph")) and isinstance(value, int) and value >= 0:
            setattr(options, name, value + by)


def _write_metadata(model: Any, metadata: Mapping[str, Any]) -> None:
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(json.dumps(metadata, ensure_ascii=False).encode(), np.uint8)
    entry = schema().MetadataT()
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
