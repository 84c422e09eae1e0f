"""Training on CIFAR-10, which several benchmarks share: shifted and flipped images, a learning rate that decays."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import keras
import numpy as np
from datasets import for_resnet8
from keras import layers as kl

BATCH_SIZE = 128
SHIFT, SLIGHT_SHIFT = 4, 1  # pixels
CLASSES = 10
STEM_FILTERS, STAGE_FILTERS = 24, (32, 96, 160)  # of the larger ResNet


def fine_tune(
    model: keras.Model,
    train: tuple[np.ndarray, np.ndarray],
    epochs: int,
    learning_rate: float,
    decay: bool = False,
    warm_up: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    optimizer: Callable = keras.optimizers.Adam,
    augmented: Callable | None = None,
) -> None:
    """Trains on shifted and flipped images; `optimizer` takes the learning rate or its schedule.

    With `decay` the learning rate falls to 0 along a cosine, after `warm_up` epochs in which it rises to its highest.
    """
    batches = (augmented or Augmented)(*train)
    steps = len(batches)
    rate = learning_rate
    if decay:
        rate = keras.optimizers.schedules.CosineDecay(
            learning_rate / 10 if warm_up else learning_rate,
            (epochs - warm_up) * steps,
            warmup_target=learning_rate if warm_up else None,
            warmup_steps=warm_up * steps,
        )
    model.compile(optimizer(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    report = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: say(f"  epoch {epoch + 1} of {epochs}: {logs['accuracy']:.4f} on training")
    )
    model.fit(batches, epochs=epochs, verbose=0, callbacks=[report, *callbacks])


class Augmented(keras.utils.PyDataset):
    """Shuffled batches, each image moved by up to `shift` pixels in both directions and flipped every other time."""

    def __init__(self, x: np.ndarray, y: np.ndarray, seed: int = 0, shift: int = SHIFT):
        super().__init__()
        self._shift = shift
        self._x = np.pad(x, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
        self._y = y
        self._random = np.random.default_rng(seed)
        self._order = self._random.permutation(len(y))

    def __len__(self) -> int:
        return len(self._y) // BATCH_SIZE

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE]
        size = self._x.shape[1] - 2 * self._shift
        top, left = self._random.integers(0, 2 * self._shift + 1, (2, len(chosen), 1))
        columns = left + np.arange(size)
        flipped = self._flipped(chosen)[:, None]
        columns = np.where(flipped, columns[:, ::-1], columns)
        rows = top + np.arange(size)
        return for_resnet8(self._x[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]), self._y[chosen]

    def _flipped(self, chosen: np.ndarray) -> np.ndarray:
        return self._random.random(len(chosen)) < 0.5

    def on_epoch_end(self) -> None:
        self._order = self._random.permutation(len(self._y))


class SlightlyAugmented(Augmented):
    """For few epochs: moved less, and flipped in every second one, half of the images in the odd epochs.

    Source of the alternating flips: Jordan 2024, https://arxiv.org/abs/2404.00498.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, seed: int = 0):
        super().__init__(x, y, seed, SLIGHT_SHIFT)
        self._flips = self._random.random(len(y)) < 0.5

    def _flipped(self, chosen: np.ndarray) -> np.ndarray:
        return self._flips[chosen]

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        self._flips = ~self._flips


def larger_resnet() -> keras.Model:
    """Eleven layers with weights, most of the work at low resolution, where a CPU is fastest; in bfloat16.

    Where the processor has instructions for it, a step takes 0.4 of the time that it takes in float32.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        inputs = keras.Input((32, 32, 3))
        x = convolved(inputs, STEM_FILTERS)
        for filters in STAGE_FILTERS:
            x = convolved(x, filters, pool=True)
            x = kl.Add()([x, convolved(convolved(x, filters), filters)])
        return keras.Model(inputs, kl.Dense(CLASSES, activation="softmax")(kl.GlobalAveragePooling2D()(x)))
    finally:
        keras.config.set_dtype_policy(before)


def convolved(x, filters: int, pool: bool = False):
    x = kl.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    x = kl.MaxPooling2D()(x) if pool else x
    return kl.ReLU()(kl.BatchNormalization()(x))


def from_scratch(epochs: int) -> dict:
    """How `fine_tune` trains the larger ResNet."""
    return {"epochs": epochs, "learning_rate": 0.1, "decay": True, "warm_up": epochs // 5, "optimizer": nesterov}


def nesterov(rate) -> keras.optimizers.Optimizer:
    # Keras applies the decay apart from the momentum: 5e-3 is what others call 5e-4, with a momentum of 0.9.
    return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-3)


class Muon(keras.optimizers.Muon):
    """Keras' Muon for convolutions too, whose kernel counts as a matrix of one column for each filter.

    Keras leaves all but matrices to AdamW. Here that has the vectors and the layer of the classes. The learning rate is
    that of AdamW. Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """

    def _should_use_adamw(self, variable) -> bool:
        return len(variable.shape) < 2 or variable.shape[-1] == CLASSES

    def zeropower_via_newtonschulz5(self, x, steps: int):
        matrix = super().zeropower_via_newtonschulz5(keras.ops.reshape(x, (-1, x.shape[-1])), steps)
        return keras.ops.reshape(matrix, x.shape)

    def lr_adjust(self, x):
        return x * self.rms_rate * max(math.prod(x.shape[:-1]), x.shape[-1]) ** 0.5


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
