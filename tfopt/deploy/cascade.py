"""A cascade on the device: one .tflite file a stage, and what runs them one after the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfopt.core.checks import Range, as_numbers, shown
from tfopt.core.data.cascades import in_turn
from tfopt.core.data.metrics import score
from tfopt.core.data.pairs import paired
from tfopt.core.errors import FileError, InvalidArgumentError
from tfopt.core.models.fingerprints import model_fingerprint
from tfopt.core.models.graph import read
from tfopt.deploy.records import Export
from tfopt.deploy.runner import TFLiteModel
from tfopt.deploy.tensors import as_inputs, checked_inputs
from tfopt.deploy.tflite import export_tflite

_KEY = "cascade"  # of the metadata


def export_cascade(cascade: keras.Model, folder: str | os.PathLike, **options: Any) -> tuple[Export, ...]:
    """Writes each stage of a cascade as a .tflite file of its own, for `TFLiteCascade` to run.

    A .tflite file is a fixed list of operations. Its one operation that branches, IF, runs parts of a graph for a whole
    batch, delegates and microcontrollers have none of it, and tensors of both branches take their place in memory. As
    one file a cascade would compute all of its stages and then choose. In files of their own, what is not needed is not
    run, and need not even be loaded.

    Args:
        cascade: from `tfopt.fuse(models, "cascade", ...)`, or the same quantized.
        folder: that exists. The files are called after the cascade: `"fused_1.tflite"`, `"fused_2.tflite"`, ...
        options: of `export_tflite`, for each file. `metadata` gets the thresholds too.

    Returns:
        An `Export` a stage.

    Raises:
        InvalidArgumentError: no cascade; those of `export_tflite`.
        FileError, ExportError, UnsupportedModelError: those of `export_tflite`; files of earlier stages stay.

    Example:
        >>> import tempfile, tfopt
        >>> def classifier(units):
        ...     dense = keras.layers.Dense
        ...     return keras.Sequential([keras.Input((4,)), dense(units, "relu"), dense(3, "softmax")])
        >>> cascade = tfopt.fuse([classifier(2), classifier(8)], "cascade", thresholds=[0.5])
        >>> exports = export_cascade(cascade, tempfile.mkdtemp())
        >>> TFLiteCascade([export.path for export in exports]).predict(np.ones((5, 4), "float32")).shape
        (5, 3)
    """
    stages, thresholds = getattr(cascade, "stages", None), getattr(cascade, "thresholds", None)
    if not isinstance(cascade, keras.Model) or stages is None or thresholds is None:
        raise InvalidArgumentError(
            "`export_cascade` takes a cascade.",
            received=type(cascade).__name__,
            fix="`tfopt.fuse(models, 'cascade', thresholds=...)` makes one; others go through `export_tflite`.",
        )
    if not Path(folder).is_dir():
        raise FileError("The folder to write to has to exist.", received=f"'{folder}'")
    whole = model_fingerprint(read(cascade))
    exports = []
    for number, (stage, threshold) in enumerate(zip(stages, (*thresholds, 0.0), strict=True), 1):
        own = {"stage": number, "stages": len(stages), "threshold": threshold, "from_logits": cascade.from_logits}
        metadata = {**(options.get("metadata") or {}), _KEY: {**own, "fingerprint": whole}}
        path = Path(folder) / f"{cascade.name}_{number}.tflite"
        exports.append(export_tflite(stage, path, **{**options, "metadata": metadata}))
    return tuple(exports)


class TFLiteCascade:
    """The files of a cascade, which predict and evaluate as one model; a file runs for the samples that need it.

    Args:
        stages: `TFLiteModel`s or paths of .tflite files, in order.
        thresholds: one for each file but the last; None takes those that `export_cascade` wrote into the files.
        from_logits: whether the files give logits; None as for thresholds.
        num_threads: threads of the interpreters that are opened for paths.

    Raises:
        InvalidArgumentError: files without thresholds, in another order than exported, or thresholds that do not fit.
        FileError: a file that cannot be read.

    Attributes:
        stages: a tuple of `TFLiteModel`.
        thresholds: a tuple of floats.

    Example:
        >>> cascade = TFLiteCascade(["fused_1.tflite", "fused_2.tflite"])  # doctest: +SKIP
        >>> cascade.answered_by(x_test).mean()  # doctest: +SKIP
        0.18
    """

    def __init__(
        self,
        stages: Sequence[TFLiteModel | str | os.PathLike],
        thresholds: Sequence[float] | None = None,
        *,
        from_logits: bool | None = None,
        num_threads: int = 1,
    ):
        if not isinstance(stages, (list, tuple)) or not stages:
            raise InvalidArgumentError("`stages` must be a list of .tflite files.", received=shown(stages))
        self.stages = tuple(
            stage if isinstance(stage, TFLiteModel) else TFLiteModel(stage, num_threads=num_threads) for stage in stages
        )
        written = _written(self.stages) if thresholds is None or from_logits is None else []
        given = [part["threshold"] for part in written[:-1]] if thresholds is None else thresholds
        self.thresholds = as_numbers("thresholds", given, Range(least=0, infinite=True))
        self.from_logits = written[0]["from_logits"] if from_logits is None else from_logits
        if len(self.thresholds) != len(self.stages) - 1:
            raise InvalidArgumentError(
                "A cascade has one threshold for each file but the last.",
                received=f"{len(self.thresholds)} thresholds, {len(self.stages)} files",
            )

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(stage.size_bytes for stage in self.stages)

    def predict(self, x: Any, batch_size: int = 32) -> np.ndarray:
        """Answers for `x`, an array (n, classes) of float32; `x` and `batch_size` as for `TFLiteModel.predict`."""
        return self._answers(x, batch_size)[0]

    def answered_by(self, x: Any, batch_size: int = 32) -> np.ndarray:
        """Which file answers each sample, counted from 0: an int array (n,)."""
        return self._answers(x, batch_size)[1]

    def evaluate(self, x: Any, y: Any, metrics: Any = (), batch_size: int = 32) -> dict[str, float]:
        """`accuracy` and macro `precision`, `recall` and `f1` of the answers, then the user's metrics.

        Args:
            x: inputs, as for `predict`.
            y: class numbers (n,) or one-hot (n, classes).
            metrics: more of them: a list of Keras metrics or their names, or `{name: function(y_true, y_pred)}`.
        """
        return score(y, self.predict(x, batch_size), metrics)

    def _answers(self, x: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        first = self.stages[0]

        def run(arrays: list[np.ndarray], stage: TFLiteModel) -> np.ndarray:
            order = paired(as_inputs(first.inputs), as_inputs(stage.inputs), "the first file", "a later one")
            return stage.predict([arrays[place] for place in order], batch_size=batch_size)

        runs = [partial(run, stage=stage) for stage in self.stages]
        return in_turn(checked_inputs(x, first.inputs), runs, self.thresholds, self.from_logits)


def _written(stages: Sequence[TFLiteModel]) -> list[dict[str, Any]]:
    """What `export_cascade` wrote into the files."""
    written = [stage.metadata.get(_KEY) for stage in stages]
    places = [(part["stage"], part["stages"]) if part else None for part in written]
    if places != [(number, len(stages)) for number in range(1, len(stages) + 1)]:
        raise InvalidArgumentError(
            "Without `thresholds` and `from_logits` these are all files of one `export_cascade`, in their order.",
            received=f"files that are stages {places} (stage, of how many)",
        )
    if len({part.get("fingerprint") for part in written if part}) > 1:
        raise InvalidArgumentError(
            "Without `thresholds` and `from_logits` the files must come from one export of one cascade.",
            received="stages of different cascades",
            fix="Export the cascade again into an empty folder.",
        )
    return [part for part in written if part]
