"""Options of `quantize` for training: freezing, learned ranges; saving, resuming and every way of running `fit`."""

import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers as kl
from quantized import ranges

import tfopt
from tfopt.quantization import fakequant

OPTIONS = [
    {},
    {"freeze_ranges_after": 5},
    {"freeze_batch_norm_after": 5},
    {"freeze_ranges_after": 5, "freeze_batch_norm_after": 6},
    {"learn_ranges": True},
]


def small():
    inputs = keras.Input((6, 6, 2), name="image")
    x = kl.Conv2D(3, 3, use_bias=False, name="conv")(inputs)
    x = kl.ReLU(name="relu")(kl.BatchNormalization(name="norm")(x))
    return keras.Model(inputs, kl.Dense(3, name="out")(kl.GlobalAveragePooling2D(name="pool")(x)))


def one_layer(**options):
    """A Dense layer that passes on its first input: what arrives at its range is known."""
    model = keras.Sequential([keras.Input((2,), name="x"), kl.Dense(1, use_bias=False, name="d")])
    model.layers[0].kernel.assign([[1.0], [0.0]])
    return tfopt.quantize(model, **options)


def batch(high, low=-1.0):
    return np.array([[high, 0.0], [low, 0.0]], "float32")


def test_ranges_freeze_after_so_many_batches():
    free, frozen = one_layer(), one_layer(freeze_ranges_after=2)
    for high in (4.0, 8.0, 16.0):
        for model in (free, frozen):
            model(batch(high), training=True)
        if high == 8.0:
            kept = ranges(frozen)
            assert kept == ranges(free)
    assert ranges(frozen) == kept
    assert ranges(free)["d/output"][1] > kept["d/output"][1]
    np.testing.assert_allclose(frozen(batch(16.0), training=True)[0, 0], kept["d/output"][1], rtol=0.01)  # clipped


def test_frozen_from_the_start_keeps_what_calibration_found():
    model = tfopt.calibrate(one_layer(freeze_ranges_after=0), batch(4.0))
    model(batch(9.0), training=True)
    assert ranges(model)["d/output"] == pytest.approx((-1.0, 4.0), abs=0.05)
    unset = one_layer(freeze_ranges_after=0)  # takes the first batch
    for high in (4.0, 9.0):
        unset(batch(high), training=True)
    assert ranges(unset) == ranges(model)


def test_inference_and_calibration_are_not_counted():
    model = one_layer(freeze_ranges_after=1)
    model(batch(3.0))
    model = tfopt.calibrate(model, batch(3.0))
    model(batch(8.0), training=True)
    assert ranges(model)["d/output"][1] > 3.0
    moved = ranges(model)
    model(batch(80.0), training=True)
    assert ranges(model) == moved


def test_a_layer_called_twice_a_batch_counts_batches():
    model = tfopt.quantize(zoo.build("shared"), freeze_ranges_after=2)
    x = zoo.inputs_for(model)
    model(x, training=True)
    first = ranges(model)
    model({name: 9 * values for name, values in x.items()}, training=True)
    second = ranges(model)
    model({name: 30 * values for name, values in x.items()}, training=True)
    assert ranges(model) == second
    assert second["tower/output"] != first["tower/output"]


def test_batch_normalization_freezes_into_inference():
    model = keras.Sequential([keras.Input((4,)), kl.BatchNormalization(momentum=0.5, name="n"), kl.Dense(2)])
    quantized = tfopt.quantize(model, freeze_batch_norm_after=2)
    norm, x = quantized.get_layer("n").layer, np.random.default_rng(0).normal(3, 2, (32, 4)).astype("float32")
    for step in range(3):
        before = norm.moving_mean.numpy().copy()
        outputs = quantized.get_layer("n")(x, training=True).numpy()
        if step < 2:
            np.testing.assert_allclose(norm.moving_mean, 0.5 * before + 0.5 * x.mean(0), rtol=1e-5)
            np.testing.assert_allclose(outputs.mean(0), 0, atol=0.05)
        else:
            np.testing.assert_array_equal(norm.moving_mean, before)
            expected = (x - before) / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
            np.testing.assert_allclose(outputs, np.clip(expected, *ranges(quantized)["n/output"]), atol=0.05)


