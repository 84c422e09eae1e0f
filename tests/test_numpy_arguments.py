"""Each verb takes numbers of numpy for its arguments as it takes Python's own, and keeps them as Python's own."""

import json

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt

INT, FLOAT = np.int64, np.float32
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
    "prune sparsity": lambda net: tfopt.prune(net, sparsity=FLOAT(0.5), min_kept=FLOAT(0.125), seed=INT(1)),
    "prune dict": lambda net: tfopt.prune(net, sparsity={"hidden": np.array(0.5)}),
    "prune threshold": lambda net: tfopt.prune(net, threshold=FLOAT(0.1)),
    "prune channels": lambda net: tfopt.prune(net, pattern="channel", sparsity=FLOAT(0.5), round_to=INT(8)),
    "prune to_macs": lambda net: tfopt.prune(net, pattern="channel", to_macs=FLOAT(0.5)),
    "prune blocks": lambda net: tfopt.prune(net, pattern=tfopt.Block(INT(2), np.int32(1)), sparsity=FLOAT(0.5)),
    "prune n:m": lambda net: tfopt.prune(net, pattern=(INT(2), INT(4))),
    "cluster": lambda net: tfopt.cluster(net, INT(4), per_channel=np.False_, seed=INT(1)),
    "cluster dict": lambda net: tfopt.cluster(net, {"hidden": np.array(4)}),
    "quantize": lambda net: tfopt.quantize(net, freeze_ranges_after=INT(3), freeze_batch_norm_after=INT(2)),
    "quantize, learned": lambda net: tfopt.quantize(net, learn_ranges=np.True_),
    "calibrate": lambda net: tfopt.calibrate(
        tfopt.quantize(net), X, method="percentile", percentile=FLOAT(99), samples=INT(8), batch_size=INT(4)
    ),
    "scale_width": lambda net: tfopt.scale_width(net, FLOAT(0.5), round_to=INT(2), seed=INT(1)),
    "fine_tune": lambda net: tfopt.fine_tune(
        net, X, Y, mode="partial", layers=INT(1), stages=INT(1), verbose=0, how=tfopt.recipe(epochs=INT(1))
    ),
    "Distiller": lambda net: tfopt.Distiller(
        tfopt.scale_width(net, 0.5),
        [net, net],
        alpha=FLOAT(0.5),
        temperature=FLOAT(2),
        teacher_weights=np.array([1, 3]),
    ),
    "fuse": lambda net: tfopt.fuse([net, tfopt.scale_width(net, 0.5)], "cascade", thresholds=[FLOAT(0.5)]),
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
    assert len(tfopt.prune(residual, pattern="layer", sparsity=FLOAT(1)).layers) < len(residual.layers)


def test_records_hold_numbers_of_python(net):
    sensitivity = tfopt.sensitivity(net, (X, Y), sparsities=(FLOAT(0.5), FLOAT(0.75)), batch_size=INT(8), verbose=0)
    assert set(sensitivity.sparsities(FLOAT(0.4))) == {"hidden", net.layers[-1].name}
    ranking = tfopt.rank_features(net, (X, Y), repeats=INT(2), seed=INT(1), batch_size=INT(8))
    assert len(ranking.lowest(INT(2))) == len(ranking.lowest(fraction=FLOAT(0.34))) == 2
    for report in (sensitivity, ranking):
        json.loads(report.to_json())


def test_recipes():
    plan = tfopt.recipe(
        epochs=INT(6),
        samples=INT(100),
        batch_size=INT(10),
        learning_rate=FLOAT(0.125),
        decay="step",
        decay_factor=FLOAT(0.5),
        decay_epochs=INT(2),
        clipnorm=FLOAT(1),
    )
    assert [plan.learning_rate(step) for step in (0, 19, 20, 40)] == [0.125, 0.125, 0.0625, 0.03125]
    json.dumps(keras.optimizers.serialize(plan.optimizer))
    assert (type(plan.epochs), {type(size) for size in plan.batch_sizes.values()}) == (int, {int})
    warm = tfopt.recipe(
        epochs=INT(4), samples=INT(8), decay="cosine", warmup_epochs=INT(1), label_smoothing=FLOAT(0), ema=FLOAT(0.5)
    )
    assert warm.optimizer.ema_momentum == 0.5
    assert tfopt.recipe(epochs=INT(4), batch_growth=(INT(2), INT(1))).batch_sizes == {0: 32, 1: 64, 2: 128, 3: 256}
    json.dumps(keras.optimizers.serialize(tfopt.recipe(epochs=INT(1), adaptive_clip=FLOAT(0.5)).optimizer))


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
