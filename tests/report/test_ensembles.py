"""What `compare` says of fused models, against numpy and numbers worked out by hand."""

import json

import keras
import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

from tfopt.core.data.metrics import calibration_error
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.branches import branches_of
from tfopt.core.models.graph import read
from tfopt.fusion.fuse import fuse
from tfopt.report.compare import compare

CLASSES = 3


def network(units, seed, name, ending="softmax", width=CLASSES):
    generator = np.random.default_rng(seed)
    layers = [kl.Dense(units, "tanh"), kl.Dense(width, ending)]
    model = keras.Sequential([keras.Input((5,)), *layers], name=name)
    model.set_weights([generator.normal(0, 1.5, weight.shape) for weight in model.weights])
    return model


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    return generator.normal(size=(90, 5)).astype("float32"), generator.integers(0, CLASSES, 90)


@pytest.fixture(scope="module")
def models():
    return [network(2, 1, "a"), network(4, 2, "b"), network(8, 3, "c")]


def ece_by_loop(labels, probabilities, bins=15):
    """The definition, bin by bin."""
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    total = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_calibration_error_by_hand():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.35, 0.65]])
    # three samples in the bin of 0.9, two of them right; one in that of 0.65, right
    expected = 3 / 4 * abs(2 / 3 - 0.9) + 1 / 4 * abs(1 - 0.65)
    assert calibration_error(labels, probabilities) == pytest.approx(expected)
    assert calibration_error(labels[:2], np.array([[1.0, 0.0]] * 2)) == 0
    assert calibration_error(1 - labels[:2], np.array([[1.0, 0.0]] * 2)) == 1


