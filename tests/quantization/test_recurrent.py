"""Recurrent layers and TimeDistributed in 8 bits, against the Keras layers and the files."""

from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers as kl

import tfopt
from tfopt.core.models.fake_quantized import mode
from tfopt.quantization.composites import composite_for
from tfopt.quantization.wrappers.timedistributed import QuantizedTimeDistributed

STEPS, FEATURES, UNITS = 4, 3, 4


def data(samples=16, *, padded=False):
    x = np.random.default_rng(5).normal(size=(samples, STEPS, FEATURES)).astype("float32")
    if padded:
        x[: samples // 2, 2:] = 0.0
        x[samples // 4 : samples // 2 + 2, 0] = 0.0
    return x


def with_integers(model):
    """The model with kernels that are 8-bit numbers already, so that rounding does not change them."""
    generator = np.random.default_rng(6)
    for weight in model.trainable_weights:
        if len(weight.shape) == 2 and "bias" not in weight.path:
            values = generator.integers(-60, 61, weight.shape)
            values[0, 0] = values[0, -1] = 127  # in both parts of a GRU's recurrent kernel
            weight.assign(values / 127)
        else:
            weight.assign(generator.normal(0, 0.3, weight.shape))
    return model


def network(*layers, steps=STEPS):
    return with_integers(keras.Sequential([keras.Input((steps, FEATURES)), *layers]))


def structure(outputs):
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


ALL = {"return_sequences": True, "return_state": True}
LAYERS = {
    "lstm": lambda: kl.LSTM(UNITS),
    "lstm states": lambda: kl.LSTM(UNITS, **ALL, use_bias=False),
    "lstm backwards": lambda: kl.LSTM(UNITS, return_sequences=True, go_backwards=True, activation="relu"),
    "lstm cell": lambda: kl.RNN(kl.LSTMCell(UNITS, activation="sigmoid"), zero_output_for_mask=True, **ALL),
    "gru": lambda: kl.GRU(UNITS, **ALL),
    "gru without bias": lambda: kl.GRU(UNITS, use_bias=False, activation="linear", recurrent_activation="tanh"),
    "gru reset before": lambda: kl.GRU(UNITS, reset_after=False, go_backwards=True, return_sequences=True),
    "gru cell": lambda: kl.RNN(kl.GRUCell(UNITS, reset_after=False, use_bias=False)),
    "simple": lambda: kl.SimpleRNN(UNITS, **ALL),
    "simple relu": lambda: kl.RNN(kl.SimpleRNNCell(UNITS, activation="relu", use_bias=False), return_sequences=True),
    "unrolled": lambda: kl.LSTM(UNITS, unroll=True),
    "bidirectional": lambda: kl.Bidirectional(kl.LSTM(UNITS, **ALL)),
    "bidirectional sum": lambda: kl.Bidirectional(kl.GRU(UNITS), merge_mode="sum"),
    "bidirectional mul": lambda: kl.Bidirectional(kl.SimpleRNN(UNITS, return_sequences=True), merge_mode="mul"),
    "bidirectional ave": lambda: kl.Bidirectional(kl.GRU(UNITS, return_sequences=True), merge_mode="ave"),
    "bidirectional apart": lambda: kl.Bidirectional(kl.GRU(UNITS, **ALL), merge_mode=None),
    "two kinds": lambda: kl.Bidirectional(kl.LSTM(UNITS), backward_layer=kl.GRU(UNITS, go_backwards=True)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_without_ranges_the_maths_is_that_of_keras(name):
    layer = LAYERS[name]()
    wrapper = composite_for(layer)(layer)
    wrapper.build((None, STEPS, FEATURES))
    with_integers(layer)
    mask = data(padded=True).any(axis=-1)
    assert not mask.all()
    for options in ({}, {"mask": tf.constant(mask)}):
        with mode("calibrate"):
            got = structure(wrapper(data(), **options))
        for ours, theirs in zip(got, structure(layer(data(), **options)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_initial_states_are_those_of_keras():
    inputs, h, c = keras.Input((STEPS, FEATURES)), keras.Input((UNITS,)), keras.Input((UNITS,))
    outputs = kl.LSTM(UNITS, **ALL)(inputs, initial_state=[h, c])
    both = kl.Bidirectional(kl.GRU(UNITS))(inputs, initial_state=[h, c])
    model = with_integers(keras.Model([inputs, h, c], [*outputs, both]))
    states = [np.random.default_rng(i).normal(size=(16, UNITS)).astype("float32") for i in (1, 2)]
    with mode("calibrate"):
        got = structure(tfopt.quantize(model)([data(), *states]))
    for ours, theirs in zip(got, structure(model([data(), *states])), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


PRODUCTS = {"FULLY_CONNECTED": STEPS}  # the inputs of all steps in one, and the state of all but the first
LSTM_OPS = {**PRODUCTS, "LOGISTIC": 3 * STEPS - 1, "TANH": 2 * STEPS, "MUL": 3 * STEPS - 1, "ADD": 2 * STEPS - 2}
FILES = {
    "lstm": (lambda: [kl.LSTM(UNITS, return_sequences=True)], LSTM_OPS),
    "gru": (
        lambda: [kl.GRU(UNITS)],
        {**PRODUCTS, "LOGISTIC": 2 * STEPS, "TANH": STEPS, "SUB": STEPS, "MUL": 3 * STEPS - 1, "ADD": 3 * STEPS - 1},
    ),
    "simple": (lambda: [kl.SimpleRNN(UNITS)], {**PRODUCTS, "TANH": STEPS, "ADD": STEPS - 1}),
    "masked": (
        lambda: [kl.Masking(), kl.Bidirectional(kl.SimpleRNN(UNITS, return_sequences=True))],
        {"FULLY_CONNECTED": 2 * STEPS, "TANH": 2 * STEPS, "ADD": 2 * STEPS - 2},
    ),
}
MOVES = {"SPLIT", "SPLIT_V", "UNPACK", "PACK", "STRIDED_SLICE", "RESHAPE", "CONCATENATION", "SELECT_V2", "QUANTIZE"}


@pytest.mark.parametrize("name", FILES)
def test_the_file_runs_in_integers_as_the_model_does(name, tmp_path):
    layers, expected = FILES[name]
    model = network(*layers())
    x = data(padded=name == "masked")
    quantized = tfopt.calibrate(tfopt.quantize(model), x)
    tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=x)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    got, want = file.predict(x), zoo.called(quantized, x)
    assert np.abs(got - want).max() <= 5 * file.output_steps()[0]
    assert np.abs(got - want).mean() <= 0.5 * file.output_steps()[0]
    assert np.abs(got - zoo.called(model, x)).mean() < 0.05 * np.ptp(want)

    counts = Counter(op.name for op in file.op_types() if op.output_dtype == "int8")
    assert {op: counts[op] for op in expected} == expected
    assert set(counts) <= {*expected, "MUL", "ADD", *MOVES}
    floats = {op.name for op in file.op_types() if op.output_dtype == "float32"}
    assert floats <= ({"DEQUANTIZE", "CAST"} if name == "masked" else {"DEQUANTIZE"})
    assert not file.float_compute_ops()


def test_padding_counts_for_nothing():
    model = network(kl.Masking(), kl.Bidirectional(kl.LSTM(UNITS)))
    x = data(padded=True)
    quantized = tfopt.calibrate(tfopt.quantize(model), x)
    whole, cut = quantized(x[:1, :2]), quantized(x[:1])
    np.testing.assert_allclose(whole, cut, atol=1e-6)


def test_a_mask_value_that_rounding_would_change_is_looked_for_in_the_float_input():
    x = data(padded=True) + 0.1
    x[x == np.float32(0.1)] = -0.7
    model = network(kl.Masking(-0.7), kl.LSTM(UNITS))
    with pytest.warns(UserWarning, match=r"Masking: .*use mask_value=0.0"):
        quantized = tfopt.quantize(model)
    quantized = tfopt.calibrate(quantized, x)
    assert np.abs(quantized(x) - model(x)).max() < 0.05
    np.testing.assert_allclose(quantized(x[:1, :2]), quantized(x[:1]), atol=1e-6)


def test_token_numbers_are_never_rounded():
    model = keras.Sequential([keras.Input((5,)), kl.Embedding(999, 2, mask_zero=True), kl.GRU(UNITS)])
    model.layers[0].embeddings.assign(np.repeat(np.arange(-500, 499)[:, None] / 500, 2, axis=1))
    x = np.random.default_rng(0).integers(1, 999, (32, 5)).astype("float32")
    quantized = tfopt.calibrate(tfopt.quantize(model), x)
    assert np.abs(quantized(x) - model(x)).max() < 0.03


@pytest.mark.parametrize("name", ["lstm", "gru", "masked"])
def test_a_gradient_reaches_every_weight(name):
    model = network(*FILES[name][0]())
    quantized = tfopt.calibrate(tfopt.quantize(model), data())
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(data(), training=True) ** 2)
    for weight, gradient in zip(
        quantized.trainable_weights, tape.gradient(loss, [w.value for w in quantized.trainable_weights]), strict=True
    ):
        assert gradient is not None, weight.path
        assert np.abs(gradient).max() > 0, weight.path


def test_training_moves_every_weight_and_is_the_same_when_jit_compiled():
    """A GRU that returns sequences got no gradient in one weight under XLA when Keras' own layer was run."""
    x, y = data(), np.ones((16, STEPS, UNITS), "float32")
    start = tfopt.calibrate(tfopt.quantize(network(kl.GRU(UNITS, return_sequences=True))), x)
    trained = []
    for jit in (False, True):
        model = tfopt.calibrate(start, x)
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit)
        assert model.jit_compile is jit
        model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
        assert not any(
            np.array_equal(a, b) for a, b in zip(model.trainable_weights, start.trainable_weights, strict=True)
        )
        trained.append(model.get_weights())
    for plain, compiled in zip(*trained, strict=True):
        np.testing.assert_allclose(plain, compiled, atol=2e-3)


def test_a_range_spans_all_steps_and_moves_once_a_batch():
    model = network(kl.LSTM(UNITS, return_sequences=True, return_state=True))
    x = data()
    quantized = tfopt.quantize(model)
    quantized(x, training=True)
    wrapper = quantized.layers[-1]
    outputs = model(x)[0].numpy()
    low, high = wrapper.ranges()["hidden"].bounds()
    assert (low, high) == pytest.approx((outputs.min(), outputs.max()), abs=0.02)
    quantized(x * 9, training=True)
    now = wrapper.ranges()["hidden"].bounds()[1]
    assert high < now <= high + (1.0 - high) * 0.001 * 1.01  # the output lies below 1; one step of the moving average


def test_sequences_of_any_length_train():
    quantized = tfopt.calibrate(tfopt.quantize(network(kl.GRU(UNITS, return_sequences=True), steps=None)), data())
    quantized.compile("sgd", "mse")
    quantized.fit(data()[:, :3], np.ones((16, 3, UNITS)), verbose=0)
    whole, start = zoo.called(quantized, data()), quantized(data()[:, :2])
    assert whole.shape == (16, STEPS, UNITS)
    np.testing.assert_allclose(start, whole[:, :2], atol=1e-5)


def test_dropout_is_at_work_in_training_only():
    model = network(kl.GRU(64, dropout=0.5, recurrent_dropout=0.5))
    quantized = tfopt.calibrate(tfopt.quantize(model), data())
    still = quantized(data())
    np.testing.assert_array_equal(still, quantized(data()))
    assert np.abs(quantized(data(), training=True) - still).mean() > 0.02


def test_zeros_stay_through_pruning_saving_training_and_stripping(tmp_path):
    pruned = tfopt.prune(network(kl.LSTM(UNITS), kl.Dense(2)), sparsity=0.5)
    quantized = tfopt.quantize(pruned)
    quantized.compile("adam", "mse")
    quantized.fit(data(), np.ones((16, 2)), batch_size=4, verbose=0)
    for before, after in zip(
        pruned.layers[0].cell.weights[:2], quantized.layers[1].layer.cell.weights[:2], strict=True
    ):
        zeros = before.numpy() == 0
        assert zeros.mean() == 0.5
        np.testing.assert_array_equal(after.numpy() == 0, zeros)
    plain = tfopt.strip(quantized)
    assert [type(layer) for layer in plain.layers] == [kl.LSTM, kl.Dense]
    for got, want in zip(plain.layers[0].get_weights(), quantized.layers[1].layer.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)
    quantized.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(zoo.called(loaded, data()), zoo.called(quantized, data()))


@keras.saving.register_keras_serializable(package="tests")
class OwnCell(kl.SimpleRNNCell):
    """May compute anything."""

    def call(self, *args, **kwargs):
        return super().call(*args, **kwargs)


@keras.saving.register_keras_serializable(package="tests")
class OwnLSTM(kl.LSTM):
    """May compute anything."""

    def call(self, *args, **kwargs):
        return super().call(*args, **kwargs)


@keras.saving.register_keras_serializable(package="tests")
class LeakyLayer(kl.Layer):
    def call(self, inputs):
        return inputs * 0.5

    def compute_output_shape(self, input_shape):
        return input_shape


REASONS = {
    "OwnCell is unknown": lambda: kl.RNN(OwnCell(2)),
    "one LSTM, GRU or SimpleRNN layer for each": lambda: kl.RNN([kl.LSTMCell(2), kl.GRUCell(2)]),
    "recurrent_activation='sigmoid'": lambda: kl.LSTM(2, recurrent_activation="hard_sigmoid"),
    "no integer 'softsign'": lambda: kl.GRU(2, activation="softsign"),
    "it runs as integers around LSTM": lambda: kl.Bidirectional(OwnLSTM(2)),
    "apply TimeDistributed to its layers": lambda: kl.TimeDistributed(
        keras.Sequential([keras.Input((FEATURES,)), kl.Dense(2)])
    ),
    "inside it, LeakyLayer: unknown to tfopt": lambda: kl.TimeDistributed(LeakyLayer()),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_stays_float_says_why(reason):
    model = network(REASONS[reason](), kl.Flatten(), kl.Dense(2))
    with pytest.warns(UserWarning, match=reason):
        quantized = tfopt.quantize(model)
    assert structure(tfopt.calibrate(quantized, data())(data()))[0].shape == (16, 2)


def test_states_that_outlive_a_call_stay_float():
    model = keras.Sequential([keras.Input(batch_shape=(2, STEPS, FEATURES)), kl.LSTM(2, stateful=True), kl.Dense(2)])
    with pytest.warns(UserWarning, match="use stateful=False"):
        tfopt.quantize(model)


def test_convolutional_recurrence_stays_float():
    model = keras.Sequential([keras.Input((2, 4, 4, 1)), kl.ConvLSTM2D(2, 3), kl.Flatten(), kl.Dense(2)])
    with pytest.warns(UserWarning, match=r"ConvLSTM2D: .*TimeDistributed\(Conv2D\)"):
        tfopt.quantize(model)


def test_time_distributed_is_its_layer_on_each_step(tmp_path):
    inputs = keras.Input((STEPS, 5, 5, 2))
    x = kl.TimeDistributed(kl.Conv2D(3, 2, activation="gelu", name="conv"), name="each")(inputs)
    x = kl.TimeDistributed(kl.Reshape((8, 6)))(x)
    x = kl.TimeDistributed(kl.SimpleRNN(UNITS))(x)
    model = keras.Model(inputs, kl.TimeDistributed(kl.Dense(2, "softmax"))(x))
    images = np.random.default_rng(4).normal(size=(8, STEPS, 5, 5, 2)).astype("float32")
    quantized = tfopt.calibrate(tfopt.quantize(model), images, method="minmax", bias_correction=False)
    assert sum(isinstance(layer, QuantizedTimeDistributed) for layer in quantized.layers) == 4
    assert set(quantized.get_layer("each").ranges()) == {"pre_activation", "output"}

    alone = keras.Sequential([keras.Input((5, 5, 2)), kl.Conv2D(3, 2, activation="gelu", name="conv")])
    alone.set_weights(model.get_layer("each").get_weights())
    steps = tfopt.calibrate(tfopt.quantize(alone), images.reshape(-1, 5, 5, 2), method="minmax", bias_correction=False)
    first = keras.Model(quantized.input, quantized.get_layer("each").output)
    np.testing.assert_allclose(first(images), np.reshape(steps(images.reshape(-1, 5, 5, 2)), (8, STEPS, 4, 4, 3)))

    tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=images)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert not file.float_compute_ops()
    assert np.abs(file.predict(images) - zoo.called(quantized, images)).max() <= 3 * file.output_steps()[0]

    plain = tfopt.strip(quantized)
    assert plain.get_layer("each").layer.activation is keras.activations.gelu
    np.testing.assert_allclose(plain(images), model(images), atol=1e-6)


def test_mixed_precision_keeps_its_dtypes():
    layer = kl.LSTM(UNITS, dtype="mixed_float16")
    wrapper = composite_for(layer)(layer)
    output = wrapper(data())
    assert output.dtype == wrapper(keras.Input((STEPS, FEATURES))).dtype == "float16"
    assert np.abs(output - layer(data())).max() < 0.01
