"""Recipes: schedules worked out by hand, clipping and losses against numpy, and what Keras does with them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from classifier import DATA, LABELS, dense_net
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt import InvalidArgumentError, recipe
from tfopt.training.clipping import adaptively_clipped, clip_to_weights
from tfopt.training.smoothing import SmoothedSparseCategoricalCrossentropy, smoothed

SCHEDULE = keras.optimizers.schedules.CosineDecay(1.0, 9)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def rates(plan, steps):
    return [plan.learning_rate(step) for step in steps]


def test_steps_by_hand():
    """100 samples in batches of 32 make 4 updates an epoch."""
    plan = recipe(epochs=5, samples=100, learning_rate=0.5, decay="step", decay_factor=0.1, decay_epochs=2)
    want = [0.5] * 8 + [0.05] * 8 + [0.005] * 4
    np.testing.assert_allclose(rates(plan, range(20)), want, rtol=1e-6)


def test_exponential_by_hand():
    plan = recipe(epochs=6, samples=64, learning_rate=1.0, decay="exponential", decay_factor=0.25, decay_epochs=2)
    np.testing.assert_allclose(rates(plan, [0, 2, 4, 8, 6]), [1, 0.5, 0.25, 0.0625, 0.125], rtol=1e-6)


def test_cosine_with_warm_up_by_hand():
    plan = recipe(epochs=10, samples=96, learning_rate=0.3, decay="cosine", warmup_epochs=2)  # 6 of 30 updates
    rising = [0.3 * step / 6 for step in range(6)]
    falling = [0.3 * 0.5 * (1 + np.cos(np.pi * (step - 6) / 24)) for step in range(6, 31)]
    np.testing.assert_allclose(rates(plan, range(31)), [*rising, *falling], atol=1e-6)
    plain = recipe(epochs=10, samples=96, learning_rate=0.3, decay="cosine")
    np.testing.assert_allclose(rates(plain, [0, 15, 30]), [0.3, 0.15, 0], atol=1e-6)


def test_plateau_is_the_callback_of_keras():
    plan = recipe(epochs=40, decay="plateau", decay_factor=0.5)
    (callback,) = plan.callbacks
    assert isinstance(callback, keras.callbacks.ReduceLROnPlateau)
    assert (callback.monitor, callback.factor, callback.patience) == ("val_loss", 0.5, 4)
    model = dense_net()
    stuck = recipe(epochs=3, optimizer="sgd", learning_rate=1e-6, decay="plateau", decay_epochs=1, loss=LOSS)
    stuck.callbacks[0].min_delta = 1.0
    history = stuck.fit(model, DATA, LABELS, validation_data=(DATA, LABELS), verbose=0)
    np.testing.assert_allclose(history.history["learning_rate"], [1e-6, 1e-6, 1e-7], rtol=1e-5)
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-8)


def test_growing_batches_make_fewer_updates():
    """64 samples: 2 epochs of 8 updates, 2 of 4, 1 of 2; the decay follows these."""
    plan = recipe(epochs=5, samples=64, batch_size=8, batch_growth=(2, 2), learning_rate=0.1, decay="cosine", loss=LOSS)
    assert plan.batch_sizes == {0: 8, 2: 16, 4: 32}
    assert plan.learning_rate(26) == pytest.approx(0)
    assert plan.learning_rate(13) == pytest.approx(0.05)
    updates = []

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            updates.append((epoch, int(self.model.optimizer.iterations)))

    history = plan.fit(dense_net(), DATA, LABELS, callbacks=[Count()], verbose=0)
    assert updates == [(0, 8), (1, 16), (2, 20), (3, 24), (4, 26)]
    assert history.epoch == [0, 1, 2, 3, 4]
    assert len(history.history["loss"]) == 5
    batches = tf.data.Dataset.from_tensor_slices((DATA, LABELS)).batch(8)
    with pytest.raises(InvalidArgumentError, match="needs arrays.*_BatchDataset"):
        plan.fit(dense_net(), batches)


def test_training_stops_for_good_in_the_first_part():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    plan = recipe(epochs=4, batch_growth=(2, 2), loss=LOSS)
    assert plan.fit(dense_net(), DATA, LABELS, callbacks=[Stop()], verbose=0).epoch == [0]


def test_it_is_plain_keras():
    """The same weights as from `compile` and `fit` with the parts of the recipe; the template stays unused."""
    plan = recipe(epochs=2, samples=64, learning_rate=0.01, decay="exponential", clipnorm=0.1, loss=LOSS, batch_size=16)
    models = [dense_net(), dense_net()]
    models[1].set_weights(models[0].get_weights())
    plan.fit(models[0], DATA, LABELS, shuffle=False, verbose=0)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 4, 0.1)
    models[1].compile(keras.optimizers.Adam(schedule, clipnorm=0.1), LOSS)
    models[1].fit(DATA, LABELS, batch_size=16, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert not plan.optimizer.built
    assert int(models[0].optimizer.iterations) == 8


@pytest.mark.parametrize("name", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping_of_keras_is_set(name):
    given = keras.optimizers.SGD(0.3, momentum=0.9, clipnorm=5.0)
    plan = recipe(epochs=1, optimizer=given, **{name: 2.0})
    assert {key: plan.optimizer.get_config()[key] for key in ("clipnorm", "global_clipnorm", "clipvalue")} == {
        "clipnorm": None,
        "global_clipnorm": None,
        "clipvalue": None,
        name: 2.0,
    }
    assert plan.optimizer.momentum == 0.9
    assert plan.learning_rate(0) == pytest.approx(0.3)
    assert given.clipnorm == 5.0
    assert recipe(epochs=1, optimizer=given).optimizer.clipnorm == 5.0


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(6,), (3, 4), (2, 2, 3, 4), ()]), st.floats(0.01, 2), st.floats(0, 50), st.sampled_from([1.0, 8.0])
)
def test_adaptive_clipping_against_numpy(shape, clipping, size, scale):
    generator = np.random.default_rng(0)
    weights, gradient = generator.normal(size=shape), generator.normal(size=shape) * size
    axes = tuple(range(len(shape) - 1)) if len(shape) > 1 else None
    weight_norm = np.maximum(np.sqrt((weights**2).sum(axis=axes, keepdims=True)), 1e-3)
    norm = np.sqrt((gradient**2).sum(axis=axes, keepdims=True))
    want = gradient * np.minimum(1, clipping * weight_norm / np.maximum(norm, 1e-12))
    got = clip_to_weights(keras.ops.array(gradient * scale, "float32"), keras.ops.array(weights), clipping, scale)
    np.testing.assert_allclose(np.asarray(got) / scale, want.reshape(shape), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_adaptive_clipping_in_training(options):
    model = dense_net()
    start = [w.copy() for w in model.get_weights()]
    x = DATA[:8] * 1e4
    model.compile(adaptively_clipped(keras.optimizers.SGD(1.0), 0.01), LOSS, **options)
    model.fit(x, LABELS[:8], batch_size=8, verbose=0)
    for before, after in zip(start, model.get_weights(), strict=True):
        moved = np.linalg.norm(after - before, axis=0)
        assert (moved <= 0.01 * np.maximum(np.linalg.norm(before, axis=0), 1e-3) * 1.01 + 1e-8).all()
    assert np.abs(model.get_weights()[0] - start[0]).max() > 0


def test_adaptive_clipping_in_half_precision_and_in_files(tmp_path):
    plan = recipe(epochs=1, optimizer="sgd", learning_rate=1.0, adaptive_clip=0.01, loss=LOSS)
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = dense_net()
    finally:
        keras.mixed_precision.set_dtype_policy(before)
    start = model.get_weights()[0].copy()
    plan.fit(model, DATA[:32], LABELS[:32], verbose=0)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    moved = np.linalg.norm(model.get_weights()[0] - start, axis=0) / np.linalg.norm(start, axis=0)
    assert (moved <= 0.0101).all()
    model = dense_net()
    plan.fit(model, DATA, LABELS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert type(loaded) is type(model.optimizer)
    assert loaded.adaptive_clipping == 0.01
    assert int(loaded.iterations) == int(model.optimizer.iterations)


def test_moving_average_by_hand():
    """w goes 1 -> 0.9 -> 0.8 -> 0.7; the average starts at 0.9 and goes half of the way to each next one."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    plan = recipe(
        epochs=3, optimizer="sgd", learning_rate=0.1, ema=0.5, loss=lambda y_true, y_pred: keras.ops.mean(y_pred)
    )
    x = np.ones((4, 1), "float32")
    history = plan.fit(model, x, x, validation_data=(x, x), verbose=0)
    np.testing.assert_allclose(history.history["val_loss"], [0.9, 0.85, 0.775], atol=1e-6)
    np.testing.assert_allclose(history.history["loss"], [1.0, 0.9, 0.8], atol=1e-6)
    np.testing.assert_allclose(model.get_weights()[0], [[0.775]], atol=1e-6)


