"""Which blocks `prune_layers` drops, against scores worked out by hand."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt
from tfopt.core.models.macs import model_macs
from tfopt.editing.depth import drop_layers
from tfopt.pruning.depth import prune_layers


def stack(scales=(3.0, 1.0, 2.0, 4.0), width=6):
    """Residual blocks of two Dense layers each, with kernels of one value: the scale, once with a minus."""
    inputs = keras.Input((width,))
    x = kl.Dense(width, name="stem")(kl.Dense(9, name="wide")(inputs))
    for i, scale in enumerate(scales):
        y = kl.Dense(3, kernel_initializer=keras.initializers.Constant(scale), name=f"down{i}")(x)
        y = kl.Dense(width, kernel_initializer=keras.initializers.Constant(-scale), name=f"up{i}")(y)
        x = kl.Add(name=f"add{i}")([x, y])
    return keras.Model(inputs, kl.Dense(2, name="head")(x))


def blocks_of(model):
    return [layer.name for layer in model.layers if layer.name.startswith("add")]


@pytest.mark.parametrize(
    ("sparsity", "left"),
    [
        (None, ["add0", "add3"]),
        (0.25, ["add0", "add2", "add3"]),
        (0.1, ["add0", "add2", "add3"]),  # at least one
        (0.3, ["add0", "add2", "add3"]),
        (0.75, ["add3"]),
        (1, []),
    ],
)
def test_the_lowest_magnitudes_go_first(sparsity, left):
    model = stack()
    before = [weight.numpy().copy() for weight in model.weights]
    small = prune_layers(model, sparsity=sparsity)
    assert blocks_of(small) == left
    assert not [layer.name for layer in small.layers if layer.name[:4] == "down" and f"add{layer.name[4]}" not in left]
    np.testing.assert_array_equal(small.get_layer("head").kernel, model.get_layer("head").kernel)
    assert len(model.weights) == len(before)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_the_score_is_a_mean_over_weights_not_over_kernels():
    inputs = keras.Input((2,))
    x = inputs
    for i, (small, large) in enumerate([(1.0, 5.0), (3.5, 3.5)]):
        y = kl.Dense(10, kernel_initializer=keras.initializers.Constant(small), name=f"a{i}")(x)
        y = kl.Dense(30, kernel_initializer=keras.initializers.Constant(large), name=f"b{i}")(y)
        y = kl.Dense(2, kernel_initializer=keras.initializers.Constant(large), name=f"c{i}")(y)
        x = kl.Add(name=f"add{i}")([x, y])
    model = keras.Model(inputs, kl.Dense(2, name="head")(x))
    # (20 * 1 + 300 * 5 + 60 * 5) / 380 = 4.79 is above 3.5, the mean of kernels (1 + 5 + 5) / 3 = 3.67 too; so take
    # the weights of the large kernels down: (20 * 1 + 360 * 3.6) / 380 = 3.46 is below, (1 + 3.6 + 3.6) / 3 = 2.73.
    assert blocks_of(prune_layers(model, sparsity=0.5)) == ["add0"]
    for name, value in (("a0", 20.0), ("b0", 2.8), ("c0", 2.8)):  # (20 * 20 + 360 * 2.8) / 380 = 3.71, mean 8.53
        kernel = model.get_layer(name).kernel
        kernel.assign(np.full(kernel.shape, value))
    assert blocks_of(prune_layers(model, sparsity=0.5)) == ["add0"]
    for name in ("b0", "c0"):  # (20 * 20 + 360 * 2) / 380 = 2.95, mean of kernels (20 + 2 + 2) / 3 = 8
        kernel = model.get_layer(name).kernel
        kernel.assign(np.full(kernel.shape, 2.0))
    assert blocks_of(prune_layers(model, sparsity=0.5)) == ["add1"]


def test_own_criterion():
    assert blocks_of(prune_layers(stack(), criterion=lambda weights: -np.abs(weights))) == ["add1", "add2"]


def test_include_and_exclude_reach_blocks_by_their_layers():
    assert blocks_of(prune_layers(stack(), sparsity=1.0, include="add[03]")) == ["add1", "add2"]
    assert blocks_of(prune_layers(stack(), sparsity=1.0, include="up3")) == ["add0", "add1", "add2"]
    assert blocks_of(prune_layers(stack(), sparsity=0.3, exclude="down1")) == ["add0", "add1", "add3"]
    with pytest.raises(tfopt.NothingToDoError, match="There are: add0, add1, add2, add3"):
        prune_layers(stack(), include="head")
    with pytest.raises(tfopt.InvalidArgumentError, match="`exclude`.*'add7'"):
        prune_layers(stack(), exclude="add7")


BLOCK_PARAMETERS, REST_PARAMETERS = 6 * 3 + 3 + 3 * 6 + 6, (6 * 9 + 9) + (9 * 6 + 6) + (6 * 2 + 2)
BLOCK_MACS, REST_MACS = 6 * 3 + 3 * 6, 6 * 9 + 9 * 6 + 6 * 2


@pytest.mark.parametrize("blocks_left", [3, 2, 1, 0])
@pytest.mark.parametrize("argument", ["to_macs", "to_params"])
def test_down_to_a_fraction(argument, blocks_left):
    block, rest = (BLOCK_MACS, REST_MACS) if argument == "to_macs" else (BLOCK_PARAMETERS, REST_PARAMETERS)
    total = rest + 4 * block
    exact = (rest + blocks_left * block) / total
    small = prune_layers(stack(), **{argument: exact + 0.001})
    assert len(blocks_of(small)) == blocks_left
    size = sum(model_macs(small).values()) if argument == "to_macs" else small.count_params()
    assert size == rest + blocks_left * block
    if blocks_left:
        assert len(blocks_of(prune_layers(stack(), **{argument: exact - 0.001}))) == blocks_left - 1
    else:
        least = f"{np.ceil(exact * 1e4) / 1e4}"
        with pytest.raises(tfopt.InvalidArgumentError, match=f"{least} is left without all 4.*Ask for {least} or more"):
            prune_layers(stack(), **{argument: exact - 0.001})
        assert blocks_of(prune_layers(stack(), **{argument: float(least)})) == []


def test_macs_that_are_not_known():
    inputs = keras.Input((None, 4))
    x = kl.Add(name="add")([inputs, kl.Conv1D(4, 1, name="conv")(inputs)])
    model = keras.Model(inputs, kl.Conv1D(2, 1, name="head")(x))
    with pytest.raises(tfopt.InvalidArgumentError, match="no count for conv, head.*to_params"):
        prune_layers(model, to_macs=0.9)
    assert [layer.name for layer in prune_layers(model, to_params=0.9).layers[1:]] == ["head"]


def influence_model():
    """Three residual blocks whose branches give 0.1 x, a rotation by 90 degrees, and twice the rotation."""
    inputs = x = keras.Input((2,))
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]], "float32")
    for name, kernel in (("turn", turn), ("scale", 0.1 * np.eye(2, dtype="float32")), ("far", 2 * turn)):
        layer = kl.Dense(2, use_bias=False, name=f"{name}_dense")
        x = kl.Add(name=f"add_{name}")([layer(x), x])
        layer.set_weights([kernel])
    return keras.Model(inputs, kl.Dense(1, name="head")(x))


def test_block_influence(capsys):
    """x against x + R x and x + 2 R x: cosines 1 / sqrt(2) and 1 / sqrt(5); against 1.1 x: 1."""
    x = np.random.default_rng(0).normal(size=(70, 2)).astype("float32")
    small = prune_layers(influence_model(), sparsity=1.0, criterion="block_influence", data=x, verbose=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Dropped 3 of 3 blocks:"
    assert [line.split()[0] for line in lines[1:]] == ["add_scale", "add_turn", "add_far"]
    scores = [float(line.split("score ")[1].split(",")[0]) for line in lines[1:]]
    np.testing.assert_allclose(scores, [0, 1 - 1 / np.sqrt(2), 1 - 1 / np.sqrt(5)], atol=1e-4)
    assert lines[1].endswith("4 parameters, 4 MACs")
    assert blocks_of(small) == []


def test_block_influence_in_nested_models_counts_each_call():
    """A nested block called on x and then on tanh of what it gives: per-sample cosines by numpy."""
    inner = keras.Input((3, 4), name="inner")
    block = keras.Model(inner, kl.Add(name="sum")([inner, kl.Dense(4, name="d")(inner)]), name="block")
    inputs = keras.Input((3, 4))
    x = block(kl.Activation("tanh", name="tanh")(block(inputs)))
    x = kl.Add(name="other")([x, kl.Dense(4, kernel_initializer="orthogonal", name="e")(x)])
    model = keras.Model(inputs, kl.Dense(1, name="head")(x))
    data = np.random.default_rng(0).normal(size=(5, 3, 4)).astype("float32")

    def cosines(a, b):
        return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))

    d, e = model.get_layer("block").get_layer("d").get_weights()[0], model.get_layer("e").get_weights()[0]
    first = data + data @ d
    middle = np.tanh(first)
    second = middle + middle @ d
    last = second + second @ e
    inside = 1 - np.concatenate([cosines(data, first), cosines(middle, second)]).mean()
    outside = 1 - cosines(second, last).mean()
    small = prune_layers(model, sparsity=0.5, criterion="block_influence", data=data)
    gone = "block" if inside < outside else "e"
    assert abs(inside - outside) > 1e-3
    assert gone not in [layer.name for layer in small.layers]
    assert len(small.layers) == len(model.layers) - (1 if gone == "block" else 2)


def test_block_influence_needs_data():
    with pytest.raises(tfopt.InvalidArgumentError, match="'block_influence' is measured on data.*data=x"):
        prune_layers(influence_model(), criterion="block_influence")


def test_a_chain_of_layers_and_saving(tmp_path):
    init = keras.initializers.Constant
    hidden = [kl.Dense(4, activation="relu", kernel_initializer=init(c), name=f"d{i}") for i, c in enumerate((2, 1, 3))]
    model = keras.Sequential([keras.Input((4,)), *hidden, kl.Dense(2, name="head")])
    small = prune_layers(model, sparsity=0.6)
    assert [layer.name for layer in small.layers] == ["d2", "head"]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    (k2, b2), (kh, bh) = model.get_layer("d2").get_weights(), model.get_layer("head").get_weights()
    want = np.maximum(x @ k2 + b2, 0) @ kh + bh
    small.save(tmp_path / "small.keras")
    for version in (small, keras.models.load_model(tmp_path / "small.keras")):
        np.testing.assert_allclose(version(x), want, atol=1e-5)


def test_names_printed_reproduce_the_result(capsys):
    model = stack()
    small = prune_layers(model, verbose=1)
    dropped = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert dropped == ["add1", "add2"]
    again = drop_layers(model, dropped)
    assert [layer.name for layer in again.layers] == [layer.name for layer in small.layers]


def test_masks_are_carried():
    pruned = tfopt.prune(stack(), sparsity=0.5)
    small = prune_layers(pruned, sparsity=0.5)
    assert float(np.mean(small.get_layer("up0").kernel.numpy() == 0)) == 0.5
    assert small.get_layer("up0").kernel.constraint is not None


def test_no_candidate_says_why_by_kind():
    inputs = keras.Input((4,))
    left, right = kl.Dense(5, name="left")(inputs), kl.Dense(5, name="right")(inputs)
    x = kl.Add(name="sum")([left, right])
    model = keras.Model(inputs, kl.Dense(5, name="head")(x))
    with pytest.raises(tfopt.NothingToDoError) as error:
        prune_layers(model)
    assert (
        "residual: 'sum': none of its operands is the input of the others; "
        "layer: 'left': it turns float32 (4,) into float32 (5,) (and 1 more); 'head': it gives an output of the model; "
        "model: there is none"
    ) in str(error.value)
    assert "drop_layers" in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 0.0}, "above 0 and at most 1. Received: 0.0"),
        ({"sparsity": 1.5}, "at most 1"),
        ({"sparsity": True}, "Received: True"),
        ({"sparsity": "keep"}, "Received: 'keep'"),
        ({"to_macs": 1.0}, "`to_macs` must be the fraction that is left, above 0 and below 1"),
        ({"to_params": 0}, "`to_params` must be the fraction that is left"),
        ({"to_params": 0.5, "sparsity": 0.5}, "exclude each other.*sparsity=0.5, to_params=0.5"),
        ({"criterion": "loudness"}, "`criterion` must be one of"),
    ],
    ids=str,
)
def test_bad_arguments(options, says):
    with pytest.raises(tfopt.InvalidArgumentError, match=says):
        prune_layers(stack(), **options)


def test_weights_have_to_be_finite():
    model = stack()
    model.get_layer("head").bias.assign([np.nan, 0.0])
    with pytest.raises(tfopt.NonFiniteError, match="head"):
        prune_layers(model)
