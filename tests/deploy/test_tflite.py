import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers as kl

import tfopt
from tfopt.core.models.graph import read
from tfopt.deploy import tflite


def int8_model(name):
    model = zoo.build(name)
    x = zoo.inputs_for(model, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tfopt.calibrate(tfopt.quantize(model), x), x


def outputs_of(file, x):
    return keras.tree.flatten(file.predict(x))  # those of a dict by name, as Keras orders them


def steps_of(file):
    named = {tensor.name: step for tensor, step in zip(file.outputs, file.output_steps(), strict=True)}
    return [named[name] for name in sorted(named)]


@pytest.mark.parametrize("name", [n for n in zoo.MODELS if n != "sequence"])
@pytest.mark.parametrize("quantization", ["none", "float16", "dynamic"])
def test_float_files_compute_what_keras_does(name, quantization, tmp_path):
    model = zoo.build(name)
    x = zoo.inputs_for(model)
    export = tfopt.export_tflite(model, tmp_path / "m.tflite", quantization)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert export.size_bytes == (tmp_path / "m.tflite").stat().st_size == file.size_bytes
    bound = {"none": 1e-5 if name != "mixed" else 2e-3, "float16": 5e-3, "dynamic": 0.05}[quantization]
    for got, want in zip(outputs_of(file, x), zoo.predictions(model, x), strict=True):
        assert got.shape == want.shape
        assert np.abs(got - want).mean() <= bound * max(1.0, np.ptp(want))


@pytest.mark.parametrize("name", [n for n in zoo.MODELS if n != "sequence"])
def test_int8_files_are_integer_and_agree(name, tmp_path):
    model, x = int8_model(name)
    export = tfopt.export_tflite(model, tmp_path / "m.tflite", data=x)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert export.quantization == "int8"
    assert export.mean_difference <= export.tolerance
    assert file.float_compute_ops() == ()
    for got, want, step in zip(outputs_of(file, x), zoo.predictions(model, x), steps_of(file), strict=True):
        assert step > 0
        assert np.abs(got - want).mean() < step


def test_sequence_model_exports_its_convolution_as_integers(tmp_path):
    model, x = int8_model("sequence")
    tfopt.export_tflite(model, tmp_path / "m.tflite", data=x)
    convolutions = [op for op in tfopt.TFLiteModel(tmp_path / "m.tflite").op_types() if op.name == "CONV_2D"]
    assert convolutions
    assert all(op.output_dtype == "int8" for op in convolutions)


def test_weights_in_the_file_are_those_of_training(tmp_path):
    model, x = int8_model("residual")
    tfopt.export_tflite(model, tmp_path / "m.tflite", data=x)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    kernel = model.get_layer("pointwise").layer.kernel.numpy()[0, 0]  # (in, out)
    scales = np.abs(kernel).max(axis=0) / 127
    integers = np.round(kernel / scales).T.reshape(4, 1, 1, 4)
    found = [
        d
        for d in interpreter.get_tensor_details()
        if d["dtype"] == np.int8 and tuple(d["shape"]) == (4, 1, 1, 4) and len(d["quantization_parameters"]["scales"])
    ]
    stored = [interpreter.get_tensor(d["index"]) for d in found]
    matching = [i for i, array in enumerate(stored) if np.array_equal(array, integers)]
    assert len(matching) == 1
    np.testing.assert_allclose(found[matching[0]]["quantization_parameters"]["scales"], scales, rtol=1e-5)


def test_zeros_of_a_pruned_kernel_are_zeros_in_the_file(tmp_path):
    model = zoo.build("sequential")
    x = zoo.inputs_for(model, 64)
    pruned = tfopt.prune(model, sparsity=0.8)
    tfopt.export_tflite(tfopt.calibrate(tfopt.quantize(pruned), x), tmp_path / "m.tflite", data=x, sparse=False)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    kernels = [
        interpreter.get_tensor(d["index"])
        for d in interpreter.get_tensor_details()
        if d["dtype"] == np.int8 and len(d["shape"]) >= 2 and tuple(d["shape"]) in {(4, 3, 3, 1), (6, 100), (3, 6)}
    ]
    zeros = sorted(int((k == 0).sum()) for k in kernels)
    assert zeros >= sorted(
        int((pruned.get_layer(n).kernel.numpy() == 0).sum()) for n in ("conv", "hidden", "probabilities")
    )
    assert len(zeros) == 3


def test_integer_inputs_and_outputs(tmp_path):
    model, x = int8_model("sequential")
    tfopt.export_tflite(model, tmp_path / "m.tflite", data=x, input_type="uint8", output_type="int8")
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert (file.inputs[0].dtype, file.outputs[0].dtype) == ("uint8", "int8")
    assert np.abs(file.predict(x) - zoo.called(model, x)).mean() < file.outputs[0].scale
    spec = file.inputs[0]
    by_hand = np.clip(np.rint(x / np.float32(spec.scale)) + spec.zero_point, 0, 255).astype("uint8")
    np.testing.assert_array_equal(file.predict(by_hand, raw=True), file.predict(x, raw=True))
    with pytest.raises(tfopt.InvalidArgumentError, match="int8 file"):
        tfopt.export_tflite(zoo.build("sequential"), tmp_path / "f.tflite", input_type="int8")


def tokens_and_numbers():
    """Tokens of int32 beside real numbers; a vector and a number come out."""
    tokens, numbers = keras.Input((5,), dtype="int32", name="tokens"), keras.Input((6,), name="numbers")
    word = kl.Flatten()(kl.Embedding(20, 4)(tokens))
    both = kl.Concatenate()([word, kl.Dense(4, activation="relu")(numbers)])
    outputs = {"which": kl.Dense(3, activation="softmax")(both), "how_much": kl.Dense(1, name="amount")(numbers)}
    model = keras.Model({"tokens": tokens, "numbers": numbers}, outputs)
    generator = np.random.default_rng(0)
    return model, {
        "tokens": generator.integers(0, 20, (64, 5)).astype("int32"),
        "numbers": generator.normal(size=(64, 6)).astype("float32"),
    }


@pytest.mark.parametrize("io_type", ["int8", "uint8"])
@pytest.mark.parametrize("road", ["own ranges", "ranges of the converter"])
def test_integers_for_several_inputs_and_outputs(io_type, road, tmp_path):
    model, x = tokens_and_numbers()
    if road == "own ranges":
        model = tfopt.calibrate(tfopt.quantize(model), x)
    tfopt.export_tflite(model, tmp_path / "m.tflite", "int8", data=x, input_type=io_type, output_type=io_type)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert {tensor.name: tensor.dtype for tensor in file.inputs} == {"tokens": "int32", "numbers": io_type}
    assert {tensor.dtype for tensor in file.outputs} == {io_type}
    specs = {tensor.name: tensor for tensor in (*file.inputs, *file.outputs)}
    limits, numbers = np.iinfo(io_type), specs["numbers"]
    stored = np.clip(np.rint(x["numbers"] / np.float32(numbers.scale)) + numbers.zero_point, limits.min, limits.max)
    raw = file.predict({"tokens": x["tokens"], "numbers": stored.astype(io_type)}, raw=True)
    for name, want in zoo.called(model, x).items():
        assert raw[name].dtype == io_type
        real = (raw[name].astype("float32") - specs[name].zero_point) * specs[name].scale
        assert np.abs(real - want).mean() <= 2 * specs[name].scale


def test_an_input_that_stays_float_is_said(tmp_path):
    model, x = tokens_and_numbers()
    export = tfopt.calibrate(tfopt.quantize(model, exclude="amount"), x)
    with pytest.raises(tfopt.ExportError, match="float32 in how_much"):
        tfopt.export_tflite(export, tmp_path / "m.tflite", data=x, output_type="int8")
    assert not list(tmp_path.iterdir())


def test_int8_of_a_float_model_takes_its_ranges_from_data(tmp_path):
    model = zoo.build("residual")
    x = zoo.inputs_for(model, 64)
    with pytest.raises(tfopt.InvalidArgumentError, match="data"):
        tfopt.export_tflite(model, tmp_path / "m.tflite", "int8")
    tfopt.export_tflite(model, tmp_path / "m.tflite", "int8", data=x)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    want = zoo.called(model, x)
    assert np.abs(file.predict(x) - want).mean() < 0.05 * np.ptp(want)
    assert all(op.output_dtype == "int8" for op in file.op_types() if op.name == "CONV_2D")


def test_sparse_encoding_is_used_where_it_pays(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 64)), kl.Conv2D(128, 1), kl.GlobalAveragePooling2D()])
    pruned = tfopt.prune(model, sparsity=0.9)
    dense = tfopt.export_tflite(pruned, tmp_path / "dense.tflite", sparse=False)
    auto = tfopt.export_tflite(pruned, tmp_path / "auto.tflite")
    assert auto.sparse
    assert not dense.sparse
    assert auto.size_bytes < 0.5 * dense.size_bytes
    assert not tfopt.export_tflite(model, tmp_path / "plain.tflite").sparse
    x = zoo.inputs_for(model, 4)
    got = tfopt.TFLiteModel(tmp_path / "auto.tflite").predict(x)
    np.testing.assert_allclose(got, zoo.called(pruned, x), atol=1e-4)