def test_scale_and_offset_train_on_behind_frozen_statistics():
    model = tfopt.quantize(zoo.build("residual"), freeze_batch_norm_after=0)
    norm = model.get_layer("stem_bn").layer  # folded into the convolution, wrapped for this alone
    before = [weight.numpy().copy() for weight in norm.weights]
    zoo.fit(model, zoo.inputs_for(model))
    gamma, beta, mean, variance = (weight.numpy() for weight in norm.weights)
    assert np.abs(gamma - before[0]).max() > 0
    assert np.abs(beta - before[1]).max() > 0
    np.testing.assert_array_equal(mean, before[2])
    np.testing.assert_array_equal(variance, before[3])


def straight_through(values, low, high, at):
    """The fake-quantized values as a function of the bounds, each rounding held at what it adds at the bounds `at`."""
    low_at, high_at = at
    step, zero = (high_at - low_at) / 255, np.round(-low_at * 255 / (high_at - low_at))
    shift = np.round(values / step) - values / step
    rounded = values + shift * (high - low) / 255
    return np.where(values < -zero * step, low, np.where(values > (255 - zero) * step, high, rounded))


@pytest.mark.parametrize("bounds", [(0.0, 6.0), (-1.5, 3.0), (-0.3, 5.0), (-4.0, 0.0)])
def test_gradients_of_learned_ranges_are_those_of_finite_differences(bounds):
    generator = np.random.default_rng(2)
    values, upstream = generator.normal(0, 3, (8, 5)).astype("float32"), generator.normal(size=(8, 5))
    low, high = tf.constant(bounds[0]), tf.constant(bounds[1])
    inputs = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch([inputs, low, high])
        loss = tf.reduce_sum(fakequant.fake_quantize_learned(inputs, low, high) * upstream.astype("float32"))
    to_values, to_low, to_high = tape.gradient(loss, [inputs, low, high])

    def at(low, high):
        return (upstream * straight_through(values.astype("float64"), low, high, bounds)).sum()

    step, scale = 1e-6, 255**2 / np.sqrt(255 * 5)
    wanted_low = (at(bounds[0] + step, bounds[1]) - at(bounds[0] - step, bounds[1])) / (2 * step) * scale
    wanted_high = (at(bounds[0], bounds[1] + step) - at(bounds[0], bounds[1] - step)) / (2 * step) * scale
    assert float(to_low) == pytest.approx(wanted_low if bounds[0] else 0.0, rel=1e-3, abs=1e-3)
    assert float(to_high) == pytest.approx(wanted_high if bounds[1] else 0.0, rel=1e-3, abs=1e-3)
    unit = (bounds[1] - bounds[0]) / 255
    zero = np.round(-bounds[0] / unit)  # the integer that stands for 0; the range moves so that it is one
    inside = (values >= -zero * unit) & (values <= (255 - zero) * unit)
    np.testing.assert_allclose(np.where(inside, upstream, 0), to_values, atol=1e-6)


def test_a_step_of_sgd_moves_a_range_from_zero_as_lsq_moves_its_step():
    """LSQ by hand: step s = 2/255 over [0, 2]; v = 0.4 rounds to 51 steps, 0.403 to 51, 5.0 is clipped to 255."""
    v, s, rate = np.array([0.4, 0.403, 5.0]), 2 / 255, 1e-4
    by_s = np.array([51 - 0.4 / s, 51 - 0.403 / s, 255])
    gradient = by_s.sum() / np.sqrt(3 * 255)
    high = tf.Variable(2.0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(fakequant.fake_quantize_learned(tf.constant([v], tf.float32), tf.constant(0.0), high))
    assert float(high - rate * tape.gradient(loss, high)) / 255 == pytest.approx(s - rate * gradient, rel=1e-5)


def test_learned_ranges_learn_hold_zero_and_reach_the_file(tmp_path):
    model = zoo.build("residual")
    x = zoo.inputs_for(model)
    quantized = tfopt.quantize(model, learn_ranges=True)
    learned = [weight.path for weight in quantized.trainable_weights if "range" in weight.path]
    assert len(learned) == len(ranges(quantized)) - 1  # all but the input's
    quantized(x, training=True)
    first = ranges(quantized)
    losses = zoo.fit(quantized, x, epochs=4).history["loss"]
    assert losses[-1] < losses[0]
    last = ranges(quantized)
    assert all(low <= 0 <= high and low < high for low, high in last.values())
    assert all(last[name] != first[name] for name in last if name != "image_range/output")
    assert last["stem_relu/output"][0] == 0.0  # a rectifier's range stays one-sided
    tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=x)
    step = tfopt.TFLiteModel(tmp_path / "m.tflite").output_steps()[0]
    assert step == pytest.approx((last["logits/output"][1] - last["logits/output"][0]) / 255, rel=1e-5)


