"""Folds for cross-validation, by scikit-learn or any splitter with its interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfopt.core.checks import as_whole, plain
from tfopt.core.data.samples import classes_of
from tfopt.core.errors import InvalidArgumentError, first_line


@dataclass(frozen=True)
class Fold:
    """Numbers of the samples to train on, and of those held out."""

    train: np.ndarray
    held_out: np.ndarray


def make_folds(folds: Any, y: Any, *, classes: bool, groups: Any = None, seed: int = 0) -> list[Fold]:
    """The folds asked for.

    Args:
        folds: a number of folds, shuffled, with each class spread evenly over them; a splitter of scikit-learn, or any
            object with its `split(x, y, groups)`; or a list of pairs (train, held out) of arrays of sample numbers.
        y: labels, whose length is the number of samples.
        classes: whether `y` holds classes, to spread.
        groups: the group of each sample, for splitters that keep groups together.
        seed: of the shuffling for a number of folds.

    Raises:
        InvalidArgumentError: no folds can be made so, a sample is in both parts of a fold, or scikit-learn, which cuts
            a number of folds, is not installed.
    """
    samples = len(y)
    if isinstance(plain(folds), int):
        if groups is not None:
            raise InvalidArgumentError(
                "`groups` go to a splitter that keeps them together.",
                received=f"folds={folds}",
                fix="Pass `folds=sklearn.model_selection.GroupKFold(5)`, for one.",
            )
        folds = _scikit_learn_splitter(folds, samples, classes, seed)
    labels = classes_of(y) if classes else None
    try:
        if hasattr(folds, "split") and not isinstance(folds, str):
            folds = folds.split(np.zeros((samples, 1)), y if labels is None else labels, groups)
        pairs = [(np.asarray(train), np.asarray(held_out)) for train, held_out in folds]
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            "`folds` is a number of folds, a splitter with a method `split` that can split the samples, or a list of "
            "pairs (train, held out).",
            received=first_line(error),
        ) from error
    if not pairs:
        raise InvalidArgumentError("There has to be a fold.", received="none")
    return [_checked(train, held_out, samples) for train, held_out in pairs]


def _scikit_learn_splitter(folds: Any, samples: int, classes: bool, seed: int) -> Any:
    what = "a number of folds, from 2 to the number of samples, a splitter, or a list of pairs"
    folds = as_whole("folds", folds, least=2, most=samples, what=what)
    try:
        from sklearn.model_selection import KFold, StratifiedKFold
    except ImportError as error:
        raise InvalidArgumentError(
            "A number of folds is cut by scikit-learn.",
            received=str(error),
            fix="pip install tfopt[fusion], or pass a list of pairs (train, held out) of sample numbers.",
        ) from error
    splitter = StratifiedKFold if classes else KFold
    return splitter(folds, shuffle=True, random_state=seed)


def _checked(train: np.ndarray, held_out: np.ndarray, samples: int) -> Fold:
    for part in (train, held_out):
        if part.ndim != 1 or not np.issubdtype(part.dtype, np.integer) or not part.size:
            raise InvalidArgumentError(
                "The parts of a fold are arrays of sample numbers, none empty.",
                received=f"{part.dtype} of shape {part.shape}",
            )
        if part.min() < 0 or part.max() >= samples:
            raise InvalidArgumentError(
                f"Sample numbers of {samples} samples lie in 0..{samples - 1}.",
                received=f"{part.min()} to {part.max()}",
            )
    both = np.intersect1d(train, held_out)
    if both.size:
        raise InvalidArgumentError(
            "No sample may be trained on and held out in one fold.", received=f"{both.size} in both, as {both[0]}"
        )
    return Fold(train, held_out)
