"""All 40 architectures of `keras.applications`, at the smallest input they take: pruned, quantized, exported.

Two parts, each with a report of its own (`--only pruning`, `--only quantization`).
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np
from common import Target, arguments, finish, table
from random_weights import input_high, random_images, spread_out

import tfopt
from tfopt.core.errors import first_line

SMALLEST = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
MODELS = (
    *("Xception", "VGG16", "VGG19", "ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"),
    *("InceptionV3", "InceptionResNetV2", "MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large"),
    *("DenseNet121", "DenseNet169", "DenseNet201", "NASNetMobile", "NASNetLarge"),
    *(f"EfficientNetB{number}" for number in range(8)),
    *(f"EfficientNetV2{name}" for name in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    *(f"ConvNeXt{name}" for name in ("Tiny", "Small", "Base", "Large", "XLarge")),
)
PRUNING = """All 40 architectures of `keras.applications`, at the smallest input they take: pruned, shrunk, exported.

Each model gets element, 2:4 and channel pruning at 50 %. The channel-pruned one is shrunk: its outputs (logits) must
equal those of the masked model to 1e-4, and its float .tflite must give what Keras gives. TFMOT prunes none of them in
Keras 3, and 9 of the 18 that were tried in tf_keras.
"""
TOLERANCE = 1e-4
QUANTIZATION = """All 40 architectures of `keras.applications`, at the smallest input they take, in integers.

