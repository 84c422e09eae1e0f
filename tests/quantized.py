"""What tests of quantized layers share."""

import warnings

import keras
import numpy as np

import tfopt
from tfopt.core.keras_internals import input_names
from tfopt.core.models.fake_quantized import ranges_of
from tfopt.core.models.graph import read


def quietly(model, scheme="int8", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tfopt.quantize(model, scheme, **options)


def ranges(model):
    """`{"path/name": (low, high)}` of all activation ranges."""
    return {path: part.bounds() for path, part in ranges_of(read(model)).items()}


def randomize(model, seed=0):
    generator = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(generator.normal(0, 0.5, weight.shape))
    return model


def inputs_for(model, samples=16):
    generator = np.random.default_rng(1)
    arrays = []
    for tensor in model.inputs:
        shape = (samples, *tensor.shape[1:])
        if tensor.dtype == "bool":
            arrays.append(generator.random(shape) < 0.7)
        elif tensor.dtype == "int32":
            tokens = generator.integers(1, 10, shape)
            arrays.append(np.where(np.arange(shape[1]) < generator.integers(2, shape[1], (samples, 1)), tokens, 0))
        else:
            arrays.append(generator.normal(0, 1, shape).astype("float32"))
    return arrays if len(arrays) > 1 else arrays[0]


def float_ops(file):
    """Names of the ops that compute in float32, but for those at the door of the file."""
    doors = ("QUANTIZE", "DEQUANTIZE")
    return sorted({op.name for op in file.op_types() if "float32" in (op.input_dtype, op.output_dtype)} - {*doors})


def outputs_of(model, x):
    return [np.asarray(y, "float32") for y in keras.tree.flatten(model(x, training=False))]


def file_outputs(file, model, x):
    inputs = dict(zip(input_names(model), x, strict=True)) if isinstance(x, list) else x
    got = file.predict(inputs)
    return list(got.values()) if isinstance(got, dict) else keras.tree.flatten(got)
