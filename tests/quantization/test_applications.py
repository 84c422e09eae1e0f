"""Architectures of `keras.applications` in integers: one of most families; `benchmarks/coverage.py` has all forty."""

import importlib.util
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import tfopt

MATRIX_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
# MobileNetV3, EfficientNet, ResNetV2 and DenseNet are those that TFMOT fails on; ConvNeXt is in benchmarks/coverage.py.
FAMILIES = {
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {},
    "EfficientNetB0": {},
    "EfficientNetV2B0": {},
    "ResNet50V2": {},
    "DenseNet121": {},
}


def _random_weights():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "random_weights.py"
    spec = importlib.util.spec_from_file_location("random_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FAMILIES)
def test_the_integer_file_gives_the_class_of_the_model(name, tmp_path):
    weights = _random_weights()
    options = {"weights": None, "input_shape": (32, 32, 3), "classes": 20, "classifier_activation": None}
    model = getattr(keras.applications, name)(**options, **FAMILIES[name])
    images = weights.random_images(20, 32, high=weights.input_high(model))
    weights.spread_out(model, images)
    classes = np.asarray(model(images)).argmax(axis=1)
    assert len(set(classes)) > 10
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="These layers stay float")
        quantized = tfopt.quantize(model)
    calibrated = tfopt.calibrate(quantized, images)
    export = tfopt.export_tflite(calibrated, tmp_path / "model.tflite", data=images[:4], tolerance=0.5)
    file = tfopt.TFLiteModel(export.path)
    got = file.predict(images).argmax(axis=1)
    assert (got == np.asarray(calibrated(images)).argmax(axis=1)).mean() >= 0.95
    assert (got == classes).mean() >= 0.9
    assert not [op for op in file.op_types() if op.output_dtype == "float32" and op.name in MATRIX_OPS]
    assert export.size_bytes < 0.4 * 4 * model.count_params()