Each model, with random weights at which its outputs differ (`random_weights.py`), is quantized, trained for one step
(run eagerly, which is faster for a single one), calibrated on 64 random images and exported as int8. The file must give
the class of the quantized model for at least 95 % of the 64 images, out of 1000 classes; "classes" counts those that
the float model gives. SQNR is the signal of a tensor over its quantization error, in dB: of the worst layer and of the
logits of the quantized model, against the float model of the same weights; and of the logits of the file against those
of the quantized model. (The last is that low because a value that one of them rounds up and the other down moves all
that follow; no trained weights damp it.)
"Float ops" are those of the file that do not compute in integers; among them must be no convolution or matrix product.
TFMOT quantizes none of the 40 in Keras 3, and 6 of the 18 that were tried in tf_keras.
"""
IMAGES = 64
AGREEMENT = 0.95
EXPORT_TOLERANCE = 1.0  # of the mean difference of the logits; whether the file is right is for AGREEMENT to say
TRAINED_IMAGES = 2
# Of two images its gradients are 1e38, in plain float too: batch normalization of two values a channel.
MORE_TRAINED_IMAGES = {"efficientnetv2-l": 8}
GROWTH = 1.25  # of the time to quantize a layer from ResNet50 to ResNet152, where 1 is linear; timings vary
MATRIX_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")


def main() -> int:
    options = arguments(
        __doc__,
        only=("pruning", "quantization"),
        work="folder of finished rows: a run that was stopped goes on from there (default: that of temporary files)",
    )
    parts = {"pruning": report_pruning, "quantization": report_quantization}
    return max(report(options) for name, report in parts.items() if options.only in (None, name))


def report_pruning(options) -> int:
    rows = rows_of("pruning", pruned_and_shrunk, options)
    body = table(
        ["model", "input", "parameters", "shrunk to", "max difference", "of outputs", "float .tflite bytes", "s"],
        [
            [row["model"], row["input"], f"{row['parameters']:,}", row["error"], "", "", "", row["seconds"]]
            if "error" in row
            else [
                row["model"],
                row["input"],
                f"{row['parameters']:,}",
                f"{row['shrunk']:,}",
                f"{row['difference']:.1e}",
                f"{row['output_range']:.2g}",
                f"{row['file_bytes']:,}",
                row["seconds"],
            ]
            for row in rows
        ],
    )
    targets = [_not_run(rows), Target("models that fail", sum("error" in row for row in rows), 0)]
    return finish("coverage", PRUNING, body, {"models": rows}, targets, options)


def report_quantization(options) -> int:
    rows = rows_of("quantization", quantized_and_run, options)
    header = ["model", "layers", "quantize s", "classes", "same class", "worst SQNR", "logits", "file"]
    body = table(
        [*header, "float ops", ".tflite bytes", "s"],
        [
            [row["model"], row["error"], *[""] * 8, row["seconds"]]
            if "error" in row
            else [
                row["model"],
                row["layers"],
                row["quantize_seconds"],
                row["classes"],
                f"{row['agreement']:.3f}",
                f"{row['worst_sqnr_db']:.1f} ({row['worst_layer']})",
                f"{row['logits_sqnr_db']:.1f}",
                f"{row['file_sqnr_db']:.1f}",
                ", ".join(f"{count} {name}" for name, count in row["float_ops"].items()) or "none",
                f"{row['file_bytes']:,}",
                row["seconds"],
            ]
            for row in rows
        ],
    )
    good = {row["model"]: row for row in rows if "error" not in row}
    targets = [
        _not_run(rows),
        Target("models that fail", len(rows) - len(good), 0),
        Target(
            f"models whose file gives another class for more than {1 - AGREEMENT:.0%} of the images",
            sum(row["agreement"] < AGREEMENT for row in good.values()),
            0,
        ),
        Target(
            "convolutions and matrix products left in float",
            sum(count for row in good.values() for name, count in row["float_ops"].items() if name in MATRIX_OPS),
            0,
        ),
    ]
    if {"ResNet50", "ResNet152"} <= set(good):
        small, large = (good[name]["quantize_seconds"] / good[name]["layers"] for name in ("ResNet50", "ResNet152"))
        targets.append(Target("time to quantize a layer, ResNet152 over ResNet50", large / small, GROWTH))
    return finish("coverage_quantization", QUANTIZATION, body, {"models": rows}, targets, options)


def _not_run(rows: list[dict]) -> Target:
    return Target(f"models of {len(MODELS)} that were not run", len(MODELS) - len(rows), 0)


def rows_of(part: str, check, options) -> list[dict]:
    """One row a model; a run that was stopped goes on where it was. Ctrl-C ends with the models so far."""
    done = (options.work or Path(tempfile.gettempdir())) / f"tfopt-coverage-{part}.jsonl"
    done.parent.mkdir(parents=True, exist_ok=True)
    known = {row["model"]: row for row in map(json.loads, done.read_text().splitlines())} if done.exists() else {}
    names = MODELS[11:14] if options.quick else MODELS
    try:
        for name in names:
            if name not in known or "error" in known[name]:
                known[name] = checked(name, check)
                with done.open("a") as file:
                    file.write(json.dumps(known[name]) + "\n")
            print(known[name], file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return [known[name] for name in names if name in known]


def checked(name: str, check) -> dict:
    """What became of one model; `error` if something failed."""
    keras.backend.clear_session()
    gc.collect()
    begin = time.perf_counter()
    size = SMALLEST.get(name, 32)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    row = {"model": name, "input": size, "parameters": model.count_params()}
    try:
        row.update(check(model, size))
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:  # the other models follow
        row["error"] = f"{type(error).__name__}: {first_line(error)}"
    return {**row, "seconds": round(time.perf_counter() - begin)}


def pruned_and_shrunk(model: keras.Model, size: int) -> dict:
    model = with_statistics(model)
    for pattern in ("element", "2:4"):
        zeros = sparsity_of(tfopt.prune(model, pattern=pattern))
        assert abs(zeros - 0.5) < 0.01, f"{pattern}: {zeros:.3f} of the kernels are zero"
    masked = tfopt.prune(model, pattern="channel")
    small = tfopt.shrink(masked)
    scale = 255 if any(isinstance(layer, keras.layers.Rescaling) for layer in model.layers) else 1
    images = scale * np.random.default_rng(1).uniform(size=(2, size, size, 3)).astype("float32")
    expected = np.asarray(masked(images, training=False))
    difference = float(np.abs(expected - small(images, training=False)).max())
    assert difference <= TOLERANCE, f"shrink changes outputs by {difference:.1e}"
    with tempfile.TemporaryDirectory() as folder:
        export = tfopt.export_tflite(small, Path(folder) / "model.tflite", quantization="none")
        row = {"shrunk": small.count_params(), "difference": difference, "file_bytes": export.size_bytes}
    return {**row, "output_range": float(np.ptp(expected))}


def with_statistics(model: keras.Model) -> keras.Model:
    """Batch normalization away from its start values, so that an error in it shows."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                low, high = (0.7, 1.3) if weight.name in ("gamma", "moving_variance") else (-0.2, 0.2)
                weight.assign(generator.uniform(low, high, weight.shape))
    return model


