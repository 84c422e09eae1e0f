"""Channels through splits, slices, transposes, attention, groups and broadcasting.

Each model is held against itself: without the masked channels it gives what it gives with them, and has fewer
parameters.
"""

import warnings

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl
from keras import ops
from kinds import IMAGE, KINDS, TOKENS, c2f, head

import tfopt
from tfopt.core.channels.graph import ChannelGraph
from tfopt.core.models.graph import read


def randomized(model):
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif "seed" not in weight.path:
            weight.assign(weight.numpy() + generator.normal(0, 0.2, weight.shape))
    return model


def network(body, shape):
    inputs = keras.Input(shape)
    return randomized(keras.Model(inputs, body(inputs)))


def shrunk(model, sparsity=0.5):
    """The masked model and the small one, with what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        masked = tfopt.prune(model, pattern="channel", sparsity=sparsity)
    return masked, tfopt.shrink(masked), " ".join(str(each.message) for each in said)


def assert_equal(first, second, x):
    for a, b in zip(zoo.predictions(first, x), zoo.predictions(second, x), strict=True):
        assert np.ptp(a) > 1e-3
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, np.abs(a).max()))


@pytest.mark.parametrize("body", KINDS, ids=lambda body: body.__name__)
def test_shrinks_exactly(body, tmp_path):
    shape, units = KINDS[body]
    model = network(body, shape)
    masked, small, _ = shrunk(model)
    x = zoo.inputs_for(model, 4)
    assert_equal(masked, small, x)
    assert small.count_params() < model.count_params()
    for name, width in units.items():
        assert small.get_layer(name).output.shape[-1] == width
    small.save(tmp_path / "small.keras")
    assert_equal(small, keras.models.load_model(tmp_path / "small.keras"), x)


def test_parts_of_a_split_may_get_different_widths():
    inputs = keras.Input((4,))
    first, second = ops.split(kl.Dense(8, name="both")(inputs), 2, axis=-1)
    model = keras.Model(inputs, kl.Dense(2)(first) + kl.Dense(2)(second))
    scores = [9, 1, 8, 7, 2, 3, 6, 4]  # of the first half three are among the best four
    model.get_layer("both").kernel.assign(np.ones((4, 8)) * scores)
    masked, small, said = shrunk(model)
    assert_equal(masked, small, zoo.inputs_for(model, 8))
    assert not said
    widths = [layer.kernel.shape[0] for layer in small.layers if isinstance(layer, kl.Dense)]
    assert widths == [4, 3, 1]


def test_a_part_keeps_one_channel():
    inputs = keras.Input((4,))
    both = kl.Dense(8, name="both")(inputs)
    model = keras.Model(inputs, kl.Dense(2)(both[:, :2]) + kl.Dense(2)(ops.concatenate([both[:, 2:], inputs], -1)))
    model.get_layer("both").kernel.assign(np.ones((4, 8)) * [1, 2, 9, 8, 7, 6, 5, 4])
    masked, small, _ = shrunk(model, 0.75)
    assert np.flatnonzero(masked.get_layer("both").kernel.numpy()[0]).tolist() == [1, 2]
    assert_equal(masked, small, zoo.inputs_for(model, 8))


def test_channels_of_two_axes_by_hand():
    """A matrix product over the positions leaves the channels apart: removing one takes out one column."""
    inputs = keras.Input((3, 4))
    x = kl.Dense(6, name="embed")(inputs)
    y = kl.Permute((2, 1))(kl.Dense(5, name="mixed")(kl.Permute((2, 1))(x)))
    model = randomized(keras.Model(inputs, kl.Dense(2, name="head")(kl.GlobalAveragePooling1D()(y))))
    masked, small, _ = shrunk(model)
    assert small.get_layer("embed").units == 3
    assert small.get_layer("mixed").kernel.shape == (3, 5)  # its channels are averaged
    assert_equal(masked, small, zoo.inputs_for(model, 4))


def test_a_layer_that_is_called_on_two_tensors_follows_both():
    inputs, reshape = keras.Input((4,)), kl.Reshape((2, 4))
    both = [reshape(kl.Dense(8, name=name)(inputs)) for name in "ab"]
    model = randomized(keras.Model(inputs, head(kl.Dense(3)(both[0]) + kl.Dense(3)(both[1]))))
    masked, small, _ = shrunk(model)
    assert [small.get_layer(name).units for name in "ab"] == [4, 4]
    assert_equal(masked, small, zoo.inputs_for(model, 8))


def own_weight_channels(context, x):
    return context.weight(context.op.scale)


@tfopt.register_layer(channels=own_weight_channels)
@keras.saving.register_keras_serializable("tests")
class Scale(kl.Layer):
    """Gives its weight."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.scale = self.add_weight(shape=(self.units,), initializer="ones")

    def call(self, x):
        return ops.convert_to_tensor(self.scale)

    def compute_output_spec(self, x):
        return keras.KerasTensor((self.units,))


