"""Structured pruning: whole channels (filters, neurons, heads) masked through all layers that they are tied to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.channels.graph import INPUT_STAYS, OUTPUT_STAYS, ChannelGraph
from tfopt.core.channels.scores import channel_sums, ranked_kernels
from tfopt.core.channels.slicing import without_channels
from tfopt.core.errors import InvalidArgumentError, NothingToDoError
from tfopt.core.layers.channels import Group
from tfopt.core.models import constraints
from tfopt.core.models.graph import Graph, matches
from tfopt.core.models.rewrite import rewrite
from tfopt.core.models.selection import Selection
from tfopt.pruning.arguments import KEEP, Request, Scoring
from tfopt.pruning.budget import Budget, sparsity_within
from tfopt.pruning.channel_masks import ChannelMask, ChannelPool, Cut
from tfopt.pruning.criteria import MAGNITUDE, Criterion
from tfopt.pruning.ranking import Ranking
from tfopt.pruning.schedules import evaluate
from tfopt.pruning.scoring import check_in_graph, check_scoring, score_kernels

FILL_TRIES = 16


def prune_channels(graph: Graph, request: Request, selection: Selection) -> Graph:
    """The graph of a copy of the model whose least important channels are masked; `shrink` takes them out."""
    channels, rule, amount = ChannelGraph(graph), request.rule, request.amount
    chosen = _chosen(channels, selection, amount)
    groups = [channels.groups[index] for index in chosen]
    _warn_kept(channels)
    fixed = None if amount == KEEP else _fixed_scores(graph, groups, rule.criterion, request.scoring)
    pool = ChannelPool(rule, _ranking(groups, request), fixed)
    pruned = rewrite(graph)
    _attach(pool, ChannelGraph(pruned), list(chosen), _kernels(pruned))
    if request.budget is not None:
        mask = _mask_within(request.budget, pool, channels, groups)
    elif amount == KEEP:
        mask = ~np.isin(np.concatenate([group.channels for group in groups]), channels.zero_channels())
    else:
        mask = _first_mask(pool, list(chosen.values()), request.is_threshold)
    pool.hold(mask)
    return pruned


def _chosen(channels: ChannelGraph, selection: Selection, amount: Any) -> dict[int, Any]:
    """Index of each group to prune -> the amount wanted for it."""
    chosen = {}
    for index, group in enumerate(channels.groups):
        selected = all(path in selection for path in group.paths)
        own = amount_for(group, amount)
        if selected and group.paths and len(group.channels) > 1 and own is not None:
            chosen[index] = own
    if not chosen:
        raise NothingToDoError(
            "The model has to have a layer whose output channels can go.",
            received=f"'{channels.graph.model.name}': " + (kept_whole(channels) or "its layers give its outputs"),
            fix="Check `include` and `exclude`; layers of your own join with `@tfopt.register_layer(channels=...)`.",
        )
    return chosen


def amount_for(group: Group, amount: Any) -> Any:
    """The amount for a group; of a dict the last entry that fits one of its layers, None if none does."""
    if not isinstance(amount, Mapping):
        return 0.5 if amount is None else amount
    named = [value for pattern, value in amount.items() if any(matches(path, [pattern]) for path in group.paths)]
    return named[-1] if named else None


def kept_whole(channels: ChannelGraph) -> str:
    """The layers that keep all their channels, each with the reason; those tied to an input or output left out."""
    kept = channels.kept_layers().items()
    return "; ".join(f"'{path}' ({reason})" for path, reason in kept if reason not in (INPUT_STAYS, OUTPUT_STAYS))


def _warn_kept(channels: ChannelGraph) -> None:
    kept = kept_whole(channels)
    if kept:
        warnings.warn(f"Layers that keep all their channels: {kept}.", stacklevel=4)


def _ranking(groups: Sequence[Group], request: Request) -> Ranking:
    return Ranking(
        tuple(len(group.channels) for group in groups),
        tuple(_step(group, request.round_to) for group in groups),
        tuple(_covers(group) for group in groups),
        request.scope,
        request.rule.min_kept,
    )


def _step(group: Group, round_to: int) -> int:
    """By how many channels the group changes so that the widths of its layers stay multiples of `round_to`."""
    steps = []
    for slot in group.slots:
        own = slot.labels[np.isin(slot.labels, group.channels)]
        if slot.role == "out" and len(own):
            slices = len(own) // len(np.unique(own))  # of the layer's width that one channel takes
            steps.append(round_to // math.gcd(round_to, slices))
    return math.lcm(*steps)


def _covers(group: Group) -> tuple[tuple[int, ...], ...]:
    """The parts of the group that one axis of a weight, or a slice, has alone: it must not lose all its channels."""
    covers = set()
    for labels in [*(slot.labels for slot in group.slots), *group.parts]:
        own = np.isin(group.channels, labels)
        if not own.all() and np.isin(labels, group.channels).all():
            covers.add(tuple(np.flatnonzero(own).tolist()))
    return tuple(sorted(covers))


def _attach(pool: ChannelPool, graph: ChannelGraph, chosen: list[int], kernels: set[int]) -> None:
    """Puts the pool's constraint on every weight of the chosen groups."""
    channels = np.concatenate([graph.groups[index].channels for index in chosen])
    place = np.full(1 + max(int(slot.labels.max()) for slot in graph.slots), len(channels))
    place[channels] = np.arange(len(channels))
    cuts: dict[int, tuple[keras.Variable, list[Cut]]] = {}
    for slot in graph.slots:
        positions = place[slot.labels]
        if slot.role != "statistic" and (positions < len(channels)).any():
            cut = Cut(slot.axis, positions, slot.role, id(slot.variable) in kernels)
            cuts.setdefault(id(slot.variable), (slot.variable, []))[1].append(cut)
    for variable, own in cuts.values():
        constraints.attach(variable, ChannelMask(pool, tuple(own)))