def test_learned_ranges_inside_a_recurrent_layer():
    """Steps in a loop round with ranges that the first batch sets after it: no gradient of that batch is NaN."""
    model = keras.Sequential([keras.Input((5, 3)), kl.GRU(4, name="gru"), kl.Dense(3)])
    x = zoo.inputs_for(model)
    quantized = trained(tfopt.quantize(model, learn_ranges=True), x, 1)
    first = ranges(quantized)
    trained(quantized, x, 1)
    last = ranges(quantized)
    assert np.isfinite(list(last.values())).all()
    assert all(last[name] != first[name] for name in last if name.startswith("gru/"))
    assert len(last) > 4


def test_learning_ranges_finds_a_better_one_than_the_data_has():
    """One outlier stretches the observed range; a learned one gives it up for finer steps, if the loss says so."""
    x = np.zeros((64, 2), "float32")
    x[:63, 0], x[63, 1] = np.linspace(0, 1, 63), 1.0
    model = keras.Sequential([keras.Input((2,)), kl.Dense(1, use_bias=False, activation="relu", name="d")])
    model.layers[0].kernel.assign([[3 * 40 / 127], [40.0]])  # 8 bits hold these
    y = zoo.called(model, x)
    quantized = tfopt.calibrate(tfopt.quantize(model, learn_ranges=True), x)
    quantized.get_layer("d").layer.trainable = False
    quantized.compile(keras.optimizers.Adam(0.5), "mse")
    assert ranges(quantized)["d/output"] == (0.0, 40.0)
    quantized.fit(x, y, sample_weight=np.r_[np.ones(63), 0.0], batch_size=64, epochs=70, verbose=0)
    assert 0.5 < ranges(quantized)["d/output"][1] < 20
    assert np.abs(zoo.called(quantized, x[:63]) - y[:63]).max() < 0.5 * 40 / 255


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"freeze_ranges_after": -1}, "0 or more"),
        ({"freeze_ranges_after": 2.5}, "2.5"),
        ({"freeze_ranges_after": True}, "True"),
        ({"freeze_batch_norm_after": "late"}, "freeze_batch_norm_after.*late"),
        ({"learn_ranges": 1}, "True or False"),
        ({"learn_ranges": True, "freeze_ranges_after": 3}, "learning rate"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(tfopt.InvalidArgumentError, match=says):
        tfopt.quantize(zoo.build("sequential"), **options)


def test_synchronized_batch_normalization_does_not_freeze():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3), kl.BatchNormalization(synchronized=True, name="sync")])
    with pytest.raises(tfopt.UnsupportedModelError, match="'sync'"):
        tfopt.quantize(model, freeze_batch_norm_after=3)


def trained(model, x, epochs, **compile_options):
    """Fits on; a compiled model keeps its optimizer."""
    if not getattr(model, "compiled", False):
        optimizer = keras.optimizers.Adam(1e-2, gradient_accumulation_steps=compile_options.pop("accumulate", None))
        model.compile(optimizer, "mse", **compile_options)
    model.fit(x, np.zeros((len(x), 3)), epochs=epochs, batch_size=4, shuffle=False, verbose=0)
    return model


def assert_same_state(model, other):
    for got, want in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(got.numpy(), want.numpy(), err_msg=want.path)


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (OPTIONS[3], {"jit_compile": True}),
        (OPTIONS[3], {"accumulate": 2}),
        (OPTIONS[4], {}),
    ],
    ids=str,
)
def test_a_saved_training_goes_on_as_one_never_interrupted(options, how, tmp_path):
    model = small()
    x = zoo.inputs_for(model)
    whole = trained(tfopt.quantize(model, **options), x, 3, **dict(how))
    trained(tfopt.quantize(model, **options), x, 1, **dict(how)).save(tmp_path / "m.keras")  # frozen later, at batch 5
    assert_same_state(trained(keras.models.load_model(tmp_path / "m.keras"), x, 2), whole)


def test_in_mixed_precision(tmp_path):
    model = zoo.build("mixed")
    x = zoo.inputs_for(model)
    for options in OPTIONS[3:]:
        quantized = trained(tfopt.quantize(model, **options), x, 1)
        quantized.save(tmp_path / "m.keras")
        assert_same_state(
            trained(keras.models.load_model(tmp_path / "m.keras"), x, 1),
            trained(quantized, x, 1),
        )
        assert tfopt.strip(quantized).get_layer("conv").compute_dtype == "float16"


