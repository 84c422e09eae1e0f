"""TFLiteModel against the Keras model it was converted from."""

import gzip
import random
import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl
from sklearn.metrics import f1_score

from tfopt.core.errors import FileError, InvalidArgumentError, TfoptError
from tfopt.deploy.runner import Latency, TFLiteModel
from tfopt.deploy.session import Session


def convert(model, path, integers=None):
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if integers:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        rng = np.random.default_rng(1)
        shape = (1, *model.input_shape[1:])
        converter.representative_dataset = lambda: ([rng.random(shape, np.float32)] for _ in range(30))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = getattr(tf, integers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.write_bytes(converter.convert())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def cnn():
    keras.utils.set_random_seed(0)
    biased = {"bias_initializer": "random_normal"}
    head = [kl.MaxPooling2D(), kl.Flatten(), kl.Dense(3, activation="softmax", **biased)]
    return keras.Sequential([keras.Input((8, 8, 1), name="image"), kl.Conv2D(4, 3, activation="relu", **biased), *head])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((70, 8, 8, 1), np.float32)


@pytest.fixture(scope="module")
def path(cnn, folder):
    return convert(cnn, folder / "float.tflite")


@pytest.fixture(scope="module", params=["int8", "uint8"])
def quantized(request, cnn, folder):
    return TFLiteModel(convert(cnn, folder / f"{request.param}.tflite", request.param))


@pytest.fixture(scope="module")
def two_in_two_out(folder):
    a, b = keras.Input((4,), name="zeta"), keras.Input((2,), name="alpha")
    model = keras.Model([a, b], [kl.Dense(2)(kl.Concatenate()([a, b])), kl.Dense(2)(b)])
    return model, TFLiteModel(convert(model, folder / "two.tflite"))


def test_predicts_as_keras_does(path, cnn, images):
    expected = cnn.predict(images, verbose=0)
    model = TFLiteModel(path)
    for batch_size in (32, 1, 100):
        np.testing.assert_allclose(model.predict(images, batch_size=batch_size), expected, atol=1e-6)


def sizes_of_runs(monkeypatch):
    """A list that gets the batch of each run of a file from here on."""
    runs = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, arrays: runs.append(len(arrays[0])) or run(self, arrays))
    return runs


def test_float64_is_accepted_and_batches_are_really_run_together(path, images, monkeypatch):
    model = TFLiteModel(path)
    runs = sizes_of_runs(monkeypatch)
    assert model.predict(images.astype(float), batch_size=32).shape == (70, 3)
    assert runs == [32, 32, 32, 32]  # the first is a try; of the last, 6 samples are asked for


@pytest.mark.parametrize("batch", [1, 4])
def test_fixed_batch(cnn, images, folder, batch):
    x = keras.Input(batch_shape=(batch, 8, 8, 1))
    model = TFLiteModel(convert(keras.Model(x, cnn(x)), folder / f"fixed{batch}.tflite"))
    assert model.inputs[0].shape == (batch, 8, 8, 1)
    np.testing.assert_allclose(model.predict(images), cnn.predict(images, verbose=0), atol=1e-6)


def test_free_batch_that_is_fixed_inside(folder, images):
    """The graph declares a free batch, yet reshapes to a constant: batches would be mixed up or fail."""
    x = keras.Input((8, 8, 1))
    flat = keras.ops.reshape(x, (1, 64))
    keras_model = keras.Model(x, kl.Dense(3)(flat))
    model = TFLiteModel(convert(keras_model, folder / "inside.tflite"))
    expected = np.concatenate([keras_model(image[None]).numpy() for image in images])
    np.testing.assert_allclose(model.predict(images), expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(images[:5]), expected[:5], atol=1e-5)


def test_real_values_are_quantized_and_dequantized(quantized, cnn, images):
    spec = quantized.inputs[0]
    assert spec.quantized
    assert spec.scale == pytest.approx(1 / 255, rel=0.02)
    out = quantized.outputs[0]
    predicted = quantized.predict(images)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, cnn.predict(images, verbose=0), atol=0.02)
    raw = quantized.predict(images, raw=True)
    assert raw.dtype == out.dtype
    np.testing.assert_allclose((raw.astype(float) - out.zero_point) * out.scale, predicted, atol=1e-6)


