"""Adaptive pooling against its definition in numpy, and swaps of pooling layers."""

import keras
import nets
import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

import tfopt
from tfopt import InvalidArgumentError, NothingToDoError, swap_pooling

KINDS = {"Max": np.max, "Average": np.mean}


def pooled(x, grid, reduction):
    """Bin i of m over n elements is floor(i n / m) .. ceil((i + 1) n / m), axis by axis from the second."""
    for axis, bins in enumerate(grid, 1):
        n = x.shape[axis]
        edges = [range(int(np.floor(i * n / bins)), int(np.ceil((i + 1) * n / bins))) for i in range(bins)]
        x = np.stack([reduction(x.take(edge, axis), axis) for edge in edges], axis)
    return x


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([*KINDS]),
    st.lists(st.tuples(st.integers(1, 13), st.integers(1, 9)), min_size=1, max_size=2),
)
def test_adaptive_pooling_is_its_definition(kind, axes):
    lengths, grid = zip(*axes, strict=True)
    cls = getattr(tfopt, f"Adaptive{kind}Pooling{len(grid)}D")
    x = np.random.default_rng(0).normal(size=(2, *lengths, 3)).astype("float32")
    layer = cls(grid)
    np.testing.assert_allclose(layer(x), pooled(x, grid, KINDS[kind]), atol=1e-5)
    assert layer.compute_output_shape((None, *lengths, 3)) == (None, *grid, 3)
    channels_first = cls.from_config({**layer.get_config(), "data_format": "channels_first"})
    got = np.moveaxis(np.asarray(channels_first(np.moveaxis(x, -1, 1))), 1, -1)
    np.testing.assert_allclose(got, layer(x), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(1, 1), (2, 1)])
def test_one_bin_in_a_model_and_in_its_file(kind, grid, tmp_path):
    """Keras' own layers fail here."""
    model = keras.Sequential([keras.Input((5, 4, 3)), getattr(tfopt, f"Adaptive{kind}Pooling2D")(grid)])
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float32")
    want = pooled(x, grid, KINDS[kind])
    model.save(tmp_path / "m.keras")
    np.testing.assert_allclose(tfopt.load_model(tmp_path / "m.keras").predict(x, verbose=0), want, atol=1e-6)
    tfopt.export_tflite(model, tmp_path / "m.tflite", data=x)
    np.testing.assert_allclose(tfopt.TFLiteModel(tmp_path / "m.tflite").predict(x), want, atol=1e-6)


@pytest.mark.skipif(not hasattr(kl, "AdaptiveAveragePooling2D"), reason="this Keras has no adaptive pooling")
def test_adaptive_pooling_of_keras_is_swapped_too():
    model = keras.Sequential([keras.Input((7, 6, 2)), kl.AdaptiveAveragePooling2D((3, 2), name="pool")])
    swapped = swap_pooling(model, "max")
    assert type(swapped.get_layer("pool")) is tfopt.AdaptiveMaxPooling2D
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 2)).astype("float32")
    np.testing.assert_allclose(model(x), pooled(x, (3, 2), np.mean), atol=1e-6)
    np.testing.assert_array_equal(swapped(x), pooled(x, (3, 2), np.max))


@pytest.mark.parametrize("cls", [tfopt.AdaptiveAveragePooling2D, tfopt.AdaptiveMaxPooling2D])
def test_int8_files_of_adaptive_pooling(cls, tmp_path):
    """7 x 5 into 3 x 2, no multiples of each other."""
    model = keras.Sequential([keras.Input((7, 5, 2)), kl.Conv2D(3, 1), cls((3, 2)), kl.Flatten(), kl.Dense(2)])
    x = np.random.default_rng(0).uniform(-1, 1, (32, 7, 5, 2)).astype("float32")
    quantized = tfopt.calibrate(tfopt.quantize(model), x)
    assert tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=x).quantization == "int8"
    got = tfopt.TFLiteModel(tmp_path / "m.tflite").predict(x)
    np.testing.assert_allclose(got, model.predict(x, verbose=0), atol=0.05)


def classes(model):
    return [type(layer).__name__ for layer in model.layers if "Pooling" in type(layer).__name__]


@pytest.mark.parametrize("name", nets.NETS)
def test_max_and_average(name):
    model = nets.build(name)
    before = classes(model)
    to = "max" if any("Average" in cls for cls in before) else "average"
    swapped = swap_pooling(model, to)
    assert classes(swapped) == [
        cls.replace("Average", "Max") if to == "max" else cls.replace("Max", "Average") for cls in before
    ]
    assert classes(swapped) != before
    assert classes(model) == before
    assert [layer.name for layer in swapped.layers] == [layer.name for layer in model.layers]
    for kept, now in zip(model.weights, swapped.weights, strict=True):
        np.testing.assert_array_equal(kept, now)
    assert np.isfinite(nets.run(swapped)).all()


