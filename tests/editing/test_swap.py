"""Swaps of activations and kernel sizes, against numpy and against what stays as it was."""

import functools

import keras
import nets
import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

import tfopt
from tfopt import InvalidArgumentError, NothingToDoError, UnsupportedModelError, swap_activation, swap_kernel_size
from tfopt.core.models.graph import walk_layers
from tfopt.editing.activations import activation_of

# What numpy makes of the activations that the articles compare.
ORACLES = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "prelu": lambda x: np.where(x > 0, x, 0.25 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "tanh": np.tanh,
}


def flat_leaky():
    return kl.LeakyReLU(negative_slope=0.0)


def names(model):
    return [layer.name for layer in model.layers if not isinstance(layer, kl.InputLayer)]


def mlp():
    """One hidden layer of each form that an activation comes in: inside a layer, as a layer, as an op."""
    inputs = keras.Input((6,))
    x = kl.Dense(5, "softplus", name="inside")(inputs)
    x = kl.ELU(name="layer")(kl.Dense(5, name="d1")(x))
    x = keras.ops.gelu(kl.Dense(5, name="d2")(x))
    return keras.Model(inputs, kl.Dense(2, "sigmoid", name="head")(keras.activations.relu(x)), name="mlp")


@pytest.mark.parametrize("to", ORACLES)
def test_activations_against_numpy(to):
    model = mlp()
    swapped = swap_activation(model, to)
    x = np.random.default_rng(0).normal(0, 3, (7, 6)).astype("float32")
    f = ORACLES[to]
    kernels = [model.get_layer(name).kernel.numpy() for name in ("inside", "d1", "d2", "head")]
    want = f(f(f(f(x @ kernels[0]) @ kernels[1]) @ kernels[2]))  # the relu behind gelu is swapped as well
    want = 1 / (1 + np.exp(-(want @ kernels[3])))
    np.testing.assert_allclose(swapped(x), want, rtol=2e-5, atol=1e-6)
    assert swapped.name == "mlp"
    assert not swapped.compiled
    assert {op.name for op in model.operations} <= {op.name for op in swapped.operations}