def test_own_integers_are_taken_as_stored(quantized, images):
    spec = quantized.inputs[0]
    limits = np.iinfo(spec.dtype)
    by_hand = np.clip(np.rint(images / np.float32(spec.scale)) + spec.zero_point, limits.min, limits.max)
    np.testing.assert_array_equal(quantized.predict(by_hand.astype(spec.dtype)), quantized.predict(images))


def test_several_inputs_and_outputs_in_the_order_of_keras(two_in_two_out):
    keras_model, model = two_in_two_out
    rng = np.random.default_rng(0)
    zeta, alpha = rng.random((5, 4), np.float32), rng.random((5, 2), np.float32)
    expected = keras_model.predict([zeta, alpha], verbose=0)
    assert [tensor.name for tensor in model.inputs] == ["zeta", "alpha"]
    for x in ([zeta, alpha], {"alpha": alpha, "zeta": zeta}):
        for got, want in zip(model.predict(x), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6)


def test_integer_inputs(folder):
    keras_model = keras.Sequential([keras.Input((3,), dtype="int32"), kl.Embedding(7, 4), kl.Flatten(), kl.Dense(2)])
    model = TFLiteModel(convert(keras_model, folder / "ids.tflite"))
    ids = np.random.default_rng(0).integers(0, 7, (6, 3))
    np.testing.assert_allclose(model.predict(ids), keras_model.predict(ids, verbose=0), atol=1e-6)
    assert model.latency(runs=3, warmup=1).median_ms > 0
    with pytest.raises(InvalidArgumentError, match="integers"):
        model.predict(ids + 0.5)


def test_evaluate(path, cnn, images):
    labels = cnn.predict(images, verbose=0).argmax(-1)
    labels[:7] = (labels[:7] + 1) % 3
    model = TFLiteModel(path)
    assert model.evaluate(images, labels) == {"accuracy": pytest.approx(0.9)}
    one_hot = np.eye(3)[labels]
    assert model.evaluate(images, one_hot, ["f1"])["f1"] == pytest.approx(
        f1_score(labels, model.predict(images).argmax(-1), average="macro")
    )
    own = model.evaluate(images, labels, {"worst": lambda y, p: float(p.max(-1).min())})
    assert own == {"worst": pytest.approx(float(model.predict(images).max(-1).min()))}
    loss = keras.metrics.SparseCategoricalCrossentropy(name="loss")
    assert model.evaluate(images, labels, [loss])["loss"] == pytest.approx(
        float(keras.losses.SparseCategoricalCrossentropy()(labels, cnn.predict(images, verbose=0))), rel=1e-4
    )
    with pytest.raises(InvalidArgumentError, match="suit the task"):
        model.evaluate(images, labels, ["mae"])


def test_ops_and_weights(path, quantized):
    model = TFLiteModel(path)
    names = [op.name for op in model.op_types()]
    assert {"CONV_2D", "MAX_POOL_2D", "FULLY_CONNECTED", "SOFTMAX"} <= set(names)
    assert "DELEGATE" not in names
    assert [op.name for op in model.float_compute_ops()] == ["CONV_2D", "MAX_POOL_2D", "FULLY_CONNECTED"]
    assert quantized.float_compute_ops() == ()
    conv = next(op for op in quantized.op_types() if op.name == "CONV_2D")
    assert (conv.input_dtype, conv.output_dtype) == ("int8", "int8")
    assert sum(weight.elements for weight in model.weights()) == 4 * 9 + 4 + 36 * 3 + 3
    kernels = [weight for weight in quantized.weights() if len(weight.shape) > 1]
    assert sorted((weight.dtype, weight.elements, weight.size_bytes) for weight in kernels) == [
        ("int8", 36, 36),
        ("int8", 108, 108),
    ]


def test_output_steps(path, quantized):
    assert TFLiteModel(path).output_steps() == [0.0]
    assert quantized.output_steps() == [pytest.approx(1 / 256)]


def test_zeros_of_weights_are_counted(folder):
    keras_model = keras.Sequential([keras.Input((6,)), kl.Dense(5, use_bias=False)])
    kernel = np.random.default_rng(0).normal(size=(6, 5))
    kernel[:4] = 0
    keras_model.layers[0].set_weights([kernel])
    (weight,) = TFLiteModel(convert(keras_model, folder / "zeros.tflite")).weights()
    assert (weight.elements, weight.nonzero, weight.dtype) == (30, 10, "float32")


