"""Puts together what a Distiller runs, once it is known by which loss the labels are learned."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from tfopt.core.data.outputs import OutputKind, output_kinds
from tfopt.core.data.pairs import output_names, paired_outputs
from tfopt.core.keras_internals import compiled_loss
from tfopt.distillation.choice import chosen_loss, task_of
from tfopt.distillation.outputs import part_of
from tfopt.distillation.plan import Objective, Plan
from tfopt.distillation.scores import task_of_kind
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
    names, kinds = output_names(student), output_kinds(student)
    taught = [] if teachers is None else teachers.kinds
    _warn_of_undeclared(given or [], kinds, taught)
    places = list(range(len(names))) if teachers is None else teachers.places(student)
    taught = [taught[place] if place < len(taught) else None for place in places]
    losses = [_label_loss(loss, i, student, teachers) for i in range(len(names))]
    found = list(given or [])
    if given is None:
        for i, name in enumerate(names):
            weight = part_of(loss_weights, i, names)
            chosen = chosen_loss(
                kinds[i], taught[i], losses[i], temperature, weight=1.0 if weight is None else weight, name=name
            )
            found.append(Objective(chosen, f"{name}_distillation", outputs=(i, places[i])))
    tasks = [task_of(*facts) for facts in zip(kinds, taught, losses, strict=True)]
    for objective in found:
        if objective.outputs:
            index = objective.outputs[0]
            tasks[index] = objective.loss.task or tasks[index]
    return Plan(student, teachers, found, kinds, tasks, compares)


def _warn_of_undeclared(
    found: Sequence[Objective], student: Sequence[OutputKind | None], teacher: Sequence[OutputKind | None]
) -> None:
    """Warns of losses that do not say whether they compare values or logits, where the two differ."""
    for objective in found:
        mine, theirs = objective.outputs or (0, 0)
        kinds = [student[mine], *teacher[theirs : theirs + 1]]
        kind = next((kind for kind in kinds if task_of_kind(kind) is not None), None)
        if objective.outputs and objective.loss.compares is None and kind is not None:
            name = type(objective.loss).__name__
            warnings.warn(
                f"{name} does not say what it compares and gets what the models give, {kind.value}. Write "
                f"`compares = 'values'` into the class {name} to keep that, or `compares = 'logits'` to get logits.",
                stacklevel=4,
            )


def _label_loss(loss: Any, index: int, student: keras.Model, teachers: Teachers | None) -> Any:
    """What the labels of an output are learned by; without labels, what a teacher or the student was trained by."""
    if loss is not None:
        return part_of(loss, index, output_names(student))
    for model in [*(teachers.models if teachers else []), student]:
        trained_by = compiled_loss(model).get("loss")
        if trained_by is not None:
            return part_of(trained_by, paired_outputs(model, student)[index], output_names(model))
    return None
