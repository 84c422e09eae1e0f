"""What a file says about itself, and what an export says about the file."""

import json

import keras
import numpy as np
import pytest
import zoo
from ai_edge_litert import schema_py_generated as schema
from keras import layers as kl

import tfopt
from tfopt.deploy.flatbuffer.read import METADATA

WORDS = {
    "name": "digits",
    "description": "0-9, größer als 28 × 28",
    "version": "1.2",
    "author": "A. B.",
    "labels": ["zero", "one"],
    "license": "Apache-2.0",
    "trained": {"epochs": 3, "accuracy": 0.98},
}


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((6,), name="features"), kl.Dense(5, "relu"), kl.Dense(4, name="logits")])


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).uniform(-1, 3, (40, 6)).astype("float32")


def test_metadata_is_read_back_and_changes_nothing_else(model, x, tmp_path):
    plain = tfopt.export_tflite(model, tmp_path / "plain.tflite")
    told = tfopt.export_tflite(model, tmp_path / "told.tflite", metadata=WORDS)
    assert tfopt.TFLiteModel(plain.path).metadata == {}
    file = tfopt.TFLiteModel(told.path)
    assert {key: value for key, value in file.metadata.items() if key != "tfopt"} == WORDS
    signature = {"quantization": "none", "input_range": {}}
    assert file.metadata["tfopt"] == {"version": tfopt.__version__, "signatures": {"serving_default": signature}}
    np.testing.assert_array_equal(file.predict(x), tfopt.TFLiteModel(plain.path).predict(x))
    assert told.size_bytes - plain.size_bytes < len(json.dumps(file.metadata)) + 150


def test_metadata_of_a_quantized_file_tells_the_range_of_its_input(model, x, tmp_path):
    ready = tfopt.calibrate(tfopt.quantize(model), x, method="minmax")
    tfopt.export_tflite(ready, tmp_path / "m.tflite", data=x, metadata={})
    (known,) = tfopt.TFLiteModel(tmp_path / "m.tflite").metadata["tfopt"]["signatures"].values()
    assert known["quantization"] == "int8"
    assert known["input_range"]["features"] == pytest.approx([x.min(), x.max()])


def test_the_entry_is_an_ordinary_one_of_the_format(model, tmp_path):
    tfopt.export_tflite(model, tmp_path / "m.tflite", metadata=WORDS)
    content = schema.ModelT.InitFromPackedBuf((tmp_path / "m.tflite").read_bytes(), 0)
    entries = {entry.name: bytes(content.buffers[entry.buffer].data) for entry in content.metadata}
    assert json.loads(entries[METADATA.encode()])["labels"] == ["zero", "one"]
    assert b"min_runtime_version" in entries


def test_damaged_metadata(model, tmp_path):
    tfopt.export_tflite(model, tmp_path / "m.tflite", metadata=WORDS)
    content = (tmp_path / "m.tflite").read_bytes().replace(b'{"name"', b'["name"')
    with pytest.raises(tfopt.FileError, match="JSON"):
        _ = tfopt.TFLiteModel(content).metadata


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (["name"], "dict"),
        ({1: "a"}, "texts as keys"),
        ({"name": 3}, "'name'"),
        ({"labels": "abc"}, "labels"),
        ({"labels": [0, 1]}, "labels"),
        ({"mean": np.zeros(3)}, "Turn arrays into lists"),
        ({"mean": float("nan")}, "JSON"),
        ({"tfopt": {}}, "for what tfopt adds"),
    ],
    ids=["list", "key", "name", "text as labels", "labels", "array", "nan", "own key"],
)
def test_bad_metadata(bad, says, model, tmp_path):
    with pytest.raises(tfopt.InvalidArgumentError, match=says):
        tfopt.export_tflite(model, tmp_path / "m.tflite", metadata=bad)
    assert not list(tmp_path.iterdir())


