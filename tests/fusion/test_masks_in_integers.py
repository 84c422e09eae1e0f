"""Fused layers hand masks on in a quantized model too."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt
from tfopt.fusion.layers import ParallelFusion

TOKENS = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0], [6, 7, 8, 1, 2, 3], [5, 0, 0, 0, 0, 0]] * 4)


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_the_mean_over_words_leaves_padding_out(combine):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32")
    embedded = kl.Embedding(9, 8, mask_zero=True)(inputs)
    branches = [kl.Dense(8, name=name)(embedded) for name in ("one", "two")]
    x = kl.GlobalAveragePooling1D()(ParallelFusion(combine, name="fused")(branches))
    model = keras.Model(inputs, kl.Dense(3)(x))
    want = np.asarray(model(TOKENS))
    quantized = tfopt.calibrate(tfopt.quantize(model), TOKENS)
    error = np.abs(np.asarray(quantized(TOKENS)) - want).max()
    assert error < 0.05 * np.ptp(want)