FRESH = textwrap.dedent(
    """
    import sys
    import keras, numpy as np
    import tfopt
    model = keras.models.load_model(sys.argv[1] + "/m.keras")
    x = np.load(sys.argv[1] + "/x.npy")
    model.fit(x, np.zeros((len(x), 3)), epochs=1, batch_size=4, shuffle=False, verbose=0)
    np.savez(sys.argv[1] + "/after.npz", *[w.numpy() for w in model.weights])
    """
)


def test_a_new_process_needs_no_more_than_the_import(tmp_path):
    model = small()
    x = zoo.inputs_for(model)
    quantized = trained(tfopt.quantize(model, **OPTIONS[3]), x, 1)
    quantized.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, "-c", FRESH, str(tmp_path)], check=True, timeout=300)
    trained(quantized, x, 1)
    with np.load(tmp_path / "after.npz") as after:
        for got, weight in zip(after.values(), quantized.weights, strict=True):
            np.testing.assert_allclose(got, weight.numpy(), atol=1e-6, err_msg=weight.path)


REPLICAS = textwrap.dedent(
    """
    import sys
    import keras, numpy as np, tensorflow as tf
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    sys.path.insert(0, sys.argv[1])
    import tfopt, zoo
    keras.utils.set_random_seed(0)
    x = zoo.inputs_for(zoo.build("residual"))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for options in ({"freeze_ranges_after": 2, "freeze_batch_norm_after": 3}, {"learn_ranges": True}):
        with strategy.scope():
            model = tfopt.quantize(zoo.build("residual"), **options)
            model.compile(keras.optimizers.SGD(0.01), "mse")
        history = []
        for _ in range(4):
            losses = model.fit(x, np.zeros((16, 3)), epochs=1, batch_size=8, shuffle=False, verbose=0).history["loss"]
            history.append((losses[0], model.get_layer("stem_relu").ranges()["output"].bounds()))
        for weight in model.weights:
            copies = [copy.numpy() for copy in weight.value.values]
            assert "moving" in weight.path or np.array_equal(*copies), weight.path
        counts = [int(w.numpy()) for w in model.weights if "batches" in w.path]
        assert set(counts) == ({8} if "freeze_ranges_after" in options else set()), counts
        assert history[-1][0] < history[0][0], history
        moved = [bounds for _, bounds in history]
        assert (moved[1] == moved[3]) == ("freeze_ranges_after" in options), moved
    """
)


def test_replicas_agree(tmp_path):
    tests = str(Path(zoo.__file__).parent)
    result = subprocess.run(
        [sys.executable, "-c", REPLICAS, tests], check=False, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_strip_gives_the_trained_weights_back_to_the_bit(options):
    model = small()
    x = zoo.inputs_for(model)
    quantized = trained(tfopt.quantize(model, **options), x, 1)
    plain = tfopt.strip(quantized)
    assert [type(layer) for layer in plain.layers] == [type(layer) for layer in model.layers]
    for layer in plain.layers:
        inner = quantized.get_layer(layer.name)
        inner = getattr(inner, "layer", inner)
        assert layer.get_config()["name"] == inner.name
        for got, want in zip(layer.weights, inner.weights, strict=True):
            np.testing.assert_array_equal(got.numpy(), want.numpy())


@pytest.mark.parametrize("options", [OPTIONS[3], OPTIONS[4]], ids=str)
def test_a_tensorflow_checkpoint_holds_the_ranges(options, tmp_path):
    model = small()
    x = zoo.inputs_for(model)
    quantized = trained(tfopt.quantize(model, **options), x, 1)
    path = tf.train.Checkpoint(model=quantized).save(str(tmp_path / "checkpoint"))
    other = tfopt.quantize(model, **options)
    tf.train.Checkpoint(model=other).restore(path).expect_partial()
    assert_same_state(other, quantized)


def test_a_tf_keras_model_takes_no_such_option():
    interop = pytest.importorskip("tfopt.interop.tfmot")
    interop.tfmot()
    layers = sys.modules["tf_keras"].layers
    theirs = sys.modules["tf_keras"].Sequential([layers.Dense(2, input_shape=(3,))])
    with pytest.raises(tfopt.InvalidArgumentError, match="learn_ranges=True"):
        tfopt.quantize(theirs, learn_ranges=True)
