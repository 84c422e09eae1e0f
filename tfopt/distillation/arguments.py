"""Checks what a Distiller is given, before anything is changed, and puts losses and models together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras

from tfopt.core.checks import POSITIVE, Range, as_number
from tfopt.core.data.inputs import inputs_of
from tfopt.core.data.pairs import output_names, paired
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.graph import check_finite, read
from tfopt.core.models.rewrite import rewrite
from tfopt.distillation.features import feature_calls, feature_shape
from tfopt.distillation.loss_layers.base import FEATURES, DistillationLoss
from tfopt.distillation.outputs import has_keys, output_index, output_shapes
from tfopt.distillation.plan import Objective
from tfopt.distillation.shapes import fits
from tfopt.distillation.taught import Taught
from tfopt.distillation.teachers import Teachers


def checked_numbers(alpha: Any, temperature: Any) -> tuple[float, float]:
    """Both numbers; raises unless `alpha` is a share and `temperature` can divide."""
    share = as_number(
        "alpha",
        alpha,
        Range(least=0, most=1),
        what="the share of the teacher in the loss, from 0 to 1",
        fix="0.5 weighs labels and teacher alike; `weight=` of a loss has no upper bound.",
    )
    return share, as_number("temperature", temperature, POSITIVE, fix="Usual values are 1 to 20.")


def teaching_models(student: keras.Model, teacher: Any) -> list[keras.Model]:
    """The teachers as a list, each checked; a frozen copy of one that has weights in common with the student."""
    check_finite(read(student))
    models = list(teacher) if isinstance(teacher, (list, tuple)) else [] if teacher is None else [teacher]
    if isinstance(teacher, (list, tuple)) and not models:
        raise InvalidArgumentError("`teacher` must be a model, a list of one or more, or None.", received=repr(teacher))
    for model in models:
        check_finite(read(model))
        _check_inputs(student, model)
    own = set(map(id, student.variables))
    return [rewrite(read(model)).model if own & set(map(id, model.variables)) else model for model in models]


def check_weights(weights: Any, models: Sequence[keras.Model]) -> None:
    """Raises where there are weights for teachers and no teacher."""
    if weights is not None and not models:
        raise InvalidArgumentError(
            "`teacher_weights` must hold one number above 0 for each teacher.",
            received=f"{weights!r} without a teacher",
            fix="Weights of cached answers are an argument of `cache_teacher`.",
        )


def checked_losses(losses: Any, temperature: float) -> list[DistillationLoss]:
    """The losses as a list; those without a temperature of their own as copies with that of the Distiller."""
    items = list(losses) if isinstance(losses, (list, tuple)) else [losses]
    if not items or not all(isinstance(item, DistillationLoss) for item in items):
        raise InvalidArgumentError(
            "`losses` must be a loss of tfopt.distillation or a list of them, or None to choose by the outputs.",
            received=repr(losses),
            fix="For example `losses=[SoftTargets(), FeatureMatching(student_layer='conv3', teacher_layer='conv9')]`. "
            "Call a Keras loss or a function in a subclass of `tfopt.distillation.DistillationLoss`.",
        )
    names = [item.name for item in items]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidArgumentError(
            "Each loss must have a name of its own.", received=f"{', '.join(twice)} twice", fix="Pass `name=`."
        )
    return [_with_temperature(item, temperature) for item in items]


def objectives(losses: Sequence[DistillationLoss], student: keras.Model, teachers: Teachers | None) -> list[Objective]:
    """Each loss at its places in student and teacher; a loss of outputs without a name at each of them.

    Raises:
        InvalidArgumentError: for a place that one of them does not have, or shapes that a loss cannot compare.
    """
    found = []
    for loss, name in zip(losses, _log_names(losses), strict=True):
        if loss.on == FEATURES:
            found.append(_between_layers(loss, name, student, teachers))
        else:
            found.extend(_between_outputs(loss, name, student, teachers))
    if teachers is not None:
        for mine, theirs in [objective.outputs for objective in found if objective.outputs]:
            _check_shapes(output_names(student)[mine], output_shapes(student)[mine], teachers.shapes[theirs])
    return found


def build_losses(found: Sequence[Objective], student: keras.Model, teachers: Teachers | None) -> None:
    """Creates the weights of the losses, as far as the shapes are known."""
    if teachers is None:
        return
    for objective in found:
        shapes = _shapes(objective, student, teachers)
        if not objective.loss.is_ready:
            objective.loss.build_for(*shapes)
        elif objective.loss.weights and not fits(_widths(objective.loss.get_build_config()), _widths(shapes)):
            raise InvalidArgumentError(
                "A loss with weights must stay with one pair of layers.",
                received=f"'{objective.loss.name}', built for other widths than {_widths(shapes)}",
                fix="Make a new loss for each Distiller.",
            )


def build_for(found: Sequence[Objective], student: keras.Model, taught: Taught) -> None:
    """Creates the weights of losses between layers for cached answers, whose shapes no teacher tells."""
    for objective in found:
        mine, theirs = objective.layers or ("", "")
        if not objective.loss.is_ready and theirs in taught.features:
            objective.loss.build_for(feature_shape(student, mine), (None, *taught.features[theirs].shape[1:]))


def check_same_outputs(student: keras.Model, teachers: Teachers) -> None:
    """Raises unless each output of the student has one of the teacher to learn from."""
    names = output_names(student)
    named = has_keys(student) and teachers.has_keys
    if len(names) != len(teachers.names) or (named and names != teachers.names):
        raise InvalidArgumentError(
            "Where `losses` does not say what learns from what, student and teacher must have the same outputs.",
            received=f"outputs {names} of the student, {teachers.names} of the teacher",
            fix="Name outputs alike, as keys of a dict, or pass `losses=[SoftTargets(output='...')]`.",
        )
    for name, mine, place in zip(names, output_shapes(student), teachers.places(student), strict=True):
        _check_shapes(name, mine, teachers.shapes[place])


def _between_layers(loss: DistillationLoss, name: str, student: keras.Model, teachers: Teachers | None) -> Objective:
    if loss.student_layer is None:
        raise InvalidArgumentError(
            f"{type(loss).__name__} compares layers and must be given their names.",
            received=f"'{loss.name}' without `student_layer`",
            fix="Name one of the student, and with `teacher_layer=` one of the teacher.",
        )
    path = loss.teacher_layer or loss.student_layer
    feature_calls(student, loss.student_layer)
    if teachers is not None:
        teachers.feature_shape(path)
    return Objective(loss, name, layers=(loss.student_layer, path))


def _between_outputs(
    loss: DistillationLoss, name: str, student: keras.Model, teachers: Teachers | None
) -> list[Objective]:
    names = output_names(student)
    theirs = names if teachers is None else teachers.names
    if loss.output_name is not None:
        mine = output_index(names, loss.output_name, "student")
        by_order = loss.output_name not in theirs and len(theirs) == len(names)
        place = mine if by_order else output_index(theirs, loss.output_name, "teacher")
        return [Objective(loss, name, outputs=(mine, place))]
    if len(names) == 1 and len(theirs) == 1:
        return [Objective(loss, name, outputs=(0, 0))]
    places = list(range(len(names)))
    if teachers is not None:
        check_same_outputs(student, teachers)
        places = teachers.places(student)
    return [Objective(loss, f"{names[i]}_{name}", outputs=(i, place)) for i, place in enumerate(places)]


def _log_names(losses: Sequence[DistillationLoss]) -> list[str]:
    """What the logs call each loss: the user's name for it, else its class, not counted on over the whole process."""
    names: list[str] = []
    for loss in losses:
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(loss).__name__).lower()
        name = plain if re.fullmatch(rf"{plain}(_\d+)?", loss.name) else loss.name
        count = sum(re.fullmatch(rf"{re.escape(name)}(_\d+)?", known) is not None for known in names)
        names.append(f"{name}_{count}" if name in names else name)
    return names


