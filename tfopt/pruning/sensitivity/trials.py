"""The trials of `find_sparsity`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np

from tfopt.core.data.evaluator import Evaluator
from tfopt.core.data.goals import Goal, drop
from tfopt.core.data.samples import Labelled, take
from tfopt.core.data.splits import Split
from tfopt.core.journal import FileJournal
from tfopt.core.layers.registry import prunable_weights
from tfopt.core.models.graph import walk_layers
from tfopt.core.models.rewrite import rewrite
from tfopt.pruning.criteria import as_criterion, magnitude
from tfopt.pruning.prune import prune
from tfopt.pruning.ranking import ELEMENT
from tfopt.pruning.sensitivity.choice import Trial
from tfopt.pruning.sensitivity.finetuning import FineTuning
from tfopt.pruning.sensitivity.validation import with_data


@dataclass
class Trials:
    """Prunes a model to a sparsity, trains it if asked to, and scores it on each fold."""

    model: keras.Model
    samples: Labelled
    folds: list[Split]
    goal: Goal
    training: FineTuning | None
    options: dict[str, Any]
    journal: FileJournal
    batch_size: int
    _last: tuple[float, Any, dict] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._evaluator = Evaluator(self.model, self.batch_size)

    def __call__(self, sparsity: float, step: Callable[[], None] = lambda: None) -> Trial:
        results = []
        for fold, split in enumerate(self.folds):
            results.append(self.journal.result(f"{sparsity!r} fold {fold}", partial(self._measure, sparsity, split)))
            step()
        scores = tuple(result["score"] for result in results)
        before = scores if sparsity == 0 else self(0.0).scores
        drops = tuple(drop(self.goal.mode, *pair) for pair in zip(before, scores, strict=True))
        return Trial(sparsity, scores, drops, results[0]["thresholds"])

    def pruned(self, sparsity: float, train: Labelled) -> keras.Model:
        """A copy of the model; of the unpruned one for sparsity 0."""
        if sparsity == 0:
            return rewrite(self.model)
        return prune(self.model, sparsity=sparsity, **with_data(self.options, train))

    def _measure(self, sparsity: float, split: Split) -> dict[str, Any]:
        y_true = take(self.samples.y, split.held_out)
        if self.training is None:
            predictions, thresholds = self._predicted(sparsity)
            return {"score": self.goal(y_true, take(predictions, split.held_out)), "thresholds": thresholds}
        train = self.samples.rows(split.train)
        variant = self.pruned(sparsity, train)
        thresholds = self._thresholds(variant)
        self.training.run(variant, train)
        self._evaluator.put(self._evaluator.model.weights, variant.weights)
        y_pred = self._evaluator.predict(take(self.samples.x, split.held_out))
        return {"score": self.goal(y_true, y_pred), "thresholds": thresholds}

    def _predicted(self, sparsity: float) -> tuple[Any, dict[str, float]]:
        """Predictions for all samples, which serve one fold after the other, and the thresholds."""
        if self._last is None or self._last[0] != sparsity:
            variant = self.pruned(sparsity, self.samples)
            self._evaluator.put(self._evaluator.model.weights, variant.weights)
            self._last = (sparsity, self._evaluator.predict(self.samples.x), self._thresholds(variant))
        return self._last[1:]

    def _thresholds(self, variant: keras.Model) -> dict[str, float]:
        """The largest magnitude that was cut in each layer, where magnitude decides weight by weight."""
        by_magnitude = as_criterion(self.options.get("criterion", "magnitude")).score is magnitude
        if not by_magnitude or self.options.get("pattern", "element") not in ("element", ELEMENT):
            return {}
        after = dict(walk_layers(variant))
        found = {}
        for path, layer in walk_layers(self.model):
            pairs = zip(_kernels(layer), _kernels(after[path]), strict=True)
            cut = [np.abs(old[new == 0]).max(initial=0.0) for old, new in pairs]
            if max(cut, default=0.0) > 0:
                found[path] = float(max(cut))
        return found


def _kernels(layer: keras.layers.Layer) -> list[np.ndarray]:
    if isinstance(layer, keras.Model):
        return []
    return [keras.ops.convert_to_numpy(weight) for weight in prunable_weights(layer).values()]
