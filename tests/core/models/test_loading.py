"""`load_model` on files of Keras 3, files that tf_keras wrote, and files that are no model."""

import hashlib
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

from tfopt.core.errors import FileError
from tfopt.core.models.loading import load_model

WRITE_WITH_TF_KERAS = """
    import sys
    import numpy as np, tf_keras as keras
    from tf_keras import layers as kl
    folder = sys.argv[1]
    rng = np.random.default_rng(0)
    def sequential(name, shape, *layers):
        inputs = kl.Input(shape)
        x = inputs
        for layer in layers:
            x = layer(x)
        save(name, keras.Model(inputs, x))
    def save(name, model):
        model.set_weights([rng.normal(size=w.shape, scale=0.3).astype("float32") for w in model.get_weights()])
        x = rng.normal(size=(4, *model.input_shape[1:])).astype("float32")
        model.save(f"{folder}/{name}.h5")
        np.savez(f"{folder}/{name}.npz", x=x, y=model(x).numpy())
    sequential("depthwise", (8, 8, 4), kl.DepthwiseConv2D(3), kl.SeparableConv2D(4, 3), kl.Conv2DTranspose(3, 2))
    sequential("depthwise_1d", (9, 4), kl.DepthwiseConv1D(3), kl.SeparableConv1D(4, 3), kl.Conv1DTranspose(3, 2))
    sequential("lstm", (6, 4), kl.LSTM(5, return_sequences=True), kl.Bidirectional(kl.GRU(3)), kl.Dense(2))
    sequential("cells", (6, 4), kl.SimpleRNN(5, return_sequences=True), kl.RNN(kl.LSTMCell(3)))
    sequential("dropout", (8, 8, 4), kl.SpatialDropout2D(0.5), kl.Flatten(), kl.Dense(3))
    inner = keras.Sequential([kl.Input((8, 8, 4)), kl.DepthwiseConv2D(3), kl.Flatten()], name="inner")
    save("nested", keras.Sequential([kl.Input((8, 8, 4)), inner, kl.Dense(2)]))
    inputs = kl.Input((4,))
    keras.Model(inputs, inputs * 2.0).save(f"{folder}/op.h5")
    keras.Sequential([kl.Input((6, 4)), kl.LSTM(3, time_major=True)]).save(f"{folder}/time_major.h5")
"""
NAMES = ["depthwise", "depthwise_1d", "lstm", "cells", "dropout", "nested"]


@pytest.fixture(scope="module")
def keras_2_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras2")
    program = textwrap.dedent(WRITE_WITH_TF_KERAS)
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_keras_2_files_give_the_same_outputs(keras_2_files, name):
    file = keras_2_files / f"{name}.h5"
    before = digest(file), file.stat().st_mtime_ns
    model = load_model(file)
    example = np.load(keras_2_files / f"{name}.npz")
    assert np.abs(np.asarray(model(example["x"])) - example["y"]).max() < 1e-6
    assert not model.compiled
    assert (digest(file), file.stat().st_mtime_ns) == before


def test_keras_3_alone_refuses_such_a_file(keras_2_files):
    with pytest.raises((TypeError, ValueError), match=r"groups|Unrecognized"):
        keras.saving.load_model(keras_2_files / "depthwise.h5", compile=False)


def test_an_option_that_keras_3_cannot_express(keras_2_files):
    with pytest.raises(FileError, match=r"no `time_major` for LSTM.*time_major=True in layer 'lstm"):
        load_model(keras_2_files / "time_major.h5")


def test_tensorflow_ops_of_keras_2(keras_2_files):
    with pytest.raises(FileError, match="TensorFlow operations between the layers"):
        load_model(keras_2_files / "op.h5")


@pytest.fixture
def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu"), keras.layers.Dense(2)])


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
@pytest.mark.parametrize("kind", [str, os.fspath, lambda path: path])
def test_keras_3_files(model, tmp_path, suffix, kind):
    model.compile("adam", "mse")
    file = tmp_path / f"model{suffix}"
    model.save(file)
    loaded = load_model(kind(file))
    assert not loaded.compiled
    assert all(np.array_equal(a, b) for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True))


class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_custom_objects(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    keras.Sequential([keras.Input((4,)), Doubled()]).save(file)
    with pytest.raises(FileError, match=r"does not know.*custom_objects"):
        load_model(file)
    loaded = load_model(file, custom_objects={"Doubled": Doubled})
    assert np.array_equal(loaded(np.ones((1, 4))), 2 * np.ones((1, 4)))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_lambda_layers_stay_refused(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x + 1)]).save(file)
    with pytest.raises(FileError, match=r"`Lambda` layers\) are not loaded.*safe_mode=False"):
        load_model(file)


def test_missing_file(tmp_path):
    with pytest.raises(FileError, match=r"has to exist.*nothing\.keras"):
        load_model(tmp_path / "nothing.keras")


def test_tflite_file(tmp_path):
    file = tmp_path / "model.tflite"
    file.write_bytes(b"TFL3")
    with pytest.raises(FileError, match=r"tfopt\.TFLiteModel"):
        load_model(file)


def test_saved_model_folder(model, tmp_path):
    model.export(tmp_path / "saved", verbose=False)
    with pytest.raises(FileError, match=r"SavedModel.*model\.save"):
        load_model(tmp_path / "saved")


def test_another_folder(tmp_path):
    with pytest.raises(FileError, match="name a file"):
        load_model(tmp_path)


def test_another_suffix(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"x")
    with pytest.raises(FileError, match=r"\.keras, \.h5 or \.hdf5"):
        load_model(file)


def test_weights_alone(model, tmp_path):
    file = tmp_path / "model.weights.h5"
    model.save_weights(file)
    with pytest.raises(FileError, match="load_weights"):
        load_model(file)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_cut_off_files(model, tmp_path, suffix, part):
    file = tmp_path / f"model{suffix}"
    model.save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(FileError):
        load_model(file)


def test_garbled_archive(model, tmp_path):
    file = tmp_path / "model.keras"
    model.save(file)
    content = bytearray(file.read_bytes())
    content[200:1200] = bytes(1000)
    file.write_bytes(content)
    with pytest.raises(FileError, match=r"damaged|cut off"):
        load_model(file)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_compiled_only_if_asked_for(tmp_path, suffix):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.25), "mse", metrics=["mae"])
    file = tmp_path / f"model{suffix}"
    model.save(file)
    assert not load_model(file).compiled
    loaded = load_model(file, compile=True)
    assert loaded.compiled
    assert float(loaded.optimizer.learning_rate) == 0.25
    x, y = np.ones((3, 4), "float32"), np.ones((3, 2), "float32")
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0))
