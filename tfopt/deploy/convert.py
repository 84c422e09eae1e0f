"""Keras 3 models into the bytes of a .tflite file by LiteRT's converter. Nothing is written or run here."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert_phase import ConverterError

from tfopt.core.data.batches import input_batches
from tfopt.core.errors import ExportError, InvalidArgumentError, first_line
from tfopt.core.keras_internals import functional_of, input_names
from tfopt.core.models.fake_quantized import fake_quantized, mode, ranges_of
from tfopt.core.models.graph import Graph
from tfopt.core.models.rewrite import in_float32
from tfopt.deploy.flatbuffer.legalize import finished
from tfopt.deploy.flatbuffer.order import in_order
from tfopt.deploy.flatbuffer.packing import pack_kernels
from tfopt.deploy.forms import in_forms_of_files

IO_TYPES = {"float32": tf.float32, "int8": tf.int8, "uint8": tf.uint8}
INT16X8_OPS = [
    tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
    tf.lite.OpsSet.TFLITE_BUILTINS,
]
HALF = 16  # bits of weights that are half-precision floats
CALIBRATED_ON = 500  # samples, at most, of a float model that becomes int8


def convert(
    graph: Graph,
    kind: str,
    data: Any,
    io_types: tuple[str, str],
    batch_size: int | None,
    *,
    encode: bool = False,
) -> bytes:
    """The model as the converter writes it.

    Args:
        graph: of a float model, or of one with fake quantization whose ranges are set.
        kind: `"none"`, `"dynamic"`, `"float16"`, `"int8"`, `"int16x8"` or `"weight_only"`.
        data: what the ranges of a float model are taken from, for int8.
        io_types: dtypes of inputs and outputs that are real numbers.
        batch_size: of the file; None leaves it free.
        encode: stores kernels with zeros in sparse encoding.

    Raises:
        ExportError: the converter refuses the model.
        InvalidArgumentError: a float model is to become int8 without data.
    """
    graph = in_forms_of_files(in_float32(graph))
    with mode("export"):
        function = _frozen(graph.model, batch_size)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
    _set_options(converter, kind, io_types, encode)
    if kind in ("int8", "int16x8") and not fake_quantized(graph):
        converter.representative_dataset = _representative(graph.model, data, batch_size or 1)
    content = in_order(_run(converter, batch_size), input_names(graph.model), output_names(graph.model))
    if kind in ("int8", "int16x8") and fake_quantized(graph):
        content = finished(content)
    bits = weight_only_bits(graph) - {HALF}
    return pack_kernels(content, bits) if bits else content


def kind_of(graph: Graph) -> str:
    """The kind of file that a model with the layers of `quantize` becomes."""
    activation_bits = {part.bits for part in ranges_of(graph).values()}
    if activation_bits or not weight_only_bits(graph):
        return "int16x8" if 16 in activation_bits else "int8"
    return "float16" if HALF in weight_only_bits(graph) else "weight_only"


def weight_only_bits(graph: Graph) -> set[int]:
    """Bits of the kernels of layers that compute in float."""
    return {layer.weight_only_bits for _, layer in fake_quantized(graph) if layer.weight_only_bits is not None}


def output_names(model: keras.Model) -> list[str]:
    """Names in the file, in the order of the flattened outputs: the keys of a dict of outputs, or numbers."""
    structure = functional_of(model).output
    if isinstance(structure, dict) and len(structure) == len(model.outputs):
        return sorted(structure)
    return [f"output_{index}" for index in range(len(model.outputs))]


def _set_options(converter: Any, kind: str, io_types: tuple[str, str], encode: bool) -> None:
    """Tells the converter what numbers to compute in, and how to store kernels."""
    optimizations = [] if kind in ("none", "weight_only") else [tf.lite.Optimize.DEFAULT]
    converter.optimizations = optimizations + ([tf.lite.Optimize.EXPERIMENTAL_SPARSITY] if encode else [])
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind in ("int8", "int16x8"):
        # One range for a whole Dense kernel, as in TFMOT's scheme.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
        converter.inference_input_type, converter.inference_output_type = (IO_TYPES[name] for name in io_types)
    if kind == "int16x8":
        converter.target_spec.supported_ops = INT16X8_OPS


def _frozen(model: keras.Model, batch_size: int | None) -> Any:
    """The model's inference as a concrete function of constants.

    With every weight a constant, the converter neither has to go through a SavedModel nor finds unfrozen variables.
    """
    constants = [(v, tf.constant(keras.ops.convert_to_numpy(v))) for v in model.variables]
    structure = functional_of(model).input

    @tf.function(autograph=False)
    def infer(*inputs: Any) -> dict[str, Any]:
        with keras.StatelessScope(state_mapping=constants):
            outputs = keras.tree.flatten(model(keras.tree.pack_sequence_as(structure, inputs), training=False))
        return dict(zip(output_names(model), outputs, strict=True))

    specs = [
        tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype, name=name)
        for name, tensor in zip(input_names(model), functional_of(model).inputs, strict=True)
    ]
    return infer.get_concrete_function(*specs)


def _representative(model: keras.Model, data: Any, batch_size: int) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    if data is None:
        raise InvalidArgumentError(
            "An int8 file of a float model needs data to set the ranges of activations.",
            received="data=None",
            fix="Pass some hundred training samples as `data`, or use `tfopt.quantize` and `tfopt.calibrate` first.",
        )

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for batch in input_batches(model, data, batch_size=batch_size, limit=max(CALIBRATED_ON, batch_size)):
            for start in range(0, len(batch[0]), batch_size):  # the user's batches may be larger
                rows = np.arange(start, min(start + batch_size, len(batch[0])))
                rows = np.resize(rows, batch_size)  # the last ones start over where they fall short
                arrays = [array[rows].astype(tensor.dtype) for array, tensor in zip(batch, model.inputs, strict=True)]
                yield dict(zip(input_names(model), arrays, strict=True))  # a list would be in the converter's order

    return batches


def _run(converter: Any, batch_size: int | None) -> bytes:
    """The converter's result without what it prints; its failure as an `ExportError`."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), _quiet_logs():
            warnings.simplefilter("ignore")
            return converter.convert()
    except (ConverterError, tf.errors.OpError, RuntimeError, ValueError, TypeError) as error:
        raise ExportError(
            "The LiteRT converter has to accept the model.",
            received=first_line(error)[:300],
            fix="Give the file a batch of its own, `batch_size=1`: recurrent layers, for one, cannot leave it free."
            if batch_size is None
            else "Leave the layer it names in float by `quantize(exclude=...)`, or replace it.",
        ) from error


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
