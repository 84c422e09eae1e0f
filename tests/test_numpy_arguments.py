"""Each verb takes numbers of numpy for its arguments as it takes Python's own, and keeps them as Python's own."""

import json

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt

WHOLE, REAL = np.int64, np.float32
X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
Y = np.arange(24) % 3


@pytest.fixture(scope="module")
def net():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), kl.Dense(16, "relu", name="hidden"), kl.Dense(3, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def residual():
    inputs = keras.Input((6,))
    x = kl.Dense(6, name="first")(inputs)
    x = kl.Add()([x, kl.Dense(6, "relu", name="block")(x)])
    return keras.Model(inputs, kl.Dense(3, name="last")(x))


CALLS = {
    "prune sparsity": lambda net: tfopt.prune(net, sparsity=REAL(0.5), min_kept=REAL(0.125), seed=WHOLE(1)),
    "prune dict": lambda net: tfopt.prune(net, sparsity={"hidden": np.array(0.5)}),
    "prune threshold": lambda net: tfopt.prune(net, threshold=REAL(0.1)),
    "prune channels": lambda net: tfopt.prune(net, pattern="channel", sparsity=REAL(0.5), round_to=WHOLE(8)),
    "prune to_macs": lambda net: tfopt.prune(net, pattern="channel", to_macs=REAL(0.5)),
    "prune blocks": lambda net: tfopt.prune(net, pattern=tfopt.Block(WHOLE(2), np.int32(1)), sparsity=REAL(0.5)),
    "prune n:m": lambda net: tfopt.prune(net, pattern=(WHOLE(2), WHOLE(4))),
    "cluster": lambda net: tfopt.cluster(net, WHOLE(4), per_channel=np.False_, seed=WHOLE(1)),
    "cluster dict": lambda net: tfopt.cluster(net, {"hidden": np.array(4)}),
    "quantize": lambda net: tfopt.quantize(net, freeze_ranges_after=WHOLE(3), freeze_batch_norm_after=WHOLE(2)),
    "quantize, learned": lambda net: tfopt.quantize(net, learn_ranges=np.True_),
    "calibrate": lambda net: tfopt.calibrate(
        tfopt.quantize(net), X, method="percentile", percentile=REAL(99), samples=WHOLE(8), batch_size=WHOLE(4)
    ),
    "scale_width": lambda net: tfopt.scale_width(net, REAL(0.5), round_to=WHOLE(2), seed=WHOLE(1)),
    "fine_tune": lambda net: tfopt.fine_tune(
        net, X, Y, mode="partial", layers=WHOLE(1), stages=WHOLE(1), verbose=0, how=tfopt.recipe(epochs=WHOLE(1))
    ),
    "Distiller": lambda net: tfopt.Distiller(
        tfopt.scale_width(net, 0.5), [net, net], alpha=REAL(0.5), temperature=REAL(2), teacher_weights=np.array([1, 3])
    ),
    "fuse": lambda net: tfopt.fuse([net, tfopt.scale_width(net, 0.5)], "cascade", thresholds=[REAL(0.5)]),
}


@pytest.mark.parametrize("call", CALLS)
def test_verbs_that_give_a_model(call, net):
    made = CALLS[call](net)
    json.dumps(keras.saving.serialize_keras_object(made.get_config()))


def test_saved_and_loaded(net, tmp_path):
    for number, call in enumerate(("prune channels", "cluster", "quantize", "fuse")):
        made = CALLS[call](net)
        made.save(tmp_path / f"{number}.keras")
        loaded = keras.models.load_model(tmp_path / f"{number}.keras")
        np.testing.assert_allclose(loaded.predict(X, verbose=0), made.predict(X, verbose=0), atol=1e-6)


def test_blocks_of_layers(residual):
    assert len(tfopt.prune(residual, pattern="layer", sparsity=REAL(1)).layers) < len(residual.layers)


def test_records_hold_numbers_of_python(net):
    sensitivity = tfopt.sensitivity(net, (X, Y), sparsities=(REAL(0.5), REAL(0.75)), batch_size=WHOLE(8), verbose=0)
    assert set(sensitivity.sparsities(REAL(0.4))) == {"hidden", net.layers[-1].name}
    ranking = tfopt.rank_features(net, (X, Y), repeats=WHOLE(2), seed=WHOLE(1), batch_size=WHOLE(8))
    assert len(ranking.lowest(WHOLE(2))) == len(ranking.lowest(fraction=REAL(0.34))) == 2
    for report in (sensitivity, ranking):
        json.loads(report.to_json())


def test_recipes():
    plan = tfopt.recipe(
        epochs=WHOLE(6),
        samples=WHOLE(100),
        batch_size=WHOLE(10),
        learning_rate=REAL(0.125),
        decay="step",
        decay_factor=REAL(0.5),
        decay_epochs=WHOLE(2),
        clipnorm=REAL(1),
    )
    assert [plan.learning_rate(step) for step in (0, 19, 20, 40)] == [0.125, 0.125, 0.0625, 0.03125]
    json.dumps(keras.optimizers.serialize(plan.optimizer))
    assert (type(plan.epochs), {type(size) for size in plan.batch_sizes.values()}) == (int, {int})
    warm = tfopt.recipe(
        epochs=WHOLE(4),
        samples=WHOLE(8),
        decay="cosine",
        warmup_epochs=WHOLE(1),
        label_smoothing=REAL(0),
        ema=REAL(0.5),
    )
    assert warm.optimizer.ema_momentum == 0.5
    assert tfopt.recipe(epochs=WHOLE(4), batch_growth=(WHOLE(2), WHOLE(1))).batch_sizes == {
        0: 32,
        1: 64,
        2: 128,
        3: 256,
    }
    json.dumps(keras.optimizers.serialize(tfopt.recipe(epochs=WHOLE(1), adaptive_clip=REAL(0.5)).optimizer))


REFUSED = {
    "prune": lambda net, value: tfopt.prune(net, sparsity=value),
    "cluster": lambda net, value: tfopt.cluster(net, value),
    "quantize": lambda net, value: tfopt.quantize(net, freeze_ranges_after=value),
    "scale_width": lambda net, value: tfopt.scale_width(net, value),
    "recipe": lambda net, value: tfopt.recipe(epochs=value),
    "recipe ema": lambda net, value: tfopt.recipe(epochs=1, ema=value),
    "Distiller": lambda net, value: tfopt.Distiller(tfopt.scale_width(net, 0.5), net, alpha=value),
    "export_tflite": lambda net, value: tfopt.export_tflite(net, "never.tflite", tolerance=value),
}


@pytest.mark.parametrize("value", [True, np.True_, float("nan"), np.float32("nan"), "1", 1j], ids=repr)
@pytest.mark.parametrize("call", REFUSED)
def test_what_is_no_number_is_refused(call, value, net):
    with pytest.raises(tfopt.InvalidArgumentError, match="` must be "):
        REFUSED[call](net, value)