def shifted(model, by):
    """The model with so much added to its second logit."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    other.layers[-1].bias.assign([0.0, by, 0.0, 0.0])
    return other


@pytest.mark.parametrize("kind", ["model", "opened", "tflite", "keras"])
def test_comparison_by_hand(kind, model, x, tmp_path):
    other = shifted(model, 0.25)
    tfopt.export_tflite(other, tmp_path / "other.tflite")
    other.save(tmp_path / "other.keras")
    path = tmp_path / f"other.{kind}"
    given = {"model": other, "opened": tfopt.TFLiteModel(tmp_path / "other.tflite")}.get(kind, path)
    export = tfopt.export_tflite(model, tmp_path / "m.tflite", data=x, compare_with=given)
    (found,) = export.comparison
    got, want = model.predict(x, verbose=0), other.predict(x, verbose=0)
    assert found.mean_difference == pytest.approx(0.25 / 4, rel=1e-4)
    assert found.argmax_agreement == pytest.approx(np.mean(got.argmax(-1) == want.argmax(-1)))
    assert found.sqnr_db == pytest.approx(10 * np.log10((want**2).sum() / (40 * 0.25**2)), abs=1e-3)
    assert f"{found.sqnr_db:.1f}" in str(export)


def test_comparison_of_quantized_several_outputs_by_name(tmp_path):
    model = zoo.build("shared")
    x = zoo.inputs_for(model, 64)
    ready = tfopt.calibrate(tfopt.quantize(model), x, method="minmax")
    export = tfopt.export_tflite(ready, tmp_path / "m.tflite", data=x, compare_with=model)
    file, want = tfopt.TFLiteModel(tmp_path / "m.tflite").predict(x), model.predict(x, verbose=0)
    assert {row.output for row in export.comparison} == {"a", "b"}
    for row in export.comparison:
        assert row.mean_difference == pytest.approx(np.abs(file[row.output] - want[row.output]).mean(), rel=1e-4)
        assert row.sqnr_db > 20


def test_a_bound_on_the_difference(model, x, tmp_path):
    options = {"data": x, "compare_with": shifted(model, 0.25)}
    reached = tfopt.export_tflite(model, tmp_path / "m.tflite", **options).comparison[0].sqnr_db
    before = (tmp_path / "m.tflite").read_bytes()
    with pytest.raises(tfopt.ExportError, match="dB"):
        tfopt.export_tflite(model, tmp_path / "m.tflite", metadata={}, min_sqnr_db=reached + 0.1, **options)
    assert (tmp_path / "m.tflite").read_bytes() == before
    tfopt.export_tflite(model, tmp_path / "m.tflite", min_sqnr_db=reached - 0.1, **options)
    same = tfopt.export_tflite(model, tmp_path / "m.tflite", compare_with=model, min_sqnr_db=60)
    assert same.comparison[0].argmax_agreement == 1


def test_bad_comparisons(model, x, tmp_path):
    narrow = keras.Sequential([keras.Input((5,)), kl.Dense(4)])
    fewer = keras.Sequential([keras.Input((6,)), kl.Dense(3)])
    for options, says in (
        ({"compare_with": narrow}, "inputs of the model"),
        ({"compare_with": fewer}, "outputs of the model"),
        ({"compare_with": 3}, "keras.Model"),
        ({"compare_with": tmp_path / "none.tflite"}, "readable"),
        ({"min_sqnr_db": 20}, "compare_with=None"),
        ({"compare_with": model, "min_sqnr_db": "high"}, "decibels"),
    ):
        with pytest.raises(tfopt.TfoptError, match=says):
            tfopt.export_tflite(model, tmp_path / "m.tflite", data=x, **options)
    with pytest.raises(tfopt.InvalidArgumentError, match="signature: other"):
        tfopt.export_tflite({"a": model, "b": model}, tmp_path / "m.tflite", compare_with=model)
    assert not list(tmp_path.iterdir())


def test_the_record_prints_and_is_saved(model, x, tmp_path):
    export = tfopt.export_tflite(model, tmp_path / "m.tflite", data=x, compare_with=shifted(model, 0.25))
    text = str(export)
    assert text.splitlines()[0] == f"{tmp_path / 'm.tflite'}: {export.size_bytes:,} bytes, quantization none"
    assert "serving_default" in text
    assert "same argmax" in export._repr_html_()
    saved = json.loads(export.save(tmp_path / "m.json").read_text())
    assert saved["size_bytes"] == export.size_bytes
    assert saved["comparison"][0]["mean_difference"] == export.comparison[0].mean_difference