def test_ops_inside_a_loop_are_seen(folder):
    keras_model = keras.Sequential([keras.Input((5, 3), batch_size=1), kl.LSTM(4), kl.Dense(2)])
    model = TFLiteModel(convert(keras_model, folder / "lstm.tflite"))
    x = np.random.default_rng(0).random((3, 5, 3), np.float32)
    expected = np.concatenate([keras_model(row[None]).numpy() for row in x])
    np.testing.assert_allclose(model.predict(x), expected, atol=1e-5)
    assert {"FULLY_CONNECTED", "UNIDIRECTIONAL_SEQUENCE_LSTM"} & {op.name for op in model.float_compute_ops()}


def test_sizes_and_latency(path):
    model = TFLiteModel(path, num_threads=2)
    assert model.size_bytes == path.stat().st_size
    assert model.gzip_bytes == len(gzip.compress(path.read_bytes(), 9, mtime=0))
    latency = model.latency(runs=20, warmup=2)
    assert isinstance(latency, Latency)
    assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms
    assert (latency.runs, latency.threads) == (20, 2)
    with pytest.raises(InvalidArgumentError):
        model.latency(runs=0)


def test_representation(path):
    assert "image: float32[?, 8, 8, 1] -> output_0: float32[?, 3]" in repr(TFLiteModel(path))
    assert "&gt;" in TFLiteModel(path)._repr_html_()


def test_truncated_file(path, folder):
    content = path.read_bytes()
    target = folder / "cut.tflite"
    for length in (*range(64), *range(64, len(content), 97), len(content) - 1):
        target.write_bytes(content[:length])
        with pytest.raises(FileError):
            TFLiteModel(target)


def test_flipped_bits_never_crash(path, folder):
    content = path.read_bytes()
    target = folder / "flipped.tflite"
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        target.write_bytes(flipped)
        try:
            TFLiteModel(target)
        except FileError:
            refused += 1
    assert 0 < refused < 60


def test_content_instead_of_a_path(path, images):
    model = TFLiteModel(path.read_bytes())
    assert model.path is None
    assert "bytes" in repr(model)
    np.testing.assert_array_equal(model.predict(images), TFLiteModel(path).predict(images))
    with pytest.raises(FileError):
        TFLiteModel(path.read_bytes()[:500])


@pytest.mark.parametrize("content", [b"", b"TFL3", b"PK\x03\x04 a zip file", b"\x1c\x00\x00\x00TFL3"])
def test_other_files(folder, content):
    target = folder / "other.tflite"
    target.write_bytes(content)
    with pytest.raises(FileError):
        TFLiteModel(target)


def test_missing_file_and_folder(folder):
    for target in (folder / "none.tflite", folder):
        with pytest.raises(FileError, match="readable"):
            TFLiteModel(target)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_bad_threads(path, threads):
    with pytest.raises(InvalidArgumentError):
        TFLiteModel(path, num_threads=threads)


BAD_INPUTS = {
    "shape": np.zeros((2, 8, 8), "float32"),
    "channels": np.zeros((2, 8, 8, 3), "float32"),
    "empty": np.zeros((0, 8, 8, 1), "float32"),
    "nan": np.full((2, 8, 8, 1), np.nan),
    "infinity": np.full((2, 8, 8, 1), np.inf),
    "text": np.full((2, 8, 8, 1), "a"),
    "string": "a",
    "nothing": None,
    "two arrays": [np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 1))],
    "empty list": [],
    "wrong key": {"pixels": np.zeros((2, 8, 8, 1))},
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input(path, name):
    with pytest.raises(InvalidArgumentError):
        TFLiteModel(path).predict(BAD_INPUTS[name])


def test_inputs_of_different_length(two_in_two_out):
    with pytest.raises(InvalidArgumentError, match="same number"):
        two_in_two_out[1].predict([np.zeros((3, 4)), np.zeros((2, 2))])
    with pytest.raises(InvalidArgumentError, match="one array an input"):
        two_in_two_out[1].predict([np.zeros((3, 4))])


def test_bad_batch_size_and_labels(path, images):
    with pytest.raises(InvalidArgumentError):
        TFLiteModel(path).predict(images, batch_size=0)
    with pytest.raises(TfoptError):
        TFLiteModel(path).evaluate(images, np.full(len(images), 3))
