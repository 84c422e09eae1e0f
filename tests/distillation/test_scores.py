"""How outputs become logits and back."""

import keras
import numpy as np
import pytest
import zoo
from distilled import X, net, randomized, softmax
from quantized import quietly

import tfopt
from tfopt.core.data.outputs import OutputKind, output_kinds
from tfopt.distillation.scores import Task, averaged, to_scores, to_values


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("build", [lambda model: model, lambda model: keras.Sequential([keras.Input((6,)), model])])
def test_scores_are_the_logits_before_the_head(activation, build):
    plain, model = randomized(net(5, None), scale=9.0), net(5, activation)
    model.set_weights(plain.get_weights())
    model, plain = build(model), build(plain)
    logits = zoo.called(plain, X)
    np.testing.assert_allclose(to_scores(*output_kinds(model), model(X)), logits, rtol=1e-5, atol=1e-4)
    assert np.abs(logits).max() > 100  # of which the probabilities say nothing any more


def test_scores_of_a_quantized_model_are_its_rounded_logits():
    model = quietly(randomized(net(5), scale=9.0))
    model = tfopt.calibrate(model, X, verbose=0)
    scores = to_scores(*output_kinds(model), model(X)).numpy()
    low, high = model.get_layer("out").ranges()["pre_activation"].bounds()
    steps = scores / ((high - low) / 255)  # the range is shifted until 0 is a step
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-2)
    assert scores.max() > 50


def test_probabilities_alone_become_log_probabilities_with_a_floor():
    probabilities = np.array([[0.25, 0.75, 1e-30, 0.0]], "float32")
    smallest = np.log(np.finfo("float32").tiny)
    expected = [[np.log(0.25), np.log(0.75), np.log(1e-30), smallest]]
    np.testing.assert_allclose(to_scores(OutputKind.PROBABILITIES, probabilities), expected, rtol=1e-6)
    np.testing.assert_allclose(to_scores(OutputKind.INDEPENDENT, np.array([[1.0]])), [[-np.log(1e-7)]], rtol=1e-6)
    np.testing.assert_allclose(to_scores(OutputKind.INDEPENDENT, np.array([[0.8]])), [[np.log(4)]], rtol=1e-5)
    np.testing.assert_allclose(
        to_values(OutputKind.PROBABILITIES, np.log(probabilities + 1e-30)), probabilities, atol=1e-6
    )


def test_averages_against_numpy():
    generator = np.random.default_rng(0)
    logits = [generator.normal(0, 5, (4, 3)).astype("float32") for _ in range(2)]
    mean = 0.25 * softmax(logits[0]) + 0.75 * softmax(logits[1])
    np.testing.assert_allclose(averaged(Task.CLASSES, logits, [0.25, 0.75]), np.log(mean), rtol=1e-5, atol=1e-6)
    odds = [1 / (1 + np.exp(-z)) for z in logits]
    mean = 0.25 * odds[0] + 0.75 * odds[1]
    expected = np.log(mean) - np.log1p(-mean)
    np.testing.assert_allclose(averaged(Task.LABELS, logits, [0.25, 0.75]), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(averaged(Task.NUMBERS, logits, [0.25, 0.75]), 0.25 * logits[0] + 0.75 * logits[1])
