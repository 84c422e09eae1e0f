"""The verb `export_tflite`: convert, write whole, run, compare."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert_phase import ConverterError

from tfopt.core.catalog import prunable_weights
from tfopt.core.data import input_batches
from tfopt.core.errors import ExportError, FileError, InvalidArgumentError, first_line
from tfopt.core.files import check_writable, write_whole
from tfopt.core.graph import check_finite, check_model, walk_layers
from tfopt.core.keras_internals import functional_of, input_names
from tfopt.core.modes import FakeQuantized, mode
from tfopt.core.rewrite import computes_in_16_bits, in_float32
from tfopt.deploy.runner import TFLiteModel
from tfopt.deploy.sharing import share_vectors
from tfopt.interop import tfmot

QUANTIZATIONS = ("auto", "none", "dynamic", "float16", "int8")
IO_TYPES = {"float32": tf.float32, "int8": tf.int8, "uint8": tf.uint8}
# Mean absolute difference from the Keras model, as a fraction of the mean absolute deviation of its outputs. The last
# is for a float model: the difference then is the whole loss by quantization, not that of the conversion alone.
TOLERANCES = {"none": 1e-3, "float16": 2e-2, "dynamic": 0.1, "int8": 0.1, "int8 of a float model": 0.3}
SPARSE_ABOVE = 0.25  # fraction of zeros in the kernels from which sparse encoding is tried; below it never pays
SAMPLES = 8  # compared where no data is given
NARROWEST_RANGE = 1e-6  # to which the converter widens the range of 8-bit tensors


@dataclass(frozen=True)
class Export:
    """What was written, and how well it agrees with the model.

    Attributes:
        path: the file.
        quantization: `"none"`, `"dynamic"`, `"float16"` or `"int8"`.
        size_bytes: of the file.
        sparse: whether kernels are stored in sparse encoding.
        mean_difference: mean absolute difference of the file's outputs from the Keras model's, in output units.
        tolerance: the bound it was held to, in output units.
        samples: how many inputs were compared.
    """

    path: Path
    quantization: str
    size_bytes: int
    sparse: bool
    mean_difference: float
    tolerance: float
    samples: int


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    quantization: str = "auto",
    *,
    data: Any = None,
    input_type: str = "float32",
    output_type: str = "float32",
    sparse: bool | str = "auto",
    tolerance: float | None = None,
) -> Export:
    """Writes `model` as a .tflite file that was run and compared with the model before it reached `path`.

    The file takes one sample at a time, shape `(1, ...)`. It appears at `path` whole or not at all.

    Args:
        model: a float model, or one from `prune`, `quantize` or `calibrate` (a tf_keras model goes through TFMOT's
            road and the same checks).
        path: where to write.
        quantization: `"auto"` is int8 for a quantized model and none for a float one; `"none"` keeps float32;
            `"dynamic"` stores weights in 8 bits and computes in float; `"float16"` stores weights in 16 bits; `"int8"`
            computes in integers: of a quantized model with its own ranges, of a float model with ranges that the
            converter takes from `data`.
        data: inputs to compare on (and to calibrate a float model with): an array, a list or dict of arrays, `(x, y)`,
            a `tf.data.Dataset` or an iterator of batches. Without it, random inputs within the model's input range.
        input_type, output_type: `"float32"`, or `"int8"` or `"uint8"` for an int8 file.
        sparse: `"auto"` stores pruned kernels in LiteRT's sparse encoding where the file gets smaller by it; True and
            False force it.
        tolerance: highest mean absolute difference of the outputs, as a fraction of the mean absolute deviation of
            the model's outputs from their mean; by default 0.001 for none, 0.02 for float16 and for models that
            compute in 16 bits, 0.1 for dynamic and int8, 0.3 for int8 of a float model. One step of a quantized
            output is always allowed.

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
    target = check_writable(path)
    _check_options(quantization, input_type, output_type, sparse, tolerance)
    legacy = tfmot.is_tf_keras_model(model)
    if not legacy:
        check_model(model)
        check_finite(model)
        _check_shapes(model)
    kind = _resolve(model, quantization, legacy)
    if kind != "int8" and (input_type, output_type) != ("float32", "float32"):
        raise InvalidArgumentError(
            "`input_type` and `output_type` can be integers only in an int8 file.", received=f"quantization='{kind}'"
        )
    samples = _samples(model, data, legacy)
    expected = _predict(model, samples, legacy)
    io_types = input_type, output_type
    convert = partial(tfmot.convert, model, kind) if legacy else partial(_convert, model, kind, data, io_types)
    fraction = tolerance or TOLERANCES[_kind_of_difference(model, kind, legacy)]
    check = partial(_compare, samples=samples, expected=expected, fraction=fraction)
    content, encoded, (difference, allowed) = _smallest(convert, check, "no" if legacy else _encoding(model, sparse))
    write_whole(target, content)
    return Export(target, kind, len(content), encoded, difference, allowed, len(next(iter(samples.values()))))


