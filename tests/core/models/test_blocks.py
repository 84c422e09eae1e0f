"""Blocks of models whose structure is known, and models without them against numpy and the published architectures."""

from collections import Counter

import keras
import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

import tfopt
from tfopt.core.models.blocks import Blocks
from tfopt.core.models.graph import read
from tfopt.core.models.macs import model_macs

# How a block joins its branch with its skip; `c` counts the blocks, for names that are the same in each run.
JOINS = {
    "layer, skip first": lambda skip, branch, c: kl.Add(name=f"join{c}")([skip, branch]),
    "layer, skip second": lambda skip, branch, c: kl.Add(name=f"join{c}")([branch, skip]),
    "op, skip first": lambda skip, branch, c: keras.ops.add(skip, branch),
    "op, skip second": lambda skip, branch, c: branch + skip,
}


def chain(kinds):
    """Dense blocks one after the other: residual with one of the joins, or plain."""
    inputs = x = keras.Input((5,))
    ends = []
    for c, kind in enumerate(kinds):
        branch = kl.Dense(5, activation="tanh", name=f"dense{c}")(x)
        x = branch if kind == "plain" else JOINS[kind](x, branch, c)
        ends.append(f"dense{c}" if kind == "plain" else x._keras_history.operation.name)
        x = kl.ReLU(negative_slope=0.1, name=f"relu{c}")(x)
    return keras.Model(inputs, kl.Dense(2, name="head")(x)), ends


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*JOINS, "plain"]), st.booleans()), min_size=2, max_size=5), st.data())
def test_a_model_without_blocks_computes_what_numpy_does_without_them(parts, data):
    model, ends = chain([kind for kind, _ in parts])
    blocks = Blocks(read(model))
    assert [block.name for block in blocks.candidates] == ends
    small = blocks.without([blocks.block(end) for end, (_, drop) in zip(ends, parts, strict=True) if drop]).model

    x = want = np.random.default_rng(len(parts)).normal(size=(4, 5)).astype("float32")
    for c, (kind, drop) in enumerate(parts):
        kernel, bias = model.get_layer(f"dense{c}").get_weights()
        branch = np.tanh(want @ kernel + bias)
        if drop and kind == "plain":
            continue  # its activation goes with it
        want = want if drop else branch if kind == "plain" else want + branch
        want = np.where(want > 0, want, 0.1 * want)
    kernel, bias = model.get_layer("head").get_weights()
    np.testing.assert_allclose(run(small, x), want @ kernel + bias, atol=1e-5)
    assert not any(f"dense{c}" in {w.name for w in small.layers} for c, (_, drop) in enumerate(parts) if drop)


