"""Spaces made from a model: what is in them, and what is built from them."""

import random

import keras
import keras_tuner
import nets
import numpy as np
import pytest
from keras import layers as kl

from tfopt.core.errors import InvalidArgumentError, UnsupportedModelError
from tfopt.tuner.space import SearchSpace


def compiled(model, optimizer="adam", **options):
    model.compile(optimizer, "mse", metrics=["mae"], **options)
    return model


def small():
    """Two stages: 8x8 with a relu in a conv, 4x4 with an elu layer."""
    keras.utils.set_random_seed(3)
    return compiled(
        keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                kl.Conv2D(4, 3, padding="same", activation="relu", name="conv1"),
                kl.MaxPooling2D(name="pool"),
                kl.Conv2D(4, 3, padding="same", name="conv2"),
                kl.ELU(name="elu"),
                kl.GlobalAveragePooling2D(name="global"),
                kl.Dense(3, "softmax", name="head"),
            ]
        )
    )


def build(space, **values):
    hp = keras_tuner.HyperParameters()
    hp.values.update(values)
    return space.build(hp)


ALL_AXES = {
    "activation": ("relu", "elu", "prelu"),
    "kernel_size": (1, 3, 5),
    "pooling": ("max", "average", "adaptive"),
    "width": (0.5, 1),
    "depth": (0, 1),
    "lr": (1e-3, 1e-1),
    "batch_size": (1, 2),
    "decay": (None, "cosine"),
    "clipnorm": (None, 1.0),
    "per": "stage",
}


