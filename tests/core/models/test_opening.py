"""Layers and models written as code against the graphs that they are opened to."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from keras import ops

import tfopt
from tfopt.core.errors import NothingToDoError, UnsupportedModelError
from tfopt.core.layers.nodes import FunctionCall
from tfopt.core.models.graph import read
from tfopt.core.models.opening import opened

STEPS, WIDTH = 3, 4


class Block(kl.Layer):
    """Layers inside, a weight of its own, a function of TensorFlow, and `training` handed on."""

    def __init__(self, units=WIDTH, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.drop = kl.Dense(units, name="fc"), kl.Dropout(0.5, name="drop")
        self.norm = kl.BatchNormalization(name="norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], self.dense.units))
        self.scale = self.add_weight(shape=(self.dense.units,), initializer="ones", name="scale")
        self.built = True

    def call(self, x, training=None):
        y = self.norm(self.drop(self.dense(x), training=training), training=training)
        return tf.nn.silu(y * self.scale + tf.constant(0.1))


class Nested(kl.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block(name="first"), Block(name="second")]
        self.half = kl.Lambda(lambda t: t * 0.5, name="half")

    def build(self, shape):
        for block in self.blocks:
            block.build(shape)
        self.built = True

    def call(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.half(x)


class Positions(kl.Layer):
    """A layer called on constants, a weight spread over the batch, and sizes of the batch."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = kl.Embedding(STEPS, WIDTH, name="table")

    def build(self, shape):
        self.table.build(None)
        self.token = self.add_weight(shape=(1, 1, WIDTH), name="token")
        self.built = True

    def call(self, x):
        batch = ops.shape(x)[0]
        tokens = ops.broadcast_to(self.token, (batch, 1, WIDTH))
        x = ops.concatenate([tokens, x + self.table(ops.arange(STEPS))], axis=1)
        return ops.reshape(x, (batch, (STEPS + 1) * WIDTH))


class TensorFlowOnly(kl.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5), name="kernel")
        self.gates = [self.add_weight(shape=(5,), name=f"gate_{i}") for i in range(2)]
        self.built = True

    def call(self, x):
        shape = tf.shape(x)
        y = tf.reshape(tf.matmul(x, self.kernel), [shape[0], shape[1], 5])
        return tf.concat([y * self.gates[0], tf.math.squared_difference(y, self.gates[1])], -1)


class Named(kl.Layer):
    """Called with several tensors, some of them by keyword."""

    def call(self, first, *, second, factor=2.0):
        return first * factor + ops.exp(second)


class Masked(kl.Layer):
    """Reads the mask of its input itself, and through a layer inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pool = kl.GlobalAveragePooling1D()
        self.supports_masking = True

    def call(self, x, mask=None):
        counted = x if mask is None else x * ops.expand_dims(ops.cast(mask, x.dtype), -1)
        return self.pool(x) + ops.sum(counted, axis=1)


class Hidden(kl.Layer):
    """Masks reach the layer inside without a word in `call`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pool = kl.GlobalAveragePooling1D()
        self.supports_masking = True

    def call(self, x):
        return self.pool(x)


class Squared(kl.Dense):
    """A subclass of Keras' own layer with another maths."""

    def call(self, inputs, training=None):
        return ops.square(super().call(inputs, training=training))


class Several(kl.Layer):
    def call(self, x):
        return {"low": ops.minimum(x, 0.0), "high": (ops.maximum(x, 0.0), x)}


def through(layer):
    inputs = keras.Input((STEPS, WIDTH), name="x")
    return keras.Model(inputs, kl.Dense(2, name="head")(layer(inputs)))


def with_names():
    inputs = [keras.Input((WIDTH,), name=name) for name in "ab"]
    return keras.Model(inputs, Named(name="own")(inputs[0], second=kl.Dense(WIDTH)(inputs[1]), factor=3.0))


def with_several():
    inputs = keras.Input((STEPS, WIDTH))
    found = Several(name="own")(inputs)
    return keras.Model(inputs, {"sum": found["low"] + found["high"][1], "high": found["high"][0]})


