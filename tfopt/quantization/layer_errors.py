"""The verbs `quantization_errors` and `suggest_float_layers`: what rounding does to each layer's output."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.checks import as_count, as_number
from tfopt.core.data.batches import input_batches
from tfopt.core.errors import InvalidArgumentError, TargetNotMetError
from tfopt.core.models.fake_quantized import FakeQuantized, check_quantized, check_ranges, fake_quantized
from tfopt.core.models.graph import Graph, read
from tfopt.core.types import Data
from tfopt.quantization.calibrate import calibrate
from tfopt.quantization.error_report import LayerError, QuantizationErrors, decibels
from tfopt.quantization.layers import FakeQuantize, QuantizedLayer
from tfopt.quantization.quantize import quantize
from tfopt.quantization.side_by_side import SideBySide, Step


def quantization_errors(
    model: keras.Model, data: Data, *, samples: int | None = 64, batch_size: int = 32
) -> QuantizationErrors:
    """Measures what rounding does to the output of each quantized layer, against the float model it is rounded from.

    A kernel, the batch normalization and the rectifier behind it become one operation in the file, and are one row.
    Time is linear in layers and samples.

    Args:
        model: from `calibrate`, or from `quantize` and trained.
        data: as for `calibrate`; best not the samples that it was calibrated on.
        samples: use at most so many, None for all.
        batch_size: for arrays.

    Returns:
        A `QuantizationErrors` record of signal-to-quantization-noise ratios (SQNR) in dB, the layer first that is
        worst by itself. It prints as a table, shows in Jupyter, and has `plot()`, `to_dict()` and `save(path)`.

    Raises:
        InvalidArgumentError: the model is not quantized, ranges are not set, or data of the wrong form or shape.
        NonFiniteError: NaN or infinity in the data.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")])
        >>> x = np.random.default_rng(0).normal(size=(32, 2))
        >>> errors = quantization_errors(calibrate(quantize(model), x), x)
        >>> errors["d"].alone_db > 30
        True
    """
    graph = read(model)
    check_quantized(graph, "quantization_errors")
    check_ranges(graph)
    return _measured(SideBySide(graph), list(input_batches(model, data, batch_size=batch_size, limit=samples)))


def suggest_float_layers(
    model: keras.Model,
    data: Any,
    *,
    target_db: float | None = None,
    max_layers: int | None = None,
    samples: int | None = 64,
    batch_size: int = 32,
) -> dict[str, None]:
    """Names the layers to leave in float: those whose rounding alone does most harm, as `quantize(overrides=...)`.

    Layers that become one operation in the file, as a convolution, its batch normalization and rectifier, go together.

    Args:
        model: a float model, which is quantized and calibrated with `data` for the purpose, or a quantized one with
            its ranges set.
        data: as for `calibrate`.
        target_db: as few layers, taken from the worst on, as give this signal-to-quantization-noise ratio at the
            output of the model (at the worst, if there are several).
        max_layers: at most so many operations; without `target_db` just so many.
        samples: measure on at most so many, None for all.
        batch_size: for arrays.

    Returns:
        `{layer path: None}`, worst first; empty if the target is met with all layers rounded.

    Raises:
        InvalidArgumentError: neither `target_db` nor `max_layers`, one out of range, ranges not set, or data of the
            wrong form or shape.
        TargetNotMetError: not even with all layers allowed in float; the message says what was reached.

    Example:
        >>> layers = [keras.layers.Dense(4, "relu", name="a"), keras.layers.Dense(2, name="b")]
        >>> model = keras.Sequential([keras.Input((2,)), *layers])
        >>> x = np.random.default_rng(0).normal(size=(64, 2))
        >>> len(suggest_float_layers(model, x, max_layers=1))
        1
    """
    _check_wanted(target_db, max_layers)
    graph = read(model)
    batches = list(input_batches(model, data, batch_size=batch_size, limit=samples))
    if not fake_quantized(graph):
        whole = [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what stays float anyway is said by the user's own `quantize`
            graph = read(calibrate(quantize(model), whole))
    check_ranges(graph)
    pair = SideBySide(graph)
    errors = _measured(pair, batches)
    ranked = [layer.layers for layer in errors.layers if layer.layers and layer.alone_db is not None]
    ranked = ranked if max_layers is None else ranked[:max_layers]
    number = len(ranked) if target_db is None else _fewest(pair, batches, ranked, target_db, errors.output_db)
    return {path: None for paths in ranked[:number] for path in paths}


def _fewest(
    pair: SideBySide, batches: list, ranked: list[tuple[str, ...]], target_db: float, all_db: float | None
) -> int:
    """How many of the ranked operations have to stay float, by bisection: each more helps, as good as always."""

    def reached(number: int) -> float:
        outputs = _Outputs()
        stays_float = frozenset(path for paths in ranked[:number] for path in paths)
        for batch in batches:
            outputs.add(*pair.run(batch, stays_float=stays_float))
        return _as_number(outputs.worst_db())

    if _as_number(all_db) >= target_db:
        return 0
    most = reached(len(ranked)) if ranked else _as_number(all_db)
    if most < target_db:
        raise TargetNotMetError(
            f"`target_db` is to be within reach of {len(ranked)} operations in float.",
            received=f"{target_db}, where {decibels(all_db)} dB rise to {most:.1f} dB",
            fix="Ask for less, or allow more with `max_layers`.",
        )
    low, high = 0, len(ranked)  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= target_db else (middle, high)
    return high


@dataclass
class _Noise:
    """Sums of squares of a signal and of its error."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: Any, rounded: Any) -> None:
        exact, rounded = np.asarray(exact, np.float64), np.asarray(rounded, np.float64)
        self.signal += float(np.square(exact).sum())
        self.noise += float(np.square(exact - rounded).sum())

    def db(self) -> float | None:
        """None for an exact signal; a lost one, all noise, has at least -300 dB."""
        return 10 * math.log10(max(self.signal / self.noise, 1e-30)) if self.noise else None


