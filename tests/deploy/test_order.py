"""Inputs and outputs of a file stand in the order of the model's."""

import keras
import numpy as np
from keras import layers as kl

import tfopt

GENERATOR = np.random.default_rng(0)


def test_inputs_and_states_of_a_decoder(tmp_path):
    keras.utils.set_random_seed(0)
    token, h, c = keras.Input((1, 6), name="token"), keras.Input((4,), name="h"), keras.Input((4,), name="c")
    out, new_h, new_c = kl.LSTM(4, return_sequences=True, return_state=True)(token, initial_state=[h, c])
    model = keras.Model([token, h, c], [kl.Dense(3)(out), new_h, new_c])
    x = [GENERATOR.normal(size=shape).astype("float32") for shape in ((8, 1, 6), (8, 4), (8, 4))]
    file = tfopt.TFLiteModel(tfopt.export_tflite(model, tmp_path / "m.tflite", data=x).path)
    assert [tensor.name for tensor in file.inputs] == ["token", "h", "c"]
    for got, want in zip(file.predict(x), model(x), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_more_than_ten_outputs(tmp_path):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, [keras.ops.multiply(inputs, float(factor)) for factor in range(1, 13)])
    x = GENERATOR.normal(size=(4, 2)).astype("float32")
    file = tfopt.TFLiteModel(tfopt.export_tflite(model, tmp_path / "m.tflite", data=x).path)
    for factor, got in enumerate(file.predict(x), start=1):
        np.testing.assert_allclose(got, factor * x, rtol=1e-6)


def test_ranges_of_a_float_model_go_to_their_inputs(tmp_path):
    """The names stand in another order than the inputs."""
    for names in (("a", "b"), ("b", "a")):
        small, wide = (keras.Input((4,), name=name) for name in names)
        model = keras.Model([small, wide], kl.Concatenate()([kl.Dense(2)(small), kl.Dense(2)(wide)]))
        data = [GENERATOR.uniform(-1, 1, (64, 4)), GENERATOR.uniform(-100, 100, (64, 4))]
        data = [values.astype("float32") for values in data]
        options = {"data": data, "input_type": "int8", "tolerance": 10.0}
        path = tfopt.export_tflite(model, tmp_path / "m.tflite", "int8", **options).path
        steps = [tensor.scale for tensor in tfopt.TFLiteModel(path).inputs]
        np.testing.assert_allclose(steps, [np.ptp(values) / 255 for values in data], rtol=0.01)
