"""The layers that XNNPACK runs sparsely: the same set as TFMOT's policy chooses on the same network of tf_keras."""

import keras
import pytest
from keras import layers as kl

import tfopt
from tfopt.interop.packages import core, tfmot


def network(library, *, stem="valid", pad=1, end=True, between=(), activation="relu6", channels=3):
    """A small MobileNet written for XNNPACK, with `keras` or `tf_keras`; the keywords make it unfit."""
    layers = library.layers

    def normalized(x):
        return layers.Activation(activation)(layers.BatchNormalization()(x))

    inputs = library.Input((64, 64, channels))
    x = layers.ZeroPadding2D(pad)(inputs) if stem == "valid" else inputs
    x = skip = normalized(layers.Conv2D(8, 3, strides=2, padding=stem, use_bias=False)(x))
    x = normalized(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Conv2D(8, 1, name="first")(x)
    x = layers.Add()([x, skip])
    x = layers.DepthwiseConv2D(5, strides=2, padding="valid")(layers.ZeroPadding2D(2)(x))
    for layer, options in between:
        x = getattr(layers, layer)(**options)(x)
    x = layers.ReLU(6.0)(layers.Conv2D(16, 1, name="second")(x))
    x = layers.GlobalAveragePooling2D(keepdims=True)(x) if end else layers.MaxPooling2D(16)(x)
    return library.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(x)))


def of_tfmot(model):
    """Names of the layers that TFMOT wraps, or the class of its error."""
    api = tfmot().sparsity.keras
    try:
        wrapped = api.prune_low_magnitude(
            model, pruning_policy=core("sparsity.keras.pruning_policy").PruneForLatencyOnXNNPack()
        )
    except ValueError:
        return ValueError
    return [layer.layer.name for layer in wrapped.layers if hasattr(layer, "pruning_vars")]


def ours(model):
    try:
        return tfopt.xnnpack_layers(model)
    except tfopt.UnsupportedModelError:
        return ValueError


UNFIT = {
    "same padding": {"stem": "same"},
    "wide padding": {"pad": 2},
    "one channel": {"channels": 1},
    "no pooling": {"end": False},
    "activation": {"activation": "tanh"},
    "3x3": {"between": [("Conv2D", {"filters": 8, "kernel_size": 3})]},
    "stride": {"between": [("Conv2D", {"filters": 8, "kernel_size": 1, "strides": 2})]},
    "groups": {"between": [("Conv2D", {"filters": 8, "kernel_size": 1, "groups": 2})]},
    "depthwise 3x3, stride 2, same": {
        "between": [("DepthwiseConv2D", {"kernel_size": 3, "strides": 2, "padding": "same"})]
    },
    "depthwise 7x7": {"between": [("DepthwiseConv2D", {"kernel_size": 7, "padding": "same"})]},
    "multiplier": {"between": [("DepthwiseConv2D", {"kernel_size": 3, "padding": "same", "depth_multiplier": 2})]},
    "nearest": {"between": [("UpSampling2D", {"interpolation": "nearest"})]},
    "max pooling": {"between": [("MaxPooling2D", {})]},
}
FIT = {
    "plain": {},
    "bilinear": {"between": [("UpSampling2D", {"interpolation": "bilinear"})]},
    "elu, dropout": {"between": [("ELU", {}), ("Dropout", {"rate": 0.1}), ("LeakyReLU", {})]},
    "sigmoid": {"activation": "sigmoid"},
}


@pytest.mark.parametrize("options", FIT.values(), ids=FIT)
def test_the_layers_are_tfmots(options):
    tfmot()
    import tf_keras

    assert ours(network(keras, **options)) == of_tfmot(network(tf_keras, **options)) == ["first", "second"]


@pytest.mark.parametrize("options", UNFIT.values(), ids=UNFIT)
def test_what_tfmot_refuses_is_refused(options):
    tfmot()
    import tf_keras

    assert ours(network(keras, **options)) is of_tfmot(network(tf_keras, **options)) is ValueError


def test_mobilenet_as_keras_builds_it_is_refused():
    tfmot()
    import tf_keras

    options = {"weights": None, "input_shape": (64, 64, 3), "alpha": 0.25}
    assert of_tfmot(tf_keras.applications.MobileNet(**options)) is ValueError
    with pytest.raises(tfopt.UnsupportedModelError, match="ZeroPadding2D"):
        tfopt.xnnpack_layers(keras.applications.MobileNet(**options))


@pytest.mark.parametrize(
    ("unfit", "says"),
    [
        ("no pooling", "GlobalAveragePooling2D"),
        ("max pooling", "MaxPooling2D 'max_pooling2d"),
        ("one channel", "3 chan"),
    ],
)
def test_the_error_says_what_is_in_the_way(unfit, says):
    with pytest.raises(tfopt.UnsupportedModelError, match=says):
        tfopt.xnnpack_layers(network(keras, **UNFIT[unfit]))


def test_ops_of_keras_3_pass_and_a_1x1_convolution_after_the_pooling_is_left_out():
    inputs = keras.Input((32, 32, 3))
    x = kl.ReLU()(kl.Conv2D(8, 3, strides=2)(kl.ZeroPadding2D(1)(inputs)))
    x = kl.Conv2D(8, 1, name="inside")(x) * 0.5 + x
    x = kl.GlobalAveragePooling2D(keepdims=True)(x)
    model = keras.Model(inputs, kl.Flatten()(kl.Conv2D(4, 1, name="head")(x)))
    assert tfopt.xnnpack_layers(model) == ["inside"]
    pruned = tfopt.prune(model, sparsity=0.75, include=tfopt.xnnpack_layers(model))
    zeros = [int((pruned.get_layer(name).kernel.numpy() == 0).sum()) for name in ("inside", "head")]
    assert zeros == [48, 0]
