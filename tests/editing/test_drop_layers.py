"""`drop_layers` against models built by hand without these layers."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl

import tfopt
from tfopt import InvalidArgumentError, drop_layers


def bottleneck(blocks=(1, 2)):
    """A stem and residual blocks of which each but the first ends in an activation behind the addition."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = kl.ReLU(name="stem_relu")(kl.Conv2D(8, 3, padding="same", name="stem")(inputs))
    for i in blocks:
        y = kl.Conv2D(4, 1, name=f"b{i}_down")(x)
        y = kl.Dropout(0.3, name=f"b{i}_dropout")(kl.Conv2D(4, 3, padding="same", name=f"b{i}_conv")(y))
        y = kl.BatchNormalization(name=f"b{i}_bn")(kl.Conv2D(8, 1, name=f"b{i}_up")(y))
        x = kl.ReLU(name=f"b{i}_relu")(kl.Add(name=f"b{i}_add")([y, x]))
    x = kl.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, kl.Dense(3, name="head")(x), name="bottleneck")


def trained(model):
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(generator.uniform(0.1, 0.6, weight.shape) - (0.3 if len(weight.shape) > 1 else 0))
    return model


def run(model, x):
    """Outputs in inference mode; faster than `predict` for a model that runs once."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(x, training=False))


X = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")


def names(model):
    return [layer.name for layer in model.layers if not isinstance(layer, kl.InputLayer)]


@pytest.mark.parametrize("asked", ["b2_add", ["b2_*"], ["b2_add", "b2_conv", "b2_relu"]], ids=str)
def test_a_residual_block_goes(asked):
    model = trained(bottleneck())
    before = zoo.state(model)
    small = drop_layers(model, asked)
    want = bottleneck(blocks=(1,))
    for layer in want.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    # the activation behind the addition stays unless it is named; a second ReLU changes nothing
    assert set(names(small)) - set(names(want)) == ({"b2_relu"} if asked == "b2_add" else set())
    np.testing.assert_array_equal(run(small, X), run(want, X))
    assert (small.name, small.compiled) == ("bottleneck", False)
    for kept, now in zip(before, zoo.state(model), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_a_branch_that_gives_zero_is_not_missed():
    model = trained(bottleneck())
    norm = model.get_layer("b1_bn")
    norm.gamma.assign(np.zeros(8))
    norm.beta.assign(np.zeros(8))
    small = drop_layers(model, "b1_add")
    assert small.count_params() < model.count_params()
    np.testing.assert_allclose(run(small, X), run(model, X), atol=1e-6)


def test_single_layers_go_by_name():
    model = trained(bottleneck(blocks=(1,)))
    assert names(drop_layers(model, "b1_dropout")) == [n for n in names(model) if n != "b1_dropout"]
    # a layer with a kernel goes with what is attached to it
    assert names(drop_layers(model, "b1_conv")) == [n for n in names(model) if n not in ("b1_conv", "b1_dropout")]
    norm = model.get_layer("b1_bn")
    norm.set_weights([np.full(8, np.sqrt(1 + norm.epsilon)), np.zeros(8), np.zeros(8), np.ones(8)])
    np.testing.assert_allclose(run(drop_layers(model, "b1_bn"), X), run(model, X), atol=1e-5)


def test_a_layer_goes_at_all_its_calls():
    inputs = keras.Input((4,))
    act = kl.Activation("tanh", name="act")
    x = act(kl.Dense(4, name="a")(inputs))
    model = keras.Model(inputs, kl.Dense(2, name="b")(act(x)))
    small = drop_layers(model, "act")
    (ka, ba), (kb, bb) = model.get_layer("a").get_weights(), model.get_layer("b").get_weights()
    y = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(run(small, y), (y @ ka + ba) @ kb + bb, atol=1e-5)


def test_a_softmax_at_the_end_stays():
    layers = [kl.Dense(4, name="a"), kl.Dense(4, name="b"), kl.Softmax(name="out")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    assert names(drop_layers(model, "b")) == ["a", "out"]
    layers = [kl.Dense(4, name="a"), kl.Dense(4, name="b"), kl.Activation("softmax", name="out")]
    assert names(drop_layers(keras.Sequential([keras.Input((4,)), *layers]), "b")) == ["a", "out"]
    assert names(drop_layers(keras.Sequential([keras.Input((4,)), *layers]), "out")) == ["a", "b"]


def test_ops_by_name():
    model = zoo.build("residual")
    graph_names = [op.name for op in model.operations]
    add = next(name for name in graph_names if name.startswith("add"))
    small = drop_layers(model, add)
    assert not {"depthwise", "pointwise"} & set(names(small))
    stem = keras.Model(model.input, model.get_layer("stem_relu").output)
    x = zoo.inputs_for(model)
    tail = keras.Model(small.get_layer("sum_relu").input, small.outputs)
    np.testing.assert_allclose(run(tail, run(stem, x)), run(small, x), atol=1e-6)


def test_nested_models_by_path():
    model = zoo.build("nested")
    assert "block" not in names(drop_layers(model, "block"))
    small = drop_layers(model, "head/deep")
    assert names(small) == names(model)
    assert names(small.get_layer("head")) == ["out"]
    assert isinstance(drop_layers(model, "inner").get_layer("head"), keras.Model)


def test_outputs_that_come_straight_from_the_inputs(tmp_path):
    inputs, other = keras.Input((4,), name="x"), keras.Input((4,), name="unused_then")
    passed = kl.Dense(4, name="gone")(inputs)
    added = kl.Add(name="sum")([inputs, kl.Dense(4, name="branch")(inputs)])
    kept = kl.Dense(2, name="kept")(other)
    model = keras.Model([inputs, other], {"p": passed, "q": added, "r": kept})
    small = drop_layers(model, ["gone", "sum"])
    small.save(tmp_path / "small.keras")
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    want = keras.ops.convert_to_numpy(model.get_layer("kept")(y))
    for version in (small, keras.models.load_model(tmp_path / "small.keras")):
        got = run(version, [x, y])
        np.testing.assert_array_equal(got["p"], x)
        np.testing.assert_array_equal(got["q"], x)
        np.testing.assert_allclose(got["r"], want, atol=1e-6)


def test_masks_are_carried_and_hold():
    pruned = tfopt.prune(trained(bottleneck()), sparsity=0.5)
    small = drop_layers(pruned, ["b1_add", "b2_dropout"])
    kernels = {layer.name: layer.kernel for layer in small.layers if hasattr(layer, "kernel")}
    zeros = {name: kernel.numpy() == 0 for name, kernel in kernels.items()}
    assert all(np.mean(mask) == 0.5 for mask in zeros.values())
    head = small.get_layer("head").get_weights()
    zoo.fit(small, X, run_eagerly=True)
    assert not np.array_equal(head[1], small.get_layer("head").get_weights()[1])
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(kernel.numpy() == 0, zeros[name])


def test_mixed_precision_and_frozen_layers_are_kept():
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = bottleneck()
    finally:
        keras.mixed_precision.set_dtype_policy(before)
    model.get_layer("stem").trainable = False
    small = drop_layers(model, "b1_add")
    assert small.get_layer("b2_conv").compute_dtype == "float16"
    assert not small.get_layer("stem").trainable
    # float32 image, float16 from the stem on
    with pytest.raises(InvalidArgumentError, match="'stem': it turns float32"):
        drop_layers(model, "stem")


def test_verbose_tells_what_goes(capsys):
    drop_layers(bottleneck(), "b1_add", verbose=1)
    assert capsys.readouterr().out == (
        "Dropped b1_add (residual): b1_down, b1_conv, b1_dropout, b1_up, b1_bn, b1_add\n"
    )


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("b3_add", "has to fit a layer of the model.*Received: 'b3_add'.*stem, stem_relu"),
        ("image", "other than its inputs"),
        ([], "at least one name"),
        (3, "`names` is a layer name"),
        ("b1_down", "'b1_down': it turns float32 \\(8, 8, 8\\) into float32 \\(8, 8, 4\\).*Name 'b1_add'"),
        ("b1_d*", "'b1_down': .*Name 'b1_add'"),
        ("pool", "'pool': it turns .*Blocks that can be dropped: b1_add, b2_add\\."),
        ("concat", "'concat': it reads or gives several tensors"),
    ],
)
def test_errors(asked, says):
    model = bottleneck()
    if asked == "concat":
        x = model.get_layer("b1_add").output
        model = keras.Model(model.inputs, kl.Concatenate(name="concat")([x, x * 2.0]))
    with pytest.raises(InvalidArgumentError, match=says):
        drop_layers(model, asked)


def test_something_has_to_stay():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(4, name="a"), kl.ReLU(name="b")])
    with pytest.raises(InvalidArgumentError, match=r"At least one layer.*all of 'sequential"):
        drop_layers(model, "*")
    outer = keras.Sequential([keras.Input((4,)), model])
    with pytest.raises(InvalidArgumentError, match="At least one layer"):
        drop_layers(outer, ["a", "b"])


def test_only_graphs():
    with pytest.raises(tfopt.UnsupportedModelError, match="build"):
        drop_layers(keras.Sequential([kl.Dense(1)]), "x")
