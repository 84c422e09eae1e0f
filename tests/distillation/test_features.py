"""What a model gives inside, and what its outputs are."""

import keras
import numpy as np
import pytest
import zoo
from distilled import X, net, randomized, same, softmax
from keras import layers as kl
from quantized import quietly

import tfopt
from tfopt.core.keras_internals import functional_of
from tfopt.distillation.features import feature_shape, observed
from tfopt.distillation.heads import Head, averaged, heads_of, to_scores, to_values

PATHS = {
    "sequential": ["conv", "hidden"],
    "residual": ["stem_relu", "add", "pool"],
    "nested": ["first", "block:0", "block:1/inner", "head/deep/inner", "head"],
    "shared": ["tower:0", "tower:1", "merge"],
    "mixed": ["conv"],
    "sequence": ["lstm", "attention", "conv"],
}

CUTS = ("conv", "hidden", "stem_relu", "pool", "first", "merge", "lstm", "attention")  # layers of one call


@pytest.mark.parametrize("name", zoo.MODELS)
def test_features_are_those_of_a_model_cut_there(name):
    model = zoo.build(name)
    x = zoo.inputs_for(model)
    nodes = [len(op._inbound_nodes) for op in functional_of(model).operations]
    outputs, features = observed(model, PATHS[name])(x, training=False)
    same(keras.tree.flatten(outputs), keras.tree.flatten(model(x, training=False)))
    assert sorted(features) == sorted(PATHS[name])
    assert [len(op._inbound_nodes) for op in functional_of(model).operations] == nodes
    for path in PATHS[name]:
        assert tuple(features[path].shape[1:]) == feature_shape(model, path)[1:]
    for path in [path for path in PATHS[name] if path in CUTS]:
        cut = keras.Model(functional_of(model).input, model.get_layer(path).output)
        same([features[path]], [cut(x, training=False)])


def test_features_of_calls_and_nested_models_by_hand():
    model = zoo.build("nested")
    x = zoo.inputs_for(model)
    first, block, head = model.get_layer("first"), model.get_layer("block"), model.get_layer("head")
    once = block(first(x))
    features = observed(model, PATHS["nested"])(x)[1]
    same([features["block:0"], features["block:1/inner"]], [once, block(once)])
    same([features["head/deep/inner"]], [head.get_layer("deep")(block(once))])


def test_only_what_is_needed_runs(monkeypatch):
    model = zoo.build("nested")
    ran = []
    run = kl.Dense.call
    monkeypatch.setattr(kl.Dense, "call", lambda layer, x, **k: ran.append(layer.name) or run(layer, x, **k))
    outputs, features = observed(model, ["block:0/inner"], outputs=False)(zoo.inputs_for(model))
    assert outputs is None
    assert ran == ["first", "inner"]
    same([features["block:0/inner"]], [model.get_layer("block")(model.get_layer("first")(zoo.inputs_for(model)))])


def test_training_and_dropout_are_those_of_the_model():
    inputs = keras.Input((6,))
    x = kl.BatchNormalization(name="norm")(kl.Dropout(0.5, seed=3, name="drop")(inputs))
    watched = observed(keras.Model(inputs, kl.Dense(2, name="out")(x)), ["drop"])
    outputs, features = watched(X, training=True)
    dropped = features["drop"].numpy()
    assert 0.3 < np.mean(dropped == 0) < 0.7
    normalized = (dropped - dropped.mean(0)) / np.sqrt(dropped.var(0) + 1e-3)
    expected = normalized @ watched.get_layer("out").kernel.numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-4)


def last(*layers):
    return heads_of(keras.Sequential([keras.Input((4, 4)), *layers]))


@pytest.mark.parametrize(
    ("layers", "head"),
    [
        ([kl.Dense(3, "softmax")], Head.SOFTMAX),
        ([kl.Dense(3), kl.Softmax()], Head.SOFTMAX),
        ([kl.Dense(3), kl.Activation("softmax", dtype="float32"), kl.Dropout(0.2)], Head.SOFTMAX),
        ([kl.Dense(3, "log_softmax")], Head.LOG_SOFTMAX),
        ([kl.Dense(3, "sigmoid"), kl.Activation("linear")], Head.SIGMOID),
        ([kl.TimeDistributed(kl.Dense(3, "softmax"))], Head.SOFTMAX),
        ([kl.Conv1D(3, 1, activation="softmax"), kl.GlobalAveragePooling1D()], Head.SOFTMAX),  # by its numbers
        ([kl.Dense(3)], Head.LINEAR),
        ([kl.Dense(3), kl.Softmax(axis=1)], None),
        ([kl.Dense(3, "softmax"), kl.Rescaling(9.0)], Head.LINEAR),
        ([kl.Flatten(), kl.Dense(3), kl.BatchNormalization()], Head.LINEAR),
    ],
)
def test_heads(layers, head):
    assert last(*layers) == [head]