def _check_shapes(name: str, mine: tuple, theirs: tuple) -> None:
    if len(mine) != len(theirs) or any(None not in (a, b) and a != b for a, b in zip(mine, theirs, strict=True)):
        raise InvalidArgumentError(
            "A student and its teacher must have outputs of one shape, of as many classes.",
            received=f"'{name}' {mine}, of the teacher {theirs}",
            fix="Give the student the teacher's outputs, or distil from features alone.",
        )


def _shapes(objective: Objective, student: keras.Model, teachers: Teachers) -> tuple[tuple, tuple]:
    if objective.outputs:
        mine, theirs = objective.outputs
        return output_shapes(student)[mine], teachers.shapes[theirs]
    layers = objective.layers or ("", "")
    return feature_shape(student, layers[0]), teachers.feature_shape(layers[1])


def _widths(shapes: Any) -> list[int | None]:
    """The last sizes of the shapes that Keras says a layer was built with, or of a list of shapes."""
    if isinstance(shapes, dict):
        known = shapes.get("shapes_dict", {})
        shapes = [known.get(f"{of}_shape", (None,)) for of in ("student", "teacher")]
    return [shape[-1] for shape in shapes]


def _with_temperature(loss: DistillationLoss, temperature: float) -> DistillationLoss:
    if getattr(loss, "temperature", temperature) is not None:
        return loss
    return type(loss).from_config({**loss.get_config(), "temperature": temperature})


def _check_inputs(student: keras.Model, teacher: keras.Model) -> None:
    mine, theirs = inputs_of(student), inputs_of(teacher)
    if len(mine) == len(theirs):
        order = paired(mine, theirs, student.name, teacher.name)
        if all(fits(mine[place].shape, own.shape) for place, own in zip(order, theirs, strict=True)):
            return
    raise InvalidArgumentError(
        "Student and teacher must take the same inputs.",
        received=f"{', '.join(map(str, mine))} of the student, {', '.join(map(str, theirs))} of '{teacher.name}'",
        fix="Put what resizes or converts, such as `keras.layers.Resizing`, into one of the models.",
    )
