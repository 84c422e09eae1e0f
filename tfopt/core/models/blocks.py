"""What can be taken out of the depth of a model: the blocks that give a tensor like the one they read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.layers.registry import prunable_weights
from tfopt.core.models.flow import Flow, has_kernel, is_addition, is_alike, resizes
from tfopt.core.models.graph import Call, Graph, matches
from tfopt.core.models.macs import model_macs
from tfopt.core.models.rewrite import rewrite

RESIDUAL, LAYER, MODEL = "residual", "layer", "model"
_NO_KERNEL = "it has no kernel to prune"
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a model that can be bypassed: what reads its output reads its input instead.

    Args:
        name: path of the addition that ends a residual block, of a layer or of a nested model: `"encoder/add"`.
        kind: `"residual"`, `"layer"` (with the normalization, activation and dropout attached to it) or `"model"`.
        passes: pairs of input and output tensor, one for each call.
        paths: the layers and ops that go, nested ones included.
        kernels: their kernels, those that `prune` prunes.
        parameters: how many parameters go.
        macs: how many multiply-accumulates for one sample go; None where they cannot be counted.
    """

    name: str
    kind: str
    passes: tuple[tuple[Any, Any], ...]
    paths: tuple[str, ...]
    kernels: tuple[keras.Variable, ...]
    parameters: int
    macs: int | None


