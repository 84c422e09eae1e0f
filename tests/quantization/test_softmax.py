"""A `Softmax` layer with a mask: masked scores weigh nothing in the file, and do not stretch the others' range."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops
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


# Masks written as ops.

CAUSAL = np.triu(np.full((6, 6), -1e9, "float32"), 1)


class OwnAttention(kl.Layer):
    """A user's layer: scores plus a mask term, and a causal one of constants."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = kl.Dense(6)

    def call(self, x, mask):
        return ops.softmax(
            ops.where(ops.arange(6) <= ops.arange(6)[:, None], self.dense(x) + (1.0 - mask) * -1e9, -1e9)
        )


def moved(scores, mask):
    """Softmax over an axis that comes to another place."""
    chosen = ops.where(mask > 0.5, scores, -1e9)
    return ops.reshape(ops.softmax(ops.reshape(ops.transpose(chosen, (0, 2, 1)), (-1, 6, 3, 2)), axis=1), (-1, 6, 6))


FORMS = {  # name: (dtype of the mask, what gives the weights)
    "where": ("bool", lambda s, m: ops.softmax(ops.where(m, s, -1e9))),
    "where_infinite": ("bool", lambda s, m: ops.softmax(ops.where(m, s, float("-inf")))),
    "where_swapped": ("int32", lambda s, m: ops.softmax(ops.where(m == 0, -1e4, s), axis=1)),
    "moved": ("float32", moved),
    "added": ("float32", lambda s, m: ops.softmax(s + (1 - m) * -1e9)),
    "added_layer": ("float32", lambda s, m: kl.Softmax(axis=1)(kl.Add()([s, (m - 1) * 1e4]))),
    "added_activation": ("int32", lambda s, m: kl.Activation("softmax")(s + (1.0 - ops.cast(m, "float32")) * -1e9)),
    "subtracted": ("float32", lambda s, m: ops.softmax(s - (1 - m) * 1e9)),
    "chosen_term": ("bool", lambda s, m: ops.softmax(s + ops.where(m, 0.0, -1e9))),
    "causal": ("bool", lambda s, m: ops.softmax(ops.where(m, s + CAUSAL, -1e9))),
    "two_terms": ("bool", lambda s, m: ops.softmax(s + (ops.where(m, 0.0, -1e9) + CAUSAL))),
}


def by_ops(name):
    dtype, weights = FORMS[name]
    x, mask = keras.Input((6, 8)), keras.Input((6, 6), dtype=dtype)
    return randomize(keras.Model([x, mask], weights(kl.Dense(6)(x), mask)))


def assert_right(model, quantized, data, path, steps):
    """The quantized model against the float one, and its file against it; returns the file."""
    want, kept = outputs_of(model, data)[0], outputs_of(quantized, data)[0]
    assert np.abs(kept - want).mean() <= 0.03 * want.std()
    tfopt.export_tflite(quantized, path, data=data)
    file = tfopt.TFLiteModel(path)
    assert np.abs(file_outputs(file, model, data)[0] - kept).mean() <= steps * file.output_steps()[0]
    return file


@pytest.mark.parametrize("name", FORMS)
def test_masks_by_ops_weigh_nothing(name, tmp_path):
    model = by_ops(name)
    data = masked_inputs(model)
    quantized = tfopt.calibrate(quietly(model), data)
    file = assert_right(model, quantized, data, tmp_path / "m.tflite", 0.35)
    assert set(float_ops(file)) <= {"CAST"}  # of the mask that comes in
    quantized.save(tmp_path / "m.keras")
    loaded = tfopt.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(outputs_of(loaded, data)[0], outputs_of(quantized, data)[0])
    np.testing.assert_array_equal(outputs_of(tfopt.strip(quantized), data)[0].shape, (16, 6, 6))


@pytest.mark.parametrize("name", ["where", "added", "subtracted"])
def test_masks_by_ops_in_16_bits(name, tmp_path):
    model = by_ops(name)
    data = masked_inputs(model)
    quantized = tfopt.calibrate(quietly(model, "int16x8"), data)
    assert_right(model, quantized, data, tmp_path / "m.tflite", 2)


def test_a_mask_in_an_own_layer(tmp_path):
    x, mask = keras.Input((6, 8)), keras.Input((6, 6))
    model = randomize(keras.Model([x, mask], OwnAttention()(x, mask)))
    data = masked_inputs(model)
    quantized = tfopt.calibrate(quietly(model), data)
    assert_right(model, quantized, data, tmp_path / "m.tflite", 0.35)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_other_methods_leave_masked_scores_out(method):
    model = by_ops("added")
    data = masked_inputs(model)
    want = outputs_of(model, data)[0]
    got = outputs_of(tfopt.calibrate(quietly(model), data, method=method), data)[0]
    assert np.abs(got - want).mean() <= 0.03 * want.std()


@pytest.mark.parametrize("name", ["where", "added"])
def test_training_leaves_masked_scores_out(name):
    model = by_ops(name)
    data = masked_inputs(model)
    want = outputs_of(model, data)[0]
    quantized = quietly(model)
    quantized.compile(keras.optimizers.SGD(0.0), "mse")
    quantized.fit(data, want, batch_size=16, epochs=2, verbose=0)
    assert np.abs(outputs_of(quantized, data)[0] - want).mean() <= 0.03 * want.std()


def test_rows_without_any_score_leave_the_range_alone():
    model = by_ops("where")
    data = masked_inputs(model)
    data[1][0] = False
    want = outputs_of(model, data)[0]
    np.testing.assert_allclose(outputs_of(tfopt.calibrate(quietly(model), data), data)[0], want, atol=0.03)


def test_several_axes_without_a_mask_are_integers(tmp_path):
    inputs = keras.Input((4, 4, 3))
    scores = kl.Conv2D(2, 1, name="scores")(inputs)
    model = randomize(keras.Model(inputs, kl.Softmax(axis=[1, 2], name="weights")(scores)))
    x = np.random.default_rng(0).normal(size=(32, 4, 4, 3)).astype("float32")
    scores = np.asarray(keras.Model(inputs, scores)(x), "float64")
    weights = np.exp(scores - scores.max((1, 2), keepdims=True))
    weights /= weights.sum((1, 2), keepdims=True)
    quantized = tfopt.calibrate(tfopt.quantize(model), x)
    file = tfopt.TFLiteModel(tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=x).path)
    assert not file.float_compute_ops()
    assert np.abs(file.predict(x) - weights).mean() < 2 / 256
