"""Speed of a fused model: one `predict` for three CNNs, against three `predict` calls and a mean in numpy.

The CNN of the articles (Conv 32-64-64, Dense 64-10 on 28x28x1) three times with other weights, their probabilities
averaged, at batches of 1, 32 and 256. Beside `predict` stand the same through functions that `tf.function` compiled,
and as float .tflite files on one and two threads. All ways take turns in one process; ratios are of medians, against
the three `predict` calls, and for each .tflite also against three files run one after the other.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from common import Target, arguments, finish, ratio_of_medians, spread, table, times_in_turn

import tfopt
from tfopt.demo import article_cnn

MODELS = 3
BATCHES = {1: 80, 32: 60, 256: 25}  # batch size -> repetitions
THREADS = (1, 2)
BASE = "predict, separate"
# (way, batch size) -> highest ratio to three `predict` calls
LIMITS = {
    ("predict, fused", 1): 0.5,
    ("predict, fused", 32): 0.95,
    (".tflite 1 thread, fused", 32): 0.5,
    (".tflite 2 threads, fused", 32): 0.5,
}

Run = Callable[[], np.ndarray]


def main() -> int:
    options = arguments(__doc__)
    models = [network(seed) for seed in range(MODELS)]
    fused = tfopt.fuse(models)
    rows, measured, targets = [], {}, []
    with tempfile.TemporaryDirectory() as folder:
        files = [exported(model, Path(folder) / f"{i}.tflite") for i, model in enumerate([fused, *models])]
        for batch, turns in BATCHES.items():
            runs = ways(models, fused, files, batch)
            warm_up(runs)
            seconds = times_in_turn({name: (run, 3 if options.quick else turns) for name, run in runs.items()})
            ratios = {name: ratio_of_medians(values, seconds[BASE]) for name, values in seconds.items()}
            for name, values in seconds.items():
                apart = ratio_of_medians(values, seconds[name.replace("fused", "separate")])
                cells = [f"{ratios[name]:.3f}", f"{apart:.3f}" if "fused" in name else ""]
                rows.append([batch, name, spread([1000 * value for value in values]), *cells])
            measured[batch] = {"seconds": seconds, "ratios": ratios}
            targets += [
                Target(f"batch {batch}: {way} / three `predict` calls", ratios[way], limit)
                for (way, size), limit in LIMITS.items()
                if size == batch
            ]
    header = ["batch", "way", "ms, median (range)", "by three `predict` calls", "by the same way, separate"]
    return finish("fusion_speed", __doc__, table(header, rows), measured, targets, options)


def network(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return article_cnn()


def exported(model: keras.Model, path: Path) -> Path:
    tfopt.export_tflite(model, path, "none", batch_size=None)
    return path


def ways(models: list[keras.Model], fused: keras.Model, files: list[Path], batch: int) -> dict[str, Run]:
    """Each way to get the mean of the models' outputs for a batch."""
    x = np.random.default_rng(0).random((batch, 28, 28, 1), "float32")
    runs = {
        BASE: mean_of([predicting(model, x) for model in models]),
        "predict, fused": predicting(fused, x),
        "compiled, separate": mean_of([compiled(model, x) for model in models]),
        "compiled, fused": compiled(fused, x),
    }
    for threads in THREADS:
        one, *several = [running(path, x, threads) for path in files]
        way = f".tflite {threads} thread" + ("s" if threads > 1 else "")
        runs |= {f"{way}, separate": mean_of(several), f"{way}, fused": one}
    return runs


def mean_of(runs: list[Run]) -> Run:
    return lambda: np.mean([run() for run in runs], axis=0)


def predicting(model: keras.Model, x: np.ndarray) -> Run:
    return lambda: model.predict(x, batch_size=len(x), verbose=0)


def compiled(model: keras.Model, x: np.ndarray) -> Run:
    function = tf.function(lambda inputs: model(inputs, training=False), autograph=False)
    return lambda: function(tf.convert_to_tensor(x)).numpy()


def running(path: Path, x: np.ndarray, threads: int) -> Run:
    model = tfopt.TFLiteModel(path, num_threads=threads)
    return lambda: model.predict(x, batch_size=len(x))


def warm_up(runs: dict[str, Run]) -> None:
    """Runs each way twice, and checks that all give the same."""
    for _ in range(2):
        results = {name: run() for name, run in runs.items()}
    for name, result in results.items():
        np.testing.assert_allclose(result, results[BASE], atol=1e-4, err_msg=name)


if __name__ == "__main__":
    sys.exit(main())