def _check_shapes(model: keras.Model) -> None:
    if any(None in tensor.shape[1:] for tensor in model.inputs):
        raise InvalidArgumentError(
            "A .tflite has fixed shapes: each input dimension but the batch has to be known.",
            received=", ".join(f"{tensor.name}: {tuple(tensor.shape)}" for tensor in model.inputs),
            fix="Build the model with a full input shape and load the weights into it.",
        )


def _check_options(quantization, input_type, output_type, sparse, tolerance) -> None:
    if quantization not in QUANTIZATIONS:
        raise InvalidArgumentError(f"`quantization` is one of {', '.join(QUANTIZATIONS)}.", received=repr(quantization))
    for name, value in (("input_type", input_type), ("output_type", output_type)):
        if value not in IO_TYPES:
            raise InvalidArgumentError(f"`{name}` is one of {', '.join(IO_TYPES)}.", received=repr(value))
    if sparse not in (True, False, "auto"):
        raise InvalidArgumentError("`sparse` is 'auto', True or False.", received=repr(sparse))
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and tolerance > 0):
        raise InvalidArgumentError("`tolerance` is a fraction above 0.", received=repr(tolerance))


def _resolve(model, quantization: str, legacy: bool) -> str:
    """The kind of file, once it is clear that the model has what it takes."""
    if legacy:
        quantized = tfmot.is_quantized(model)
    else:
        marked = [(path, layer) for path, layer in walk_layers(model) if isinstance(layer, FakeQuantized)]
        quantized = bool(marked)
        unset = [
            f"{path}/{name}"
            for path, layer in marked
            for name, activation_range in layer.ranges().items()
            if activation_range.bounds() == (0.0, 0.0)
        ]
        if unset:
            raise InvalidArgumentError(
                "Each activation range has to be set by data before the export.",
                received=f"{len(unset)} unset: {', '.join(unset[:5])}" + (", ..." if len(unset) > 5 else ""),
                fix="Train the model with `fit`, or call `tfopt.calibrate(model, data)`.",
            )
    if quantized and quantization not in ("auto", "int8"):
        raise InvalidArgumentError(
            "A quantized model exports as int8.",
            received=f"quantization='{quantization}'",
            fix="For a float file export `tfopt.strip(model)`.",
        )
    return "int8" if quantized or quantization == "int8" else "none" if quantization == "auto" else quantization


def _encoding(model: keras.Model, sparse: bool | str) -> str:
    """Whether to store kernels sparse: `"yes"`, `"no"` or `"try"`."""
    if sparse == "auto":
        return "try" if _zero_fraction(model) >= SPARSE_ABOVE else "no"
    return "yes" if sparse else "no"


