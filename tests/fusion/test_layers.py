"""Each fusion layer against numpy, its votes against scikit-learn, and what becomes of it in other techniques."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

import tfopt
from tfopt.core.models.graph import walk_layers
from tfopt.core.models.macs import model_macs
from tfopt.core.models.opening import opened
from tfopt.fusion import GatedFusion, ParallelFusion, SerialFusion, StackedFusion, VotingFusion
from tfopt.fusion.combine import whole_numbers

RNG = np.random.default_rng(0)
BRANCHES = [RNG.normal(size=(6, 4)).astype("float32") for _ in range(3)]
MAPS = [RNG.normal(size=(2, 4, 4, 3)).astype("float32") for _ in range(2)]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


PROBABILITIES = [softmax(3 * x) for x in BRANCHES]


def run(layer, branches):
    return np.asarray(layer(branches))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("how", "oracle"),
    [
        ("mean", lambda b: np.mean(b, 0)),
        ("weighted", lambda b: np.mean(b, 0)),
        ("max", lambda b: np.max(b, 0)),
        ("concat", lambda b: np.concatenate(b, -1)),
    ],
)
@pytest.mark.parametrize("branches", [BRANCHES, MAPS + MAPS[:1]], ids=["vectors", "maps"])
def test_parallel_is_numpys(how, oracle, branches, count):
    np.testing.assert_allclose(run(ParallelFusion(how), branches[:count]), oracle(branches[:count]), rtol=1e-6)


@given(st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(any))
@settings(deadline=None, max_examples=20)
def test_weighted_sum_is_numpys(parts):
    weights = np.array(parts) / sum(parts)
    expected = np.tensordot(weights, np.array(BRANCHES), 1)
    np.testing.assert_allclose(run(ParallelFusion("weighted", weights.tolist()), BRANCHES), expected, atol=1e-6)


def test_product_of_probabilities_is_normalised():
    product = np.prod(np.array(PROBABILITIES, "float64"), 0)
    expected = product / product.sum(-1, keepdims=True)
    np.testing.assert_allclose(run(ParallelFusion("product"), PROBABILITIES), expected, rtol=1e-4)
    logits = [3 * x for x in BRANCHES]
    np.testing.assert_allclose(run(ParallelFusion("product", from_logits=True), logits), expected, rtol=1e-4)


def test_product_does_not_underflow_where_the_plain_product_does():
    certain = np.tile(softmax(np.array([[0.0, -12.0, -12.1]])), (1, 1)).astype("float32")
    got = run(ParallelFusion("product"), [certain] * 20)
    assert float(np.prod([certain[0, 1].item()] * 20)) < 1e-45
    np.testing.assert_allclose(got, [[1.0, 0.0, 0.0]], atol=1e-6)


def test_product_in_half_precision_is_finite():
    certain = [np.array([[1.0, 0.0]], "float16"), np.array([[0.0, 1.0]], "float16")]
    got = run(ParallelFusion("product", dtype="float16"), certain)
    np.testing.assert_allclose(got, [[0.5, 0.5]], atol=1e-2)


@pytest.mark.parametrize("shape", [(6, 4), (6, 1)])
def test_product_of_independent_probabilities(shape):
    logits = [RNG.normal(size=shape).astype("float32") for _ in range(3)]
    p = [sigmoid(x) for x in logits]
    yes, no = np.prod(p, 0), np.prod([1 - x for x in p], 0)
    alone = shape[-1] == 1  # is taken so without being asked
    for given_, from_logits in ((p, False), (logits, True)):
        layer = ParallelFusion("product", multi_label=not alone, from_logits=from_logits)
        np.testing.assert_allclose(run(layer, given_), yes / (yes + no), rtol=1e-4)


def descend(model, x, y, steps, rate):
    """Trains by full-batch gradients; gives the mean squared errors before and after."""
    losses = []
    for _ in range(steps):
        with tf.GradientTape() as tape:
            losses.append(tf.reduce_mean(tf.square(model(x) - y)))
        for weight, slope in zip(
            model.trainable_weights,
            tape.gradient(losses[-1], [weight.value for weight in model.trainable_weights]),
            strict=True,
        ):
            weight.assign_sub(rate * slope)
    return float(losses[0]), float(losses[-1])


def test_learned_weights_are_a_softmax_and_learn_the_better_branch():
    inputs = [keras.Input((4,)) for _ in range(2)]
    layer = ParallelFusion("weighted", weights="learned")
    model = keras.Model(inputs, layer(inputs))
    assert layer.branch_weights == (0.5, 0.5)
    descend(model, BRANCHES[:2], BRANCHES[1], steps=40, rate=2.0)
    first, second = layer.branch_weights
    assert first + second == pytest.approx(1)
    assert second > 0.9
    np.testing.assert_allclose(
        np.asarray(model(BRANCHES[:2])), first * BRANCHES[0] + second * BRANCHES[1], rtol=1e-4, atol=1e-5
    )


def test_grids_are_pooled_to_the_smallest():
    large, small = RNG.normal(size=(2, 6, 4, 3)).astype("float32"), RNG.normal(size=(2, 3, 2, 3)).astype("float32")
    pooled = large.reshape(2, 3, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(run(ParallelFusion("mean"), [large, small]), (pooled + small) / 2, atol=1e-6)
    np.testing.assert_allclose(
        run(ParallelFusion("concat"), [small, large]), np.concatenate([small, pooled], -1), atol=1e-6
    )
    sequences = RNG.normal(size=(2, 6, 3)), RNG.normal(size=(2, 3, 3))
    expected = np.maximum(sequences[0].reshape(2, 3, 2, 3).mean(2), sequences[1])
    np.testing.assert_allclose(run(ParallelFusion("max"), list(sequences)), expected, atol=1e-6)


def test_widths_are_projected_to_the_first_when_asked():
    wide = RNG.normal(size=(6, 7)).astype("float32")
    layer = ParallelFusion("mean", project=True)
    got = run(layer, [BRANCHES[0], wide])
    kernel = layer.projections["1"].kernel.numpy()
    assert kernel.shape == (7, 4)
    np.testing.assert_allclose(got, (BRANCHES[0] + wide @ kernel) / 2, atol=1e-5)


@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.2]])
def test_soft_votes(weights):
    expected = np.average(PROBABILITIES, 0, weights)
    np.testing.assert_allclose(run(VotingFusion("soft", weights), PROBABILITIES), expected, atol=1e-6)
    logits = [3 * x for x in BRANCHES]
    np.testing.assert_allclose(run(VotingFusion("soft", weights, from_logits=True), logits), expected, atol=1e-6)


def one_hot(*classes):
    return [np.eye(4, dtype="float32")[[k]] for k in classes]


def test_ties_go_to_the_lowest_class():
    assert run(VotingFusion("hard"), one_hot(3, 1, 2)).argmax(-1).tolist() == [1]
    assert run(VotingFusion("hard"), one_hot(3, 3, 2, 2)).argmax(-1).tolist() == [2]
    # 0.3 against 0.1 + 0.2, which is more in floating point
    votes = run(VotingFusion("hard", [0.3, 0.1, 0.2, 0.4]), one_hot(0, 2, 2, 1))
    assert votes[0, 0] == votes[0, 2]
    within = np.array([[0.2, 0.4, 0.4, 0.0]], "float32")
    np.testing.assert_array_equal(run(VotingFusion("hard"), [within, within]), [[0, 1, 0, 0]])


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6))
@settings(deadline=None, max_examples=50)
def test_votes_are_counted_in_the_ratio_of_the_weights(parts):
    counted = whole_numbers([part / sum(parts) for part in parts])
    assert [a * parts[0] for a in counted] == [part * counted[0] for part in parts]


def test_hard_votes_of_independent_labels():
    p = [np.array([[0.9, 0.2]], "float32"), np.array([[0.6, 0.5]], "float32"), np.array([[0.4, 0.1]], "float32")]
    np.testing.assert_allclose(run(VotingFusion("hard", multi_label=True), p), [[2 / 3, 0]], atol=1e-6)
    logits = [np.array([[1.0]]), np.array([[-1.0]])]
    np.testing.assert_allclose(run(VotingFusion("hard", [0.75, 0.25], from_logits=True), logits), [[0.75]])


@pytest.fixture(scope="module")
def digits():
    sklearn = pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.tree import DecisionTreeClassifier

    assert sklearn
    x, y = load_digits(return_X_y=True)
    named = [
        ("tree", DecisionTreeClassifier(max_depth=5, random_state=0)),
        ("bayes", GaussianNB()),
        ("neighbours", KNeighborsClassifier(20)),
        ("stump", DecisionTreeClassifier(max_depth=3, random_state=1)),
    ]
    return x[:600], y[:600], x[600:], named


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.3, 0.4], [0.4, 0.2, 0.2, 0.2]])
def test_votes_are_scikit_learns(digits, kind, weights):
    from sklearn.ensemble import VotingClassifier

    x, y, held_back, named = digits
    oracle = VotingClassifier(named, voting=kind, weights=weights).fit(x, y)
    predicted = [model.predict_proba(held_back).astype("float32") for model in oracle.estimators_]
    votes = run(VotingFusion(kind, weights), predicted)
    assert np.mean(votes.argmax(-1) == oracle.predict(held_back)) == 1
    if kind == "soft":
        np.testing.assert_allclose(votes, oracle.predict_proba(held_back), atol=1e-6)
    else:
        labels = oracle.transform(held_back)
        shares = np.stack([np.average(labels == k, 1, weights) for k in range(10)], 1)
        np.testing.assert_allclose(votes, shares, atol=1e-6)


@pytest.mark.parametrize("maps", [False, True])
def test_gate_is_numpys(maps):
    branches = MAPS if maps else BRANCHES
    layer = GatedFusion()
    layer(branches)
    layer.gate.kernel.assign(RNG.normal(size=layer.gate.kernel.shape))
    seen = np.concatenate([x.mean((1, 2)) if maps else x for x in branches], -1)
    weights = softmax(seen @ layer.gate.kernel.numpy() + layer.gate.bias.numpy())
    expected = sum(weights[:, i].reshape(-1, *[1] * (x.ndim - 1)) * x for i, x in enumerate(branches))
    np.testing.assert_allclose(run(layer, branches), expected, atol=1e-5)


def test_gate_learns_which_branch_to_trust():
    x = RNG.normal(size=(256, 4)).astype("float32")
    side = np.where(x[:, :1] > 0, 1, -1).astype("float32")  # which branch is right; both give it, beside their answer
    branches = [np.concatenate([np.where(side == which, x, -x), side], -1) for which in (1, -1)]
    inputs = [keras.Input((5,)) for _ in range(2)]
    model = keras.Model(inputs, GatedFusion()(inputs))
    before, after = descend(model, branches, np.concatenate([x, side], -1), steps=60, rate=2.0)
    assert after < 0.1 * before


def test_stacked_default_head_is_numpys():
    layer = StackedFusion()
    got = run(layer, BRANCHES)
    hidden, outputs = layer.meta
    assert (hidden.units, outputs.units) == (64, 4)
    inner = np.maximum(np.concatenate(BRANCHES, -1) @ hidden.kernel.numpy() + hidden.bias.numpy(), 0)
    np.testing.assert_allclose(got, inner @ outputs.kernel.numpy() + outputs.bias.numpy(), atol=1e-5)


def test_stacked_flattens_branches_of_any_shape():
    layer = StackedFusion(kl.Dense(5, use_bias=False))
    got = run(layer, [MAPS[0], BRANCHES[0][:2]])
    joined = np.concatenate([MAPS[0].reshape(2, -1), BRANCHES[0][:2]], -1)
    np.testing.assert_allclose(got, joined @ layer.meta[0].kernel.numpy(), atol=1e-5)


def test_serial_chain_projects_where_shapes_differ():
    second = keras.Sequential([keras.Input((6,)), kl.Dense(2, use_bias=False)])
    first = kl.Dense(3, use_bias=False)
    layer = SerialFusion([first, second])
    got = np.asarray(layer(BRANCHES[0]))
    (projection,) = layer.adapters["1"]
    middle = BRANCHES[0] @ first.kernel.numpy() @ projection.kernel.numpy()
    np.testing.assert_allclose(got, middle @ second.layers[0].kernel.numpy(), atol=1e-5)


def test_serial_concat_reads_the_input_again():
    first, second = kl.Dense(3, use_bias=False), kl.Dense(2, use_bias=False)
    got = np.asarray(SerialFusion([first, second], how="concat")(BRANCHES[0]))
    both = np.concatenate([BRANCHES[0], BRANCHES[0] @ first.kernel.numpy()], -1)
    np.testing.assert_allclose(got, both @ second.kernel.numpy(), atol=1e-5)


def test_serial_concat_repeats_a_vector_over_the_map():
    first = keras.Sequential([keras.Input((4, 4, 3)), kl.GlobalAveragePooling2D()])
    second = kl.Conv2D(2, 1, use_bias=False)
    got = np.asarray(SerialFusion([first, second], how="concat")(MAPS[0]))
    repeated = np.broadcast_to(MAPS[0].mean((1, 2), keepdims=True), MAPS[0].shape)
    expected = np.concatenate([MAPS[0], repeated], -1) @ second.kernel.numpy()[0, 0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def classifier(name):
    layers = [keras.Input((4, 4, 3)), kl.Conv2D(4, 3, activation="relu"), kl.Flatten(), kl.Dense(5, "softmax")]
    return keras.Sequential(layers, name=name)


def branched(layer, activation=None):
    """A model with three branches that end in the layer."""
    inputs = keras.Input((12,))
    hidden = [kl.Dense(16, "relu", name=f"hidden_{i}")(inputs) for i in range(3)]
    outputs = [kl.Dense(5, activation, name=f"branch_{i}")(x) for i, x in enumerate(hidden)]
    return keras.Model(inputs, layer(outputs))


def of_maps(layer):
    """Two convolutional branches of different grids that meet in the layer."""
    inputs = keras.Input((4, 4, 3))
    x = layer([kl.Conv2D(4, 3, s, "same", activation="relu", name=f"conv_{s}")(inputs) for s in (1, 2)])
    x = kl.GlobalAveragePooling2D()(x) if len(x.shape) > 2 else x
    return keras.Model(inputs, kl.Dense(5, name="end")(x))


def in_series(how):
    inputs = keras.Input((4, 4, 3))
    return keras.Model(inputs, SerialFusion([classifier("a"), classifier("b")], how)(inputs))


MODELS = {
    "mean": lambda: branched(ParallelFusion()),
    "weighted": lambda: branched(ParallelFusion("weighted", [0.5, 0.5, 0.0])),
    "learned": lambda: branched(ParallelFusion("weighted", "learned")),
    "max": lambda: branched(ParallelFusion("max")),
    "product": lambda: branched(ParallelFusion("product", from_logits=True)),
    "concat": lambda: branched(ParallelFusion("concat")),
    "soft": lambda: branched(VotingFusion(), "softmax"),
    "hard": lambda: branched(VotingFusion("hard", [0.5, 0.25, 0.25]), "softmax"),
    "labels": lambda: branched(VotingFusion("hard", multi_label=True), "sigmoid"),
    "gated": lambda: branched(GatedFusion()),
    "stacked": lambda: branched(StackedFusion()),
    "maps": lambda: of_maps(ParallelFusion()),
    "maps beside": lambda: of_maps(ParallelFusion("concat")),
    "maps gated": lambda: of_maps(GatedFusion()),
    "maps stacked": lambda: of_maps(StackedFusion(outputs=6)),
    "chain": lambda: in_series("chain"),
    "chain concat": lambda: in_series("concat"),
}


def built(name):
    model = MODELS[name]()
    generator = np.random.default_rng(1)
    for weight in model.trainable_weights:
        if len(weight.shape) == 1:
            weight.assign(generator.normal(0, 0.3, weight.shape))
    x = generator.normal(size=(64, *model.inputs[0].shape[1:])).astype("float32")
    return model, x, np.asarray(model(x))


@pytest.mark.parametrize("name", MODELS)
def test_saved_loaded_opened(name, tmp_path):
    model, x, expected = built(name)
    unchanged = [weight.numpy().copy() for weight in model.weights]
    inside = opened(model)
    np.testing.assert_allclose(np.asarray(inside(x)), expected, atol=1e-6)
    assert sum(model_macs(inside).values()) == sum(model_macs(model).values())
    assert not [layer for _, layer in walk_layers(inside) if type(layer).__module__.startswith("tfopt.fusion")]
    for number, saved in enumerate([model, inside] if name in ("learned", "hard", "maps gated") else [model]):
        saved.save(tmp_path / f"{number}.keras")
        loaded = keras.saving.load_model(tmp_path / f"{number}.keras")
        np.testing.assert_allclose(np.asarray(loaded(x)), expected, atol=1e-6)
    for weight, before in zip(model.weights, unchanged, strict=True):
        np.testing.assert_array_equal(weight.numpy(), before)


# What a quarter of a step in a vote or a class does to hard votes is up to the votes, not to the arithmetic.
TOLERANCE = {"hard": 1.0, "labels": 1.0}


@pytest.mark.parametrize("name", ["mean", "learned", "concat", "hard", "labels", "gated", "maps", "chain concat"])
def test_runs_as_integers(name, tmp_path):
    model, x, expected = built(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="These layers stay float")
        quantized = tfopt.quantize(model)
    tfopt.export_tflite(tfopt.calibrate(quantized, x), tmp_path / "model.tflite")
    file = tfopt.TFLiteModel(tmp_path / "model.tflite")
    assert file.float_compute_ops() == ()
    got = file.predict(x)
    error = np.abs(got - expected).max() / np.ptp(expected)
    assert error < TOLERANCE.get(name, 0.05)
    if name in TOLERANCE:
        assert np.mean(np.abs(got - expected) < 0.01) > 0.9


@pytest.mark.parametrize("name", ["learned", "concat", "gated", "maps", "maps stacked", "chain"])
def test_channels_are_pruned_through_the_layer(name):
    model, x, _ = built(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked = tfopt.prune(model, pattern="channel", sparsity=0.5)
        small = tfopt.shrink(masked)
    assert small.count_params() < 0.75 * model.count_params()
    np.testing.assert_allclose(np.asarray(small(x)), np.asarray(masked(x)), atol=1e-5)


def test_kernels_inside_are_pruned_and_the_layer_stays():
    model, x, _ = built("stacked")
    pruned = tfopt.prune(model, sparsity=0.8)
    layer = next(layer for layer in pruned.layers if isinstance(layer, StackedFusion))
    assert [int((part.kernel.numpy() == 0).sum()) for part in layer.meta] == [768, 256]
    assert np.isfinite(np.asarray(pruned(x))).all()


def test_mixed_precision():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model, x, got = built("gated")
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert got.dtype == "float16"
    plain, _, _ = built("gated")
    plain.set_weights(model.get_weights())
    np.testing.assert_allclose(got, np.asarray(plain(x)), atol=2e-2)
    np.testing.assert_allclose(np.asarray(opened(model)(x)), got, atol=2e-2)


BAD_OPTIONS = [
    (lambda: ParallelFusion("average"), "`how` must be"),
    (lambda: ParallelFusion("mean", [0.5, 0.5]), "go with"),
    (lambda: ParallelFusion("mean", from_logits=True), "go with how='product'"),
    (lambda: ParallelFusion("weighted", [0.5, 0.6]), "sum to 1"),
    (lambda: ParallelFusion("weighted", [-0.5, 1.5]), "at least 0"),
    (lambda: ParallelFusion("weighted", [np.nan, 1.0]), "at least 0"),
    (lambda: ParallelFusion("weighted", [[0.5], [0.5]]), "one a branch"),
    (lambda: ParallelFusion("weighted", []), "one a branch"),
    (lambda: ParallelFusion("weighted", "trained"), "'learned'"),
    (lambda: VotingFusion("weak"), "`kind` must be"),
    (lambda: VotingFusion("soft", "learned"), "given weights"),
    (lambda: StackedFusion(lambda x: x), "`meta` is"),
    (lambda: StackedFusion(kl.Dense(3), outputs=3), "default head"),
    (lambda: SerialFusion([]), "at least one"),
    (lambda: SerialFusion([kl.Dense(2)], how="sum"), "`how` must be"),
    (lambda: SerialFusion([kl.Dense(2, name="a"), kl.Dense(2, name="a")]), "names of their own"),
    (lambda: ParallelFusion("weighted", [0.5, 0.5])(BRANCHES), "2 weights, 3 branches"),
    (lambda: VotingFusion("hard", [0.5, 0.5])(BRANCHES), "2 weights, 3 branches"),
    (lambda: ParallelFusion()(BRANCHES[0]), "list of tensors"),
    (lambda: ParallelFusion()([]), "list of tensors"),
    (lambda: ParallelFusion()([BRANCHES[0], BRANCHES[1][:, :3]]), "the same width"),
    (lambda: GatedFusion()([BRANCHES[0], BRANCHES[1][:, :3]]), "the same width"),
    (lambda: VotingFusion()([BRANCHES[0], BRANCHES[1][:, :3]]), "same classes"),
    (lambda: VotingFusion()([MAPS[0], MAPS[1][:, :2]]), "same shape"),
    (lambda: ParallelFusion()([MAPS[0], BRANCHES[0]]), "as many axes"),
    (lambda: ParallelFusion("concat")([MAPS[0], MAPS[1][:, :3]]), "whole multiples"),
    (lambda: StackedFusion()([MAPS[0], BRANCHES[0][:2]]), "Pass `outputs`"),
    (lambda: StackedFusion()([keras.Input((None, 3)), keras.Input((4, 3))]), "defined shapes"),
    (lambda: ParallelFusion()([keras.Input((None, 3)), keras.Input((4, 3))]), "whole multiples"),
]


@pytest.mark.parametrize(("make", "message"), BAD_OPTIONS, ids=[message for _, message in BAD_OPTIONS])
def test_bad_input(make, message):
    with pytest.raises(tfopt.InvalidArgumentError, match=message):
        make()