def test_heads_of_nested_fused_and_quantized_models():
    inputs = keras.Input((6,))
    trunk = net(5, "softmax", name="trunk")
    mean = kl.Average()([trunk(inputs), net(5, "softmax", name="other")(inputs)])
    assert heads_of(keras.Model(inputs, [trunk(inputs), mean])) == [Head.SOFTMAX, Head.SOFTMAX]
    mixture = 0.3 * trunk(inputs) + 0.7 * net(5, "softmax", name="third")(inputs)
    assert heads_of(keras.Model(inputs, mixture)) == [Head.SOFTMAX]
    assert heads_of(quietly(net(5, "softmax"))) == heads_of(quietly(net(5, "softmax"), "int16x8")) == [Head.SOFTMAX]
    assert heads_of(quietly(net(5, "sigmoid"))) == [Head.SIGMOID]
    assert heads_of(quietly(net(5, None))) == [Head.LINEAR]
    assert heads_of(tfopt.prune(net(5, "sigmoid"))) == [Head.SIGMOID]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("build", [lambda model: model, lambda model: keras.Sequential([keras.Input((6,)), model])])
def test_scores_are_the_logits_before_the_head(activation, build):
    plain, model = randomized(net(5, None), scale=9.0), net(5, activation)
    model.set_weights(plain.get_weights())
    model, plain = build(model), build(plain)
    logits = zoo.called(plain, X)
    np.testing.assert_allclose(to_scores(*heads_of(model), model(X)), logits, rtol=1e-5, atol=1e-4)
    assert np.abs(logits).max() > 100  # of which the probabilities say nothing any more


def test_scores_of_a_quantized_model_are_its_rounded_logits():
    model = quietly(randomized(net(5), scale=9.0))
    tfopt.calibrate(model, X, verbose=0)
    scores = to_scores(*heads_of(model), model(X)).numpy()
    low, high = model.get_layer("out").ranges()["pre_activation"].bounds()
    steps = (scores - low) / ((high - low) / 255)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-2)
    assert scores.max() > 50


def test_probabilities_alone_become_log_probabilities_with_a_floor():
    probabilities = np.array([[0.25, 0.75, 1e-30, 0.0]], "float32")
    smallest = np.log(np.finfo("float32").tiny)
    expected = [[np.log(0.25), np.log(0.75), np.log(1e-30), smallest]]
    np.testing.assert_allclose(to_scores(Head.SOFTMAX, probabilities), expected, rtol=1e-6)
    np.testing.assert_allclose(to_scores(Head.SIGMOID, np.array([[1.0]])), [[-np.log(1e-7)]], rtol=1e-6)
    np.testing.assert_allclose(to_scores(Head.SIGMOID, np.array([[0.8]])), [[np.log(4)]], rtol=1e-5)
    np.testing.assert_allclose(to_values(Head.SOFTMAX, np.log(probabilities + 1e-30)), probabilities, atol=1e-6)


def test_averages_against_numpy():
    generator = np.random.default_rng(0)
    logits = [generator.normal(0, 5, (4, 3)).astype("float32") for _ in range(2)]
    mean = 0.25 * softmax(logits[0]) + 0.75 * softmax(logits[1])
    np.testing.assert_allclose(averaged(Head.SOFTMAX, logits, [0.25, 0.75]), np.log(mean), rtol=1e-5, atol=1e-6)
    odds = [1 / (1 + np.exp(-z)) for z in logits]
    mean = 0.25 * odds[0] + 0.75 * odds[1]
    expected = np.log(mean) - np.log1p(-mean)
    np.testing.assert_allclose(averaged(Head.SIGMOID, logits, [0.25, 0.75]), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(averaged(Head.LINEAR, logits, [0.25, 0.75]), 0.25 * logits[0] + 0.75 * logits[1])
