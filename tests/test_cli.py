"""The `tfopt` command: what it writes, what it prints, how it ends."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfopt
from tfopt.cli import compress, main
from tfopt.quantization.schemes import SCHEMES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained-looking model and data for it."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.Dense(3, activation="softmax", name="head"),
        ]
    )
    model.save(folder / "model.keras")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.normal(size=(64, 8)).astype("float32"), y=rng.integers(0, 3, 64))
    return folder


def command(*arguments):
    """Runs the command in a process of its own, as a user does."""
    program = [sys.executable, "-m", "tfopt.cli", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_the_whole_road(folder, capsys):
    data = folder / "data.npz"
    contenders = ["model.keras", "float.tflite", "model.tflite"]
    steps = [
        ["prune", folder / "model.keras", folder / "sparse.keras", "--sparsity", "0.75", "--exclude", "head"],
        ["cluster", folder / "sparse.keras", folder / "clustered.keras", "--clusters", "5", "--exclude", "head"],
        ["quantize", folder / "clustered.keras", folder / "int8.keras", "--data", data, "--samples", "32"],
        ["export", folder / "int8.keras", folder / "model.tflite", "--data", data, "--input-type", "int8"],
        ["export", folder / "model.keras", folder / "float.tflite"],
        ["compare", *(folder / name for name in contenders), "--data", data, "--save", folder / "report.json"],
    ]
    for step in steps:
        assert main([str(part) for part in step]) == 0, capsys.readouterr().err
    sparse = keras.saving.load_model(folder / "sparse.keras")
    assert int((sparse.get_layer("hidden").kernel.numpy() == 0).sum()) == 96
    assert int((sparse.get_layer("head").kernel.numpy() == 0).sum()) == 0
    clustered = keras.saving.load_model(folder / "clustered.keras")
    assert len(np.unique(clustered.get_layer("hidden").kernel.numpy())) == 5
    assert int((clustered.get_layer("hidden").kernel.numpy() == 0).sum()) >= 96
    assert len(np.unique(clustered.get_layer("head").kernel.numpy())) == 48
    out = capsys.readouterr().out
    assert "quantization int8" in out
    assert "quantization none" in out
    report = json.loads((folder / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == contenders
    assert report["rows"][0]["scores"]["accuracy"] == report["rows"][1]["scores"]["accuracy"]


def test_channels_are_masked_and_taken_out(folder, capsys):
    masked, small = folder / "masked.keras", folder / "small.keras"
    options = ["--pattern", "channel", "--to-params", "0.6", "--criterion", "taylor", "--data", folder / "data.npz"]
    for step in (["prune", folder / "model.keras", masked, *options], ["shrink", masked, small]):
        assert main([str(part) for part in step]) == 0, capsys.readouterr().err
    units = keras.saving.load_model(small).get_layer("hidden").units
    assert units * (8 + 1) + units * 3 + 3 <= 0.6 * 195 < (units + 1) * (8 + 1 + 3) + 3
    assert f"195 parameters -> {units * 12 + 3}" in capsys.readouterr().out


def test_export_with_all_it_can_say(folder, capsys):
    target, data = folder / "net.tflite", folder / "data.npz"
    (folder / "words.json").write_text('{"name": "net", "labels": ["a", "b", "c"]}')
    options = ["--quantization", "int8", "--data", data, "--output-type", "uint8", "--batch-size", "free", "--c-array"]
    arguments = ["export", folder / "model.keras", target, *options, "--metadata", folder / "words.json"]
    assert main([str(part) for part in [*arguments, "--compare-with", folder / "model.keras"]]) == 0
    out = capsys.readouterr().out
    assert "same argmax" in out
    assert f"Saved {folder / 'net.cc'}, {folder / 'net.h'}" in out
    file = tfopt.TFLiteModel(target)
    assert file.metadata["labels"] == ["a", "b", "c"]
    assert (file.inputs[0].dtype, file.outputs[0].dtype, file.inputs[0].shape) == ("float32", "uint8", (None, 8))
    assert (folder / "net.cc").read_text().count("0x") == target.stat().st_size


def test_summary(folder, capsys):
    assert main(["summary", str(folder / "model.keras"), "--save", str(folder / "summary.html")]) == 0
    out = capsys.readouterr().out
    assert "hidden" in out
    assert "195" in out  # (8 * 16 + 16) + (16 * 3 + 3)
    assert (folder / "summary.html").read_text().startswith("<!")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["summary", "nothing.keras"], "nothing.keras"),
        (["prune", "{}/model.keras", "{}/out.keras", "--sparsity", "1.5"], "1.5"),
        (["prune", "{}/model.keras", "{}/out.keras", "--include", "nowhere"], "'nowhere'"),
        (["prune", "{}/model.keras", "{}/out.keras", "--pattern", "chanel"], "'chanel'"),
        (["shrink", "{}/model.keras", "{}/out.keras"], "zero in all weights"),
        (["cluster", "{}/model.keras", "{}/out.keras", "--clusters", "1"], "at least 2"),
        (["prune", "{}/model.keras", "{}/out.h5"], ".keras"),
        (["prune", "{}/model.keras", "{}/no/folder/out.keras"], "must exist"),
        (["prune", "{}/model.keras", "{}/model.keras"], "another file than it is read from"),
        (["shrink", "{}/model.keras", "{}/./model.keras"], "another file than it is read from"),
        (["cluster", "{}/model.keras", "{}/model.keras"], "another file than it is read from"),
        (["quantize", "{}/model.keras", "{}/model.keras", "--scheme", "float16"], "another file than it is read from"),
        (["export", "{}/model.keras", "{}/model.keras"], "must end in .tflite"),
        (["quantize", "{}/model.keras", "{}/out.keras", "--data", "{}/nothing.npz"], "nothing.npz"),
        (["quantize", "{}/model.keras", "{}/out.keras", "--data", "{}/model.keras"], "has to hold the arrays x"),
        (["export", "{}/model.keras", "{}/out.tflite", "--quantization", "int8"], "data"),
        (["export", "{}/model.keras", "{}/out.tflite", "--metadata", "{}/model.keras"], "has to hold JSON"),
        (["export", "{}/model.keras", "{}/out.tflite", "--compare-with", "{}/nothing.tflite"], "nothing.tflite"),
        (["export", "{}/model.keras", "{}/out.tflite", "--output-type", "int8", "--c-array"], "int8 file"),
        (["compare", "{}/model.keras", "--data", "{}/only_x.npz"], "x and y"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(folder, capfd, arguments, message):
    np.savez(folder / "only_x.npz", x=np.zeros((2, 8)))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert main([part.format(folder) for part in arguments]) == 1
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("tfopt ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"tfopt {arguments[0]}: ")
    assert message in lines[0]
    assert "Traceback" not in captured.err
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["prune"], ["prune", "a", "b", "--sparsity", "x"], ["export", "a", "b", "--batch-size", "0"]],
)
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: tfopt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["demo", "summary", "compare", "prune", "shrink", "cluster", "quantize", "export", "search"]
)
def test_help_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    assert f"  tfopt {name} " in capsys.readouterr().out


def test_help_and_version_load_neither_keras_nor_tensorflow():
    program = """
