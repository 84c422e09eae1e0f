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

from tfopt.core.checks import as_count, as_whole
from tfopt.core.data.metrics import score
from tfopt.core.errors import FileError, InvalidArgumentError
from tfopt.deploy.flatbuffer.read import (
    Op,
    Weight,
    read_metadata,
    read_ops,
    read_output_steps,
    read_signatures,
    read_weights,
)
from tfopt.deploy.session import Session
from tfopt.deploy.tensors import are_numbered, checked_inputs, dequantized, random_sample

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
    """Time of one inference of `batch_size` samples, in milliseconds, over `runs` runs on `threads` threads."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int
    batch_size: int = 1

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms (p10-p90 {self.p10_ms:.3f}-{self.p90_ms:.3f}, {self.threads} thread(s))"


class TFLiteModel:
    """A .tflite file that predicts and evaluates as a Keras model does, on the CPU with LiteRT.

    The file is read once; later changes on disk do not matter.

    Args:
        path: the file, or its content as bytes.
        signature: which of several models in the file; None is the first, the one that any interpreter runs.
        num_threads: threads of the interpreter.

    Raises:
        FileError: if the file is missing, truncated, corrupt, no .tflite, or holds ops LiteRT does not have.
        InvalidArgumentError: if `num_threads` is no positive int, or the file has no such signature.

    Attributes:
        path: of the file; None for bytes.
        content: of the file, as bytes.
        inputs, outputs: tuples of `Tensor`, in the order of the Keras model.
        size_bytes: of the file.

    Example:
        >>> model = TFLiteModel("model.tflite")  # doctest: +SKIP
        >>> model.evaluate(x_test, y_test)  # doctest: +SKIP
        {'accuracy': 0.981}
    """

    def __init__(self, path: str | os.PathLike | bytes, *, signature: str | None = None, num_threads: int = 1):
        self.num_threads = as_count("num_threads", num_threads)
        self.path = None if isinstance(path, bytes) else Path(path)
        self.signature = signature
        self.content = path if isinstance(path, bytes) else _read(Path(path))
        self._session = self._opened()
        self._takes_batches: bool | None = None  # not known until tried; of a file that leaves the batch free
        self.inputs, self.outputs = self._session.inputs, self._session.outputs

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    @cached_property
    def signatures(self) -> tuple[str, ...]:
        """Names of the models in the file."""
        return tuple(signature.key for signature in read_signatures(self.content))

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What `export_tflite(metadata=...)` wrote, and under `"tfopt"` what tfopt added; empty without.

        Raises:
            FileError: it is damaged.
        """
        return read_metadata(self.content)

    @cached_property
    def gzip_bytes(self) -> int:
        """Size after `gzip -9`: what a download or a compressed app package costs."""
        return len(gzip.compress(self.content, 9, mtime=0))

    def predict(self, x: Any, batch_size: int = 32, verbose: int = 0, *, raw: bool = False) -> Any:
        """Outputs for `x`, as `keras.Model.predict` gives them.

        Args:
            x: an array `(n, ...)`; for several inputs a list in the order of `inputs`, or a dict by their names.
                Where the file takes integers, real values are quantized with its scale and zero point; an array of the
                file's own integer dtype is taken as quantized already.
            batch_size: samples at a time, for a file that leaves its batch free; others run with their own.
            verbose: 1 shows a progress bar.
            raw: True leaves integer outputs as stored, False turns them into float32.

        Returns:
            An array `(n, ...)`; for several outputs a list, or a dict if the Keras model gave a dict.

        Raises:
            InvalidArgumentError: for inputs of another number, name, shape or kind than the file takes, and for NaN.
        """
        batch_size = as_count("batch_size", batch_size)
        arrays = checked_inputs(x, self.inputs)
        step = self._step(arrays, batch_size)
        starts = range(0, len(arrays[0]), step)
        parts = [self._run([a[i : i + step] for a in arrays], step) for i in _progress(starts, verbose)]
        outputs = [np.concatenate(values) for values in zip(*parts, strict=True)]
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
        return read_ops(self.content)

    def float_compute_ops(self) -> tuple[Op, ...]:
        """Ops that compute in float32: empty for a fully quantized file."""
        return tuple(op for op in self.op_types() if op.name in COMPUTE_OPS and op.output_dtype == "float32")

    def output_steps(self) -> list[float]:
        """One quantization step of each output in real units, dequantized ones too; 0.0 where computed in float."""
        return read_output_steps(self.content, [tensor.index for tensor in self.outputs], self._session.subgraph)

    def weights(self) -> tuple[Weight, ...]:
        """The parameters of the file: kernels and biases, batch normalization folded in."""
        return read_weights(self.content)

    def latency(self, runs: int = 50, warmup: int = 10, batch_size: int | None = None) -> Latency:
        """Times `runs` inferences, after `warmup` untimed ones.

        Args:
            batch_size: samples in an inference; None is the file's own batch, one sample where it is left free.

        Raises:
            InvalidArgumentError: if `runs` is not positive, `warmup` is negative, or the file does not take the batch.
        """
        runs, warmup = as_count("runs", runs), as_whole("warmup", warmup, least=0)
        shapes = self._session.own_shapes if batch_size is None else self._shapes_of(batch_size)
        infer = self._session.ready(
            [random_sample(tensor, shape) for tensor, shape in zip(self.inputs, shapes, strict=True)]
        )
        times = []
        for _ in range(warmup + runs):
            start = perf_counter()
            infer()
            times.append(1000 * (perf_counter() - start))
        p10, median, p90 = (float(value) for value in np.percentile(times[warmup:], (10, 50, 90)))
        return Latency(median, p10, p90, runs, self.num_threads, next(iter(shapes[0]), 1))

    def __repr__(self) -> str:
        sides = [", ".join(map(str, tensors)) for tensors in (self.inputs, self.outputs)]
        return f"TFLiteModel({self._source}, {self.size_bytes:,} bytes, {' -> '.join(sides)})"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    @property
    def _source(self) -> str:
        return f"{len(self.content)} bytes" if self.path is None else f"'{self.path}'"

    @property
    def _is_free(self) -> bool:
        return all(tensor.shape[:1] == (None,) for tensor in self.inputs)

    def _opened(self) -> Session:
        return Session(self.content, self.signature, self.num_threads, self._source)

    def _shapes_of(self, batch_size: int) -> list[tuple[int, ...]]:
        batch_size = as_count("batch_size", batch_size)
        own = self._session.own_shapes
        if not self._is_free and batch_size != own[0][0]:
            raise InvalidArgumentError(
                "A file with a batch of its own is timed with it.",
                received=f"batch_size={batch_size} for a batch of {own[0][0]}",
                fix="Export with `batch_size=None` to leave it free.",
            )
        return [(batch_size, *shape[1:]) for shape in own]

    def _step(self, arrays: list[np.ndarray], batch_size: int) -> int:
        """How many samples to run at a time."""
        step = min(batch_size, len(arrays[0])) if self._is_free else self._session.own_shapes[0][0]
        if not self._is_free or step == 1:
            return step
        if self._takes_batches is None:
            self._takes_batches = self._runs([array[:step] for array in arrays])
        return step if self._takes_batches else 1

    def _runs(self, arrays: list[np.ndarray]) -> bool:
        """True if several samples come out as several: a file may leave its batch free, and reshape to one inside."""
        try:
            outputs = self._opened().run(arrays)
        except (ValueError, RuntimeError):  # the shapes inside do not go with the batch
            return False
        return all(values.ndim > 0 and len(values) == len(arrays[0]) for values in outputs)

    def _run(self, arrays: list[np.ndarray], size: int) -> list[np.ndarray]:
        """Runs up to `size` samples; a batch that falls short is filled up, so that all batches are of one size."""
        count = len(arrays[0])
        if count < size:
            arrays = [np.concatenate([a, np.repeat(a[-1:], size - count, axis=0)]) for a in arrays]
        return [values[:count] for values in self._session.run(arrays)]

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


def _progress(starts: range, verbose: int) -> Iterable[int]:
    if not verbose:
        return starts
    from rich.progress import track

    return track(starts, description="predict")
