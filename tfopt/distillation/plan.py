"""What one compiled Distiller runs in a step: student and teacher once each, and a list of losses between the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfopt.core.data.outputs import OutputKind
from tfopt.core.data.pairs import output_names
from tfopt.core.errors import InvalidArgumentError
from tfopt.distillation.asked import Asked
from tfopt.distillation.features import observed
from tfopt.distillation.loss_layers.base import LOGITS, DistillationLoss
from tfopt.distillation.outputs import part_of
from tfopt.distillation.scores import OF_CLASSES, Task, task_of_kind, to_scores, to_values
from tfopt.distillation.taught import Taught
from tfopt.distillation.teachers import Teachers
from tfopt.distillation.weighting import mean_loss


@dataclass(frozen=True, eq=False)
class Objective:
    """One loss between an output of the student and one of the teacher, by index, or between two layers, by path."""

    loss: DistillationLoss
    name: str
    outputs: tuple[int, int] | None = None
    layers: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What the student gave: its outputs, the same as a flat list of logits or numbers, and its features."""

    outputs: Any
    flat: list
    scores: list
    features: dict[str, Any]


class Plan:
    """Runs the models and takes the losses.

    Args:
        student: the model.
        teachers: None where only cached answers are learned from.
        objectives: the losses.
        kinds: what each output of the student is.
        tasks: what each output of the student answers, see `choice.task_of`.
        compares: whether the teacher's outputs are needed where no loss does.
    """

    def __init__(
        self,
        student: keras.Model,
        teachers: Teachers | None,
        objectives: Sequence[Objective],
        kinds: Sequence[OutputKind | None],
        tasks: Sequence[Task | None],
        compares: bool,
    ):
        self.teachers, self.objectives = teachers, list(objectives)
        self.kinds, self.tasks = list(kinds), list(tasks)
        self.names = output_names(student)
        pairs = [objective.layers for objective in objectives if objective.layers]
        self.reads_outputs = compares or any(objective.outputs for objective in objectives)
        self.teacher_paths = sorted({path for _, path in pairs})
        self._student = observed(student, {path for path, _ in pairs}) if pairs else None
        self._plain, self._asked = student, Asked(student)

    def ask(self, inputs: Any, training: bool) -> Answer:
        """One run of the student."""
        features: dict[str, Any] = {}
        inputs = self._asked.of(self._plain, inputs)
        if self._student is None:
            outputs = self._plain(inputs, training=training)
        else:
            outputs, features = self._student(inputs, training=training)
        flat = keras.tree.flatten(outputs)
        scores = [to_scores(kind, values) for kind, values in zip(self.kinds, flat, strict=True)]
        return Answer(outputs, flat, scores, features)

    def teach(self, x: Any) -> Taught:
        """The teacher's answer to a batch: the cached one, or one run of the teacher."""
        if isinstance(x, Taught):
            return x
        if self.teachers is None:
            raise InvalidArgumentError(
                "Without a teacher, a Distiller must be given cached answers.",
                received="data of inputs and labels alone",
                fix="Pass `teacher=` to the Distiller, or fit what `tfopt.cache_teacher(teacher, data)` gives.",
            )
        return self.teachers.answer(x, self.teacher_paths, self._averages(self.teachers), self.reads_outputs)

    def losses(self, answer: Answer, taught: Taught, labels: Any, weights: Any) -> list:
        """The mean over the batch of each loss, weighted by the samples, without the losses' own weights."""
        scores = self.teacher_scores(taught) if self.reads_outputs else []
        means = []
        for objective in self.objectives:
            if objective.outputs:
                student, teacher = self._outputs(objective.loss, *objective.outputs, answer, scores)
                own, sample_weight = (part_of(given, objective.outputs[0], self.names) for given in (labels, weights))
            else:
                student, teacher = self._features(*(objective.layers or ("", "")), answer, taught)
                own, sample_weight = labels, _shared(weights)
            more = {"labels": own} if objective.loss.takes_labels else {}
            means.append(mean_loss(objective.loss, student, teacher, sample_weight, **more))
        return means

    def weighted(self, losses: Sequence[Any]) -> Any:
        """The sum of the losses, each times its own weight."""
        return sum(objective.loss.weight * loss for objective, loss in zip(self.objectives, losses, strict=True))

    def teacher_scores(self, taught: Taught) -> list:
        """The teacher's outputs, flat, as float32 logits or numbers; cached ones in the order of their names."""
        names, outputs = self.names if self.teachers is None else self.teachers.names, taught.outputs
        if isinstance(outputs, dict) and set(outputs) == set(names):
            outputs = [outputs[name] for name in names]
        return [ops.cast(values, "float32") for values in keras.tree.flatten(outputs)]

    def _features(self, mine: str, theirs: str, answer: Answer, taught: Taught) -> tuple[Any, Any]:
        if theirs not in taught.features:
            raise InvalidArgumentError(
                "The cached answers must hold the features that the losses compare.",
                received=f"{sorted(taught.features)} without '{theirs}'",
                fix=f"Cache them: `tfopt.cache_teacher(..., layers={self.teacher_paths})`.",
            )
        return answer.features[mine], taught.features[theirs]

    def _outputs(self, loss: DistillationLoss, i: int, j: int, answer: Answer, scores: list) -> tuple[Any, Any]:
        if j >= len(scores) or scores[j].shape[1:] != answer.scores[i].shape[1:]:
            raise InvalidArgumentError(
                "The cached answers must match the student's outputs.",
                received=f"{[tuple(given.shape) for given in scores]} for {[tuple(s.shape) for s in answer.scores]}",
                fix="Cache a teacher with outputs like those of the student: `tfopt.cache_teacher(teacher, data)`.",
            )
        if loss.compares == LOGITS:
            return answer.scores[i], scores[j]
        kind = self.kinds[i] if self.teachers is None else self.teachers.kinds[j]
        if self.kinds[i] in OF_CLASSES:  # probabilities are compared with probabilities, logarithms with logarithms
            kind = self.kinds[i]
        return answer.flat[i], to_values(kind, scores[j])

    def _averages(self, teachers: Teachers) -> list[Task | None]:
        """What the outputs of several teachers are averaged as: logits as the losses read them."""
        tasks = list(map(task_of_kind, teachers.kinds))
        for mine, theirs in [objective.outputs for objective in self.objectives if objective.outputs]:
            tasks[theirs] = tasks[theirs] or self.tasks[mine]
        return tasks


def replicas() -> int:
    """Over how many replicas a batch is shared out: each takes its part of the mean."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def _shared(weights: Any) -> Any:
    """The sample weights where there is one for all outputs."""
    return None if isinstance(weights, (list, tuple, dict)) else weights
