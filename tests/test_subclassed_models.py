"""Verbs take a subclassed model as they take the Functional model that computes the same."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt
from tfopt.tuner.space import SearchSpace

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Block(kl.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.norm = kl.Dense(units, "relu", name="dense"), kl.BatchNormalization(name="norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], self.dense.units))
        self.built = True

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block(8, name=f"block_{i}") for i in range(2)]
        self.head = kl.Dense(3, name="head")

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(x)


def net(seed=0):
    keras.utils.set_random_seed(seed)
    model = Net(name="net")
    model(X[:1])
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    return model


def written_out(model):
    """The Functional model, compiled as the other is."""
    copy = tfopt.functional(model)
    copy.compile(keras.optimizers.SGD(0.01), LOSS)
    return copy


def distilled(model, folder):
    teacher = net(1)
    distiller = tfopt.Distiller(model, teacher)
    distiller.compile(keras.optimizers.SGD(0.1), LOSS)
    distiller.fit(X, Y, shuffle=False, verbose=0)
    return model.predict(X, verbose=0)


def exported(model, folder, **options):
    return tfopt.TFLiteModel(tfopt.export_tflite(model, folder / "m.tflite", data=X, **options).path).predict(X)


VERBS = {
    "prune": lambda m, _: tfopt.prune(m, sparsity=0.5).predict(X, verbose=0),
    "shrink": lambda m, _: tfopt.shrink(tfopt.prune(m, pattern="channel", sparsity=0.5)).predict(X, verbose=0),
    "cluster": lambda m, _: tfopt.cluster(m, 4).predict(X, verbose=0),
    "quantize": lambda m, _: tfopt.calibrate(tfopt.quantize(m), X).predict(X, verbose=0),
    "strip": lambda m, _: tfopt.strip(tfopt.quantize(m)).predict(X, verbose=0),
    "export_tflite": exported,
    "export_tflite, int8": lambda m, folder: exported(tfopt.calibrate(tfopt.quantize(m), X), folder),
    "summary": lambda m, _: [tfopt.summary(m).parameters, tfopt.summary(m).macs],
    "find_sparsity": lambda m, _: tfopt.find_sparsity(m, (X, Y), max_drop=0.2, verbose=0).sparsity,
    "rank_features": lambda m, _: [f.importance for f in tfopt.rank_features(m, (X, Y), seed=0).features],
    "drop_features": lambda m, _: tfopt.drop_features(m, [0]).predict(X[:, 1:], verbose=0),
    "swap_activation": lambda m, _: tfopt.swap_activation(m, "elu").predict(X, verbose=0),
    "fuse": lambda m, _: tfopt.fuse([m, net(2)]).predict(X, verbose=0),
    "fit_weights": lambda m, _: tfopt.fit_weights([m, net(2)], X, Y).weights,
    "average_weights": lambda m, _: tfopt.average_weights([m, m], method="uniform").model.predict(X, verbose=0),
    "init_from": lambda m, _: tfopt.init_from(net(3), m, verbose=0) and m.predict(X, verbose=0),
    "fine_tune": lambda m, _: tfopt.fine_tune(
        m, X, Y, mode="full", how=tfopt.recipe(epochs=1, loss=LOSS), verbose=0
    ).predict(X, verbose=0),
    "Distiller": distilled,
}


@pytest.mark.parametrize("verb", VERBS)
def test_it_gives_what_the_functional_model_gives(verb, tmp_path):
    results = []
    for model in (net(), written_out(net())):
        keras.utils.set_random_seed(4)
        results.append(np.asarray(VERBS[verb](model, tmp_path), "float64"))
    assert results[0].size
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)


class Plain(keras.Model):
    """Written as code, of layers of Keras alone."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.head = kl.Dense(8, "relu", name="hidden"), kl.Dense(3, name="head")

    def call(self, x):
        return keras.ops.negative(self.head(self.hidden(x)))


def test_searches_take_a_model_without_blocks():
    model = Plain(name="plain")
    model(X[:1])
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    options = {"objectives": "val_loss", "budget": 2, "epochs": 1, "verbose": 0}
    found = tfopt.search(model, {"activation": ("relu", "elu")}, train=(X, Y), val=(X, Y), **options)
    assert {trial.values["activation"] for trial in found.trials} == {"relu", "elu"}


def test_searches_change_what_is_inside_blocks():
    space = SearchSpace.from_model(net(), activation=("relu", "elu"))
    found = tfopt.search(space, train=(X, Y), val=(X, Y), objectives="val_loss", budget=2, epochs=1, verbose=0)
    assert {trial.values["activation"] for trial in found.trials} == {"relu", "elu"}


def test_what_is_trained_in_place_is_the_users_model():
    model = net()
    before = np.array(model.head.kernel)
    distilled(model, None)
    assert np.abs(np.array(model.head.kernel) - before).max() > 1e-4