def _first_mask(pool: ChannelPool, amounts: list[Any], is_threshold: bool) -> np.ndarray:
    """The mask before training: for a threshold or sparsity, or what the schedule asks for at step 0."""
    ranking, scores = pool.ranking, pool.current_scores()
    if is_threshold:
        counts = [tf.reduce_sum(tf.cast(s >= t, tf.int32)) for s, t in zip(scores, amounts, strict=True)]
        return _joined(ranking.most(scores, counts, [tf.constant(size) for size in ranking.sizes]))
    if pool.schedule is not None:
        due, sparsity = evaluate(pool.schedule, tf.constant(0, tf.int64))
        return _joined(ranking.masks(scores, sparsity)) if due else np.ones(pool.size, bool)
    return _joined(ranking.masks(scores, amounts[0] if ranking.scope == "global" else amounts))


def _mask_within(budget: Budget, pool: ChannelPool, channels: ChannelGraph, groups: Sequence[Group]) -> np.ndarray:
    """The mask under which the shrunk model keeps to the budget."""
    ranking, scores, limit = pool.ranking, pool.current_scores(), budget.limit(channels.graph)

    def size_left(masks: Sequence) -> int:
        return budget.measured(without_channels(channels, _removed(groups, _joined(masks))))

    masks = ranking.masks(scores, sparsity_within(budget, limit, lambda s: size_left(ranking.masks(scores, s))))
    if ranking.scope == "global" and max(ranking.steps) > 1:
        masks = filled(masks, scores, ranking.steps, lambda trial: size_left(trial) <= limit)
    return _joined(masks)


