"""The verb `export_tflite`: convert, run, compare, write whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfopt.core.data.inputs import inputs_of
from tfopt.core.errors import ExportError, FileError, InvalidArgumentError
from tfopt.core.files import check_writable, write_whole
from tfopt.core.layers.registry import prunable_weights
from tfopt.core.models.fake_quantized import check_ranges, fake_quantized
from tfopt.core.models.graph import Graph, check_finite, read, with_graph
from tfopt.core.models.loading import load_model
from tfopt.core.models.rewrite import computes_in_16_bits
from tfopt.core.types import Data
from tfopt.deploy.checks import Options, check_comparison, check_name, check_numbers, check_shapes
from tfopt.deploy.convert import convert, kind_of
from tfopt.deploy.flatbuffer.assembly import assemble
from tfopt.deploy.flatbuffer.metadata import all_metadata, checked_metadata
from tfopt.deploy.records import Check, Difference, Export
from tfopt.deploy.runner import TFLiteModel
from tfopt.deploy.sizes import sized
from tfopt.deploy.tensors import as_inputs
from tfopt.deploy.verify import Samples, checked, differences, file_predictions, predictions, samples_for, samples_of
from tfopt.interop import tfmot

# Mean absolute difference from the Keras model, as a fraction of the mean absolute deviation of its outputs. The last
# is for a float model: the difference then is the whole loss by quantization, not that of the conversion alone.
TOLERANCES = {
    "none": 1e-3,
    "weight_only": 1e-3,
    "int16x8": 1e-2,
    "float16": 2e-2,
    "dynamic": 0.1,
    "int8": 0.1,
    "int8 of a float model": 0.3,
}
SPARSE_ABOVE = 0.25  # fraction of zeros in the kernels from which sparse encoding is tried; below it never pays
SAMPLES, COMPARED = 64, 256  # of `data`: held against the model, or against another one too
ONLY = "serving_default"  # the signature of a file with one model, as the converter names it


def export_tflite(
    model: keras.Model | Mapping[str, keras.Model],
    path: str | os.PathLike,
    quantization: str = "auto",
    *,
    data: Data = None,
    input_type: str = "float32",
    output_type: str = "float32",
    batch_size: int | None = 1,
    input_shapes: Any = None,
    sparse: bool | str = "auto",
    tolerance: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    compare_with: Any = None,
    min_sqnr_db: float | None = None,
) -> Export:
    """Writes `model` as a .tflite file that was run and compared with the model before it reached `path`.

    The file appears at `path` whole or not at all.

    Args:
        model: a float model, or one from `prune`, `quantize` or `calibrate` (a tf_keras model goes through TFMOT's
            road and the same checks). A dict `{signature: model}` makes one file of several models; weights that are
            equal in the file, as those of shared layers are, are stored once.
        path: where to write.
        quantization: `"auto"` is what a quantized model was quantized for (int8, int16x8, float16, weight_only) and
            none for a float one; `"none"` keeps float32; `"dynamic"` stores weights in 8 bits and computes in float;
            `"float16"` stores weights in 16 bits; `"int8"` computes in integers: of a quantized model with its own
            ranges, of a float model with ranges that the converter takes from `data`; `"int16x8"` and
            `"weight_only"` only of a model quantized for it, whose own ranges and bits they have.
        data: inputs to compare on (and to calibrate a float model with): an array, a list or dict of arrays, `(x, y)`,
            a `tf.data.Dataset` or an iterator of batches. Without it, random inputs within the model's input range.
            For several models also a dict `{signature: data}`.
        input_type, output_type: `"float32"`, or `"int8"` or `"uint8"` for an int8 file; inputs and outputs that are
            integers in the model, as tokens are, stay what they are.
        batch_size: samples that the file takes at a time; None leaves it free, for the interpreter to resize.
        input_shapes: sizes that the model leaves open, as of `keras.Input((None, None, 3))`: `{input name: shape}`, or
            the shape of an only input, the batch left out. By default they are those of `data`.
        sparse: `"auto"` stores pruned kernels in LiteRT's sparse encoding where the file gets smaller by it; True and
            False force it.
        tolerance: highest mean absolute difference of the outputs, as a fraction of the mean absolute deviation of
            the model's outputs from their mean; by default 0.001 for none, 0.02 for float16 and for models that
            compute in 16 bits, 0.001 for weight_only, 0.01 for int16x8, 0.1 for dynamic and int8, 0.3 for int8 of a
            float model. One step of a quantized output is always allowed.
        metadata: what to write into the file, as JSON: `name`, `description`, `version`, `author`, `license` (texts),
            `labels` (a list of texts) and keys of your own; `TFLiteModel.metadata` reads it. tfopt adds its version,
            the quantization and the range of the inputs, and nothing to a file without metadata.
        compare_with: another model to compare the outputs of the file with, such as the float model that it was made
            from: a Keras model, a `TFLiteModel` or the path of either; for several models a dict `{signature: other}`.
        min_sqnr_db: least signal-to-noise ratio, in dB, of each output against `compare_with`; None sets no bound.

    Returns:
        An `Export` record.

    Raises:
        InvalidArgumentError: unknown option, ranges not set, data missing or of the wrong shape.
        UnsupportedModelError, NonFiniteError: as for the other verbs.
        FileError: the path cannot be written.
        ExportError: the converter fails, or the file does not compute what the model does. Nothing is written.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> export = export_tflite(model, tempfile.mkdtemp() + "/model.tflite")
        >>> export.quantization, export.mean_difference <= export.tolerance
        ('none', True)
    """
    model = with_graph(model)
    target = check_writable(path)
    check_name(target)
    options = Options.of(quantization, (input_type, output_type), batch_size, sparse, tolerance)
    metadata = checked_metadata(metadata)
    models = _by_signature(model)
    signatures = list(models) if isinstance(model, Mapping) else []
    check_comparison(compare_with, min_sqnr_db, signatures)
    of_each = partial(_of_signature, signatures=signatures)
    parts = [
        _part(name, each, of_each(data, name), of_each(compare_with, name), of_each(input_shapes, name), options)
        for name, each in models.items()
    ]
    content, encoded = _assembled(parts, options, metadata)
    checks, compared = zip(*(_verified(part, content, len(parts) > 1, options) for part in parts), strict=True)
    comparison = tuple(difference for each in compared for difference in each)
    _check_noise(comparison, min_sqnr_db)
    return Export(write_whole(target, content), len(content), encoded, checks, comparison)


@dataclass(frozen=True)
class _Part:
    """One model of the file, with what its outputs are compared with; `other` is empty where nothing was asked for.

    A model of tf_keras has no graph.
    """

    signature: str
    model: Any
    graph: Graph | None
    kind: str
    data: Any
    samples: Samples
    expected: dict[str, np.ndarray]
    other: dict[str, np.ndarray]
    fraction: float


def _part(signature: str, model: Any, data: Any, compare_with: Any, input_shapes: Any, options: Options) -> _Part:
    graph = None if tfmot.is_tf_keras_model(model) else read(model)
    if graph is not None:
        graph = sized(graph, input_shapes, data)
        model = graph.model
        check_finite(graph)
        check_numbers(graph)
        check_shapes(model)
        check_ranges(graph)
    kind = _resolve(model, graph, options.quantization)
    if kind != "int8" and options.io_types != ("float32", "float32"):
        raise InvalidArgumentError(
            "`input_type` and `output_type` can be integers only in an int8 file.", received=f"quantization='{kind}'"
        )
    legacy = graph is None
    samples = samples_for(model, data, legacy, SAMPLES if compare_with is None else COMPARED)
    expected = predictions(model, samples, legacy)
    other = {} if compare_with is None else _outputs_of(compare_with, samples, expected)
    fraction = options.tolerance or TOLERANCES[_kind_of_difference(graph, kind)]
    return _Part(signature, model, graph, kind, data, samples, expected, other, fraction)


def _by_signature(model: Any) -> dict[str, Any]:
    if not isinstance(model, Mapping):
        return {ONLY: model}
    if not model or not all(isinstance(name, str) and name for name in model):
        raise InvalidArgumentError(
            "Several models are given as a dict {signature: model}.", received=f"the keys {list(model)}"
        )
    return dict(model)


def _of_signature(value: Any, name: str, signatures: list[str]) -> Any:
    """What of `value` is for one of several signatures: all of it, unless it is a dict by signature."""
    if not isinstance(value, Mapping) or not signatures or not set(value) <= set(signatures):
        return value
    return value.get(name)


def _resolve(model: Any, graph: Graph | None, quantization: str) -> str:
    """The kind of file, once it is clear that the model has what it takes."""
    quantized = tfmot.is_quantized(model) if graph is None else bool(fake_quantized(graph))
    own = "none" if not quantized else "int8" if graph is None else kind_of(graph)
    if quantized and quantization not in ("auto", own):
        raise InvalidArgumentError(
            f"A quantized model exports as what it was quantized for, here {own}.",
            received=f"quantization='{quantization}'",
            fix="For a float file export `tfopt.strip(model)`.",
        )
    if not quantized and quantization in ("int16x8", "weight_only"):
        raise InvalidArgumentError(
            "Only a model that was quantized so exports as int16x8 or weight_only.",
            received=f"quantization='{quantization}' and a float model",
            fix="Call `tfopt.quantize(model, 'int16x8')` and `tfopt.calibrate`, or a scheme like 'int4_weight_only'.",
        )
    return own if quantization == "auto" else quantization


def _kind_of_difference(graph: Graph | None, kind: str) -> str:
    """The key of the tolerance: what of the difference comes from the file, what from the model."""
    if graph is None:
        return kind
    if kind == "int8" and not fake_quantized(graph):
        return "int8 of a float model"
    in_half = kind in ("none", "weight_only", "int16x8") and computes_in_16_bits(graph.model)
    return "float16" if in_half else kind


def _outputs_of(other: Any, samples: Samples, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the model to compare with, one for each of `expected`."""
    legacy = tfmot.is_tf_keras_model(other)
    if isinstance(other, (str, os.PathLike)):
        other = TFLiteModel(other) if Path(other).suffix == ".tflite" else load_model(other)
    if isinstance(other, TFLiteModel):
        outputs = file_predictions(other, samples_of(as_inputs(other.inputs), samples))
    else:
        samples = samples if legacy else samples_of(inputs_of(read(other).model), samples)
        inputs = [tuple(tensor.shape[1:]) for tensor in other.inputs]
        if inputs != [array.shape[1:] for array in samples.values()]:
            raise InvalidArgumentError(
                "`compare_with` has to take the inputs of the model.",
                received=f"inputs {inputs} instead of {[array.shape[1:] for array in samples.values()]}",
            )
        outputs = predictions(other, samples, legacy)
    shapes = [[array.shape for array in each.values()] for each in (outputs, expected)]
    if sorted(shapes[0]) != sorted(shapes[1]):
        raise InvalidArgumentError(
            "`compare_with` has to give the outputs of the model.", received=f"{shapes[0]} instead of {shapes[1]}"
        )
    return outputs


