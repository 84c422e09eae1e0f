"""Fine-tuning: which weights move and which stay, in each mode."""

import keras
import nets
import numpy as np
import pytest
from keras import layers as kl

import tfopt
from tfopt import InvalidArgumentError, fine_tune, recipe
from tfopt.core.models.graph import read

X = np.random.default_rng(0).normal(2, 3, (16, 8, 8, 2)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)
ONE = recipe(epochs=1, batch_size=8, learning_rate=0.1, loss="sparse_categorical_crossentropy")


def pretrained():
    """A backbone as a nested model, and a head on it."""
    inputs = keras.Input((8, 8, 2))
    x = kl.Conv2D(4, 3, name="c1")(inputs)
    x = kl.ReLU()(kl.BatchNormalization(name="bn1")(x))
    x = kl.Conv2D(4, 3, activation="relu", name="c2")(x)
    backbone = keras.Model(inputs, kl.BatchNormalization(name="bn2")(x), name="backbone")
    image = keras.Input((8, 8, 2))
    x = kl.Dense(5, "relu", name="hidden")(kl.GlobalAveragePooling2D()(backbone(image)))
    return keras.Model(image, kl.Dense(3, "softmax", name="head")(x), name="net")


def changed(before, after):
    """Paths of the layers of which a weight, or a statistic, is not what it was."""
    pairs = zip(read(before).layers, read(after).layers, strict=True)
    return [
        path
        for (path, old), (_, new) in pairs
        if not isinstance(old, keras.Model)
        and any(not np.array_equal(a, b) for a, b in zip(old.get_weights(), new.get_weights(), strict=True))
    ]


ALL = ["backbone/c1", "backbone/bn1", "backbone/c2", "backbone/bn2", "hidden", "head"]


@pytest.mark.parametrize(
    ("arguments", "moves"),
    [
        ({}, ["head"]),
        ({"layers": ["hidden", "head"]}, ["hidden", "head"]),
        ({"mode": "partial", "layers": "h*"}, ["hidden", "head"]),
        ({"mode": "partial", "layers": 3}, ["backbone/bn2", "hidden", "head"]),
        ({"mode": "partial", "layers": "backbone"}, ALL[:4]),
        ({"mode": "full"}, ALL),
        ({"mode": "full", "freeze_batch_norm": True}, [path for path in ALL if "bn" not in path]),
    ],
    ids=str,
)
def test_what_is_trained_moves_and_nothing_else(arguments, moves):
    model = pretrained()
    weights = [w.copy() for w in model.get_weights()]
    tuned = fine_tune(model, X, Y, how=ONE, verbose=0, **arguments)
    assert changed(model, tuned) == moves
    trained = [path for path, layer in read(tuned).layers if layer.trainable and layer.weights]
    assert [path for path in trained if path != "backbone"] == moves
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    assert all(layer.trainable for _, layer in read(model).layers)
    assert tuned.name == "net"


def test_what_was_frozen_can_be_trained_next():
    head = fine_tune(pretrained(), X, Y, how=ONE, verbose=0)
    assert changed(head, fine_tune(head, X, Y, mode="full", how=ONE, verbose=0)) == ALL


def test_frozen_batch_normalization_uses_its_statistics():
    """In training mode its output would have mean 0 and not depend on the statistics that it keeps."""
    model = keras.Sequential([keras.Input((2,)), kl.BatchNormalization(name="bn"), kl.Dense(1, name="head")])
    x = np.array([[0.0, 4.0], [2.0, 8.0]], "float32")
    tuned = fine_tune(model, x, x[:, :1], how=recipe(epochs=1, loss="mse"), verbose=0)
    gamma, beta, mean, variance = tuned.get_layer("bn").get_weights()
    want = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    np.testing.assert_allclose(tuned.get_layer("bn")(x, training=True), want, atol=1e-6)
    np.testing.assert_array_equal(mean, [0, 0])


