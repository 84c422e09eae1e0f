"""Files against the models that they come from, and against others, on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.data.batches import input_batches
from tfopt.core.data.inputs import Input
from tfopt.core.data.pairs import paired
from tfopt.core.errors import ExportError
from tfopt.core.keras_internals import functional_of, input_names
from tfopt.core.models.fake_quantized import FakeQuantized
from tfopt.deploy.convert import output_names
from tfopt.deploy.records import Difference
from tfopt.deploy.runner import TFLiteModel

RANDOM_SAMPLES = 8  # compared where no data is given
BATCH_SIZE = 32
NARROWEST_RANGE = 1e-6  # to which the converter widens the range of 8-bit tensors

Samples = dict[str, np.ndarray]


def samples_for(model: Any, data: Any, legacy: bool, limit: int) -> Samples:
    """Inputs to compare on, by input name: the first of `data`, or random ones within the model's input range."""
    names = model.input_names if legacy else input_names(model)
    if data is not None and not legacy and not hasattr(data, "__next__"):
        batches = input_batches(model, data, batch_size=limit, limit=limit)
        return {name: np.concatenate(parts) for name, *parts in zip(names, *batches, strict=True)}
    generator = np.random.default_rng(0)
    return {
        name: _random_input(model, name, tensor, generator) for name, tensor in zip(names, model.inputs, strict=True)
    }


def samples_of(inputs: Sequence[Input], samples: Samples) -> Samples:
    """The samples by the names of another model's inputs, in its order.

    Raises:
        InvalidArgumentError: neither names nor shapes tell which input is which.
    """
    own = [Input(name, (None, *array.shape[1:]), str(array.dtype)) for name, array in samples.items()]
    order = paired(own, inputs, "model", "compare_with")
    arrays = list(samples.values())
    return {each.name: arrays[place] for each, place in zip(inputs, order, strict=True)}


def input_ranges(model: Any) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each input that the model has a range of; others are left out."""
    names = {f"{name}_range": name for name in input_names(model)}
    found = [(names[layer.name], layer) for layer in model.layers if layer.name in names]
    return {name: layer.ranges()["output"].bounds() for name, layer in found if isinstance(layer, FakeQuantized)}


def predictions(model: Any, samples: Samples, legacy: bool) -> dict[str, np.ndarray]:
    """The model's outputs, by their names in the file."""
    structure = model.input if legacy else functional_of(model).input
    count = len(next(iter(samples.values())))
    parts = []
    for start in range(0, count, BATCH_SIZE):
        arrays = [array[start : start + BATCH_SIZE] for array in samples.values()]
        tensors = [tf.convert_to_tensor(x, t.dtype) for x, t in zip(arrays, model.inputs, strict=True)]
        outputs = model(tf.nest.pack_sequence_as(structure, tensors), training=False)
        parts.append([np.asarray(output, np.float32) for output in tf.nest.flatten(outputs)])
    arrays = [np.concatenate(values) for values in zip(*parts, strict=True)]
    names = [f"output_{index:03d}" for index in range(len(arrays))] if legacy else output_names(model)
    return dict(zip(names, arrays, strict=True))


def file_predictions(file: TFLiteModel, samples: Samples) -> dict[str, np.ndarray]:
    """The file's outputs by their names; inputs of other names are taken in their order."""
    same = {tensor.name for tensor in file.inputs} == set(samples)
    outputs = file.predict(samples if same else list(samples.values()), BATCH_SIZE)
    named = outputs if isinstance(outputs, dict) else None
    arrays = [named[tensor.name] for tensor in file.outputs] if named else keras.tree.flatten(outputs)
    return {tensor.name: values for tensor, values in zip(file.outputs, arrays, strict=True)}


def checked(
    outputs: dict[str, np.ndarray], wanted: dict[str, np.ndarray], steps: list[float], fraction: float
) -> tuple[float, float]:
    """Mean absolute difference and its bound, of the output that comes closest to its bound.

    Args:
        outputs: of the file.
        wanted: of the model; tf_keras numbers its outputs as the file does.
        steps: one quantization step of each output.
        fraction: the bound, as a fraction of the mean absolute deviation of the wanted values from their mean.

    Raises:
        ExportError: an output differs by more.
    """
    measured = []
    for (name, got), step in zip(outputs.items(), steps, strict=True):
        _check_width(step)
        want = wanted[name].astype(np.float64)  # sums of values near the end of float32 overflow in it
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


def differences(
    outputs: dict[str, np.ndarray], others: dict[str, np.ndarray], signature: str
) -> tuple[Difference, ...]:
    """Each output of the file against the one of that name, or of that place, of another model."""
    pairs = [(name, outputs[name], others[name]) for name in outputs if name in others]
    if len(pairs) < len(outputs):
        pairs = [(name, got, want) for (name, got), want in zip(outputs.items(), others.values(), strict=True)]
    return tuple(_difference(signature, name, got, want) for name, got, want in pairs)


def _difference(signature: str, name: str, got: np.ndarray, want: np.ndarray) -> Difference:
    got, want = got.astype(np.float64), want.astype(np.float64)
    noise, signal = float(np.sum((got - want) ** 2)), float(np.sum(want**2))
    sqnr = float("inf") if noise == 0 else 10 * float(np.log10(max(signal, np.finfo(float).tiny) / noise))
    several = want.ndim > 1 and want.shape[-1] > 1
    agreement = float(np.mean(got.argmax(-1) == want.argmax(-1))) if several else None
    return Difference(signature, name, float(np.mean(np.abs(got - want))), agreement, sqnr)


def _random_input(model: Any, name: str, tensor: Any, generator: np.random.Generator) -> np.ndarray:
    """Values within the range of the input where the model knows it, else within [0, 1); small integers for indices."""
    shape = (RANDOM_SAMPLES, *tensor.shape[1:])
    dtype = tf.as_dtype(tensor.dtype).as_numpy_dtype
    if not np.issubdtype(dtype, np.floating):
        return generator.integers(0, 2, shape).astype(dtype)
    low, high = (0.0, 1.0) if not isinstance(model, keras.Model) else input_ranges(model).get(name, (0.0, 1.0))
    return generator.uniform(low, high, shape).astype(dtype)
