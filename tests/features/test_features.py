"""Rankings against numpy, and models without features against the full model with constants in their columns."""

import json

import keras
import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl
from sklearn.datasets import load_breast_cancer

import tfopt
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, NothingToDoError, UnsupportedModelError
from tfopt.features.ranking import Feature, FeatureRanking

GENERATOR = np.random.default_rng(4)
TABLE, SERIES, OPEN, IMAGE = (6,), (9, 6), (None, 6), (8, 8, 6)
MEAN, VARIANCE = GENERATOR.normal(size=6), GENERATOR.uniform(0.5, 2, 6)


def adapted(axis=-1, shape=(50, 6)):
    layer = kl.Normalization(axis)
    layer.adapt(np.random.default_rng(2).normal(1, 2, shape).astype("float32"))
    return layer


def given_statistics(**options):
    return kl.Normalization(mean=MEAN.tolist(), variance=VARIANCE.tolist(), **options)


def attention(x):
    return kl.MultiHeadAttention(2, 3)(x, x)


# name -> input shape, layers behind the input, whether a constant other than 0 is taken as well
NETWORKS = {
    "dense": (TABLE, lambda: [kl.Dense(4, "tanh")], True),
    "adapted": (TABLE, lambda: [adapted(), kl.Dense(4, "tanh")], True),
    "statistics_in_the_config": (TABLE, lambda: [given_statistics(), kl.Dense(4)], True),
    "inverted": (TABLE, lambda: [given_statistics(invert=True), kl.Dense(4)], True),
    "one_statistic": (TABLE, lambda: [kl.Normalization(mean=0.4, variance=2.0), kl.Dense(4)], True),
    "no_axis": (TABLE, lambda: [adapted(axis=None), kl.Dense(4)], True),
    "batch_normalization": (TABLE, lambda: [kl.BatchNormalization(), kl.Dropout(0.3), kl.Dense(4)], True),
    "rescaled": (TABLE, lambda: [kl.Rescaling(2.0, -1.0), kl.Activation("sigmoid"), kl.Dense(4)], True),
    "unit": (TABLE, lambda: [kl.UnitNormalization(), kl.Dense(4, use_bias=False)], False),
    "no_bias": (TABLE, lambda: [kl.Dense(4, use_bias=False)], False),
    "reshaped": (TABLE, lambda: [kl.Reshape((6, 1)), kl.Flatten(), kl.Dense(4)], True),
    "lstm": (SERIES, lambda: [adapted(), kl.LSTM(3)], True),
    "gru": (SERIES, lambda: [given_statistics(), kl.GRU(3)], True),
    "gru_reset_before": (OPEN, lambda: [adapted(), kl.GRU(3, reset_after=False)], True),
    "rnn": (SERIES, lambda: [adapted(), kl.SimpleRNN(3)], True),
    "bidirectional": (OPEN, lambda: [adapted(), kl.Bidirectional(kl.LSTM(3))], True),
    "masked": (OPEN, lambda: [kl.Masking(), kl.LSTM(3)], False),
    "conv": (OPEN, lambda: [adapted(), kl.Conv1D(4, 3, strides=2, dilation_rate=1), kl.GlobalMaxPooling1D()], True),
    "conv_same": (SERIES, lambda: [kl.Conv1D(4, 3, padding="same"), kl.Flatten()], False),
    "depthwise": (SERIES, lambda: [adapted(), kl.DepthwiseConv1D(3, activation="relu"), kl.Conv1D(3, 2)], True),
    "separable": (SERIES, lambda: [kl.SeparableConv1D(4, 3)], False),
    "attention": (SERIES, lambda: [adapted(), attention], True),
    "each_step": (SERIES, lambda: [adapted(), kl.TimeDistributed(kl.Dense(4))], True),
    "einsum": (SERIES, lambda: [adapted(), kl.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d")], True),
    "both_axes": (SERIES, lambda: [adapted((1, 2), (50, 9, 6)), kl.Flatten(), kl.Dense(4)], True),
    "steps_only": (SERIES, lambda: [adapted(1, (50, 9, 6)), kl.Flatten(), kl.Dense(4)], True),
    "bands": (IMAGE, lambda: [given_statistics(), kl.Conv2D(4, 3), kl.GlobalAveragePooling2D()], True),
    "nested": (TABLE, lambda: [adapted(), keras.Sequential([keras.Input((6,)), kl.Dense(3)], name="inner")], True),
}


def network(name, head=True):
    shape, layers, _ = NETWORKS[name]
    x = inputs = keras.Input(shape, name="x")
    for layer in layers():
        x = layer(x)
    return randomized(keras.Model(inputs, kl.Dense(2, name="head")(x) if head else x))


def randomized(model):
    generator = np.random.default_rng(1)
    for layer in (layer for layer in model._flatten_layers() if not isinstance(layer, kl.Normalization)):
        for weight in layer._trainable_variables + layer._non_trainable_variables:
            if weight.path.endswith(("gamma", "variance")):
                weight.assign(generator.uniform(0.5, 1.5, weight.shape))
            elif "seed" not in weight.path:
                weight.assign(weight.numpy() + generator.normal(0, 0.3, weight.shape))
    return model


def samples(shape, count=5):
    x = np.random.default_rng(6).normal(size=(count, *(size or 11 for size in shape))).astype("float32")
    if len(shape) == 2:
        x[0, -3:] = 0  # steps that a Masking layer skips
    return x


def with_constants(x, indices, values=0.0):
    changed = x.copy()
    changed[..., indices] = values
    return changed


def close(first, second, atol=1e-5):
    for a, b in zip(keras.tree.flatten(first), keras.tree.flatten(second), strict=True):
        np.testing.assert_allclose(np.asarray(a, "float32"), np.asarray(b, "float32"), atol=atol, rtol=1e-5)
        assert np.ptp(np.asarray(a)) > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_dropped_features_count_as_a_constant(name, tmp_path):
    model, x = network(name), samples(NETWORKS[name][0])
    before = zoo.state(model)
    drop, kept = [4, 1], [0, 2, 3, 5]
    small = tfopt.drop_features(model, drop)
    close(small(x[..., kept]), model(with_constants(x, drop)))
    assert small.input_shape == (*model.input_shape[:-1], 4)
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    small.save(tmp_path / "small.keras")
    close(keras.models.load_model(tmp_path / "small.keras")(x[..., kept]), small(x[..., kept]))
    fill = np.array([0, 0.7, 0, 0, -1.3, 0])
    if NETWORKS[name][2]:
        filled = tfopt.drop_features(model, keep=kept, fill=fill)
        close(filled(x[..., kept]), model(with_constants(x, drop, fill[drop])))
    else:
        with pytest.raises(UnsupportedModelError, match="Received: .*(feature 1|with use_bias=False|'.*conv1d)"):
            tfopt.drop_features(model, drop, fill=fill)
    assert all(np.array_equal(old, new) for old, new in zip(before, zoo.state(model), strict=True))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: kl.Dense(3, use_bias=False), "needs a bias"),
        (lambda: kl.Conv1D(3, 3, padding="same"), "without padding or groups"),
        (lambda: kl.SeparableConv1D(3, 3), "without padding or groups"),
    ],
)
def test_means_need_no_bias_behind_a_normalization(layer, message):
    model, x = randomized(keras.Sequential([keras.Input(SERIES), given_statistics(), layer(), kl.Flatten()])), 3
    with pytest.raises(UnsupportedModelError, match=message):
        tfopt.drop_features(model, [1])
    x = samples(SERIES)
    small = tfopt.drop_features(model, [1], fill=MEAN)
    close(small(np.delete(x, 1, -1)), model(with_constants(x, 1, MEAN[1])))