def test_half_zeros_beside_a_dense_layer_are_stored_sparse(tmp_path):
    dense = [keras.layers.Dense(64, name=name) for name in ("stays", "half", "more")]
    model = keras.Sequential([keras.Input((64,)), *dense])
    pruned = tfopt.prune(model, pattern="2:4", exclude="stays")
    stored = tfopt.export_tflite(pruned, tmp_path / "sparse.tflite")
    assert stored.sparse
    saved = tfopt.export_tflite(pruned, tmp_path / "dense.tflite", sparse=False).size_bytes - stored.size_bytes
    assert 0.25 < saved / (2 * 64 * 64 * 4) < 0.5  # half of the values less the places of the others


def test_every_range_has_to_be_set(tmp_path):
    quantized = tfopt.quantize(zoo.build("sequential"))
    with pytest.raises(tfopt.InvalidArgumentError, match="calibrate"):
        tfopt.export_tflite(quantized, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_a_file_that_disagrees_is_not_written(tmp_path, monkeypatch):
    model = zoo.build("sequential")
    other = zoo.build("sequential")
    other.get_layer("probabilities").kernel.assign(-model.get_layer("probabilities").kernel * 3)
    monkeypatch.setattr(tflite, "convert", lambda *a, convert=tflite.convert, **k: convert(read(other), *a[1:], **k))
    with pytest.raises(tfopt.ExportError, match="mean absolute difference"):
        tfopt.export_tflite(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"quantization": "int4"}, "float16"),
        ({"input_type": "int16"}, "uint8"),
        ({"sparse": "yes"}, "auto"),
        ({"tolerance": -1}, "tolerance"),
        ({"data": np.full((4, 12, 12, 1), np.nan)}, "finite"),
        ({"data": np.zeros((4, 2))}, "shape"),
    ],
    ids=["quantization", "input_type", "sparse", "tolerance", "nan", "shape"],
)
def test_bad_arguments(arguments, says, tmp_path):
    with pytest.raises(tfopt.TfoptError, match=says):
        tfopt.export_tflite(zoo.build("sequential"), tmp_path / "m.tflite", **arguments)
    assert not list(tmp_path.iterdir())


