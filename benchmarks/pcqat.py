"""Pruning, clustering and quantization-aware training on one another: size and accuracy of the .tflite files.

The CNN of `tfopt demo` (93,322 parameters) on its 4000 + 1000 MNIST images. All models come from the same trained
float one: pruned to 80 % along a schedule, clustered to 16 values a kernel (zero among them where it is pruned), and
quantized, each step with some epochs of training. PQAT is pruned, then quantized; CQAT clustered, then quantized; PCQAT
all three. What a step reached is held by weight constraints through the next ones.

Accuracy is that of the .tflite file on the 1000 images held back. A fraction is of the raw bytes of the float file. The
bound is the entropy of the integers of each kernel, one code word a weight; gzip needs more than that, and biases,
scales, names and the graph come on top. Five settings make the file small:

- All kernels are pruned together (`scope="global"`): differently sparse masks hold less information than equal ones.
- Weights are pruned in pairs of neighbouring inputs (`Block(2, 1)`), which lie side by side in the file: half as many
  places of zeros to tell. Pruned one by one, PCQAT took 0.0608 of the float file.
- `init="linear"`: evenly spaced centroids leave most weights to a few of them, which a file compressor makes use of.
- Clusters for the whole kernel: `quantize` then gives it one range. With a range for each channel the 16 values would
  become other integers in each.
- Kernels are stored dense: a sparse encoding would hide from gzip that few values recur.
"""

import gzip
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from common import Target, arguments, finish, table

import tfopt
from tfopt.demo import BATCH_SIZE, Digits, article_cnn, load_digits, pruning_schedule

CLUSTERS = 16
GZIP_LIMIT = 0.06
MAX_DROP = 0.01


def main() -> int:
    options = arguments(__doc__)
    keras.utils.set_random_seed(0)
    data = load_digits()
    long, short = (1, 1) if options.quick else (10, 3)
    full = train(article_cnn(), data, long, 2e-3)
    schedule = pruning_schedule(long * steps_per_epoch(data))
    masked = tfopt.prune(full, schedule, pattern=tfopt.Block(2, 1), scope="global", min_kept=0.02)
    pruned = train(masked, data, long, 2e-3)
    clustered = train(tfopt.cluster(full, CLUSTERS, init="linear"), data, short, 5e-4)
    both = train(tfopt.cluster(pruned, CLUSTERS, init="linear"), data, short, 5e-4)
    models = {"float": full, "pruned": pruned, "clustered": clustered, "pruned, clustered": both}
    for name, model in (("PQAT", pruned), ("CQAT", clustered), ("PCQAT", both)):
        models[name] = train(tfopt.quantize(model), data, short, 2e-4)
    files = {name: measure(model, data) for name, model in models.items()}
    raw = files["float"]["size_bytes"]
    for file in files.values():
        file["fraction"] = file["gzip_bytes"] / raw
    held = zeros(pruned)
    targets = [
        Target("gzip of PCQAT / raw bytes of float", files["PCQAT"]["fraction"], GZIP_LIMIT),
        Target("drop of accuracy, float to PCQAT", files["float"]["accuracy"] - files["PCQAT"]["accuracy"], MAX_DROP),
        Target("zeros in the pruned model / in the PQAT file", held / files["PQAT"]["zeros"], 1.0),
        Target("zeros in the pruned model / in the PCQAT file", held / files["PCQAT"]["zeros"], 1.0),
        Target("most integers in a kernel, CQAT", files["CQAT"]["values_per_kernel"], CLUSTERS),
        Target("most integers in a kernel, PCQAT", files["PCQAT"]["values_per_kernel"], CLUSTERS),
    ]
    measured = {"files": files, "zeros in the pruned model": held}
    return finish("pcqat", __doc__, shown(files), measured, targets, options)


def shown(files: dict[str, dict]) -> str:
    header = ["model", "accuracy", "bytes", "gzip bytes", "fraction", "bound", "zeros", "most values in a kernel"]
    numbers = ("size_bytes", "gzip_bytes", "fraction", "bound_bytes", "zeros", "values_per_kernel")
    rows = [
        [name, f"{file['accuracy']:.3f}", *(f"{file[n]:.4f}" if n == "fraction" else f"{file[n]:,}" for n in numbers)]
        for name, file in files.items()
    ]
    return table(header, rows)


def train(model: keras.Model, data: Digits, epochs: int, rate: float) -> keras.Model:
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * steps_per_epoch(data), alpha=0.01)
    model.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    return model


def steps_per_epoch(data: Digits) -> int:
    return -(-len(data.x_train) // BATCH_SIZE)


def zeros(model: keras.Model) -> int:
    return sum(int((w.numpy() == 0).sum()) for w in model.trainable_variables if len(w.shape) > 1)


def measure(model: keras.Model, data: Digits) -> dict:
    """Exports the model; accuracy of the file, its sizes in bytes, and what its kernels hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        tfopt.export_tflite(model, path, data=data.x_train[:200], sparse=False)
        content = path.read_bytes()
    predicted = tfopt.TFLiteModel(content).predict(data.x_test).argmax(-1)
    found = list(kernels(content))
    return {
        "accuracy": float((predicted == data.y_test).mean()),
        "size_bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9)),
        "bound_bytes": round(sum(map(entropy_bits, found)) / 8),
        "zeros": sum(int((kernel == 0).sum()) for kernel in found),
        "values_per_kernel": max(len(np.unique(kernel)) for kernel in found),
    }


def kernels(content: bytes) -> Iterator[np.ndarray]:
    """The kernels of a file, output channels first."""
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    for tensor in map(graph.Tensors, range(graph.TensorsLength())):
        buffer = model.Buffers(tensor.Buffer())
        dtype = {schema.TensorType.INT8: np.int8, schema.TensorType.FLOAT32: np.float32}.get(tensor.Type())
        if dtype and tensor.ShapeLength() > 1 and not buffer.DataIsNone():
            yield buffer.DataAsNumpy().view(dtype).reshape(tensor.ShapeAsNumpy())


def entropy_bits(kernel: np.ndarray) -> float:
    """Bits of all weights with one code word each, as long as its frequency asks for."""
    counts = np.unique(kernel, return_counts=True)[1]
    return float(-(counts * np.log2(counts / kernel.size)).sum())


if __name__ == "__main__":
    sys.exit(main())