def test_padding_of_a_constant_is_no_constant():
    model = keras.Sequential([keras.Input(SERIES), given_statistics(), kl.ZeroPadding1D(1), kl.Conv1D(3, 3)])
    with pytest.raises(UnsupportedModelError, match="different values"):
        tfopt.drop_features(model, [1])


def two_inputs():
    left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
    joined = kl.Concatenate()([left, given_statistics()(left), right])
    outputs = {"a": kl.Dense(2, name="a")(joined), "b": kl.Dense(3, "sigmoid", name="b")(right)}
    return randomized(keras.Model({"left": left, "right": right}, outputs))


def test_several_inputs():
    model = two_inputs()
    left, right = samples((6,)), samples((4,))
    fill = {"right": np.arange(4.0)}
    small = tfopt.drop_features(model, {"left": [0, 5], "right": [2]}, fill=fill)
    full = model({"left": with_constants(left, [0, 5]), "right": with_constants(right, 2, 2.0)})
    close(small({"left": left[:, 1:5], "right": right[:, [0, 1, 3]]}), full)
    one = tfopt.drop_features(model, keep={"right": [0, 1, 3]}, fill=2.0)
    assert {k: v.shape for k, v in one.input.items()} == {"left": (None, 6), "right": (None, 3)}


def test_features_that_meet_go_together():
    model = zoo.build("shared")
    with pytest.raises(UnsupportedModelError, match="without 2 of input 'right'"):
        tfopt.drop_features(model, {"left": [2]})
    small = tfopt.drop_features(model, {"left": [2], "right": [2]}, fill=0.5)
    x = {"left": samples((6,)), "right": samples((6,)) + 1}
    close(
        small({k: np.delete(v, 2, -1) for k, v in x.items()}),
        model({k: with_constants(v, 2, 0.5) for k, v in x.items()}),
    )
    with pytest.raises(UnsupportedModelError, match="different values for samples, positions or calls at 'tower'"):
        tfopt.drop_features(model, {"left": [2], "right": [2]}, fill={"left": 1.0, "right": np.zeros(6)})


