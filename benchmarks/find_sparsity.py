"""Does a sparsity chosen on validation data keep its promise on data that nobody saw? Fashion-MNIST, a small CNN.

Two CNNs (Conv 16, 32, 32 with stride 2, Dense 64, Dense 10; three epochs on 20,000 images, another seed each) are
pruned with at most one point of accuracy to lose. `find_sparsity` chooses on 10,000 other images, once as one
validation set and once by 5-fold cross-validation with its margin of one standard error. Drops are then taken on the
10,000 test images. The first net is also fine-tuned for an epoch on its training images in each trial, and pruned to
one overall sparsity in two ways: the same in each layer, and per layer from the curves of `sensitivity`.
"""

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from common import Target, arguments, finish, table
from datasets import fashion_parts

import tfopt

MAX_DROP = 0.01
OVERALL = 0.6
CHECKED = 10_000


def main() -> int:
    options = arguments(__doc__)
    samples, nets = (2000, 1) if options.quick else (20_000, 2)
    parts = fashion_parts(samples, CHECKED)
    trained = [network(seed, parts["train"]) for seed in range(nets)]
    rows, drops = [], {"validation set": [], "5 folds": []}
    for seed, model in enumerate(trained):
        for name, cv in (("validation set", None), ("5 folds", 5)):
            row = chosen(model, parts["validation"], parts["test"], cv=cv)
            rows.append([f"net {seed}", name, *row.values()])
            drops[name].append(row["drop, test"])
    tuning = {"finetune": 1, "validation_data": parts["validation"], "sparsities": (0.5, 0.7, 0.8)}
    tuned = chosen(trained[0], parts["train"], parts["test"], **tuning)
    rows.append(["net 0", "validation set, fine-tuned", *tuned.values()])
    per_layer = two_ways(trained[0], parts)
    targets = [
        Target("largest drop on the test set, chosen by 5 folds", max(drops["5 folds"]), MAX_DROP),
        Target("drop after fine-tuning, against the net fine-tuned alike", tuned["drop, test"], MAX_DROP),
        Target(f"drop at {OVERALL:.0%} per layer against {OVERALL:.0%} in each", *per_layer.values()),
    ]
    header = ["net", "scored on", *tuned]
    ways = [[f"{OVERALL:.0%} overall, {name}", f"{drop:.4f}"] for name, drop in per_layer.items()]
    body = "\n\n".join([table(header, [list(map(shown, row)) for row in rows]), table(["net 0", "drop, test"], ways)])
    measured = {"rows": [dict(zip(header, row, strict=True)) for row in rows], "two ways": per_layer}
    return finish("find_sparsity", __doc__, body, measured, targets, options)


def shown(cell: object) -> object:
    return f"{cell:.4f}" if isinstance(cell, float) else cell


def network(seed: int, train: tuple) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    convolutions = [layers.Conv2D(n, 3, 2, padding="same", activation="relu") for n in (16, 32, 32)]
    head = [layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *convolutions, *head])
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*train, batch_size=128, epochs=3, verbose=0)
    return model


def chosen(model: keras.Model, data: tuple, test: tuple, **options) -> dict[str, float | int]:
    """What was chosen by the data and what it costs on the test images."""
    begin = time.perf_counter()
    choice = tfopt.find_sparsity(model, data, MAX_DROP, batch_size=128, verbose=0, **options)
    seconds = time.perf_counter() - begin
    before = accuracy(model, test)
    if choice.finetune:
        before = accuracy(fine_tuned(model, data, choice.finetune), test)
    return {
        "tried": len(choice.trials),
        "sparsity": choice.sparsity,
        "drop, validation": choice.chosen.drop,
        "std error": choice.chosen.drop_error,
        "accuracy before, test": before,
        "accuracy after, test": accuracy(choice.model, test),
        "drop, test": before - accuracy(choice.model, test),
        "seconds": round(seconds),
    }


def fine_tuned(model: keras.Model, data: tuple, epochs: int) -> keras.Model:
    """The unpruned net with as much training as the pruned one had."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.compile(keras.optimizers.Adam(2e-3), model.loss)
    copy.fit(*data, batch_size=128, epochs=epochs, verbose=0)
    return copy


def two_ways(model: keras.Model, parts: dict[str, tuple]) -> dict[str, float]:
    """Drops on the test images at one overall sparsity: per layer from the curves, and the same in each layer."""
    curves = tfopt.sensitivity(model, parts["validation"], batch_size=128, verbose=0)
    before = accuracy(model, parts["test"])
    ways = {"per layer from the curves": curves.sparsities(OVERALL), "the same in each layer": OVERALL}
    return {name: before - accuracy(tfopt.prune(model, sparsity=way), parts["test"]) for name, way in ways.items()}


def accuracy(model: keras.Model, data: tuple) -> float:
    x, y = data
    return float((model.predict(x, batch_size=256, verbose=0).argmax(1) == y).mean())


if __name__ == "__main__":
    sys.exit(main())
