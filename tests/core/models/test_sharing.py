"""Layers that a model and a model nested in it have in common: they stay one, in files too."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import tfopt
from tfopt.core.models.graph import read
from tfopt.core.models.rewrite import rewrite
from tfopt.core.models.sharing import SharingModel

X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
TOKENS = np.random.default_rng(1).integers(0, 9, (8, 5))


def outer_and_nested():
    """The same layer in a nested model, called twice there, and three times around it, in another order."""
    keras.utils.set_random_seed(0)
    shared = kl.Dense(6, "tanh", name="shared")
    inner_input = keras.Input((6,))
    inner = keras.Model(inner_input, shared(kl.Dense(6, name="inner_own")(shared(inner_input))), name="inner")
    inputs = keras.Input((6,))
    first = shared(inputs)
    second = shared(inner(first))
    return keras.Model(inputs, [kl.Dense(2, name="head")(shared(second)), first])


def two_nested():
    keras.utils.set_random_seed(0)
    shared = kl.Dense(6, "tanh", name="shared")

    def part(name):
        x = keras.Input((6,))
        return keras.Model(x, kl.Dense(6, name=f"{name}_own")(shared(x)), name=name)

    inputs = keras.Input((6,))
    return keras.Model(inputs, kl.Dense(2, name="head")(part("one")(part("two")(inputs))))


class Encoder(kl.Layer):
    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding, self.dense = embedding, kl.Dense(4, name="dense")

    def call(self, x):
        return self.dense(self.embedding(x))


class Head(kl.Layer):
    """Scores of words by the embedding of the encoder."""

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def call(self, x):
        return self.embedding(x, reverse=True)


def language_model():
    keras.utils.set_random_seed(0)
    embedding = kl.ReversibleEmbedding(9, 4, name="embedding")
    inputs = keras.Input((5,), dtype="int32", name="tokens")
    hidden = Encoder(embedding, name="encoder")(inputs)
    return keras.Model(inputs, Head(embedding, name="lm_head")(hidden))


MODELS = {"outer and nested": (outer_and_nested, X), "two nested": (two_nested, X), "words": (language_model, TOKENS)}


def outputs(model, x):
    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


def holders(model, name):
    """The layers of a name in a model and the models nested in it."""
    return {id(layer) for path, layer in read(model).layers if path.rsplit("/", 1)[-1] == name}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("verb", ["copy", "quantize"])
def test_files_keep_them_one(name, verb, tmp_path):
    make, x = MODELS[name]
    model = make()
    if name == "words":
        model = tfopt.functional(model)
    changed = rewrite(read(model)).model if verb == "copy" else tfopt.calibrate(tfopt.quantize(model), x)
    assert isinstance(changed, SharingModel)
    changed.save(tmp_path / "one.keras")
    loaded = keras.models.load_model(tmp_path / "one.keras")
    loaded.save(tmp_path / "two.keras")
    again = keras.models.load_model(tmp_path / "two.keras")
    for other in (loaded, again):
        for got, want in zip(outputs(other, x), outputs(changed, x), strict=True):
            np.testing.assert_array_equal(got, want)
        assert len(other.weights) == len(changed.weights)
        assert len(holders(other, "embedding" if name == "words" else "shared")) == 1


def test_two_loads_of_a_file_have_layers_of_their_own(tmp_path):
    rewrite(read(two_nested())).model.save(tmp_path / "m.keras")
    one, other = (keras.models.load_model(tmp_path / "m.keras") for _ in range(2))
    assert not {id(weight) for weight in one.weights} & {id(weight) for weight in other.weights}


def test_a_loaded_model_trains_the_shared_layer_once(tmp_path):
    model = rewrite(read(outer_and_nested())).model
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for each in (model, loaded):
        each.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
        each.train_on_batch(X, [np.zeros((16, 2)), np.zeros((16, 6))])
    for one, other in zip(model.trainable_weights, loaded.trainable_weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_models_that_share_nothing_are_plain():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, ops.relu(kl.Dense(3)(inputs)))
    assert type(rewrite(read(model)).model) is type(model)