def filled(
    masks: Sequence, scores: Sequence, steps: Sequence[int], fits: Callable[[list[np.ndarray]], bool]
) -> list[np.ndarray]:
    """The masks with channels given back, a step of a group at a time, those of the highest scores first.

    Widths that are rounded to multiples leave part of a budget unused; this takes up the rest.

    Args:
        masks, scores: of the channels of each group.
        steps: how many channels of a group come back together.
        fits: whether the masks given to it keep to the budget; asked `FILL_TRIES` times at most.

    Example:
        >>> masks, scores = [np.array([True, False, False])], [np.array([9.0, 1.0, 2.0])]
        >>> filled(masks, scores, [1], lambda trial: trial[0].sum() <= 2)[0].tolist()
        [True, False, True]
    """
    masks = [np.array(mask) for mask in masks]
    scores = [np.asarray(values) for values in scores]
    open_groups = {group for group, mask in enumerate(masks) if not mask.all()}
    for _ in range(FILL_TRIES):
        if not open_groups:
            break
        back = {
            group: sorted(np.flatnonzero(~masks[group]), key=lambda i: -scores[group][i])[: steps[group]]
            for group in open_groups
        }
        best = max(back, key=lambda group: scores[group][back[group]].sum())
        trial = [*masks[:best], masks[best].copy(), *masks[best + 1 :]]
        trial[best][back[best]] = True
        if fits(trial):
            masks = trial
        if masks is not trial or trial[best].all():
            open_groups.remove(best)
    return masks


def _joined(masks: Sequence) -> np.ndarray:
    return np.concatenate([np.asarray(mask) for mask in masks])


def _removed(groups: Sequence[Group], mask: np.ndarray) -> np.ndarray:
    return np.concatenate([group.channels for group in groups])[~mask]


def _fixed_scores(graph: Graph, groups: Sequence[Group], criterion: Criterion, scoring: Scoring) -> np.ndarray | None:
    """The scores of all channels, taken once; None where they follow the weights."""
    if criterion is MAGNITUDE:
        return None
    if criterion.dynamic:
        for kernel in ranked_kernels(graph):
            check_in_graph(criterion, kernel)
        return None
    return np.concatenate(channel_scores(graph, groups, criterion, scoring))


def channel_scores(graph: Graph, groups: Sequence[Group], criterion: Criterion, scoring: Scoring) -> list[np.ndarray]:
    """The score of each channel of each group: the sum over all kernels that belong to it.

    What counts beside that is up to the criterion: see `Criterion.per_unit`, `roles` and `of_channels`.
    """
    check_scoring(criterion, scoring.get("data"), scoring.get("seed", 0))
    if criterion.of_channels is not None:
        return _checked(criterion.of_channels(graph.model, groups, scoring.get("seed", 0)), groups, criterion)
    kernels = _kernels(graph)
    slots = {
        (id(slot.variable), slot.axis): slot
        for group in groups
        for slot in group.slots
        if slot.role in criterion.counted_roles and id(slot.variable) in kernels
    }
    scored = list({id(slot.variable): slot.variable for slot in slots.values()}.values())
    arrays = score_kernels(graph, scored, criterion, **scoring)
    count = 1 + max(int(group.channels.max()) for group in groups)
    totals = channel_sums(slots.values(), arrays, count, mean=criterion.per_unit)
    return [totals[group.channels] for group in groups]


def _checked(scores: Sequence, groups: Sequence[Group], criterion: Criterion) -> list[np.ndarray]:
    """What `Criterion.of_channels` gave, if it is a finite score for each channel."""
    arrays = [np.asarray(each) for each in scores]
    shapes = [(len(group.channels),) for group in groups]
    if [array.shape for array in arrays] != shapes or not all(np.isfinite(array).all() for array in arrays):
        raise InvalidArgumentError(
            f"`of_channels` of '{criterion.name}' must give a finite score for each channel of each group.",
            received=f"arrays of the shapes {[array.shape for array in arrays]} for {shapes}",
        )
    return arrays


def _kernels(graph: Graph) -> set[int]:
    return {id(kernel) for kernel in ranked_kernels(graph)}