def trained(space, **values):
    """A variant after a training step in which its weights changed; its outputs are finite."""
    hp = keras_tuner.HyperParameters()
    hp.values.update(values, lr=0.05)
    built = space.build(hp)
    weights = [weight.numpy() for weight in built.trainable_variables]
    x = np.random.default_rng(0).uniform(-1, 1, (2, *built.input_shape[1:])).astype("float32")
    y = np.random.default_rng(1).uniform(0, 1, (2, *built.output_shape[1:]))
    history = space.fit(hp, built, x, y, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert any((old != new).any() for old, new in zip(weights, built.trainable_variables, strict=True))
    assert np.isfinite(nets.run(built)).all()
    return built


@pytest.mark.parametrize("name", ["article_cnn", "resnet8", "nested", "conv1d"])
def test_every_net_gives_a_space_whose_models_build_and_train(name):
    model = compiled(nets.build(name), run_eagerly=True)
    before = nets.run(model)
    space = SearchSpace.from_model(model, **ALL_AXES)
    architecture = {axis.name.split("/")[0] for axis in space.axes}
    assert architecture - {"depth"} == {"activation", "kernel_size", "pooling", "width"}
    assert ("depth" in architecture) is (name == "resnet8") is ("depth" not in space.missed)
    if name == "resnet8":  # whose kernels are of one size and whose activations are all relu: the default is the model
        np.testing.assert_allclose(nets.run(build(space)), before, atol=1e-5)
    choose = random.Random(1)
    for decay in ("none", "cosine"):
        built = trained(space, decay=decay, **{axis.name: choose.choice(axis.values) for axis in space.axes})
        assert built.output_shape == model.output_shape
    np.testing.assert_array_equal(nets.run(model), before)


def test_a_mobilenet_gives_a_space_too():
    model = compiled(nets.build("mobilenet"), run_eagerly=True)
    choices = {"activation": ("relu6", "elu"), "kernel_size": (3, 5), "pooling": ("average", "max"), "depth": (0.5, 1)}
    space = SearchSpace.from_model(model, **{**ALL_AXES, **choices, "per": "model"})
    defaults = {axis.name: axis.default for axis in space.axes}
    assert defaults == {"activation": "relu6", "kernel_size": 3, "pooling": "average", "width": 1.0, "depth": 1.0}
    built = trained(space, activation="elu", kernel_size=5, pooling="max", width=0.5, depth=0.5, decay="cosine")
    sizes = {
        layer.name: layer.kernel_size[0]
        for layer in built.layers
        if "depthwise" in layer.name and layer.weights and hasattr(layer, "kernel_size")
    }
    assert sizes["block_1_depthwise"] == 5  # reads 16x16
    assert sizes["block_16_depthwise"] == 3  # reads 1x1
    assert len(built.layers) < len(model.layers)


def test_values_that_leave_the_model_as_it_is_are_the_default():
    space = SearchSpace.from_model(
        small(), activation=("prelu", "relu"), kernel_size=(5, 3), pooling=("average", "max"), width=(2, 1), per="layer"
    )
    found = {axis.name: (axis.values, axis.default) for axis in space.axes}
    assert found == {
        "activation/conv1": (("prelu", "relu"), "relu"),
        "activation/elu": (("prelu", "relu"), "prelu"),
        "kernel_size/conv1": ((5, 3), 3),
        "pooling/pool": (("average", "max"), "max"),
        "pooling/global": (("average", "max"), "average"),
        "width": ((2.0, 1.0), 1.0),
    }


def test_stages_are_grids():
    space = SearchSpace.from_model(small(), activation=("relu", "gelu"), kernel_size=(1, 3), per="stage")
    assert [axis.name for axis in space.axes] == [
        "kernel_size/stage1", "kernel_size/stage2", "activation/stage1", "activation/stage2",
    ]  # fmt: skip
    built = build(space, **{"kernel_size/stage2": 1, "activation/stage2": "gelu"})
    assert built.get_layer("conv1").kernel_size == (3, 3)
    assert built.get_layer("conv2").kernel_size == (1, 1)
    assert built.get_layer("conv1").activation is keras.activations.relu
    assert built.get_layer("elu").activation is keras.activations.gelu


def test_a_kernel_larger_than_its_input_is_not_in_the_space():
    model = compiled(
        keras.Sequential(
            [keras.Input((6, 6, 1)), kl.Conv2D(2, 3, name="a"), kl.Conv2D(2, 3, name="b"), kl.Flatten(), kl.Dense(1)]
        )
    )
    space = SearchSpace.from_model(model, kernel_size=(1, 3, 5, 7), per="layer")
    assert {axis.name: axis.values for axis in space.axes} == {"kernel_size/a": (1, 3, 5), "kernel_size/b": (1, 3)}
    assert space.missed["kernel_size=5 at b"] == "its input is 4 wide"
    whole = SearchSpace.from_model(model, kernel_size=(3, 5, 7))
    assert [axis.values for axis in whole.axes] == [(3, 5)]
    built = build(whole, kernel_size=5)
    assert [built.get_layer(name).kernel_size[0] for name in "ab"] == [5, 3]


def test_weights_are_inherited_where_the_edit_allows():
    model = small()
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype("float32")
    options = {"kernel_size": (3, 5), "width": (0.5, 1)}
    space = SearchSpace.from_model(model, **options)
    for values in ({}, {"kernel_size": 5}):  # a larger kernel computes what the smaller one did
        np.testing.assert_allclose(build(space, **values).predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)
    fresh = build(SearchSpace.from_model(model, **options, inherit=False))
    for old, new in zip(model.weights, fresh.weights, strict=True):
        assert new.shape == old.shape
        assert len(old.shape) == 1 or not np.allclose(new, old)


def test_narrow_variants_start_from_the_most_important_channels():
    model = small()
    conv1, conv2, head = (model.get_layer(name).kernel for name in ("conv1", "conv2", "head"))
    conv1.assign(conv1 * np.array([1, 50, 1, 50]))
    conv2.assign(conv2 * np.array([50, 1, 50, 1]))
    options = {"kernel_size": (3, 5), "width": (0.5, 2, 1)}
    space = SearchSpace.from_model(model, **options)
    narrow = build(space, width=0.5, kernel_size=5)
    assert [narrow.get_layer(name).filters for name in ("conv1", "conv2")] == [2, 2]
    inner = np.s_[1:-1, 1:-1]  # around it zeros
    np.testing.assert_array_equal(narrow.get_layer("conv1").kernel.numpy()[inner], conv1.numpy()[..., [1, 3]])
    expected = conv2.numpy()[:, :, [1, 3]][..., [0, 2]]  # its input is smaller than 5
    np.testing.assert_array_equal(narrow.get_layer("conv2").kernel.numpy(), expected)
    np.testing.assert_array_equal(narrow.get_layer("head").kernel.numpy(), head.numpy()[[0, 2]])
    wide = build(space, width=2.0)
    assert wide.get_layer("conv1").filters == 8
    fresh = build(SearchSpace.from_model(model, **options, inherit=False), width=0.5)
    assert fresh.get_layer("conv1").kernel.shape == (3, 3, 2, 2)
    assert not np.isin(fresh.get_layer("conv1").kernel.numpy(), conv1.numpy()).any()


def test_training_is_part_of_the_space():
    model = small()
    model.optimizer.weight_decay = 0.25
    space = SearchSpace.from_model(
        model, lr=(1e-4, 1e-2), clipnorm=(None, 0.5), batch_size=(8, 16), decay=(None, "step")
    )
    assert space.axes == ()
    hp = keras_tuner.HyperParameters()
    built = space.build(hp)
    assert hp.values == {"lr": 0.001, "clipnorm": 0.0, "batch_size": 8, "decay": "none"}
    assert (built.optimizer.clipnorm, float(built.optimizer.learning_rate)) == (None, pytest.approx(1e-3))
    hp.values.update(lr=0.005, clipnorm=0.5, batch_size=16, decay="step")
    built = space.build(hp)
    assert (built.optimizer.clipnorm, float(built.optimizer.learning_rate)) == (0.5, pytest.approx(5e-3))
    x = np.zeros((40, 8, 8, 2), "float32")
    history = space.fit(hp, built, x, np.zeros((40, 3)), epochs=3, verbose=0)
    assert int(built.optimizer.iterations) == 9  # three batches of 16 in each epoch
    assert float(built.optimizer.learning_rate) == pytest.approx(5e-5)  # a tenth after each third
    assert "mae" in history.history
    assert built.optimizer.clipnorm == 0.5


def test_learning_rates_are_a_range_or_a_choice():
    hp = keras_tuner.HyperParameters()
    SearchSpace.from_model(small(), lr=(1e-3, 1e-2, 1e-1)).build(hp)
    assert [type(part).__name__ for part in hp.space] == ["Choice"]
    hp = keras_tuner.HyperParameters()
    SearchSpace.from_model(small(), lr=(1e-3, 1e-1)).build(hp)
    assert [type(part).__name__ for part in hp.space] == ["Float"]


def test_tuners_of_keras_tuner_take_it(tmp_path):
    space = SearchSpace.from_model(small(), activation=("relu", "elu"), batch_size=(8, 16))
    tuner = keras_tuner.RandomSearch(space, objective="val_loss", max_trials=2, directory=tmp_path, seed=1)
    x, y = np.zeros((16, 8, 8, 2), "float32"), np.zeros((16, 3), "float32")
    tuner.search(x, y, validation_data=(x, y), epochs=1, verbose=0)
    (best,) = tuner.get_best_hyperparameters(1)
    assert set(best.values) == {"activation", "batch_size"}
    assert {trial.status for trial in tuner.oracle.trials.values()} == {"COMPLETED"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "hold a choice"),
        ({"pooling": ("median",)}, "one of 'max', 'average', 'adaptive'"),
        ({"activation": ("reluu",)}, "name of an activation"),
        ({"activation": (keras.activations.relu,)}, "names of activations"),
        ({"kernel_size": (0,)}, "at least 1"),
        ({"width": (0,)}, "above 0"),
        ({"width": 0.5}, "must be a list of finite numbers above 0"),
        ({"depth": (1.5,)}, "numbers from 0 to 1"),
        ({"lr": (0.1, 0.01)}, "lowest to highest"),
        ({"lr": (0,)}, "above 0"),
        ({"batch_size": (8.0,)}, "whole numbers"),
        ({"clipnorm": (-1,)}, "above 0"),
        ({"decay": ("linear",)}, "'linear'"),
        ({"lr": (0.1, 0.2), "per": "block"}, "`per`"),
    ],
)
def test_other_values_are_refused(options, said):
    with pytest.raises(InvalidArgumentError, match=said):
        SearchSpace.from_model(small(), **options)


def test_what_is_not_possible_is_said_where_nothing_is_left():
    with pytest.raises(InvalidArgumentError, match="no block can be dropped"):
        SearchSpace.from_model(compiled(keras.Sequential([keras.Input((2,)), kl.Dense(1)])), depth=(0.5,))


def test_models_that_cannot_be_searched_are_refused():
    with pytest.raises(InvalidArgumentError, match="compiled"):
        SearchSpace.from_model(keras.Sequential([keras.Input((2,)), kl.Dense(1)]), lr=(0.1, 1))
    with pytest.raises(UnsupportedModelError):
        SearchSpace.from_model(keras.Sequential([kl.Dense(1)]), lr=(0.1, 1))
