"""Means of weights by numpy, on digits with models of one start and of several, with masks and batch normalization."""

import json
import warnings

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl
from sklearn.datasets import load_digits

import tfopt
from tfopt.core.errors import InvalidArgumentError, NothingToDoError, UnsupportedModelError
from tfopt.fusion.soup import average_weights


def weights_of(model):
    return [np.array(weight) for weight in model.get_weights()]


def disturbed(model, seed, scale=0.1):
    """A copy with other weights."""
    copy = keras.models.clone_model(model)
    generator = np.random.default_rng(seed)
    copy.set_weights([weight + scale * generator.normal(size=weight.shape) for weight in model.get_weights()])
    return copy


@pytest.mark.parametrize("name", zoo.MODELS)
def test_uniform_is_the_mean_of_the_weights(name):
    first = zoo.build(name)
    models = [first, disturbed(first, 1), disturbed(first, 2)]
    before = [weights_of(model) for model in models]
    normalizes = any(isinstance(layer, kl.BatchNormalization) for layer in first.layers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        soup = average_weights(models)
    assert [str(each.message) for each in caught if "batch normalizations" in str(each.message)] != [] or not normalizes
    assert soup.members == (0, 1, 2)
    assert soup.model.name == first.name
    for mean, *each in zip(soup.model.get_weights(), *before, strict=True):
        np.testing.assert_allclose(mean, np.mean(each, 0), rtol=1e-6, atol=1e-7)
    for model, kept in zip(models, before, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(weights_of(model), kept, strict=True))
    copy = disturbed(first, 0, 0.0)
    copy.set_weights([np.mean(each, 0) for each in zip(*before, strict=True)])
    x = zoo.inputs_for(first)
    for got, wanted in zip(zoo.predictions(soup.model, x), zoo.predictions(copy, x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


# One linear model of two weights, and four samples: every mean can be scored by hand.

LINE = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
WANTED = LINE @ np.array([[1.0], [2.0]])


def line(a, b, name):
    model = keras.Sequential([keras.Input((2,)), kl.Dense(1, use_bias=False)], name=name)
    model.set_weights([np.array([[a], [b]])])
    return model


def error(a, b):
    return float(np.mean((LINE @ np.array([[a], [b]]) - WANTED) ** 2))


def test_greedy_takes_what_helps_and_leaves_what_harms():
    models = [line(9, 9, "far"), line(1.2, 2, "over"), line(0.9, 2, "under")]
    soup = average_weights(models, LINE, WANTED, method="greedy")
    assert (soup.metric, soup.mode) == ("mse", "min")
    assert soup.scores == pytest.approx([error(9, 9), error(1.2, 2), error(0.9, 2)], rel=1e-4)
    assert [mix.score for mix in soup.tried] == pytest.approx([error(1.05, 2), error(3.7, 4.3333333)], rel=1e-3)
    assert [mix.members for mix in soup.tried] == [(2, 1), (2, 1, 0)]
    assert soup.members == (2, 1)
    np.testing.assert_allclose(soup.model.get_weights()[0].ravel(), (1.05, 2.0), rtol=1e-6)


def test_a_mean_that_is_worse_gives_the_best_model_and_says_so():
    with pytest.warns(UserWarning, match=r"the result: mse 0\.0\d+, of the best mean 1\.\d+, of the worst model \d+"):
        soup = average_weights([line(1.1, 2, "good"), line(4, 2, "bad")], LINE, WANTED)
    assert (soup.members, soup.score) == ((0,), soup.scores[0])
    np.testing.assert_allclose(soup.model.get_weights()[0].ravel(), (1.1, 2), rtol=1e-6)


def test_one_model_twice():
    model = line(1.1, 2, "a")
    soup = average_weights([model, model], LINE, WANTED)
    assert soup.members == (0, 1)
    assert soup.score == soup.scores[0] == soup.scores[1]


# Digits.


def digit_net(name=None):
    layers = [kl.Dense(32, use_bias=False), kl.BatchNormalization(), kl.ReLU(), kl.Dense(10, "softmax")]
    return keras.Sequential([keras.Input((64,)), *layers], name=name)


def trained(model, data, seed, epochs):
    keras.utils.set_random_seed(seed)
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(*data, epochs=epochs, verbose=0)
    return model


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    return {"train": (x[:700], y[:700]), "validation": (x[700:1200], y[700:1200]), "test": (x[1200:], y[1200:])}


@pytest.fixture(scope="module")
def start(digits):
    keras.utils.set_random_seed(3)
    return trained(digit_net(), digits["train"], 0, 5)


def accuracy(model, data):
    return float((model.predict(data[0], verbose=0).argmax(1) == data[1]).mean())


def fine_tuned(start, data, seed, epochs=3):
    copy = keras.models.clone_model(start)
    copy.set_weights(start.get_weights())
    return trained(copy, data, seed, epochs)


@pytest.fixture(scope="module")
def members(start, digits):
    return [fine_tuned(start, digits["train"], seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("method", ["uniform", "greedy"])
def test_soup_of_one_start_is_at_least_as_good_as_its_best_member(members, digits, method):
    soup = average_weights(members, *digits["validation"], method=method, batch_norm=digits["train"][0])
    assert soup.score >= max(soup.scores)
    assert len(soup.members) > 1
    assert accuracy(soup.model, digits["validation"]) == pytest.approx(soup.score)
    for single, model in zip(soup.scores, members, strict=True):
        assert single == pytest.approx(accuracy(model, digits["validation"]))
    assert (
        accuracy(soup.model, digits["test"]) >= np.mean([accuracy(model, digits["test"]) for model in members]) - 0.01
    )


def test_statistics_are_those_of_the_data(members, digits):
    """The input of the normalization is linear in the data, so that its mean and variance are known."""
    x = digits["train"][0]
    soup = average_weights(members, batch_norm=x, batch_size=64)
    kernel = np.mean([model.layers[0].get_weights()[0] for model in members], 0)
    np.testing.assert_allclose(soup.model.layers[1].moving_mean, (x @ kernel).mean(0), atol=1e-4)
    np.testing.assert_allclose(soup.model.layers[1].moving_variance, (x @ kernel).var(0), rtol=1e-3)
    by_validation = average_weights(members, *digits["validation"]).model.layers[1].moving_mean
    np.testing.assert_allclose(by_validation, (digits["validation"][0] @ kernel).mean(0), atol=1e-4)
    with pytest.warns(UserWarning, match="are averaged, for want of data"):
        plain = average_weights(members)
    means = [model.layers[1].moving_mean.numpy() for model in members]
    np.testing.assert_allclose(plain.model.layers[1].moving_mean, np.mean(means, 0), rtol=1e-5)


def test_models_of_different_starts(digits):
    """Means of such models are near chance; the best model is given, and the likely reason."""
    models = [trained(digit_net(f"net_{seed}"), digits["train"], seed, 6) for seed in (11, 12, 13)]
    for method in ("uniform", "greedy"):
        with pytest.warns(UserWarning, match="different initial values.*1912.05671"):
            soup = average_weights(models, *digits["validation"], method=method)
        assert max(mix.score for mix in soup.tried) < min(soup.scores) - 0.05
        assert soup.score == max(soup.scores)
        best = models[soup.members[0]]
        assert all(np.array_equal(*pair) for pair in zip(weights_of(soup.model), weights_of(best), strict=True))


def test_masks_are_carried(start, digits):
    pruned = tfopt.prune(start, sparsity=0.5)
    members = [trained(tfopt.prune(pruned, sparsity=0.5), digits["train"], seed, 1) for seed in (1, 2)]
    soup = average_weights(members, *digits["validation"])
    for kernel, old in ((soup.model.layers[i].kernel, members[0].layers[i].kernel) for i in (0, 3)):
        assert np.array_equal(kernel.numpy() == 0, old.numpy() == 0)
        assert (kernel.numpy() == 0).mean() == pytest.approx(0.5, abs=0.01)
    trained(soup.model, digits["train"], 5, 1)
    assert np.array_equal(soup.model.layers[0].kernel.numpy() == 0, members[0].layers[0].kernel.numpy() == 0)
    others = [tfopt.prune(start, sparsity=0.5), tfopt.prune(digit_net(), sparsity=0.5)]
    for pair in (others, [others[0], start]):
        with pytest.raises(InvalidArgumentError, match="same mask"):
            average_weights(pair)


def test_the_report(members, digits):
    soup = average_weights(members, *digits["validation"], method="greedy")
    lines = str(soup).splitlines()
    assert lines[0] == "Greedy soup of 3 models"
    assert lines[1].split() == ["model", "accuracy", "in", "the", "soup"]
    assert len(lines) == 3 + 3 + 2 + 1 + 1 + 1
    assert lines[-2].split() == ["result", f"{soup.score:.4f}", str(len(soup.members))]
    assert json.loads(soup.to_json())["scores"] == list(soup.scores)
    assert soup._repr_html_().count("<tr>") == 1 + 5 + 1
    assert len(soup.plot().axes[0].lines[0].get_xdata()) == 5
    assert "no validation data" in str(average_weights([line(0, 1, "a"), line(0, 2, "b")]))


def branched(swap):
    inputs = keras.Input((4,))
    first = kl.Dense(4)(inputs)
    second = kl.Dense(4)(first)
    return keras.Model(inputs, kl.Subtract()([second, first] if swap else [first, second]))


def nested(activation):
    inside = keras.Sequential([keras.Input((4,)), kl.Dense(4, activation)])
    return keras.Sequential([keras.Input((4,)), inside, kl.Dense(2)])


def two_layers(units=4, activation="relu", rate=0.1, inputs=4, more=()):
    layers = [kl.Dense(units, activation), kl.Dropout(rate), kl.Dense(2), *more]
    return keras.Sequential([keras.Input((inputs,)), *layers])


OTHERS = {
    "units": (two_layers(), two_layers(5), r"weights \[\(4, 4\).*weights \[\(4, 5\)"),
    "activation": (two_layers(), two_layers(activation="tanh"), "activation relu.*activation tanh"),
    "depth": (two_layers(), two_layers(more=[kl.ReLU()]), "3 layers.*4 layers"),
    "inputs": (two_layers(), two_layers(inputs=5), r"inputs \[\(None, 4\)\].*inputs \[\(None, 5\)\]"),
    "class": (two_layers(more=[kl.ReLU()]), two_layers(more=[kl.ELU()]), "class ReLU.*class ELU"),
    "wiring": (branched(False), branched(True), "wired otherwise"),
    "nested": (nested("relu"), nested("tanh"), "activation relu.*activation tanh"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_architectures(case):
    first, other, message = OTHERS[case]
    with pytest.raises(InvalidArgumentError, match=message):
        average_weights([first, other])


def test_what_may_differ():
    """Dropout rates, names and regularizers: hyperparameters that soups are made over."""
    one, two = two_layers(), two_layers(rate=0.5)
    two.layers[0].kernel_regularizer = keras.regularizers.L2(1e-3)
    soup = average_weights([one, two])
    np.testing.assert_allclose(
        soup.model.layers[0].kernel, (one.layers[0].kernel.numpy() + two.layers[0].kernel.numpy()) / 2, rtol=1e-6
    )


PAIR = [line(0, 1, "a"), line(0, 2, "b")]
WRONG = {
    "none": (lambda: average_weights([]), InvalidArgumentError, "list of models"),
    "one": (lambda: average_weights(PAIR[:1]), NothingToDoError, "'a' alone"),
    "a model": (lambda: average_weights(PAIR[0]), InvalidArgumentError, "list of models"),
    "method": (lambda: average_weights(PAIR, method="best"), InvalidArgumentError, "must be 'uniform' or 'greedy'"),
    "greedy": (lambda: average_weights(PAIR, method="greedy"), InvalidArgumentError, "by validation data"),
    "no labels": (lambda: average_weights(PAIR, LINE), InvalidArgumentError, "no labels"),
    "batch_norm": (lambda: average_weights(PAIR, batch_norm=LINE), InvalidArgumentError, "without it"),
    "quantized": (
        lambda: average_weights([tfopt.quantize(two_layers()), tfopt.quantize(two_layers())]),
        UnsupportedModelError,
        "before it is quantized",
    ),
    "clustered": (
        lambda: average_weights([tfopt.cluster(two_layers(16), 4)] * 2),
        UnsupportedModelError,
        "then `cluster`",
    ),
    "outputs": (
        lambda: average_weights([zoo.build("shared")] * 2, zoo.inputs_for(zoo.build("shared")), {"a": LINE, "b": LINE}),
        InvalidArgumentError,
        "16 samples",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case):
    call, error_class, message = WRONG[case]
    with pytest.raises(error_class, match=message):
        call()


def test_several_outputs():
    first = zoo.build("shared")
    x = zoo.inputs_for(first)
    y = {"a": np.zeros((16, 2)), "b": np.zeros((16, 3))}
    models = [first, disturbed(first, 1)]
    with pytest.raises(InvalidArgumentError, match="several outputs"):
        average_weights(models, x, y)

    def size(y_true, y_pred):
        return float(np.abs(y_pred["a"]).mean())

    with pytest.warns(UserWarning, match="No mean of the models is as good"):
        soup = average_weights(models, x, y, metric=size, mode="max")
    assert soup.scores == pytest.approx([np.abs(model.predict(x, verbose=0)["a"]).mean() for model in models], rel=1e-5)


def test_public_name():
    assert tfopt.average_weights is average_weights