def pre_activation(drop=()):
    """ResNetV2: normalization and activation come first, inside of the branch of a block without projection."""
    inputs = keras.Input((6, 6, 3))
    x = kl.Conv2D(8, 3, padding="same", name="stem")(inputs)
    for i, width in enumerate((8, 16, 16)):
        if i in drop:
            continue
        y = kl.ReLU(name=f"b{i}_relu")(kl.BatchNormalization(name=f"b{i}_bn")(x))
        skip = x if width == x.shape[-1] else kl.Conv2D(width, 1, strides=2, name=f"b{i}_skip")(y)
        y = kl.Conv2D(width, 3, strides=width // x.shape[-1], padding="same", name=f"b{i}_conv")(y)
        x = kl.Add(name=f"b{i}_add")([skip, y])
    x = kl.GlobalAveragePooling2D(name="pool")(kl.ReLU(name="last_relu")(x))
    return keras.Model(inputs, kl.Dense(3, name="head")(x))


def run(model, x):
    """Outputs in inference mode; faster than `predict` for a model that runs once."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(x, training=False))


def copy_weights(source, target):
    for layer in target.layers[1:]:
        layer.set_weights(source.get_layer(layer.name).get_weights())


def test_pre_activation_blocks():
    model = pre_activation()
    for weight in model.weights:
        weight.assign(np.random.default_rng(len(weight.path)).uniform(0.1, 0.5, weight.shape))
    blocks = Blocks(read(model))
    first, last = blocks.candidates
    assert (first.name, last.name) == ("b0_add", "b2_add")
    assert first.paths == ("b0_bn", "b0_relu", "b0_conv", "b0_add")
    assert first.kernels == (model.get_layer("b0_conv").kernel,)
    assert (first.parameters, first.macs) == (4 * 8 + 9 * 8 * 8 + 8, 36 * 9 * 8 * 8)
    assert (last.parameters, last.macs) == (4 * 16 + 9 * 16 * 16 + 16, 9 * 9 * 16 * 16)
    assert blocks.refused["residual"] == {"b1_add": "none of its operands is the input of the others"}

    want = pre_activation(drop=(0, 2))
    copy_weights(model, want)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    small = blocks.without([first, last]).model
    np.testing.assert_array_equal(run(small, x), run(want, x))
    assert {layer.name for layer in small.layers[1:]} == {layer.name for layer in want.layers[1:]}
    assert sum(blocks.macs.values()) - sum(model_macs(read(small)).values()) == first.macs + last.macs
    assert model.count_params() - small.count_params() == first.parameters + last.parameters


APPLICATIONS = {
    # 3-4-6-3 blocks, the first of each stage with a projection
    "ResNet50": {"residual": 12},
    # 17 blocks after the first, 7 of them with a stride or a change of width
    "MobileNetV2": {"residual": 10},
    # 16 blocks in 7 stages, of which the first of each is not residual
    "EfficientNetB0": {"residual": 9},
    # 13 convolutions and 3 Dense layers, of which 8 + 1 keep the width; the first of stages 1, 2, 3, 4 does not
    "VGG16": {"layer": 10},
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_blocks_of_published_architectures(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3))
    blocks = Blocks(read(model))
    assert Counter(block.kind for block in blocks.candidates) == APPLICATIONS[name]
    paths = [path for block in blocks.candidates for path in block.paths]
    assert len(paths) == len(set(paths))


def test_all_blocks_of_convnext_are_found_and_go():
    model = keras.applications.ConvNeXtTiny(weights=None, input_shape=(32, 32, 3), classes=3)
    blocks = Blocks(read(model))
    assert [block.kind for block in blocks.candidates] == ["residual"] * (3 + 3 + 9 + 3)
    small = blocks.without(blocks.candidates).model
    assert not [layer.name for layer in small.layers if "stage" in layer.name]
    stem = 4 * 4 * 3 * 96 + 96 + 2 * 96
    between = sum(2 * a + 4 * a * b + b for a, b in ((96, 192), (192, 384), (384, 768)))
    assert small.count_params() == stem + between + 2 * 768 + 768 * 3 + 3
    assert run(small, np.zeros((1, 32, 32, 3))).shape == (1, 3)


def dense(units=4, **options):
    return kl.Dense(units, **options)


def test_a_branch_read_elsewhere_is_refused():
    inputs = keras.Input((4,))
    inner = dense(name="inner")(inputs)
    total = kl.Add(name="sum")([inputs, dense(name="outer")(inner)])
    model = keras.Model(inputs, dense(2)(kl.Concatenate()([total, inner])))
    assert Blocks(read(model)).refused["residual"] == {"sum": "'inner' in its branch is also read outside of it"}
    with pytest.raises(tfopt.InvalidArgumentError, match="'sum': 'inner' in its branch is also read"):
        Blocks(read(model)).block("sum")


def test_a_branch_with_shared_weights_is_refused():
    inputs = keras.Input((4,))
    tower, act = dense(name="tower"), kl.ReLU(name="act")
    x = act(dense(name="first")(inputs))
    x = kl.Add(name="sum0")([x, act(dense(name="own")(x))])  # a shared layer without weights does no harm
    x = kl.Add(name="sum1")([x, tower(x)])
    x = kl.Add(name="sum2")([x, tower(x)])
    model = keras.Model(inputs, dense(2, name="head")(x))
    blocks = Blocks(read(model))
    assert [block.name for block in blocks.candidates] == ["first", "sum0"]
    assert blocks.refused["residual"] == dict.fromkeys(
        ("sum1", "sum2"), "'tower' in its branch shares weights with layers outside of it"
    )
    small = blocks.without([blocks.block("sum0")]).model
    assert "act" in [layer.name for layer in small.layers]
    assert "own" not in [layer.name for layer in small.layers]


def test_weights_shared_with_another_model_are_seen():
    shared = dense(name="shared")
    nested = keras.Sequential([keras.Input((4,)), shared, dense(3)], name="nested")
    inputs = keras.Input((4,))
    x = kl.Add(name="sum")([inputs, shared(inputs)])
    refused = Blocks(read(keras.Model(inputs, nested(x)))).refused
    assert refused["residual"] == {"sum": "'shared' in its branch shares weights with layers outside of it"}


def test_a_mask_from_outside_may_enter_the_branch_but_an_encoder_may_not_go_with_it():
    tokens, encoded = keras.Input((6, 4), name="tokens"), keras.Input((5, 4), name="encoded")
    attention = kl.MultiHeadAttention(2, 2, name="attention")
    x = kl.Add(name="sum")([tokens, attention(tokens, encoded)])
    model = keras.Model([tokens, encoded], kl.Conv1D(3, 1, name="head")(x))
    blocks = Blocks(read(model))
    assert [block.name for block in blocks.candidates] == ["sum"]
    small = blocks.without(blocks.candidates).model
    assert [layer.name for layer in small.layers] == ["tokens", "encoded", "head"]
    assert len(small.inputs) == 2

    encoder = dense(4, name="encoder")(encoded)
    x = kl.Add(name="sum")([tokens, kl.MultiHeadAttention(2, 2)(tokens, encoder)])
    model = keras.Model([tokens, encoded], kl.Conv1D(3, 1, name="head")(x))
    assert Blocks(read(model)).refused["residual"] == {"sum": "'encoder' outside of its branch would go too"}


def test_skips_that_are_no_identity_are_refused():
    inputs = keras.Input((1, 4))
    x = kl.Add(name="wider")([inputs, kl.Conv1D(4, 1, name="conv")(kl.UpSampling1D(3)(inputs))])
    x = kl.Add(name="doubled")([x, x])
    half = kl.Activation("linear", dtype="float16", name="half")(x)
    refused = Blocks(read(keras.Model(inputs, kl.Dense(3, name="head")(half)))).refused
    assert refused["residual"] == {
        "wider": "it turns float32 (1, 4) into float32 (3, 4)",
        "doubled": "none of its operands is the input of the others",
    }


def test_an_addition_of_three():
    inputs = keras.Input((4,))
    x = kl.Add(name="sum")([dense(name="a")(inputs), inputs, dense(name="b")(inputs)])
    blocks = Blocks(read(keras.Model(inputs, dense(2, name="head")(x))))
    assert blocks.block("sum").parameters == 2 * 20
    assert [layer.name for layer in blocks.without(blocks.candidates).model.layers[1:]] == ["head"]


def test_the_smallest_blocks_are_the_candidates():
    inputs = keras.Input((4,))
    x = y = dense(name="stem")(inputs)
    y = kl.Add(name="inner")([y, dense(name="a")(y)])
    y = kl.Add(name="outer")([x, dense(name="b")(y)])
    blocks = Blocks(read(keras.Model(inputs, dense(2, name="head")(y))))
    assert [block.name for block in blocks.candidates] == ["stem", "inner"]
    assert blocks.refused["residual"] == {"outer": "it holds a smaller block, 'inner'"}
    assert [layer.name for layer in blocks.without([blocks.block("outer")]).model.layers[1:]] == ["stem", "head"]


def test_layers_that_are_no_candidates_say_why():
    inputs = keras.Input((4,))
    twice = dense(name="twice")
    x = twice(twice(inputs))
    x = kl.Multiply(name="gated")([x, dense(activation="sigmoid", name="gate")(x)])
    x = kl.DepthwiseConv1D(3, padding="same", name="depthwise")(kl.Reshape((2, 2), name="reshape")(x))
    x = kl.Flatten(name="flat")(x)
    x = kl.Softmax(name="probabilities")(dense(name="head")(kl.Concatenate(name="both")([x, x])))
    x = kl.Dense(4, name="again")(x)
    blocks = Blocks(read(keras.Model(inputs, kl.Softmax(name="out")(x))))
    assert blocks.candidates == []
    assert blocks.refused["layer"] == {
        "twice": "it is called several times",
        "gate": "it stands in a branch of 'gated'",
        "depthwise": "it has no kernel to prune",
        "head": "it turns float32 (8,) into float32 (4,)",
        "again": "it gives an output of the model",
    }


def test_what_is_attached_to_a_layer_goes_with_it():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            kl.Conv2D(4, 3, padding="same", use_bias=False, name="conv"),
            kl.BatchNormalization(name="bn"),
            kl.ReLU(name="relu"),
            kl.Dropout(0.5, name="dropout"),
            kl.MaxPooling2D(name="pool"),
            kl.Flatten(name="flatten"),
            kl.Dense(3, name="head"),
        ]
    )
    blocks = Blocks(read(model))
    (conv,) = blocks.candidates
    assert conv.paths == ("conv", "bn", "relu", "dropout")
    assert conv.parameters == 9 * 4 * 4 + 4 * 4
    small = blocks.without([conv]).model
    assert isinstance(small, keras.Sequential)
    assert [layer.name for layer in small.layers] == ["pool", "flatten", "head"]


@pytest.mark.parametrize(("strides", "padding", "ok"), [(1, "same", True), (2, "same", False), (1, "valid", False)])
def test_dimensions_that_are_not_defined(strides, padding, ok):
    inputs = keras.Input((None, None, 4))
    x = kl.Conv2D(4, 3, strides=strides, padding=padding, name="conv")(inputs)
    x = kl.Dense(3, name="head")(kl.GlobalAveragePooling2D(name="pool")(x))
    blocks = Blocks(read(keras.Model(inputs, x)))
    assert [block.name for block in blocks.candidates] == (["conv"] if ok else [])
    if ok:
        assert blocks.candidates[0].macs is None
    else:
        assert blocks.refused["layer"]["conv"] == "it changes a dimension that is not defined"


def test_sequence_layers():
    inputs = keras.Input((7, 6))
    x = kl.LSTM(6, return_sequences=True, name="lstm")(inputs)
    x = kl.Bidirectional(kl.GRU(3, return_sequences=True), name="both")(x)
    x = kl.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = kl.TimeDistributed(kl.Dense(6), name="each")(x)
    blocks = Blocks(read(keras.Model(inputs, kl.Dense(2, name="head")(kl.GlobalMaxPooling1D(name="pool")(x)))))
    assert [block.name for block in blocks.candidates] == ["lstm", "both", "attention", "each"]
    assert [len(block.kernels) for block in blocks.candidates] == [2, 4, 4, 1]
    small = blocks.without(blocks.candidates).model
    assert [layer.name for layer in small.layers[1:]] == ["pool", "head"]


def test_nested_models():
    model = zoo.build("nested")
    blocks = Blocks(read(model))
    assert [(block.name, block.parameters) for block in blocks.candidates] == [
        ("block/inner", 72),
        ("head/deep/inner", 72),
    ]
    assert blocks.refused["model"]["head/deep"] == "it holds a smaller block, 'head/deep/inner'"
    x = zoo.inputs_for(model)
    want = keras.Sequential([keras.Input((5,)), kl.Dense(8, "tanh", name="first"), kl.Dense(3, name="out")])
    want.set_weights([*model.get_layer("first").get_weights(), *model.get_layer("head").get_layer("out").get_weights()])
    small = blocks.without(
        blocks.candidates
    ).model  # the models `block`, called twice, and `deep` are left without a layer
    np.testing.assert_allclose(run(small, x), run(want, x), atol=1e-6)
    assert [layer.name for layer in small.layers] == ["features", "first", "head"]


def test_a_nested_model_of_layers_that_change_shape_goes_as_a_whole():
    nested = keras.Sequential([keras.Input((4,)), dense(9, name="up"), dense(4, name="down")], name="nested")
    model = keras.Sequential([keras.Input((4,)), nested, dense(2, name="head")])
    (block,) = Blocks(read(model)).candidates
    assert (block.name, block.kind, block.paths) == ("nested", "model", ("nested", "nested/up", "nested/down"))
    assert block.macs == 2 * 4 * 9
    assert [layer.name for layer in Blocks(read(model)).without([block]).model.layers] == ["head"]


def test_a_nested_model_that_swaps_its_inputs_is_left_without_layers():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    swap = keras.Model([a, b], [dense(name="da")(b), dense(name="db")(a)], name="swap")
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    first, second = swap([left, right])
    model = keras.Model([left, right], dense(2, name="head")(first - 2.0 * second))
    blocks = Blocks(read(model))
    small = blocks.without([blocks.block("swap/da"), blocks.block("swap/db")]).model
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    kernel, bias = model.get_layer("head").get_weights()
    np.testing.assert_allclose(run(small, [x, y]), (y - 2 * x) @ kernel + bias, atol=1e-5)


def test_macs_of_a_model_called_from_two_models_count_twice():
    deep = keras.Sequential([keras.Input((4,)), dense(name="inner"), kl.Dense(6, name="wide")], name="deep")
    heads = []
    for name in ("one", "two"):
        inner = keras.Input((4,), name=f"{name}_in")
        heads.append(keras.Model(inner, dense(2, name=f"{name}_out")(deep(inner)), name=name))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [head(inputs) for head in heads])
    (block,) = Blocks(read(model)).candidates
    assert (block.macs, block.parameters) == (2 * 16, 20)
    for name in ("one/deep/inner", "two/deep/inner"):
        assert Blocks(read(model)).block(name).passes == block.passes
    small = Blocks(read(model)).without([block]).model
    assert sum(model_macs(read(model)).values()) - sum(model_macs(read(small)).values()) == 2 * 16