@dataclass
class _Outputs:
    """Noise of each output of the model."""

    outputs: dict[int, _Noise] = field(default_factory=dict)

    def add(self, exact: list, rounded: list) -> None:
        for index, pair in enumerate(zip(exact, rounded, strict=True)):
            self.outputs.setdefault(index, _Noise()).add(*pair)

    def worst_db(self) -> float | None:
        ratios = [ratio for ratio in (noise.db() for noise in self.outputs.values()) if ratio is not None]
        return min(ratios, default=None)


class _Meter:
    """Follows a run of both models and adds up the noise of each rounded output."""

    def __init__(self) -> None:
        self.layers: dict[str, tuple[str, ...]] = {}
        self.accumulated: dict[str, _Noise] = {}
        self.alone: dict[str, _Noise] = {}
        self.inside: dict[int, Any] = {}  # id(tensor) -> value, between layers of one operation that is rounded alone

    def after(self, step: Step, exact: list, rounded: list) -> None:
        op = step.call.op
        ends = _rounds_output(op, step.graph)
        if not (
            ends or isinstance(op, QuantizedLayer) or any(id(tensor) in self.inside for tensor in step.call.inputs)
        ):
            return
        values = {id(t): self.inside.get(id(t), step.exact[id(t)]) for t in step.call.inputs}
        alone = step.run_quantized(values)
        if not ends:
            self.inside.update((id(tensor), value) for tensor, value in zip(step.call.outputs, alone, strict=True))
            return
        if step.path not in self.layers:
            self.layers[step.path] = _operation(step)
        for noises, got in ((self.accumulated, rounded), (self.alone, alone)):
            for pair in zip(exact, got, strict=True):
                noises.setdefault(step.path, _Noise()).add(*pair)

    def errors(self) -> tuple[LayerError, ...]:
        found = [
            LayerError(path, paths, position, self.alone[path].db(), self.accumulated[path].db())
            for position, (path, paths) in enumerate(self.layers.items())
        ]
        return tuple(sorted(found, key=lambda layer: _as_number(layer.alone_db)))


def _measured(pair: SideBySide, batches: list) -> QuantizationErrors:
    meter, outputs = _Meter(), _Outputs()
    for batch in batches:
        outputs.add(*pair.run(batch, after=meter.after))
        meter.inside.clear()
    samples = sum(len(batch[0]) for batch in batches)
    return QuantizationErrors(pair.graph.model.name, samples, outputs.worst_db(), meter.errors())


def _rounds_output(op: keras.Operation, graph: Graph) -> bool:
    """True if a row of the report ends here: the output has a range, or comes from a kernel whose output has none."""
    if not isinstance(op, FakeQuantized):
        return False
    return bool(op.ranges()) or not _leads_to_range(op, graph)


def _leads_to_range(op: keras.Operation, graph: Graph) -> bool:
    reader = graph.sole_consumer(op)
    if isinstance(reader, kl.BatchNormalization):
        return _leads_to_range(reader, graph)
    return isinstance(reader, FakeQuantized) and bool(reader.ranges())


def _operation(step: Step) -> tuple[str, ...]:
    """Paths of the layers that become one operation, in their order; none for a range by itself."""
    op = step.call.op
    if isinstance(op, FakeQuantize):
        return ()
    prefix = step.path.removesuffix(op.name)
    names = [op.name]
    producer = step.graph.sole_producer(op)
    while producer is not None and step.graph.sole_consumer(producer) is op and _joins(producer):
        names.insert(0, producer.name)
        op, producer = producer, step.graph.sole_producer(producer)
    return tuple(prefix + name for name in names)


def _joins(op: keras.Operation) -> bool:
    """True for what the range behind it rounds too."""
    return isinstance(op, (kl.BatchNormalization, kl.Add)) or (isinstance(op, QuantizedLayer) and not op.ranges())


def _as_number(ratio: float | None) -> float:
    return math.inf if ratio is None else ratio


def _check_wanted(target_db: Any, max_layers: Any) -> None:
    if target_db is not None:
        as_number("target_db", target_db, what="a finite number of decibels", fix="Try 30.")
    if max_layers is not None:
        as_count("max_layers", max_layers)
    if target_db is None and max_layers is None:
        raise InvalidArgumentError(
            "`target_db` or `max_layers` says how many layers to leave in float.",
            received="neither",
            fix="Pass for example `max_layers=1`; `tfopt.quantization_errors` shows the ratios as they are.",
        )