def _smallest(convert, check, encoding: str) -> tuple[bytes, bool, tuple[float, float]]:
    """The smallest file that passes the check, whether it is sparse-encoded, and what the check measured."""
    if encoding == "yes":
        encoded = share_vectors(convert(encode=True))
        return encoded, True, check(encoded)
    dense = share_vectors(convert())
    if encoding == "try":
        encoded = share_vectors(convert(encode=True))
        if len(encoded) < len(dense):
            # LiteRT has no sparse version of some ops and refuses such a file; the dense one then is the answer.
            with contextlib.suppress(FileError, ExportError):
                return encoded, True, check(encoded)
    return dense, False, check(dense)


def _zero_fraction(model: keras.Model) -> float:
    kernels = {id(w): w for _, layer in walk_layers(model) for w in prunable_weights(layer).values()}
    arrays = [kernel.numpy() for kernel in kernels.values()]
    return sum(int((a == 0).sum()) for a in arrays) / max(1, sum(a.size for a in arrays))


def _convert(model: keras.Model, kind: str, data, io_types: tuple[str, str], *, encode: bool = False) -> bytes:
    model = in_float32(model)
    with mode("export"):
        function = _frozen(model)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    if kind != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if encode:
        converter.optimizations = [*converter.optimizations, tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        # One range for a whole Dense kernel, as in TFMOT's scheme.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        converter.inference_input_type, converter.inference_output_type = (IO_TYPES[name] for name in io_types)
        if not any(isinstance(layer, FakeQuantized) for _, layer in walk_layers(model)):
            converter.representative_dataset = _representative(model, data)
    return run_converter(converter)


def _frozen(model: keras.Model):
    """The model's inference as a concrete function of constants.

    With every weight a constant, the converter neither has to go through a SavedModel nor finds unfrozen variables.
    """
    constants = [(v, tf.constant(keras.ops.convert_to_numpy(v))) for v in model.variables]
    structure = functional_of(model).input

    @tf.function(autograph=False)
    def infer(*inputs):
        with keras.StatelessScope(state_mapping=constants):
            outputs = keras.tree.flatten(model(keras.tree.pack_sequence_as(structure, inputs), training=False))
        return dict(zip(_output_names(model), outputs, strict=True))

    specs = [
        tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=name)
        for name, tensor in zip(input_names(model), functional_of(model).inputs, strict=True)
    ]
    return infer.get_concrete_function(*specs)


def _output_names(model) -> list[str]:
    """Names in the file, in the order of the flattened outputs: the keys of a dict of outputs, or numbers."""
    structure = functional_of(model).output
    if isinstance(structure, dict) and len(structure) == len(model.outputs):
        return sorted(structure)
    return [f"output_{index}" for index in range(len(model.outputs))]


def _representative(model, data):
    if data is None:
        raise InvalidArgumentError(
            "An int8 file of a float model needs data to set the ranges of activations.",
            received="data=None",
            fix="Pass some hundred training samples as `data`, or use `tfopt.quantize` and `tfopt.calibrate` first.",
        )

    def batches():
        for batch in input_batches(model, data, batch_size=1, limit=500):
            yield [array.astype(tensor.dtype) for array, tensor in zip(batch, model.inputs, strict=True)]

    return batches