import sys
sys.argv = ["/somewhere/bin/tfopt"]
from tfopt.cli import main
for argument in ("--help", "--version"):
    try:
        main([argument])
    except SystemExit as exit:
        assert exit.code == 0
assert not {"keras", "tensorflow"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "from a trained model to the edge" in done.stdout
    assert "tensorflow 2" in done.stdout


def test_a_process_of_its_own_fails_with_one_clean_line(folder):
    done = command("prune", folder / "model.keras", folder / "out.keras", "--sparsity", "-0.1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("tfopt prune: `sparsity`")
    assert done.stdout == ""


@pytest.mark.parametrize("module", ["tfopt", "tfopt.cli"])
def test_the_command_as_a_module(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "from a trained model to the edge" in done.stdout


def test_data_with_pickled_objects_is_refused(folder, capsys):
    np.savez(folder / "pickled.npz", x=np.array([{}], dtype=object))
    arguments = ["quantize", folder / "model.keras", folder / "out.keras", "--data", folder / "pickled.npz"]
    assert main([str(part) for part in arguments]) == 1
    assert "pickled.npz" in capsys.readouterr().err


def test_schemes_of_few_bits_take_no_data(folder, capsys):
    assert tuple(SCHEMES) == compress.SCHEMES
    arguments = ["quantize", str(folder / "model.keras"), str(folder / "int4.keras"), "--scheme", "int4_weight_only"]
    assert main(arguments) == 0, capsys.readouterr().err
    hidden = keras.saving.load_model(folder / "int4.keras").get_layer("hidden")
    assert hidden.weight_only_bits == 4
    assert main([*arguments, "--data", str(folder / "data.npz")]) == 1
    assert main([*arguments[:-2], "--scheme", "int16x8"]) == 1
    assert "without --data" in capsys.readouterr().err
