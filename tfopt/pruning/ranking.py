"""What stays at a sparsity, where parts of several kinds are ranked together: scores in, boolean masks out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfopt.core.types import Schedule, Tensor
from tfopt.pruning.criteria import MAGNITUDE, Criterion, magnitude
from tfopt.pruning.patterns import Element, Pattern, highest, kept_count

ELEMENT = Element()


@dataclass(frozen=True)
class Rule:
    """How masks are chosen.

    Args:
        schedule: gives `(prune_now, sparsity)` for a step; None holds the masks as they are.
        pattern: what is pruned as one.
        criterion: gives the scores; the lowest go first.
        min_kept: fraction of the units of each kernel that stays; at least one does.
    """

    schedule: Schedule | None = None
    pattern: Pattern = ELEMENT
    criterion: Criterion = MAGNITUDE
    min_kept: float = 0.0

    @property
    def by_magnitude(self) -> bool:
        return self.criterion.score is magnitude

    def floor(self, shape: Sequence[int]) -> int:
        """How many units of a kernel stay at least."""
        return least(self.pattern.units(shape), self.min_kept)


@dataclass(frozen=True)
class Ranking:
    """How many channels of each group stay, and out of which they are chosen.

    Args:
        sizes: channels of each group.
        steps: the channels left in a group are a multiple of this, if it has as many.
        covers: for each group, sets of positions of which at least one channel stays each.
        scope: `"layer"` ranks each group on its own, `"global"` all together.
        min_kept: fraction of each group that stays whatever its scores; one channel always does.

    Example:
        >>> ranking = Ranking((4,), (1,), ((),))
        >>> [mask.numpy().tolist() for mask in ranking.masks([tf.constant([3.0, 1.0, 2.0, 4.0])], 0.5)]
        [[True, False, False, True]]
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    covers: tuple[tuple[tuple[int, ...], ...], ...]
    scope: str = "layer"
    min_kept: float = 0.0

    def masks(
        self, scores: Sequence[Tensor], sparsity: float | Sequence[float] | Tensor, at_most: Sequence | None = None
    ) -> list[tf.Tensor]:
        """True for the channels of each group that stay.

        Args:
            scores: a float tensor for each group.
            sparsity: one fraction, or a list of one a group; that of all channels together for scope `"global"`.
            at_most: int32 scalars, so many channels of each group may stay.
        """
        limits = [tf.constant(size) for size in self.sizes] if at_most is None else list(at_most)
        scores = [self._protected(group, values) for group, values in enumerate(scores)]
        if self.scope == "global":
            wanted = tf.minimum(kept_count(sum(self.sizes), sparsity), tf.add_n(limits))
            together = highest(tf.concat(scores, 0), wanted)
            counts = [tf.reduce_sum(tf.cast(mask, tf.int32)) for mask in tf.split(together, self.sizes)]
        else:
            fractions = sparsity if isinstance(sparsity, list) else [sparsity] * len(scores)
            counts = [kept_count(size, fraction) for size, fraction in zip(self.sizes, fractions, strict=True)]
        return self.most(scores, counts, limits)

    def most(self, scores: Sequence[Tensor], counts: Sequence, limits: Sequence) -> list[tf.Tensor]:
        """The masks of so many channels of each group, rounded to its step."""
        masks = []
        for group, (values, count, limit) in enumerate(zip(scores, counts, limits, strict=True)):
            step = self.steps[group]
            rounded = -(-tf.maximum(count, self._least(group)) // step) * step
            masks.append(highest(values, tf.minimum(tf.minimum(rounded, self.sizes[group]), limit)))
        return masks

    def _least(self, group: int) -> int:
        return least(self.sizes[group], self.min_kept)

    def _protected(self, group: int, scores: Tensor) -> tf.Tensor:
        """Scores with those of channels that have to stay at infinity."""
        scores = tf.cast(scores, tf.float32)
        stay = highest(scores, self._least(group)) if self.scope == "global" else tf.zeros(scores.shape, bool)
        for cover in self.covers[group]:
            best = tf.gather(cover, tf.argmax(tf.gather(scores, cover)))
            stay = tf.logical_or(stay, tf.range(self.sizes[group]) == best)
        return tf.where(stay, np.float32(np.inf), scores)


def least(count: int, min_kept: float) -> int:
    """How many of `count` parts stay at least: a fraction of them rounded up, and one in any case.

    Example:
        >>> least(10, 0.25), least(10, 0.3), least(10, 0.0)
        (3, 3, 1)
    """
    return max(1, math.ceil(min_kept * count - 1e-9))
