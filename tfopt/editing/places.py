"""Where a swap applies: the layers and ops that `where` chooses, and what is said of those that stay as they are."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import keras

from tfopt.core.errors import InvalidArgumentError, NothingToDoError
from tfopt.core.models.fake_quantized import check_not_quantized
from tfopt.core.models.graph import Call, Graph, as_patterns, is_selected, matches
from tfopt.core.models.rewrite import Rewrite, rewrite

Where = str | list[str] | Callable[[keras.Operation], bool] | None
# Id of an op -> what gives the ops to put in its place, as `rewrite` takes them.
Plan = dict[int, Callable[[Rewrite], list[keras.Operation]]]
_SHOWN = 12


@dataclass(frozen=True, eq=False)
class Place:
    """A layer or op of a model or of one nested in it, with all its calls.

    Args:
        path: `"encoder/conv1"`; of an op that has several, the first.
        graph: the graph that it stands in.
        calls: where a nested model is shared, those inside it count once.
        chosen: `where` fits it, or there is none.
        asked: `where` fits it.
        named: `where` spells out its name or path, without a wildcard.
    """

    path: str
    op: keras.Operation
    graph: Graph
    calls: tuple[Call, ...]
    chosen: bool
    asked: bool
    named: bool


@dataclass
class Outcome:
    """What a swap does, by path.

    Args:
        verb: the name of the swap.
        swapped: what it was and what it becomes.
        left: why the swap leaves it alone, as documented.
        missed: why the swap cannot do it, though it was asked to.
        notes: what else changes there.
    """

    verb: str
    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def tell(self, model: keras.Model, fix: str, verbose: int) -> None:
        """Raises if nothing is swapped, warns of what is missed and noted, prints the rest if asked to."""
        stays = {**self.left, **self.missed}
        if not self.swapped:
            reasons = "; ".join(f"'{path}' ({reason})" for path, reason in [*stays.items()][:_SHOWN])
            raise NothingToDoError(
                "At least one layer has to change.",
                received=f"'{model.name}'" + (f", where these stay: {reasons}" if reasons else ""),
                fix=fix,
            )
        for said, what in (("leaves as they are", self.missed), ("changes more than the layer itself at", self.notes)):
            if what:
                listed = "; ".join(f"'{path}' ({reason})" for path, reason in what.items())
                warnings.warn(f"{self.verb} {said}: {listed}.", stacklevel=4)
        if verbose:
            for path, change in self.swapped.items():
                print(f"Swapped {path}: {change}")
            for path, reason in stays.items():
                print(f"Left {path}: {reason}")


def places_of(graph: Graph, where: Where, verb: str) -> list[Place]:
    """All layers and ops of a float model in the order of computation, nested models entered, each once.

    Args:
        where: layer names or globs, those of a nested model standing for all in it, or a function from a layer or op
            to whether it is chosen. None chooses all.
        verb: who asks, for the error where the model is quantized.
    """
    check_not_quantized(graph, verb)
    choose = where if callable(where) else None
    patterns = [] if choose else as_patterns(where, "where")
    found: dict[int, tuple[keras.Operation, Graph, list[str]]] = {}
    nested = []
    for path, op, around in _walk(graph, ""):
        if isinstance(op, keras.Model):
            nested.append(path)
        else:
            found.setdefault(id(op), (op, around, []))[2].append(path)
    _check_patterns(patterns, where, [*nested, *(path for *_, paths in found.values() for path in paths)])
    places = []
    for op, around, paths in found.values():
        chosen = bool(choose(op)) if choose else any(is_selected(path, patterns, []) for path in paths)
        named = any(pattern in (path, op.name) for path in paths for pattern in patterns)
        asked = chosen and where is not None
        places.append(Place(paths[0], op, around, tuple(around.calls_of(op)), chosen, asked, named))
    return places


def carried_out(graph: Graph, plan: Plan, outcome: Outcome, fix: str, verbose: int) -> keras.Model:
    """The model with the plan carried out, once the user is told what the outcome is."""
    outcome.tell(graph.model, fix, verbose)
    return rewrite(graph, lambda op, state: plan[id(op)](state) if id(op) in plan else None).model


def new_name(wanted: str, places: list[Place]) -> str:
    """`wanted`, or that with a number behind it if a layer has the name already."""
    taken = {place.op.name for place in places}
    names = itertools.chain([wanted], (f"{wanted}_{i}" for i in itertools.count(1)))
    return next(name for name in names if name not in taken)


def policy_of(place: Place) -> keras.DTypePolicy:
    """The dtype policy for a layer in the place: that of the layer there; an op computes in the dtype of its output."""
    if isinstance(place.op, keras.layers.Layer):
        return place.op.dtype_policy
    dtype = place.calls[0].outputs[0].dtype
    return keras.DTypePolicy(f"mixed_{dtype}" if dtype in ("float16", "bfloat16") else dtype)


def _walk(graph: Graph, prefix: str) -> Iterator[tuple[str, keras.Operation, Graph]]:
    for op in dict.fromkeys(call.op for call in graph.calls):
        path = f"{prefix}{op.name}"
        yield path, op, graph
        if isinstance(op, keras.Model):
            yield from _walk(graph.inner(op), f"{path}/")


def _check_patterns(patterns: list[str], where: Where, paths: list[str]) -> None:
    if where is not None and not callable(where) and not patterns:
        raise InvalidArgumentError("`where` holds at least one name or glob.", received=repr(where))
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in paths):
            shown = ", ".join(paths[:_SHOWN]) + (f", ... ({len(paths)})" if len(paths) > _SHOWN else "")
            raise InvalidArgumentError(
                "Each name or glob in `where` has to fit a layer of the model.",
                received=repr(pattern),
                fix=f"The layers are: {shown}.",
            )
