"""Size of a .tflite of MobileNetV1, 80 % of its kernels' elements pruned, beside the bound that entropy sets.

MobileNet of `applications`, 128x128x3, 1000 classes, logits. Nothing is trained: kernels are random, scales and offsets
of the batch normalizations too, and their statistics are those of the pruned model's own activations, so that biases,
ranges and integers are as varied as in a trained model. A fraction is of the raw file of the unpruned float model.

The bound: for each tensor of n elements, n H(p) bits for the mask (p the fraction that is not zero) and the values that
are kept. In 8 bits these count with the entropy of their histogram: no code of one element after the other needs less.
In float they count as they are, with 32 bits; gzip can save a little of their exponents. Scales, tensor names and the
graph come on top in each file.
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

SPARSITY = 0.8
FLOAT_SPARSE_LIMIT = 0.31
INT8_SPARSE_LIMIT = 0.175
GZIP_LIMIT = 0.12


def main() -> int:
    options = arguments(__doc__)
    side, width = (64, 0.25) if options.quick else (128, 1.0)
    images = random_images(64, side)
    model = mobilenet(side, width)
    pruned = tfopt.prune(model, sparsity=SPARSITY)
    set_statistics(pruned, images)
    quantized = tfopt.calibrate(tfopt.quantize(pruned), images)
    files = {
        "float, unpruned": measure(model, images, sparse=False),
        "float, pruned": measure(pruned, images, sparse=False),
        "float, pruned, sparse encoding": measure(pruned, images),
        "int8, pruned": measure(quantized, images, sparse=False),
        "int8, pruned, sparse encoding": measure(quantized, images),
    }
    # A sparse-encoded file holds other tensors; the information in it is that of the plain one.
    for kind in ("float, pruned", "int8, pruned"):
        files[f"{kind}, sparse encoding"]["entropy_bytes"] = files[kind]["entropy_bytes"]
    raw = files["float, unpruned"]["size_bytes"]
    header = ["file", "stored sparse", "bytes", "fraction", "gzip bytes", "fraction", "bound by entropy", "fraction"]
    rows = [[name, "yes" if file["sparse"] else "no", *amounts(file, raw)] for name, file in files.items()]
    targets = [
        Target(
            "float, pruned, sparse encoding / float, unpruned",
            files["float, pruned, sparse encoding"]["size_bytes"] / raw,
            FLOAT_SPARSE_LIMIT,
        ),
        Target(
            "int8, pruned, sparse encoding / float, unpruned",
            files["int8, pruned, sparse encoding"]["size_bytes"] / raw,
            INT8_SPARSE_LIMIT,
        ),
        Target("int8, pruned, gzip / float, unpruned, raw", files["int8, pruned"]["gzip_bytes"] / raw, GZIP_LIMIT),
        Target(
            "int8, pruned, sparse encoding, gzip / float, unpruned, raw",
            files["int8, pruned, sparse encoding"]["gzip_bytes"] / raw,
            GZIP_LIMIT,
        ),
    ]
    return finish("prune_size", __doc__, table(header, rows), {"files": files}, targets, options)


def random_images(count: int, side: int) -> np.ndarray:
    """Coarse patterns of 8x8 coloured squares, in [-1, 1]: they differ more from each other than noise does."""
    squares = np.random.default_rng(0).uniform(-1, 1, (count, 8, 8, 3)).astype("float32")
    return squares.repeat(side // 8, axis=1).repeat(side // 8, axis=2)


def mobilenet(side: int, width: float) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNet(
        input_shape=(side, side, 3), alpha=width, weights=None, classifier_activation=None
    )
    random = np.random.default_rng(1)
    for layer in batch_normalizations(model):
        layer.gamma.assign(random.uniform(0.5, 1.5, layer.gamma.shape))
        layer.beta.assign(random.normal(1.0, 0.5, layer.beta.shape))
    return model


def set_statistics(model: keras.Model, images: np.ndarray) -> None:
    """Makes the statistics of all batch normalizations those of `images`."""
    for layer in batch_normalizations(model):
        layer.momentum = 0.0
    model(images, training=True)


def batch_normalizations(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def measure(model: keras.Model, images: np.ndarray, *, sparse: bool | str = "auto") -> dict:
    """Exports the model; sizes of the file and of the information in its constants, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        export = tfopt.export_tflite(model, path, data=images, sparse=sparse)
        content = path.read_bytes()
    return {
        "size_bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9)),
        "entropy_bytes": round(sum(entropy_bits(values) for values in constants(content)) / 8),
        "sparse": export.sparse,
        "mean_difference": export.mean_difference,
        "tolerance": export.tolerance,
    }


def constants(content: bytes) -> Iterator[np.ndarray]:
    """Values of the constant tensors of a file; int8 as they are, all others as 32-bit words."""
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    for tensor in map(graph.Tensors, range(graph.TensorsLength())):
        buffer = model.Buffers(tensor.Buffer())
        if not buffer.DataIsNone():
            yield buffer.DataAsNumpy().view(np.int8 if tensor.Type() == schema.TensorType.INT8 else np.int32)


def entropy_bits(values: np.ndarray) -> float:
    """Bits of the mask and of the values that are not zero, for one tensor."""
    kept = values[values != 0]
    mask_bits = values.size * histogram_entropy(np.array([kept.size, values.size - kept.size]))
    if values.dtype != np.int8:
        return mask_bits + 32 * kept.size
    return mask_bits + kept.size * histogram_entropy(np.unique(kept, return_counts=True)[1])


def histogram_entropy(counts: np.ndarray) -> float:
    """Bits an element."""
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log2(p)).sum())


def amounts(file: dict, raw: int) -> list[str]:
    keys = ("size_bytes", "gzip_bytes", "entropy_bytes")
    return [cell for key in keys for cell in (f"{file[key]:,}", f"{file[key] / raw:.4f}")]


if __name__ == "__main__":
    sys.exit(main())
