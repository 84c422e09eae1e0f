"""The second level of a stack: what the meta-model is trained on, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from tfopt.core.data.goals import Goal, drop
from tfopt.core.data.outputs import OutputKind
from tfopt.core.data.splits import Split
from tfopt.fusion.heads import GivenHead, LinearHead
from tfopt.fusion.predictions import as_fused

ROWS = 8192  # that a meta-model predicts at once
SHUFFLES = 3  # over which the contribution of a model is averaged


@dataclass(frozen=True)
class SecondLevel:
    """Features and labels of the meta-model.

    Args:
        features: float32, shape (samples, sum of widths); NaN where a sample was never held out.
        y: labels.
        widths: columns of each model, and of the inputs if they are passed through.
        goal: gives the scores.
        kinds: what each model gives.
    """

    features: np.ndarray
    y: np.ndarray
    widths: list[int]
    goal: Goal
    kinds: Sequence[OutputKind | None]

    @property
    def seen(self) -> np.ndarray:
        """Numbers of the samples that have predictions."""
        return np.flatnonzero(~np.isnan(self.features).any(1))

    def scored(self, splits: Sequence[Split]) -> list[Split]:
        """The folds to score on: those with predictions for other folds to train on; all if there are none such."""
        folds = [Split(np.intersect1d(split.train, self.seen), split.held_out) for split in splits]
        return [fold for fold in folds if len(fold.train)] or folds

    def block(self, place: int) -> np.ndarray:
        start = sum(self.widths[:place])
        return self.features[:, start : start + self.widths[place]]

    def base_scores(self, place: int, folds: Sequence[Split]) -> tuple[float, ...]:
        return tuple(self.goal(self.y[fold.held_out], self.block(place)[fold.held_out]) for fold in folds)

    def mean_scores(self, models: int, folds: Sequence[Split]) -> tuple[float, ...]:
        """Of the plain mean, of log-probabilities that of the probabilities; empty for models of different widths."""
        if len(set(self.widths[:models])) > 1:
            return ()
        blocks = [as_fused(self.block(place), self.kinds[place]) for place in range(models)]
        mean = np.mean(blocks, 0)
        return tuple(self.goal(self.y[fold.held_out], mean[fold.held_out]) for fold in folds)

    def stack_scores(self, head: GivenHead | LinearHead, folds: Sequence[Split]) -> tuple[float, ...]:
        """Of meta-models trained without the fold; empty if there is nothing to train them on."""
        scores = []
        for place, fold in enumerate(fold for fold in folds if len(fold.train)):
            model = head.trained(self.features[fold.train], self.y[fold.train], place)
            scores.append(self.goal(self.y[fold.held_out], _predict(model, self.features[fold.held_out])))
        return tuple(scores)

    def contributions(self, model: keras.Model, seed: int) -> tuple[float, ...]:
        """How much worse the score gets when the columns of one model are shuffled among the samples.

        Source: Breiman 2001, "Random Forests", Machine Learning 45, section 10.
        """
        generator = np.random.default_rng(seed)
        features, y = self.features[self.seen], self.y[self.seen]
        before = self.goal(y, _predict(model, features))
        found = []
        for place, width in enumerate(self.widths):
            start, drops = sum(self.widths[:place]), []
            for _ in range(SHUFFLES):
                shuffled = features.copy()
                order = generator.permutation(len(features))
                shuffled[:, start : start + width] = features[order, start : start + width]
                drops.append(drop(self.goal.mode, before, self.goal(y, _predict(model, shuffled))))
            found.append(float(np.mean(drops)))
        return tuple(found)


def _predict(model: keras.Model, features: np.ndarray) -> np.ndarray:
    """Without the set-up of `Model.predict`, which takes longer than a small model does."""
    parts = [features[start : start + ROWS] for start in range(0, len(features), ROWS)]
    return np.concatenate([keras.ops.convert_to_numpy(model(part, training=False)) for part in parts])
