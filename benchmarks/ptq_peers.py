"""Post-training quantization of the MLPerf Tiny ResNet-8 on CIFAR-10 against the peers, and training for it.

All start from the same fine-tuned model and calibrate with the same 500 training images: the TensorFlow converter,
ai-edge-quantizer (static int8; a row says so if it is not installed), `tfopt.calibrate` with its defaults, and
`tfopt.quantize` trained for a few epochs at a low learning rate. Accuracy is of the .tflite, on the 10,000 test images,
by which nothing was chosen: the defaults of `calibrate` come from the divergence of outputs on training images held
out. The files take turns on one thread; ratios are of medians.
"""

import contextlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from cifar import fine_tune, say
from common import Target, arguments, finish, ratio_of_medians, table
from datasets import for_resnet8, resnet8
from prune_cifar import FULL, QUICK, images, latencies, percent, spread_of_small

import tfopt

CALIBRATION_IMAGES = 500
LEARNING_RATE = 1e-4  # of training with fake quantization, falling to 0 along a cosine
PEERS = ("converter", "ai-edge-quantizer")
PTQ_DROP_LIMIT, QAT_DROP_LIMIT = 0.2, 0.05  # points
LATENCY_LIMIT = 1.02


@dataclass(frozen=True)
class Settings:
    """How long is trained and timed."""

    qat_epochs: int
    latency_turns: int


def main() -> int:
    options = arguments(__doc__, base="a fine-tuned ResNet-8, .keras, to start from instead of fine-tuning the shipped")
    settings = Settings(qat_epochs=1, latency_turns=3) if options.quick else Settings(qat_epochs=5, latency_turns=40)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        measured = run(settings, QUICK if options.quick else FULL, options.base, Path(folder))
    return finish(
        "ptq_peers", __doc__, body(measured), {**asdict(settings), "files": measured}, targets(measured), options
    )


def run(settings: Settings, sizes, base_path: Path | None, folder: Path) -> dict[str, dict]:
    """Size, accuracy and latencies of each file."""
    data = images(sizes)
    base = tfopt.load_model(base_path) if base_path else resnet8()
    if not base_path:
        fine_tune(base, data.train, sizes.base_epochs, learning_rate=1e-4)
    some = for_resnet8(data.train[0][:CALIBRATION_IMAGES])
    paths = written(base, some, data.train, settings, folder)
    x, y = for_resnet8(data.test[0]), data.test[1]
    files = {name: tfopt.TFLiteModel(path) for name, path in paths.items()}
    result: dict[str, dict] = {}
    for name, file in files.items():
        result[name] = {"accuracy": file.evaluate(x, y)["accuracy"], "size_bytes": file.size_bytes}
        say(f"{name}: {percent(result[name]['accuracy'])}, {file.size_bytes:,} bytes")
    for name, milliseconds in latencies(files, settings.latency_turns).items():
        result[name]["milliseconds"] = milliseconds
    return result


def written(base: keras.Model, some: np.ndarray, train, settings: Settings, folder: Path) -> dict[str, Path]:
    """The files by name; that of ai-edge-quantizer only where it is installed."""
    paths = {name: folder / f"{name.replace(' ', '-')}.tflite" for name in ("float", *PEERS, "tfopt PTQ", "tfopt QAT")}
    tfopt.export_tflite(base, paths["float"], data=some)
    paths["converter"].write_bytes(by_converter(base, some))
    if importlib.util.find_spec("ai_edge_quantizer"):
        by_ai_edge(paths["float"], paths["ai-edge-quantizer"], some)
    else:
        del paths["ai-edge-quantizer"]
    quantized = tfopt.quantize(base)
    calibrated = tfopt.calibrate(quantized, some)
    tfopt.export_tflite(calibrated, paths["tfopt PTQ"], data=some)
    fine_tune(calibrated, train, settings.qat_epochs, learning_rate=LEARNING_RATE, decay=True)
    tfopt.export_tflite(calibrated, paths["tfopt QAT"], data=some)
    return paths


def by_converter(base: keras.Model, some: np.ndarray) -> bytes:
    """Full int8 post-training quantization as TensorFlow's guide has it, float at both ends as all files here."""
    converter = tf.lite.TFLiteConverter.from_keras_model(base)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in some)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with contextlib.redirect_stdout(io.StringIO()):
        return converter.convert()


def by_ai_edge(source: Path, target: Path, some: np.ndarray) -> None:
    """The package's static recipe, 8-bit weights and activations, calibrated with the same images."""
    from ai_edge_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
    ((signature, names),) = tf.lite.Interpreter(str(source)).get_signature_list().items()
    samples = [{names["inputs"][0]: image[None]} for image in some]
    tool.quantize(tool.calibrate({signature: samples})).export_model(str(target))


def targets(files: dict[str, dict]) -> list[Target]:
    def drop(name: str) -> float:
        return 100 * (files["float"]["accuracy"] - files[name]["accuracy"])

    found = [
        Target("accuracy lost by calibration, points", drop("tfopt PTQ"), PTQ_DROP_LIMIT),
        Target("accuracy lost by quantization-aware training, points", drop("tfopt QAT"), QAT_DROP_LIMIT),
    ]
    ours = files["tfopt PTQ"]
    for peer in filter(files.__contains__, PEERS):
        theirs = files[peer]
        found += [
            Target(f"points lost, calibration less {peer}", drop("tfopt PTQ") - drop(peer), 0.0),
            Target(f"bytes, calibration / {peer}", ours["size_bytes"] / theirs["size_bytes"], 1.0),
            Target(
                f"latency, calibration / {peer}",
                ratio_of_medians(ours["milliseconds"], theirs["milliseconds"]),
                LATENCY_LIMIT,
            ),
        ]
    return found


def body(files: dict[str, dict]) -> str:
    rows = [
        [name, percent(file["accuracy"]), f"{file['size_bytes']:,}", spread_of_small(file["milliseconds"])]
        for name, file in files.items()
    ]
    rows += [[peer, "not installed", "", ""] for peer in PEERS if peer not in files]
    return table([".tflite", "accuracy", "bytes", "ms, median (range)"], rows)


if __name__ == "__main__":
    sys.exit(main())
