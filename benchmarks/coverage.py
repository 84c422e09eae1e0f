"""All 40 architectures of `keras.applications`, at the smallest input they take: pruned, shrunk, exported.

Each model gets element, 2:4 and channel pruning at 50 %. The channel-pruned one is shrunk: its outputs (logits) must
equal those of the masked model to 1e-4, and its float .tflite must give what Keras gives. TFMOT prunes none of them in
Keras 3, and 9 of the 18 that were tried in tf_keras.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from common import Target, arguments, finish, table

import tfopt

SMALLEST = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
MODELS = (
    *("Xception", "VGG16", "VGG19", "ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"),
    *("InceptionV3", "InceptionResNetV2", "MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large"),
    *("DenseNet121", "DenseNet169", "DenseNet201", "NASNetMobile", "NASNetLarge"),
    *(f"EfficientNetB{number}" for number in range(8)),
    *(f"EfficientNetV2{name}" for name in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    *(f"ConvNeXt{name}" for name in ("Tiny", "Small", "Base", "Large", "XLarge")),
)
TOLERANCE = 1e-4


def main() -> int:
    options = arguments(__doc__)
    done = Path(tempfile.gettempdir()) / "tfopt-coverage.jsonl"  # a killed run goes on where it was
    known = {row["model"]: row for row in map(json.loads, done.read_text().splitlines())} if done.exists() else {}
    rows = []
    for name in MODELS[11:14] if options.quick else MODELS:
        if name not in known or "error" in known[name]:
            known[name] = checked(name)
            with done.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
        rows.append(known[name])
        print(rows[-1], file=sys.stderr, flush=True)
    failed = [row for row in rows if "error" in row]
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
    targets = [Target("models that fail", len(failed), 0)]
    return finish("coverage", __doc__, body, {"models": rows}, targets, options)


def checked(name: str) -> dict:
    """What became of one model; `error` if something failed."""
    keras.backend.clear_session()
    gc.collect()
    begin = time.perf_counter()
    size = SMALLEST.get(name, 32)
    model = with_statistics(
        getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    )
    row = {"model": name, "input": size, "parameters": model.count_params()}
    try:
        row.update(pruned_and_shrunk(model, size))
    except (tfopt.TfoptError, AssertionError) as error:
        row["error"] = f"{type(error).__name__}: {error}"
    return {**row, "seconds": round(time.perf_counter() - begin)}


def with_statistics(model: keras.Model) -> keras.Model:
    """Batch normalization away from its start values, so that an error in it shows."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                low, high = (0.7, 1.3) if weight.name in ("gamma", "moving_variance") else (-0.2, 0.2)
                weight.assign(generator.uniform(low, high, weight.shape))
    return model


def pruned_and_shrunk(model: keras.Model, size: int) -> dict:
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


def sparsity_of(model: keras.Model) -> float:
    summary = tfopt.summary(model)
    return 1 - summary.kernel_nonzero / summary.kernel_parameters


if __name__ == "__main__":
    sys.exit(main())
