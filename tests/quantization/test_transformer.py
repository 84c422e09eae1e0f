"""A small transformer text classifier goes the whole road: which of its ops are integer is listed here."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfopt

LENGTH, VOCABULARY, WIDTH = 12, 20, 16


@tfopt.register_layer(output="range")
@keras.saving.register_keras_serializable(package="tests")
class Positions(kl.Layer):
    """Adds a learned vector for each position."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], initializer="random_normal", name="table")

    def call(self, inputs):
        return inputs + self.table


def classifier():
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    x = Positions(name="positions")(kl.Embedding(VOCABULARY, WIDTH, mask_zero=True)(tokens))
    for block in range(1):
        y = kl.MultiHeadAttention(2, WIDTH // 2, name=f"attention_{block}")(x, x)
        x = kl.LayerNormalization()(kl.Add()([x, y]))
        y = kl.Dense(WIDTH)(kl.Dense(2 * WIDTH, "gelu")(x))
        x = kl.LayerNormalization()(kl.Add()([x, y]))
    return keras.Model(tokens, kl.Dense(2, "softmax")(kl.GlobalAveragePooling1D()(x)))


def sentences(samples):
    """Sentences of 5 to 12 tokens, padded with 0; is there a token below 4, of 19?"""
    generator = np.random.default_rng(0)
    x = generator.integers(1, VOCABULARY, (samples, LENGTH))
    x = np.where(generator.random((samples, 1)) < 0.5, np.maximum(x, 4), x)
    x[np.arange(LENGTH) >= generator.integers(5, LENGTH + 1, (samples, 1))] = 0
    return x.astype("int32"), ((x > 0) & (x < 4)).any(-1).astype("int32")


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = classifier()
    model.compile(
        keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False
    )
    model.fit(*sentences(512), epochs=8, batch_size=32, verbose=0)
    return model


def test_the_classifier_goes_the_whole_road(trained, tmp_path):
    x, y = sentences(512)
    with pytest.warns(UserWarning, match="These layers stay float: 'layer_normalization") as caught:
        quantized = tfopt.quantize(trained)
    assert len(caught) == 1
    assert str(caught[0].message).count("'") == 4  # the names of the two layer normalizations and no others
    quantized.compile(
        keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False
    )
    quantized.fit(x, y, batch_size=64, verbose=0)
    tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=x)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    exact = trained.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]
    assert exact > 0.9
    assert np.mean(file.predict(x).argmax(-1) == y) >= exact - 0.03

    names = {"int8": set(), "float32": set()}
    for op in file.op_types():
        names.setdefault(op.output_dtype, set()).add(op.name)
    assert names["int8"] >= {"ADD", "BATCH_MATMUL", "FULLY_CONNECTED", "GATHER", "GELU", "SELECT_V2", "SOFTMAX"}
    assert names["float32"] == {
        *("ADD", "MUL", "RSQRT", "SQUARED_DIFFERENCE", "SUB", "SUM"),  # layer normalization
        *("CAST", "DIV"),  # the mean of the tokens that are not padding
        "DEQUANTIZE",
    }
    counts = {name: sum(op.name == name for op in file.op_types()) for name in ("BATCH_MATMUL", "FULLY_CONNECTED")}
    assert counts == {"BATCH_MATMUL": 2, "FULLY_CONNECTED": 7}