@pytest.mark.parametrize("name", nets.NETS)
def test_a_leaky_relu_without_slope_is_relu(name):
    model = nets.build(name)
    before = zoo.state(model)
    relus = [path for path, layer in walk_layers(model) if str(activation_of(layer)).startswith("relu")]
    swapped = swap_activation(model, (lambda: kl.ReLU(6.0)) if name == "mobilenet" else flat_leaky, relus)
    left = [path for path, layer in walk_layers(swapped) if activation_of(layer) in ("relu", "relu6")]
    assert left == (relus if name == "mobilenet" else [])
    np.testing.assert_allclose(nets.run(swapped), nets.run(model), atol=1e-6)
    for kept, now in zip(before, zoo.state(model), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_outputs_and_gates_stay_unless_named(capsys):
    inputs = keras.Input((6,))
    x = kl.Dense(4, "relu", name="hidden")(inputs)
    x = x * kl.Dense(4, "sigmoid", name="gate")(x)
    model = keras.Model(inputs, kl.Reshape((2, 1))(kl.Dense(2, "tanh", name="head")(x)))

    def activations(model):
        return [model.get_layer(name).activation.__name__ for name in ("hidden", "gate", "head")]

    assert activations(swap_activation(model, "elu", verbose=1)) == ["elu", "sigmoid", "tanh"]
    assert capsys.readouterr().out == (
        "Swapped hidden: relu -> elu\n"
        "Left gate: sigmoid is a gate or a probability\n"
        "Left head: tanh gives an output of the model\n"
    )
    assert activations(swap_activation(model, "elu", ["h*", "gate"])) == ["elu", "elu", "tanh"]
    assert activations(swap_activation(model, "elu", "head")) == ["relu", "sigmoid", "elu"]
    chosen = swap_activation(model, "silu", lambda op: isinstance(op, kl.Dense))
    assert activations(chosen) == ["silu", "sigmoid", "tanh"]
    with pytest.raises(NothingToDoError, match=r"'gate' \(sigmoid is a gate.*'head' \(tanh gives an output"):
        swap_activation(model, "relu")


def test_the_last_activation_of_a_backbone_is_hidden():
    model = nets.nested()
    backbone = swap_activation(model, "elu").get_layer("backbone")
    assert backbone.get_layer("out").activation is keras.activations.elu
    # on its own, it gives the output
    alone = swap_activation(model.get_layer("backbone"), "elu")
    assert alone.get_layer("out").activation is keras.activations.relu
    assert alone.get_layer("conv1").activation is keras.activations.elu


def test_nested_layers_by_path_and_shared_ones_once():
    model = zoo.build("nested")
    swapped = swap_activation(model, "relu", "block")
    assert swapped.get_layer("block").get_layer("inner").activation is keras.activations.relu
    assert swapped.get_layer("first").activation is keras.activations.tanh
    tower = swap_activation(zoo.build("shared"), "prelu").get_layer("tower_prelu")
    assert tower.alpha.shape == (5,)
    assert len(tower._inbound_nodes) == 2


def test_prelu_has_a_slope_for_each_channel_and_learns_it():
    model = nets.build("resnet8")
    swapped = swap_activation(model, "prelu")
    alphas = {layer.name: layer.alpha for layer in swapped.layers if isinstance(layer, kl.PReLU)}
    assert alphas["stem_relu"].shape == alphas["b0_relu1"].shape == (1, 1, 8)
    assert len(alphas) == 7
    np.testing.assert_array_equal(np.unique(alphas["stem_relu"]), [0.25])
    small = swap_activation(nets.build("conv1d"), "prelu")
    assert small.get_layer("c1_prelu").alpha.shape == (1, 6)
    assert small.get_layer("c1_prelu").compute_dtype == "float16"
    zoo.fit(small, np.random.default_rng(0).normal(size=(8, 20, 4)), run_eagerly=True)
    assert np.ptp(small.get_layer("c1_prelu").alpha.numpy()) > 0
    # back to relu, the slopes are gone
    assert swap_activation(swapped, "relu").count_params() == model.count_params()


def test_half_precision_stays():
    swapped = swap_activation(zoo.build("mixed"), kl.ELU, "conv")
    assert swapped.get_layer("conv_elu").compute_dtype == "float16"
    inputs = keras.Input((4,), dtype="float16")
    model = keras.Model(inputs, kl.Dense(2, dtype="float16")(keras.ops.relu(inputs)))
    relu = model.layers[1].name if len(model.layers) > 2 else next(o.name for o in model.operations if "relu" in o.name)
    swapped = swap_activation(model, "elu")
    assert next(op for op in swapped.operations if op.name == relu).output.dtype == "float16"


def test_masks_and_frozen_layers_are_carried():
    model = zoo.build("sequential")
    pruned = tfopt.prune(model, sparsity=0.5)
    pruned.get_layer("hidden").trainable = False
    for swapped in (swap_activation(pruned, "prelu"), tfopt.swap_pooling(pruned, "average")):
        kernel = swapped.get_layer("conv").kernel
        zeros = kernel.numpy() == 0
        assert zeros.mean() == 0.5
        start = kernel.numpy()
        zoo.fit(swapped, zoo.inputs_for(model), run_eagerly=True)
        assert not np.array_equal(start, kernel.numpy())
        np.testing.assert_array_equal(kernel.numpy() == 0, zeros)
        assert not swapped.get_layer("hidden").trainable


def test_what_cannot_be_swapped_is_said():
    inputs = keras.Input((5, 4))
    x = kl.TimeDistributed(kl.Dense(4, "relu"), name="steps")(inputs)
    x = kl.LSTM(4, name="lstm")(kl.Dense(4, "relu", name="dense")(x))
    model = keras.Model(inputs, kl.Dense(2)(x))
    with pytest.warns(
        UserWarning, match=r"leaves as they are: 'steps' \(its activation is inside of another layer\)\.$"
    ):
        swap_activation(model, "elu")
    with pytest.raises(NothingToDoError, match="At least one layer has to change"):
        swap_activation(model, "elu", "lstm")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("reluu",), "name of an activation of Keras, or 'prelu'.*'reluu'"),
        ((3,), "`to` is the name"),
        ((kl.ReLU(),), "Each place needs a layer of its own"),
        ((lambda: 3,), "makes a layer. Received: 3"),
        ((keras.activations.glu,), r"turns \(2, 4\) into \(2, 2\)"),
        (("elu", "dens"), "'dens'.*The layers are: inside, d1, layer"),
        (("elu", []), "at least one name"),
        (("elu", 3), "`where` is a layer name"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(InvalidArgumentError, match=says):
        swap_activation(mlp(), *arguments)


def test_functions_with_parameters_and_saved_files(tmp_path):
    slope = functools.partial(keras.activations.leaky_relu, negative_slope=0.0)
    model = nets.build("article_cnn")
    np.testing.assert_allclose(nets.run(swap_activation(model, slope)), nets.run(model), atol=1e-6)
    swapped = swap_activation(model, "hard_swish")
    swapped.save(tmp_path / "swapped.keras")
    loaded = keras.models.load_model(tmp_path / "swapped.keras")
    np.testing.assert_allclose(nets.run(loaded), nets.run(swapped), atol=1e-6)


@pytest.mark.parametrize("swap", [swap_activation, swap_kernel_size, tfopt.swap_pooling])
def test_only_float_graphs(swap):
    to = {swap_activation: "elu", swap_kernel_size: 5}.get(swap, "max")
    with pytest.raises(UnsupportedModelError, match="takes the float model"):
        swap(tfopt.quantize(zoo.build("sequential")), to)
    with pytest.raises(UnsupportedModelError, match="built"):
        swap(keras.Sequential([kl.Dense(1)]), to)


# Kernel sizes.


def kernel_sizes(model):
    return {layer.name: layer.kernel_size for layer in model.layers if hasattr(layer, "kernel_size")}


@pytest.mark.parametrize("name", nets.NETS)
def test_larger_kernels_keep_the_outputs(name):
    model = nets.build(name)
    before = nets.run(model)
    larger = swap_kernel_size(model, 5)
    np.testing.assert_allclose(nets.run(larger), before, atol=2e-3 if name == "conv1d" else 1e-5)
    assert larger.count_params() > model.count_params()
    assert larger.output_shape == model.output_shape
    np.testing.assert_array_equal(nets.run(model), before)
    back = swap_kernel_size(larger, 3)
    assert names(back) == names(model)
    for kept, now in zip(model.weights, back.weights, strict=True):
        np.testing.assert_array_equal(kept, now)


def test_padding_of_the_articles_cnn():
    larger = swap_kernel_size(nets.article_cnn(), 5)
    assert names(larger)[:5] == ["conv1_pad", "conv1", "pool1", "conv2_pad", "conv2"]
    assert larger.get_layer("conv2").output.shape == (None, 11, 11, 64)
    smaller = swap_kernel_size(larger, 1)
    assert names(smaller)[:5] == ["conv1_crop", "conv1", "pool1", "conv2_crop", "conv2"]
    assert smaller.output_shape == (None, 10)
    # what reads one pixel alone needs no border: the same with "same"
    only = swap_kernel_size(keras.Sequential([keras.Input((9, 8, 2)), kl.Conv2D(3, 1, strides=2)]), 3, "*")
    assert [layer.padding for layer in only.layers] == ["same"]


def test_a_smaller_kernel_keeps_the_centre():
    model = nets.build("resnet8")
    small = swap_kernel_size(model, 1)
    assert set(kernel_sizes(small).values()) == {(1, 1)}
    for layer in model.layers:
        if hasattr(layer, "kernel_size"):
            middle = layer.kernel_size[0] // 2
            want = layer.kernel.numpy()[middle : middle + 1, middle : middle + 1]
            np.testing.assert_array_equal(small.get_layer(layer.name).kernel, want)
    assert small.output_shape == model.output_shape


def test_kernels_of_size_one_are_left_unless_asked_for(capsys):
    model = nets.build("resnet8")
    larger = swap_kernel_size(model, 5, verbose=1)
    assert kernel_sizes(larger)["b1_shortcut"] == (1, 1)
    assert "Swapped stem: 3x3 -> 5x5\n" in capsys.readouterr().out
    larger = swap_kernel_size(model, 3, "b*_shortcut")
    assert kernel_sizes(larger)["b1_shortcut"] == (3, 3)
    np.testing.assert_allclose(nets.run(larger), nets.run(model), atol=1e-5)


LAYERS = ("Conv1D", "DepthwiseConv1D", "SeparableConv1D", "Conv1DTranspose")


@settings(max_examples=20, deadline=None)
@given(
    cls=st.sampled_from(LAYERS),
    length=st.integers(6, 9),
    size=st.integers(1, 4),
    growth=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid", "causal"]),
)
def test_any_larger_kernel_keeps_the_outputs_or_says_so(cls, length, size, growth, stride, dilation, padding):
    if (padding == "causal" and cls != "Conv1D") or (dilation > 1 and (stride > 1 or "Transpose" in cls)):
        return  # Keras has no such layer
    if padding == "valid" and (size - 1) * dilation + 1 > length:
        return
    width = {} if cls.startswith("Depthwise") else {"filters": 2}
    layer = getattr(kl, cls)(kernel_size=size, strides=stride, dilation_rate=dilation, padding=padding, **width)
    model = keras.Sequential([keras.Input((length, 2)), layer])
    if padding == "same" and dilation == 2 and growth % 2:
        with pytest.warns(UserWarning, match="its outputs move"):
            swap_kernel_size(model, size + growth, "*")
        return
    np.testing.assert_allclose(nets.run(swap_kernel_size(model, size + growth, "*")), nets.run(model), atol=1e-5)


@pytest.mark.parametrize("cls", [kl.Conv2D, kl.Conv3D, kl.Conv2DTranspose, kl.Conv3DTranspose, kl.DepthwiseConv2D])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_planes_and_volumes(cls, padding):
    rank = 3 if "3D" in cls.__name__ else 2
    options = {} if cls is kl.DepthwiseConv2D else {"filters": 4}
    if cls is kl.Conv2D:
        options["groups"] = 2
    layer = cls(kernel_size=(1, 3, 2)[:rank], strides=2, padding=padding, name="conv", **options)
    model = keras.Sequential([keras.Input((*(6, 7, 8)[:rank], 2)), layer, kl.ReLU()])
    larger = swap_kernel_size(model, 5)
    assert larger.get_layer("conv").kernel_size == (5,) * rank
    np.testing.assert_allclose(nets.run(larger), nets.run(model), atol=1e-5)


def test_padding_on_one_axis_and_cropping_on_the_other():
    model = keras.Sequential([keras.Input((8, 9, 2)), kl.Conv2D(3, (1, 5), name="conv")])
    square = swap_kernel_size(model, 3)
    assert names(square) == ["conv_crop", "conv_pad", "conv"]
    assert square.output_shape == model.output_shape
    kernel = np.zeros((3, 3, 2, 3))
    kernel[1] = model.get_layer("conv").kernel.numpy()[0, 1:4]
    np.testing.assert_array_equal(square.get_layer("conv").kernel, kernel)


def test_strides_over_inputs_of_unknown_size():
    def model(size):
        return keras.Sequential([keras.Input((None, None, 1)), kl.Conv2D(2, size, strides=2, padding="same", name="c")])

    x = np.random.default_rng(0).normal(size=(1, 8, 9, 1)).astype("float32")
    exact = model(3)
    np.testing.assert_allclose(swap_kernel_size(exact, 5)(x), exact(x), atol=1e-5)
    with pytest.warns(UserWarning, match=r"changes more than the layer itself at: 'c' \(its outputs move"):
        swap_kernel_size(model(1), 3, "c")


def test_kernels_with_masks_are_refused_and_other_masks_carried():
    model = zoo.build("sequential")
    larger = swap_kernel_size(tfopt.prune(model, sparsity=0.5, include="hidden"), 5)
    kernel = larger.get_layer("hidden").kernel
    zeros = kernel.numpy() == 0
    assert zeros.mean() == 0.5
    zoo.fit(larger, zoo.inputs_for(model), run_eagerly=True)
    np.testing.assert_array_equal(kernel.numpy() == 0, zeros)
    with pytest.raises(UnsupportedModelError, match=r"'stem' with a constraint on its kernel.*Swap first"):
        swap_kernel_size(tfopt.prune(nets.build("resnet8"), include="stem"), 5)
    separable = keras.Sequential([keras.Input((8, 2)), kl.SeparableConv1D(4, 3, name="s")])
    masked = swap_kernel_size(tfopt.prune(separable, sparsity=0.5), 5).get_layer("s")
    assert (masked.pointwise_kernel.numpy() == 0).mean() == 0.5
    assert masked.pointwise_kernel.constraint is not None


def test_kernels_that_keep_their_size_are_named():
    inputs = keras.Input((8, 8, 2))
    x = kl.Conv2D(2, 3, padding="same", name="conv")(inputs)
    x = kl.Conv2DTranspose(2, 5, padding="valid", name="up")(x)
    x = kl.Conv2DTranspose(2, 5, 2, padding="same", output_padding=1, name="odd")(x)
    model = keras.Model(inputs, kl.TimeDistributed(kl.Conv1D(2, 5, name="c"), name="steps")(x))
    with pytest.warns(UserWarning, match=r"'up' \(its output would.*'odd' \(with `output_p.*'steps' \(its kernel is"):
        one = swap_kernel_size(model, 1)
    assert kernel_sizes(one) == {"conv": (1, 1), "up": (5, 5), "odd": (5, 5)}
    with pytest.raises(NothingToDoError, match=r"'conv' \(its kernel has size 3 already\)"):
        swap_kernel_size(model, 3, "conv")


@pytest.mark.parametrize("size", [0, 2.0, "3", True, (3, 3)])
def test_sizes_out_of_range(size):
    with pytest.raises(InvalidArgumentError, match="`size` must be a whole number"):
        swap_kernel_size(nets.article_cnn(), size)


def test_swapped_models_train_prune_and_become_int8_files(tmp_path):
    inputs = keras.Input((12, 12, 1))
    x = kl.Conv2D(4, 3, activation="relu", name="c1")(inputs)
    x = kl.MaxPooling2D(name="pool")(x)
    x = kl.ReLU(name="relu")(kl.DepthwiseConv2D(3, padding="same", name="c2")(x))
    model = keras.Model(inputs, kl.Dense(3, "softmax", name="head")(kl.Flatten()(x)))
    edited = swap_kernel_size(swap_activation(tfopt.swap_pooling(model, "adaptive"), "prelu"), 5)
    x = np.random.default_rng(0).uniform(-1, 1, (16, 12, 12, 1)).astype("float32")
    zoo.fit(edited, x)
    pruned = tfopt.prune(edited, sparsity=0.5)
    quantized = tfopt.calibrate(tfopt.quantize(pruned), x)
    exported = tfopt.export_tflite(quantized, tmp_path / "model.tflite", data=x)
    assert exported.quantization == "int8"
    assert tfopt.TFLiteModel(tmp_path / "model.tflite").predict(x).shape == (16, 3)


def test_an_own_function_is_not_the_one_of_keras_with_its_name():
    def relu(x):
        return keras.ops.maximum(x, 0.0) + 1.0

    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, activation=relu, name="a"), kl.Dense(2, name="b")])
    assert swap_activation(model, "relu").get_layer("a").activation is keras.activations.relu
    again = swap_activation(swap_activation(model, "relu"), relu)
    assert again.get_layer("a").activation is relu
    with pytest.raises(NothingToDoError, match="already"):
        swap_activation(again, relu)


def test_own_activations_of_a_keras_name_are_the_users():
    def elu(x):
        return keras.ops.tanh(x)

    def sigmoid(x):
        return keras.ops.relu(x)

    model = keras.Sequential(
        [keras.Input((4,)), kl.Dense(4, elu, name="a"), kl.Dense(4, sigmoid, name="b"), kl.Dense(2, name="c")]
    )
    swapped = tfopt.swap_activation(model, "elu")
    assert [layer.activation for layer in swapped.layers[:2]] == [keras.activations.elu] * 2
