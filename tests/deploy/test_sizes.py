"""Files of models whose inputs leave sizes open."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt


def images():
    layers = [kl.Conv2D(4, 3, padding="same", activation="relu"), kl.GlobalAveragePooling2D(), kl.Dense(2)]
    return keras.Sequential([keras.Input((None, None, 3), name="image"), *layers])


def tokens():
    ids, weights = keras.Input((None,), dtype="int32", name="ids"), keras.Input((None, 1), name="weights")
    hidden = kl.LSTM(4)(kl.Embedding(9, 4)(ids) * weights)
    return keras.Model({"ids": ids, "weights": weights}, kl.Dense(2)(hidden))


def data_for(name, size):
    generator = np.random.default_rng(size)
    if name == "images":
        return generator.normal(size=(12, size, size + 1, 3)).astype("float32")
    ids = generator.integers(0, 9, (12, size)).astype("int32")
    return {"weights": generator.normal(size=(12, size, 1)).astype("float32"), "ids": ids}


MODELS = {"images": images, "tokens": tokens}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [6, 9])
@pytest.mark.parametrize("scheme", [None, "int8"])
def test_sizes_are_those_of_the_data(name, size, scheme, tmp_path):
    keras.utils.set_random_seed(0)
    model, x = MODELS[name](), data_for(name, size)
    if scheme:
        model = tfopt.calibrate(tfopt.quantize(model, scheme), x)
    before = [tensor.shape for tensor in model.inputs]
    file = tfopt.TFLiteModel(tfopt.export_tflite(model, tmp_path / "m.tflite", data=x).path)
    assert [tensor.shape for tensor in model.inputs] == before
    off = np.abs(file.predict(x) - model.predict(x, verbose=0)).mean()
    assert off <= (1.5 * file.output_steps()[0] if scheme else 1e-6)


def test_sizes_are_those_that_are_given(tmp_path):
    file = tfopt.TFLiteModel(tfopt.export_tflite(images(), tmp_path / "m.tflite", input_shapes=(5, 7, 3)).path)
    assert [tuple(tensor.shape[1:]) for tensor in file.inputs] == [(5, 7, 3)]
    shapes = {"ids": (4,), "weights": (4, 1)}
    file = tfopt.TFLiteModel(tfopt.export_tflite(tokens(), tmp_path / "m.tflite", input_shapes=shapes).path)
    assert {tensor.name: tuple(tensor.shape[1:]) for tensor in file.inputs} == shapes


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (None, "input_shapes"),
        ((5, 7, 4), "must fit"),
        ((5, 3), "must fit"),
        ((0, 7, 3), "must fit"),
        ({"picture": (5, 7, 3)}, "'image'"),
        (7, "must fit"),
    ],
)
def test_errors(shapes, says, tmp_path):
    with pytest.raises(tfopt.InvalidArgumentError, match=says):
        tfopt.export_tflite(images(), tmp_path / "m.tflite", input_shapes=shapes)
    assert not list(tmp_path.iterdir())