def test_bad_models_and_paths(tmp_path):
    model = zoo.build("sequential")
    with pytest.raises(tfopt.FileError, match="folder"):
        tfopt.export_tflite(model, tmp_path)
    with pytest.raises(tfopt.FileError, match="must exist"):
        tfopt.export_tflite(model, tmp_path / "no" / "m.tflite")
    free = keras.Sequential([keras.Input((None, None, 1)), kl.Conv2D(2, 3), kl.GlobalMaxPooling2D()])
    with pytest.raises(tfopt.InvalidArgumentError, match="fixed shapes"):
        tfopt.export_tflite(free, tmp_path / "m.tflite")
    quantized, _ = int8_model("sequential")
    with pytest.raises(tfopt.InvalidArgumentError, match="strip"):
        tfopt.export_tflite(quantized, tmp_path / "m.tflite", "float16")
    model.layers[0].kernel.assign(np.full((3, 3, 1, 4), np.nan))
    with pytest.raises(tfopt.NonFiniteError, match="conv/kernel"):
        tfopt.export_tflite(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    model = zoo.build("nested")
    monkeypatch.setattr(os, "access", lambda path, kind: False)
    monkeypatch.setattr(tflite, "convert", lambda *a, **k: pytest.fail("converted for nothing"))
    with pytest.raises(tfopt.FileError, match="writable"):
        tfopt.export_tflite(model, tmp_path / "m.tflite")


@pytest.mark.parametrize(("module", "call"), [(pathlib.Path, "touch"), (os, "fsync"), (os, "replace")])
def test_a_disk_that_fails_leaves_the_old_file(module, call, tmp_path, monkeypatch):
    model = zoo.build("nested")
    (tmp_path / "m.tflite").write_bytes(b"old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, call, fail)
    with pytest.raises(tfopt.FileError, match="No space left"):
        tfopt.export_tflite(model, tmp_path / "m.tflite")
    monkeypatch.undo()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


WRITER = """
    import sys, keras, tfopt
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(4000), keras.layers.Dense(500)])
    print("ready", flush=True)
    while True:
        tfopt.export_tflite(model, sys.argv[1])
"""


def test_killed_in_the_middle_of_an_export(tmp_path):
    target = tmp_path / "m.tflite"
    tfopt.export_tflite(zoo.build("nested"), target)
    old = target.stat().st_size
    whole = set()
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(target)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        process.stdout.readline()
        time.sleep(0.3 + 0.7 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole.add(tfopt.TFLiteModel(target).size_bytes)
    assert len(whole - {old}) == 1  # at least one attempt wrote it, and always all of it


# The range of the images, and the layer up to which the network is taken (None for the whole).
FAMILIES = {
    "MobileNetV2": ((-1, 1), None),
    "ResNet50": ((-1, 1), "conv3_block2_out"),
    "DenseNet121": ((-1, 1), "conv3_block4_concat"),
    "MobileNetV3Small": ((0, 255), None),
    "EfficientNetB0": ((0, 255), "block4b_add"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_applications_go_the_whole_road(name, tmp_path):
    keras.utils.set_random_seed(1)
    pixels, last = FAMILIES[name]
    model = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classifier_activation=None)
    if last:
        features = keras.layers.GlobalAveragePooling2D()(model.get_layer(last).output)
        model = keras.Model(model.input, keras.layers.Dense(100)(features))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif weight.path.endswith(("beta", "moving_mean")) and "normalization" not in weight.path.split("/")[-2][:13]:
            weight.assign(generator.normal(0, 0.2, weight.shape))
    x = generator.uniform(*pixels, (8, 96, 96, 3)).astype("float32")
    ready = tfopt.calibrate(tfopt.quantize(tfopt.prune(model, sparsity=0.5)), x)
    tfopt.export_tflite(ready, tmp_path / "m.tflite", data=x, sparse=False)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert file.float_compute_ops() == ()
    got, want = file.predict(x), zoo.called(ready, x)
    noise = 10 * np.log10(np.mean(want**2) / np.mean((got - want) ** 2))
    assert noise > 20  # dB


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "MODEL.HDF5"])
def test_a_keras_file_is_not_written_over(name, tmp_path):
    (tmp_path / name).write_bytes(b"trained")
    with pytest.raises(tfopt.FileError, match=r"must end in \.tflite"):
        tfopt.export_tflite(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"trained"


def test_numbers_of_numpy_in_options_and_metadata(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    export = tfopt.export_tflite(
        model,
        tmp_path / "model.tflite",
        batch_size=np.int64(2),
        tolerance=np.float32(0.5),
        sparse=np.bool_(False),
        metadata={"classes": np.int64(2), "mean": np.float32(0.5), "binary": np.True_},
    )
    assert (type(export.checks[0].tolerance), export.checks[0].tolerance) == (float, export.tolerance)
    file = tfopt.TFLiteModel(export.path, num_threads=np.int32(1))
    assert file.inputs[0].shape == (2, 4)
    assert {key: file.metadata[key] for key in ("classes", "mean", "binary")} == {
        "classes": 2,
        "mean": 0.5,
        "binary": True,
    }
    assert file.latency(runs=np.int64(2), warmup=np.int64(0)).runs == 2


def text_model():
    text = kl.TextVectorization(max_tokens=20, output_sequence_length=5, name="words")
    text.adapt(["a b c"])
    inputs = keras.Input((), dtype="string")
    return keras.Model(inputs, kl.Dense(2)(kl.Flatten()(kl.Embedding(20, 3)(text(inputs)))))


@pytest.mark.parametrize("data", [None, np.array(["a b", "c"])], ids=["no data", "data"])
def test_text_is_cut_off_as_the_error_says(data, tmp_path):
    model, path = text_model(), tmp_path / "model.tflite"
    with pytest.raises(tfopt.UnsupportedModelError, match="'words'.*preprocessing, rest = tfopt.split_preprocessing"):
        tfopt.export_tflite(model, path, data=data)
    assert not path.exists()
    preprocessing, rest = tfopt.split_preprocessing(model)
    tfopt.export_tflite(rest, path)
    words = tf.constant(["a b", "c"])
    numbers = preprocessing(words).numpy()
    np.testing.assert_allclose(tfopt.TFLiteModel(path).predict(numbers), model.predict(words, verbose=0), atol=1e-5)


def test_int8_of_a_float_model_sees_all_samples_of_large_batches(tmp_path):
    """The widest sample stands at the end of a batch of the data set."""
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2)])
    x = np.random.default_rng(0).random((32, 4)).astype("float32")
    x[15] = 8
    outputs = []
    for data in (x, tf.data.Dataset.from_tensor_slices(x).batch(16)):
        tfopt.export_tflite(model, tmp_path / "model.tflite", "int8", data=data)
        outputs.append(tfopt.TFLiteModel(tmp_path / "model.tflite").predict(x))
    np.testing.assert_array_equal(*outputs)
