"""Comparisons against scikit-learn and hand-computed numbers."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import layers as kl
from sklearn import metrics as oracle

from tfopt.core.data.metrics import score
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, UnsupportedModelError
from tfopt.deploy.runner import TFLiteModel
from tfopt.report.compare import compare

RNG = np.random.default_rng(0)
CLASSIFICATION = {"accuracy", "precision", "recall", "f1"}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((6,)), kl.Dense(8, activation="relu"), kl.Dense(4, activation="softmax")])


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    import tensorflow as tf

    path = tmp_path_factory.mktemp("files") / "m.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return path


@pytest.fixture(scope="module")
def data():
    return RNG.normal(size=(200, 6)).astype("float32"), RNG.integers(0, 4, 200)


def by_sklearn(labels, predicted):
    precision, recall, f1, _ = oracle.precision_recall_fscore_support(
        labels, predicted, average="macro", zero_division=0
    )
    return {
        "accuracy": pytest.approx(oracle.accuracy_score(labels, predicted)),
        "precision": pytest.approx(precision),
        "recall": pytest.approx(recall),
        "f1": pytest.approx(f1),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("form", ["flat", "column", "one-hot", "float"])
def test_scores_of_classes(seed, form):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 60)
    predicted = rng.random((60, 7))
    predicted[:, 3] = 0  # a class that is never predicted; 5 and 6 never occur as labels
    given = {"flat": labels, "column": labels[:, None], "one-hot": np.eye(7)[labels], "float": labels.astype(float)}
    assert score(given[form], predicted) == by_sklearn(labels, predicted.argmax(-1))


def test_scores_of_pixels():
    labels, predicted = RNG.integers(0, 3, (4, 5, 5)), RNG.random((4, 5, 5, 3))
    assert score(labels, predicted) == by_sklearn(labels.ravel(), predicted.argmax(-1).ravel())


@pytest.mark.parametrize("logits", [False, True])
def test_scores_of_two_classes(logits):
    labels, predicted = RNG.integers(0, 2, 50), RNG.random((50, 1))
    given = np.log(predicted / (1 - predicted)) if logits else predicted
    for form in (labels, labels[:, None], labels.astype(bool)):
        assert score(form, given) == by_sklearn(labels, (predicted[:, 0] > 0.5).astype(int))


def test_scores_of_regression():
    targets, predicted = RNG.normal(size=50), RNG.normal(size=(50, 1))
    expected = {
        "mae": pytest.approx(oracle.mean_absolute_error(targets, predicted)),
        "rmse": pytest.approx(oracle.root_mean_squared_error(targets, predicted)),
    }
    assert score(targets, predicted) == expected
    assert score(RNG.normal(size=(9, 3)), RNG.normal(size=(9, 3))).keys() == expected.keys()


@pytest.mark.parametrize(
    ("labels", "predicted"),
    [
        (np.array([0, 3]), np.ones((2, 3))),
        (np.array([0, -1]), np.ones((2, 3))),
        (np.array([0.5, 1]), np.ones((2, 3))),
        (np.array([0, 1, 2]), np.ones((2, 3))),
        (np.ones((2, 2)), np.ones((2, 3))),
        (np.array(["a", "b"]), np.ones((2, 3))),
    ],
)
def test_labels_that_do_not_fit(labels, predicted):
    with pytest.raises(InvalidArgumentError):
        score(labels, predicted)


def test_nan_is_refused():
    with pytest.raises(NonFiniteError):
        score(np.array([0, 1]), np.array([[np.nan, 1], [0, 1]]))


def test_model_file_and_pair(model, path, data):
    comparison = compare(
        {"keras": model, "file": path, "both": (model, str(path)), "opened": TFLiteModel(path, num_threads=2)},
        data,
        training_seconds={"keras": 12.5},
    )
    expected = by_sklearn(data[1], model.predict(data[0], verbose=0).argmax(-1))
    for row in comparison.rows:
        assert row.scores == expected
        assert row.parameters == 6 * 8 + 8 + 8 * 4 + 4 - (12 if row.layers is None else 0)  # zero biases are left out
    keras_row, file_row, both = (comparison[name] for name in ("keras", "file", "both"))
    assert (keras_row.macs, keras_row.float32_bytes, keras_row.training_seconds) == (80, 4 * 92, 12.5)
    assert keras_row.size_bytes is keras_row.gzip_bytes is keras_row.latency is None
    assert (file_row.macs, file_row.float32_bytes) == (None, None)
    assert file_row.size_bytes == both.size_bytes == path.stat().st_size
    assert (both.macs, both.training_seconds) == (80, None)
    assert both.latency.median_ms > 0
    assert (both.latency.threads, comparison["opened"].latency.threads) == (1, 2)
    assert comparison.samples == 200


def test_scores_of_a_pair_are_those_of_the_file(model, path, data):
    other = keras.models.clone_model(model)
    other.layers[-1].set_weights([-weight for weight in model.layers[-1].get_weights()])
    both = compare({"both": (other, path)}, data, latency=False)["both"]
    assert both.scores == compare({"file": path}, data, latency=False)["file"].scores
    assert both.scores != compare({"other": other}, data)["other"].scores


def test_own_metrics(model, data):
    own = {"top2": lambda y, p: float(np.mean([label in row.argsort()[-2:] for label, row in zip(y, p, strict=True)]))}
    expected = oracle.top_k_accuracy_score(data[1], model.predict(data[0], verbose=0), k=2)
    comparison = compare({"m": model}, data, metrics=own)
    assert comparison["m"].scores["top2"] == pytest.approx(expected)
    assert "top2" in str(comparison)
    metric = keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top2")
    assert compare({"m": model}, data, metrics=[metric])["m"].scores["top2"] == pytest.approx(expected)
    assert float(metric.result()) == 0  # the caller's own metric is left alone
    loss = compare({"m": model}, data, metrics=["sparse_categorical_crossentropy"])["m"].scores
    assert loss["sparse_categorical_crossentropy"] == pytest.approx(
        oracle.log_loss(data[1], model.predict(data[0], verbose=0), labels=range(4)), rel=1e-4
    )


def test_several_outputs_take_own_metrics_only():
    x = keras.Input((3,))
    model = keras.Model(x, [kl.Dense(1)(x), kl.Dense(2)(x)])
    targets = [np.zeros((5, 1)), np.zeros((5, 2))]
    comparison = compare({"m": model}, (np.ones((5, 3)), targets), metrics={"outputs": lambda y, p: len(p)})
    assert comparison["m"].scores == {"outputs": 2.0}


def test_without_data(model, path):
    comparison = compare({"m": (model, path)}, latency=False)
    assert comparison["m"].scores == {}
    assert comparison.samples is None
    text = str(comparison)
    assert "accuracy" not in text
    assert "latency" not in text


def test_frozen(model):
    comparison = compare({"m": model})
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison.rows = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison["m"].macs = 0


def test_progress(model, capsys):
    compare({"m": model})
    assert capsys.readouterr().out == ""
    compare({"m": model}, verbose=1)
    assert "compare" in capsys.readouterr().out


def test_json(model, path, data):
    comparison = compare({"a": (model, path), "b": model}, data)
    loaded = json.loads(comparison.to_json())
    assert [row["name"] for row in loaded["rows"]] == ["a", "b"]
    assert loaded["rows"][0]["latency"]["threads"] == 1
    assert set(loaded["rows"][1]["scores"]) == CLASSIFICATION
    assert loaded["rows"][1]["size_bytes"] is None


def test_bad_models(model, path):
    for models in ({}, None, [model], {1: model}, {"a": None}, {"a": (path, model)}, {"a": (model, model)}, {"a": ()}):
        with pytest.raises(InvalidArgumentError):
            compare(models)
    with pytest.raises(UnsupportedModelError):
        compare({"unbuilt": keras.Sequential([kl.Dense(2)])})


def test_bad_data(model, data):
    x, y = data
    for bad in ((x, y[:-1]), (x,), x, (x[:0], y[:0]), (x, None), (x, y + 4), (x[:, :5], y), (x, "labels")):
        with pytest.raises(InvalidArgumentError):
            compare({"m": model}, bad)


def test_bad_options(model, data):
    for metrics in ("accuracy", ["no_such_metric"], {"a": 3}, 5):
        with pytest.raises(InvalidArgumentError):
            compare({"m": model}, data, metrics=metrics)
    for seconds in ({"other": 3.0}, 3.0):
        with pytest.raises(InvalidArgumentError):
            compare({"m": model}, training_seconds=seconds)