def with_mask(layer):
    inputs = keras.Input((STEPS,), dtype="int32")
    return keras.Model(inputs, kl.Dense(2)(layer(kl.Embedding(5, WIDTH, mask_zero=True)(inputs))))


def twice():
    inputs, own = keras.Input((STEPS, WIDTH)), Block(name="own")
    return keras.Model(inputs, own(own(inputs)))


class Subclassed(keras.Model):
    """Models inside a model, none of them Functional."""

    class Encoder(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.block, self.out = Block(name="block"), kl.Dense(5, name="out")

        def call(self, x, training=None):
            return self.out(self.block(x, training=training))

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.head = self.Encoder(name="encoder"), kl.Dense(2, name="head")

    def call(self, x, training=None):
        return self.head(self.encoder(x, training=training))


def subclassed():
    model = Subclassed(name="whole")
    model(np.zeros((2, STEPS, WIDTH), "float32"))
    return model


def around_subclassed():
    inputs = keras.Input((STEPS, WIDTH))
    return keras.Model(inputs, kl.Dense(2)(Subclassed.Encoder(name="encoder")(inputs)))


MODELS = {
    "block": lambda: through(Block(name="own")),
    "nested": lambda: through(Nested(name="own")),
    "positions": lambda: through(Positions(name="own")),
    "tensorflow": lambda: through(TensorFlowOnly(name="own")),
    "lambda": lambda: through(kl.Lambda(lambda t: tf.math.abs(t) ** 0.5, name="own")),
    "subclass of Dense": lambda: through(Squared(5, activation="tanh", name="own")),
    "keywords": with_names,
    "several outputs": with_several,
    "mask read": lambda: with_mask(Masked(name="own")),
    "mask inside": lambda: with_mask(Hidden(name="own")),
    "called twice": twice,
    "subclassed": subclassed,
    "around subclassed": around_subclassed,
}


def built(name):
    keras.utils.set_random_seed(3)
    model = MODELS[name]()
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.dtype == "float32" and "variance" not in weight.path:
            weight.assign(np.asarray(weight) + generator.normal(0, 0.3, weight.shape))
    return model


def data_for(model):
    generator = np.random.default_rng(1)
    if not getattr(model, "inputs", None):
        return generator.normal(size=(6, STEPS, WIDTH)).astype("float32")
    arrays = [
        generator.integers(0, 5, (6, *t.shape[1:])) if "int" in t.dtype else generator.normal(size=(6, *t.shape[1:]))
        for t in model.inputs
    ]
    return arrays if len(arrays) > 1 else arrays[0]


def answers(model, x):
    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


@pytest.fixture(params=MODELS)
def pair(request):
    model = built(request.param)
    return model, tfopt.functional(model), data_for(model)


def test_computes_the_same(pair):
    model, copy, x = pair
    for old, new in zip(answers(model, x), answers(copy, x), strict=True):
        np.testing.assert_array_equal(new, old)
    assert [w.shape for w in copy.trainable_weights] or not model.trainable_weights
    assert sorted(np.sum(w) for w in copy.trainable_weights) == pytest.approx(
        sorted(np.sum(w) for w in model.trainable_weights)
    )


def test_trains_the_same(pair):
    model, copy, x = pair
    if not model.trainable_weights:
        pytest.skip("nothing trains")
    changed = []
    for each in (model, copy):
        variables = each.trainable_variables
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(tf.square(y)) for y in keras.tree.flatten(each(x, training=False)))
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        changed.append(sorted(float(tf.reduce_sum(tf.abs(tf.convert_to_tensor(g)))) for g in gradients))
    np.testing.assert_allclose(changed[1], changed[0], rtol=1e-5)


def test_saved_and_loaded(pair, tmp_path):
    _, copy, x = pair
    copy.save(tmp_path / "m.keras")
    loaded = tfopt.load_model(tmp_path / "m.keras")
    for old, new in zip(answers(copy, x), answers(loaded, x), strict=True):
        np.testing.assert_array_equal(new, old)


