"""`tfopt search`: a search on files."""

import inspect
import json

import keras
import numpy as np
import pytest

from tfopt.cli import main
from tfopt.cli.search import AXES
from tfopt.tuner.space import SearchSpace


@pytest.fixture
def folder(tmp_path):
    """Two classes set apart by the first input; a model that was compiled, and one that was not."""
    generator = np.random.default_rng(0)
    for name, samples in (("train", 64), ("val", 32)):
        x = generator.normal(size=(samples, 6)).astype("float32")
        np.savez(tmp_path / f"{name}.npz", x=x, y=(x[:, 0] > 0).astype("int64"))
    layers = keras.layers
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(2, "softmax")], name="net")
    model.save(tmp_path / "plain.keras")
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"], run_eagerly=True)
    model.save(tmp_path / "model.keras")
    return tmp_path


def search(folder, model, *options):
    files = ["--train", folder / "train.npz", "--out", folder / "best.keras"]
    return main([str(part) for part in ["search", folder / model, *files, "--epochs", 1, *options]])


def test_the_best_model_is_written_and_the_table_printed(folder, capsys):
    validation = ["--val", folder / "val.npz"]
    bounds = ["--objective", "val_accuracy", "--objective", "macs", "--constraint", "macs <= 100"]
    space = [
        "--width",
        "0.5,1,2",
        "--lr",
        "1e-3,1e-1",
        "--batch-size",
        "16,32",
        "--clipnorm",
        "none,1",
        "--decay",
        "none",
    ]
    options = [*validation, *bounds, *space, "--method", "random", "--budget", 3, "--seed", 5, "--no-inherit"]
    record = ["--directory", folder / "run", "--save", folder / "report.json"]
    assert search(folder, "model.keras", *options, *record) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    assert report["method"] == "random"
    assert report["constraints"] == ["macs <= 100"]
    assert [goal["name"] for goal in report["objectives"]] == ["val_accuracy", "macs"]
    trained = [trial for trial in report["trials"] if trial["state"] == "complete"]
    assert len(trained) == 3
    assert {trial["values"]["batch_size"] for trial in trained} <= {16, 32}
    assert {trial["values"]["clipnorm"] for trial in trained} <= {0.0, 1.0}
    assert "Constraints: macs <= 100." in out
    assert f"{folder / 'best.keras'}: " in out
    best = keras.saving.load_model(folder / "best.keras")
    with np.load(folder / "val.npz") as data:
        accuracy = best.evaluate(data["x"], data["y"], verbose=0)[1]
    assert accuracy == pytest.approx(max(trial["figures"]["val_accuracy"] for trial in trained))
    assert best.layers[0].units in (4, 8)  # 8 * (6 + 2) MACs, 16 would be 128

    again = ["--directory", folder / "run", "--workers", 2]
    assert search(folder, "model.keras", *options, *again) == 0  # all of it is on record
    assert sorted(path.name for path in (folder / "run").glob("*.json"))[:-1] == [
        f"{trial['number']:05d}.json" for trial in report["trials"]
    ]


def test_the_command_offers_what_python_does():
    """It names the choices itself, so that `--help` loads no TensorFlow."""
    assert {*AXES, "per", "inherit"} == set(inspect.signature(SearchSpace.from_model).parameters) - {"model"}


def test_a_search_in_a_database_goes_on_there(folder, capsys):
    where = ["--storage", f"sqlite:///{folder}/searches.db", "--name", "first", "--directory", folder / "run"]
    options = ["--val", folder / "val.npz", "--lr", "1e-3,1e-1", *where, "--save", folder / "report.json"]
    for budget in (1, 2, 2):
        assert search(folder, "model.keras", *options, "--budget", budget) == 0, capsys.readouterr().err
        assert len(json.loads((folder / "report.json").read_text())["trials"]) == budget


def test_models_are_compiled_by_options(folder, capsys):
    assert search(folder, "plain.keras", "--cv", 2, "--lr", "0.1", "--budget", 1) == 1
    assert "which is not. Pass --loss" in capsys.readouterr().err
    compiled = ["--loss", "sparse_categorical_crossentropy", "--optimizer", "sgd"]
    goals = ["--objective", "val_accuracy:max", "--objective", "val_loss"]
    assert search(folder, "plain.keras", *compiled, *goals, "--cv", 2, "--lr", "0.1", "--budget", 1) == 0
    best = keras.saving.load_model(folder / "best.keras")
    assert best.optimizer.name.startswith("sgd")
    assert set(best.get_compile_config()["metrics"]) == {"accuracy"}
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val", "{}/val.npz"], "hold a choice"),
        (["--width", "0.5"], "Pass `val` or `cv`"),
        (["--val", "{}/val.npz", "--width", "0.5", "--objective", "val_accuracy:up"], "('val_accuracy', 'up')"),
        (["--val", "{}/val.npz", "--width", "0.5", "--budget", "soon"], "'soon'"),
        (["--val", "{}/val.npz", "--width", "0.5", "--constraint", "macs"], "'macs'"),
        (["--val", "{}/val.npz", "--width", "0.5", "--optimizer", "sgd"], "go with `--loss`"),
        (["--val", "{}/val.npz", "--width", "0.5", "--loss", "squared"], "squared"),
        (["--val", "{}/nothing.npz", "--width", "0.5"], "nothing.npz"),
        (["--val", "{}/val.npz", "--width", "0.5", "--save", "{}/report.pdf"], "report.pdf"),
        (["--val", "{}/val.npz", "--width", "0.5", "--out", "{}/best.h5"], "best.h5"),
        (["--val", "{}/val.npz", "--width", "0.5", "--constraint", "macs <= 1"], "At least one trial"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(folder, capfd, options, message):
    before = sorted(folder.iterdir())
    assert search(folder, "model.keras", *(option.format(folder) for option in options)) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tfopt ")]
    assert len(lines) == 1
    assert lines[0].startswith("tfopt search: ")
    assert message in lines[0]
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "options", [["--width", "half"], ["--batch-size", "1.5"], ["--lr", "none"], ["--per", "block"], ["--workers", "0"]]
)
def test_wrong_usage_is_2(folder, capsys, options):
    with pytest.raises(SystemExit) as exit:
        search(folder, "model.keras", *options)
    assert exit.value.code == 2
    assert "usage: tfopt search" in capsys.readouterr().err