def _assembled(parts: list[_Part], options: Options, metadata: Mapping[str, Any] | None) -> tuple[bytes, bool]:
    """The file of all models, and whether one of them is sparse-encoded."""
    files = {part.signature: _smallest(part, options) for part in parts}
    written = all_metadata(metadata, {part.signature: (part.model, part.kind) for part in parts})
    content = assemble({name: content for name, (content, _) in files.items()}, written)
    return content, any(encoded for _, encoded in files.values())


def _smallest(part: _Part, options: Options) -> tuple[bytes, bool]:
    """The smallest file that runs, and whether it is sparse-encoded."""
    if part.graph is None:
        return tfmot.convert(part.model, part.kind, options.batch_size, options.io_types), False
    converted = partial(convert, part.graph, part.kind, part.data, options.io_types, options.batch_size)
    if options.sparse is True:
        return converted(encode=True), True
    dense = converted()
    if options.sparse == "auto" and _zero_fraction(part.graph) >= SPARSE_ABOVE:
        encoded = converted(encode=True)
        if len(encoded) < len(dense):
            # LiteRT has no sparse version of some ops and refuses such a file; the dense one then is the answer.
            with contextlib.suppress(FileError, ExportError):
                _verified(part, encoded, False, options)
                return encoded, True
    return dense, False


