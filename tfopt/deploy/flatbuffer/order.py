"""The order of a file's inputs and outputs: that of the model, where the converter has another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfopt.deploy.flatbuffer.read import schema


def in_order(content: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The file with the inputs and outputs of its one signature in the order of their names.

    An interpreter numbers them in the order of the subgraph. A side is left as it is where a tensor has two names.
    """
    buffer = bytearray(content)
    model = schema().Model.GetRootAs(buffer, 0)
    if model.SignatureDefsLength() != 1:
        return content
    signature = model.SignatureDefs(0)
    graph = model.Subgraphs(signature.SubgraphIndex())
    _permute(graph.InputsAsNumpy(), [signature.Inputs(i) for i in range(signature.InputsLength())], inputs)
    _permute(graph.OutputsAsNumpy(), [signature.Outputs(i) for i in range(signature.OutputsLength())], outputs)
    return bytes(buffer)


def _permute(places: Any, named: Sequence[Any], names: Sequence[str]) -> None:
    """Writes the tensors' numbers in the order of `names` into the file's own memory."""
    tensors = {entry.Name().decode(): entry.TensorIndex() for entry in named}
    if set(tensors) == set(names) and sorted(tensors.values()) == sorted(places):
        places[:] = [tensors[name] for name in names]
