"""Which samples are trained on and which are scored on: numbers of samples in, numbers of samples out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfopt.core.checks import FRACTION, as_number, as_whole
from tfopt.core.data.samples import classes_of
from tfopt.core.errors import InvalidArgumentError


@dataclass(frozen=True)
class Split:
    """Numbers of the samples to train on (None where nothing is trained) and of those to score on."""

    train: np.ndarray | None
    held_out: np.ndarray


def k_fold(y: Any, samples: int, k: int, seed: int, train: bool) -> list[Split]:
    """`k` splits that hold out each sample once, classes spread evenly.

    Example:
        >>> [sorted(split.held_out.tolist()) for split in k_fold(np.array([0, 0, 1, 1]), 4, 2, seed=1, train=False)]
        [[0, 2], [1, 3]]
    """
    k = as_whole("cv", k, least=2, most=samples, what="a number of folds, from 2 to the number of samples")
    order = stratified_order(y, samples, seed)
    held_out = [np.sort(order[fold::k]) for fold in range(k)]
    return [Split(np.setdiff1d(order, fold) if train else None, fold) for fold in held_out]


def hold_out(y: Any, samples: int, fraction: float, seed: int) -> Split:
    """One split that holds out a fraction of the samples, classes spread evenly."""
    fraction = as_number("validation_split", fraction, FRACTION)
    counts = np.floor(np.arange(samples + 1) * fraction + 1e-9)
    taken = np.diff(counts) > 0
    if not taken.any() or taken.all():
        raise InvalidArgumentError(
            "Training and validation need a sample each.",
            received=f"{samples} samples with `validation_split` {fraction:g}",
        )
    order = stratified_order(y, samples, seed)
    return Split(np.sort(order[~taken]), np.sort(order[taken]))


def stratified_order(y: Any, samples: int, seed: int) -> np.ndarray:
    """Numbers of the samples in an order whose every k-th ones hold a k-th of each class.

    The samples of a class stand together, in random order. Without classes (targets that are not whole numbers, or
    several outputs) the whole order is random.
    """
    classes = classes_of(y)
    random = np.random.default_rng(seed).permutation(samples)
    return random if classes is None else np.lexsort((random, classes))
