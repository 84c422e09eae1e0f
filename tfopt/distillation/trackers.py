"""What the logs of a Distiller show beside the loss and the user's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfopt.core.keras_internals import MeansToLower
from tfopt.distillation.gap import disagreement, gap
from tfopt.distillation.outputs import part_of
from tfopt.distillation.plan import Answer, Plan
from tfopt.distillation.taught import Taught

LABELS, TEACHER = "student_loss", "distillation_loss"
GAP, DISAGREEMENT = "teacher_gap", "teacher_disagreement"


class Trackers:
    """Means over the batches since the last reset.

    Args:
        plan: whose losses are shown, each by its name where there are several.
        with_labels: shows the loss of the labels.
        with_gap: shows how far the student is from the teacher.
    """

    def __init__(self, plan: Plan, with_labels: bool, with_gap: bool):
        self.plan = plan
        single = [_log_name(objective.name) for objective in plan.objectives] if len(plan.objectives) > 1 else []
        names = [LABELS] * with_labels + [TEACHER, *single] + [GAP, DISAGREEMENT] * with_gap
        self.metric = MeansToLower(names)
        self.means = {mean.name: mean for mean in self.metric.metrics}

    def update(self, label_loss: Any, losses: list | None, batch_size: Any) -> None:
        """Adds the losses of a batch.

        Args:
            label_loss: None without labels.
            losses: of each objective, None where there was no teacher.
            batch_size: weighs the batch.
        """
        if LABELS in self.means and label_loss is not None:
            self.means[LABELS].update_state(label_loss, sample_weight=batch_size)
        if losses is None:
            return
        self.means[TEACHER].update_state(self.plan.weighted(losses), sample_weight=batch_size)
        for objective, loss in zip(self.plan.objectives, losses, strict=True):
            name = _log_name(objective.name)
            if len(losses) > 1:
                self.means[name].update_state(loss, sample_weight=batch_size)

    def compare(self, answer: Answer, taught: Taught, labels: Any, batch_size: Any) -> None:
        """Adds how far the student is from the teacher, if that is to be shown: the mean over the outputs."""
        if GAP not in self.means:
            return
        scores = self.plan.teacher_scores(taught)
        places = sorted({objective.outputs for objective in self.plan.objectives if objective.outputs})
        places = places or [(i, i) for i in range(min(len(answer.scores), len(scores)))]
        pairs = [(i, self.plan.tasks[i], answer.scores[i], scores[j]) for i, j in places]
        apart = [disagreement(task, mine, theirs) for _, task, mine, theirs in pairs]
        self.means[DISAGREEMENT].update_state(sum(apart) / len(apart), sample_weight=batch_size)
        if labels is not None:
            gaps = [gap(task, mine, theirs, part_of(labels, i, self.plan.names)) for i, task, mine, theirs in pairs]
            self.means[GAP].update_state(sum(gaps) / len(gaps), sample_weight=batch_size)

    def shown(self, results: Mapping[str, Any], taught: bool, labels: Any, has_loss: bool) -> dict[str, Any]:
        """The results without what this batch had nothing to say about."""
        idle = set() if taught else set(self.means) - {LABELS}
        if labels is None:
            idle |= {GAP, LABELS}
        if not taught and not has_loss:
            idle |= {"loss"}
        return {name: value for name, value in results.items() if name not in idle}


def batch_size_of(inputs: Any) -> Any:
    """How many samples a batch has."""
    return tf.shape(next(part for part in keras.tree.flatten(inputs) if part is not None))[0]


def _log_name(name: str) -> str:
    return name if name.endswith("_loss") else f"{name}_loss"
