"""Puts together what a Distiller runs, once it is known by which loss the labels are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfopt.core.keras_internals import compiled_loss
from tfopt.distillation.choice import chosen_loss, task_of, task_of_objective
from tfopt.distillation.heads import heads_of
from tfopt.distillation.outputs import output_names, part_of
from tfopt.distillation.plan import Objective, Plan
from tfopt.distillation.teachers import Teachers


def planned(
    student: keras.Model,
    teachers: Teachers | None,
    given: Sequence[Objective] | None,
    temperature: float,
    loss: Any,
    loss_weights: Any,
    compares: bool,
) -> Plan:
    """The plan of a Distiller that is compiled with `loss` and `loss_weights`.

    Args:
        student: the model.
        teachers: None where only cached answers are learned from.
        given: the losses that the user chose; None to choose one for each output.
        temperature: of losses that are chosen here.
        loss, loss_weights: as `compile` takes them.
        compares: whether the logs show how far the student is from the teacher.

    Raises:
        InvalidArgumentError: where it cannot be told which loss fits.
    """
    names, heads = output_names(student), heads_of(student)
    taught = [] if teachers is None else teachers.heads
    taught = [taught[i] if i < len(taught) else None for i in range(len(names))]
    losses = [_label_loss(loss, i, student, teachers) for i in range(len(names))]
    found = list(given or [])
    if given is None:
        for i, name in enumerate(names):
            weight = part_of(loss_weights, i, names)
            chosen = chosen_loss(
                heads[i], taught[i], losses[i], temperature, weight=1.0 if weight is None else weight, name=name
            )
            found.append(Objective(chosen, f"{name}_distillation", outputs=(i, i)))
    tasks = [task_of(*facts) for facts in zip(heads, taught, losses, strict=True)]
    for objective in found:
        if objective.outputs:
            index = objective.outputs[0]
            tasks[index] = task_of_objective(objective.loss) or tasks[index]
    return Plan(student, teachers, found, heads, tasks, compares)


def _label_loss(loss: Any, index: int, student: keras.Model, teachers: Teachers | None) -> Any:
    """What the labels of an output are learned by; without labels, what a teacher or the student was trained by."""
    if loss is not None:
        return part_of(loss, index, output_names(student))
    for model in [*(teachers.models if teachers else []), student]:
        trained_by = compiled_loss(model).get("loss")
        if trained_by is not None:
            return part_of(trained_by, index, output_names(model))
    return None