def test_mixed_precision():
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = network("adapted")
    finally:
        keras.mixed_precision.set_dtype_policy(policy)
    x = samples(TABLE)
    close(tfopt.drop_features(model, [3])(np.delete(x, 3, -1)), model(with_constants(x, 3)), atol=5e-3)


@given(
    st.sets(st.integers(0, 5), min_size=1, max_size=5),
    st.lists(st.floats(-3, 3, width=32), min_size=6, max_size=6),
)
@settings(max_examples=10, deadline=None)
def test_any_features_and_any_constants(drop, fill):
    model, x = ADAPTED, samples(TABLE)
    drop = sorted(drop)
    small = tfopt.drop_features(model, drop, fill=fill)
    full = model(with_constants(x, drop, np.array(fill)[drop]))
    np.testing.assert_allclose(small(np.delete(x, drop, -1)), full, atol=2e-5)


ADAPTED = network("adapted")


def residual():
    x = keras.Input((6,), name="x")
    return keras.Model(x, kl.Dense(2)(x + kl.Dense(6, name="branch")(x)))


def sliced():
    x = keras.Input((6,), name="x")
    return keras.Model(x, kl.Dense(2)(x[:, ::4]))


def normalized():
    return keras.Sequential([keras.Input((6,), name="x"), kl.LayerNormalization(name="norm"), kl.Dense(2)])


def gives_its_input():
    x = keras.Input((6,), name="x")
    return keras.Model(x, [kl.Dense(2)(x), kl.Activation("relu")(x)])


def first_channels():
    return keras.Sequential([keras.Input((3, 5, 6), name="x"), kl.Permute((2, 3, 1)), kl.Conv2D(2, 3, name="conv")])


