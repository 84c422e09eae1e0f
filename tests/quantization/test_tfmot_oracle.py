"""The same network through TFMOT on tf_keras and through tfopt on Keras 3: same integers, same scales, same outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tfmot_peer as peer

import tfopt
from tfopt.interop import tfmot


def network(layers, inputs, model):
    x = image = inputs((14, 14, 2), name="image")
    x = layers.Conv2D(6, 3, activation="relu", name="plain")(x)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="folded")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="rectifier")(x)
    skip = layers.Conv2D(8, 1, activation="relu", name="side")(x)
    x = layers.Add(name="sum")([x, skip])
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    return model(image, layers.Dense(5, activation="softmax", name="out")(x))


@pytest.fixture(scope="module")
def both():
    """(TFMOT's quantized model, ours), with the same weights and the same activation ranges."""
    tfmot.tfmot()
    import tf_keras

    theirs = network(tf_keras.layers, tf_keras.Input, tf_keras.Model)
    ours = network(keras.layers, keras.Input, keras.Model)
    generator = np.random.default_rng(11)
    for layer in ours.layers:
        weights = [generator.normal(0, 0.3, w.shape).astype("float32") for w in layer.get_weights()]
        if layer.name == "norm":
            weights = [np.abs(w) + 0.5 if i in (0, 3) else w for i, w in enumerate(weights)]
        layer.set_weights(weights)
        theirs.get_layer(layer.name).set_weights(weights)
    x = generator.normal(size=(64, 14, 14, 2)).astype("float32")
    ready = tfopt.calibrate(tfopt.quantize(ours), x, bias_correction=False)
    quantized = tfmot.quantize(theirs)
    quantized(x[:2], training=True)  # sets TFMOT's kernel ranges to those of the weights
    peer.set_ranges(quantized, ready)
    _set_statistics(quantized, ours)
    return quantized, ready, x


def _set_statistics(theirs, ours):
    layer = theirs.get_layer("quant_norm").layer
    layer.moving_mean.assign(ours.get_layer("norm").moving_mean.numpy())
    layer.moving_variance.assign(ours.get_layer("norm").moving_variance.numpy())


def test_ranges_stand_at_the_same_tensors(both):
    theirs, ours, _ = both
    expected = set()
    for layer in theirs.layers:
        kinds = {w.name.split("/")[-1] for w in layer.weights}
        name = layer.name.removeprefix("quant_")
        name = "image_range" if name.startswith("quantize_layer") else name
        if kinds & {"output_max:0", "post_activation_max:0", "quantize_layer_max:0"} or name == "image_range":
            expected.add(f"{name}/output")
        if "pre_activation_max:0" in kinds:
            expected.add(f"{name}/pre_activation")
    found = {f"{la.name}/{kind}" for la in ours.layers if hasattr(la, "ranges") for kind in la.ranges()}
    assert found == expected


def test_outputs_in_inference_are_the_same(both):
    theirs, ours, x = both
    same_images(ours.predict(x, verbose=0), theirs.predict(x, verbose=0))


def same_images(ours, theirs):
    """The images that come out the same, all but three at most.

    Sums are taken in another order. Of 100,000 activations some are so near the middle between two integers that this
    rounds them another way, more or fewer by the processor; the outputs of that image then differ by a few steps.
    """
    differences = np.abs(np.asarray(ours) - np.asarray(theirs)).max(axis=1)
    same = np.flatnonzero(differences <= 2e-6)
    assert len(same) >= len(differences) - 3
    assert differences.max() < 0.03
    return same


def test_loss_and_gradients_of_the_kernels_are_the_same(both):
    theirs, ours, images = both
    x = images[same_images(ours(images, training=False), theirs(images, training=False))]
    labels = np.arange(len(x)) % 5

    def gradients(model, kernels):
        with tf.GradientTape() as tape:
            rows = tf.gather(model(x, training=False), labels, batch_dims=1)
            loss = -tf.reduce_mean(tf.math.log(rows))
        return float(loss), tape.gradient(loss, kernels)

    names = ["plain", "folded", "side", "hidden", "out"]
    their_loss, their_gradients = gradients(
        theirs, [next(w for w in theirs.get_layer(f"quant_{n}").trainable_weights if "kernel" in w.name) for n in names]
    )
    our_loss, our_gradients = gradients(ours, [ours.get_layer(n).layer.kernel.value for n in names])
    assert our_loss == pytest.approx(their_loss, rel=1e-6)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


def kernels_of(content):
    """{shape: (integers, scales)} of the int8 kernels of a .tflite."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    found = {}
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8 and tuple(detail["shape"]) in SHAPES:
            scales = detail["quantization_parameters"]["scales"]
            found[tuple(int(n) for n in detail["shape"])] = interpreter.get_tensor(detail["index"]), scales
    return found


SHAPES = {(6, 3, 3, 2), (8, 3, 3, 6), (8, 1, 1, 8), (12, 32), (5, 12)}


def test_exported_integers_and_scales_are_the_same(both, tmp_path):
    theirs, ours, x = both
    tfopt.export_tflite(ours, tmp_path / "ours.tflite", data=x)
    mine = kernels_of((tmp_path / "ours.tflite").read_bytes())
    others = kernels_of(tfmot.convert(theirs, "int8"))
    assert set(mine) == set(others) == SHAPES
    for shape in SHAPES:
        assert len(mine[shape][1]) == (1 if len(shape) == 2 else shape[0])
        np.testing.assert_allclose(mine[shape][1], others[shape][1], rtol=1e-5)
        np.testing.assert_array_equal(mine[shape][0], others[shape][0])
