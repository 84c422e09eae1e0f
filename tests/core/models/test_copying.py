"""Copies of layers as they are in memory: own classes, functions, adapted state, what layers share."""

import functools
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from keras import ops

import tfopt
from tfopt.core.models.graph import read
from tfopt.core.models.live import LiveCopier
from tfopt.core.models.rewrite import in_float32, rewrite, untrained

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(16, 2)).astype("float32")


def around(*layers):
    """A trained model with the layers between two others."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = kl.Dense(4, name="first")(inputs)
    for layer in layers:
        x = layer(x)
    model = keras.Model(inputs, kl.Dense(2, name="last")(x))
    fit(model)
    return model


def fit(model, x=X, y=Y):
    model.compile("sgd", "mse", run_eagerly=True)  # a graph would take longer to make than these steps
    model.fit(x, y, epochs=1, verbose=0)


def values(model):
    return [weight.numpy() for weight in model.variables]


def assert_copied(model, x=X, y=Y):
    """The copy computes the same, has the same names, and each can be trained without the other."""
    before, want = values(model), np.asarray(model(x))
    copied = rewrite(read(model)).model
    np.testing.assert_array_equal(copied(x), want)
    assert [layer.name for layer in copied.layers] == [layer.name for layer in model.layers]
    assert [weight.name for weight in copied.weights] == [weight.name for weight in model.weights]
    assert not {id(v) for v in model.variables} & {id(v) for v in copied.variables}
    assert not copied.compiled
    fit(copied, x, y)
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(model(x), want)
    fit(model, x, y)
    trained = [[not np.array_equal(*pair) for pair in zip(before, values(m), strict=True)] for m in (model, copied)]
    assert any(trained[0])
    assert trained[0] == trained[1]
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    return copied


# Layers of a user's class.


class Scale(kl.Layer):
    """Has an argument that its config leaves out."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")

    def call(self, x):
        return x * self.gain * self.factor

    def compute_output_shape(self, shape):
        return shape


class Incomplete(Scale):
    def get_config(self):
        return kl.Layer.get_config(self)


class Broken(Scale):
    def get_config(self):
        raise NotImplementedError("no config")


class Bare(Scale):
    def __init__(self, factor):
        kl.Layer.__init__(self)
        self.factor = factor

    def get_config(self):
        return {**kl.Layer.get_config(self), "factor": self.factor}


class Renamed(Scale):
    def __init__(self, factor=1.0, name=None, **kwargs):
        super().__init__(factor, **kwargs)
        self.name = f"{name}_0"


