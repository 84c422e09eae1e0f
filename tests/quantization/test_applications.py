"""Architectures of `keras.applications` in integers: one of most families; `benchmarks/coverage.py` has all forty.

MobileNetV2, MobileNetV3, EfficientNet, ResNet and DenseNet go their whole road in `tests/deploy/test_tflite.py`.
"""

import importlib.util
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import tfopt

MATRIX_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
# The first part of each, up to the named layer. TFMOT fails on EfficientNet, ResNetV2, NASNet, InceptionResNetV2 and
# ConvNeXt.
FAMILIES = {
    "EfficientNetV2B0": "block4c_add",
    "ResNet50V2": "conv3_block2_out",
    "ConvNeXtTiny": "convnext_tiny_stage_1_block_1_identity",
    "Xception": "block3_sepconv2_bn",
    "NASNetMobile": "normal_concat_0",
    "InceptionResNetV2": "block35_2_ac",
    "VGG16": "block3_pool",
}
SIZES = {"Xception": 71, "InceptionResNetV2": 75}


def _random_weights():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "random_weights.py"
    spec = importlib.util.spec_from_file_location("random_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _first_part(name, size):
    options = {"weights": None, "input_shape": (size, size, 3), "classes": 20, "classifier_activation": None}
    model = getattr(keras.applications, name)(**options)
    features = keras.layers.GlobalAveragePooling2D()(model.get_layer(FAMILIES[name]).output)
    return keras.Model(model.input, keras.layers.Dense(20)(features))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_integer_file_gives_the_class_of_the_model(name, tmp_path):
    weights = _random_weights()
    size = SIZES.get(name, 32)
    model = _first_part(name, size)
    images = weights.random_images(20, size, high=weights.input_high(model))
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
