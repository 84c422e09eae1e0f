"""Scores of a model's kernels under a criterion, with what the criterion needs gathered from data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfopt.pruning.criteria import Criterion


def score_kernels(
    model: keras.Model,
    kernels: Sequence[keras.Variable],
    criterion: Criterion,
    *,
    data: Any = None,
    loss: str | Callable | None = None,
    seed: int = 0,
    verbose: int = 0,
) -> dict[int, np.ndarray]:
    """Scores of each kernel, `{id(variable): float32 array of its shape}`."""
    return {id(kernel): np.asarray(criterion.score(kernel.numpy()), "float32") for kernel in kernels}
