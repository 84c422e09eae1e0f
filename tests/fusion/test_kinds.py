"""Log-probabilities and outputs of an unknown kind in each verb that fuses models: fused rightly, or refused."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt
from tfopt.core.data.outputs import OutputKind, output_kinds
from tfopt.core.errors import InvalidArgumentError
from tfopt.deploy.cascade import TFLiteCascade, export_cascade
from tfopt.fusion.stacking import stack
from tfopt.fusion.thresholds import fit_thresholds
from tfopt.fusion.weights import fit_weights

X = np.random.default_rng(0).normal(0, 2, (60, 6)).astype("float32")
Y = (X @ np.random.default_rng(1).normal(size=(6, 3))).argmax(-1)


def net(units, last="log_softmax", name="net"):
    keras.utils.set_random_seed(units)
    layers = [kl.Dense(units, "relu"), kl.Dense(3, last) if isinstance(last, str) else last]
    return keras.Sequential([keras.Input((6,)), *layers], name=name)


def twins(last="log_softmax"):
    """The same two classifiers, with probabilities and with their logarithms."""
    plain = [net(units, "softmax") for units in (4, 9)]
    others = [net(units, last) for units in (4, 9)]
    for one, other in zip(plain, others, strict=True):
        other.set_weights(one.get_weights())
    return plain, others


def answers(model):
    return model.predict(X, verbose=0)


WAYS = {
    "mean": {},
    "weighted": {"weights": [0.25, 0.75]},
    "max": {},
    "product": {},
    "gated": {},
    "vote": {},
    "hard": {"how": "vote", "kind": "hard"},
    "cascade": {"thresholds": [0.6]},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mixed", [False, True])
def test_log_probabilities_are_fused_as_the_probabilities(way, mixed):
    plain, logarithms = twins()
    options = {"how": way, **WAYS[way]}
    given = [plain[0], logarithms[1]] if mixed else logarithms
    want, fused = tfopt.fuse(plain, **options), tfopt.fuse(given, **options)
    fused.get_layer("fusion").set_weights(want.get_layer("fusion").get_weights())  # of the gate
    np.testing.assert_allclose(answers(fused), answers(want), atol=1e-6)
    assert output_kinds(fused) == [OutputKind.PROBABILITIES]
    np.testing.assert_allclose(answers(logarithms[0]), np.log(answers(plain[0])), atol=1e-5)  # it is as it was


def test_the_mean_against_numpy():
    _, logarithms = twins()
    want = np.mean([np.exp(answers(model)) for model in logarithms], 0)
    np.testing.assert_allclose(answers(tfopt.fuse(logarithms)), want, atol=1e-6)


def test_an_operation_at_the_end_is_replaced_too():
    inputs = keras.Input((6,))
    dense = kl.Dense(3)
    model = keras.Model(inputs, keras.ops.log_softmax(dense(inputs)))
    fused = tfopt.fuse([model, net(4)])
    want = (np.exp(answers(model)) + np.exp(answers(net(4)))) / 2
    np.testing.assert_allclose(answers(fused), want, atol=1e-6)


def test_log_probabilities_that_come_about_otherwise():
    inputs = keras.Input((6,))
    logits = kl.Dense(3)(inputs)
    model = keras.Model(inputs, logits - keras.ops.logsumexp(logits, -1, keepdims=True))
    with pytest.raises(InvalidArgumentError, match=r"Log-probabilities must.*Activation\('exponential'\)"):
        tfopt.fuse([model, net(4)])
    with_exponential = keras.Sequential([keras.Input((6,)), model, kl.Activation("exponential")])
    want = (np.exp(answers(model)) + np.exp(answers(net(4)))) / 2
    np.testing.assert_allclose(answers(tfopt.fuse([with_exponential, net(4)])), want, atol=1e-6)


def test_side_by_side_they_are_read_as_they_are():
    _, logarithms = twins()
    joined = tfopt.fuse(logarithms, "concat")
    np.testing.assert_allclose(answers(joined), np.concatenate(list(map(answers, logarithms)), 1), atol=1e-6)
    stacked = tfopt.fuse(logarithms, "stacked")
    assert output_kinds(stacked) == [OutputKind.LOG_PROBABILITIES]
    np.testing.assert_allclose(np.exp(answers(stacked)).sum(-1), 1, rtol=1e-5)


@keras.saving.register_keras_serializable(package="tests")
def clipped(values):
    return keras.ops.clip(values, 0.2, 0.8)


@keras.saving.register_keras_serializable(package="tests")
def softmax(values):
    return keras.ops.softmax(2.0 * values)


def test_an_unknown_kind_is_averaged_but_has_no_vote():
    models = [net(units, kl.Dense(3, clipped)) for units in (4, 9)]
    want = np.mean(list(map(answers, models)), 0)
    np.testing.assert_allclose(answers(tfopt.fuse(models)), want, atol=1e-6)
    for options in ({"how": "vote"}, {"how": "product"}, {"how": "cascade", "thresholds": [0.5]}):
        with pytest.raises(InvalidArgumentError, match="must know what an output is.*unknown kind"):
            tfopt.fuse(models, **options)


def test_an_activation_of_the_users_own_is_known_by_what_it_gives():
    models = [net(units, kl.Dense(3, softmax)) for units in (4, 9)]
    want = np.mean(list(map(answers, models)), 0)
    np.testing.assert_allclose(answers(tfopt.fuse(models, "vote")), want, atol=1e-6)
    with pytest.raises(InvalidArgumentError, match="product must be of logits"):
        tfopt.fuse(models, "product")


@pytest.mark.parametrize("method", ["greedy", "nnls", "logloss"])
def test_weights_are_fitted_to_the_probabilities(method):
    plain, logarithms = twins()
    want = fit_weights(plain, X, Y, method=method)
    for models in (logarithms, [plain[0], logarithms[1]], [answers(logarithms[0]), answers(plain[1])]):
        found = fit_weights(models, X, Y, method=method)
        assert found.weights == pytest.approx(want.weights, abs=1e-4)
        assert found.mean.loss == pytest.approx(want.mean.loss, rel=1e-4)
    fused = tfopt.fuse(logarithms, "weighted", weights=want.weights)
    accuracy = (answers(fused).argmax(-1) == Y).mean()
    assert accuracy == pytest.approx(want.score)


def test_models_say_what_they_predict_better_than_numbers():
    """Several independent probabilities of a sigmoid are no logits, though their rows do not sum to 1."""
    models = [net(units, "sigmoid") for units in (4, 9)]
    predicted = [answers(model)[np.arange(len(Y)), Y] for model in models]
    found = fit_weights(models, X, Y)
    assert found.mean.loss == pytest.approx(-np.log(np.mean(predicted, 0)).mean(), rel=1e-5)


def test_stack_scores_the_mean_of_the_probabilities():
    _, logarithms = twins()
    for model in logarithms:
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])

    def sums_to(labels, given):
        return float(np.asarray(given).sum(-1).mean())

    result = stack(logarithms, X, Y, folds=2, epochs=1, metric=sums_to, mode="max", verbose=0)
    assert result.mean_scores == pytest.approx((1, 1), abs=1e-5)


@pytest.mark.parametrize("last", ["softmax", "log_softmax"])
def test_thresholds_and_files_of_cascades(last, tmp_path):
    plain, models = twins(last)
    want, found = (fit_thresholds(each, X, Y, accuracy=0.2) for each in (plain, models))
    assert found.thresholds == pytest.approx(want.thresholds, abs=1e-6)
    cascade = tfopt.fuse(models, "cascade", thresholds=[0.6])
    files = TFLiteCascade([export.path for export in export_cascade(cascade, tmp_path)])
    sure = answers(plain[0]).max(-1) >= 0.6
    assert 0 < sure.sum() < len(X)
    np.testing.assert_array_equal(files.answered_by(X) == 0, sure)
    np.testing.assert_allclose(files.predict(X), np.where(sure[:, None], *map(answers, plain)), atol=1e-5)
