"""What a model gives inside."""

import keras
import numpy as np
import pytest
import zoo
from distilled import X, same
from keras import layers as kl

from tfopt.core.keras_internals import functional_of
from tfopt.distillation.features import feature_shape, observed

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