class Blocks:
    """The blocks of a model and of the models nested in it. The model is only read; `without` gives a new one.

    Args:
        model: a built Keras model.

    Raises:
        UnsupportedModelError: for an unbuilt model, or one that is no graph.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> inputs = keras.Input((8,))
        >>> x = keras.layers.Dense(8, name="a")(inputs)
        >>> x = keras.layers.Add(name="sum")([x, keras.layers.Dense(8, name="b")(x)])
        >>> blocks = Blocks(read(keras.Model(inputs, keras.layers.Dense(2, name="c")(x))))
        >>> [(block.name, block.kind, block.parameters) for block in blocks.candidates]
        [('a', 'layer', 72), ('sum', 'residual', 72)]
        >>> blocks.refused["layer"]["c"]
        'it turns float32 (8,) into float32 (2,)'
        >>> [layer.name for layer in blocks.without([blocks.block("sum")]).model.layers[1:]]
        ['a', 'c']
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.macs = model_macs(graph)
        self._places: dict[str, _Place] = {}
        self._flows: dict[int, Flow] = {}  # nested models before the models around them
        self._visit(graph, "")

    def find(self, patterns: list[str], argument: str) -> list[str]:
        """Paths of the layers, ops and nested models that fit a glob; each glob has to fit one."""
        for pattern in patterns:
            if not any(matches(path, [pattern]) for path in self._places):
                raise InvalidArgumentError(
                    f"Each name or glob in `{argument}` has to fit a layer of the model other than its inputs.",
                    received=repr(pattern),
                    fix=f"The layers are: {_listed([*self._places])}.",
                )
        return [path for path in self._places if matches(path, patterns)]

    def block(self, path: str) -> Block:
        """The residual block that ends in the addition at `path`, or the layer or nested model there as a block."""
        verdict = self._verdict(self._places[path])
        if isinstance(verdict, Block):
            return verdict
        around = [block for block in self._residual_blocks.values() if path in block.paths]
        raise InvalidArgumentError(
            "A layer can be dropped if what it gives has the shape and dtype of what it reads, an addition if it ends "
            "a residual block with an identity skip.",
            received=f"'{path}': {verdict}",
            fix=f"Name '{min(around, key=lambda block: len(block.paths)).name}' to drop the residual block around it."
            if around
            else f"Blocks that can be dropped: {_listed([block.name for block in self.candidates]) or 'none'}.",
        )

    @property
    def candidates(self) -> list[Block]:
        """The smallest blocks with kernels to prune, in the order of computation; no two overlap.

        Layers in the branches of an addition or product are none, and neither are those that give an output.
        """
        return [verdict for verdict in self._ranked.values() if isinstance(verdict, Block)]

    @property
    def refused(self) -> dict[str, dict[str, str]]:
        """Kind -> path -> why an addition, a layer with kernels or a nested model is no candidate."""
        reasons: dict[str, dict[str, str]] = {RESIDUAL: {}, LAYER: {}, MODEL: {}}
        for path, verdict in self._ranked.items():
            if isinstance(verdict, str):
                reasons[_kind(self._places[path].op)][path] = verdict
        return reasons

    def without(self, blocks: Iterable[Block]) -> Graph:
        """The graph of a new model without these blocks, and without nested models that lose all their layers."""
        instead = {id(target): source for block in blocks for source, target in block.passes}
        for flow in self._flows.values():
            if flow.graph.needed(instead):
                continue
            if not flow.parents:
                raise InvalidArgumentError(
                    "At least one layer between the inputs and outputs of a model has to stay.",
                    received=f"a choice that holds all of '{self.graph.model.name}'",
                    fix="Drop fewer layers.",
                )
            for _, call in flow.parents:
                instead.update(zip(map(id, call.outputs), flow.passed_through(call, instead), strict=True))
        return rewrite(self.graph, bypass=instead)

    def _visit(self, graph: Graph, prefix: str) -> Flow:
        flow = self._flows.get(id(graph.model)) or Flow(graph)
        for call in flow.graph.calls:
            path = prefix + call.op.name
            if path not in self._places:
                self._places[path] = _Place(path, call.op, flow)
                if isinstance(call.op, keras.Model):
                    inner = self._visit(graph.inner(call.op), f"{path}/")
                    inner.parents += [(flow, c) for c in flow.graph.calls_of(call.op)]
        return self._flows.setdefault(id(graph.model), flow)

    @cached_property
    def _macs_of(self) -> dict[int, list[int | None]]:
        """Id of each layer -> its multiply-accumulates at each of its paths."""
        counts = defaultdict(list)
        for path, place in self._places.items():
            counts[id(place.op)].append(self.macs.get(path, 0))
        return counts

    @cached_property
    def _residual_blocks(self) -> dict[str, Block]:
        places = [place for place in self._places.values() if is_addition(place.op)]
        return {place.path: found for place in places if isinstance(found := self._residual(place), Block)}

    @cached_property
    def _ranked(self) -> dict[str, Block | str]:
        """Each addition, layer with kernels and nested model: the candidate that it is, or why it is none."""
        ranked: dict[str, Block | str] = {}
        for place in self._places.values():
            if place.path != self._first_path(place):
                continue
            if is_addition(place.op):
                ranked[place.path] = self._residual_candidate(place)
            elif has_kernel(place.op):
                ranked[place.path] = self._chain_candidate(place)
        for path, verdict in ranked.items():
            inner = [other for other in ranked if other.startswith(f"{path}/") and isinstance(ranked[other], Block)]
            if isinstance(verdict, Block) and inner:
                ranked[path] = f"it holds a smaller block, '{inner[0]}'"
        return ranked

    def _first_path(self, place: _Place) -> str:
        """The path that stands for a layer of a nested model that is called from several models."""
        return next(p.path for p in self._places.values() if p.op is place.op and p.flow is place.flow)

    def _verdict(self, place: _Place) -> Block | str:
        return self._residual(place) if is_addition(place.op) else self._chain(place)

    def _residual_candidate(self, place: _Place) -> Block | str:
        block = self._residual(place)
        if isinstance(block, str):
            return block
        inner = [path for path in block.paths if path != place.path and path in self._residual_blocks]
        smaller = [path for path in inner if self._residual_blocks[path].kernels]
        if smaller:
            return f"it holds a smaller block, '{smaller[0]}'"
        return block if block.kernels else _NO_KERNEL

    def _chain_candidate(self, place: _Place) -> Block | str:
        block = self._chain(place)
        if isinstance(block, str):
            return block
        if len(block.passes) > 1:
            return "it is called several times"
        join = place.flow.join_of(place.calls[0])
        if join:
            return f"it stands in a branch of '{join}'"
        if place.flow.leads_out(block.passes[0][1]):
            return "it gives an output of the model"
        return block if block.kernels else _NO_KERNEL

    def _residual(self, place: _Place) -> Block | str:
        """The block that ends in an addition of its own input, or why there is none."""
        if len(place.calls) > 1:
            return "it is called several times"
        (merge,), flow = place.calls, place.flow
        (target,) = merge.outputs
        skip = flow.skip(merge)
        if skip is None:
            return "none of its operands is the input of the others"
        if not is_alike(skip, target):
            return f"it turns {_spelled(skip)} into {_spelled(target)}"
        branch = flow.branch(skip, merge)
        staying = flow.graph.needed({id(target): skip})
        for call in flow.graph.calls:
            if call in branch and call in staying:
                return f"'{call.op.name}' in its branch is also read outside of it"
            if call not in branch and call not in staying and call is not merge:
                return f"'{call.op.name}' outside of its branch would go too"
        shared = self._shared(branch)
        if shared:
            return f"'{shared}' in its branch shares weights with layers outside of it"
        return self._as_block(place, RESIDUAL, [(skip, target)], [*branch, merge])

    def _chain(self, place: _Place) -> Block | str:
        """A layer with what is attached to it, an op or a nested model at all its calls; or why it is no block."""
        passes, gone = [], []
        for call in place.calls:
            if len({id(tensor) for tensor in call.inputs}) != 1 or len(call.outputs) != 1:
                return "it reads or gives several tensors"
            if not is_alike(call.inputs[0], call.outputs[0]):
                return f"it turns {_spelled(call.inputs[0])} into {_spelled(call.outputs[0])}"
            if resizes(call):
                return "it changes a dimension that is not defined"
            with_attached = len(place.calls) == 1 and has_kernel(place.op)
            gone += [call, *(place.flow.attached(call) if with_attached else [])]
            passes.append((call.inputs[0], gone[-1].outputs[0]))
        return self._as_block(place, _kind(place.op), passes, gone)

    def _as_block(self, place: _Place, kind: str, passes: list[tuple], gone: list[Call]) -> Block:
        prefix = place.path.removesuffix(place.op.name)
        paths = dict.fromkeys(path for call in gone for path in self._paths(prefix + call.op.name))
        ops = {id(self._places[path].op): self._places[path].op for path in paths}
        kernels = {id(kernel): kernel for op in ops.values() for kernel in _kernels(op)}
        weights = {id(weight): weight for op in ops.values() for weight in _weights(op)}
        counts = [count for key in ops for count in self._macs_of[key]]
        known = [count for count in counts if count is not None]
        return Block(
            name=place.path,
            kind=kind,
            passes=tuple(passes),
            paths=tuple(paths),
            kernels=tuple(kernels.values()),
            parameters=sum(math.prod(weight.shape) for weight in weights.values()),
            macs=sum(known) if len(known) == len(counts) else None,
        )

    def _paths(self, path: str) -> Iterator[str]:
        """The path and, of a nested model, all paths in it."""
        yield path
        if isinstance(self._places[path].op, keras.Model):
            yield from (inner for inner in self._places if inner.startswith(f"{path}/"))

    def _shared(self, gone: list[Call]) -> str | None:
        """Name of an op of the calls `gone` whose weights a call that stays has too."""
        staying = self._staying(self.graph.model, set(gone))
        return next((call.op.name for call in gone if not staying.isdisjoint(map(id, _weights(call.op)))), None)

    def _staying(self, model: keras.Model, gone: set[Call]) -> set[int]:
        """Ids of the weights of a model that calls other than those in `gone` have."""
        ids: set[int] = set()
        for call in self._flows[id(model)].graph.calls:
            if call not in gone:
                nested = isinstance(call.op, keras.Model)
                ids |= self._staying(call.op, gone) if nested else set(map(id, _weights(call.op)))
        return ids


@dataclass(frozen=True, eq=False)
class _Place:
    """A layer, op or nested model at a path."""

    path: str
    op: keras.Operation
    flow: Flow

    @property
    def calls(self) -> list[Call]:
        return self.flow.graph.calls_of(self.op)


def _kind(op: keras.Operation) -> str:
    return RESIDUAL if is_addition(op) else MODEL if isinstance(op, keras.Model) else LAYER


def _kernels(op: keras.Operation) -> list[keras.Variable]:
    return [*prunable_weights(op).values()] if isinstance(op, keras.layers.Layer) else []


def _weights(op: keras.Operation) -> list[keras.Variable]:
    return op.weights if isinstance(op, keras.layers.Layer) else []


def _spelled(tensor: Any) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape[1:])}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")
