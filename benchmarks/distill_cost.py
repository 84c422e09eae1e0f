"""Cost of a distillation step: `tfopt.Distiller` against `keras.distillation.Distiller`, and with cached answers.

Fashion-MNIST, batches of 128, Adam. The teacher is the ResNet-20 of He et al. 2016 (section 4.2), the student four
convolutions, about a tenth of the multiply-accumulates. "logits": soft targets at temperature 4 (Keras
is given the right loss, `KLDivergence()`; its default is not softened). "feature": the mean squared difference of two
layers (FitNets), of the same shape, as Keras has no projection; both run the teacher up to that layer only, and
Keras trains the student twice up to there. "cached": soft targets that `cache_teacher` kept. All with a loss of the
labels too. After a warm-up with `fit`, the Distillers train in turn, some steps at a time, through the function that
`fit` compiled. Ratios are of medians. "student alone" is its own training step, without a teacher: "cached" cannot be
faster, so what it reaches depends on the pair. Where the student's step takes longer for its multiply-accumulates, it
is above the bound: with three convolutions, most of their work at 14x14, the ratios were 0.851, 0.748 and 0.264 (11.2
to 1); with ResNet-8 as the student of ResNet-56, which trains batch normalizations, 0.858, 0.666 and 0.355 (10.3 to 1).
"""

import os
import sys
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import datasets
import keras
import numpy as np
import tensorflow as tf
from common import Target, arguments, finish, ratio_of_medians, spread, table, times_in_turn, training_steps
from keras import layers

import tfopt
from tfopt.core.models.graph import read
from tfopt.core.models.macs import model_macs
from tfopt.distillation import FeatureMatching, SoftTargets

BATCH_SIZE = 128
BATCHES = 40
WARM_UP_STEPS = 10
TEMPERATURE = 4.0
FEATURE = "features"
LIMITS = {"logits": 1.0, "feature": 0.75, "cached": 0.25}


def main() -> int:
    options = arguments(__doc__)
    rounds, steps = (3, 2) if options.quick else (60, 3)
    x, y = (part[: BATCH_SIZE * BATCHES] for part in datasets.fashion_mnist().train)
    x = x[..., None].astype("float32") / 255
    teacher, macs = trained_teacher(x, y), {"teacher": teacher_network(), "student": student_network()}
    counts = {name: sum(filter(None, model_macs(read(model)).values())) for name, model in macs.items()}
    runs = steppers(teacher, x, y, steps)
    seconds = times_in_turn({name: (run, rounds) for name, run in runs.items()})
    milliseconds = {name: [1000 * second / steps for second in values] for name, values in seconds.items()}
    ratios = {
        "logits": ratio_of_medians(seconds["tfopt logits"], seconds["Keras logits"]),
        "feature": ratio_of_medians(seconds["tfopt feature"], seconds["Keras feature"]),
        "cached": ratio_of_medians(seconds["tfopt cached"], seconds["Keras logits"]),
    }
    targets = [Target(f"tfopt {name} / Keras", ratios[name], limit) for name, limit in LIMITS.items()]
    rows = [[name, spread(values)] for name, values in milliseconds.items()]
    body = "\n\n".join(
        [
            f"Multiply-accumulates: teacher {counts['teacher']:,}, student {counts['student']:,}, "
            f"{counts['teacher'] / counts['student']:.1f} to 1.",
            table(["step", "ms a step, median (range)"], rows),
        ]
    )
    measured = {"milliseconds": milliseconds, "ratios": ratios, "macs": counts, "rounds": rounds, "steps": steps}
    return finish("distill_cost", __doc__, body, measured, targets, options)


def student_network() -> keras.Model:
    """Four convolutions, most of the work at 7x7; the last gives the features."""
    inputs = keras.Input((28, 28, 1))
    x = inputs
    for filters, strides, name in ((16, 2, None), (32, 2, None), (64, 1, None), (64, 1, FEATURE)):
        x = layers.Conv2D(filters, 3, strides, padding="same", activation="relu", name=name)(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def teacher_network() -> keras.Model:
    """Three residual blocks at 28x28, three at 14x14 and three at 7x7, of which the first gives the features."""
    inputs = keras.Input((28, 28, 1))
    x = layers.ReLU()(normalized(inputs, 16))
    blocks = [(16, 1)] * 3 + [(32, 2)] + [(32, 1)] * 2 + [(64, 2)] + [(64, 1)] * 2
    for number, (filters, strides) in enumerate(blocks):
        y = normalized(layers.ReLU()(normalized(x, filters, strides)), filters)
        shortcut = x if strides == 1 else normalized(x, filters, strides, size=1)
        x = layers.ReLU(name=FEATURE if number == 6 else None)(layers.Add()([y, shortcut]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def normalized(x, filters: int, strides: int = 1, size: int = 3):
    """Convolution and batch normalization."""
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization()(x)


def trained_teacher(x: np.ndarray, y: np.ndarray) -> keras.Model:
    """A teacher after one epoch, so that its statistics and answers are those of a trained one."""
    teacher = teacher_network()
    teacher.compile("adam", label_loss())
    teacher.fit(x, y, batch_size=BATCH_SIZE, verbose=0)
    return teacher


def label_loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def steppers(teacher: keras.Model, x: np.ndarray, y: np.ndarray, steps: int) -> dict[str, Callable[[], None]]:
    """What trains each Distiller for some steps."""
    plain = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH_SIZE, drop_remainder=True).cache().repeat()
    cached = tfopt.cache_teacher(teacher, (x, y), batch_size=BATCH_SIZE, verbose=0).repeat()
    distillers = {
        "student alone": (student_network(), plain),
        "Keras logits": (keras_distiller(teacher, feature=False), plain),
        "tfopt logits": (tfopt_distiller(teacher, feature=False), plain),
        "Keras feature": (keras_distiller(teacher, feature=True), plain),
        "tfopt feature": (tfopt_distiller(teacher, feature=True), plain),
        "tfopt cached": (tfopt_distiller(None, feature=False), cached),
    }
    return {name: stepper(model, batches, steps) for name, (model, batches) in distillers.items()}


def keras_distiller(teacher: keras.Model, feature: bool) -> keras.Model:
    loss = keras.distillation.LogitsDistillation(TEMPERATURE, keras.losses.KLDivergence())
    if feature:
        loss = keras.distillation.FeatureDistillation(keras.losses.MeanSquaredError(), FEATURE, FEATURE)
    own = keras.models.clone_model(teacher)  # this Distiller sets its teacher's `trainable`
    own.set_weights(teacher.get_weights())
    return keras.distillation.Distiller(own, student_network(), loss)


def tfopt_distiller(teacher: keras.Model | None, feature: bool) -> keras.Model:
    loss = FeatureMatching(student_layer=FEATURE) if feature else SoftTargets(TEMPERATURE)
    return tfopt.Distiller(student_network(), teacher, loss)


def stepper(model: keras.Model, batches: tf.data.Dataset, steps: int) -> Callable[[], None]:
    """Some training steps of a model that has been warmed up by `fit`, through the function that `fit` compiled."""
    model.compile("adam", label_loss())
    model.fit(batches, steps_per_epoch=WARM_UP_STEPS, verbose=0, shuffle=False)
    return training_steps(model, batches, steps)


if __name__ == "__main__":
    sys.exit(main())
