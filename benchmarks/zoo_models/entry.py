"""What a model of the zoo is, and how a builder becomes one of the list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np


@dataclass(frozen=True)
class Animal:
    """A built model with data for it.

    Args:
        model: with random weights.
        data: its inputs, as `model(data)` takes them; `SAMPLES` of them.
        inference: gives the part of a model that is deployed, where that is not all of it.
        from_text: True for a model that reads strings.
    """

    model: keras.Model
    data: Any
    inference: Callable[[keras.Model], keras.Model] | None = None
    from_text: bool = False


Builder = Callable[[], Animal]
SAMPLES = 16


def entered_in(zoo: dict[str, Builder]) -> Callable[[Builder], Builder]:
    """A decorator that adds a builder to `zoo`, under its name."""

    def enter(builder: Builder) -> Builder:
        zoo[builder.__name__] = builder
        return builder

    return enter


def images(size: int = 32, channels: int = 3, count: int = SAMPLES) -> np.ndarray:
    """Random images in [0, 1] with patterns of their own: `(count, size, size, channels)`."""
    generator = np.random.default_rng(1)
    coarse = generator.uniform(size=(count, 4, 4, channels))
    smooth = np.asarray(keras.ops.image.resize(coarse, (size, size)))
    return (0.8 * smooth + 0.2 * generator.uniform(size=smooth.shape)).astype("float32")


def tokens(length: int, vocabulary: int, count: int = SAMPLES, seed: int = 2) -> np.ndarray:
    """Random whole numbers in `[1, vocabulary)`: `(count, length)`."""
    return np.random.default_rng(seed).integers(1, vocabulary, (count, length)).astype("int32")


def series(length: int, channels: int, count: int = SAMPLES) -> np.ndarray:
    """Random walks of unit variance: `(count, length, channels)`."""
    walks = np.random.default_rng(3).normal(size=(count, length, channels)).cumsum(axis=1)
    return ((walks - walks.mean()) / walks.std()).astype("float32")
