"""Which samples are trained on and which are scored on: numbers of samples in, numbers of samples out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfopt.core.checks import FRACTION, as_number, as_whole, plain
from tfopt.core.data.samples import classes_of
from tfopt.core.errors import InvalidArgumentError, first_line


@dataclass(frozen=True)
class Split:
    """Numbers of the samples to train on and of those to score on."""

    train: np.ndarray
    held_out: np.ndarray


def make_folds(
    folds: Any,
    y: Any,
    samples: int,
    *,
    argument: str = "folds",
    stratify: bool = True,
    groups: Any = None,
    seed: int = 0,
) -> list[Split]:
    """The splits of a cross-validation.

    Args:
        folds: a number of folds, shuffled, with each class spread evenly over them; a splitter of scikit-learn, or any
            object with its `split(x, y, groups)`; or a list of pairs (train, held out) of arrays of sample numbers.
        y: labels, or the targets of a regression.
        samples: how many there are.
        argument: of the verb, for errors.
        stratify: whether whole numbers in `y` are classes, which are spread.
        groups: the group of each sample, for splitters that keep groups together.
        seed: of the shuffling for a number of folds.

    Raises:
        InvalidArgumentError: no folds can be made so, or a sample is in both parts of a fold.

    Example:
        >>> [split.held_out.tolist() for split in make_folds([([0, 1], [2]), ([2], [0])], None, 3)]
        [[2], [0]]
    """
    folds = plain(folds)
    if isinstance(folds, int) and groups is not None:
        raise InvalidArgumentError(
            "`groups` must go with a splitter that keeps them together.",
            received=f"{argument}={folds}",
            fix=f"Pass `{argument}=sklearn.model_selection.GroupKFold(5)`, for example.",
        )
    classes = classes_of(y) if stratify else None
    if isinstance(folds, int):
        return k_fold(classes, samples, folds, seed, argument)
    pairs = _pairs(folds, y if classes is None else classes, samples, groups, argument)
    if not pairs:
        raise InvalidArgumentError(
            f"`{argument}` must give at least one split.",
            received="none",
            fix=f"Pass a number, such as `{argument}=5`.",
        )
    return [_checked(train, held_out, samples, argument) for train, held_out in pairs]


def k_fold(y: Any, samples: int, k: int, seed: int, argument: str = "folds") -> list[Split]:
    """`k` splits that hold out each sample once, classes spread evenly.

    Example:
        >>> [split.held_out.tolist() for split in k_fold(np.array([0, 0, 1, 1]), 4, 2, seed=1)]
        [[0, 2], [1, 3]]
    """
    k = as_whole(
        argument,
        k,
        least=2,
        most=samples,
        what=f"a number of folds, from 2 to the number of samples ({samples})",
        fix=f"Pass a number, such as `{argument}=5`, a splitter, or pairs (train, held out) of sample numbers.",
    )
    order = stratified_order(y, samples, seed)
    held_out = [np.sort(order[fold::k]) for fold in range(k)]
    return [Split(np.setdiff1d(order, fold), fold) for fold in held_out]


def hold_out(y: Any, samples: int, fraction: float, seed: int) -> Split:
    """One split that holds out a fraction of the samples, classes spread evenly."""
    fraction = as_number(
        "validation_split", fraction, FRACTION, what="a fraction above 0 and below 1", fix="Such as 0.2."
    )
    counts = np.floor(np.arange(samples + 1) * fraction + 1e-9)
    taken = np.diff(counts) > 0
    if not taken.any() or taken.all():
        raise InvalidArgumentError(
            "`validation_split` must leave a sample each for training and validation.",
            received=f"{fraction:g} of {samples} samples",
            fix="Pass a fraction nearer to one half, or more samples.",
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


def _pairs(folds: Any, labels: Any, samples: int, groups: Any, argument: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """What a splitter or a list gives, as arrays."""
    try:
        if hasattr(folds, "split") and not isinstance(folds, str):
            y = labels if isinstance(labels, np.ndarray) else np.zeros(samples)
            folds = folds.split(np.zeros((samples, 1)), y, groups)
        return [(np.asarray(train), np.asarray(held_out)) for train, held_out in folds]
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"`{argument}` must be a number of folds, a splitter with a method `split` that can split the samples, or "
            "a list of pairs (train, held out) of sample numbers.",
            received=first_line(error),
            fix=f"Pass a number, such as `{argument}=5`.",
        ) from error


def _checked(train: np.ndarray, held_out: np.ndarray, samples: int, argument: str) -> Split:
    for part in (train, held_out):
        if part.ndim != 1 or not np.issubdtype(part.dtype, np.integer) or not part.size:
            raise InvalidArgumentError(
                f"Each part of a split in `{argument}` must be an array of sample numbers, not empty.",
                received=f"{part.dtype} of shape {part.shape}",
                fix="Turn a mask into numbers with `np.flatnonzero`." if part.dtype == bool else None,
            )
        if part.min() < 0 or part.max() >= samples:
            raise InvalidArgumentError(
                f"Sample numbers in `{argument}` must lie in 0..{samples - 1}.",
                received=f"{part.min()} to {part.max()}",
                fix="Count the samples from 0.",
            )
    both = np.intersect1d(train, held_out)
    if both.size:
        raise InvalidArgumentError(
            "A sample must not be trained on and held out in one split.",
            received=f"{both.size} in both parts of a split in `{argument}`, such as {both[0]}",
            fix="Take the held-out samples out of the others with `np.setdiff1d`.",
        )
    return Split(train, held_out)
