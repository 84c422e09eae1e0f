"""A `Softmax` layer with a mask: masked scores weigh nothing in the file, and do not stretch the others' range."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from quantized import file_outputs, float_ops, outputs_of, quietly, randomize

import tfopt


def masked(axis=-1, mask_shape=(6, 6), dtype="bool"):
    """The masked softmax of `(6, 6)` scores that a Dense layer gives."""
    x, mask = keras.Input((6, 8)), keras.Input(mask_shape, dtype=dtype)
    layer = kl.Softmax(axis, name="weights")
    return randomize(keras.Model([x, mask], layer(kl.Dense(6)(x), mask=mask)))


def masked_inputs(model, samples=16):
    """Scores and masks that show at least one score of each row and column."""
    generator = np.random.default_rng(1)
    shape = (samples, *model.inputs[1].shape[1:])
    mask = generator.random(shape) < 0.5
    mask |= np.eye(6, dtype=bool) if shape[1:] == (6, 6) else (np.arange(6) == 2).reshape(shape[1:])
    return [generator.normal(0, 1, (samples, 6, 8)).astype("float32"), mask.astype(model.inputs[1].dtype)]


CASES = {
    "last": (masked, "int8"),
    "16_bits": (masked, "int16x8"),
    "integers": (lambda: masked(mask_shape=(1, 6), dtype="int32"), "int8"),
    "other_axis": (lambda: masked(axis=1, mask_shape=(6, 1)), "int8"),
    "both_axes": (lambda: masked(axis=[1, 2], mask_shape=(1, 6)), "int8"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_in_integers_what_the_model_does(name, tmp_path):
    make, scheme = CASES[name]
    model = make()
    data = masked_inputs(model)
    want = outputs_of(model, data)[0]
    quantized = quietly(model, scheme)
    np.testing.assert_allclose(outputs_of(quantized, data)[0], want, atol=0.01)  # of rounded kernels
    quantized = tfopt.calibrate(quantized, data)
    tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=data)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    kept, got = outputs_of(quantized, data)[0], file_outputs(file, model, data)[0]
    assert {op.output_dtype for op in file.op_types() if op.name == "SOFTMAX"} == {scheme[:5].rstrip("x")}
    assert float_ops(file) == []
    assert np.abs(got - kept).mean() <= (0.3 if scheme == "int8" else 2) * file.output_steps()[0]
    assert np.abs(kept - want).mean() <= 0.03 * want.std()
    hidden = np.broadcast_to(data[1] == 0, want.shape)
    assert hidden.any()
    assert not got[hidden].any()
    axes = tuple(axis - 3 if axis > 0 else axis for axis in np.atleast_1d(model.get_layer("weights").axis))
    np.testing.assert_allclose(got.sum(axes), 1, atol=0.03)


def test_a_mask_leaves_the_scores_their_range():
    """Room below the lowest score for 6 masked ones: log(512 * 6) = 8.03."""
    model = masked()
    x, mask = masked_inputs(model)
    scores = np.asarray(model.layers[1](x))[mask]
    quantized = tfopt.calibrate(quietly(model), [x, mask], method="minmax", bias_correction=False)
    low, high = quantized.get_layer("weights").ranges()["scores"].bounds()
    np.testing.assert_allclose((low, high), (scores.min() - np.log(512 * 6), scores.max()), atol=0.1)


def test_the_same_layer_takes_scores_with_and_without_a_mask(tmp_path):
    x, mask = keras.Input((6, 8)), keras.Input((6, 6), dtype="bool")
    scores, layer = kl.Dense(6)(x), kl.Softmax()
    model = randomize(keras.Model([x, mask], kl.Concatenate()([layer(scores, mask), layer(scores)])))
    data = masked_inputs(model)
    quantized = tfopt.calibrate(quietly(model), data)
    tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=data)
    quantized.save(tmp_path / "m.keras")
    loaded = tfopt.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(outputs_of(loaded, data)[0], outputs_of(quantized, data)[0])
    stripped = tfopt.strip(quietly(model))
    np.testing.assert_array_equal(outputs_of(stripped, data)[0], outputs_of(model, data)[0])


def test_without_a_mask_the_layer_stays_what_it_is():
    model = keras.Sequential([keras.Input((6,)), kl.Dense(4), kl.Softmax()])
    assert type(quietly(model).layers[-1]) is kl.Softmax