@given(st.integers(0, 10**6), st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_calibration_error_is_the_definition(seed, bins):
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(0, 2, (50, 4)), generator.integers(0, 4, 50)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = ece_by_loop(labels, probabilities, bins)
    assert calibration_error(labels, probabilities, bins) == pytest.approx(expected)
    assert calibration_error(labels, logits, bins) == pytest.approx(expected)
    assert calibration_error(np.eye(4)[labels], probabilities, bins) == pytest.approx(expected)
    assert 0 <= expected <= 1


@pytest.mark.parametrize("logits", [False, True])
def test_calibration_error_of_two_classes(logits):
    generator = np.random.default_rng(1)
    values, labels = generator.normal(0, 2, 70), generator.integers(0, 2, 70)
    high = 1 / (1 + np.exp(-values))
    expected = ece_by_loop(labels, np.stack([1 - high, high], -1))
    assert calibration_error(labels, (values if logits else high)[:, None]) == pytest.approx(expected)


def test_calibration_error_needs_classes():
    generator = np.random.default_rng(1)
    assert calibration_error(generator.normal(size=9), generator.normal(size=(9, 1))) is None
    with pytest.raises(InvalidArgumentError):
        calibration_error(np.array([0, 5]), np.ones((2, 3)) / 3)


def test_a_fusion_shows_its_branches(models, data):
    x, y = data
    fused = fuse(models, "weighted", weights=[0.5, 0.3, 0.2])
    comparison = compare({"alone": models[0], "fused": fused}, data)
    (ensemble,) = comparison.ensembles
    outputs = [zoo.called(model, x) for model in models]
    mean = np.tensordot([0.5, 0.3, 0.2], outputs, 1)
    classes = [each.argmax(-1) for each in outputs]
    assert ensemble.name == "fused"
    assert ensemble.metric == "accuracy"
    assert [member.name for member in ensemble.members] == ["a", "b", "c"]
    assert [member.weight for member in ensemble.members] == [0.5, 0.3, 0.2]
    assert [member.score for member in ensemble.members] == pytest.approx([(c == y).mean() for c in classes])
    assert [m.calibration_error for m in ensemble.members] == pytest.approx(
        [ece_by_loop(y, each) for each in outputs], abs=1e-6
    )
    assert [m.agreement for m in ensemble.members] == pytest.approx([(c == mean.argmax(-1)).mean() for c in classes])
    assert [m.parameters for m in ensemble.members] == [5 * n + n + 3 * n + 3 for n in (2, 4, 8)]
    assert [m.macs for m in ensemble.members] == [5 * n + 3 * n for n in (2, 4, 8)]
    assert ensemble.fusion.score == comparison["fused"].scores["accuracy"] == (mean.argmax(-1) == y).mean()
    assert ensemble.fusion.calibration_error == pytest.approx(ece_by_loop(y, mean), abs=1e-6)
    assert ensemble.fusion.macs == comparison["fused"].macs
    expected = [[(one != other).mean() for other in classes] for one in classes]
    np.testing.assert_allclose(ensemble.disagreement, expected)
    assert ensemble.diversity == pytest.approx((expected[1][0] + expected[2][0] + expected[2][1]) / 3)


def test_it_prints_in_every_form(models, data):
    comparison = compare({"fused": fuse(models[:2], "mean")}, data)
    text = str(comparison)
    assert "Branches of fused" in text
    assert "0.5000" in text
    assert "Disagreement of the branches of fused" in text
    assert f"{100 * comparison.ensembles[0].diversity:.1f} %" in text
    assert comparison.to_html().count("<table>") == 3
    stored = json.loads(comparison.to_json())["ensembles"][0]
    assert [member["name"] for member in stored["members"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("how", "weights"),
    [
        ("vote", [1 / 3] * 3),
        ("max", [None] * 3),
        ("product", [None] * 3),
        ("stacked", [None] * 3),
        ("gated", [None] * 3),
        ("cascade", [None] * 3),
    ],
)
def test_every_way_to_fuse_classifiers_has_branches(models, data, how, weights):
    thresholds = {"thresholds": [0.9, 0.9]} if how == "cascade" else {}
    (ensemble,) = compare({"fused": fuse(models, how, **thresholds)}, data).ensembles
    assert [member.name for member in ensemble.members] == ["a", "b", "c"]
    assert [member.weight for member in ensemble.members] == weights
    own = compare({model.name: model for model in models}, data)
    assert [member.score for member in ensemble.members] == [row.scores["accuracy"] for row in own.rows]
    errors = [calibration_error(data[1], zoo.called(model, data[0])) for model in models]
    assert [member.calibration_error for member in ensemble.members] == pytest.approx(errors, abs=1e-5)


def test_learned_weights_are_those_of_now(models, data):
    fused = fuse(models[:2], "weighted", weights="learned")
    fused.get_layer("fusion").logits.assign([np.log(3.0), 0.0])
    (ensemble,) = compare({"fused": fused}, data).ensembles
    assert [member.weight for member in ensemble.members] == pytest.approx([0.75, 0.25])


def test_a_regression_has_scores_alone(data):
    pair = [network(4, 1, "a", None, 1), network(4, 2, "b", None, 1)]
    x, y = data[0], np.random.default_rng(3).normal(size=90)
    (ensemble,) = compare({"fused": fuse(pair, "mean")}, (x, y)).ensembles
    assert ensemble.metric == "mae"
    assert ensemble.members[0].score == pytest.approx(np.abs(zoo.called(pair[0], x)[:, 0] - y).mean(), rel=1e-5)
    assert (ensemble.diversity, ensemble.members[0].agreement, ensemble.fusion.calibration_error) == (None, None, None)
    assert len(ensemble.tables()) == 1


def test_other_models_have_no_branches(models, data):
    assert compare({"alone": models[0]}, data).ensembles == ()
    assert compare({"fused": fuse(models, "mean")}).ensembles == ()
    features = fuse(models[:2], "concat", layers=[model.layers[0].name for model in models[:2]], head=kl.Dense(3))
    assert branches_of(read(features)) == []
    assert compare({"features": features}, data).ensembles == ()
