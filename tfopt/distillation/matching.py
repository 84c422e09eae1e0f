"""Which layer of a teacher a layer of its student corresponds to: by name, by order, and every k-th repeated block."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np

from tfopt.core.keras_internals import sublayers
from tfopt.core.models.flow import is_addition
from tfopt.core.models.graph import Graph

# What it is worth to pair two layers.
_SAME_SHAPE, _FITTING, _ALIKE, _SAME_GRID = 5, 4, 1, 1


@dataclass(frozen=True, eq=False)
class Part:
    """A layer with weights, or an op that joins several tensors, at its first call.

    Args:
        outputs: shapes, without the batch.
        depth: how many layers and ops lie on the longest way to it.
    """

    path: str
    op: keras.Operation
    outputs: tuple[tuple, ...]
    depth: int

    @cached_property
    def kind(self) -> Any:
        """Equal for parts that do the same, whatever their widths."""
        if is_addition(self.op):
            return "addition"
        return (type(self.op), *(type(layer) for layer in sublayers(self.op)[1:] if layer.weights))

    @cached_property
    def shapes(self) -> dict[tuple[str, int], tuple[int, ...]]:
        return {key: tuple(weight.shape) for key, weight in weights_of(self.op).items()}

    @cached_property
    def signature(self) -> Any:
        """Equal for parts whose weights can stand for each other."""
        return (self.kind, getattr(self.op, "strides", None), tuple(self.shapes.items()), self.outputs)

    @property
    def is_named(self) -> bool:
        """False for a name that Keras makes of the class and a counter."""
        name, _, number = self.op.name.rpartition("_")
        name = name if number.isdigit() and name else self.op.name
        return name.replace("_", "") != type(self.op).__name__.lower()


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer of the student with its counterpart; `block`: the teacher's is in this block of so many, from 1."""

    student: Part
    teacher: Part
    block: tuple[int, int] | None = None


def weights_of(op: keras.Operation) -> dict[tuple[str, int], keras.Variable]:
    """The weights of a layer by name and, inside it, by how many of that name come before."""
    found: dict[tuple[str, int], keras.Variable] = {}
    for weight in getattr(op, "weights", []):
        base = re.sub(r"_\d+$", "", weight.name)  # Keras counts variables without a name through the whole program
        number = sum(name == base for name, _ in found)
        found[base, number] = weight
    return found


def parts_of(graph: Graph) -> list[Part]:
    """The parts of a model in the order of computation, nested models entered, shared layers once."""
    parts: dict[int, Part] = {}

    def walk(graph: Graph, prefix: str, inputs: list[int]) -> list[int]:
        """The depths of a model's outputs, given those of its inputs."""
        depths = {id(tensor): depth for tensor, depth in zip(graph.inputs, inputs, strict=True)}
        for call in graph.calls:
            op, before = call.op, [depths[id(tensor)] for tensor in call.inputs]
            if isinstance(op, keras.Model):
                after = walk(graph.inner(op), f"{prefix}{op.name}/", before)
            else:
                after = [max(before, default=0) + 1] * len(call.outputs)
                if weights_of(op) or len({id(tensor) for tensor in call.inputs}) > 1:
                    shapes = tuple(tuple(tensor.shape[1:]) for tensor in call.outputs)
                    parts.setdefault(id(op), Part(prefix + op.name, op, shapes, after[0]))
            depths.update((id(tensor), depth) for tensor, depth in zip(call.outputs, after, strict=True))
        return [depths[id(tensor)] for tensor in graph.outputs]

    walk(graph, "", [0] * len(graph.inputs))
    return list(parts.values())


def matched(students: Sequence[Part], teachers: Sequence[Part], by: str) -> list[Pair]:
    """The pairs of corresponding parts.

    Args:
        students, teachers: from `parts_of`.
        by: `"name"` pairs parts of the same path and kind. `"order"` aligns both sequences: blocks that the teacher
            repeats are taken as a whole, every k-th of them where the student has fewer. `"auto"` pairs by name what
            the user has named and is not repeated, then the rest by order, then by name what is left.
    """
    if by == "name":
        return _namesakes(students, teachers)
    runs = _runs(teachers)
    if by == "order":
        return _aligned(students, runs)
    single = [unit[0] for unit, *others in runs if not others]
    pairs = _namesakes([part for part in students if part.is_named], single)
    taken = {id(part) for pair in pairs for part in (pair.student, pair.teacher)}
    rest = [[unit for unit in run if id(unit[0]) not in taken] for run in runs]
    pairs += _aligned(_left(students, pairs), [run for run in rest if run])
    return pairs + _namesakes([part for part in _left(students, pairs) if part.is_named], teachers)


def _left(students: Sequence[Part], pairs: Sequence[Pair]) -> list[Part]:
    taken = {id(pair.student) for pair in pairs}
    return [part for part in students if id(part) not in taken]


def _namesakes(students: Sequence[Part], teachers: Sequence[Part]) -> list[Pair]:
    by_path = {teacher.path: teacher for teacher in teachers}
    found = [(student, by_path.get(student.path)) for student in students]
    return [
        Pair(student, teacher) for student, teacher in found if teacher is not None and teacher.kind == student.kind
    ]


