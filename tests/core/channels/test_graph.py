"""Channel groups, held against masking by hand: zero channels removed must leave every output as it was."""

import warnings

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl

from tfopt.core.channels.graph import ChannelGraph
from tfopt.core.channels.slicing import without_channels
from tfopt.core.channels.union_find import DisjointSets
from tfopt.core.models.graph import read
from tfopt.core.models.rewrite import rewrite


def chain(*layers):
    def run(x):
        for layer in layers:
            x = layer(x)
        return x

    return run


def squeeze_excite(x):
    x = kl.Conv2D(8, 3, activation="swish", name="conv")(x)
    gate = kl.Conv2D(4, 1, activation="relu", name="squeeze")(kl.GlobalAveragePooling2D(keepdims=True)(x))
    gate = kl.Conv2D(8, 1, activation="sigmoid", name="excite")(gate)
    return kl.Dense(3)(kl.GlobalAveragePooling2D()(x * gate))


def transformer(x):
    x = kl.Dense(16, name="embed")(x)
    y = kl.LayerNormalization()(x)
    x = x + kl.MultiHeadAttention(4, 4, name="attention")(y, y)
    y = kl.LayerNormalization(center=False)(x)
    x = kl.Add()([x, kl.Dense(16, name="down")(kl.Dense(32, "gelu", name="up")(y))])
    return kl.Dense(3)(kl.LayerNormalization()(x)[:, 0])


def dense_block(x):
    first = kl.Conv2D(8, 3, padding="same", name="first")(x)
    second = kl.Conv2D(4, 3, padding="same", name="second")(first)
    joined = kl.BatchNormalization(scale=False)(kl.Concatenate()([first, second, first]))
    return kl.Dense(3)(kl.Flatten()(kl.Conv2D(4, 1, name="third")(joined)))


def shuffle(x):
    x = kl.Reshape((6, 6, 2, 8))(kl.Conv2D(16, 1, name="split")(x))
    x = kl.Reshape((6, 6, 16))(kl.Permute((1, 2, 4, 3))(x))
    return kl.Dense(3)(kl.Flatten()(kl.Conv2D(8, 3, groups=2, name="grouped")(x)))


def gated_by_one(x):
    one = kl.Conv2D(1, 3, activation="sigmoid", name="gate")(x)
    return kl.Dense(3)(kl.Flatten()(kl.Conv2D(8, 3, name="conv")(x) * one))


def mean_by_op(x):
    return kl.Dense(3)(keras.ops.mean(keras.ops.relu(kl.Conv2D(8, 3, name="conv")(x)) + 1.0, axis=(1, 2)))


IMAGE, TOKENS = (6, 6, 3), (6, 5)
# name -> input shape, network, {layers that create a group: channels}
GRAPHS = {
    "squeeze_excite": (IMAGE, squeeze_excite, {("conv", "excite"): 8, ("squeeze",): 4}),
    "transformer": (TOKENS, transformer, {("embed", "attention", "down"): 16, ("attention",): 4, ("up",): 32}),
    "dense_block": (IMAGE, dense_block, {("first",): 8, ("second",): 4, ("third",): 4}),
    "shuffle": (IMAGE, shuffle, {("split",): 4, ("grouped",): 4}),  # 8 places of a group, tied in pairs by the shuffle
    "gated_by_one": (IMAGE, gated_by_one, {("conv",): 8}),
    "mean_by_op": (IMAGE, mean_by_op, {("conv",): 8}),
    "grouped": (
        IMAGE,
        chain(
            kl.Conv2D(8, 3, name="a"),
            kl.Conv2D(12, 2, groups=4, activation="relu", name="b"),
            kl.BatchNormalization(),
            kl.Conv2D(12, 2, groups=12, name="c"),
            kl.PReLU(shared_axes=[1, 2]),
            kl.GlobalMaxPooling2D(),
            kl.Dense(2),
        ),
        {("a",): 2, ("b",): 3},
    ),
    "decoder": (
        (8,),
        chain(
            kl.Dense(72, "relu", name="a"),
            kl.Reshape((3, 3, 8)),
            kl.Conv2DTranspose(8, 3, 2, name="b"),
            kl.PReLU(),
            kl.UpSampling2D(),
            kl.SeparableConv2D(6, 3, depth_multiplier=2, name="c"),
            kl.Conv2D(1, 3),
        ),
        {("a",): 8, ("b",): 8, ("c",): 6},
    ),
    "recurrent": (
        TOKENS,
        chain(
            kl.LSTM(8, return_sequences=True, name="a"),
            kl.Bidirectional(kl.GRU(6, return_sequences=True), name="b"),
            kl.SimpleRNN(4, name="c"),
            kl.Dense(2),
        ),
        {("a",): 8, ("b",): 6, ("c",): 4},
    ),
    "time_distributed": (
        (4, 6, 6, 3),
        chain(
            kl.TimeDistributed(kl.Conv2D(8, 3, activation="relu"), name="a"),
            kl.TimeDistributed(kl.Flatten()),
            kl.TimeDistributed(kl.Dense(6), name="b"),
            kl.GlobalAveragePooling1D(),
            kl.Dense(2),
        ),
        {("a",): 8, ("b",): 6},
    ),
    "volumes": (
        (5, 5, 5, 2),
        chain(
            kl.Conv3D(4, 3, name="a"),
            kl.BatchNormalization(center=False),
            kl.ReLU(),
            kl.Conv3DTranspose(4, 2, name="b"),
            kl.Rescaling(2.0, 1.0),
            kl.GlobalAveragePooling3D(),
            kl.Dense(2),
        ),
        {("a",): 4, ("b",): 4},
    ),
    "one_dimension": (
        (16, 3),
        chain(
            kl.Conv1D(8, 3, name="a"),
            kl.DepthwiseConv1D(3, depth_multiplier=2, activation="sigmoid"),
            kl.MaxPooling1D(),
            kl.Conv1DTranspose(8, 3, name="b"),
            kl.ZeroPadding1D(1),
            kl.SeparableConv1D(8, 3, name="c"),
            kl.Flatten(),
            kl.Dense(2),
        ),
        {("a",): 8, ("b",): 8, ("c",): 8},
    ),
    "norms": (
        (6, 8),
        chain(
            kl.EinsumDense("abc,cd->abd", (None, 16), bias_axes="d", activation="relu", name="a"),
            kl.RMSNormalization(),
            kl.Dense(6, name="b"),
            kl.UnitNormalization(),
            kl.GroupNormalization(-1),
            kl.Dense(2),
        ),
        {("a",): 16, ("b",): 6},
    ),
    "channels_first": (
        (3, 6, 6),
        chain(
            kl.Permute((2, 3, 1)),
            kl.Conv2D(8, 3, name="a"),
            kl.Permute((3, 1, 2)),
            kl.BatchNormalization(axis=1),
            kl.Flatten(data_format="channels_first"),
            kl.Dense(2),
        ),
        {("a",): 8},
    ),
}