@pytest.mark.parametrize("from_logits", [True, False])
def test_smoothed_labels_against_numpy(from_logits):
    scores = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = np.array([0, 1, 2, 3, 3, 0])
    targets = 0.9 * np.eye(4)[labels] + 0.1 / 4
    want = -(targets * np.log(p)).sum(1).mean()
    given = scores if from_logits else p
    sparse = smoothed(keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits), 0.1)
    assert isinstance(sparse, SmoothedSparseCategoricalCrossentropy)
    for shaped in (labels, labels[:, None]):
        assert float(sparse(shaped, given)) == pytest.approx(want, rel=1e-5)
    dense = smoothed(keras.losses.CategoricalCrossentropy(from_logits=from_logits), 0.1)
    assert float(dense(np.eye(4)[labels], given)) == pytest.approx(want, rel=1e-5)
    again = keras.losses.deserialize(keras.losses.serialize(sparse))
    assert float(again(labels, given)) == pytest.approx(want, rel=1e-5)


def test_smoothing_of_named_losses():
    plan = recipe(epochs=1, loss="sparse_categorical_crossentropy", label_smoothing=0.2)
    assert plan.loss.get_config()["label_smoothing"] == 0.2
    binary = recipe(epochs=1, loss="binary_crossentropy", label_smoothing=0.2).loss
    assert float(binary(np.array([[1.0]]), np.array([[0.5]]))) == pytest.approx(np.log(2), rel=1e-5)
    assert recipe(epochs=1, loss="mse").loss == "mse"
    for loss in ("mse", None, keras.losses.SparseCategoricalCrossentropy(ignore_class=0)):
        with pytest.raises(InvalidArgumentError, match="for the cross-entropies of Keras"):
            recipe(epochs=1, loss=loss, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number"),
        ({"batch_size": 8.0}, "`batch_size` must be a whole number"),
        ({"decay": "linear"}, "one of 'step', 'exponential', 'cosine', 'plateau', None"),
        ({"decay": "cosine", "samples": None}, "number of training samples. Pass `samples="),
        ({"decay": "cosine", "decay_factor": 0.5}, "`decay_factor` and `decay_epochs` must go with"),
        ({"decay_epochs": 3}, "`decay_factor` and `decay_epochs` must go with"),
        ({"decay": "step", "decay_factor": 1.5}, "`decay_factor` must be a number above 0 and below 1"),
        ({"decay": "cosine", "warmup_epochs": 4}, "below `epochs`"),
        ({"decay": "step", "warmup_epochs": 1}, "`warmup_epochs` must go with decay='cosine'"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "in one way. Received: clipnorm, clipvalue"),
        ({"clipvalue": -1}, "`clipvalue` must be a finite number above 0"),
        ({"adaptive_clip": 0.0}, "`adaptive_clip` must be a finite number above 0"),
        ({"batch_growth": 2}, "`batch_growth` must be a whole factor"),
        ({"batch_growth": (1, 2)}, "`batch_growth` must be a whole factor"),
        ({"learning_rate": -0.1}, "`learning_rate` must be a finite number above 0"),
        ({"optimizer": "adamm"}, "`optimizer` must be an optimizer of Keras or its name. Received: 'adamm'"),
        ({"ema": 1.0}, "`ema` must be a number above 0 and below 1"),
        ({"ema": 0.9, "batch_growth": (2, 1)}, "goes with one batch size"),
        ({"label_smoothing": 1.0, "loss": "categorical_crossentropy"}, "must be a number of at least 0 and below 1"),
        ({"optimizer": keras.optimizers.SGD(SCHEDULE), "decay": "step"}, "takes a number as learning rate"),
    ],
)
def test_values_that_do_not_go(arguments, says):
    with pytest.raises(InvalidArgumentError, match=says):
        recipe(**{"epochs": 4, "samples": 64, **arguments})


def test_own_optimizers_and_losses_of_a_keras_name_stay_the_users():
    class SGD(keras.optimizers.SGD):
        pass

    clipped = adaptively_clipped(SGD(0.1), 0.5)
    assert isinstance(clipped, SGD)
    of_keras = keras.saving.get_registered_object("tfopt>AdaptivelyClippedSGD")
    assert not issubclass(of_keras, SGD)

    class SparseCategoricalCrossentropy(keras.losses.SparseCategoricalCrossentropy):
        def call(self, y_true, y_pred):
            return 0.0 * super().call(y_true, y_pred)

    with pytest.raises(InvalidArgumentError, match="for the cross-entropies of Keras"):
        smoothed(SparseCategoricalCrossentropy(), 0.1)
