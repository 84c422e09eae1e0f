"""What fusion gains: three CNNs on Fashion-MNIST, alone, averaged, voting and with fitted weights.

The CNNs are those of the articles (Conv 32-64-64, Dense 64, Dense 10) with small differences: 3x3 kernels and maximum
pooling; a first kernel of 5x5; average pooling. Each is trained for two epochs on 55,000 images; weights are fitted on
the other 5,000. All is scored on the 10,000 test images, which had no part in it, with three seeds.
"""

import os
import statistics
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from common import Target, arguments, finish, table
from datasets import fashion_parts
from keras import layers as kl

import tfopt
from tfopt.fusion import ParallelFusion, VotingFusion

SEEDS = 3
VALIDATION = 5000
METHODS = ("greedy", "nnls", "logloss")
NETS = {
    "3x3, max pooling": (3, kl.MaxPooling2D),
    "5x5 first, max pooling": (5, kl.MaxPooling2D),
    "3x3, average pooling": (3, kl.AveragePooling2D),
}


def main() -> int:
    options = arguments(__doc__)
    samples, seeds = (1000, 1) if options.quick else (55_000, SEEDS)
    parts = fashion_parts(samples, VALIDATION)
    runs = []
    for seed in range(seeds):
        models = [network(seed, name, parts["train"]) for name in NETS]
        runs.append(scores(models, parts))
        print(f"seed {seed}: {runs[-1]}", file=sys.stderr, flush=True)
    mean = {name: statistics.fmean(run["test"][name] for run in runs) for name in runs[0]["test"]}
    best_single = max(mean[name] for name in NETS)
    fusions = [name for name in mean if name not in NETS]
    lost = {name: max(run["validation"]["mean"] - run["validation"][name] for run in runs) for name in METHODS}
    targets = [
        *(Target(f"best CNN alone against {name}, test accuracy", best_single, mean[name]) for name in fusions),
        *(Target(f"plain mean less {name} weights, validation, worst seed", lost[name], 0.0) for name in METHODS),
    ]
    rows = [
        [name, *(f"{run['test'][name]:.4f}" for run in runs), f"{mean[name]:.4f}", f"{mean[name] - best_single:+.4f}"]
        for name in mean
    ]
    body = table(["test accuracy", *(f"seed {n}" for n in range(seeds)), "mean", "over the best alone"], rows)
    fitted = [
        [name, *(f"{run['validation'][name]:.4f}: {weights_of(run, name)}" for run in runs)]
        for name in ("mean", *METHODS)
    ]
    body += "\n\n" + table(["validation accuracy and weights", *(f"seed {n}" for n in range(seeds))], fitted)
    return finish("fusion_gain", __doc__, body, {"runs": runs}, targets, options)


def network(seed: int, name: str, train: tuple) -> keras.Model:
    keras.utils.set_random_seed(100 * seed + list(NETS).index(name))
    kernel, pooling = NETS[name]
    trunk = [
        kl.Conv2D(32, kernel, activation="relu"),
        pooling(2),
        kl.Conv2D(64, 3, activation="relu"),
        pooling(2),
        kl.Conv2D(64, 3, activation="relu"),
    ]
    head = [kl.Flatten(), kl.Dense(64, activation="relu"), kl.Dense(10, activation="softmax")]
    model = keras.Sequential([keras.Input((28, 28, 1)), *trunk, *head])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*train, batch_size=64, epochs=2, verbose=0)
    return model


def scores(models: list[keras.Model], parts: dict[str, tuple]) -> dict[str, dict]:
    """Accuracy of each model and each fusion on the validation and the test images; the fitted weights."""
    predictions = [model.predict(parts["validation"][0], batch_size=256, verbose=0) for model in models]
    fitted = {name: tfopt.fit_weights(predictions, None, parts["validation"][1], method=name) for name in METHODS}
    layers = {
        "mean": ParallelFusion("mean"),
        "product": ParallelFusion("product"),
        "hard vote": VotingFusion("hard"),
        **{name: ParallelFusion("weighted", weights=fitted[name].weights) for name in METHODS},
    }
    inputs = keras.Input((28, 28, 1))
    branches = [model(inputs) for model in models]
    alone = dict(zip(NETS, branches, strict=True))
    outputs = {**alone, **{name: layer(branches) for name, layer in layers.items()}}
    fused = keras.Model(inputs, outputs)
    found: dict[str, dict] = {part: accuracies(fused, parts[part]) for part in ("validation", "test")}
    return {**found, "weights": {name: fitted[name].weights for name in METHODS}}


def accuracies(model: keras.Model, data: tuple) -> dict[str, float]:
    x, y = data
    predicted = model.predict(x, batch_size=256, verbose=0)
    return {name: float((values.argmax(1) == y).mean()) for name, values in predicted.items()}


def weights_of(run: dict, name: str) -> str:
    weights = run["weights"].get(name, [1 / len(NETS)] * len(NETS))
    return " ".join(f"{weight:.2f}" for weight in weights)


if __name__ == "__main__":
    sys.exit(main())
