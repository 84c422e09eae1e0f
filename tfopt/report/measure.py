"""Measures models and .tflite files into frozen records."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.layers.registry import prunable_weights
from tfopt.core.models.fake_quantized import FakeQuantized
from tfopt.core.models.graph import Graph, read
from tfopt.core.models.macs import model_macs
from tfopt.core.models.opening import opened as open_layers
from tfopt.deploy.runner import TFLiteModel
from tfopt.report.records import FileSummary, ModelSummary, OpRow, WeightRow
from tfopt.report.rows import LayerRow


def summary(model: keras.Model | TFLiteModel | str | os.PathLike) -> ModelSummary | FileSummary:
    """Counts what a model holds and computes.

    Args:
        model: a built Keras model, a `TFLiteModel`, or the path of a .tflite or Keras file.

    Returns:
        A `ModelSummary` with a row a layer, or a `FileSummary` for a .tflite. Both print as tables, show in Jupyter,
        and have `to_markdown()`, `to_html()`, `to_json()`, `to_dict()` and `save(path)`.

    Raises:
        UnsupportedModelError: for an unbuilt model, or one that is no graph.
        FileError: for a file that cannot be read.
        InvalidArgumentError: for anything else.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> summary(model).parameters, summary(model).macs
        (15, 12)
    """
    source = opened(model)
    return file_summary(source) if isinstance(source, TFLiteModel) else model_summary(source)


def opened(source: Any) -> Graph | TFLiteModel:
    """The graph of a model, or a .tflite file, loaded if `source` is a path."""
    if isinstance(source, (str, os.PathLike)):
        if Path(source).suffix.lower() == ".tflite":
            return TFLiteModel(source)
        from tfopt.core.models.loading import load_model

        return open_layers(read(load_model(source)), composed=False)
    if isinstance(source, TFLiteModel):
        return source
    if not isinstance(source, keras.Model):
        raise InvalidArgumentError(
            "A Keras model, a `TFLiteModel` or the path of a file is expected.",
            received=f"{type(source).__module__}.{type(source).__name__}",
        )
    return open_layers(read(source), composed=False)


def model_summary(graph: Graph) -> ModelSummary:
    macs = model_macs(graph)
    shapes = dict(_output_shapes(graph))
    layers = {path: layer for path, layer in graph.layers if not isinstance(layer, keras.Model)}
    nonzero: dict[int, int] = {}
    rows = [_row(path, layers[path], shapes.get(path, ()), macs[path], nonzero) for path in macs if path in layers]
    rows += [_op_row(path, shapes[path], value) for path, value in macs.items() if path not in layers and value]
    order = {path: place for place, path in enumerate(macs)}
    weights = {id(weight): weight for layer in layers.values() for weight in _weights(layer)}
    kernels = {id(weight) for layer in layers.values() for weight in _kernels(layer)} & set(weights)
    return ModelSummary(
        graph.model.name,
        tuple(sorted(rows, key=lambda row: order[row.path])),
        sum(_size(weight) for weight in weights.values()),
        sum(_nonzero(weights.values(), nonzero)),
        sum(_size(weights[key]) for key in kernels),
        sum(nonzero[key] for key in kernels),
        None if None in macs.values() else sum(value for value in macs.values() if value is not None),
    )


def _output_shapes(graph: Graph, prefix: str = "") -> Iterable[tuple[str, tuple[int | None, ...]]]:
    for call in graph.calls:
        path = prefix + call.op.name
        yield path, tuple(call.outputs[0].shape)
        if isinstance(call.op, keras.Model):
            yield from _output_shapes(graph.inner(call.op), f"{path}/")


def _row(path: str, layer: Any, shape: tuple, macs: int | None, nonzero: dict[int, int]) -> LayerRow:
    inner = _inner(layer)
    weights, kernels = _weights(layer), _kernels(layer)
    kind = type(inner).__name__ if inner is layer else f"{type(layer).__name__}({type(inner).__name__})"
    parameters, kernel_parameters = sum(map(_size, weights)), sum(map(_size, kernels))
    used, kernel_used = sum(_nonzero(weights, nonzero)), sum(_nonzero(kernels, nonzero))
    return LayerRow(path, kind, shape, parameters, used, kernel_parameters, kernel_used, macs)


def _op_row(path: str, shape: tuple, macs: int | None) -> LayerRow:
    return LayerRow(path, "op", shape, 0, 0, 0, 0, macs)


def _inner(layer: Any) -> Any:
    """The layer inside a wrapper of tfopt."""
    return layer.layer if getattr(layer, "wraps_layer", False) else layer


def _weights(layer: Any) -> list:
    """Parameters of the model: the ranges that `quantize` puts in are none."""
    inner = _inner(layer)
    return [] if isinstance(inner, FakeQuantized) else inner.weights


def _kernels(layer: Any) -> list:
    return list(prunable_weights(_inner(layer)).values())


def _size(weight: Any) -> int:
    return int(np.prod(weight.shape))


def _nonzero(weights: Iterable, known: dict[int, int]) -> list[int]:
    """Non-zero elements of each weight; a weight is looked at once."""
    for weight in weights:
        if id(weight) not in known:
            known[id(weight)] = int(np.count_nonzero(keras.ops.convert_to_numpy(weight)))
    return [known[id(weight)] for weight in weights]


def file_summary(file: TFLiteModel) -> FileSummary:
    ops = Counter(file.op_types())
    groups: dict[str, list] = {}
    for weight in file.weights():
        groups.setdefault(weight.dtype, []).append(weight)
    weights = (
        WeightRow(
            dtype,
            len(group),
            sum(weight.elements for weight in group),
            sum(weight.nonzero for weight in group),
            sum(weight.size_bytes for weight in group),
        )
        for dtype, group in groups.items()
    )
    return FileSummary(
        file.path.name if file.path else "file",
        file.size_bytes,
        file.gzip_bytes,
        tuple(map(str, file.inputs)),
        tuple(map(str, file.outputs)),
        tuple(OpRow(op.name, op.input_dtype, op.output_dtype, number) for op, number in ops.most_common()),
        tuple(weights),
    )