def run_converter(converter) -> bytes:
    """The converter's result without what it prints; its failure as an `ExportError`."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), _quiet_logs():
            warnings.simplefilter("ignore")
            return converter.convert()
    except (ConverterError, tf.errors.OpError, RuntimeError, ValueError, TypeError) as error:
        raise ExportError(
            "The LiteRT converter has to accept the model.",
            received=first_line(error)[:300],
            fix="Leave the layer it names in float by `quantize(exclude=...)`, or replace it.",
        ) from error


@contextlib.contextmanager
def _quiet_logs():
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _samples(model, data, legacy: bool) -> dict[str, np.ndarray]:
    """Inputs to compare on, by input name."""
    names = model.input_names if legacy else input_names(model)
    if data is not None and not legacy and not hasattr(data, "__next__"):
        return dict(zip(names, next(iter(input_batches(model, data, batch_size=64, limit=64))), strict=True))
    generator = np.random.default_rng(0)
    return {
        name: _random_input(model, name, tensor, generator) for name, tensor in zip(names, model.inputs, strict=True)
    }


def _random_input(model, name: str, tensor, generator) -> np.ndarray:
    """Values within the range of the input where the model knows it, else within [0, 1); small integers for indices."""
    shape = (SAMPLES, *tensor.shape[1:])
    dtype = tf.as_dtype(tensor.dtype).as_numpy_dtype
    if not np.issubdtype(dtype, np.floating):
        return generator.integers(0, 2, shape).astype(dtype)
    low, high = 0.0, 1.0
    for layer in model.layers:
        if layer.name == f"{name}_range" and isinstance(layer, FakeQuantized):
            low, high = layer.ranges()["output"].bounds()
    return generator.uniform(low, high, shape).astype(dtype)


def _predict(model, samples: dict[str, np.ndarray], legacy: bool) -> dict[str, np.ndarray] | list[np.ndarray]:
    """The model's outputs, by their names in the file; in a list for tf_keras."""
    tensors = [tf.convert_to_tensor(x, t.dtype) for x, t in zip(samples.values(), model.inputs, strict=True)]
    structure = model.input if legacy else functional_of(model).input
    outputs = model(tf.nest.pack_sequence_as(structure, tensors), training=False)
    arrays = [np.asarray(output, np.float32) for output in tf.nest.flatten(outputs)]
    return arrays if legacy else dict(zip(_output_names(model), arrays, strict=True))


def _kind_of_difference(model, kind: str, legacy: bool) -> str:
    """The key of the tolerance: what of the difference comes from the file, what from the model."""
    if legacy:
        return kind
    if kind == "int8" and not any(isinstance(layer, FakeQuantized) for _, layer in walk_layers(model)):
        return "int8 of a float model"
    return "float16" if kind == "none" and computes_in_16_bits(model) else kind


def _compare(content: bytes, *, samples, expected, fraction: float) -> tuple[float, float]:
    """Mean absolute difference and its bound, of the output that comes closest to its bound."""
    file = TFLiteModel(content)
    outputs = file.predict(samples if len(samples) > 1 else next(iter(samples.values())))
    outputs = list(outputs.values()) if isinstance(outputs, dict) else keras.tree.flatten(outputs)
    wanted = [expected[tensor.name] for tensor in file.outputs] if isinstance(expected, dict) else expected
    measured = []
    for got, want, step in zip(outputs, wanted, file.output_steps(), strict=True):
        _check_width(step)
        want = want.astype(np.float64)  # sums of values near the end of float32 overflow in it
        difference = float(np.mean(np.abs(got - want)))
        deviation = float(np.mean(np.abs(want - np.mean(want))))
        allowed = max(fraction * deviation, step, 1e-6 * max(1.0, float(np.max(np.abs(want)))))
        measured.append((difference / allowed, difference, allowed))
        if not difference <= allowed:
            raise ExportError(
                "The .tflite has to compute what the Keras model computes.",
                received=f"mean absolute difference {difference:.3g}, allowed {allowed:.3g}",
                fix="Calibrate or train with data like that of use, leave a sensitive layer in float by "
                "`quantize(exclude=...)`, or raise `tolerance`. Nothing was written.",
            )
    return max(measured)[1:]


def _check_width(step: float) -> None:
    """Raises where the converter has widened the range of an output, which then is no longer the model's."""
    if math.isclose(step, NARROWEST_RANGE / 255, rel_tol=1e-3):
        raise ExportError(
            f"LiteRT has no range narrower than {NARROWEST_RANGE:g}, and that of an output has to be wider.",
            received="an output of smaller values",
            fix="Multiply the outputs, or the weights of the last layer, by a constant.",
        )