def open_width():
    pool = kl.GlobalMaxPooling1D(data_format="channels_first")
    return keras.Sequential([keras.Input((3, None)), pool, kl.Dense(2)])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (residual, "it is merged with what 'branch' gives"),
        (sliced, "channels are picked in steps"),
        (normalized, "read by 'norm': the normalization makes something else than zero of zeros"),
        (gives_its_input, "an output of the model keeps its shape"),
        (first_channels, "'conv' works along another axis"),
        (lambda: zoo.build("sequence"), "'embedding' reads them as indices"),
        (lambda: keras.Sequential([keras.Input((1,)), kl.Dense(2)]), "an input keeps at least one feature"),
        (open_width, "an input of the model keeps its shape"),
    ],
)
def test_reasons(model, reason):
    model = model()
    with pytest.raises(NothingToDoError, match="The model has to have a feature") as error:
        tfopt.rank_features(model, criterion="weights")
    assert reason in str(error.value)
    if model.input_shape[-1] not in (None, 1):
        with pytest.raises(UnsupportedModelError, match="feature 2 of input") as error:
            tfopt.drop_features(model, [2])
        assert reason in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, InvalidArgumentError, "Either `drop` or `keep` names features. Received: neither"),
        ({"drop": [1], "keep": [2]}, InvalidArgumentError, "Received: both"),
        ({"drop": []}, NothingToDoError, "At least one feature has to go"),
        ({"keep": range(6)}, NothingToDoError, "At least one feature has to go"),
        ({"drop": [6]}, InvalidArgumentError, "have the indices 0 to 5. Received: 6"),
        ({"drop": [-1]}, InvalidArgumentError, "have the indices 0 to 5. Received: -1"),
        ({"drop": [1, 2, 1]}, InvalidArgumentError, "names each feature once. Received: 1 more than once"),
        ({"drop": range(6)}, InvalidArgumentError, "keeps at least one feature. Received: none of 6 of input 'x'"),
        ({"keep": []}, InvalidArgumentError, "keeps at least one feature"),
        ({"drop": [0.5]}, InvalidArgumentError, r"whole numbers. Received: \[0.5\]"),
        ({"drop": [True, False]}, InvalidArgumentError, "whole numbers"),
        ({"drop": [[1], [2, 3]]}, InvalidArgumentError, "whole numbers. Received: list"),
        ({"drop": {"y": [1]}}, InvalidArgumentError, "names of inputs. Received: 'y'. The inputs are x."),
        ({"drop": [1], "fill": np.zeros(3)}, InvalidArgumentError, r"Received: shape \(3,\) of float64 for 6 features"),
        ({"drop": [1], "fill": "mean"}, InvalidArgumentError, "`fill` is a number, or has a value for each"),
        ({"drop": [1], "fill": {"y": 1.0}}, InvalidArgumentError, "`fill` are names of inputs"),
        ({"drop": [1], "fill": np.nan}, NonFiniteError, "`fill` has to be finite"),
    ],
)
def test_wrong_arguments_of_drop(options, error, message):
    with pytest.raises(error, match=message):
        tfopt.drop_features(ADAPTED, **options)


def test_wrong_models():
    with pytest.raises(InvalidArgumentError, match="`drop` is a dict .* The inputs are left, right"):
        tfopt.drop_features(two_inputs(), [1])
    whole = keras.Sequential([keras.Input((6,), dtype="int32", name="x"), kl.Dense(2)])
    with pytest.raises(InvalidArgumentError, match="whole numbers for input 'x' of int32"):
        tfopt.drop_features(whole, [1], fill=0.5)
    with pytest.raises(InvalidArgumentError, match="'taylor' needs a gradient"):
        tfopt.rank_features(whole, (np.ones((4, 6), int), np.ones((4, 2))), criterion="taylor")
    ranking = FeatureRanking("other", "weights", "sum", None, None, (("x", 9),), (Feature("x", 8, "8", 0.0),))
    with pytest.raises(InvalidArgumentError, match="indices 0 to 5. Received: 8. A ranking is of use for the model"):
        tfopt.drop_features(ADAPTED, ranking.lowest(1))
    with pytest.raises(InvalidArgumentError, match=r"Received: FeatureRanking. Of a ranking, pass `ranking.lowest"):
        tfopt.drop_features(ADAPTED, ranking)
    for verb in (tfopt.drop_features, tfopt.rank_features):
        with pytest.raises(UnsupportedModelError, match="takes the float model"):
            verb(tfopt.quantize(keras.Sequential([keras.Input((6,)), kl.Dense(2)])))
        with pytest.raises(UnsupportedModelError):
            verb("model")
    endless = network("dense")
    endless.layers[1].kernel.assign(np.full((6, 4), np.inf))
    with pytest.raises(NonFiniteError):
        tfopt.drop_features(endless, [1])


