"""MACs against hand-computed numbers and published figures."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import tfopt
from tfopt.core.errors import InvalidArgumentError, UnsupportedModelError
from tfopt.core.models.macs import layer_macs, model_macs, register_macs


def total(inputs, outputs):
    return sum(model_macs(keras.Model(inputs, outputs)).values())


def macs_of(layer, *shapes):
    """Total MACs of a layer on fresh inputs of the given shapes, passed as positional arguments."""
    inputs = [keras.Input(shape) for shape in shapes]
    return total(inputs, layer(*inputs))


CASES = {
    "dense": (kl.Dense(5), [(7,)], 7 * 5),
    "dense on a sequence": (kl.Dense(5), [(3, 4, 7)], 3 * 4 * 7 * 5),
    "einsum dense": (kl.EinsumDense("abc,cde->abde", output_shape=(None, 4, 5)), [(6, 3)], 6 * 3 * 4 * 5),
    "einsum dense, ellipsis": (kl.EinsumDense("...x,xy->...y", output_shape=4), [(6, 3)], 6 * 3 * 4),
    "conv1d": (kl.Conv1D(4, 3), [(10, 2)], 8 * 3 * 2 * 4),
    "conv2d, dilated": (kl.Conv2D(4, 3, dilation_rate=2), [(10, 10, 2)], 6 * 6 * 9 * 2 * 4),
    "conv2d, strided, same": (kl.Conv2D(4, (3, 5), strides=2, padding="same"), [(9, 8, 2)], 5 * 4 * 15 * 2 * 4),
    "conv2d, groups": (kl.Conv2D(8, 3, groups=4, padding="same"), [(5, 5, 8)], 25 * 9 * 2 * 8),
    "conv3d": (kl.Conv3D(4, 2), [(3, 4, 5, 2)], 2 * 3 * 4 * 8 * 2 * 4),
    "conv1d transpose": (kl.Conv1DTranspose(4, 3, strides=2), [(5, 2)], 5 * 3 * 2 * 4),
    "conv2d transpose": (kl.Conv2DTranspose(4, 3, strides=2), [(5, 6, 2)], 30 * 9 * 2 * 4),
    "conv3d transpose": (kl.Conv3DTranspose(4, 2), [(2, 3, 4, 2)], 24 * 8 * 2 * 4),
    "depthwise1d": (kl.DepthwiseConv1D(3, depth_multiplier=2), [(10, 5)], 8 * 3 * 5 * 2),
    "depthwise2d": (kl.DepthwiseConv2D(3), [(10, 10, 5)], 64 * 9 * 5),
    "separable1d": (kl.SeparableConv1D(4, 3), [(10, 5)], 8 * (3 * 5 + 5 * 4)),
    "separable2d": (kl.SeparableConv2D(4, 3, depth_multiplier=2), [(10, 10, 5)], 64 * (9 * 10 + 10 * 4)),
    "embedding": (kl.Embedding(50, 8), [(6,)], 0),
    "simple rnn": (kl.SimpleRNN(4), [(6, 3)], 6 * 4 * (3 + 4)),
    "gru": (kl.GRU(4), [(6, 3)], 6 * 3 * 4 * (3 + 4)),
    "lstm": (kl.LSTM(4, return_sequences=True), [(6, 3)], 6 * 4 * 4 * (3 + 4)),
    "rnn of a cell": (kl.RNN(kl.GRUCell(4)), [(6, 3)], 6 * 3 * 4 * 7),
    "stacked cells": (
        kl.RNN(kl.StackedRNNCells([kl.LSTMCell(4), kl.SimpleRNNCell(5)])),
        [(6, 3)],
        6 * (4 * 4 * 7 + 5 * 9),
    ),
    "conv lstm": (kl.ConvLSTM2D(4, 3), [(5, 8, 8, 2)], 5 * 36 * 4 * 9 * 4 * (2 + 4)),
    "conv lstm, sequences": (
        kl.ConvLSTM1D(4, 3, return_sequences=True, padding="same"),
        [(5, 8, 2)],
        5 * 8 * 4 * 3 * 4 * (2 + 4),
    ),
    "bidirectional": (kl.Bidirectional(kl.LSTM(4)), [(6, 3)], 2 * 6 * 4 * 4 * 7),
    "time distributed": (kl.TimeDistributed(kl.Conv2D(4, 3)), [(5, 8, 8, 2)], 5 * 36 * 9 * 2 * 4),
    "time distributed model": (
        kl.TimeDistributed(keras.Sequential([keras.Input((3,)), kl.Dense(4), kl.Dense(2)])),
        [(5, 3)],
        5 * (12 + 8),
    ),
    "spectral normalization": (kl.SpectralNormalization(kl.Dense(5)), [(7,)], 35),
    "attention": (lambda q, v: kl.Attention()([q, v]), [(5, 8), (6, 8)], 2 * 5 * 6 * 8),
    "attention, three inputs": (
        lambda q, v, k: kl.Attention()([q, v, k]),
        [(5, 8), (6, 4), (6, 8)],
        5 * 6 * 8 + 5 * 6 * 4,
    ),
    "attention, concat": (lambda q, v: kl.Attention(score_mode="concat")([q, v]), [(5, 8), (6, 8)], 5 * 6 * 8),
    "additive attention": (lambda q, v: kl.AdditiveAttention()([q, v]), [(5, 8), (6, 8)], 2 * 5 * 6 * 8),
    "multi-head attention": (
        kl.MultiHeadAttention(num_heads=2, key_dim=3, value_dim=5),
        [(4, 8), (6, 7)],
        2 * (4 * 8 * 3 + 6 * 7 * 3 + 6 * 7 * 5) + 2 * 4 * 6 * (3 + 5) + 4 * 2 * 5 * 8,
    ),
    "group query attention": (
        kl.GroupQueryAttention(head_dim=3, num_query_heads=4, num_key_value_heads=2),
        [(5, 8), (6, 8)],
        5 * 8 * 12 + 2 * 6 * 8 * 6 + 2 * 5 * 6 * 12 + 5 * 12 * 8,
    ),
    "dot layer": (lambda a, b: kl.Dot(axes=(2, 1))([a, b]), [(3, 4), (4, 5)], 3 * 4 * 5),
    "batch normalization": (kl.BatchNormalization(), [(4, 4, 3)], 0),
    "max pooling": (kl.MaxPooling2D(), [(4, 4, 3)], 0),
    "reversible embedding": (kl.ReversibleEmbedding(50, 8), [(6,)], 0),
    "reversible embedding, reverse": (
        lambda x: (lambda layer: layer(layer(x), reverse=True))(kl.ReversibleEmbedding(50, 8)),
        [(6,)],
        6 * 8 * 50,
    ),
    "matmul": (ops.matmul, [(3, 4), (4, 5)], 3 * 4 * 5),
    "matmul by a constant": (lambda x: ops.matmul(x, np.ones((4, 5), "float32")), [(4,)], 20),
    "constant matmul": (lambda x: ops.matmul(np.ones((6, 3), "float32"), x), [(3, 4)], 6 * 3 * 4),
    "einsum": (lambda a, b: ops.einsum("bqhd,bkhd->bhqk", a, b), [(5, 2, 3), (6, 2, 3)], 5 * 6 * 2 * 3),
    "einsum, batch last": (lambda a: ops.einsum("bi,oi->ob", a, np.ones((5, 4), "float32")), [(4,)], 20),
    "einsum, ellipsis": (lambda a: ops.einsum("...i,io->...o", a, np.ones((4, 5), "float32")), [(7, 4)], 140),
    "einsum, three operands": (lambda a, b, c: ops.einsum("bi,bj,bk->bijk", a, b, c), [(2,), (3,), (4,)], 48),
    "tensordot": (lambda x: ops.tensordot(x, np.ones((4, 5, 6), "float32"), axes=2), [(3, 4, 5)], 3 * 4 * 5 * 6),
    "tensordot, axes": (lambda x: ops.tensordot(x, np.ones((4, 6), "float32"), axes=[[1], [0]]), [(4, 5)], 4 * 5 * 6),
    "dot op": (lambda x: ops.dot(x, np.ones((4, 5), "float32")), [(3, 4)], 60),
    "conv op": (lambda x: ops.conv(x, np.ones((3, 3, 2, 4), "float32")), [(8, 8, 2)], 36 * 9 * 2 * 4),
    "depthwise op": (lambda x: ops.depthwise_conv(x, np.ones((3, 3, 2, 1), "float32")), [(8, 8, 2)], 36 * 9 * 2),
    "separable op": (
        lambda x: ops.separable_conv(x, np.ones((3, 3, 2, 1), "float32"), np.ones((1, 1, 2, 4), "float32")),
        [(8, 8, 2)],
        36 * (18 + 8),
    ),
    "transposed op": (
        lambda x: ops.conv_transpose(x, np.ones((3, 3, 4, 2), "float32"), strides=2),
        [(5, 5, 2)],
        25 * 9 * 2 * 4,
    ),
    "attention op": (ops.dot_product_attention, [(5, 2, 3), (6, 2, 3), (6, 2, 3)], 5 * 6 * 2 * (3 + 3)),
    "addition": (ops.add, [(3, 4), (3, 4)], 0),
}


@pytest.mark.parametrize("name", CASES)
def test_hand_computed(name):
    layer, shapes, expected = CASES[name]
    assert macs_of(layer, *shapes) == expected


def test_attention_over_chosen_axes():
    layer = kl.MultiHeadAttention(num_heads=2, key_dim=3, attention_axes=(2,))
    x = keras.Input((5, 6, 4))
    projections = 30 * (3 * 4 * 6 + 6 * 4)
    assert total(x, layer(x, x)) == projections + 5 * 6 * 6 * 2 * (3 + 3)


def test_attention_called_by_keyword_and_with_a_mask():
    query, value, mask = keras.Input((4, 8)), keras.Input((6, 7)), keras.Input((4, 6), dtype="bool")
    layer = kl.MultiHeadAttention(num_heads=2, key_dim=3)
    by_keyword = layer(query=query, value=value, attention_mask=mask)
    expected = 2 * 3 * (4 * 8 + 2 * 6 * 7) + 2 * 4 * 6 * 6 + 4 * 6 * 8
    assert total([query, value, mask], by_keyword) == expected


def test_channels_first():
    layer = kl.Conv2D(4, 3, data_format="channels_first")
    assert layer_macs(layer, [(None, 2, 8, 9)], [(None, 4, 6, 7)]) == 6 * 7 * 9 * 2 * 4


def test_fixed_batch_counts_as_one():
    x = keras.Input(batch_shape=(8, 5))
    assert total(x, kl.Dense(3)(x)) == 15
    y = keras.Input(batch_shape=(8, 3, 5))
    assert total(y, ops.einsum("bij,jk->bik", y, np.ones((5, 2), "float32"))) == 30


def test_nested_and_shared_models_count_each_call():
    inner = keras.Sequential([keras.Input((6,)), kl.Dense(6, name="d")], name="inner")
    a, b = keras.Input((6,)), keras.Input((6,))
    model = keras.Model([a, b], kl.Dense(2, name="head")(kl.Add()([inner(a), inner(inner(b))])))
    counts = {path: macs for path, macs in model_macs(model).items() if macs}
    assert counts == {"inner/d": 3 * 36, "head": 12}


def test_nested_model_is_counted_at_the_shape_it_is_called_with():
    inner = keras.Sequential([keras.Input((None, None, 3)), kl.Conv2D(4, 3, name="c")], name="inner")
    x = keras.Input((10, 10, 3))
    assert model_macs(keras.Model(x, inner(x)))["inner/c"] == 64 * 27 * 4
    assert model_macs(inner)["c"] is None
    assert model_macs(inner, input_shapes=[(None, 10, 10, 3)])["c"] == 64 * 27 * 4


@pytest.mark.parametrize("shapes", [[], [(None, 10, 10, 4)], [(None, 10, 3)]])
def test_input_shapes_have_to_fit(shapes):
    model = keras.Sequential([keras.Input((None, None, 3)), kl.Conv2D(4, 3)])
    with pytest.raises(InvalidArgumentError):
        model_macs(model, input_shapes=shapes)


def test_undefined_shape_raises_for_a_layer():
    with pytest.raises(InvalidArgumentError, match="input_shapes"):
        layer_macs(kl.Conv2D(4, 3), [(None, None, None, 3)], [(None, None, None, 4)])


def test_own_layer_needs_a_rule_and_can_register_one():
    class Project(kl.Layer):
        def build(self, shape):
            self.matrix = self.add_weight(shape=(shape[-1], 4))

        def call(self, x):
            return x @ self.matrix

    x = keras.Input((3,))
    model = keras.Model(x, Project(name="p")(x))
    assert model_macs(model) == {"p": None}
    register_macs(Project)(lambda layer, inputs, outputs: inputs[0][-1] * outputs[0][-1])
    assert model_macs(model) == {"p": 12}


def test_own_subclass_inherits_and_own_elementwise_layer_is_free():
    class MyConv(kl.Conv2D):
        pass

    class Scale(kl.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=(shape[-1],))

        def call(self, x):
            return x * self.factor

    assert macs_of(MyConv(4, 3), (8, 8, 2)) == 36 * 9 * 2 * 4
    assert macs_of(Scale(), (8, 8, 2)) == 0


def test_own_maths_are_not_counted_as_the_parents():
    class Squared(kl.Conv2D):
        def call(self, inputs):
            return super().call(inputs) ** 2

    inputs = keras.Input((8, 8, 2))
    model = keras.Model(inputs, Squared(4, 3, name="own")(inputs))
    assert model_macs(model) == {"own": None}
    tfopt.register_macs(Squared)(lambda layer, shapes, outputs: 5)
    assert model_macs(model) == {"own": 5}


def test_own_attention_without_weights_is_not_free():
    class Scaled(kl.Attention):
        def _calculate_scores(self, query, key):
            return super()._calculate_scores(query, key) * 0.5

    inputs = keras.Input((5, 2))
    assert model_macs(keras.Model(inputs, kl.Attention(name="a")([inputs, inputs]))) == {"a": 100}
    assert model_macs(keras.Model(inputs, Scaled(name="a")([inputs, inputs]))) == {"a": None}


def test_wrapper_of_tfopt_counts_as_its_layer():
    class Quantized(kl.Layer):
        wraps_layer = True

        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, x):
            return self.layer(x)

    assert macs_of(Quantized(kl.Dense(5)), (7,)) == 35


@pytest.mark.parametrize(
    ("application", "published"),
    [("MobileNet", 568_740_352), ("MobileNetV2", 300_774_272), ("ResNet50", 3_857_973_248), ("VGG16", 15_470_264_320)],
)
def test_published_figures(application, published):
    """MobileNet: 569 M (paper, table 4); MobileNetV2: 300 M (paper, table 4); ResNet50 with the stride in the 1x1, as
    Keras has it: 3.8 G (He et al., table 1); VGG16: 15.5 G."""
    model = getattr(keras.applications, application)(weights=None)
    assert sum(model_macs(model).values()) == published


def test_not_a_model():
    with pytest.raises(UnsupportedModelError):
        model_macs("model")