class Holding(kl.Layer):
    """Layers in an attribute, a list and a dict, and what is no layer."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner
        self.several = [kl.Dense(4), (kl.Dense(4), Scale(0.5))]
        self.named = {"norm": kl.LayerNormalization()}
        self.table = np.linspace(0, 1, 4, dtype="float32")
        self.step = self._halved
        self.lock = object()

    def _halved(self, x):
        return x * 0.5

    def call(self, x):
        for layer in keras.tree.flatten([self.several, self.inner]):
            x = layer(x)
        return self.step(self.named["norm"](x)) + self.table


def functional():
    inputs = keras.Input((4,))
    shared = kl.Dense(4, activation="relu")
    return keras.Model(inputs, kl.Add()([shared(inputs), shared(shared(inputs))]))


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = kl.Dense(4)

    def call(self, x):
        return self.dense(x)


def compiled(model):
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(X, X, epochs=1, verbose=0)
    return model


class Encoder(keras.Model):
    """Functional, by a constructor of its own, with a method that `call` does not use."""

    def __init__(self, width):
        inputs = keras.Input((4,))
        super().__init__(inputs, kl.Dense(width)(inputs))
        self.width = width

    def doubled(self, x):
        return self(x) * 2.0


class Doubling(kl.Layer):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder(4)

    def call(self, x):
        return self.encoder.doubled(x)


class Compiled(Scale):
    """Its `call` is a function of TensorFlow."""

    def __init__(self, **kwargs):
        super().__init__(2.0, **kwargs)
        self.doubled = tf.function(self._doubled)

    def _doubled(self, x):
        return x * self.gain * 2.0

    def call(self, x):
        return self.doubled(x)


class CompiledMethod(Scale):
    @tf.function
    def call(self, x):
        return x * self.gain * 2.0


class Counting(kl.Layer):
    """Variables of Keras and TensorFlow that no optimizer trains, and an object of another class with layers in it."""

    class Helper:
        def __init__(self, layer):
            self.layer = layer

    def __init__(self):
        super().__init__()
        self.plain = tf.Variable([2.0, 1.0, 0.5, 1.0])
        self.helper = self.Helper(kl.Dense(4))
        self.parent = weakref.ref(self)

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.helper.layer.build(shape)

    def call(self, x, training=False):
        if training:
            self.count.assign_add(1.0)
        assert self.parent() is self
        return self.helper.layer(x) * self.plain


def in_steps(layer):
    inputs = keras.Input((4,))
    return keras.Model(inputs, kl.Flatten()(layer(kl.Reshape((2, 2))(inputs))))


OWN = {
    "incomplete": lambda: Incomplete(3.0, name="own"),
    "broken": lambda: Broken(3.0, name="own"),
    "bare": lambda: Bare(3.0),
    "renamed": lambda: Renamed(3.0, name="own"),
    "holding layers": lambda: Holding(Incomplete(3.0)),
    "holding a functional model": lambda: Holding(functional()),
    "holding a sequential model": lambda: Holding(keras.Sequential([keras.Input((4,)), kl.Dense(4), Bare(2.0)])),
    "holding an unbuilt sequential model": lambda: Holding(keras.Sequential([kl.Dense(4), Bare(2.0)])),
    "holding a compiled model": lambda: Holding(compiled(functional())),
    "holding a compiled subclassed model": lambda: Holding(compiled(Own())),
    "holding models in models": lambda: Holding(
        keras.Sequential([keras.Input((4,)), functional(), Holding(functional())])
    ),
    "a functional model with methods": Doubling,
    "compiled call": Compiled,
    "compiled method": CompiledMethod,
    "other variables": Counting,
    "an own layer in a wrapper of Keras": lambda: in_steps(kl.TimeDistributed(Bare(3.0))),
}


@pytest.mark.parametrize("name", OWN)
def test_layers_of_a_users_class(name):
    assert_copied(around(OWN[name]()))


@pytest.mark.parametrize("name", OWN)
def test_copies_of_copies_and_verbs(name):
    model = around(OWN[name]())
    again = rewrite(rewrite(read(model))).model
    np.testing.assert_array_equal(np.asarray(again(X)), np.asarray(model(X)))
    pruned = tfopt.prune(model, sparsity=0.5, include="first")
    model.get_layer("first").kernel.assign(pruned.get_layer("first").kernel)
    np.testing.assert_allclose(np.asarray(pruned(X)), np.asarray(model(X)), rtol=1e-5, atol=1e-6)


def test_the_copy_of_a_compiled_model_inside_is_not_compiled():
    inner = compiled(Own())
    copied = rewrite(read(around(Holding(inner)))).model.layers[2].inner
    assert inner.compiled
    assert not copied.compiled
    assert copied.optimizer is None
    assert not any("optimizer" in link.name for link in copied._self_unconditional_checkpoint_dependencies)


def test_a_copy_keeps_nothing_of_its_original_alive():
    model = around(Holding(functional()))
    copied, gone = rewrite(read(model)).model, weakref.ref(model.layers[2].several[0])
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None
    assert copied(X).shape == (16, 2)


def test_layers_added_to_a_copied_list_are_tracked():
    layer = Holding(functional())
    layer.build((None, 4))
    copied = LiveCopier()(layer)
    assert copied.several.tracker is copied._tracker is not layer._tracker
    assert copied._tracker.stored_ids["layers"] == {id(inner) for inner in copied._layers}


@keras.saving.register_keras_serializable("test_copying")
class Saved(Scale):
    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def test_a_copy_saves_and_loads(tmp_path):
    copied = assert_copied(around(Saved(3.0), kl.Dense(4)))
    copied.save(tmp_path / "copy.keras")
    loaded = keras.saving.load_model(tmp_path / "copy.keras")
    np.testing.assert_array_equal(np.asarray(loaded(X)), np.asarray(copied(X)))
    assert_copied(loaded)


# Regularizers and the like of a user's class, recurrent cells, seeds.


class Heavy(keras.regularizers.Regularizer):
    def __init__(self, factor=0.0):
        self.factor = factor

    def __call__(self, weight):
        return self.factor * ops.sum(ops.square(weight))


class Capped:
    def __init__(self, limit=1.0):
        self.limit = limit

    def __call__(self, weight):
        return ops.clip(weight, -self.limit, self.limit)


class Swish:
    def __init__(self, beta=1.0):
        self.beta = beta

    def __call__(self, x):
        return x * ops.sigmoid(self.beta * x)


def test_regularizers_and_constraints_of_a_users_class():
    model = around(kl.Dense(4, kernel_regularizer=Heavy(0.5), kernel_constraint=Capped(0.01), name="d"))
    copied = assert_copied(model)
    kernel = copied.get_layer("d").kernel
    assert float(sum(copied.losses)) == pytest.approx(0.5 * float(np.square(kernel.numpy()).sum()))
    assert np.abs(kernel.numpy()).max() <= 0.01
    assert kernel.constraint is not model.get_layer("d").kernel.constraint


@keras.saving.register_keras_serializable("test_copying")
class Cell(kl.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = self.state_size = self.output_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1] + self.units, self.units))

    def call(self, inputs, states):
        state = ops.tanh(ops.concatenate([inputs, states[0]], -1) @ self.kernel)
        return state, [state]


@pytest.mark.parametrize(
    "layer",
    [
        lambda: kl.RNN(Cell(4)),
        lambda: kl.RNN([Cell(3), kl.LSTMCell(4)]),
        lambda: kl.Bidirectional(kl.GRU(2, activation=tf.nn.relu)),
        lambda: kl.GRU(4, activation=Swish(2.0)),
        lambda: kl.LSTM(4, recurrent_activation=functools.partial(ops.hard_sigmoid)),
    ],
)
def test_cells(layer):
    assert_copied(around(in_steps(layer())))


class Noisy(kl.Layer):
    def __init__(self, seeds):
        super().__init__()
        self.seeds = seeds

    def call(self, x):
        return x + keras.random.normal((4,), seed=self.seeds)


def test_seeds_go_on_and_shared_ones_stay_shared():
    seeds = keras.random.SeedGenerator(3)
    model = keras.Sequential([keras.Input((4,)), Noisy(seeds), Noisy(seeds)])
    model(X)
    copied = rewrite(read(model)).model
    assert copied.layers[0].seeds is copied.layers[1].seeds is not seeds
    np.testing.assert_array_equal(copied(X), model(X))


# Lambda, and functions.


def test_lambda_keeps_its_function():
    layer = kl.Lambda(lambda x, by: x * by, arguments={"by": 0.5}, output_shape=(4,))
    copied = assert_copied(around(layer))
    assert copied.layers[2].function is layer.function
    assert copied.layers[2].arguments == {"by": 0.5}


DENSE = kl.Dense(4, use_bias=False)


@pytest.mark.parametrize("how", ["closure", "global", "default", "partial", "method", "inner function", "list"])
def test_a_function_that_reads_a_layer_of_the_model_reads_its_copy(how):
    dense = DENSE if how == "global" else kl.Dense(4, use_bias=False)
    back = lambda x: ops.matmul(x, ops.transpose(dense.kernel))  # noqa: E731
    function = {
        "closure": back,
        "global": lambda x: ops.matmul(x, ops.transpose(DENSE.kernel)),
        "default": lambda x, layer=dense: ops.matmul(x, ops.transpose(layer.kernel)),
        "partial": functools.partial(lambda layer, x: ops.matmul(x, ops.transpose(layer.kernel)), dense),
        "method": dense.call,
        "inner function": lambda x: back(x) * 2.0,
        "list": lambda x, layers=(dense,): layers[0](x),
    }[how]
    model = around(dense, kl.Lambda(function, name="back"))
    copied = assert_copied(model)
    before = np.asarray(copied(X))
    copied.layers[2].kernel.assign(copied.layers[2].kernel * 2.0)
    assert not np.allclose(np.asarray(copied(X)), before)
    inner = keras.Model(copied.layers[2].output, copied.get_layer("back").output)
    h = np.ones((1, 4), "float32")
    kernel = copied.layers[2].kernel.numpy()
    want = h @ (kernel if how in ("method", "list") else kernel.T) * (2.0 if how == "inner function" else 1.0)
    np.testing.assert_allclose(inner(h), want, rtol=1e-5)
    dense.kernel.assign(dense.kernel * 0.0)
    np.testing.assert_allclose(inner(h), want, rtol=1e-5)


@pytest.mark.parametrize(
    "activation",
    [
        tf.nn.swish,
        tf.nn.relu6,
        tf.sigmoid,
        tf.math.sin,
        functools.partial(ops.leaky_relu, negative_slope=0.3),
        Swish(2.0),
    ],
)
def test_activations_stay(activation):
    copied = assert_copied(around(kl.Dense(4, activation=activation, name="d")))
    found = copied.get_layer("d").activation
    assert found is activation or vars(found) == vars(activation)
    np.testing.assert_allclose(found(X), activation(X))


@pytest.mark.parametrize(
    "activation", [kl.LeakyReLU(0.1), kl.PReLU(alpha_initializer="ones"), Scale(2.0), Incomplete(2.0)]
)
def test_activations_that_are_layers(activation):
    model = around(kl.Dense(4, activation=activation, name="d"))
    copied = assert_copied(model)
    assert type(copied.get_layer("d").activation) is type(activation)
    assert copied.get_layer("d").activation is not activation


# What layers share.


class Tied(kl.Layer):
    """The logits of words from their embeddings."""

    def __init__(self, embedding, **kwargs):
        super().__init__(**kwargs)
        self.embedding = embedding

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.embedding.embeddings))


class OfWeight(kl.Layer):
    def __init__(self, weight, hidden, **kwargs):
        super().__init__(**kwargs)
        if hidden:
            self.reads = lambda: weight
        else:
            self.weight = weight

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.reads() if hasattr(self, "reads") else self.weight))


TOKENS = np.arange(12).reshape(4, 3) % 7
WORDS = np.random.default_rng(0).normal(size=(4, 3, 7)).astype("float32")


def language_model(kind, sequential):
    embedding = kl.Embedding(7, 5, name="words")
    embedding.build()
    last = {
        "layer": lambda: Tied(embedding, name="logits"),
        "weight": lambda: OfWeight(embedding.embeddings, False, name="logits"),
        "hidden weight": lambda: OfWeight(embedding.embeddings, True, name="logits"),
        "lambda": lambda: kl.Lambda(lambda x: ops.matmul(x, ops.transpose(embedding.embeddings)), name="logits"),
    }[kind]()
    if sequential:
        return keras.Sequential([keras.Input((3,), dtype="int32"), embedding, kl.Dense(5), last])
    inputs = keras.Input((3,), dtype="int32")
    return keras.Model(inputs, last(kl.Dense(5)(embedding(inputs))))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("kind", ["layer", "weight", "lambda", "hidden weight"])
def test_tied_embeddings_stay_tied(kind, sequential):
    model = language_model(kind, sequential)
    if sequential and kind == "hidden weight":  # not built yet where the weight is read
        with pytest.raises(tfopt.UnsupportedModelError, match="share"):
            rewrite(read(model))
        return
    copied = assert_copied(model, TOKENS, WORDS)
    assert len(copied.weights) == len(model.weights) == 3
    hidden = keras.Model(copied.inputs, copied.layers[-2].output).predict(TOKENS, verbose=0)
    want = hidden @ copied.get_layer("words").embeddings.numpy().T
    np.testing.assert_allclose(np.asarray(copied(TOKENS)), want, rtol=1e-5, atol=1e-6)


def test_tied_embeddings_stay_tied_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = language_model("layer", False)
    finally:
        keras.config.set_dtype_policy("float32")
    copied = in_float32(read(model)).model
    assert copied.layers[-1].embedding is copied.get_layer("words")
    assert {layer.compute_dtype for layer in copied.layers[1:]} == {"float32"}


def test_a_weight_of_two_layers_stays_one():
    class Same(kl.Dense):
        def build(self, shape):
            self._kernel, self.bias = first.kernel, self.add_weight(shape=(4,), name="bias")

    first = kl.Dense(4, name="one")
    model = around(first, Same(4, name="two"))
    copied = assert_copied(model)
    assert copied.get_layer("one").kernel is copied.get_layer("two").kernel
    assert copied.get_layer("one").bias is not copied.get_layer("two").bias


def test_a_layer_of_two_nested_models_stays_one():
    shared = kl.Dense(4, name="shared")
    a, b = (keras.Sequential([keras.Input((4,)), shared, kl.Dense(4)], name=name) for name in "ab")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kl.Dense(2)(b(shared(a(inputs)))))
    copied = assert_copied(model)
    assert copied.get_layer("a").layers[0] is copied.get_layer("b").layers[0] is copied.get_layer("shared")
    seen = []
    rewrite(read(model), lambda op, state: seen.append(op.name))
    assert seen.count("shared") == 1


def test_what_is_shared_is_not_changed_in_one_place_only():
    inner = kl.Dense(4, activation="relu", name="inner")

    class Twice(kl.Layer):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    model = around(inner, Twice())

    def linear(op, state):
        return state.copy(op, activation="linear") if op is inner else None

    with pytest.raises(tfopt.UnsupportedModelError, match=r"share.*inner"):
        rewrite(read(model), linear)
    assert_copied(model)


# Changed, retyped and untrained copies.


class Activated(Scale):
    def __init__(self, activation="relu", **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)

    def call(self, x):
        return self.activation(super().call(x))


class ActivatedIncomplete(Activated):
    def get_config(self):
        return {**kl.Layer.get_config(self), "activation": keras.activations.serialize(self.activation)}


@pytest.mark.parametrize(
    "layer", [kl.Dense(4, tf.nn.swish), ActivatedIncomplete("tanh", factor=3.0), kl.Dense(4, Swish())]
)
def test_a_copy_with_another_activation(layer):
    layer.name = "d"
    model = around(layer)
    want = layer.activation

    def linear(op, state):
        return state.copy(op, activation="linear") if op is layer else None

    copied = rewrite(read(model), linear).model
    assert layer.activation is want
    layer.activation = keras.activations.linear
    np.testing.assert_allclose(np.asarray(copied(X)), model(X), rtol=1e-5, atol=1e-6)


def test_arguments_that_the_config_leaves_out_are_named_where_the_config_is_needed():
    with pytest.raises(tfopt.UnsupportedModelError, match=r"get_config.*factor=1.0, not 3.0.*\"factor\""):
        untrained(read(around(Incomplete(3.0, name="own"))))
    new = untrained(read(around(Saved(3.0, name="own")))).model
    np.testing.assert_array_equal(new.get_layer("own").gain, np.ones(4))
    assert new.get_layer("own").factor == 3.0


@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "bfloat16"])
@pytest.mark.parametrize("layer", [Bare, Broken, Saved])
def test_copies_in_float32(layer, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential([keras.Input((4,)), kl.Dense(4, activation=tf.nn.silu), layer(3.0)])
    finally:
        keras.config.set_dtype_policy("float32")
    copied = in_float32(read(model)).model
    assert {layer.compute_dtype for layer in copied.layers} == {"float32"}
    assert {weight.dtype for weight in copied.weights} == {"float32"}
    np.testing.assert_allclose(copied(X), model(X), atol=0.05)
    assert model.layers[0].compute_dtype != "float32"


# Adapted layers.


def adapted():
    text = tf.constant(["a cat sat", "a dog ran", "good film"])
    words = tf.constant([["red"], ["blue"], ["green"], ["red"]])
    numbers = np.array([[3], [5], [7], [7]])
    floats = np.arange(100.0).reshape(-1, 1)
    return {
        "text": (kl.TextVectorization(max_tokens=20, output_sequence_length=6), text, "string"),
        "tf-idf": (kl.TextVectorization(output_mode="tf_idf"), text, "string"),
        "multi-hot text": (kl.TextVectorization(output_mode="multi_hot", ngrams=2), text, "string"),
        "words": (kl.StringLookup(output_mode="one_hot"), words, "string"),
        "idf of words": (kl.StringLookup(output_mode="tf_idf"), words, "string"),
        "given words": (kl.StringLookup(vocabulary=["red", "blue"], num_oov_indices=2), None, "string"),
        "integers": (kl.IntegerLookup(output_mode="multi_hot"), numbers, "int64"),
        "bins": (kl.Discretization(num_bins=4, output_mode="one_hot"), floats, "float32"),
        "given bins": (kl.Discretization([10.0, 50.0]), None, "float32"),
        "normalization": (kl.Normalization(), floats, "float32"),
        "given normalization": (kl.Normalization(mean=3.0, variance=2.0), None, "float32"),
        "hashing": (kl.Hashing(5, salt=3), None, "string"),
    }


SAMPLES = {
    "string": tf.constant([["red"], ["a cat ran"], ["blue"], ["good"]]),
    "int64": np.array([[3], [5], [8], [7]]),
    "float32": np.array([[3.0], [30.0], [60.0], [90.0]], "float32"),
}


@pytest.mark.parametrize("name", adapted())
def test_adapted_layers_keep_their_state(name, tmp_path):
    layer, data, dtype = adapted()[name]
    if data is not None:
        layer.adapt(data)
    inputs = keras.Input((1,), dtype=dtype)
    hidden = ops.cast(kl.Flatten()(layer(inputs)), "float32")
    model = keras.Model(inputs, kl.Dense(2)(hidden))
    x, y = SAMPLES[dtype], Y[:4]
    want = model.predict(x, verbose=0)
    copied = assert_copied(model, x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    again = assert_copied(loaded, x, y)
    again.save(tmp_path / "copy.keras")
    last = keras.saving.load_model(tmp_path / "copy.keras")
    np.testing.assert_allclose(last.predict(x, verbose=0), again.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    new = untrained(read(loaded)).model
    assert new.predict(x, verbose=0).shape == (4, 2)
    for other in (copied, again, new):
        other.layers[-1].set_weights(model.layers[-1].get_weights())
        np.testing.assert_allclose(other.predict(x, verbose=0), want, rtol=1e-5, atol=1e-6)


def test_a_copy_outlives_its_original():
    words = kl.StringLookup(vocabulary=["a", "b"])
    model = keras.Sequential([keras.Input((2,), dtype="string"), words, kl.Embedding(3, 4)])
    x = tf.constant([["a", "c"]])
    want = np.asarray(model(x))
    copied = rewrite(read(model)).model
    last = rewrite(read(copied)).model
    del model, copied, words
    gc.collect()
    np.testing.assert_array_equal(last(x), want)


def test_adapting_a_copy_leaves_the_original():
    lookup = kl.StringLookup()
    lookup.adapt(tf.constant([["red"]]))
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, lookup(inputs))
    copied = rewrite(read(model)).model.layers[1]
    copied.adapt(tf.constant([["blue"], ["green"]]))
    assert lookup.get_vocabulary() == ["[UNK]", "red"]
    assert set(copied.get_vocabulary()) == {"[UNK]", "blue", "green"}


def test_a_table_that_changes_is_copied():
    table = tf.lookup.experimental.MutableHashTable("string", "int64", -1)
    table.insert(tf.constant(["a"]), tf.constant([1], "int64"))
    copied = LiveCopier()(table)
    copied.insert(tf.constant(["b"]), tf.constant([2], "int64"))
    assert table.lookup(tf.constant(["a", "b"])).numpy().tolist() == [1, -1]
    assert copied.lookup(tf.constant(["a", "b"])).numpy().tolist() == [1, 2]


# Ops, and what Python cannot copy.


def test_ops_that_hold_functions():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, ops.map(lambda row: row * 2.0, inputs))
    np.testing.assert_array_equal(rewrite(read(model)).model(X), X * 2.0)


def test_what_python_cannot_copy_is_shared():
    numbers = (number for number in range(3))
    layer = Scale(2.0)
    layer.numbers = numbers
    assert LiveCopier()(layer).numbers is numbers


def test_an_input_layer_may_be_that_of_a_model_inside_too():
    """A head on `backbone.input` and `backbone.output`, where the backbone stays one layer of the whole."""
    inputs = keras.Input((4,), name="x")
    backbone = keras.Model(inputs, kl.Dense(3, "relu", name="dense")(inputs), name="backbone")
    model = keras.Model(inputs, kl.Dense(2, name="head")(backbone(inputs)))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    for copy in (rewrite(read(model)).model, tfopt.quantize(model, "int8_weight_only"), tfopt.prune(model)):
        assert copy.predict(x, verbose=0).shape == (5, 2)
    np.testing.assert_array_equal(rewrite(read(model)).model(x), model(x))


class Terse(kl.Layer):
    """Takes nothing but what it needs, and says nothing of how it is made."""

    def __init__(self, units):
        super().__init__()
        self.dense = kl.Dense(units)

    def call(self, x):
        return self.dense(x)


def test_an_untrained_copy_of_a_layer_that_takes_no_more_than_its_own_arguments():
    model = around(Terse(4))
    new = untrained(read(model)).model
    old, fresh = (each.layers[2].dense.kernel for each in (model, new))
    assert old.shape == fresh.shape
    assert not np.array_equal(old, fresh)
    assert new.layers[2].name == model.layers[2].name


class Kernel(kl.Layer):
    """A kernel of its own, and a layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = kl.Dense(4, name="dense")

    def build(self, shape):
        self.dense.build(shape)
        self.kernel = self.add_weight(shape=(64, 4), initializer="glorot_uniform", name="kernel")
        self.gain = self.add_weight(shape=(4,), initializer="ones", name="gain")

    def call(self, x):
        return ops.matmul(ops.matmul(self.dense(x), ops.transpose(self.kernel)), self.kernel) * self.gain


@pytest.mark.parametrize("verb", ["untrained", "scale_width"])
def test_own_weights_of_an_opened_layer_are_drawn_anew(verb):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), kl.Dense(8, "relu", name="hidden"), kl.Dense(4), Kernel(name="own"), kl.Dense(2)]
    )
    opened_model = tfopt.functional(model)
    if verb == "untrained":
        new = untrained(read(opened_model)).model
    else:
        new = tfopt.scale_width(model, 0.5, include="hidden")
    old = np.asarray(model.get_layer("own").kernel)
    kernel, gain = (np.asarray(new.get_layer("own").get_layer(name).weight) for name in ("kernel", "gain"))
    assert not np.array_equal(kernel, old)
    assert kernel.std() == pytest.approx(old.std(), rel=0.2)
    np.testing.assert_array_equal(gain, np.ones(4))
