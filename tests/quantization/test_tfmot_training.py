"""One epoch in TFMOT on tf_keras and in tfopt on Keras 3, from the same weights, ranges and batches: the same training.

All losses come out equal, where measured to the last bit: the bounds leave room for other orders of summation, which
flip single roundings, and a flipped one spreads. Four differences between the two are known:

- Where ranges start: TFMOT at [-6, 6], tfopt at the first batch. Both start here from calibrated ranges.
- TFMOT trains a depthwise kernel within one range for all channels (it takes one for each index of the last axis, the
  depth multiplier), and its file has that range times the scales of the batch normalization folded into it. tfopt
  trains with a range for each channel, as LiteRT's specification has it. For the comparison it rounds as TFMOT does.
- TFMOT's file has the kernel ranges of the last training step, before its update; tfopt's those of the kernels. The
  last step here has a learning rate of 0.
- tf_keras' batch normalization adds up the moving variance with Bessel's correction, n / (n - 1) for n values a
  channel in a batch; Keras 3 without. It shows in the file, where the variance is folded into kernel scales.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
import tfmot_peer as peer

import tfopt
from tfopt.interop import tfmot

BATCH, STEPS, MOMENTUM = 32, 30, 0.9
KERNELS, NORMS = ("conv", "depthwise", "pointwise", "hidden", "out"), ("conv_norm", "depthwise_norm")


def network(layers, inputs, model):
    x = image = inputs((12, 12, 1), name="image")
    x = layers.Conv2D(6, 3, use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(momentum=MOMENTUM, name="conv_norm")(x)
    x = skip = layers.ReLU(name="conv_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.BatchNormalization(momentum=MOMENTUM, name="depthwise_norm")(x)
    x = layers.ReLU(name="depthwise_relu")(x)
    x = layers.Conv2D(6, 1, name="pointwise")(x)
    x = layers.Add(name="sum")([x, skip])
    x = layers.ReLU(name="sum_relu")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    return model(image, layers.Dense(4, activation="softmax", name="out")(x))


def images():
    """Four patterns under noise, with labels."""
    generator = np.random.default_rng(5)
    patterns, labels = generator.normal(size=(4, 12, 12, 1)), generator.integers(0, 4, BATCH * STEPS)
    return (patterns[labels] + generator.normal(size=(len(labels), 12, 12, 1))).astype("float32"), labels


def train(model, optimizer, x, y):
    """The loss of each batch of an epoch."""
    model.compile(optimizer, "sparse_categorical_crossentropy")
    losses = []
    for start in range(0, len(x), BATCH):
        if start + BATCH == len(x):
            model.optimizer.learning_rate = 0.0
        model.reset_metrics()
        losses.append(float(model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])))
    return np.array(losses)


def epoch_in_both(folder):
    """An epoch in TFMOT and in tfopt: what came of each, as arrays."""
    tf.config.threading.set_intra_op_parallelism_threads(1)  # one order of summation
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tfmot.tfmot()
    import tf_keras

    x, y = images()
    keras.utils.set_random_seed(3)
    ours = network(keras.layers, keras.Input, keras.Model)
    theirs = network(tf_keras.layers, tf_keras.Input, tf_keras.Model)
    peer.set_weights(theirs, ours)
    ready, quantized = (
        tfopt.calibrate(tfopt.quantize(ours), x[:64], method="minmax", bias_correction=False),
        tfmot.quantize(theirs),
    )
    ready.get_layer("depthwise").kernels = {"kernel": ()}
    peer.set_ranges(quantized, ready)
    losses = (
        train(ready, keras.optimizers.SGD(0.03), x, y),
        train(quantized, tf_keras.optimizers.SGD(0.03), x, y),
    )
    tfopt.export_tflite(ready, f"{folder}/ours.tflite", data=x)
    with open(f"{folder}/ours.tflite", "rb") as file:
        files = peer.quantized_tensors(file.read()), peer.quantized_tensors(tfmot.convert(quantized, "int8"))
    return {
        "losses": losses,
        "ranges": (
            {f"{la}/{kind}": r.bounds() for la, kinds in peer.by_layer(ready).items() for kind, r in kinds.items()},
            {name: [float(bound) for bound in bounds] for name, bounds in peer.ranges(quantized).items()},
        ),
        "kernels": ({n: peer.kernel(ready, n) for n in KERNELS}, {n: peer.kernel(quantized, n) for n in KERNELS}),
        "statistics": (
            {n: peer.statistics(ready, n) for n in NORMS},
            {n: peer.statistics(quantized, n) for n in NORMS},
        ),
        "files": files,
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """`{what: (ours, theirs)}`, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(epoch_in_both, str(tmp_path_factory.mktemp("files"))).result()


def test_the_losses_of_an_epoch_are_the_same(both):
    ours, theirs = both["losses"]
    assert ours[-5:].mean() < 0.7 * ours[:5].mean()
    np.testing.assert_allclose(ours[:20], theirs[:20], rtol=1e-3)
    np.testing.assert_allclose(ours, theirs, rtol=5e-3)


def test_ranges_move_alike(both):
    ours, theirs = both["ranges"]
    assert set(ours) == set(theirs)
    assert len(ours) == 7
    for name, bounds in ours.items():
        np.testing.assert_allclose(bounds, theirs[name], rtol=1e-4, err_msg=name)


def test_kernels_after_the_epoch_are_the_same(both):
    ours, theirs = both["kernels"]
    for name in KERNELS:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3, err_msg=name)


def test_moving_statistics_are_the_same_but_for_bessels_correction(both):
    ours, theirs = both["statistics"]
    values = BATCH * 10 * 10
    for name in NORMS:
        (mean, variance), (their_mean, their_variance) = ours[name], theirs[name]
        start = MOMENTUM**STEPS  # what is left of the variance of 1 that both start with
        corrected = start + (variance - start) * values / (values - 1)
        np.testing.assert_allclose(their_mean, mean, atol=1e-3)
        np.testing.assert_allclose(their_variance, corrected, rtol=1e-3)


def test_exported_scales_and_zero_points_are_the_same(both):
    """Within 1e-3: those of activations to float rounding, those of folded kernels to half of Bessel's 1/3199 too."""
    ours, theirs = both["files"]
    largest = np.abs(both["kernels"][0]["depthwise"]).max((0, 1, 3))
    of_range = np.round(127 * largest / largest.max()) / 127  # of TFMOT's one range, what each channel fills
    assert len(ours) == len(theirs) == 15
    for (shape, scales, zero_points), (other_shape, other_scales, other_zero_points) in zip(ours, theirs, strict=True):
        assert shape == other_shape
        np.testing.assert_array_equal(zero_points, other_zero_points, err_msg=str(shape))
        expected = other_scales * of_range if shape == (1, 3, 3, 6) else other_scales  # the depthwise kernel's
        np.testing.assert_allclose(scales, expected, rtol=1e-3, err_msg=str(shape))