def randomized(model):
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if "seed" in weight.path:
            continue
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        else:
            weight.assign(weight.numpy() + generator.normal(0, 0.2, weight.shape))
    return model


def network(name):
    shape, body, groups = GRAPHS[name]
    inputs = keras.Input(shape)
    fresh = body(inputs) if "chain" not in body.__qualname__ else rewrite_of(body, inputs)
    return randomized(keras.Model(inputs, fresh)), groups


def rewrite_of(body, inputs):
    """The layers of a chain are made once, when the table is: a copy of them for each test."""
    return rewrite(read(keras.Model(inputs, body(inputs)))).model(inputs)


def masked(model, graph, removed):
    """A copy of the model with all weights of the channels zero, by numpy alone."""
    copy = rewrite(read(model)).model
    for old, new in zip(graph.slots, ChannelGraph(read(copy)).slots, strict=True):
        if old.role != "statistic":
            array = np.moveaxis(new.variable.numpy(), new.axis, 0).copy()
            array[np.isin(old.labels, removed)] = 0
            new.variable.assign(np.moveaxis(array, 0, new.axis))
    return copy


def some_of(graph, fraction=0.5):
    generator = np.random.default_rng(0)
    return np.concatenate(
        [generator.permutation(group.channels)[: int(len(group.channels) * fraction)] for group in graph.groups]
    )


