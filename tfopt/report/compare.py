"""Compares models and .tflite files side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tfopt.core.data.batches import input_batches
from tfopt.core.data.metrics import named_metrics, score
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.graph import Graph
from tfopt.core.models.preprocessing import reads_raw
from tfopt.core.reporting.render import UNKNOWN, Report, Table, count, decimal, percent
from tfopt.core.types import Data
from tfopt.deploy.runner import Latency, TFLiteModel
from tfopt.report.contenders import Runner, Samples
from tfopt.report.ensembles import Ensemble, ensemble_of
from tfopt.report.measure import file_summary, model_summary, opened
from tfopt.report.records import ModelSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {"precision": "precision", "recall": "recall", "f1": "F1", "mae": "MAE", "rmse": "RMSE"}


@dataclass(frozen=True)
class Row:
    """One contender; None where a number is not known.

    Args:
        scores: `accuracy` and macro `precision`, `recall`, `f1`, or `mae` and `rmse`; then the user's metrics.
        parameters: of the Keras model; of the .tflite, with batch normalization folded, where only that was given.
        macs: multiply-accumulates for one sample.
        float32_bytes: of the Keras model's parameters: not the size of a file.
        size_bytes, gzip_bytes: of the .tflite file.
        latency: of the .tflite file.
        training_seconds: as given by the caller.
        layers: the Keras model layer by layer.
    """

    name: str
    scores: dict[str, float]
    parameters: int
    nonzero_parameters: int
    sparsity: float | None
    macs: int | None
    float32_bytes: int | None
    size_bytes: int | None
    gzip_bytes: int | None
    latency: Latency | None
    training_seconds: float | None
    layers: ModelSummary | None


@dataclass(frozen=True, repr=False)
class Comparison(Report):
    """Contenders side by side. Prints as a table, shows in Jupyter, `save`s as HTML, Markdown, JSON or text.

    Args:
        ensembles: the branches of each Keras model that is a fusion, where there are data.
    """

    rows: tuple[Row, ...]
    samples: int | None
    ensembles: tuple[Ensemble, ...] = ()

    def __getitem__(self, name: str) -> Row:
        """The row of the contender `name`."""
        return next(row for row in self.rows if row.name == name)

    @property
    def title(self) -> str:
        return "Comparison of models"

    def tables(self) -> list[Table]:
        columns = self._columns()
        shown = {title: cells for title, cells in columns.items() if set(cells) != {UNKNOWN}}
        rows = tuple(zip((row.name for row in self.rows), *shown.values(), strict=True))
        contenders = Table(self.title, ("model", *shown), rows, notes=self._notes())
        return [contenders, *(table for ensemble in self.ensembles for table in ensemble.tables())]

    def figures(self) -> dict[str, Figure]:
        from tfopt.report.plots import LAYERS_CAPTION, SCATTER_CAPTION, layer_figure, scatter_figure

        figures = {}
        if self._points():
            figures[SCATTER_CAPTION] = scatter_figure(self._points(), self._main_score())
        layers = {row.name: row.layers.layers for row in self.rows if row.layers is not None}
        if layers:
            figures[LAYERS_CAPTION] = layer_figure(layers)
        return figures

    def plot(self) -> Figure:
        """Score against size; where no size or score is known, bars per layer.

        Raises:
            InvalidArgumentError: if there is nothing to plot: .tflite files alone, without data.
        """
        figures = self.figures()
        if not figures:
            raise InvalidArgumentError("A plot needs a Keras model, or .tflite files with data to score them on.")
        return next(iter(figures.values()))

    def _columns(self) -> dict[str, list[str]]:
        rows = self.rows
        scores = dict.fromkeys(name for row in rows for name in row.scores)
        file_sizes_known = all(row.size_bytes is not None for row in rows)
        return {
            **{_TITLES.get(name, name): [decimal(row.scores.get(name)) for row in rows] for name in scores},
            "parameters": [count(row.parameters) for row in rows],
            "non-zero": [count(row.nonzero_parameters) for row in rows],
            "sparsity": [percent(row.sparsity) for row in rows],
            "MACs": [count(row.macs) for row in rows],
            "float32 bytes": [UNKNOWN if file_sizes_known else count(row.float32_bytes) for row in rows],
            "bytes": [count(row.size_bytes) for row in rows],
            "gzip": [count(row.gzip_bytes) for row in rows],
            "latency ms": [_latency_text(row.latency) for row in rows],
            "training s": [decimal(row.training_seconds, 1) for row in rows],
        }

    def _notes(self) -> tuple[str, ...]:
        names = {name for row in self.rows for name in row.scores}
        timed = [row.latency for row in self.rows if row.latency is not None]
        notes = [
            self.samples is not None and f"Scores on {self.samples:,} samples, of the .tflite file where there is one.",
            "precision" in names and "Precision, recall and F1 are macro averages.",
            any(row.sparsity is not None for row in self.rows) and "Sparsity: zeros in the kernels of the Keras model.",
            any(row.layers is None for row in self.rows)
            and "Parameters of a file without its Keras model are those in the file: batch normalization is folded.",
            any(row.size_bytes is None for row in self.rows)
            and "Float32 bytes: 4 for each parameter of the Keras model, not the size of a file.",
            any(row.size_bytes is not None for row in self.rows) and "Bytes and gzip: size of the .tflite file.",
            timed and _timing_note(timed),
        ]
        return tuple(note for note in notes if isinstance(note, str))

    def _main_score(self) -> str:
        return next((name for row in self.rows for name in row.scores), "")

    def _points(self) -> list[tuple[str, int, float]]:
        main = self._main_score()
        return [
            (row.name, row.size_bytes, row.scores[main])
            for row in self.rows
            if row.size_bytes is not None and main in row.scores
        ]


def compare(
    models: Mapping[str, Any],
    data: Data | None = None,
    *,
    metrics: Any = (),
    latency: bool = True,
    training_seconds: Mapping[str, float] | None = None,
    batch_size: int = 128,
    verbose: int = 0,
) -> Comparison:
    """Measures models and .tflite files on the same data into one table; of fused models the branches into another.

    Args:
        models: `{name: contender}`. A contender is a Keras model, a `TFLiteModel`, the path of a .tflite or Keras file,
            or a pair `(Keras model, .tflite)`: scores, sizes and latency are then of the file, parameters and MACs of
            the model it was exported from.
        data: `(x, y)` to score on, with sample weights or not, or a data set or an iterator of such batches. Inputs are
            arrays, for several a dict by name, or a list in the order of the first contender: the others get theirs by
            name. Where a contender has its preprocessing in it, they are for that one, as strings; contenders without
            it get what it makes of them. Labels are class numbers or one-hot, or regression targets;
            `tfopt.core.data.metrics.score` tells how the task is recognised. Scores count each sample once, as
            `metrics=` of `compile` does.
        metrics: more scores: `{name: function(y_true, y_pred) -> float}`, or a list of Keras metrics or their names.
        latency: times the .tflite files: one sample at a time, on the threads of the `TFLiteModel` (1 for a path).
        training_seconds: `{name: seconds}`, to show as a column.
        batch_size: samples at a time for the scores.
        verbose: 1 shows a progress bar.

    Returns:
        A frozen `Comparison` with a `Row` a contender, and an `Ensemble` for each Keras model that fuses branches.

    Raises:
        InvalidArgumentError: for no contender, one of another kind, data that do not go together or with the models.
        UnsupportedModelError: for an unbuilt model, or one that is no graph.
        FileError: for a file that cannot be read.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
        >>> comparison = compare({"small": model}, (np.ones((2, 4)), np.array([0, 2])))
        >>> comparison["small"].parameters, sorted(comparison["small"].scores)
        (15, ['accuracy', 'f1', 'precision', 'recall'])
    """
    seconds = _checked_seconds(models, training_seconds)
    named_metrics(metrics)
    pairs = {name: _pair(name, contender) for name, contender in models.items()}
    samples = None if data is None else Samples.of(data, _read_by(pairs))
    rows = []
    for name, (graph, file) in _progress(pairs, verbose):
        scores = {} if samples is None else _scores(_runner(graph, file), samples, metrics, batch_size)
        rows.append(_row(name, graph, file, scores, latency, seconds.get(name)))
    if samples is None:
        return Comparison(tuple(rows), None)
    graphs = {name: graph for name, (graph, _) in pairs.items() if graph is not None}
    fused = [
        ensemble_of(name, graph, samples.inputs_for(graph.model), samples.y, batch_size)
        for name, graph in graphs.items()
    ]
    return Comparison(tuple(rows), len(samples), tuple(ensemble for ensemble in fused if ensemble is not None))


def _checked_seconds(models: Any, seconds: Any) -> Mapping[str, float]:
    if not isinstance(models, Mapping) or not models or not all(isinstance(name, str) for name in models):
        raise InvalidArgumentError(
            "`models` is a dict {name: model} with at least one entry.",
            received=f"{models!r:.60}",
        )
    seconds = {} if seconds is None else seconds
    if not isinstance(seconds, Mapping) or not set(seconds) <= set(models):
        raise InvalidArgumentError("`training_seconds` is a dict {name in `models`: seconds}.", received=repr(seconds))
    return seconds


def _pair(name: str, contender: Any) -> tuple[Graph | None, TFLiteModel | None]:
    """The graph of the Keras model and the .tflite file of a contender, each None if not given."""
    parts = [opened(part) for part in (contender if isinstance(contender, (tuple, list)) else [contender])]
    kinds = [isinstance(part, TFLiteModel) for part in parts]
    if kinds not in ([False], [True], [False, True]):
        raise InvalidArgumentError(
            "A contender is a Keras model, a .tflite file or a pair (Keras model, .tflite file).",
            received=f"'{name}': {', '.join('file' if is_file else 'Keras model' for is_file in kinds)}",
        )
    graph = None if kinds[0] else cast("Graph", parts[0])
    return graph, cast("TFLiteModel", parts[-1]) if kinds[-1] else None


def _read_by(pairs: Mapping[str, tuple[Graph | None, TFLiteModel | None]]) -> Graph | TFLiteModel:
    """The contender that the data is for: one with preprocessing in it, else the first."""
    whole = (graph for graph, _ in pairs.values() if graph is not None and reads_raw(graph))
    graph, file = next(iter(pairs.values()))
    return next(whole, cast("TFLiteModel", file) if graph is None else graph)


def _runner(graph: Graph | None, file: TFLiteModel | None) -> Runner:
    """What is scored of a contender."""
    return file or cast("Graph", graph).model


def _scores(runner: Runner, samples: Samples, metrics: Any, batch_size: int) -> dict[str, float]:
    x = samples.inputs_for(runner)
    if isinstance(runner, TFLiteModel):
        return score(samples.y, runner.predict(x, batch_size), metrics)
    next(input_batches(runner, x, limit=1))  # a clear word on shapes, where Keras would fail inside a graph
    return score(samples.y, runner.predict(x, batch_size=batch_size, verbose=0), metrics)


def _row(
    name: str,
    graph: Graph | None,
    file: TFLiteModel | None,
    scores: dict[str, float],
    latency: bool,
    seconds: float | None,
) -> Row:
    layers = None if graph is None else model_summary(graph)
    measured = layers if layers is not None else file_summary(cast("TFLiteModel", file))
    return Row(
        name,
        scores,
        measured.parameters,
        measured.nonzero_parameters,
        None if layers is None else layers.sparsity,
        None if layers is None else layers.macs,
        None if layers is None else layers.float32_bytes,
        None if file is None else file.size_bytes,
        None if file is None else file.gzip_bytes,
        _timed(file) if file is not None and latency else None,
        seconds,
        layers,
    )


def _timed(file: TFLiteModel) -> Latency:
    """Runs for about half a second, so that the median of a small model stands still too."""
    once = file.latency(runs=3, warmup=3).median_ms
    return file.latency(runs=min(max(int(500 / once), 20), 1000))


def _latency_text(latency: Latency | None) -> str:
    if latency is None:
        return UNKNOWN
    return f"{latency.median_ms:.3f} [{latency.p10_ms:.3f}, {latency.p90_ms:.3f}]"


def _timing_note(timed: list[Latency]) -> str:
    threads = " and ".join(sorted({"one thread" if each.threads == 1 else f"{each.threads} threads" for each in timed}))
    runs = min(each.runs for each in timed)
    return (
        f"Latency: median [10th, 90th percentile] of {runs} runs or more of the .tflite file with one sample, "
        f"LiteRT on this CPU, {threads}."
    )


def _progress(pairs: Mapping[str, Any], verbose: int) -> Iterable[tuple[str, Any]]:
    if not verbose:
        return pairs.items()
    from rich.progress import track

    return track(list(pairs.items()), description="compare")
