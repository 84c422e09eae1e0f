"""What each pattern of `prune` brings: size, gzip and latency of the .tflite of one small network, float and int8.

The network (128x128x3, depthwise and 1x1 convolutions with batch normalization, two residual blocks, 0.16 million
parameters) has the form for which XNNPACK has sparse kernels: a padded 3x3 convolution with stride 2, 1x1 and depthwise
3x3 convolutions, global average pooling. Nothing is trained, as neither size nor latency depends on it. Patterns of
zeros leave the stem dense; channels are masked to half of the multiply-accumulates and taken out by `shrink`; of the
two residual blocks one is dropped. All files take turns on one thread, 10 inferences at a time; ratios are of medians.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from common import Target, arguments, finish, ratio_of_medians, table
from keras import layers as kl

import tfopt

CASES: dict[str, dict] = {
    "unpruned": {},
    "element, 50 %": {"sparsity": 0.5, "exclude": "stem"},
    "element, 80 %": {"sparsity": 0.8, "exclude": "stem"},
    "element, 90 %": {"sparsity": 0.9, "exclude": "stem"},
    "2:4": {"pattern": "2:4", "exclude": "stem"},
    "4x1, 80 %": {"pattern": "4x1", "sparsity": 0.8, "exclude": "stem"},
    "channel, half the MACs": {"pattern": "channel", "to_macs": 0.5, "round_to": 8},
    "layer, one of two blocks": {"pattern": "layer", "sparsity": 0.5, "include": "*_add"},
}
KINDS = {"none": "float", "int8": "int8"}
FULL_TURNS, QUICK_TURNS = 60, 2


def main() -> int:
    options = arguments(__doc__)
    samples = np.random.default_rng(0).random((50, 128, 128, 3), "float32")
    models = {case: pruned(network(), **how) for case, how in CASES.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = {
            (case, kind): exported(model, Path(folder) / f"{place}-{kind}.tflite", kind, samples)
            for place, (case, model) in enumerate(models.items())
            for kind in KINDS
        }
    times = latencies(files, QUICK_TURNS if options.quick else FULL_TURNS)
    rows = [measured(*key, models[key[0]], files, times) for key in sorted(files, key=lambda key: key[1] != "none")]
    return finish("prune_patterns", __doc__, body(rows), {"rows": rows}, targets(rows), options)


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((128, 128, 3))
    x = normalized(kl.Conv2D(32, 3, 2, use_bias=False, name="stem")(kl.ZeroPadding2D(1)(inputs)))
    x = separable(separable(x, 64), 128, strides=2)
    x = kl.Add(name="first_add")([x, separable(x, 128)])
    x = separable(x, 256, strides=2)
    x = kl.Add(name="second_add")([x, separable(x, 256)])
    x = kl.GlobalAveragePooling2D(keepdims=True)(x)
    return keras.Model(inputs, kl.Flatten()(kl.Conv2D(100, 1, name="head")(x)))


def separable(x, filters: int, strides: int = 1):
    padding = "same"
    if strides == 2:
        x, padding = kl.ZeroPadding2D(1)(x), "valid"
    x = normalized(kl.DepthwiseConv2D(3, strides, padding, use_bias=False)(x))
    return normalized(kl.Conv2D(filters, 1, use_bias=False)(x))


def normalized(x):
    return kl.ReLU()(kl.BatchNormalization()(x))


def pruned(model: keras.Model, **how) -> keras.Model:
    if not how:
        return model
    model = tfopt.prune(model, **how)
    return tfopt.shrink(model) if how.get("pattern") == "channel" else model


def exported(model: keras.Model, path: Path, kind: str, samples: np.ndarray) -> tfopt.TFLiteModel:
    tfopt.export_tflite(model, path, kind, data=samples)
    return tfopt.TFLiteModel(path)


def latencies(files: dict, turns: int) -> dict[tuple[str, str], list[float]]:
    """Median milliseconds of each turn of each file; another file begins each turn."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in files}
    keys = list(files)
    for turn in range(turns):
        start = turn % len(keys)
        for key in keys[start:] + keys[:start]:
            times[key].append(files[key].latency(runs=10, warmup=2).median_ms)
    return times


def measured(case: str, kind: str, model: keras.Model, files: dict, times: dict) -> dict:
    file, base = files[case, kind], files["unpruned", kind]
    return {
        "case": case,
        "file": KINDS[kind],
        "macs": tfopt.summary(model).macs,
        "size_bytes": file.size_bytes,
        "size_ratio": file.size_bytes / base.size_bytes,
        "gzip_bytes": file.gzip_bytes,
        "gzip_ratio": file.gzip_bytes / base.gzip_bytes,
        "latency_ms": statistics.median(times[case, kind]),
        "latency_ratio": ratio_of_medians(times[case, kind], times["unpruned", kind]),
    }


def body(rows: list[dict]) -> str:
    return table(
        ["pattern", "file", "MACs", "bytes", "by unpruned", "gzip", "by unpruned", "latency ms", "by unpruned"],
        [
            [
                row["case"],
                row["file"],
                f"{row['macs']:,}",
                f"{row['size_bytes']:,}",
                f"{row['size_ratio']:.2f}",
                f"{row['gzip_bytes']:,}",
                f"{row['gzip_ratio']:.2f}",
                f"{row['latency_ms']:.3f}",
                f"{row['latency_ratio']:.2f}",
            ]
            for row in rows
        ],
    )


def targets(rows: list[dict]) -> list[Target]:
    of = {(row["case"], row["file"]): row for row in rows}
    channels = "channel, half the MACs"
    return [
        Target("float bytes, element 80 % / unpruned", of["element, 80 %", "float"]["size_ratio"], 0.35),
        Target("float latency, channels at half the MACs / unpruned", of[channels, "float"]["latency_ratio"], 0.65),
        Target("int8 latency, channels at half the MACs / unpruned", of[channels, "int8"]["latency_ratio"], 0.75),
    ]


if __name__ == "__main__":
    sys.exit(main())
