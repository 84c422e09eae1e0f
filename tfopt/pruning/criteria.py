"""Importance of weights: arrays in, scores of the same shape out; the lowest scores go first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfopt.core.errors import InvalidArgumentError


@dataclass(frozen=True)
class Criterion:
    """A score function, and what it is to be given.

    Args:
        name: as users write it.
        score: `(weights, **needs) -> scores` of the shape of `weights`.
        needs: keyword arguments of `score` besides the weights. With none, scores can be taken anew at any training
            step; otherwise they are taken once, when `prune` is called.
        per_unit: all weights of a unit (filter, neuron) have the same score.
        comparable: scores of different layers can be ranked together as they are.
    """

    name: str
    score: Callable[..., Any]
    needs: tuple[str, ...] = ()
    per_unit: bool = False
    comparable: bool = False


def magnitude(weights):
    """Absolute value (Han et al. 2015, https://arxiv.org/abs/1506.02626; Zhu and Gupta 2017).

    Example:
        >>> magnitude(tf.constant([-2.0, 0.5])).numpy().tolist()
        [2.0, 0.5]
    """
    return tf.abs(weights)


CRITERIA = {criterion.name: criterion for criterion in (Criterion("magnitude", magnitude),)}


def as_criterion(criterion: str | Callable | Criterion) -> Criterion:
    """The criterion of that name, or a user's function `weights -> scores` as one."""
    if isinstance(criterion, Criterion):
        return criterion
    if callable(criterion):
        return Criterion(getattr(criterion, "__name__", "custom"), criterion)
    if criterion not in CRITERIA:
        raise InvalidArgumentError(
            f"`criterion` is one of {', '.join(CRITERIA)}, or a function of the weights.", received=repr(criterion)
        )
    return CRITERIA[criterion]