# Repeated blocks.

Run = list[tuple[Part, ...]]  # blocks of equal parts, one after the other; one of a single part where none repeats


def _runs(parts: Sequence[Part]) -> list[Run]:
    """The sequence cut into runs, those that cover most of it first."""
    found = _widest_repeat(parts)
    if found is None:
        return [[(part,)] for part in parts]
    start, period, count = found
    end = start + period * count
    run = [tuple(parts[place : place + period]) for place in range(start, end, period)]
    return [*_runs(parts[:start]), run, *_runs(parts[end:])]


def _widest_repeat(parts: Sequence[Part]) -> tuple[int, int, int] | None:
    """Start, length and number of the blocks that cover most, of weights that can stand for each other.

    Blocks follow each other in depth: layers side by side, as the heads of a model, are none. Of several phases the one
    whose blocks end in an addition, as residual blocks do, else the last: normalization then goes with the layer
    before it.
    """
    numbers: dict[Any, int] = {}
    labels = np.array([numbers.setdefault(part.signature, len(numbers)) for part in parts])
    best: tuple = (0,)
    for period in range(1, len(parts) // 2 + 1):
        equal = 0  # how many places from here on are the same one period later
        for start in range(len(parts) - period - 1, -1, -1):
            same = labels[start] == labels[start + period] and parts[start].depth < parts[start + period].depth
            equal = equal + 1 if same else 0
            count = equal // period + 1
            block = parts[start : start + period]
            if count > 1 and any(part.shapes for part in block):
                key = (count * period, -period, block[-1].kind == "addition", start)
                best = max(best, (*key, count))
    if best == (0,):
        return None
    _, period, _, start, count = best
    return start, -period, count


# Alignment.


def _aligned(students: Sequence[Part], runs: Sequence[Run]) -> list[Pair]:
    """The alignment of highest worth that keeps the order of both and takes blocks of a run as a whole."""
    worth = [[0] * (len(runs) + 1) for _ in range(len(students) + 1)]
    choice: dict[tuple[int, int], int] = {}  # how many blocks of the run are taken; -1 leaves the student's part out
    for i in range(len(students) - 1, -1, -1):
        for j in range(len(runs) - 1, -1, -1):
            options = [(worth[i][j + 1], 0), (worth[i + 1][j], -1)]
            period = len(runs[j][0])
            for count, gain in enumerate(_gains(students[i:], runs[j]), 1):
                options.append((gain + worth[i + period * count][j + 1], count))
            worth[i][j], choice[i, j] = max(options)
    pairs: list[Pair] = []
    i = j = 0
    while (i, j) in choice:
        count = choice[i, j]
        if count > 0:
            pairs += _block_pairs(students[i:], runs[j], count)
        i, j = i + (1 if count < 0 else count * len(runs[j][0])), j + (count >= 0)
    return pairs


def _gains(students: Sequence[Part], run: Run) -> Iterator[int]:
    """What it is worth to pair the next 1, 2, ... blocks of the student with as many of a run."""
    gain, period = 0, len(run[0])
    for number in range(len(run)):
        block = students[number * period : (number + 1) * period]
        if len(block) < period or any(s.kind != t.kind for s, t in zip(block, run[0], strict=True)):
            return
        if not all(_same_grid(s, first) for s, first in zip(block, students, strict=False)):
            return
        gain += sum(_worth(s, t) for s, t in zip(block, run[0], strict=True))
        yield gain


def _worth(student: Part, teacher: Part) -> int:
    return _worth_of_weights(student, teacher) + (_SAME_GRID if _same_grid(student, teacher) else 0)


def _same_grid(one: Part, other: Part) -> bool:
    """True if the outputs differ in one axis at most, that of the channels."""
    sizes, others = one.outputs[0], other.outputs[0]
    return len(sizes) == len(others) and sum(a != b for a, b in zip(sizes, others, strict=True)) <= 1


def _worth_of_weights(student: Part, teacher: Part) -> int:
    if student.shapes == teacher.shapes:
        return _SAME_SHAPE if student.shapes else _ALIKE
    common = student.shapes.keys() & teacher.shapes.keys()
    sizes = [(student.shapes[key], teacher.shapes[key]) for key in common]
    fitting = all(len(s) == len(t) and all(a <= b for a, b in zip(s, t, strict=True)) for s, t in sizes)
    same_kernel = getattr(student.op, "kernel_size", None) == getattr(teacher.op, "kernel_size", None)
    return _FITTING if fitting and same_kernel else _ALIKE


def _block_pairs(students: Sequence[Part], run: Run, count: int) -> Iterator[Pair]:
    """Block `i` of `count` with block `i * n // count` of the `n` in the run."""
    period = len(run[0])
    for number in range(count):
        place = number * len(run) // count
        block = (place + 1, len(run)) if count < len(run) else None
        for student, teacher in zip(students[number * period :], run[place], strict=False):
            yield Pair(student, teacher, block)
