"""Runs .tflite files on the CPU with LiteRT."""

from __future__ import annotations

import gzip
import html
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tfopt.core.errors import FileError, InvalidArgumentError
from tfopt.core.scores import score
from tfopt.deploy.flatfile import Op, Weight, read_ops, read_output_steps, read_weights
from tfopt.deploy.tensors import Tensor, are_numbered, checked_inputs, dequantized, random_sample, tensors_of

COMPUTE_OPS = frozenset(
    (
        "CONV_2D",
        "CONV_3D",
        "DEPTHWISE_CONV_2D",
        "TRANSPOSE_CONV",
        "FULLY_CONNECTED",
        "BATCH_MATMUL",
        "ADD",
        "MUL",
        "MEAN",
        "AVERAGE_POOL_2D",
        "MAX_POOL_2D",
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        "UNIDIRECTIONAL_SEQUENCE_RNN",
    )
)


@dataclass(frozen=True)
class Latency:
    """Time of one inference of one sample, in milliseconds, over `runs` runs on `threads` threads."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms (p10-p90 {self.p10_ms:.3f}-{self.p90_ms:.3f}, {self.threads} thread(s))"


class TFLiteModel:
    """A .tflite file that predicts and evaluates as a Keras model does, on the CPU with LiteRT.

    The file is read once; later changes on disk do not matter.

    Args:
        path: the file, or its content as bytes.
        num_threads: threads of the interpreter.

    Raises:
        FileError: if the file is missing, truncated, corrupt, no .tflite, or holds ops LiteRT does not have.
        InvalidArgumentError: if `num_threads` is no positive int.

    Attributes:
        path: of the file; None for bytes.
        inputs, outputs: tuples of `Tensor`, in the order of the Keras model.
        size_bytes: of the file.

    Example:
        >>> model = TFLiteModel("model.tflite")  # doctest: +SKIP
        >>> model.evaluate(x_test, y_test)  # doctest: +SKIP
        {'accuracy': 0.981}
    """

    def __init__(self, path: str | os.PathLike | bytes, *, num_threads: int = 1):
        if isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:
            raise InvalidArgumentError("`num_threads` is a positive int.", received=repr(num_threads))
        self.path = None if isinstance(path, bytes) else Path(path)
        self.num_threads = num_threads
        self._content = path if isinstance(path, bytes) else _read(Path(path))
        self._interpreter, self.inputs, self.outputs = _open(self._content, self._source, num_threads)
        self._own_shapes = [tuple(map(int, detail["shape"])) for detail in self._interpreter.get_input_details()]
        self._shapes = list(self._own_shapes)
        self._batches = all(tensor.shape[:1] == (None,) for tensor in self.inputs)

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    @cached_property
    def gzip_bytes(self) -> int:
        """Size after `gzip -9`: what a download or a compressed app package costs."""
        return len(gzip.compress(self._content, 9, mtime=0))

    def predict(self, x: Any, batch_size: int = 32, verbose: int = 0, *, raw: bool = False) -> Any:
        """Outputs for `x`, as `keras.Model.predict` gives them.

        Args:
            x: an array `(n, ...)`; for several inputs a list in the order of `inputs`, or a dict by their names.
                Where the file takes integers, real values are quantized with its scale and zero point; an array of the
                file's own integer dtype is taken as quantized already.
            batch_size: samples at a time, where the file leaves the batch free; else the file's own batch is used.
            verbose: 1 shows a progress bar.
            raw: True leaves integer outputs as stored, False turns them into float32.

        Returns:
            An array `(n, ...)`; for several outputs a list, or a dict if the Keras model gave a dict.

        Raises:
            InvalidArgumentError: for inputs of another number, name, shape or kind than the file takes, and for NaN.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidArgumentError("`batch_size` is a positive int.", received=repr(batch_size))
        arrays = checked_inputs(x, self.inputs)
        if self._batches and not self._keeps_batch(arrays, min(batch_size, len(arrays[0]))):
            self._batches = False
        step = batch_size if self._batches else self._own_shapes[0][0]
        outputs = self._run_all(arrays, step, verbose)
        if not raw:
            outputs = [dequantized(values, spec) for values, spec in zip(outputs, self.outputs, strict=True)]
        return self._structured(outputs)

    def evaluate(self, x: Any, y: Any, metrics: Any = ("accuracy",), batch_size: int = 32) -> dict[str, float]:
        """Metrics of the file on data.

        Args:
            x: inputs, as for `predict`.
            y: labels `(n,)`, one-hot `(n, classes)`, or regression targets.
            metrics: names (`"accuracy"`, the macro averages `"precision"`, `"recall"`, `"f1"`; `"mae"`, `"rmse"`; any
                metric of Keras), Keras metric objects, or a dict `{name: function(y_true, y_pred)}`.

        Returns:
            `{name: value}` in the order of `metrics`.

        Raises:
            InvalidArgumentError: if labels and predictions do not go together, or a metric does not apply to them.

        Example:
            >>> TFLiteModel("model.tflite").evaluate(x, y, ["accuracy", "f1"])  # doctest: +SKIP
            {'accuracy': 0.98, 'f1': 0.979}
        """
        scores = score(y, self.predict(x, batch_size), metrics)
        names = list(metrics) if isinstance(metrics, Mapping) else [getattr(m, "name", m) for m in metrics]
        missing = [name for name in names if name not in scores]
        if missing:
            raise InvalidArgumentError(
                "The metrics have to suit the task.", received=str(missing), fix=f"Here apply: {', '.join(scores)}."
            )
        return {name: scores[name] for name in names}

    def op_types(self) -> tuple[Op, ...]:
        """Each op of the file, those inside loops and branches too."""
        return read_ops(self._content)

    def float_compute_ops(self) -> tuple[Op, ...]:
        """Ops that compute in float32: empty for a fully quantized file."""
        return tuple(op for op in self.op_types() if op.name in COMPUTE_OPS and op.output_dtype == "float32")

    def output_steps(self) -> list[float]:
        """One quantization step of each output in real units, dequantized ones too; 0.0 where computed in float."""
        return read_output_steps(self._content, [tensor.index for tensor in self.outputs])

    def weights(self) -> tuple[Weight, ...]:
        """The parameters of the file: kernels and biases, batch normalization folded in."""
        return read_weights(self._content)

    def latency(self, runs: int = 50, warmup: int = 10) -> Latency:
        """Times `runs` inferences of one sample, after `warmup` untimed ones.

        Raises:
            InvalidArgumentError: if `runs` is not positive or `warmup` is negative.
        """
        if not isinstance(runs, int) or not isinstance(warmup, int) or runs < 1 or warmup < 0:
            raise InvalidArgumentError("`runs` is positive and `warmup` not negative.", received=f"{runs}, {warmup}")
        self._feed([random_sample(spec, shape) for spec, shape in zip(self.inputs, self._own_shapes, strict=True)])
        times = []
        for _ in range(warmup + runs):
            start = perf_counter()
            self._interpreter.invoke()
            times.append(1000 * (perf_counter() - start))
        p10, median, p90 = (float(value) for value in np.percentile(times[warmup:], (10, 50, 90)))
        return Latency(median, p10, p90, runs, self.num_threads)

    def __repr__(self) -> str:
        sides = [", ".join(map(str, tensors)) for tensors in (self.inputs, self.outputs)]
        return f"TFLiteModel({self._source}, {self.size_bytes:,} bytes, {' -> '.join(sides)})"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    @property
    def _source(self) -> str:
        return f"{len(self._content)} bytes" if self.path is None else f"'{self.path}'"

    def _keeps_batch(self, arrays: list[np.ndarray], batch: int) -> bool:
        """False for a file that declares a free batch and yet fixes it inside, as a Reshape to a constant does."""
        try:
            outputs = self._run([array[:batch] for array in arrays])
        except (ValueError, RuntimeError):
            return batch == 1
        return all(values.ndim > 0 and len(values) == batch for values in outputs)

    def _run_all(self, arrays: list[np.ndarray], step: int, verbose: int) -> list[np.ndarray]:
        starts = range(0, len(arrays[0]), step)
        parts = [self._run_batch([a[i : i + step] for a in arrays], step) for i in _progress(starts, verbose)]
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _run_batch(self, arrays: list[np.ndarray], step: int) -> list[np.ndarray]:
        """Runs one batch; a file with a fixed batch gets the last one filled up."""
        count = len(arrays[0])
        if not self._batches and count < step:
            arrays = [np.concatenate([a, np.repeat(a[-1:], step - count, axis=0)]) for a in arrays]
        return [values[:count] for values in self._run(arrays)]

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        self._interpreter.reset_all_variables()  # a fused LSTM would carry its state from sample to sample
        self._feed(arrays)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(spec.index) for spec in self.outputs]

    def _feed(self, arrays: list[np.ndarray]) -> None:
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes:
            self._shapes = []
            for spec, shape in zip(self.inputs, shapes, strict=True):
                self._interpreter.resize_tensor_input(spec.index, shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for spec, array in zip(self.inputs, arrays, strict=True):
            self._interpreter.set_tensor(spec.index, array)

    def _structured(self, outputs: list[np.ndarray]) -> Any:
        if len(outputs) == 1:
            return outputs[0]
        if are_numbered(self.outputs):
            return outputs
        return {tensor.name: values for tensor, values in zip(self.outputs, outputs, strict=True)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError("The .tflite file has to be readable.", received=f"'{path}': {error.strerror}") from error


def _open(content: bytes, source: str, num_threads: int) -> tuple[Any, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """An interpreter ready to run, its inputs and its outputs.

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
        inputs = tensors_of(interpreter.get_input_details(), _names(interpreter, "get_input_details"))
        outputs = tensors_of(interpreter.get_output_details(), _names(interpreter, "get_output_details"))
    except (ValueError, RuntimeError) as error:
        raise FileError(
            "LiteRT has to be able to read the file.",
            received=f"{source}: {str(error).strip()}",
            fix="If it is truncated or corrupt, export it again; if an op is unknown, export with built-in ops only.",
        ) from error
    return interpreter, inputs, outputs


def _names(interpreter: Any, details: str) -> dict[int, str]:
    """`{tensor index: name}` in the first signature, empty for a file without one."""
    signatures = list(interpreter.get_signature_list())
    found = getattr(interpreter.get_signature_runner(signatures[0]), details)() if signatures else {}
    return {detail["index"]: name for name, detail in found.items()}


def _progress(starts: range, verbose: int) -> Iterable[int]:
    if not verbose:
        return starts
    from rich.progress import track

    return track(starts, description="predict")