def _zero_fraction(graph: Graph) -> float:
    kernels = {id(w): w for _, layer in graph.layers for w in prunable_weights(layer).values()}
    arrays = [kernel.numpy() for kernel in kernels.values()]
    return sum(int((a == 0).sum()) for a in arrays) / max(1, sum(a.size for a in arrays))


def _verified(part: _Part, content: bytes, several: bool, options: Options) -> tuple[Check, tuple[Difference, ...]]:
    """Runs one signature of the file; what it was found to differ by."""
    file = TFLiteModel(content, signature=part.signature if several else None)
    _check_types(file, options.io_types)
    outputs = file_predictions(file, part.samples)
    difference, allowed = checked(outputs, part.expected, file.output_steps(), part.fraction)
    count = len(next(iter(part.samples.values())))
    check = Check(part.signature, part.kind, difference, allowed, count)
    return check, differences(outputs, part.other, part.signature) if part.other else ()


def _check_types(file: TFLiteModel, io_types: tuple[str, str]) -> None:
    """Raises for a real input or output that the converter left in float although integers were asked for."""
    for side, wanted, tensors in zip(("input", "output"), io_types, (file.inputs, file.outputs), strict=True):
        left = [tensor.name for tensor in tensors if tensor.dtype == "float32" != wanted]
        if left:
            raise ExportError(
                f"Each {side} that is to be {wanted} has to belong to a quantized layer.",
                received=f"float32 in {', '.join(left)}",
                fix=f"Quantize the layer beside it too, or leave `{side}_type` at 'float32'. Nothing was written.",
            )


def _check_noise(comparison: tuple[Difference, ...], min_sqnr_db: float | None) -> None:
    for row in comparison:
        if min_sqnr_db is not None and row.sqnr_db < min_sqnr_db:
            raise ExportError(
                f"The outputs have to agree with those of `compare_with` to {min_sqnr_db} dB.",
                received=f"{row.sqnr_db:.1f} dB in '{row.output}'",
                fix="Train or calibrate further, or lower `min_sqnr_db`. Nothing was written.",
            )
