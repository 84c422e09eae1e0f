"""Fine-tuning a ResNet-8 from photographs to clothes: parts of it or all of it, and how training is set up.

The ResNet-8 of MLPerf Tiny, trained on CIFAR-10, gets a fresh head and learns Fashion-MNIST, resized to 32x32x3, by
`tfopt.fine_tune`: the head alone, the last block with it, everything, everything unfrozen in three stages, and, to
compare, everything from random weights. Each has the same images, epochs and batches; Adam, its rate rising to 1e-3
(1e-2 for the head alone) in the first epoch and falling along a cosine. Then some settings of `tfopt.recipe` for the
whole model, on fewer images.

Accuracies are on the 10,000 test images. Seconds are those of the process on one thread, of the call of `fine_tune`.
"""

import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from common import arguments, finish, table
from datasets import fashion_mnist, for_resnet8, resnet8

import tfopt

SEEDS = 2
BATCH_SIZE = 64
RATES = {"features": 1e-2, "partial": 1e-3, "full": 1e-3}
LOSS = "sparse_categorical_crossentropy"
LAST_BLOCK = 6  # layers with weights: two convolutions and their normalizations, the shortcut, the head
MODES = {
    "features": {"mode": "features"},
    "partial, the last block": {"mode": "partial", "layers": LAST_BLOCK},
    "full": {"mode": "full"},
    "full, in 3 stages": {"mode": "full", "stages": 3},
    "full, from random weights": {"mode": "full"},
}
COSINE = {"decay": "cosine", "warmup_epochs": 1}
RECIPES = {
    "a constant rate": {},
    "cosine after a warm-up": COSINE,
    "cosine, clipnorm=1": {**COSINE, "clipnorm": 1.0},
    "cosine, adaptive_clip=0.01": {**COSINE, "adaptive_clip": 0.01},
    "cosine, label_smoothing=0.1": {**COSINE, "label_smoothing": 0.1},
    "cosine, ema=0.9": {**COSINE, "ema": 0.9},
}


def main() -> int:
    options = arguments(__doc__, only=("modes", "recipes"))
    seeds, samples, few, epochs, tested = (1, 256, 256, 3, 256) if options.quick else (SEEDS, 3000, 1000, 4, 10_000)
    train, test = clothes(samples, tested)
    measured: dict[str, dict] = {}
    bodies = []
    if options.only != "recipes":
        measured["modes"] = {
            name: [tuned(train, test, seed, epochs, COSINE, "random" in name, how) for seed in range(seeds)]
            for name, how in MODES.items()
        }
        bodies += [f"{samples:,} images, {epochs} epochs:", results(measured["modes"], "`fine_tune`", True)]
    if options.only != "modes":
        part = (train[0][:few], train[1][:few])
        measured["recipes"] = {
            name: [tuned(part, test, seed, epochs, how, False, {"mode": "full"}) for seed in range(seeds)]
            for name, how in RECIPES.items()
        }
        bodies += [f"{few:,} images, {epochs} epochs, `full`:", results(measured["recipes"], "`recipe`", False)]
    return finish("fine_tuning", __doc__, "\n\n".join(bodies), measured, [], options)


def clothes(samples: int, tested: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images of clothes as the ResNet-8 takes them, and labels: to train on, and of the test."""

    def resized(images: np.ndarray) -> np.ndarray:
        wide = tf.image.resize(images[..., None], (32, 32)).numpy()
        return for_resnet8(np.repeat(wide, 3, axis=-1))

    train, test = fashion_mnist()
    order = np.random.default_rng(0).permutation(len(train[0]))[:samples]
    return [(resized(train[0][order]), train[1][order]), (resized(test[0][:tested]), test[1][:tested])]


def tuned(train, test, seed: int, epochs: int, settings: dict, anew: bool, how: dict) -> dict:
    """Accuracy, seconds and number of trained weights of a model that is fine-tuned."""
    keras.utils.set_random_seed(seed)
    model = with_fresh_head(anew)
    plan = tfopt.recipe(
        epochs=epochs,
        samples=len(train[0]),
        batch_size=BATCH_SIZE,
        learning_rate=RATES[how["mode"]],
        loss=LOSS,
        **settings,
    )
    began = time.process_time()
    model = tfopt.fine_tune(model, *train, how=plan, verbose=0, **how)
    seconds = time.process_time() - began
    result = {
        "accuracy": float((model.predict(test[0], batch_size=250, verbose=0).argmax(1) == test[1]).mean()),
        "seconds": seconds,
        "trained": int(sum(np.prod(weight.shape) for weight in model.trainable_weights)),
    }
    print(f"  seed {seed}, {how}, {settings}: {result}", file=sys.stderr, flush=True)
    return result


def with_fresh_head(anew: bool) -> keras.Model:
    """The ResNet-8, with a softmax of its own for the clothes; `anew` gives it random weights everywhere."""
    trained = resnet8()
    if anew:
        trained = keras.models.clone_model(trained)
    head = keras.layers.Dense(10, "softmax", name="clothes")
    return keras.Model(trained.inputs, head(trained.layers[-1].input), name="resnet8")


def results(rows: dict[str, list[dict]], title: str, with_weights: bool) -> str:
    cells = [
        [
            name,
            *([f"{runs[0]['trained']:,}"] if with_weights else []),
            percent([run["accuracy"] for run in runs]),
            f"{statistics.fmean(run['seconds'] for run in runs):.0f}",
            ", ".join(percent([run["accuracy"]]) for run in runs),
        ]
        for name, runs in rows.items()
    ]
    return table([title, *(["weights trained"] if with_weights else []), "accuracy", "seconds", "of each seed"], cells)


def percent(fractions: list[float]) -> str:
    return f"{100 * statistics.fmean(fractions):.1f} %"


if __name__ == "__main__":
    sys.exit(main())
