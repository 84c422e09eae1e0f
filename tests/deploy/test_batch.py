"""Files with a free batch and with one of their own, and how many samples are run at once."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl

import tfopt
from tfopt.deploy.session import Session


@pytest.fixture(scope="module")
def flat():
    """Ends as ResNet-8 does: the converter turns Flatten into a Reshape to (1, 16)."""
    keras.utils.set_random_seed(0)
    layers = [kl.Conv2D(4, 3, activation="relu"), kl.AveragePooling2D(5), kl.Flatten(), kl.Dense(3)]
    return keras.Sequential([keras.Input((12, 12, 2)), *layers])


@pytest.fixture
def sizes(monkeypatch):
    """The batch of each run of a file."""
    runs = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, arrays: runs.append(len(arrays[0])) or run(self, arrays))
    return runs


def quantized(model):
    x = zoo.inputs_for(model, 64)
    return tfopt.calibrate(tfopt.quantize(model), x), x


def one_by_one(file, x):
    """Outputs in the order of the file, each sample alone."""
    samples = [keras.tree.map_structure(lambda array, i=i: array[i : i + 1], x) for i in range(16)]
    return [keras.tree.flatten(file.predict(sample)) for sample in samples]


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if name != "sequence"])
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_free_batch(name, int8, tmp_path):
    model = zoo.build(name)
    x = zoo.inputs_for(model, 64)
    if int8:
        model, x = quantized(model)
    tfopt.export_tflite(model, tmp_path / "m.tflite", data=x, batch_size=None)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert all(tensor.shape[0] is None for tensor in (*file.inputs, *file.outputs))
    together = keras.tree.flatten(file.predict(x, batch_size=64))
    alone = [np.concatenate(values) for values in zip(*one_by_one(file, x), strict=True)]
    want = zoo.predictions(model, x)
    bound = max(file.output_steps()) * 1.01 if int8 else 2e-3 if name == "mixed" else 1e-5
    for got, single, expected in zip(together, alone, want, strict=True):
        np.testing.assert_allclose(got[:16], single, atol=1e-6)
        assert np.abs(got - expected).mean() <= bound


def test_scale_and_shift_on_any_rank_leaves_the_batch_free(tmp_path):
    layers = [kl.BatchNormalization(), kl.Activation("relu"), kl.Flatten(), kl.BatchNormalization(), kl.Dense(2)]
    model = keras.Sequential([keras.Input((7, 3)), *layers])
    for layer in (model.layers[0], model.layers[3]):
        layer.moving_mean.assign(np.linspace(-1, 1, layer.moving_mean.shape[0]))
    ready, x = quantized(model)
    tfopt.export_tflite(ready, tmp_path / "m.tflite", data=x, batch_size=None)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert [op.name for op in file.op_types()].count("DEPTHWISE_CONV_2D") == 2
    assert file.float_compute_ops() == ()
    np.testing.assert_allclose(file.predict(x), ready.predict(x, verbose=0), atol=file.output_steps()[0] * 1.01)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_batch_of_its_own(quantization, flat, tmp_path):
    x = zoo.inputs_for(flat, 30)
    export = tfopt.export_tflite(flat, tmp_path / "m.tflite", quantization, data=x, batch_size=8)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert file.inputs[0].shape == (8, 12, 12, 2)
    assert file.latency(runs=3, warmup=1).batch_size == 8
    assert np.abs(file.predict(x) - flat.predict(x, verbose=0)).mean() <= export.tolerance
    with pytest.raises(tfopt.InvalidArgumentError, match="batch of 8"):
        file.latency(batch_size=4)


def test_batches_are_as_large_as_the_file_allows(flat, sizes, tmp_path):
    x = zoo.inputs_for(flat, 70)
    tfopt.export_tflite(flat, tmp_path / "one.tflite", data=x)
    tfopt.export_tflite(flat, tmp_path / "free.tflite", data=x, batch_size=None)
    one, free = (tfopt.TFLiteModel(tmp_path / f"{name}.tflite") for name in ("one", "free"))
    sizes.clear()
    alone = one.predict(x, batch_size=32)
    assert sizes == 70 * [1]
    sizes.clear()
    np.testing.assert_allclose(free.predict(x, batch_size=32), alone, atol=1e-6)
    assert sizes == [32] + 3 * [32]  # tried once, then the samples, the last batch filled up
    sizes.clear()
    free.predict(x, batch_size=32)
    assert sizes == 3 * [32]


def test_recurrent_layers_keep_a_batch_and_say_so(tmp_path, sizes):
    model = zoo.build("sequence")
    with pytest.raises(tfopt.ExportError, match="batch_size=1"):
        tfopt.export_tflite(model, tmp_path / "m.tflite", batch_size=None)
    assert not list(tmp_path.iterdir())
    x = zoo.inputs_for(model, 40)
    tfopt.export_tflite(model, tmp_path / "m.tflite", data=x)
    sizes.clear()
    predicted = tfopt.TFLiteModel(tmp_path / "m.tflite").predict(x, batch_size=8)
    np.testing.assert_allclose(predicted, model.predict(x, verbose=0), atol=1e-5)
    assert sizes[-40:] == 40 * [1]


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "1", True])
def test_bad_batch_sizes(batch_size, flat, tmp_path):
    with pytest.raises(tfopt.InvalidArgumentError, match="batch_size"):
        tfopt.export_tflite(flat, tmp_path / "m.tflite", batch_size=batch_size)
    assert not list(tmp_path.iterdir())
    tfopt.export_tflite(flat, tmp_path / "m.tflite")
    for verb in ("latency", "predict"):
        arguments = () if verb == "latency" else (np.zeros((2, 12, 12, 2)),)
        with pytest.raises(tfopt.InvalidArgumentError, match="batch_size"):
            getattr(tfopt.TFLiteModel(tmp_path / "m.tflite"), verb)(*arguments, batch_size=batch_size)