def test_the_model_stays_as_it_is(pair):
    model, copy, x = pair
    before = answers(model, x)
    for weight in copy.weights:
        weight.assign(keras.ops.zeros(weight.shape, weight.dtype))
    for old, new in zip(before, answers(model, x), strict=True):
        np.testing.assert_array_equal(new, old)
    assert keras.ops.shape is keras.src.ops.shape
    assert not hasattr(keras.layers.Layer.__call__, "instead_of")


def test_paths_and_names_of_weights():
    copy = tfopt.functional(built("nested"))
    paths = [path for path, layer in read(copy).layers if not isinstance(layer, kl.InputLayer)]
    inside = [[f"own/{block}", *(f"own/{block}/{name}" for name in INSIDE)] for block in ("first", "second")]
    assert paths == ["own", *inside[0], *inside[1], "own/half", "head"]
    assert copy.get_layer("own").get_layer("second").get_layer("scale").weights[0].name == "scale"
    assert isinstance(copy.get_layer("own").get_layer("half"), keras.Model)


INSIDE = ("fc", "drop", "norm", "scale")


def test_training_reaches_the_layers_inside():
    model = built("block")
    copy, x = tfopt.functional(model), data_for(model)
    mean = copy.get_layer("own").get_layer("norm").moving_mean
    before = np.array(mean)
    first, second = (np.asarray(copy(x, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 0.01
    assert np.abs(np.array(mean) - before).max() > 0


def test_batch_size_stays_free():
    copy = tfopt.functional(built("positions"))
    assert copy(np.zeros((1, STEPS, WIDTH))).shape == (1, 2)
    assert copy(np.zeros((9, STEPS, WIDTH))).shape == (9, 2)


def test_functions_of_tensorflow_with_a_twin_become_ops_of_keras():
    calls = [type(call.op).__name__ for call in read(tfopt.functional(built("tensorflow")).get_layer("own")).calls]
    assert {"Matmul", "Concatenate"} <= set(calls)
    left = [
        call.op.function
        for call in read(tfopt.functional(built("tensorflow")).get_layer("own")).calls
        if isinstance(call.op, FunctionCall)
    ]
    assert left == ["tf.shape", "keras.ops.reshape", "tf.math.squared_difference"]


def test_graph_of_a_subclassed_model_has_its_very_layers():
    model = built("subclassed")
    graph = read(model)
    assert dict(graph.layers)["head"] is model.head
    assert dict(graph.layers)["encoder/out"] is model.encoder.out


def test_inputs_from_data_and_from_what_the_model_was_built_with():
    class Tagger(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.out = kl.Embedding(7, WIDTH), kl.Dense(2)

        def call(self, inputs):
            return self.out(ops.mean(self.table(inputs["ids"]), axis=1) * inputs["weight"])

    x = {"ids": np.ones((2, 5), "int32"), "weight": np.ones((2, 1))}
    for data in (x, tf.data.Dataset.from_tensor_slices((x, [0, 1])).batch(2), None):
        model = Tagger()
        if data is None:
            model(x)
        copy = tfopt.functional(model, data)
        assert {name: (t.shape, t.dtype) for name, t in copy.input.items()} == {
            "ids": ((None, 5), "int32"),
            "weight": ((None, 1), "float32"),
        }
        np.testing.assert_array_equal(copy(x), model(x))


# What stays closed, and why.


class Branches(kl.Layer):
    def call(self, x, training=None):
        return x * 2.0 if training else x + 1.0


class FixedSide(kl.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = kl.Dropout(0.5)

    def call(self, x, training=None):
        return self.drop(x, training=False)


class Losses(kl.Layer):
    def call(self, x):
        self.add_loss(ops.mean(x))
        return x


class Random(kl.Layer):
    def call(self, x):
        return x + keras.random.normal((WIDTH,))


class Foreign(kl.Layer):
    """Computes with the weight of a layer inside that it never calls."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = kl.Dense(WIDTH)

    def build(self, shape):
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return x * ops.sum(self.dense.kernel)


class Decides(kl.Layer):
    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        return x if ops.max(x) > 0 else -x


class Counts(kl.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), trainable=False, initializer="zeros", name="calls")
        self.built = True

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


class Numpy(kl.Layer):
    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        return tf.numpy_function(np.sin, [x], tf.float32)


CLOSED = {
    Branches: "computes something else while training",
    FixedSide: "run in inference while it trains",
    Losses: "add_loss",
    Random: "computes something else each time",
    Foreign: "without calling the layer of that weight",
    Decides: "does not run on symbolic tensors",
    Counts: "does not run on symbolic tensors",
    Numpy: "does not run on symbolic tensors",
}


class DropPath(kl.Layer):
    """Stochastic depth: whole samples are dropped in training."""

    def __init__(self, rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.rate, self.seed = rate, keras.random.SeedGenerator(3)

    def call(self, x, training=None):
        if not training:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        return x * ops.floor(1 - self.rate + keras.random.uniform(shape, seed=self.seed)) / (1 - self.rate)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


def test_layers_that_do_something_in_training_alone_are_no_obstacle(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((WIDTH,))
    hidden = DropPath(name="path")(kl.Dense(8, "relu", name="hidden")(inputs))
    model = keras.Model(inputs, kl.Dense(3, name="head")(hidden))
    x = np.random.default_rng(0).normal(size=(32, WIDTH)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quantized = tfopt.calibrate(tfopt.quantize(model), x)
    trained = np.asarray(quantized.get_layer("path")(np.ones((200, 4), "float32"), training=True))
    assert set(trained.mean(1).tolist()) == {0.0, 2.0}
    file = tfopt.TFLiteModel(tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=x).path)
    assert [op.name for op in file.op_types()] == ["QUANTIZE", "FULLY_CONNECTED", "FULLY_CONNECTED", "DEQUANTIZE"]
    small = tfopt.shrink(tfopt.prune(model, sparsity=0.5, pattern="channel"))
    assert small.get_layer("hidden").units == 4
    quantized.save(tmp_path / "q.keras")
    loaded = tfopt.load_model(tmp_path / "q.keras", custom_objects={"DropPath": DropPath})
    np.testing.assert_array_equal(loaded(x, training=False), quantized(x, training=False))


@pytest.mark.parametrize("cls", CLOSED)
def test_closed_layers_stay_and_say_why(cls):
    model = through(cls(name="own"))
    weights = [np.array(weight) for weight in model.weights]
    graph = opened(read(model))
    assert CLOSED[cls] in graph.closed["own"]
    assert isinstance(graph.model.get_layer("own"), cls)
    for old, weight in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(np.array(weight), old)
    with pytest.warns(UserWarning, match=CLOSED[cls]):
        tfopt.functional(model)


def test_errors():
    with pytest.raises(NothingToDoError, match="written as code"):
        tfopt.functional(keras.Sequential([keras.Input((3,)), kl.Dense(2)]))
    with pytest.raises(UnsupportedModelError, match="has to be built"):
        tfopt.functional(Subclassed())

    class Deciding(keras.Model):
        def call(self, x):
            return x if ops.max(x) > 0 else -x

    model = Deciding()
    model(np.ones((1, 2)))
    with pytest.raises(UnsupportedModelError, match="must run on symbolic tensors"):
        tfopt.prune(model)
    with pytest.raises(tfopt.InvalidArgumentError, match="batch of inputs"):
        tfopt.functional(model, data="x.csv")


def test_a_file_may_not_call_any_function():
    for name in ("tf.io.write_file", "tf.py_function", "os.system", "tf.nn", "keras.ops.nothing", "tf.raw_ops.Relu"):
        with pytest.raises(tfopt.InvalidArgumentError, match="function in an opened layer"):
            FunctionCall(name)


class InnerDefault(kl.Layer):
    """`training` with a default, handed on; and a frozen layer that runs in inference."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop, self.norm = kl.Dropout(0.5), kl.BatchNormalization(trainable=False)

    def build(self, shape):
        self.norm.build(shape)
        self.built = True

    def call(self, x, training=False):
        return self.norm(self.drop(x, training=training), training=False)


class Same(kl.Layer):
    def call(self, x):
        return x


class MadeInCall(kl.Layer):
    def call(self, x):
        return kl.ReLU(name="made")(x[:])


class OwnMask(kl.Layer):
    """Makes the mask that all behind it read."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = kl.Embedding(5, WIDTH, mask_zero=True)
        self.supports_masking = True

    def build(self, shape):
        self.table.build(None)
        self.built = True

    def call(self, ids):
        return self.table(ids) * 2.0

    def compute_mask(self, ids, mask=None):
        return self.table.compute_mask(ids)


def test_sizes_that_differ_between_calls_are_unknown():
    own = kl.Lambda(lambda t: ops.relu(t) * 2.0, name="own")
    inputs = [keras.Input((steps, WIDTH)) for steps in (3, 5)]
    model = keras.Model(inputs, [own(each) for each in inputs])
    copy = tfopt.functional(model)
    x = [np.ones((2, 3, WIDTH), "float32"), -np.ones((2, 5, WIDTH), "float32")]
    for old, new in zip(model(x), copy(x), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("cls", [InnerDefault, Same, MadeInCall])
def test_more_layers_that_are_opened(cls):
    model = through(cls(name="own"))
    copy, x = tfopt.functional(model), data_for(model)
    assert isinstance(copy.get_layer("own"), keras.Model)
    np.testing.assert_array_equal(copy(x), model(x))


def test_masks_that_opened_layers_make_reach_others():
    inputs = keras.Input((STEPS,), dtype="int32")
    model = keras.Model(inputs, Masked(name="reads")(OwnMask(name="makes")(inputs)))
    copy = tfopt.functional(model)
    assert all(isinstance(copy.get_layer(name), keras.Model) for name in ("makes", "reads"))
    x = np.array([[1, 0, 2], [0, 0, 3]])
    np.testing.assert_array_equal(copy(x), model(x))
    assert np.abs(model(x) - model(np.where(x == 0, 4, x))).max() > 1e-3


class FineTuned(keras.Model):
    """A base that runs in inference while the model trains, as in fine-tuning."""

    def __init__(self, base):
        super().__init__()
        self.base, self.head = base, kl.Dense(2)

    def call(self, x):
        return self.head(self.base(x, training=False))


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_a_part_that_runs_in_inference_does_so_in_training_too(kind, tmp_path):
    layers = [keras.Input((WIDTH,)), kl.Dense(3), kl.BatchNormalization(name="norm"), kl.Dropout(0.5)]
    base = keras.Sequential(layers, name="base") if kind == "functional" else Subclassed.Encoder(name="base")
    model = FineTuned(base)
    x = np.random.default_rng(0).normal(size=(8, WIDTH)).astype("float32")
    model(x)
    copy = tfopt.functional(model)
    copy.save(tmp_path / "m.keras")
    for each in (copy, tfopt.load_model(tmp_path / "m.keras")):
        np.testing.assert_array_equal(each(x, training=True), model(x, training=True))
        np.testing.assert_array_equal(each(x, training=True), each(x, training=False))
    assert len(copy.trainable_weights) == len(model.trainable_weights)


def test_threads_that_open_models_at_once_leave_keras_as_it_was():
    before = {name: function for name, function in vars(ops).items() if callable(function)}
    call = keras.layers.Layer.__call__
    models = [built("nested") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(tfopt.functional, models))
    x = data_for(models[0])
    for model, copy in zip(models, copies, strict=True):
        np.testing.assert_array_equal(copy(x), model(x))
    assert {name: function for name, function in vars(ops).items() if callable(function)} == before
    assert keras.layers.Layer.__call__ is call
