"""The demo as users run it, held to what it promises. Trained for two thirds as long."""

import json

import keras
import numpy as np
import pytest

import tfopt
from tfopt.demo import Epochs, article_cnn, load_digits, pruning_schedule, run_demo
from tfopt.deploy.runner import TFLiteModel

NAMES = ["float", "half width", "pruned", "pruned + int8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def comparison(folder):
    return run_demo(folder, verbose=0, epochs=Epochs(full=6, half=6, prune=8, quantize=2))


def accuracy(comparison, name):
    return comparison[name].scores["accuracy"]


def test_the_table_has_every_column(comparison):
    assert [row.name for row in comparison.rows] == NAMES
    assert comparison.samples == 1000
    for row in comparison.rows:
        assert set(row.scores) == {"accuracy", "precision", "recall", "f1"}
        assert None not in (row.macs, row.size_bytes, row.gzip_bytes, row.latency, row.training_seconds)
    assert comparison["float"].parameters == article_cnn().count_params()
    assert comparison["half width"].parameters == 23_626


def test_float_accuracy(comparison):
    assert accuracy(comparison, "float") >= 0.96


def test_pruned_int8_is_within_one_point_of_half_width(comparison):
    assert accuracy(comparison, "pruned + int8") >= accuracy(comparison, "half width") - 0.01 - 1e-9


@pytest.mark.usefixtures("comparison")
@pytest.mark.parametrize("stem", ["pruned", "pruned_int8"])
def test_each_kernel_is_eighty_percent_zero_to_one_weight(folder, stem):
    model = keras.saving.load_model(folder / f"{stem}.keras")
    plain = tfopt.strip(model) if stem == "pruned_int8" else model
    kernels = [layer.kernel.numpy() for layer in plain.layers if hasattr(layer, "kernel")]
    assert len(kernels) == 5
    for kernel in kernels:
        assert abs(int((kernel == 0).sum()) - 0.8 * kernel.size) <= 1


def test_the_int8_file_is_small_and_all_integer(comparison):
    half, int8 = comparison["half width"], comparison["pruned + int8"]
    assert int8.size_bytes <= 0.36 * half.size_bytes
    assert int8.gzip_bytes <= 0.14 * half.size_bytes


def test_the_int8_file_computes_in_integers_and_agrees_with_keras(comparison, folder):
    file = TFLiteModel(folder / "pruned_int8.tflite")
    assert file.float_compute_ops() == ()
    model = keras.saving.load_model(folder / "pruned_int8.keras")
    x = load_digits().x_train[:500]
    by_keras, by_file = model.predict(x, verbose=0), file.predict(x)
    assert np.mean(by_keras.argmax(1) == by_file.argmax(1)) >= 0.995
    assert np.abs(by_keras - by_file).mean() < file.output_steps()[0]
    assert comparison["pruned + int8"].size_bytes == file.size_bytes


@pytest.mark.usefixtures("comparison")
def test_everything_is_saved(folder):
    stems = [name.replace(" + ", "_").replace(" ", "_") for name in NAMES]
    expected = {f"{stem}{suffix}" for stem in stems for suffix in (".keras", ".tflite")}
    assert {path.name for path in folder.iterdir()} == expected | {"report.html", "report.json"}
    report = (folder / "report.html").read_text()
    assert "<svg" in report
    assert "http-equiv" not in report
    assert not [word for word in ('src="http', 'href="http', "<script src") if word in report]
    assert [row["name"] for row in json.loads((folder / "report.json").read_text())["rows"]] == NAMES


def test_the_split_is_stratified_seeded_and_disjoint():
    first, again, other = load_digits(0), load_digits(0), load_digits(1)
    assert first.x_train.shape == (4000, 28, 28, 1)
    assert np.bincount(first.y_test).tolist() == [100] * 10
    assert np.bincount(first.y_train).tolist() == [400] * 10
    assert first.x_train.min() == 0.0
    assert first.x_train.max() == 1.0
    assert np.array_equal(first.x_test, again.x_test)
    assert not np.array_equal(first.x_test, other.x_test)
    train, test = ({image.tobytes() for image in part} for part in (first.x_train, first.x_test))
    assert len(train) + len(test) == len(train | test)


@pytest.mark.parametrize("steps", [1, 3, 63, 100, 630])
def test_the_schedule_reaches_its_sparsity_within_the_training(steps):
    schedule = pruning_schedule(steps)
    due, sparsity = schedule(schedule.end_step)
    assert bool(due)
    assert abs(float(sparsity) - 0.8) < 1e-6
    assert schedule.end_step <= max(1, steps)


def test_bad_input(tmp_path):
    with pytest.raises(tfopt.InvalidArgumentError, match="at least one whole epoch"):
        run_demo(tmp_path / "out", epochs=Epochs(full=0))
    (tmp_path / "file").write_text("")
    with pytest.raises(tfopt.FileError, match="`out`"):
        run_demo(tmp_path / "file")