def quantized_and_run(model: keras.Model, size: int) -> dict:
    trained = MORE_TRAINED_IMAGES.get(model.name, TRAINED_IMAGES)
    images = random_images(IMAGES, size, high=input_high(model))
    spread_out(model, images)
    classes = len(set(np.argmax(model(images, training=False), axis=1).tolist()))
    assert classes > IMAGES / 2, f"the model gives only {classes} classes: agreement would mean nothing"
    begin = time.perf_counter()
    quantized = tfopt.quantize(model)
    seconds = time.perf_counter() - begin
    row = {"layers": len(model.layers), "quantize_seconds": round(seconds, 2), "classes": classes}
    del model
    quantized.compile(
        keras.optimizers.SGD(1e-3, clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    loss = quantized.fit(images[:trained], np.arange(trained), verbose=0).history["loss"][0]
    assert np.isfinite(loss), f"the loss is {loss}"
    calibrated = tfopt.calibrate(quantized, images)
    del quantized
    row.update(errors_by_layer(calibrated, images[:8]))
    with tempfile.TemporaryDirectory() as folder:
        export = tfopt.export_tflite(calibrated, Path(folder) / "model.tflite", data=images, tolerance=EXPORT_TOLERANCE)
        file = tfopt.TFLiteModel(export.path)
    wanted, got = np.asarray(calibrated(images, training=False)), file.predict(images)
    row.update(agreement=float((got.argmax(axis=1) == wanted.argmax(axis=1)).mean()), file_sqnr_db=sqnr_db(wanted, got))
    float_ops = Counter(
        op.name for op in file.op_types() if op.output_dtype == "float32" and op.name not in CONVERSIONS
    )
    return {**row, "float_ops": float_ops, "file_bytes": export.size_bytes}


def errors_by_layer(calibrated: keras.Model, images: np.ndarray) -> dict:
    """SQNR of the worst layer and of the logits, in dB."""
    exact = outputs_by_layer(tfopt.strip(calibrated), images)
    rounded = outputs_by_layer(calibrated, images)
    sqnr = {name: sqnr_db(exact[name], rounded[name]) for name in exact if np.any(exact[name] != rounded[name])}
    worst = min(sqnr, key=sqnr.get)
    return {"worst_layer": worst, "worst_sqnr_db": sqnr[worst], "logits_sqnr_db": sqnr[list(exact)[-1]]}


def sqnr_db(exact: np.ndarray, rounded: np.ndarray) -> float:
    """Variance of the signal over the mean square of its error."""
    return float(10 * np.log10(np.var(exact) / np.mean((rounded - exact) ** 2)))


def outputs_by_layer(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    outputs = {la.name: la.output for la in model.layers if not isinstance(la, keras.layers.InputLayer)}
    found = keras.Model(model.input, outputs)(images, training=False)
    return {name: np.asarray(values) for name, values in found.items()}


def sparsity_of(model: keras.Model) -> float:
    summary = tfopt.summary(model)
    return 1 - summary.kernel_nonzero / summary.kernel_parameters


if __name__ == "__main__":
    sys.exit(main())