@pytest.mark.parametrize("merge", [ops.multiply, ops.add])
def test_a_vector_that_is_broadcast_has_the_channels_of_the_last_axis(merge):
    inputs = keras.Input((5, 5, 3))
    model = keras.Model(inputs, head(merge(kl.Conv2D(6, 3, name="conv")(inputs), Scale(6, name="scale")(inputs))))
    graph = ChannelGraph(read(model))
    (group,) = graph.groups
    assert (group.paths, len(group.channels)) == (("conv",), 6)
    assert [slot.path for slot in group.slots] == ["conv", "conv", "scale", "head"]


@pytest.mark.parametrize(
    ("body", "shape", "words"),
    [
        (lambda x: head(ops.softmax(kl.Dense(6, name="a")(x))), TOKENS, "softmax mixes them"),
        (lambda x: kl.Dense(3)(ops.max(kl.Dense(6, name="a")(x), -1)), TOKENS, "reduced to one value"),
        (
            lambda x: head(ops.matmul(ops.exp(kl.Dense(6, name="a")(x)), np.ones((6, 2), "float32"))),
            TOKENS,
            "a constant",
        ),
        (lambda x: head(kl.Dense(6, name="a")(x)[..., ::4]), TOKENS, "picked in steps"),
        (lambda x: head(ops.repeat(kl.Dense(2, name="a")(x), [1, 3], axis=-1)), TOKENS, "a number of its own"),
        (lambda x: kl.Dense(3)(kl.LSTM(4)(ops.transpose(kl.Dense(6, name="a")(x), (0, 2, 1)))), TOKENS, "another axis"),
        (lambda x: head(ops.roll(kl.Dense(6, name="a")(x), (1, 2), axis=(1, 2))), TOKENS, "along several axes"),
        (lambda x: head(ops.take(kl.Dense(6, name="a")(x), [[0, 1], [2, 3]], axis=-1)), TOKENS, "several axes"),
        (lambda x: head(kl.LayerNormalization()(kl.Dense(6, "sigmoid", name="a")(x))), TOKENS, "not zero when masked"),
    ],
)
def test_what_has_to_stay_is_named(body, shape, words):
    inputs = keras.Input(shape)
    x = kl.Dense(4, name="other")(body(inputs))
    model = keras.Model(inputs, kl.Dense(2)(x))
    masked, small, said = shrunk(model)
    assert small.get_layer("other").units == 2
    assert small.get_layer("a").units == model.get_layer("a").units
    assert "'a' (" in said
    assert words in said
    assert_equal(masked, small, zoo.inputs_for(model, 4))


def test_conv_lstm_is_named():
    inputs = keras.Input((3, 6, 6, 2))
    x = kl.ConvLSTM2D(4, 3, name="memory")(kl.TimeDistributed(kl.Conv2D(4, 1), name="front")(inputs))
    model = keras.Model(inputs, head(kl.Conv2D(4, 1, name="back")(x)))
    _, small, said = shrunk(model)
    assert "'memory' (tfopt does not know ConvLSTM2D)" in said
    assert "'front' (read by 'memory': tfopt does not know ConvLSTM2D)" in said
    assert small.get_layer("back").filters == 2


def test_features_of_a_part_do_not_all_go():
    inputs = keras.Input((6,), name="x")
    model = keras.Model(inputs, kl.Dense(2)(inputs[:, :2]) + kl.Dense(2)(inputs[:, 2:]))
    small = tfopt.drop_features(model, drop=[0, 4])
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    x[:, [0, 4]] = 0
    np.testing.assert_allclose(small.predict(x[:, [1, 2, 3, 5]], verbose=0), model.predict(x, verbose=0), atol=1e-5)
    with pytest.raises(tfopt.UnsupportedModelError, match="at least one has to stay"):
        tfopt.drop_features(model, drop=[0, 1])


def test_masks_of_a_split_hold_in_training():
    model = network(c2f, IMAGE)
    masked = tfopt.prune(model, tfopt.PolynomialDecay(0, 0.5, 0, 4, frequency=1), pattern="channel")
    x = zoo.inputs_for(model, 16)
    masked.compile("sgd", "mse")
    masked.fit(x, np.zeros((16, 3)), batch_size=4, epochs=2, verbose=0)
    small = tfopt.shrink(masked)
    assert small.get_layer("enter").filters == 8
    assert_equal(masked, small, x)
