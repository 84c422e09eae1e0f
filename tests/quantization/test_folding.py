"""Batch normalization and the integers in the file: folded where a kernel has a scale for each channel."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers as kl

import tfopt

GAMMA = np.array([0.3, -2.0, 0.0, 5.0, -0.01, 1.0], "float32")


def normalized(layer, shape, *, rectifier=True):
    """`layer`, batch normalization with a negative, a zero and very different factors, and ReLU; with data."""
    generator = np.random.default_rng(5)
    tail = [kl.ReLU(name="relu")] if rectifier else []
    model = keras.Sequential([keras.Input(shape), layer, kl.BatchNormalization(name="bn"), *tail])
    channels = len(GAMMA)
    weights = [GAMMA, *(generator.normal(size=channels) for _ in range(2)), generator.uniform(0.2, 4, channels)]
    model.get_layer("bn").set_weights(weights)
    return model, generator.normal(size=(64, *shape)).astype("float32")


def assert_one_step_apart(file, calibrated, x, *, ops=1):
    """Of `ops` in a row, a value that only one side rounds up grows behind the first, in at most 1 of 500."""
    steps = np.abs(file.predict(x) - np.asarray(calibrated(x))) / file.output_steps()[0]
    assert (steps > 1.01).mean() <= (0.002 if ops > 1 else 0)
    assert steps.mean() < 0.1


def exported(model, x, tmp_path):
    calibrated = tfopt.calibrate(tfopt.quantize(model), x, method="minmax", bias_correction=False)
    tfopt.export_tflite(calibrated, tmp_path / "m.tflite", data=x)
    return calibrated, (tmp_path / "m.tflite").read_bytes()


def constants(content, name):
    """(integers, scales, dtype) of each input of the first op `name`; no integers for the activation."""
    interpreter = Interpreter(model_content=content)
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    op = next(op for op in interpreter._get_ops_details() if op["op_name"] == name)
    parts = []
    for index in op["inputs"]:
        if index >= 0:  # -1 stands for no bias
            values = interpreter.get_tensor(index) if parts else None  # the first is the activation
            parts.append((values, details[index]["quantization_parameters"]["scales"], details[index]["dtype"]))
    return parts


@pytest.mark.parametrize(
    ("layer", "ops"),
    [
        (lambda: kl.Conv2D(6, 3, name="kernels"), 1),
        (lambda: kl.Conv2D(6, 3, strides=2, padding="same", use_bias=False, name="kernels"), 1),
        (lambda: kl.DepthwiseConv2D(3, depth_multiplier=3, name="kernels"), 1),
        (lambda: kl.Conv2DTranspose(6, 3, name="kernels"), 2),
    ],
    ids=["convolution", "strided", "depthwise", "transposed"],
)
def test_file_and_model_agree_to_one_step(layer, ops, tmp_path):
    model, x = normalized(layer(), (6, 6, 2))
    calibrated, content = exported(model, x, tmp_path)
    file = tfopt.TFLiteModel(content)
    assert_one_step_apart(file, calibrated, x, ops=ops)
    assert not [op for op in file.op_types() if op.output_dtype == "float32" and op.name != "DEQUANTIZE"]


@pytest.mark.parametrize(("shape", "units"), [((7,), 6), ((5, 7), 6)], ids=["vector", "sequence"])
def test_dense_and_its_normalization_agree_to_one_step(shape, units, tmp_path):
    model, x = normalized(kl.Dense(units, name="kernels"), shape)
    calibrated, content = exported(model, x, tmp_path)
    file = tfopt.TFLiteModel(content)
    assert_one_step_apart(file, calibrated, x, ops=2)
    kernel = model.get_layer("kernels").kernel.numpy()
    integers, scales, _ = constants(content, "FULLY_CONNECTED")[1]
    assert scales == pytest.approx(np.abs(kernel).max() / 127)
    np.testing.assert_array_equal(integers, np.rint(kernel / scales[0]).T)


@pytest.mark.parametrize("name", ["Conv1D", "DepthwiseConv1D", "Conv1DTranspose"])
def test_convolutions_of_sequences_agree_to_one_step(name, tmp_path):
    options = {"depth_multiplier": 2} if name == "DepthwiseConv1D" else {"filters": 6}
    model, x = normalized(getattr(kl, name)(kernel_size=3, name="kernels", **options), (9, 3))
    calibrated, content = exported(model, x, tmp_path)
    file = tfopt.TFLiteModel(content)
    assert_one_step_apart(file, calibrated, x, ops=2 if name == "Conv1DTranspose" else 1)
    assert not [op for op in file.op_types() if op.output_dtype == "float32" and op.name != "DEQUANTIZE"]


def test_folding_changes_no_integer_of_a_kernel_with_a_scale_for_each_channel(tmp_path):
    model, x = normalized(kl.Conv2D(6, 3, name="kernels"), (6, 6, 2))
    content = exported(model, x, tmp_path)[1]
    kernel = model.get_layer("kernels").kernel.numpy()
    alone = np.rint(127 * kernel / np.abs(kernel).max(axis=(0, 1, 2))) * np.sign(GAMMA)
    integers, scales, _ = constants(content, "CONV_2D")[1]
    np.testing.assert_array_equal(integers, alone.transpose(3, 0, 1, 2))
    factor = GAMMA / np.sqrt(model.get_layer("bn").moving_variance.numpy() + model.get_layer("bn").epsilon)
    wanted = np.abs(kernel * factor).max(axis=(0, 1, 2)) / 127
    np.testing.assert_allclose(scales[GAMMA != 0], wanted[GAMMA != 0], rtol=1e-5)


def test_the_bias_is_the_folded_one_in_32_bits(tmp_path):
    model, x = normalized(kl.Conv2D(6, 3, name="kernels"), (6, 6, 2))
    model.get_layer("kernels").bias.assign(np.linspace(-1, 1, 6))
    (_, input_scale, _), (_, kernel_scales, _), (bias, scales, dtype) = constants(
        exported(model, x, tmp_path)[1], "CONV_2D"
    )
    assert dtype == np.int32
    used = GAMMA != 0
    np.testing.assert_allclose(scales[used], (input_scale * kernel_scales)[used], rtol=1e-5)
    norm = model.get_layer("bn")
    factor = GAMMA / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    folded = (model.get_layer("kernels").bias.numpy() - norm.moving_mean.numpy()) * factor + norm.beta.numpy()
    assert np.abs(bias - folded / scales)[used].max() < 0.51
