"""Pruning of whole blocks: the least important residual blocks, layers and nested models are bypassed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfopt.core.checks import Range, as_number
from tfopt.core.data.batches import input_batches
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, NothingToDoError
from tfopt.core.models.blocks import Block, Blocks
from tfopt.core.models.graph import Graph, as_patterns, check_finite, compute, is_selected
from tfopt.core.types import Data, Names
from tfopt.pruning.arguments import Scoring
from tfopt.pruning.budget import Budget
from tfopt.pruning.criteria import Criterion, as_criterion
from tfopt.pruning.scoring import score_kernels

BLOCK_INFLUENCE = "block_influence"


def prune_layers(
    graph: Graph,
    *,
    sparsity: float | None = None,
    budget: Budget | None = None,
    criterion: str | Callable | Criterion = "magnitude",
    include: Names = None,
    exclude: Names = None,
    scoring: Scoring | None = None,
) -> Graph:
    """Returns the graph of a copy of a model without its least important blocks; fine-tune it then.

    The candidates are the smallest blocks with kernels that give a tensor like the one they read:

    - residual blocks: an addition of a branch and of the branch's own input. The branch goes, the skip stays;
    - layers whose output has the shape of their input, with the normalization, activation and dropout that follow
      them, outside of the branches of additions and products, and not where they give the output of the model;
    - nested models with one input and one output of the same shape, if there is no candidate inside.

    A block's score is the mean of the scores of the weights of its kernels, so that blocks of many weights are no more
    important for that. Blocks of the lowest scores go first, of equal ones the first in the model. Magnitudes are
    smaller in wider layers from the start; `"block_influence"` compares blocks of different width by what they do.

    Args:
        graph: of the model.
        sparsity: fraction of the candidates to drop, in (0, 1], rounded to whole blocks, at least one; 0.5 unless
            there is a budget.
        budget: instead, drop blocks until this is kept.
        criterion: one of those of `prune`, or `"block_influence"`: 1 - the mean cosine similarity of what a block
            reads and what it gives, over the vectors along the last axis (Men et al. 2024).
        include: layer names or globs; a block of which one fits may go. All by default.
        exclude: layer names or globs; a block of which one fits stays.
        scoring: the data for `"block_influence"`, or what the criterion of `prune` needs; with `verbose`, the dropped
            blocks are printed.

    Returns:
        That of a new, uncompiled, smaller model with the weights, weight constraints and names of the layers that stay.

    Raises:
        InvalidArgumentError: a fraction out of range or out of reach, an unknown layer name or criterion, no data
            where the criterion needs some.
        NothingToDoError: no block can be dropped.
        NonFiniteError: NaN or infinity in weights or data.

    Source: block influence of Men et al. 2024, https://arxiv.org/abs/2403.03853.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> init = keras.initializers.Constant
        >>> dense = [keras.layers.Dense(8, kernel_initializer=init(c), name=f"d{c}") for c in (3, 1, 2)]
        >>> model = keras.Sequential([keras.Input((8,)), *dense, keras.layers.Dense(4, name="head")])
        >>> [layer.name for layer in prune_layers(read(model), sparsity=0.3).model.layers]
        ['d3', 'd2', 'head']
    """
    blocks = Blocks(graph)
    scoring = {} if scoring is None else scoring
    _check_sparsity(sparsity, budget)
    candidates = _selected(blocks, as_patterns(include, "include"), as_patterns(exclude, "exclude"))
    check_finite(graph)
    if criterion == BLOCK_INFLUENCE:
        scores = _influences(graph, candidates, scoring.get("data"))
    else:
        scores = _kernel_scores(graph, candidates, as_criterion(criterion), scoring)
    ranked = [candidates[i] for i in np.argsort(scores, kind="stable")]
    dropped = ranked[: _count(blocks, ranked, sparsity, budget)]
    pruned = blocks.without(dropped)
    if scoring.get("verbose"):
        _print(dropped, dict(zip(candidates, scores, strict=True)))
    return pruned


def _check_sparsity(sparsity: Any, budget: Budget | None) -> None:
    if sparsity is None:
        return
    if budget is not None:
        raise InvalidArgumentError(
            "`sparsity`, `to_macs` and `to_params` exclude each other: each says how many blocks go.",
            received=f"sparsity={sparsity!r}, to_{budget.kind}={budget.fraction!r}",
            fix="Pass one of them.",
        )
    what = "the fraction of the blocks to drop, above 0 and at most 1"
    as_number("sparsity", sparsity, Range(above=0, most=1), what=what)


def _selected(blocks: Blocks, included: list[str], excluded: list[str]) -> list[Block]:
    blocks.find(included, "include")
    blocks.find(excluded, "exclude")
    if not blocks.candidates:
        raise NothingToDoError(
            "The model has to have a block that can be dropped: a residual block with an identity skip, or a layer or "
            "nested model with kernels whose output has the shape of its input.",
            received=f"'{blocks.graph.model.name}' with none. {_reasons(blocks)}",
            fix="`tfopt.drop_layers` drops layers by name. `tfopt.scale_width` makes layers narrower.",
        )
    selected = [
        block
        for block in blocks.candidates
        if any(is_selected(path, included, []) for path in block.paths)
        and all(is_selected(path, [], excluded) for path in block.paths)
    ]
    if not selected:
        raise NothingToDoError(
            "`include` and `exclude` have to leave a block that can be dropped.",
            received=f"include={included}, exclude={excluded}",
            fix=f"There are: {', '.join(block.name for block in blocks.candidates)}.",
        )
    return selected


def _reasons(blocks: Blocks) -> str:
    """Why there is no candidate of each kind, with an example for each reason."""
    lines = []
    for kind, reasons in blocks.refused.items():
        paths = defaultdict(list)
        for path, reason in reasons.items():
            paths[reason].append(path)
        examples = [
            f"'{found[0]}': {why}" + f" (and {len(found) - 1} more)" * (len(found) > 1) for why, found in paths.items()
        ]
        lines.append(f"{kind}: {'; '.join(examples[:3]) or 'there is none'}")
    return "; ".join(lines)


def _kernel_scores(graph: Graph, candidates: list[Block], criterion: Criterion, scoring: Scoring) -> list[float]:
    kernels = {id(kernel): kernel for block in candidates for kernel in block.kernels}
    scores = score_kernels(graph, [*kernels.values()], criterion, **scoring)
    sums = [sum(scores[id(kernel)].sum(dtype="float64") for kernel in block.kernels) for block in candidates]
    sizes = [sum(scores[id(kernel)].size for kernel in block.kernels) for block in candidates]
    return [float(total / size) for total, size in zip(sums, sizes, strict=True)]


def _influences(graph: Graph, candidates: list[Block], data: Data) -> list[float]:
    """Block influence of each candidate."""
    if data is None:
        raise InvalidArgumentError(
            f"The criterion '{BLOCK_INFLUENCE}' is measured on data.", received="data=None", fix="Pass `data=x`."
        )
    totals = np.zeros(len(candidates))
    counts = np.zeros(len(candidates))

    def visit(values: dict[int, Any]) -> None:
        for i, block in enumerate(candidates):
            for source, target in block.passes:
                if id(target) in values:
                    cosines = _cosines(values[id(source)], values[id(target)])
                    totals[i] += cosines.sum()
                    counts[i] += cosines.size

    for batch in input_batches(graph.model, data):
        compute(graph, batch, visit)
    if not np.isfinite(totals).all():
        raise NonFiniteError(
            "What the blocks of the model compute has to be finite.",
            received=f"NaN or infinity at '{candidates[int(np.argmin(np.isfinite(totals)))].name}'",
        )
    return [*(1 - totals / counts)]


def _cosines(first: Any, second: Any) -> np.ndarray:
    """Cosine similarity of the vectors along the last axis; 1 for two of length 0, 0 if one of them has it.

    Example:
        >>> _cosines(np.array([[3.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]))
        array([0.6, 1. , 0. ])
    """
    first, second = (keras.ops.convert_to_numpy(values).astype("float64") for values in (first, second))
    lengths = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    product = lengths[0] * lengths[1]
    alike = np.where(lengths[0] == lengths[1], 1.0, 0.0)
    return np.where(product > 0, (first * second).sum(-1) / np.where(product > 0, product, 1), alike)


def _count(blocks: Blocks, ranked: list[Block], sparsity: float | None, budget: Budget | None) -> int:
    """How many of the ranked blocks go."""
    if budget is None:
        return max(1, math.floor(len(ranked) * (0.5 if sparsity is None else sparsity) + 0.5))
    if budget.kind == "params":
        return _count_to(budget, [block.parameters for block in ranked], blocks.graph.model.count_params())
    unknown = [path for path, macs in blocks.macs.items() if macs is None]
    if unknown:
        raise InvalidArgumentError(
            "`to_macs` needs the multiply-accumulates of each layer.",
            received=f"no count for {', '.join(unknown[:5])}",
            fix="Give `keras.Input` a full shape, or use `to_params`.",
        )
    return _count_to(budget, [block.macs for block in ranked], sum(filter(None, blocks.macs.values())))


def _count_to(budget: Budget, savings: list, total: int) -> int:
    left = total - np.cumsum(savings)
    enough = np.flatnonzero(left <= budget.fraction * total)
    if not enough.size:
        least = math.ceil(left[-1] / total * 1e4) / 1e4
        raise InvalidArgumentError(
            f"`to_{budget.kind}` has to be reachable by dropping blocks.",
            received=f"{budget.fraction}; {least} is left without all {len(savings)} blocks that can be dropped",
            fix=f"Ask for {least} or more, or make the layers narrower as well.",
        )
    return int(enough[0]) + 1


def _print(dropped: list[Block], scores: dict[Block, float]) -> None:
    print(f"Dropped {len(dropped)} of {len(scores)} blocks:")
    for block in dropped:
        macs = "unknown" if block.macs is None else f"{block.macs:,}"
        print(f"  {block.name} ({block.kind}): score {scores[block]:.4g}, {block.parameters:,} parameters, {macs} MACs")
