"""Width scaling against parameter counts worked out by hand."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from nets import article_cnn

from tfopt.core.errors import InvalidArgumentError, NothingToDoError, UnsupportedModelError
from tfopt.editing.width import scale_width


def residual_model(name="residual"):
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(16, 3, padding="same", name="stem")(inputs)
    y = kl.BatchNormalization(name="bn")(kl.Conv2D(16, 3, padding="same", name="branch")(x))
    y = kl.ReLU(name="relu")(x + y)
    y = kl.DepthwiseConv2D(3, name="depthwise")(y)
    y = kl.GlobalAveragePooling2D()(y)
    return keras.Model(inputs, kl.Dense(5, name="head")(y), name=name)


def widths(model):
    return {layer.name: getattr(layer, "filters", getattr(layer, "units", None)) for layer in model.layers}


def test_the_cnn_of_the_articles_halves():
    model = article_cnn()
    before = [weight.copy() for weight in model.get_weights()]
    half = scale_width(model, 0.5)
    assert [widths(half)[name] for name in ("conv1", "conv2", "conv3", "dense", "head")] == [16, 32, 32, 32, 10]
    conv = (9 * 1 * 16 + 16) + (9 * 16 * 32 + 32) + (9 * 32 * 32 + 32)
    assert half.count_params() == conv + (3 * 3 * 32 * 32 + 32) + (32 * 10 + 10) == 23_626
    assert isinstance(half, keras.Sequential)
    assert not half.compiled
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert half.predict(np.zeros((2, 28, 28, 1)), verbose=0).shape == (2, 10)


def test_two_doubles():
    assert widths(scale_width(article_cnn(), 2))["conv1"] == 64


def test_widths_are_rounded_and_never_vanish():
    tiny = scale_width(article_cnn(), 0.001)
    assert [widths(tiny)[name] for name in ("conv1", "dense", "head")] == [1, 1, 10]
    eights = scale_width(article_cnn(), 0.3, round_to=8)
    assert [widths(eights)[name] for name in ("conv1", "conv2", "dense")] == [8, 16, 16]
    assert widths(scale_width(article_cnn(), 0.01, round_to=8))["conv1"] == 8


def test_grouped_convolutions_stay_divisible():
    model = keras.Sequential(
        [keras.Input((8, 8, 8)), kl.Conv2D(12, 3, groups=4, name="grouped"), kl.Flatten(), kl.Dense(2)]
    )
    assert widths(scale_width(model, 0.4))["grouped"] == 4


def test_residual_branches_scale_together():
    half = scale_width(residual_model(), 0.5)
    stem, branch, bn, depthwise, head = 9 * 3 * 8 + 8, 9 * 8 * 8 + 8, 4 * 8, 9 * 8 + 8, 8 * 5 + 5
    assert half.count_params() == stem + branch + bn + depthwise + head
    assert half.name == "residual"
    assert [layer.name for layer in half.layers][1:4] == ["stem", "branch", "bn"]


@pytest.mark.parametrize("selection", [{"include": "branch"}, {"exclude": ["stem"]}])
def test_branches_that_no_longer_fit_name_the_place(selection):
    with pytest.raises(InvalidArgumentError, match=r"have to fit together.*at 'add.*`include` or `exclude`"):
        scale_width(residual_model(), 0.5, **selection)


def test_a_branch_into_an_output_keeps_its_width():
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(8, 3, padding="same", name="hidden")(inputs)
    y = kl.BatchNormalization()(kl.Conv2D(4, 3, padding="same", name="last")(x))
    model = keras.Model(inputs, [kl.Activation("sigmoid")(y), kl.Dense(2, name="head")(kl.Flatten()(x))])
    assert widths(scale_width(model, 0.5))["last"] == 4
    assert widths(scale_width(model, 0.5))["hidden"] == 4
    assert scale_width(model, 0.5).output_shape == model.output_shape


def test_the_layer_before_a_recurrent_output_is_hidden():
    model = keras.Sequential([keras.Input((9, 4)), kl.Conv1D(8, 3, name="conv"), kl.LSTM(6)])
    half = scale_width(model, 0.5)
    assert widths(half)["conv"] == 4
    assert half.output_shape == (None, 6)


def test_nested_models_are_entered_and_their_inputs_follow():
    block = keras.Sequential([keras.Input((16,)), kl.Dense(12, name="inner"), kl.ReLU()], name="block")
    inputs = keras.Input((10,))
    x = block(kl.Dense(16, name="first")(inputs))
    half = scale_width(keras.Model(inputs, kl.Dense(3, name="head")(x)), 0.5)
    assert half.get_layer("block").input_shape == (None, 8)
    assert half.get_layer("block").get_layer("inner").units == 6
    assert half.count_params() == (10 * 8 + 8) + (8 * 6 + 6) + (6 * 3 + 3)


def test_nested_models_are_selected_by_path():
    nested = keras.Sequential([residual_model("backbone"), kl.Dense(7, name="top"), kl.Dense(2, name="head")])
    nested.build((None, 8, 8, 3))
    half = scale_width(nested, 0.5, include="backbone")
    assert widths(half)["top"] == 7
    assert widths(half.get_layer("backbone"))["stem"] == 8
    only_top = scale_width(nested, 0.5, exclude="backbone")
    assert widths(only_top)["top"] == 4
    assert only_top.get_layer("backbone").count_params() == residual_model().count_params()


def test_a_nested_head_keeps_its_width():
    head = keras.Sequential([keras.Input((16,)), kl.Dense(8, name="inner"), kl.Dense(3, name="last")], name="top")
    model = keras.Sequential([keras.Input((10,)), kl.Dense(16), head])
    half = scale_width(model, 0.5)
    assert [layer.units for layer in half.get_layer("top").layers] == [4, 3]
    assert half.count_params() == (10 * 8 + 8) + (8 * 4 + 4) + (4 * 3 + 3)


def test_a_shared_layer_stays_shared():
    shared = kl.Dense(8, name="shared")
    a, b = keras.Input((6,)), keras.Input((6,))
    joined = kl.Concatenate()([shared(a), shared(b)])
    half = scale_width(keras.Model([a, b], kl.Dense(2, name="head")(joined)), 0.5)
    assert half.count_params() == (6 * 4 + 4) + (8 * 2 + 2)


def test_fixed_reshapes_follow_the_width():
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(16, 3, name="conv")(inputs)
    gate = kl.Reshape((1, 1, 16))(kl.GlobalAveragePooling2D()(x))
    gate = kl.Conv2D(16, 1, activation="sigmoid", name="excite")(gate)
    model = keras.Model(inputs, kl.Dense(2)(kl.Flatten()(kl.Multiply()([x, gate]))))
    assert widths(scale_width(model, 0.5))["excite"] == 8


def test_normalization_keeps_what_it_learned_from_data():
    normalization = kl.Normalization()
    normalization.adapt(np.array([[1.0, 10.0], [3.0, 30.0]]))
    model = keras.Sequential([keras.Input((2,)), normalization, kl.Dense(8), kl.Dense(1)])
    half = scale_width(model, 0.5)
    assert np.allclose(half.layers[0](np.array([[2.0, 20.0]])), 0.0)


def test_mobilenet_quarter():
    full = keras.applications.MobileNetV2(input_shape=(32, 32, 3), weights=None, classes=10)
    half = scale_width(full, 0.5)
    assert half.output_shape == (None, 10)
    assert 0.25 < half.count_params() / full.count_params() < 0.3


def test_seed_fixes_the_weights_whatever_the_global_seed():
    keras.utils.set_random_seed(1)
    first = scale_width(article_cnn(), 0.5, seed=3)
    keras.utils.set_random_seed(2)
    second, other = scale_width(article_cnn(), 0.5, seed=3), scale_width(article_cnn(), 0.5, seed=4)
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert not np.array_equal(first.layers[0].kernel, other.layers[0].kernel)
    kernels = [first.get_layer(name).kernel.numpy().ravel()[:20] for name in ("conv2", "conv3")]
    assert not np.array_equal(*kernels)


def test_frozen_layers_and_dtype_policies_stay():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(8, dtype="mixed_float16", name="half"), kl.Dense(2)])
    model.get_layer("half").trainable = False
    scaled = scale_width(model, 0.5).get_layer("half")
    assert not scaled.trainable
    assert scaled.dtype_policy.name == "mixed_float16"


@pytest.mark.parametrize("factor", [0, -0.5, float("nan"), float("inf"), "a", None, True])
def test_factors_out_of_range(factor):
    with pytest.raises(InvalidArgumentError, match=r"`factor` must be a finite number above 0\. Received"):
        scale_width(article_cnn(), factor)


@pytest.mark.parametrize("round_to", [0, 1.5, "8", True])
def test_bad_rounding(round_to):
    with pytest.raises(InvalidArgumentError, match="`round_to`"):
        scale_width(article_cnn(), 0.5, round_to=round_to)


def test_unknown_names():
    with pytest.raises(InvalidArgumentError, match=r"`include` must fit a layer.*'convolution'"):
        scale_width(article_cnn(), 0.5, include="convolution")


@pytest.mark.parametrize("change", [{"factor": 1.0}, {"factor": 0.5, "include": "head"}])
def test_nothing_to_do(change):
    with pytest.raises(NothingToDoError, match="has to change its width"):
        scale_width(article_cnn(), **change)


def test_no_model():
    with pytest.raises(UnsupportedModelError):
        scale_width("model.keras", 0.5)


class Placed(kl.Layer):
    """Adds a weight of its own to each place, between two layers of one sum."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = kl.Dense(width, "relu", name="first"), kl.Dense(width, name="second")

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], self.first.units))
        self.places = self.add_weight(shape=(shape[1], self.first.units), initializer="glorot_uniform", name="places")
        self.built = True

    def call(self, x):
        y = self.first(x) + self.places
        return y + self.second(y)


def placed():
    return keras.Sequential([keras.Input((5, 6)), Placed(8, name="placed"), kl.Flatten(), kl.Dense(3, name="head")])


def test_weights_of_own_layers_follow_the_width():
    model = placed()
    small = scale_width(model, 0.5)
    inside = small.get_layer("placed")
    assert [inside.get_layer(name).units for name in ("first", "second")] == [4, 4]
    assert inside.get_layer("places").weight.shape == (5, 4)
    assert small.get_layer("head").units == 3
    assert small.count_params() == (6 * 4 + 4) + (4 * 4 + 4) + 5 * 4 + (5 * 4 * 3 + 3)


def test_a_layer_that_is_to_stay_is_not_scaled_with_others():
    with pytest.raises(InvalidArgumentError, match="have to fit together"):
        scale_width(placed(), 0.5, exclude="placed/second")
