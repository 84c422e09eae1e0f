"""A small transformer classifies emails as spam: float, then quantization-aware training, then the int8 .tflite.

Two figures: accuracy on the 1,209 test emails, and which operations of the file are integer. The classifier has an
embedding with learned positions, one block of multi-head attention and a GELU feed-forward, each with layer
normalization, and takes the mean over the tokens. Padding is masked.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import common
import datasets
import keras
import numpy as np
from keras import layers as kl

import tfopt

LENGTH, VOCABULARY, WIDTH, HEADS = 128, 8192, 32, 4
EPOCHS, QAT_EPOCHS, BATCH = 4, 1, 64
DOORS = ("QUANTIZE", "DEQUANTIZE")


@tfopt.register_layer(output="range")
@keras.saving.register_keras_serializable(package="benchmarks")
class Positions(kl.Layer):
    """Adds a learned vector for each position."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], initializer="random_normal", name="table")

    def call(self, inputs):
        return inputs + self.table


def classifier() -> keras.Model:
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    x = Positions(name="positions")(kl.Embedding(VOCABULARY, WIDTH, mask_zero=True, name="embedding")(tokens))
    y = kl.MultiHeadAttention(HEADS, WIDTH // HEADS, name="attention")(x, x)
    x = kl.LayerNormalization(name="norm_1")(kl.Add(name="add_1")([x, y]))
    y = kl.Dense(WIDTH, name="shrink")(kl.Dense(2 * WIDTH, "gelu", name="grow")(x))
    x = kl.LayerNormalization(name="norm_2")(kl.Add(name="add_2")([x, y]))
    x = kl.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(tokens, kl.Dense(1, "sigmoid", name="spam")(x), name="spam_transformer")


def trained(model: keras.Model, data: datasets.Data, epochs: int, rate: float) -> float:
    """Trains the model; its accuracy on the test emails."""
    model.compile(keras.optimizers.Adam(rate), "binary_crossentropy", metrics=["accuracy"], jit_compile=False)
    model.fit(*data.train, epochs=epochs, batch_size=BATCH, verbose=2)
    return float(model.evaluate(*data.test, verbose=0, return_dict=True)["accuracy"])


def file_accuracy(path: Path, data: datasets.Data) -> float:
    scores = tfopt.TFLiteModel(path).predict(data.test[0])
    return float(np.mean((np.ravel(scores) > 0.5) == data.test[1]))


def ops_by_type(path: Path) -> dict[str, dict[str, int]]:
    """How often each op computes in which type; the conversions at the borders are left out."""
    found = Counter((op.output_dtype, op.name) for op in tfopt.TFLiteModel(path).op_types() if op.name not in DOORS)
    types = sorted({dtype for dtype, _ in found})
    return {dtype: {name: n for (kind, name), n in sorted(found.items()) if kind == dtype} for dtype in types}


def main() -> int:
    options = common.arguments(__doc__)
    keras.utils.set_random_seed(0)
    data = datasets.spam_emails()
    if options.quick:
        data = datasets.Data(*((x[::19], y[::19]) for x, y in data))
    model = classifier()
    measured: dict = {"float": trained(model, data, EPOCHS, 1e-3)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        measured["float_bytes"] = tfopt.export_tflite(model, path, data=data.test[0]).size_bytes
        quantized = tfopt.quantize(model)
        sample = np.random.default_rng(0).permutation(len(data.train[0]))[:500]  # the emails come in order of kind
        ready = tfopt.calibrate(quantized, data.train[0][sample])
        tfopt.export_tflite(ready, path, data=data.test[0])
        measured["int8_ptq_file"] = file_accuracy(path, data)
        measured["qat_model"] = trained(ready, data, QAT_EPOCHS, 1e-4)
        measured["int8_bytes"] = tfopt.export_tflite(ready, path, data=data.test[0]).size_bytes
        measured["int8_qat_file"] = file_accuracy(path, data)
        measured["ops"] = ops_by_type(path)
    names = {"float": "float model", "int8_ptq_file": ".tflite, 500 emails to calibrate", "qat_model": "QAT model",
             "int8_qat_file": f".tflite, {QAT_EPOCHS} epoch of QAT"}  # fmt: skip
    body = common.table(["", "accuracy"], [[label, f"{100 * measured[key]:.2f} %"] for key, label in names.items()])
    body += f"\n\nSize: float {measured['float_bytes']:,} bytes, int8 {measured['int8_bytes']:,} bytes.\n\n"
    rows = [[dtype, ", ".join(f"{n} {name}" for name, n in ops.items())] for dtype, ops in measured["ops"].items()]
    body += common.table(["type of the result", "ops of the file"], rows)
    drop = 100 * (measured["float"] - measured["int8_qat_file"])
    floats = {"FULLY_CONNECTED", "BATCH_MATMUL", "SOFTMAX"} & set(measured["ops"].get("float32", {}))
    targets = [
        common.Target("points of accuracy that the int8 file loses to the float model", drop, 0.5),
        common.Target("kinds of matrix product or softmax in float", len(floats), 0),
        common.Target("size, int8 / float", measured["int8_bytes"] / measured["float_bytes"], 0.3),
    ]
    return common.finish("qat_transformer", __doc__, body, measured, targets, options)


if __name__ == "__main__":
    sys.exit(main())