def test_gradual_unfreezing():
    """Six layers in three stages over six epochs: two epochs of the last two, two of the last four, two of all."""
    model = pretrained()
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            names = [path for path, layer in read(self.model).layers if layer.trainable and path in ALL]
            seen[epoch] = names, changed(model, self.model), int(self.model.optimizer.iterations)

    how = recipe(epochs=6, samples=16, batch_size=8, learning_rate=0.1, decay="cosine", loss=ONE.loss)
    tuned = fine_tune(model, X, Y, mode="full", stages=3, how=how, callbacks=[Look()], verbose=0)
    for epoch, parts in enumerate([ALL[4:], ALL[4:], ALL[2:], ALL[2:], ALL, ALL]):
        assert seen[epoch] == (parts, parts, 2 * (epoch + 1))
    assert tuned.history.epoch == [*range(6)]
    # the decay went on from stage to stage, down to its end
    assert float(tuned.optimizer.learning_rate) == pytest.approx(0, abs=1e-8)
    assert sum(layer.trainable for _, layer in read(tuned).layers) == len(list(read(tuned).layers))


def test_stages_and_growing_batches_together():
    how = recipe(epochs=4, batch_size=4, batch_growth=(2, 2), loss=ONE.loss)
    tuned = fine_tune(pretrained(), X, Y, mode="partial", layers=3, stages=3, how=how, verbose=0)
    assert int(tuned.optimizer.iterations) == 4 + 4 + 2 + 2
    assert tuned.history.epoch == [0, 1, 2, 3]


def test_masks_hold_and_validation_is_recorded():
    model = tfopt.prune(pretrained(), sparsity=0.5)
    tuned = fine_tune(model, X, Y, mode="full", how=ONE, metrics=["accuracy"], validation_data=(X, Y), verbose=0)
    kernel = tuned.get_layer("backbone").get_layer("c2").kernel.numpy()
    assert (kernel == 0).mean() == 0.5
    assert set(tuned.history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}


def test_the_loss_of_the_model_and_the_usual_recipe():
    model = pretrained()
    model.compile("sgd", "sparse_categorical_crossentropy")
    tuned = fine_tune(model, X, Y, verbose=0)
    assert tuned.history.epoch == [0, 1, 2, 3, 4]
    assert float(tuned.optimizer.learning_rate) == pytest.approx(1e-3)
    assert changed(model, tuned) == ["head"]
    with pytest.raises(InvalidArgumentError, match=r"Training needs a loss.*'net', without one.*how=recipe"):
        fine_tune(pretrained(), X, Y)


def test_heads_of_other_models():
    from tfopt.core.models.graph import read
    from tfopt.training.transfer import _chosen

    assert _chosen(read(nets.build("resnet8")), "features", None) == ["head"]
    assert _chosen(read(nets.build("mobilenet")), "features", None) == ["predictions"]
    assert _chosen(read(nets.build("nested").get_layer("backbone")), "features", None) == ["out"]
    inputs = keras.Input((3,))
    body = kl.Dense(4, name="body")(inputs)
    one = kl.BatchNormalization(name="norm")(kl.Dense(2, name="one")(body))
    two = keras.Sequential([keras.Input((4,)), kl.Dense(2, name="two"), kl.PReLU(name="slope")], name="branch")(body)
    model = keras.Model(inputs, [kl.Softmax()(one), two])
    assert sorted(_chosen(read(model), "features", None)) == ["branch/slope", "branch/two", "norm", "one"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"mode": "some"}, "one of 'features', 'partial', 'full'. Received: 'some'"),
        ({"mode": "partial"}, "mode='partial' with layers=None"),
        ({"mode": "full", "layers": "head"}, "mode='full' with layers='head'"),
        ({"layers": "heads"}, "'heads'.*The layers are"),
        ({"layers": []}, "At least one layer with weights"),
        ({"layers": "re_lu*"}, "At least one layer with weights"),
        ({"layers": 0}, "a layer name, a glob"),
        ({"mode": "full", "stages": 2}, "`stages` must be from 1.*2 with mode='full', 1 epochs and 6 layers"),
        ({"stages": 2, "how": recipe(epochs=3, loss="mse")}, "'features' has one stage"),
        ({"mode": "full", "stages": 2, "how": recipe(epochs=3, loss="mse", ema=0.5)}, "goes with one stage"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(InvalidArgumentError, match=says):
        fine_tune(pretrained(), X, Y, **{"how": ONE, **arguments})
