"""What authors' layers hand to each other: outputs with None, slices to sizes, indices, and names of arguments."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import tfopt
from tfopt.core.models.graph import read
from tfopt.core.models.opening import opened

X = np.random.default_rng(0).normal(size=(16, 5, 8)).astype("float32")


class Attention(kl.Layer):
    """Gives scores only if asked, as attention of T5 and DeiT does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.query, self.value = kl.Dense(8, name="query"), kl.Dense(8, name="value")

    def call(self, x, with_scores=False):
        scores = ops.softmax(ops.matmul(self.query(x), ops.transpose(x, (0, 2, 1))))
        return ops.matmul(scores, self.value(x)), scores if with_scores else None


class Block(kl.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention, self.norm = Attention(name="attention"), kl.LayerNormalization(name="norm")

    def call(self, x):
        y, scores = self.attention(x)
        return self.norm(x + y) if scores is None else scores


class Halves(kl.Layer):
    """Slices up to, from and between sizes that are not known."""

    def call(self, x, y):
        size = ops.shape(y)[1]
        return x[:, :size] + y, x[:, size:], x[..., 1:size, :]


class Narrow(kl.Layer):
    """Built for a size that the graph does not tell."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = kl.Dense(2, name="dense")

    def build(self, x_shape, y_shape):
        self.dense.build((None, None, 4))
        self.built = True

    def call(self, x, y):
        return self.dense(x[..., : ops.shape(y)[1]])


class Distances(kl.Layer):
    """A bias by the logarithm of distances, which is infinite for 0 and not used there."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bias, self.dense = kl.Embedding(4, 5, name="bias"), kl.Dense(5, name="dense")

    def call(self, x):
        places = ops.arange(x.shape[1])
        far = ops.abs(places[:, None] - places[None, :])
        steps = ops.cast(ops.log(ops.cast(far, "float32")) + 1.0, "int32")
        buckets = ops.where(far > 0, ops.minimum(steps, 3), ops.zeros_like(steps))
        return self.dense(x) + ops.mean(self.bias(buckets), axis=1)[None]


def around(layer, shape=(5, 8)):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    return keras.Model(inputs, kl.Dense(3, name="head")(layer(inputs)))


def same(one, other, *x):
    for got, want in zip(
        *(keras.tree.flatten(each(list(x) if len(x) > 1 else x[0])) for each in (one, other)), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_outputs_that_are_none():
    model = around(Block(name="block"))
    graph = opened(read(model))
    assert not graph.closed
    same(graph.model, model, X)
    assert [layer.name for layer in graph.model.get_layer("block").layers if layer.weights] == ["attention", "norm"]


def test_slices_to_sizes():
    x, y = keras.Input((None, 8)), keras.Input((None, 8))
    model = keras.Model([x, y], Halves(name="halves")(x, y))
    graph = opened(read(model))
    assert not graph.closed
    for size in (2, 4):
        same(graph.model, model, X, X[:, :size])


def test_layers_inside_keep_the_sizes_that_they_were_built_for():
    x, y = keras.Input((5, 8)), keras.Input((None, 8))
    model = keras.Model([x, y], Narrow(name="narrow")(x, y))
    graph = opened(read(model))
    assert not graph.closed
    same(graph.model, model, X, X[:, :4])


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_arithmetic_on_constants_stays_as_it_is(scheme, tmp_path):
    model = around(Distances(name="distances"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quantized = tfopt.calibrate(tfopt.quantize(model, scheme), X)
    file = tfopt.TFLiteModel(tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=X).path)
    assert not file.float_compute_ops()
    assert np.abs(file.predict(X) - np.asarray(model(X))).mean() < 0.02 * np.ptp(np.asarray(model(X)))


class Unknown(kl.Layer):
    """Stays closed: `quantize` leaves it in float."""

    def call(self, left, right):
        return left + right * keras.random.uniform((1,), 0.99, 1.01)


def test_a_closed_layer_that_is_called_by_names_alone():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    both = Unknown(name="unknown")(right=kl.Dense(4)(inputs), left=kl.Dense(4)(inputs))
    model = keras.Model(inputs, kl.Dense(3, name="head")(both))
    with pytest.warns(UserWarning, match="'unknown'"):
        quantized = tfopt.calibrate(tfopt.quantize(model), X[:, 0])
    want = np.asarray(model(X[:, 0]))
    assert np.abs(np.asarray(quantized(X[:, 0])) - want).max() < 0.1 * np.ptp(want)


class Twins(kl.Layer):
    """Two layers of one name, and one that is never called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second, self.spare = kl.Dense(8, name="dense"), kl.Dense(8, name="dense"), kl.Dense(2)

    def call(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("verb", ["prune", "cluster"])
def test_layers_of_one_name_inside_a_layer_are_all_reached(verb):
    model = around(Twins(name="twins"))
    changed = tfopt.prune(model, sparsity=0.5) if verb == "prune" else tfopt.cluster(model, 4)
    twins = changed.get_layer("twins")
    for dense in (twins.first, twins.second):
        kernel = np.asarray(dense.kernel)
        assert (kernel == 0).mean() == 0.5 if verb == "prune" else len(np.unique(kernel)) == 4


def test_identity_made_with_a_policy_is_saved(tmp_path):
    policy = keras.DTypePolicy("float32")
    model = keras.Sequential([keras.Input((8,)), kl.Dense(4), kl.Identity(dtype=policy, name="same"), kl.Dense(2)])
    pruned = tfopt.prune(model, sparsity=0.5)
    pruned.save(tmp_path / "m.keras")
    same(keras.models.load_model(tmp_path / "m.keras"), pruned, X[:, 0])


class Square(keras.regularizers.Regularizer):
    """Takes outputs as matrices of 3 x 3."""

    def __call__(self, x):
        return ops.sum(ops.square(ops.reshape(x, (-1, 3, 3))))


def test_channels_that_a_regularizer_counts_stay():
    inputs = keras.Input((8,))
    x = kl.Dense(9, activity_regularizer=Square(), name="matrix")(kl.Dense(8, "relu", name="hidden")(inputs))
    model = keras.Model(inputs, kl.Dense(2, name="head")(x))
    with pytest.warns(UserWarning, match="'matrix'.*the regularizer of 'matrix' counts them"):
        masked = tfopt.prune(model, sparsity=0.5, pattern="channel")
    small = tfopt.shrink(masked)
    assert [small.get_layer(name).units for name in ("hidden", "matrix")] == [4, 9]
    np.testing.assert_allclose(small(X[:, 0]), masked(X[:, 0]), atol=1e-6)
