"""Cost of a training step: pruned and quantization-aware against plain, tfopt on Keras 3 beside TFMOT on tf_keras.

The same CNN in both (28x28x1; three blocks of Conv 3x3, batch normalization, relu, max pooling with 16, 32, 32 filters;
Dense 32, Dense 10), Adam, one repeated batch of 64. Pruning grows to 80 % by `PolynomialDecay` over the whole run, its
masks updated every 100 steps. After a warm-up with `fit`, the six models train in turn, five steps at a time, through
the function that `fit` compiled, so that the cost of starting `fit` hides nothing. Ratios are of medians.
"""

import os
import sys
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from common import Target, arguments, finish, ratio_of_medians, spread, table, times_in_turn, training_steps

import tfopt
from tfopt.interop.tfmot import tfmot

sparsity_api = tfmot().sparsity.keras
quantize_model = tfmot().quantization.keras.quantize_model
tf_keras = sys.modules["tf_keras"]

BATCH_SIZE = 64
WARM_UP_STEPS = 20
PRUNE_LIMIT = 1.03
QAT_LIMIT = 1.15


def main() -> int:
    options = arguments(__doc__)
    rounds, steps = (5, 2) if options.quick else (80, 5)
    models = compiled_models(schedule_steps=WARM_UP_STEPS + rounds * steps)
    batches = one_batch()
    seconds = times_in_turn({name: (stepper(model, batches, steps), rounds) for name, model in models.items()})
    milliseconds = {name: [1000 * second / steps for second in values] for name, values in seconds.items()}
    ratios = {
        f"{library} {kind}": ratio_of_medians(seconds[f"{library} {kind}"], seconds[f"{library} plain"])
        for library in ("tfopt", "TFMOT")
        for kind in ("plain", "pruned", "QAT")
    }
    rows = [[name, spread(milliseconds[name]), f"{ratios[name]:.3f}"] for name in models]
    targets = [
        Target("tfopt pruned / plain", ratios["tfopt pruned"], PRUNE_LIMIT),
        Target("tfopt QAT / plain", ratios["tfopt QAT"], QAT_LIMIT),
        Target("tfopt QAT / plain against TFMOT QAT / plain", ratios["tfopt QAT"], ratios["TFMOT QAT"]),
    ]
    body = table(["model", "ms a step, median (range)", "by its plain model"], rows)
    measured = {"milliseconds": milliseconds, "ratios": ratios, "rounds": rounds, "steps_a_round": steps}
    return finish("step_cost", __doc__, body, measured, targets, options)


def compiled_models(schedule_steps: int) -> dict[str, object]:
    schedule = sparsity_api.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=schedule_steps, frequency=100)
    models = {
        "tfopt plain": network(keras),
        "tfopt pruned": tfopt.prune(network(keras), schedule),
        "tfopt QAT": tfopt.quantize(network(keras)),
        "TFMOT plain": network(tf_keras),
        "TFMOT pruned": sparsity_api.prune_low_magnitude(network(tf_keras), schedule),
        "TFMOT QAT": quantize_model(network(tf_keras)),
    }
    for name, model in models.items():
        library = keras if name.startswith("tfopt") else tf_keras
        model.compile("adam", library.losses.SparseCategoricalCrossentropy(from_logits=True))
    return models


def network(library):
    """The CNN, built with `keras` or `tf_keras`."""
    layers = library.layers
    blocks = [
        layer
        for filters in (16, 32, 32)
        for layer in (
            layers.Conv2D(filters, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
        )
    ]
    head = [layers.Flatten(), layers.Dense(32, activation="relu"), layers.Dense(10)]
    x = inputs = library.Input((28, 28, 1))
    for layer in [*blocks, *head]:
        x = layer(x)
    return library.Model(inputs, x)


def one_batch() -> tf.data.Dataset:
    rng = np.random.default_rng(0)
    images = rng.random((BATCH_SIZE, 28, 28, 1), dtype="float32")
    return tf.data.Dataset.from_tensors((images, rng.integers(0, 10, BATCH_SIZE))).repeat()


def stepper(model, batches: tf.data.Dataset, steps: int) -> Callable[[], None]:
    """Some training steps of a model that has been warmed up by `fit`, through the function that `fit` compiled."""
    pruned_by_tfmot = any(hasattr(layer, "pruning_step") for layer in model.layers)
    callbacks = [sparsity_api.UpdatePruningStep()] if pruned_by_tfmot else None
    model.fit(batches, steps_per_epoch=WARM_UP_STEPS, verbose=0, shuffle=False, callbacks=callbacks)
    return training_steps(model, batches, steps)


if __name__ == "__main__":
    sys.exit(main())