def test_values_and_settings_of_what_is_swapped():
    inputs = keras.Input((7, 6, 2))
    x = kl.MaxPooling2D((3, 2), strides=(1, 2), padding="same", name="a")(inputs)
    x = keras.ops.max_pool(x, 2)
    model = keras.Model(inputs, kl.GlobalMaxPooling2D(keepdims=True, name="b")(x))
    swapped = swap_pooling(model, "average")
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 2)).astype("float32")
    want = keras.ops.average_pool(keras.ops.average_pool(x, (3, 2), (1, 2), "same"), 2)
    np.testing.assert_allclose(swapped(x), keras.ops.mean(want, (1, 2), keepdims=True), atol=1e-6)
    back = swap_pooling(swapped, "max")
    np.testing.assert_array_equal(back(x), model(x))


def test_adaptive_keeps_the_grid_and_the_outputs_where_windows_do():
    model = nets.build("article_cnn")  # 26 -> 13, and 11 -> 5 with one column left over
    adaptive = swap_pooling(model, "adaptive")
    assert [adaptive.get_layer(name).output_size for name in ("pool1", "pool2")] == [(13, 13), (5, 5)]
    assert isinstance(adaptive.get_layer("pool1"), tfopt.AdaptiveMaxPooling2D)
    np.testing.assert_array_equal(nets.run(swap_pooling(model, "adaptive", "pool1")), nets.run(model))
    assert np.abs(nets.run(adaptive) - nets.run(model)).max() > 0
    residual = nets.build("resnet8")
    np.testing.assert_allclose(nets.run(swap_pooling(residual, "adaptive")), nets.run(residual), atol=1e-6)
    average = swap_pooling(adaptive, "average")
    assert isinstance(average.get_layer("pool2"), tfopt.AdaptiveAveragePooling2D)
    assert average.get_layer("pool2").output_size == (5, 5)


def test_pruned_channels_go_through_adaptive_pooling():
    model = swap_pooling(nets.build("article_cnn"), "adaptive")
    small = tfopt.shrink(tfopt.prune(model, sparsity=0.5, pattern="channel"))
    assert small.get_layer("conv2").filters == 32
    assert small.get_layer("dense").kernel.shape == (3 * 3 * 32, 32)


def test_nested_and_chosen_ones():
    model = nets.build("nested")
    swapped = swap_pooling(model, "max", "backbone")
    assert isinstance(swapped.get_layer("backbone").get_layer("pool"), kl.MaxPooling2D)
    swapped = swap_pooling(model, "average", lambda op: "Global" in type(op).__name__)
    assert isinstance(swapped.get_layer("global"), kl.GlobalAveragePooling2D)
    half = keras.Sequential([keras.Input((8, 2)), kl.MaxPooling1D(2, dtype="mixed_float16", name="p")])
    assert swap_pooling(half, "average").get_layer("p").compute_dtype == "float16"


def test_what_stays_is_said(capsys):
    inputs = keras.Input((None, 8, 2))
    x = kl.MaxPooling2D(2, name="free")(kl.TimeDistributed(kl.MaxPooling1D(2), name="steps")(inputs))
    model = keras.Model(inputs, kl.GlobalMaxPooling2D(name="global")(x))
    with pytest.warns(UserWarning, match=r"'steps' \(its pooling is inside a wrapper\)\.$"):
        swap_pooling(model, "average")
    with pytest.raises(NothingToDoError, match=r"'global' \(its output grid is fixed.*'free' \(its output grid is not"):
        swap_pooling(model, "adaptive")
    tokens = keras.Input((6,), dtype="int32")
    steps = kl.Embedding(9, 3, mask_zero=True)(tokens)
    with pytest.raises(NothingToDoError, match=r"'mean' \(it leaves out masked steps, as max pooling cannot\)"):
        swap_pooling(keras.Model(tokens, kl.GlobalAveragePooling1D(name="mean")(steps)), "max")
    swap_pooling(nets.build("conv1d"), "adaptive", verbose=1)
    assert (
        capsys.readouterr().out == "Swapped pool: max -> adaptive max\nLeft global: its output grid is fixed already\n"
    )


def test_errors():
    model = zoo.build("sequential")
    with pytest.raises(InvalidArgumentError, match="one of 'max', 'average', 'adaptive'. Received: 'mean'"):
        swap_pooling(model, "mean")
    with pytest.raises(InvalidArgumentError, match="'pool'.*The layers are: conv"):
        swap_pooling(model, "average", "pool")
    with pytest.raises(NothingToDoError, match="it is max pooling already"):
        swap_pooling(model, "max")
    for size in (0, (2, -1), (1, 2, 3)):
        with pytest.raises(InvalidArgumentError, match="`output_size` must hold a number of bins"):
            tfopt.AdaptiveMaxPooling2D(size)
    with pytest.raises(InvalidArgumentError, match="needs known lengths"):
        tfopt.AdaptiveMaxPooling1D(2)(keras.Input((None, 3)))
