"""An interpreter that runs one signature of a .tflite file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfopt.core.errors import FileError, InvalidArgumentError
from tfopt.deploy.flatbuffer.read import Signature, read_signatures
from tfopt.deploy.tensors import Tensor, tensors_of


class Session:
    """Runs one signature on arrays of any batch that it takes; keeps the shapes of its last run.

    Args:
        content: of the file.
        key: of the signature; None for the model that an interpreter runs by itself.
        num_threads: of the interpreter.
        source: names the file in errors.

    Raises:
        FileError: LiteRT cannot read the file.
        InvalidArgumentError: there is no such signature.

    Attributes:
        subgraph: number of the signature's subgraph.
        inputs, outputs: tuples of `Tensor`.
        own_shapes: of the inputs, 1 where the file leaves a size free.
    """

    def __init__(self, content: bytes, key: str | None = None, num_threads: int = 1, source: str = "the file"):
        self._interpreter = _opened(content, source, num_threads)
        signature = _chosen(read_signatures(content), key)
        self.subgraph = signature.subgraph if signature else 0
        # The interpreter itself runs the first subgraph; all others are run by a runner, which copies each array.
        self._runner = self._interpreter.get_signature_runner(key) if self.subgraph else None
        inputs, outputs = self._details(signature)
        self.inputs: tuple[Tensor, ...] = tensors_of(inputs, _names(signature.inputs if signature else {}))
        self.outputs: tuple[Tensor, ...] = tensors_of(outputs, _names(signature.outputs if signature else {}))
        self.own_shapes = [tuple(map(int, detail["shape"])) for detail in inputs]
        self._shapes = list(self.own_shapes)

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the order of `outputs`, for arrays as stored, in the order of `inputs`."""
        self._interpreter.reset_all_variables()  # a fused LSTM would carry its state from sample to sample
        if self._runner is not None:
            found = self._runner(**self._named(arrays))
            return [found[tensor.name] for tensor in self.outputs]
        self._feed(arrays)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(tensor.index) for tensor in self.outputs]

    def ready(self, arrays: list[np.ndarray]) -> Callable[[], Any]:
        """A function that runs the model on `arrays`, and does nothing else where it can."""
        if self._runner is None:
            self._feed(arrays)
            return self._interpreter.invoke
        runner, named = self._runner, self._named(arrays)
        return lambda: runner(**named)

    def _details(self, signature: Signature | None) -> tuple[list[dict], list[dict]]:
        if self._runner is None or signature is None:
            return self._interpreter.get_input_details(), self._interpreter.get_output_details()
        inputs, outputs = self._runner.get_input_details(), self._runner.get_output_details()
        return [inputs[name] for name in signature.inputs], [outputs[name] for name in signature.outputs]

    def _named(self, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
        return {tensor.name: array for tensor, array in zip(self.inputs, arrays, strict=True)}

    def _feed(self, arrays: list[np.ndarray]) -> None:
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes:
            self._shapes = []
            for tensor, shape in zip(self.inputs, shapes, strict=True):
                self._interpreter.resize_tensor_input(tensor.index, shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for tensor, array in zip(self.inputs, arrays, strict=True):
            self._interpreter.set_tensor(tensor.index, array)


def _opened(content: bytes, source: str, num_threads: int) -> Any:
    """An interpreter ready to run.

    Given the content, the interpreter verifies the whole FlatBuffer before it reads any of it. A flipped bit in a name
    shows as a UnicodeDecodeError, which is a ValueError.
    """
    from ai_edge_litert.interpreter import Interpreter

    if content[4:8] != b"TFL3":
        raise FileError(
            "A .tflite file carries the mark TFL3 at its fifth byte.",
            received=f"{source}, starts with {content[:8]!r}",
            fix="Write one with `tfopt.export_tflite(model, path)`.",
        )
    try:
        interpreter = Interpreter(model_content=content, num_threads=num_threads)
        interpreter.allocate_tensors()
        interpreter.get_input_details(), interpreter.get_output_details(), read_signatures(content)
    except (ValueError, RuntimeError) as error:
        raise FileError(
            "LiteRT has to be able to read the file.",
            received=f"{source}: {str(error).strip()}",
            fix="If it is truncated or corrupt, export it again; if an op is unknown, export with built-in ops only.",
        ) from error
    return interpreter


def _chosen(signatures: tuple[Signature, ...], key: str | None) -> Signature | None:
    """The signature with that key; for None that of the first subgraph, if the file names it."""
    if key is None:
        return next((signature for signature in signatures if signature.subgraph == 0), None)
    for signature in signatures:
        if signature.key == key:
            return signature
    raise InvalidArgumentError(
        "`signature` names one of the file.",
        received=repr(key),
        fix=f"Its signatures are: {', '.join(signature.key for signature in signatures) or 'none'}.",
    )


def _names(tensors: dict[str, int]) -> dict[int, str]:
    return {index: name for name, index in tensors.items()}
