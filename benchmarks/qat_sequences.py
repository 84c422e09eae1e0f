"""Spoken digits by LSTM and GRU as integers: what do 8-bit gates and states cost? 2400 sequences to train, 600 to test.

Each net is one recurrent layer of 32 units over the first 32 moments (13 MFCC each, standardized, zeros behind the end)
and a Dense layer. It is trained in float, then calibrated with 500 training sequences, then trained on as a quantized
model. Accuracies are those of the .tflite files on the test sequences. The signal-to-noise ratio says how far the last
hidden state of the calibrated model is from that of the float one, with all tensors rounded and with all but the cell
state of the LSTM.
"""

import os
import sys
import tempfile
from collections import Counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from common import Target, arguments, finish, table
from datasets import spoken_digits
from keras import layers as kl

import tfopt

STEPS, UNITS = 32, 32
NETS = {"LSTM": kl.LSTM, "GRU": kl.GRU}


def main() -> int:
    options = arguments(__doc__)
    epochs = 1 if options.quick else 20
    train, test = prepared()
    rows, ops, targets, noise = [], [], [], []
    for name, layer in NETS.items():
        model = network(layer, train, epochs)
        calibrated = tfopt.calibrate(tfopt.quantize(model), train[0][:500])
        trained = fitted(tfopt.calibrate(calibrated, train[0][:500]), train, max(1, epochs // 5), 5e-4)
        files = {"float": model, "int8, calibrated": calibrated, "int8, trained": trained}
        opened = {kind: exported(net, train[0]) for kind, net in files.items()}
        scores = {kind: file.evaluate(*test)["accuracy"] for kind, file in opened.items()}
        rows += [[name, kind, f"{scores[kind]:.4f}", file.size_bytes] for kind, file in opened.items()]
        kinds = Counter((op.output_dtype, op.name) for op in opened["int8, trained"].op_types())
        ops += [
            [name, dtype, ", ".join(f"{n} {op}" for (t, op), n in sorted(kinds.items()) if t == dtype)]
            for dtype in sorted({dtype for dtype, _ in kinds})
        ]
        targets += [
            Target(f"{name}: accuracy lost by training as integers", scores["float"] - scores["int8, trained"], 0.01),
            Target(f"{name}: float compute ops", len(opened["int8, trained"].float_compute_ops()), 0),
        ]
        noise.append([name, "all", f"{ratio(model, calibrated, test[0]):.1f}"])
        if name == "LSTM":
            noise.append([name, "all but the cell state", f"{ratio(model, without_cell(calibrated), test[0]):.1f}"])
    tables = {
        "accuracy": (["net", "file", "accuracy", "bytes"], rows),
        "ops of the trained file": (["net", "dtype", "ops"], ops),
        "signal to noise": (["net", "rounded", "dB"], noise),
    }
    body = "\n\n".join(table(*content) for content in tables.values())
    measured = {name: [dict(zip(head, row, strict=True)) for row in lines] for name, (head, lines) in tables.items()}
    return finish("qat_sequences", __doc__, body, measured, targets, options)


def prepared() -> tuple[tuple, tuple]:
    """Sequences of one length, each coefficient standardized over the moments of the training part, and labels."""
    (x, y), (x_test, y_test) = spoken_digits()
    spoken = x.any(axis=-1)
    mean, deviation = x[spoken].mean(axis=0), x[spoken].std(axis=0)

    def scaled(sequences):
        return (np.where(sequences.any(axis=-1, keepdims=True), (sequences - mean) / deviation, 0.0))[:, :STEPS]

    return (scaled(x).astype("float32"), y), (scaled(x_test).astype("float32"), y_test)


def network(layer: type, train: tuple, epochs: int) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((STEPS, train[0].shape[-1])), layer(UNITS, name="recurrent"), kl.Dense(10)])
    return fitted(model, train, epochs, 3e-3)


def fitted(model: keras.Model, train: tuple, epochs: int, rate: float) -> keras.Model:
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*train, batch_size=64, epochs=epochs, verbose=0)
    return model


def exported(model: keras.Model, x: np.ndarray) -> tfopt.TFLiteModel:
    with tempfile.TemporaryDirectory() as folder:
        return tfopt.TFLiteModel(tfopt.export_tflite(model, f"{folder}/net.tflite", data=x[:64]).path)


def without_cell(calibrated: keras.Model) -> keras.Model:
    """A copy whose cell state is not rounded: its range is unset."""
    copy = keras.models.clone_model(calibrated)
    copy.set_weights(calibrated.get_weights())
    copy.get_layer("recurrent").ranges()["cell"].reset()
    return copy


def ratio(model: keras.Model, quantized: keras.Model, x: np.ndarray) -> float:
    """Signal-to-noise ratio of the last hidden state, in dB."""
    states = [keras.Model(m.inputs, m.get_layer("recurrent").output).predict(x, verbose=0) for m in (model, quantized)]
    return float(10 * np.log10((states[0] ** 2).sum() / ((states[0] - states[1]) ** 2).sum()))


if __name__ == "__main__":
    sys.exit(main())
