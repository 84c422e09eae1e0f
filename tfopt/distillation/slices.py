"""Which channels of a teacher's weights a narrower student takes: the most important ones, the same in all layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import keras
import numpy as np

from tfopt.core.channels.graph import OUTPUT_STAYS, ChannelGraph
from tfopt.core.channels.scores import channel_magnitudes
from tfopt.core.layers.channels import FIXED, Slot
from tfopt.core.models.graph import Graph

VariablePair = tuple[keras.Variable, keras.Variable]
_NONE = -1  # in the place of a channel without a counterpart
Place = tuple[int, int]  # id of a variable of the student, axis


class DoesNotFit(Exception):
    """Raised for a weight that has no slice for the student, with the reason."""


class KeptChannels:
    """The channels of a teacher that a student keeps.

    Channels correspond that occur in corresponding weights, those that a residual addition makes one in all weights
    of its branches. Of these the student takes as many as it has, those of the highest sums of absolute weights, in
    their old order.

    Args:
        student, teacher: graphs of plain float models.
        pairs: corresponding weights.
    """

    def __init__(self, student: Graph, teacher: Graph, pairs: Sequence[VariablePair]):
        student_graph, graph = (ChannelGraph(each, ties_only=True) for each in (student, teacher))
        self._student = _by_place(student_graph)
        self._teacher = _by_place(graph)
        self._scores = channel_magnitudes(graph)
        self._taken: dict[int, int] = {FIXED: FIXED}  # channel of the student -> that of the teacher
        self._answers = _answers(student_graph)
        self._choose(pairs, ("out",))
        self._choose(pairs, ("out", "in", "each", "statistic"))

    def indices(self, student: keras.Variable, teacher: keras.Variable) -> list[np.ndarray]:
        """The indices along each axis of the teacher's weight that make the student's.

        Raises:
            DoesNotFit: there is no such slice.
        """
        if len(student.shape) != len(teacher.shape):
            raise DoesNotFit(f"its {student.name} has {len(student.shape)} axes, the teacher's {len(teacher.shape)}")
        return [self._along(student, teacher, axis) for axis in range(len(student.shape))]

    def _along(self, student: keras.Variable, teacher: keras.Variable, axis: int) -> np.ndarray:
        size, old = student.shape[axis], teacher.shape[axis]
        ours, theirs = self._student.get((id(student), axis)), self._teacher.get((id(teacher), axis))
        try:
            if ours is None or theirs is None:
                raise DoesNotFit(f"axis {axis} of its {student.name} has size {size}, the teacher's {old}")
            return self._places(ours.labels, theirs.labels)
        except DoesNotFit:
            if size == old:
                return np.arange(size)
            raise

    def _places(self, labels: np.ndarray, teacher_labels: np.ndarray) -> np.ndarray:
        """Where the teacher's axis has the channels that the student takes.

        A channel may come several times, as behind Flatten or once a gate of an LSTM; then as often in both.
        """
        wanted = np.array([self._taken.get(label, _NONE) for label in labels.tolist()])
        if self._answers.intersection(labels[wanted == _NONE].tolist()):
            raise DoesNotFit("it gives an output of the model, which is of another width in the teacher")
        if _NONE in wanted:
            raise DoesNotFit("channels that it reads or is tied to have no counterpart in the teacher")
        found = np.flatnonzero(np.isin(teacher_labels, wanted))
        found = found[np.argsort(teacher_labels[found], kind="stable")]
        order = np.argsort(wanted, kind="stable")
        if not np.isin(wanted, teacher_labels).all():
            raise DoesNotFit("the teacher ties its channels to other layers")
        if not np.array_equal(wanted[order], teacher_labels[found]):
            raise DoesNotFit("a channel has another number of values in the teacher, as of another grid")
        places = np.zeros(len(labels), int)
        places[order] = found
        return places

    def _choose(self, pairs: Sequence[VariablePair], roles: tuple[str, ...]) -> None:
        """Takes channels for those of the student that occur in weights with a counterpart."""
        slots = [
            (self._student[place], self._teacher[id(theirs), place[1]])
            for ours, theirs in pairs
            for place in [(id(ours), axis) for axis in range(min(len(ours.shape), len(theirs.shape)))]
            if place in self._student and (id(theirs), place[1]) in self._teacher
        ]
        slots = [(ours, theirs) for ours, theirs in slots if ours.role in roles]
        atoms = _atoms([ours for ours, _ in slots])
        teacher_atoms = _atoms([theirs for _, theirs in slots])
        for slots_of, channels in atoms.items():
            channels = [channel for channel in channels if channel not in self._taken]
            available = _counterparts(slots_of, teacher_atoms)
            fits = len(channels) <= len(available)
            if self._answers.intersection(channels):  # what they stand for is not a matter of importance
                fits = len(channels) == len(available)
            if fits:
                best = np.argsort(-self._scores[available], kind="stable")[: len(channels)]
                self._taken.update(zip(channels, np.sort(available[best]).tolist(), strict=True))


def _counterparts(slots: frozenset[int], atoms: dict[frozenset[int], list[int]]) -> np.ndarray:
    """The teacher's channels that occur in just these slots, or in all of these, or else in most of them."""
    found = atoms.get(slots) or [channel for key in atoms if key >= slots for channel in atoms[key]]
    if not found and atoms:
        closest = max(atoms, key=lambda key: len(key & slots))
        found = atoms[closest] if closest & slots else []
    return np.array(found, int)


def _answers(graph: ChannelGraph) -> set[int]:
    """The channels of the model's outputs that no layer reads: classes, for instance, but not features."""
    outputs = {root for root, reason in graph.reasons.items() if reason == OUTPUT_STAYS}
    read = [slot.labels for slot in graph.slots if slot.role == "in"]
    return outputs.difference(np.concatenate(read).tolist() if read else [])


def _by_place(graph: ChannelGraph) -> dict[Place, Slot]:
    return {(id(slot.variable), slot.axis): slot for slot in graph.slots}


def _atoms(slots: Sequence[Slot]) -> dict[frozenset[int], list[int]]:
    """Channels that occur in the same slots, in ascending order: `{numbers of the slots: channels}`."""
    occurs = defaultdict(set)
    for number, slot in enumerate(slots):
        for channel in np.unique(slot.labels).tolist():
            occurs[channel].add(number)
    atoms = defaultdict(list)
    for channel in sorted(occurs):
        if channel != FIXED:
            atoms[frozenset(occurs[channel])].append(channel)
    return atoms
