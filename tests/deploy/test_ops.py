"""An int8 file holds the ops of its network and no other: each costs time on the device."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt


def convolution(x, filters, kernel, strides=1, relu=True):
    x = kl.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(x)
    x = kl.BatchNormalization()(x)
    return kl.ReLU()(x) if relu else x


def resnet8():
    """MLPerf Tiny's network, 4 filters wide."""
    image = keras.Input((16, 16, 3))
    x = convolution(image, 4, 3)
    for filters, strides in ((4, 1), (8, 2), (16, 2)):
        skip = x if strides == 1 else convolution(x, filters, 1, strides, relu=False)
        x = convolution(convolution(x, filters, 3, strides), filters, 3, relu=False)
        x = kl.ReLU()(kl.Add()([x, skip]))
    x = kl.Flatten()(kl.AveragePooling2D(4)(x))
    return keras.Model(image, kl.Dense(10, activation="softmax")(x))


def mobilenet_v2():
    """Two inverted bottlenecks, one with a skip, between stem and head of MobileNetV2."""
    image = keras.Input((16, 16, 3))
    x = kl.ReLU(6.0)(kl.BatchNormalization()(kl.Conv2D(8, 3, 2, padding="same", use_bias=False)(image)))
    for strides in (1, 2):
        block = kl.ReLU(6.0)(kl.BatchNormalization()(kl.Conv2D(16, 1, use_bias=False)(x)))
        block = kl.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(block)
        block = kl.ReLU(6.0)(kl.BatchNormalization()(block))
        block = kl.BatchNormalization()(kl.Conv2D(8, 1, use_bias=False)(block))
        x = kl.Add()([x, block]) if strides == 1 else block
    return keras.Model(image, kl.Dense(10, activation="softmax")(kl.GlobalAveragePooling2D()(x)))


EXPECTED = {
    # Stem, a block without and two with a convolution beside; a ReLU is part of the op before it, Flatten of the Dense.
    "resnet8": ["CONV_2D"] * 9 + ["ADD"] * 3 + ["MEAN", "FULLY_CONNECTED", "SOFTMAX"],
    "mobilenet_v2": ["CONV_2D"] * 5 + ["DEPTHWISE_CONV_2D"] * 2 + ["ADD", "MEAN", "FULLY_CONNECTED", "SOFTMAX"],
}


@pytest.mark.parametrize("build", [resnet8, mobilenet_v2], ids=lambda build: build.__name__)
def test_no_needless_op(build, tmp_path):
    model = build()
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    x = generator.uniform(-1, 1, (32, 16, 16, 3)).astype("float32")
    ready = tfopt.calibrate(tfopt.quantize(model), x)
    for io_type, ends in (("float32", ["QUANTIZE", "DEQUANTIZE"]), ("int8", []), ("uint8", ["QUANTIZE", "QUANTIZE"])):
        tfopt.export_tflite(ready, tmp_path / "m.tflite", data=x, input_type=io_type, output_type=io_type)
        ops = tfopt.TFLiteModel(tmp_path / "m.tflite").op_types()
        assert sorted(op.name for op in ops) == sorted(EXPECTED[build.__name__] + ends)
        assert {op.output_dtype for op in ops if op.name not in ("QUANTIZE", "DEQUANTIZE")} == {"int8"}
