"""Several models in one .tflite file: each runs as its model, and what they share is there once."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl

import tfopt
from tfopt.core.models.graph import read


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype("float32")


def two_models(quantized_on=None):
    """A classifier, and the model of its features: one convolution of 16 * 24 * 9 weights shared, a head apart."""
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 16 if quantized_on is None else 3), name="image")
    x = kl.Conv2D(24, 3, activation="relu", name="conv")(image)
    features = kl.GlobalAveragePooling2D(name="features")(x)
    classify = keras.Model(image, kl.Dense(3, activation="softmax", name="head")(features))
    if quantized_on is not None:
        classify = tfopt.calibrate(tfopt.quantize(classify), quantized_on)
    return classify, keras.Model(classify.input, classify.get_layer("features").output)


def data_of(model, samples=40):
    return np.random.default_rng(0).normal(size=(samples, *model.input_shape[1:])).astype("float32")


def test_each_signature_runs_as_its_model(tmp_path):
    classify, embed = two_models()
    x = data_of(classify)
    export = tfopt.export_tflite({"classify": classify, "embed": embed}, tmp_path / "m.tflite", data=x)
    assert [check.signature for check in export.checks] == ["classify", "embed"]
    assert all(check.mean_difference <= check.tolerance for check in export.checks)
    for name, model in (("classify", classify), ("embed", embed), (None, classify)):
        file = tfopt.TFLiteModel(tmp_path / "m.tflite", signature=name)
        assert file.signatures == ("classify", "embed")
        np.testing.assert_allclose(file.predict(x), zoo.called(model, x), atol=1e-5)
        assert file.latency(runs=5, warmup=1).median_ms > 0


def test_equal_kernels_are_stored_once(tmp_path):
    classify, embed = two_models()
    alone = tfopt.export_tflite(classify, tmp_path / "alone.tflite").size_bytes
    both = tfopt.export_tflite({"classify": classify, "embed": embed}, tmp_path / "both.tflite").size_bytes
    assert 4 * 16 * 24 * 9 > 13_000
    assert both < alone + 2_500  # the graph of the second, none of its weights
    kernels = [w for w in tfopt.TFLiteModel(tmp_path / "both.tflite").weights() if len(w.shape) > 1]
    assert sorted(kernel.elements for kernel in kernels) == [3 * 24, 16 * 24 * 9]


def test_quantized_signatures_are_integers_to_the_step(tmp_path, images):
    classify, embed = two_models(quantized_on=images)
    models = {"classify": classify, "embed": embed}
    export = tfopt.export_tflite(models, tmp_path / "m.tflite", data=images, input_type="int8", output_type="uint8")
    assert export.quantization == "int8"
    for name, model in models.items():
        file = tfopt.TFLiteModel(tmp_path / "m.tflite", signature=name)
        assert (file.inputs[0].dtype, file.outputs[0].dtype) == ("int8", "uint8")
        (step,) = file.output_steps()
        assert step == file.outputs[0].scale > 0
        assert np.abs(file.predict(images) - zoo.called(model, images)).max() <= 1.01 * step
        assert file.float_compute_ops() == ()
    int8 = [w.elements for w in tfopt.TFLiteModel(tmp_path / "m.tflite").weights() if w.dtype == "int8"]
    assert sorted(int8) == [3 * 24, 3 * 24 * 9]


def test_loops_of_a_later_signature_find_their_subgraphs(tmp_path):
    tokens = zoo.build("sequence")
    dense, x = zoo.build("nested"), zoo.inputs_for(zoo.build("nested"), 6)
    ids = zoo.inputs_for(tokens, 6)
    export = tfopt.export_tflite(
        {"dense": dense, "tokens": tokens}, tmp_path / "m.tflite", data={"dense": x, "tokens": ids}
    )
    assert [check.samples for check in export.checks] == [6, 6]
    file = tfopt.TFLiteModel(tmp_path / "m.tflite", signature="tokens")
    assert "WHILE" in [op.name for op in file.op_types()]
    np.testing.assert_allclose(file.predict(ids), zoo.called(tokens, ids), atol=1e-5)


def test_several_inputs_and_outputs_keep_their_names(tmp_path):
    several = zoo.build("shared")
    x = zoo.inputs_for(several, 6)
    tfopt.export_tflite(
        {"other": zoo.build("nested"), "shared": several}, tmp_path / "m.tflite", "float16", batch_size=None
    )
    file = tfopt.TFLiteModel(tmp_path / "m.tflite", signature="shared")
    assert [tensor.name for tensor in file.inputs] == ["left", "right"]
    got, want = file.predict(x), zoo.called(several, x)
    assert set(got) == {"a", "b"}
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=2e-3)


def test_a_signature_that_disagrees_is_found(tmp_path, monkeypatch):
    """Were the second signature left out of the check, or the first one checked twice, this would pass."""
    from tfopt.deploy import tflite

    classify, _ = two_models()
    other = keras.models.clone_model(classify)
    monkeypatch.setattr(
        tflite, "convert", lambda graph, *a, convert=tflite.convert, **k: convert(read(classify), *a, **k)
    )
    with pytest.raises(tfopt.ExportError, match="mean absolute difference"):
        tfopt.export_tflite({"a": classify, "b": other}, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_unknown_signature(tmp_path):
    classify, embed = two_models()
    tfopt.export_tflite({"classify": classify, "embed": embed}, tmp_path / "m.tflite")
    with pytest.raises(tfopt.InvalidArgumentError, match="'embedding'.*classify, embed"):
        tfopt.TFLiteModel(tmp_path / "m.tflite", signature="embedding")
    tfopt.export_tflite(classify, tmp_path / "one.tflite")
    assert tfopt.TFLiteModel(tmp_path / "one.tflite").signatures == ("serving_default",)


@pytest.mark.parametrize("bad", [{}, {1: None}, {"": None}], ids=["empty", "number", "no name"])
def test_bad_names(bad, tmp_path):
    model = two_models()[0]
    with pytest.raises(tfopt.InvalidArgumentError, match="signature: model"):
        tfopt.export_tflite(dict.fromkeys(bad, model), tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
