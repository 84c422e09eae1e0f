"""Fitted weights against grids, an EM of its own and a selection written anew; the guard on data that overfits."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error
from sklearn.model_selection import StratifiedKFold

import tfopt
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, NothingToDoError, UnsupportedModelError
from tfopt.fusion.weights import METHODS, fit_weights


def softmax(z):
    powers = np.exp(z - z.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def classifiers(seed, models, samples=60, classes=3, skill=1.0, logits=False):
    """Random predictions, the better the higher `skill`, and labels."""
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, samples)
    z = random.normal(size=(models, samples, classes)) + skill * np.eye(classes)[y]
    return list(z if logits else softmax(z)), y


def worth(predictions, weights, y):
    """Accuracy and negative log loss of a weighted sum, by scikit-learn."""
    p = np.tensordot(weights, np.array(predictions), 1)
    return accuracy_score(y, p.argmax(1)), -log_loss(y, p, labels=range(p.shape[1]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.sampled_from(METHODS), st.floats(-1, 3))
def test_on_the_simplex_and_never_worse_than_the_best_model_or_the_mean(seed, models, method, skill):
    predictions, y = classifiers(seed, models, skill=skill)
    result = fit_weights(predictions, None, y, method=method)
    weights = np.array(result.weights)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    accuracy, loss = worth(predictions, weights, y)
    assert result.score == pytest.approx(accuracy)
    for other in (*np.eye(models), np.full(models, 1 / models)):
        other_accuracy, other_loss = worth(predictions, other, y)
        assert accuracy >= other_accuracy
        assert accuracy > other_accuracy or loss >= other_loss - 1e-9
    for place, single in enumerate(result.singles):
        assert (single.score, -single.loss) == pytest.approx(worth(predictions, np.eye(models)[place], y))


def test_greedy_selection_written_anew():
    """Caruana et al., figure 1: add the model that helps most, with replacement; keep the best of all ensembles."""
    for seed in range(5):
        predictions, y = classifiers(seed, 4, skill=0.7)
        bag, bags = [], []
        for _ in range(50):
            ranked = [worth(predictions, np.bincount([*bag, m], minlength=4) / (len(bag) + 1), y) for m in range(4)]
            bag.append(max(range(4), key=lambda m: (round(ranked[m][0], 12), ranked[m][1])))
            bags.append((worth(predictions, np.bincount(bag, minlength=4) / len(bag), y), -len(bag), list(bag)))
        best = max(bags)[2]
        result = fit_weights(predictions, None, y)
        np.testing.assert_allclose(result.fit.weights, np.bincount(best, minlength=4) / len(best), atol=1e-12)


def test_log_loss_by_em():
    """Mixture weights by expectation maximization, which climbs to the one maximum."""
    predictions, y = classifiers(3, 3, samples=200)
    right = np.array(predictions)[:, np.arange(200), y]
    weights = np.full(3, 1 / 3)
    for _ in range(5000):
        weights = (weights[:, None] * right / (weights @ right)).mean(1)
    np.testing.assert_allclose(fit_weights(predictions, None, y, method="logloss").fit.weights, weights, atol=1e-3)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_log_loss_by_a_grid(logits, classes):
    (a, b), y = classifiers(1, 2, samples=150, classes=classes, logits=logits)
    if classes == 2:  # one column: the probability, or the logit, of class 1
        a, b = ((z[:, 1:] - z[:, :1]) if logits else z[:, 1:] for z in (a, b))

    def loss(w):
        z = w * a + (1 - w) * b
        p = (softmax(z) if classes > 2 else 1 / (1 + np.exp(-z))) if logits else z
        return log_loss(y, p if classes > 2 else p[:, 0], labels=range(classes))

    grid = np.linspace(0, 1, 501)
    best = grid[np.argmin([loss(w) for w in grid])]
    assert 0.1 < best < 0.9
    result = fit_weights([a, b], None, y, method="logloss")
    assert result.fit.weights == pytest.approx((best, 1 - best), abs=2e-3)
    assert result.fit.loss == pytest.approx(loss(best), abs=1e-6)


def test_least_squares_by_hand():
    """Orthogonal predictions: each weight is its own projection, 4, 1, -2; the last is cut off, the sum made 1."""
    predictions = list(np.eye(3)[:, :, None])
    result = fit_weights(predictions, None, np.array([4.0, 1.0, -2.0]), method="nnls")
    assert result.fit.weights == pytest.approx((0.8, 0.2, 0))
    one_hot = np.array([[1.0, 0.0], [0.0, 1.0]])
    half = np.full((2, 2), 0.5)
    assert fit_weights([one_hot, half], None, one_hot, method="nnls").fit.weights == pytest.approx((1, 0))


def test_nothing_that_fits_is_the_mean():
    """No non-negative weight lowers the error of predictions that all point the other way."""
    result = fit_weights([-np.ones((3, 1)), -2 * np.ones((3, 1))], None, np.array([2.0, 2.5, 3.0]), method="nnls")
    assert result.fit.weights == (0.5, 0.5)
    assert (result.weights, result.kept) == ((1.0, 0.0), "predictions_1")


def test_regression_by_mean_squared_error():
    random = np.random.default_rng(0)
    y = random.normal(size=(80, 2))
    predictions = [y + random.normal(size=y.shape) * scale for scale in (0.3, 0.4, 2.0)]
    result = fit_weights(predictions, None, y)
    assert (result.metric, result.mode, result.loss) == ("mse", "min", "mean squared error")
    combined = np.tensordot(result.weights, predictions, 1)
    assert result.score == pytest.approx(mean_squared_error(y, combined))
    assert result.score < min(mean_squared_error(y, p) for p in [*predictions, np.mean(predictions, 0)])


def test_the_metric_decides():
    """The cost of missing class 1: the second model, less accurate, misses none."""
    y = np.array([0, 0, 0, 0, 1])
    accurate, careful = np.eye(2)[[0, 0, 0, 0, 0]], np.eye(2)[[1, 1, 0, 0, 1]]

    def missed(y_true, y_pred):
        return float(((y_true == 1) & (y_pred.argmax(-1) == 0)).sum())

    assert fit_weights([accurate, careful], None, y).weights[0] > 0.5
    by_missed = fit_weights([accurate, careful], None, y, metric=missed, mode="min")
    assert (by_missed.score, by_missed.metric) == (0.0, "missed")
    assert by_missed.weights[1] > 0.5


def test_log_loss_decides_between_equal_scores():
    y = np.array([0, 1])
    unsure, sure = np.array([[0.6, 0.4], [0.4, 0.6]]), np.array([[0.99, 0.01], [0.01, 0.99]])
    for method in METHODS:
        assert fit_weights([unsure, sure], None, y, method=method).weights == pytest.approx((0, 1), abs=1e-6)


def test_pictures_of_labels():
    """Segmentation: each pixel is a sample of its own."""
    predictions, y = classifiers(2, 3, samples=5 * 4 * 4)
    flat = fit_weights(predictions, None, y)
    maps = fit_weights([p.reshape(5, 4, 4, 3) for p in predictions], None, y.reshape(5, 4, 4))
    assert maps.weights == flat.weights
    assert (maps.samples, maps.score) == (5, pytest.approx(flat.score))


def test_numbers_without_an_axis_of_outputs():
    y = np.array([0, 1, 1, 0])
    columns = [np.array([[0.2], [0.9], [0.4], [0.1]]), np.array([[0.7], [0.6], [0.8], [0.3]])]
    for method in METHODS:
        flat = fit_weights([column[:, 0] for column in columns], None, y, method=method)
        assert flat == fit_weights(columns, None, y[:, None], method=method)
        assert flat.score == 1.0


# The guard.


def test_guard_gives_the_mean_where_the_fit_is_luck():
    """Forty coins and twenty samples: some weights look good, on a fold that they have not seen they are coins."""
    predictions, y = classifiers(0, 40, samples=20, classes=2, skill=0.0)
    lucky = fit_weights(predictions, None, y)
    assert lucky.score > lucky.mean.score + 0.2
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    guarded = fit_weights(predictions, None, y, guard="cv", folds=folds)
    assert (guarded.kept, guarded.weights) == ("plain mean", (1 / 40,) * 40)
    assert guarded.fit.cv_score <= guarded.mean.cv_score
    assert guarded.fit.score == lucky.score
    assert "is no better than the mean" in str(guarded)


def test_guard_keeps_a_fit_that_holds():
    (good, *bad), y = classifiers(1, 3, samples=300, skill=3.0)
    bad = [softmax(4 * np.random.default_rng(n).normal(size=good.shape)) for n in range(3)]
    guarded = fit_weights([good, *bad], None, y, guard="cv")
    assert guarded.weights == fit_weights([good, *bad], None, y).weights
    assert guarded.weights[0] > 0.8
    assert guarded.fit.cv_score > guarded.mean.cv_score + 0.1
    assert "beats the mean" in str(guarded)


def test_guard_scores_by_hand():
    """Each fold: fitted on the others, scored on it; folds as scikit-learn makes them."""
    predictions, y = classifiers(4, 3, samples=90)
    splitter = StratifiedKFold(3, shuffle=True, random_state=7)
    guarded = fit_weights(predictions, None, y, guard="cv", folds=splitter)
    splits = list(splitter.split(y, y))
    fitted = [fit_weights([p[train] for p in predictions], None, y[train]).weights for train, _ in splits]
    scores = [worth([p[out] for p in predictions], w, y[out])[0] for w, (_, out) in zip(fitted, splits, strict=True)]
    assert guarded.fit.cv_scores == pytest.approx(scores)
    equal = [worth([p[out] for p in predictions], np.full(3, 1 / 3), y[out])[0] for _, out in splits]
    assert guarded.mean.cv_scores == pytest.approx(equal)
    assert fit_weights(predictions, None, y, guard="cv", folds=splits).fit == guarded.fit


def test_folds_of_a_regression_are_not_stratified():
    y = np.random.default_rng(0).normal(size=30)
    predictions = [y[:, None] + noise for noise in np.random.default_rng(1).normal(size=(2, 30, 1))]
    guarded = fit_weights(predictions, None, y, guard="cv", folds=3, seed=2)
    order = np.random.default_rng(2).permutation(30)
    means = [np.mean(predictions, 0)[out, 0] - y[out] for out in (np.sort(order[fold::3]) for fold in range(3))]
    assert guarded.mean.cv_scores == pytest.approx([np.mean(error**2) for error in means])


# Models and what they are given.


def nets(*names, outputs=3, activation="softmax"):
    return [
        keras.Sequential([keras.Input((4,)), kl.Dense(8, "relu"), kl.Dense(outputs, activation)], name=name)
        for name in names
    ]


X = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 50)


def test_models_are_their_predictions():
    models = nets("a", "b", "a")
    weights = [model.get_weights() for model in models]
    by_models = fit_weights(models, X, Y)
    arrays = [model.predict(X, verbose=0) for model in models]
    assert by_models.weights == fit_weights(arrays, None, Y).weights
    assert fit_weights([models[0], *arrays[1:]], X, np.eye(3)[Y]).weights == by_models.weights
    assert [single.name for single in by_models.singles] == ["a", "b", "a_3"]
    for model, before in zip(models, weights, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize("activation", ["softmax", None])
def test_the_fused_model_has_the_score_that_was_promised(activation):
    models = nets("a", "b", "c", activation=activation)
    for method in ("greedy", "logloss"):
        result = fit_weights(models, X, Y, method=method)
        fused = tfopt.fuse(models, "weighted", weights=result.weights)
        assert (fused.predict(X, verbose=0).argmax(1) == Y).mean() == pytest.approx(result.score)


def test_one_model_twice():
    """Equal shares or all on one: the sum is the same model."""
    (model,) = nets("a")
    result = fit_weights([model, model], X, Y)
    assert sum(result.weights) == 1
    assert result.score == result.singles[0].score == result.singles[1].score


def test_half_precision():
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        models = nets("a", "b")
    finally:
        keras.mixed_precision.set_dtype_policy(policy)
    result = fit_weights(models, X, Y, method="logloss")
    arrays = [model.predict(X, verbose=0).astype("float64") for model in models]
    assert result.weights == fit_weights(arrays, None, Y, method="logloss").weights


def test_the_report():
    predictions, y = classifiers(0, 2)
    result = fit_weights(predictions, None, y, guard="cv", folds=3)
    lines = str(result).splitlines()
    assert lines[0] == "Weights of 2 models by accuracy"
    assert lines[1].split() == ["model", "weight", "accuracy", "log", "loss", "accuracy,", "held-out", "folds"]
    assert [line.split()[0] for line in lines[3:7]] == ["predictions_1", "predictions_2", "plain", "fit,"]
    assert f"{result.weights[0]:.3f}" in lines[3]
    assert f"{result.fit.cv_score:.4f}" in lines[6]
    assert result._repr_html_().count("<tr>") == 5
    assert json.loads(result.to_json())["weights"] == list(result.weights)
    assert len(result.plot().axes[0].patches) == 2
    with pytest.raises(AttributeError):
        result.weights = ()
    assert "held-out" not in str(fit_weights(predictions, None, y))


def two_outputs():
    inputs = keras.Input((4,))
    return keras.Model(inputs, [kl.Dense(3)(inputs), kl.Dense(3)(inputs)])


P = softmax(np.zeros((50, 3)))
WRONG = {
    "no model": (
        lambda: fit_weights([], X, Y),
        InvalidArgumentError,
        "more to fit weights to. Received: 0",
    ),
    "one model": (
        lambda: fit_weights([P], X, Y),
        NothingToDoError,
        "more to fit weights to. Received: 1",
    ),
    "no list": (lambda: fit_weights(P, X, Y), InvalidArgumentError, "list of models"),
    "other classes": (lambda: fit_weights([P, P[:, :2]], X, Y), InvalidArgumentError, "one shape.*(50, 3).*(50, 2)"),
    "more samples": (lambda: fit_weights([P, P[1:]], X, Y), InvalidArgumentError, "49, 3.* for 50 labels"),
    "label 3": (lambda: fit_weights([P, P], X, Y + 1), InvalidArgumentError, "in 0..2"),
    "no labels": (lambda: fit_weights([P, P], X, None), InvalidArgumentError, "no labels"),
    "nan": (lambda: fit_weights([P, P * np.nan], X, Y), NonFiniteError, "predictions must be finite"),
    "mixed": (lambda: fit_weights([P, P * 9], X, Y), InvalidArgumentError, "probabilities of classes, logits"),
    "method": (lambda: fit_weights([P, P], X, Y, method="best"), InvalidArgumentError, "'greedy', 'nnls', 'logloss'"),
    "guard": (lambda: fit_weights([P, P], X, Y, guard="k"), InvalidArgumentError, "None or 'cv'"),
    "folds": (lambda: fit_weights([P, P], X, Y, guard="cv", folds=1), InvalidArgumentError, "from 2 to"),
    "odd folds": (lambda: fit_weights([P, P], X, Y, guard="cv", folds="5"), InvalidArgumentError, "list of pairs"),
    "both": (
        lambda: fit_weights([P, P], X, Y, guard="cv", folds=[([0, 1], [1, 2])]),
        InvalidArgumentError,
        "1 in both parts of a split in `folds`, such as 1",
    ),
    "nnls": (lambda: fit_weights([P * 9, P * 9], X, Y, method="nnls"), InvalidArgumentError, "logits"),
    "loss": (
        lambda: fit_weights([P, P], X, np.ones((50, 3)) / 2, method="logloss"),
        InvalidArgumentError,
        "a regression",
    ),
    "outputs": (lambda: fit_weights([two_outputs(), P], X, Y), UnsupportedModelError, "one output"),
    "no Keras": (lambda: fit_weights([P, len], X, Y), UnsupportedModelError, "keras.Model"),
    "stream": (
        lambda: fit_weights([P, P], keras.utils.PyDataset(), Y),
        InvalidArgumentError,
        "must be arrays",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message.replace("(", r"\(").replace(")", r"\)")):
        call()


def test_a_missing_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(InvalidArgumentError, match=r"solve with SciPy.*tfopt\[fusion\]"):
        fit_weights([P, P], X, Y, method="nnls")
    assert fit_weights([P, P], X, Y).weights == (0.5, 0.5)


def test_public_name():
    assert tfopt.fit_weights is fit_weights