def assert_same_outputs(first, second, x):
    for a, b in zip(zoo.predictions(first, x), zoo.predictions(second, x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.ptp(a) > 1e-3


@pytest.mark.parametrize("name", GRAPHS)
def test_groups_and_removal(name, tmp_path):
    model, groups = network(name)
    graph = ChannelGraph(read(model))
    found = {tuple(path.rsplit("/", 1)[-1] for path in group.paths): len(group.channels) for group in graph.groups}
    assert found == groups
    removed = some_of(graph)
    zeroed = masked(model, graph, removed)
    small = without_channels(ChannelGraph(read(zeroed)), removed).model
    x = zoo.inputs_for(model, 4)
    assert_same_outputs(zeroed, small, x)
    assert small.count_params() < model.count_params()
    small.save(tmp_path / "small.keras")
    assert_same_outputs(keras.models.load_model(tmp_path / "small.keras"), small, x)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_zoo(name):
    model = zoo.build(name)
    graph = ChannelGraph(read(model))
    removed = some_of(graph)
    zeroed = masked(model, graph, removed)
    small = without_channels(ChannelGraph(read(zeroed)), removed).model
    x = zoo.inputs_for(model)
    for a, b in zip(zoo.predictions(zeroed, x), zoo.predictions(small, x), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 if name == "mixed" else 1e-5)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]


def test_sizes_by_hand():
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(6, 3, name="conv")(inputs)
    x = kl.Flatten()(kl.BatchNormalization(name="bn")(x))
    model = keras.Model(inputs, kl.Dense(2, name="head")(x))
    graph = ChannelGraph(read(model))
    (group,) = graph.groups
    small = without_channels(graph, group.channels[[1, 4]]).model
    assert small.get_layer("conv").kernel.shape == (3, 3, 3, 4)
    kept = [0, 2, 3, 5]
    np.testing.assert_array_equal(small.get_layer("conv").kernel, model.get_layer("conv").kernel.numpy()[..., kept])
    rows = model.get_layer("head").kernel.numpy().reshape(6, 6, 6, 2)[:, :, kept].reshape(-1, 2)
    np.testing.assert_array_equal(small.get_layer("head").kernel, rows)
    assert small.get_layer("bn").moving_mean.shape == (4,)


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        (kl.GroupNormalization(3), None),
        (kl.Softmax(), "softmax mixes them"),
        (kl.Lambda(lambda x: x, output_shape=(6,)), "tfopt does not know Lambda"),
        (kl.Reshape((3, 2)), None),
    ],
)
def test_reasons(reader, reason):
    inputs = keras.Input((4,))
    x = kl.Dense(6, name="a")(inputs)
    model = keras.Model(inputs, kl.Dense(2, name="b")(kl.Flatten()(reader(x))))
    kept = ChannelGraph(read(model)).kept_layers()
    assert kept.pop("b") == "an output of the model keeps its shape"
    assert kept == ({} if reason is None else {"a": f"read by '{reader.name}': {reason}"})


def test_layer_normalization_of_values_that_are_not_zero_keeps_them():
    model = keras.Sequential(
        [keras.Input((4,)), kl.Dense(6, "sigmoid", name="a"), kl.LayerNormalization(name="norm"), kl.Dense(2)]
    )
    assert "not zero when masked" in ChannelGraph(read(model)).kept_layers()["a"]


def test_features_of_the_input_are_channels_too():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, name="a"), kl.Dense(2, name="b")])
    graph = ChannelGraph(read(model), features=True)
    removed = graph.features[0].labels[-1][[0, 2]]
    small = without_channels(graph, removed).model
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    gone = x.copy()
    gone[:, [0, 2]] = 0
    np.testing.assert_allclose(small.predict(x[:, [1, 3]], verbose=0), model.predict(gone, verbose=0), atol=1e-6)


def test_disjoint_sets_against_plain_sets():
    generator = np.random.default_rng(0)
    sets, plain = DisjointSets(50), {number: {number} for number in range(50)}
    for _ in range(12):
        first, second = generator.integers(0, 50, (2, 3))
        sets.join(first, second)
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            union = plain[a] | plain[b]
            plain.update(dict.fromkeys(union, union))
    assert sets.roots(np.arange(50)).tolist() == [min(plain[number]) for number in range(50)]


def test_a_sum_with_one_channel_for_all_is_not_zero_where_the_others_are():
    inputs = keras.Input((4,))
    both = kl.Add()([kl.Dense(1, name="one")(inputs), kl.Dense(6, name="wide")(inputs)])
    model = randomized(keras.Model(inputs, kl.Dense(2, name="head")(both)))
    wide, head = model.get_layer("wide"), model.get_layer("head")
    for weight in (wide.kernel, wide.bias):
        weight.assign(weight.numpy() * np.array([1, 1, 0, 1, 1, 0]))
    assert not len(ChannelGraph(read(model)).zero_channels())
    head.kernel.assign(head.kernel.numpy() * np.array([[1], [1], [0], [1], [1], [1]]))
    graph = ChannelGraph(read(model))
    assert len(graph.zero_channels()) == 1
    small = without_channels(graph, graph.zero_channels()).model
    assert_same_outputs(model, small, zoo.inputs_for(model, 4))


def test_normalization_with_values_for_each_channel():
    model = keras.Sequential(
        [keras.Input((4,)), kl.Dense(6, name="a"), kl.Normalization(name="norm"), kl.Dense(2, name="b")]
    )
    model.get_layer("norm").adapt(np.random.default_rng(0).normal(size=(20, 6)))
    (group,) = ChannelGraph(read(randomized(model))).groups
    model.get_layer("norm").finalize_state()
    removed = group.channels[[1, 4]]
    head = model.get_layer("b")
    head.kernel.assign(head.kernel.numpy() * np.array([[1], [0], [1], [1], [0], [1]]))
    small = without_channels(ChannelGraph(read(model)), removed).model
    assert small.get_layer("norm").adapt_mean.shape == (4,)
    assert_same_outputs(model, small, zoo.inputs_for(model, 4))


def test_a_softmax_is_looked_at_without_a_warning_of_keras():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, "relu"), kl.Dense(2, "softmax")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ChannelGraph(read(model)).groups) == 1