# Ranking.


@pytest.fixture(scope="module")
def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order].astype("float32"), y[order]


@pytest.fixture(scope="module")
def net(cancer):
    x, y = cancer[0][:300], cancer[1][:300]
    keras.utils.set_random_seed(1)
    scale = kl.Normalization(name="scale")
    scale.adapt(x)
    model = keras.Sequential([keras.Input((30,)), scale, kl.Dense(8, "relu"), kl.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy")
    model.fit(x, y, epochs=8, verbose=0)
    return model


@pytest.fixture(scope="module")
def ranking(net, cancer):
    names = load_breast_cancer().feature_names
    return tfopt.rank_features(net, (cancer[0][300:430], cancer[1][300:430]), names=names, repeats=3, seed=7)


def forward(model, x):
    """The network in numpy."""
    scale, hidden, head = model.layers
    z = (x - scale.adapt_mean.numpy()) / np.sqrt(scale.adapt_variance.numpy())
    h = np.maximum(z @ hidden.kernel.numpy() + hidden.bias.numpy(), 0)
    return 1 / (1 + np.exp(-(h @ head.kernel.numpy() + head.bias.numpy())[:, 0]))


def test_permutation_equals_numpy(net, cancer, ranking):
    x, y = cancer[0][300:430], cancer[1][300:430]
    generator = np.random.default_rng(7)
    orders = [generator.permutation(130) for _ in range(3)]
    baseline = np.mean((forward(net, x) > 0.5) == y)
    assert ranking.baseline == pytest.approx(baseline)
    means = []
    for index, feature in enumerate(ranking.features):
        drops = []
        for order in orders:
            shuffled = np.column_stack([x[order, i] if i == index else x[:, i] for i in range(30)])
            drops.append(baseline - np.mean((forward(net, shuffled) > 0.5) == y))
        assert (feature.index, feature.importance) == (index, pytest.approx(np.mean(drops), abs=1e-9))
        assert feature.std == pytest.approx(np.std(drops), abs=1e-9)
        means.append(np.mean(drops))
    assert max(means) > 0.01
    assert ranking.lowest(8) == sorted(np.argsort(np.round(means, 12), kind="stable")[:8].tolist())


def test_half_of_the_features_are_enough(net, cancer, ranking):
    x, y = cancer[0][430:], cancer[1][430:]
    fill = cancer[0][:300].mean(0)

    def accuracy(drop):
        small = tfopt.drop_features(net, drop, fill=fill)
        return np.mean((small.predict(np.delete(x, drop, -1), verbose=0)[:, 0] > 0.5) == y)

    full = np.mean((forward(net, x) > 0.5) == y)
    low, high = ranking.lowest(fraction=0.5), ranking.highest(fraction=0.5)
    assert sorted(low + high) == list(range(30))
    assert full > 0.93
    assert accuracy(low) >= full - 0.03
    assert accuracy(high) < accuracy(low)


def test_taylor_by_hand():
    model = keras.Sequential([keras.Input((4, 3), name="x"), kl.Flatten(), kl.Dense(1, name="d")])
    generator = np.random.default_rng(0)
    w = generator.normal(size=(12, 1))
    model.set_weights([w, np.array([0.3])])
    x, y = generator.normal(size=(10, 4, 3)), generator.normal(size=(10, 1))
    error = x.reshape(10, 12) @ w + 0.3 - y
    gradients = (2 * error * w.T).reshape(10, 4, 3)
    expected = np.abs((x * gradients).sum(1)).mean(0)
    for batch_size in (10, 4):
        found = tfopt.rank_features(model, (x, y), criterion="taylor", loss="mse", batch_size=batch_size)
        np.testing.assert_allclose([f.importance for f in found.features], expected, rtol=1e-4)
    assert (found.samples, found.baseline, found.features[0].std) == (10, None, None)
    expected = np.abs((x * np.sign(error)[..., None] * w.reshape(4, 3)).sum(1)).mean(0)
    model.compile(loss="mae")  # the loss it was compiled with
    found = tfopt.rank_features(model, (x, y), criterion="taylor")
    np.testing.assert_allclose([f.importance for f in found.features], expected, rtol=1e-4)


def test_weights_by_hand():
    model = network("bands")
    sums = np.abs(model.layers[2].kernel.numpy()).sum((0, 1, 3))
    found = tfopt.rank_features(model, criterion="weights")
    np.testing.assert_allclose([f.importance for f in found.features], sums, rtol=1e-5)
    assert found.lowest(2) == sorted(np.argsort(sums)[:2].tolist())
    model = two_inputs()
    a, b = (np.abs(model.get_layer(name).kernel.numpy()).sum(1) for name in "ab")
    found = tfopt.rank_features(model, criterion="weights", names={"left": list("uvwxyz")})
    expected = [*(a[:6] + a[6:12]), *(a[12:] + b)]
    np.testing.assert_allclose([f.importance for f in found.features], expected, rtol=1e-5)
    assert [f.name for f in found.features] == [*"uvwxyz", *"0123"]
    lowest = np.argsort(expected)[:4]
    by_input = {"left": lowest[lowest < 6], "right": lowest[lowest >= 6] - 6}
    assert found.lowest(4) == {name: sorted(rows.tolist()) for name, rows in by_input.items() if len(rows)}


def test_series_are_shuffled_as_a_whole_and_errors_rise():
    model, x = network("conv_same"), samples(SERIES, 20)
    y = np.random.default_rng(1).normal(size=(20, 2))
    found = tfopt.rank_features(model, (x, y), metric="mae", repeats=1, seed=3)
    order = np.random.default_rng(3).permutation(20)
    for feature in found.features:
        shuffled = x.copy()
        shuffled[..., feature.index] = x[order][..., feature.index]
        rise = np.abs(model(shuffled) - y).mean() - np.abs(model(x) - y).mean()
        assert feature.importance == pytest.approx(rise, abs=1e-6)
    assert found.unit == "rise of mae when shuffled"
    assert tfopt.rank_features(model, (x, y), repeats=1, seed=3) == found  # the standard score of a regression


def test_only_droppable_features_are_ranked():
    tokens, table = keras.Input((7,), dtype="int32", name="tokens"), keras.Input((3,), name="table")
    words = kl.GlobalAveragePooling1D()(kl.Embedding(9, 4, name="words")(tokens))
    model = keras.Model([tokens, table], kl.Dense(2)(kl.Concatenate()([words, table])))
    data = [np.ones((8, 7), "int32"), samples((3,), 8)], np.arange(8) % 2
    for criterion in ("weights", "taylor", "permutation"):
        found = tfopt.rank_features(model, data, criterion=criterion)
        assert [(f.input, f.index) for f in found.features] == [("table", i) for i in range(3)]
        assert found.inputs == (("tokens", 7), ("table", 3))
        assert "7 of 7 features of 'tokens': 'words' reads them as indices" in str(found)
    small = tfopt.drop_features(model, found.lowest(1))
    assert [t.shape for t in small.inputs] == [(None, 7), (None, 2)]
    assert tfopt.drop_features(model, keep=found.highest(2)).inputs[1].shape == (None, 2)


def test_the_ranking_prints_and_plots(ranking, tmp_path):
    text = str(ranking)
    rows = text.splitlines()
    assert rows[1].split() == ["feature", "importance", "std"]
    best = max(ranking.features, key=lambda f: f.importance)
    assert rows[3].startswith(best.name)
    assert f"{best.importance:.4g}" in rows[3]
    assert f"All features as they are: {ranking.baseline:.4f}. On 130 samples." in text
    assert "<svg" in ranking._repr_html_()
    assert "Lines: standard deviation" in ranking._repr_html_()
    (axes,) = ranking.plot().axes
    assert axes.get_yticklabels()[0].get_text() == best.name
    assert axes.patches[0].get_width() == best.importance
    assert json.loads(ranking.to_json())["features"][3]["name"] == "mean area"
    assert ranking.save(tmp_path / "features.html").read_text().count("<svg") == 1
    many = tuple(Feature("x", i, str(i), i / 7) for i in range(60))
    wide = FeatureRanking("net", "weights", "sum", None, None, (("x", 60), ("y", 1)), many)
    (axes,) = wide.plot().axes
    assert len(axes.patches) == 40
    assert not axes.collections  # no lines without repeats
    assert "standard deviation" not in wide._repr_html_()
    assert "the first 40 of 60 features" in axes.get_xlabel()
    assert str(wide).splitlines()[1].split() == ["input", "feature", "importance"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Either a number or `fraction`"),
        ({"number": 3, "fraction": 0.5}, "Either a number or `fraction`"),
        ({"number": 0}, "from 1 to 30. Received: 0"),
        ({"number": 31}, "from 1 to 30. Received: 31"),
        ({"number": 2.0}, "whole number"),
        ({"fraction": 1.0}, "above 0 and below 1"),
        ({"fraction": "half"}, "above 0 and below 1"),
    ],
)
def test_wrong_numbers(ranking, arguments, message):
    for method in (ranking.lowest, ranking.highest):
        with pytest.raises(InvalidArgumentError, match=message):
            method(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "random"}, "one of 'permutation', 'weights', 'taylor'. Received: 'random'"),
        ({"data": None}, "'permutation' is measured on data"),
        ({"data": None, "criterion": "taylor"}, "'taylor' is measured on data"),
        ({"data": np.zeros((4, 6))}, r"pair \(x, y\)"),
        ({"repeats": 0}, "`repeats` must be a whole number of at least 1"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0"),
        ({"batch_size": 0.5}, "`batch_size` must be a whole number of at least 1"),
        ({"names": ["a", "b"]}, "2 names for 6 features of input 'x'"),
        ({"names": {"y": list("abcdef")}}, "`names` are names of inputs"),
        ({"metric": "rmse"}, "has to suit the task"),
        ({"mode": "best"}, "`mode` must be one of"),
    ],
)
def test_wrong_arguments_of_rank(options, message):
    data = {"data": (np.random.default_rng(0).normal(size=(8, 6)), np.arange(8) % 2)}
    with pytest.raises(InvalidArgumentError, match=message):
        tfopt.rank_features(ADAPTED, **{**data, **options})


def test_several_outputs_need_a_metric():
    model = two_inputs()
    x = {"left": samples((6,)), "right": samples((4,))}
    y = {"a": np.zeros((5, 2)), "b": np.zeros((5, 3))}
    with pytest.raises(InvalidArgumentError, match="several outputs has no standard score"):
        tfopt.rank_features(model, (x, y))
    found = tfopt.rank_features(model, (x, y), metric=lambda y, p: float(np.mean(p["b"])), repeats=2)
    assert [f.importance for f in found.features[:6]] == [0.0] * 6
    assert all(f.importance != 0.0 for f in found.features[6:])
