"""Architectures of `keras.applications`: one of most families; `benchmarks/coverage.py` has all forty, with .tflite."""

import keras
import numpy as np
import pytest

import tfopt

FAMILIES = {
    "VGG16": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "InceptionV3": 75,
    "Xception": 71,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "ConvNeXtTiny": 32,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_the_channels_gone_without_a_trace(name):
    size = FAMILIES[name]
    options = {"weights": None, "input_shape": (size, size, 3), "classes": 10, "classifier_activation": None}
    model = getattr(keras.applications, name)(**options)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                low, high = (0.7, 1.3) if weight.name in ("gamma", "moving_variance") else (-0.2, 0.2)
                weight.assign(generator.uniform(low, high, weight.shape))
    masked = tfopt.prune(model, pattern="channel", sparsity=0.5)
    small = tfopt.shrink(masked)
    images = generator.uniform(size=(2, size, size, 3)).astype("float32")
    if any(isinstance(layer, keras.layers.Rescaling) for layer in model.layers):
        images *= 255
    expected = np.asarray(masked(images, training=False))
    np.testing.assert_allclose(small(images, training=False), expected, atol=1e-4)
    assert np.ptp(expected) > 1e-6
    assert small.count_params() < 0.4 * model.count_params()
