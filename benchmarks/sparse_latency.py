"""Does sparsity make a float .tflite faster here? XNNPACK's sparse kernels for 1x1 convolutions, dense against sparse.

A MobileNet-like network of the form that these kernels ask for (3x3 stem of stride 2, 1x1 and depthwise convolutions,
global pooling), random weights. `prune(include=xnnpack_layers(model))` at 70, 80 and 90 %, exported once with dense and
once with sparse encoding; one thread, in turn. A ratio below 1 is a speed-up. There is no target: the figure is what
it is on this machine.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from common import arguments, finish, ratio_of_medians, spread, table
from keras import layers as kl

import tfopt

SPARSITIES = (0.7, 0.8, 0.9)
TURNS = 20


def main() -> int:
    options = arguments(__doc__)
    model = network(96 if options.quick else 192)
    include = tfopt.xnnpack_layers(model)
    rows, measured = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for sparsity in SPARSITIES:
            pruned = tfopt.prune(model, sparsity=sparsity, include=include)
            taken = timed(pruned, Path(folder), 3 if options.quick else TURNS)
            ratio = ratio_of_medians(taken["sparse"], taken["dense"])
            measured[str(sparsity)] = {"milliseconds": taken, "ratio": ratio}
            rows.append([f"{sparsity:.0%}", spread(taken["dense"]), spread(taken["sparse"]), f"{ratio:.2f}"])
    header = ["sparsity of the 1x1 convolutions", "dense encoding, ms", "sparse encoding, ms", "sparse / dense"]
    return finish("sparse_latency", __doc__, table(header, rows), measured, [], options)


def network(size: int) -> keras.Model:
    inputs = keras.Input((size, size, 3))
    x = kl.Conv2D(32, 3, strides=2, use_bias=False)(kl.ZeroPadding2D(1)(inputs))
    x = kl.ReLU()(kl.BatchNormalization()(x))
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1)):
        if stride == 2:
            x = kl.DepthwiseConv2D(3, strides=2, use_bias=False)(kl.ZeroPadding2D(1)(x))
        else:
            x = kl.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = kl.ReLU()(kl.BatchNormalization()(x))
        x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(width, 1, use_bias=False)(x)))
    return keras.Model(inputs, kl.Dense(10)(kl.GlobalAveragePooling2D()(x)))


def timed(model: keras.Model, folder: Path, turns: int) -> dict[str, list[float]]:
    """Milliseconds of each turn of the model's file in either encoding."""
    files = {}
    for encoding in ("dense", "sparse"):
        path = folder / f"{encoding}.tflite"
        tfopt.export_tflite(model, path, quantization="none", sparse=encoding == "sparse")
        files[encoding] = tfopt.TFLiteModel(path)
    taken: dict[str, list[float]] = {encoding: [] for encoding in files}
    for turn in range(turns):
        for encoding in ("dense", "sparse") if turn % 2 else ("sparse", "dense"):
            taken[encoding].append(files[encoding].latency(runs=20, warmup=3).median_ms)
    return taken


if __name__ == "__main__":
    sys.exit(main())
