"""The verb `init_from`: a student starts from the weights of its teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import keras
import numpy as np

from tfopt.core.checks import as_choice
from tfopt.core.errors import NothingToDoError
from tfopt.core.keras_internals import sublayers
from tfopt.core.models import constraints
from tfopt.core.models.fake_quantized import without_fake_quantization
from tfopt.core.models.graph import Graph, check_finite, read
from tfopt.core.models.rewrite import rewrite
from tfopt.distillation.init_report import EXACT, OWN, SLICED, InitLayer, InitReport
from tfopt.distillation.matching import Pair, Part, matched, parts_of, weights_of
from tfopt.distillation.slices import DoesNotFit, KeptChannels

_WAYS = ("auto", "name", "order")


def init_from(student: keras.Model, teacher: keras.Model, *, by: str = "auto", verbose: int = 1) -> keras.Model:
    """Returns a copy of `student` that starts from the weights of `teacher` where shapes allow.

    - A layer of the same shapes takes the weights as they are.
    - A narrower one takes the most important channels: those whose weights, over all kernels that create or read the
      channel, have the highest sum of absolute values. The channels that a layer keeps are those that its consumers
      read, through normalization, additions, concatenation and Flatten.
    - A student with fewer repeated blocks takes every k-th of them: block `i` of `m` that of number `i * n // m` of
      the teacher's `n`, counted from 0.

    Other layers (kernels of another size, wider ones, outputs of another number of classes, those without a
    counterpart) keep their own initialisation.

    Args:
        student: a built Keras model. Pruning masks hold on the weights taken, a quantized model
            keeps its activation ranges. Clusters are found anew at the first update.
        teacher: a built Keras model; of a quantized one the float weights count.
        by: how layers find their counterpart, which is of the same class. `"name"`: by their path. `"order"`: by the
            order of computation and, where there are blocks too many, every k-th. `"auto"`: by name those that the user
            has named and that the teacher does not repeat, the rest by order.
        verbose: 1 prints how much was taken and which layers took nothing, 2 the whole table, 0 nothing.

    Returns:
        A new, uncompiled model of the student's architecture. Its attribute `init_report`, an `InitReport`, says for
        each layer what it took; it is not saved with the model.

    Raises:
        InvalidArgumentError: for an unknown `by`.
        UnsupportedModelError: an unbuilt model, or one that is no graph.
        NonFiniteError: NaN or infinity in the weights of the teacher.
        NothingToDoError: no layer of the student can take anything.

    Source: every k-th block: Sanh et al. 2019 (DistilBERT), https://arxiv.org/abs/1910.01108; channels by the sum of
    absolute weights: Li et al. 2017, https://arxiv.org/abs/1608.08710.

    Example:
        >>> dense = keras.layers.Dense
        >>> teacher = keras.Sequential([keras.Input((8,)), dense(32, "relu"), dense(4)], name="big")
        >>> student = keras.Sequential([keras.Input((8,)), dense(16, "relu"), dense(4)], name="small")
        >>> student = init_from(student, teacher)
        small from big: 212 of 212 parameters (100.0 %); 0 layers exact, 2 sliced, 0 with their own initialisation.
        >>> [(layer.how, layer.parameters) for layer in student.init_report.layers]
        [('sliced', 144), ('sliced', 68)]
    """
    own_graph, teacher_graph = read(student), read(teacher)
    by = as_choice("by", by, _WAYS)
    check_finite(teacher_graph)
    copy = rewrite(own_graph)
    result = copy.model
    plain_student, own = without_fake_quantization(copy)
    plain_teacher, _ = without_fake_quantization(teacher_graph)
    plan = _Plan(plain_student, plain_teacher, by)
    report = InitReport(student.name, teacher.name, tuple(map(plan.layer, plan.parts)))
    if not plan.values:
        raise NothingToDoError(
            "At least one layer of the student has to find weights in the teacher.",
            received=f"'{student.name}' and '{teacher.name}': {report.summary}",
            fix="Layers correspond by class and by name or order, and the student's are at most as wide.",
        )
    _give(result, {id(own[key]): (own[key], value) for key, value in plan.values.items()})
    result.init_report = report
    if verbose:
        print(report if verbose > 1 else report.summary)
    return result


def _give(model: keras.Model, values: dict[int, tuple[keras.Variable, np.ndarray]]) -> None:
    for variable, value in values.values():
        variable.assign(value)
    for variable, _ in values.values():
        constraints.reapply(variable)
    for layer in sublayers(model):
        if hasattr(layer, "finalize_state"):  # adapted layers, as Normalization, keep what derives from variables
            layer.finalize_state()


@dataclass
class _Plan:
    """What each layer of a plain student takes; `values` holds the arrays by id of the student's variable."""

    student: Graph
    teacher: Graph
    by: str
    values: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts, self._teachers = parts_of(self.student), parts_of(self.teacher)
        self._pairs = {id(pair.student): pair for pair in matched(parts, self._teachers, self.by)}
        self.parts = [part for part in parts if part.shapes]
        self._kept = KeptChannels(
            self.student, self.teacher, [weights for pair in self._pairs.values() for weights in _common(pair)]
        )

    def layer(self, part: Part) -> InitLayer:
        """What one layer takes."""
        total = sum(math.prod(shape) for shape in part.shapes.values())
        pair = self._pairs.get(id(part))
        if pair is None:
            return InitLayer(part.path, OWN, None, None, 0, total, self._why_alone(part))
        try:
            taken, is_exact = self._taken(pair)
        except DoesNotFit as reason:
            return InitLayer(part.path, OWN, None, None, 0, total, f"of '{pair.teacher.path}': {reason}")
        self.values.update(taken)
        missing = ", ".join(name for name, number in part.shapes if (name, number) not in pair.teacher.shapes)
        return InitLayer(
            part.path,
            EXACT if is_exact else SLICED,
            pair.teacher.path,
            pair.block,
            sum(array.size for array in taken.values()),
            total,
            f"'{pair.teacher.path}' has no {missing}" if missing else "",
        )

    def _taken(self, pair: Pair) -> tuple[dict[int, np.ndarray], bool]:
        """The arrays for a layer, and whether they are the teacher's as they are."""
        taken, is_exact = {}, True
        for ours, theirs in _common(pair):
            indices = self._kept.indices(ours, theirs)
            taken[id(ours)] = keras.ops.convert_to_numpy(theirs)[np.ix_(*indices)]
            whole = [np.array_equal(index, np.arange(size)) for index, size in zip(indices, theirs.shape, strict=True)]
            is_exact = is_exact and all(whole)
        return taken, is_exact

    def _why_alone(self, part: Part) -> str:
        namesake = next((teacher for teacher in self._teachers if teacher.path == part.path), None)
        if namesake is not None and namesake.kind != part.kind:
            return f"'{namesake.path}' of the teacher is a {type(namesake.op).__name__}"
        return f"no {type(part.op).__name__} of the teacher in its place"


def _common(pair: Pair) -> list[tuple[keras.Variable, keras.Variable]]:
    """The weights that both layers of a pair have."""
    ours, theirs = weights_of(pair.student.op), weights_of(pair.teacher.op)
    return [(weight, theirs[key]) for key, weight in ours.items() if key in theirs]
