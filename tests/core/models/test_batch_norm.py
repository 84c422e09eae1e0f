"""Statistics taken anew, against what Keras itself takes in a training step with momentum 0."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tfopt.core.errors import NonFiniteError
from tfopt.core.models.batch_norm import has_batch_norm, reestimate_batch_norms
from tfopt.core.models.graph import read

IMAGES = np.random.default_rng(0).normal(1, 3, (64, 6, 6, 2)).astype("float32")


def nested():
    inside = keras.Sequential([keras.Input((6, 6, 4)), kl.BatchNormalization(momentum=0.0), kl.ReLU()])
    inputs = keras.Input((6, 6, 2))
    x = inside(kl.Conv2D(4, 3, padding="same")(inputs))
    x = kl.BatchNormalization(momentum=0.0, axis=1)(kl.Conv2D(3, 3)(x))
    return keras.Model(inputs, kl.Dense(2)(kl.Flatten()(x)))


def normalizations(model):
    return [layer for _, layer in read(model).layers if isinstance(layer, kl.BatchNormalization)]


def statistics(model):
    return [value.numpy() for layer in normalizations(model) for value in (layer.moving_mean, layer.moving_variance)]


def test_one_batch_is_what_keras_takes_in_training():
    model = nested()
    assert has_batch_norm(read(model))
    oracle = keras.models.clone_model(model)
    oracle.set_weights(model.get_weights())
    oracle(IMAGES, training=True)
    before = [kernel.numpy() for kernel in model.trainable_weights]
    reestimate_batch_norms(read(model), [[IMAGES]])
    for got, wanted in zip(statistics(model), statistics(oracle), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert all(np.array_equal(*pair) for pair in zip(before, model.trainable_weights, strict=True))


def test_batches_are_put_together():
    """Of the first normalization, whose inputs do not depend on statistics, exactly; batches of different sizes too."""
    whole, parts = nested(), nested()
    parts.set_weights(whole.get_weights())
    reestimate_batch_norms(read(whole), [[IMAGES]])
    reestimate_batch_norms(read(parts), [[IMAGES[:10]], [IMAGES[10:50]], [IMAGES[50:]]])
    for got, wanted in zip(statistics(parts)[:2], statistics(whole)[:2], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_called_twice_sees_both():
    inputs = keras.Input((1,))
    shared = kl.BatchNormalization(name="shared")
    model = keras.Model(inputs, shared(inputs) + shared(inputs * 0.0 + 10.0))
    reestimate_batch_norms(read(model), [[np.array([[0.0], [2.0]])]])
    assert shared.moving_mean.numpy() == pytest.approx(5.5)
    assert shared.moving_variance.numpy() == pytest.approx(np.var([0, 2, 10, 10]))


def test_what_is_not_finite_is_an_error():
    model = keras.Sequential(
        [keras.Input((1,)), kl.Rescaling(1e30), kl.Rescaling(1e30), kl.BatchNormalization(name="b")]
    )
    with pytest.raises(NonFiniteError, match="'b'"):
        reestimate_batch_norms(read(model), [[np.ones((2, 1))]])


def test_models_without():
    assert not has_batch_norm(read(keras.Sequential([keras.Input((2,)), kl.Dense(1)])))
