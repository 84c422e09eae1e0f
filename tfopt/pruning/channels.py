"""Structured pruning: whole channels (filters, neurons, heads) masked through all layers that they are tied to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from tfopt.core.models.graph import is_selected, matches
from tfopt.core.models.rewrite import rewrite
from tfopt.pruning.budget import Budget, sparsity_within
from tfopt.pruning.channel_masks import ChannelMask, ChannelPool, Ranking
from tfopt.pruning.criteria import Criterion
from tfopt.pruning.schedules import Schedule, evaluate
from tfopt.pruning.scoring import score_kernels

KEEP = "keep"
FILL_TRIES = 16


@dataclass(frozen=True)
class ChannelOptions:
    """What `prune(..., pattern="channel")` was asked for; see `prune`."""

    criterion: Criterion
    scope: str = "layer"
    min_kept: float = 0.0
    round_to: int = 1
    included: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    scoring: Mapping[str, Any] = field(default_factory=dict)


def prune_channels(
    model: keras.Model,
    schedule: Schedule | None,
    options: ChannelOptions,
    *,
    amount: float | Mapping[str, float] | str | None = None,
    is_threshold: bool = False,
    budget: Budget | None = None,
) -> keras.Model:
    """A copy of a checked `model` whose least important channels are masked; `shrink` takes them out.

    Args:
        amount: sparsity, threshold, `"keep"`, or a dict of one of the first two; None with a schedule or a budget.
    """
    graph = ChannelGraph(model)
    chosen = _chosen(model, graph, options, amount)
    groups = [graph.groups[index] for index in chosen]
    _warn_kept(graph)
    ranking = _ranking(groups, options)
    dynamic = options.criterion.name == "magnitude" or amount == KEEP
    fixed = None if dynamic else np.concatenate(channel_scores(model, groups, options.criterion, options.scoring))
    normalized = options.scope == "global"  # the sums over groups differ with the sizes of their weights
    pool = ChannelPool(ranking, schedule, fixed, normalized)
    pruned = rewrite(model)
    _attach(pool, ChannelGraph(pruned), chosen, _kernels(pruned))
    mask = _first_mask(pool, model, graph, groups, list(chosen.values()), is_threshold, budget)
    pool.hold(mask)
    return pruned


def _chosen(model, graph: ChannelGraph, options: ChannelOptions, amount) -> dict[int, Any]:
    """Index of each group to prune -> the amount wanted for it."""
    chosen = {}
    for index, group in enumerate(graph.groups):
        selected = all(is_selected(path, options.included, options.excluded) for path in group.paths)
        own = amount_for(group, amount)
        if selected and group.paths and len(group.channels) > 1 and own is not None:
            chosen[index] = own
    if not chosen:
        raise NothingToDoError(
            "The model has to have a layer whose output channels can go.",
            received=f"'{model.name}': " + (kept_whole(graph) or "its layers give its outputs"),
            fix="Check `include` and `exclude`; layers of your own join with `@tfopt.register_layer(channels=...)`.",
        )
    return chosen


def amount_for(group: Group, amount):
    """The amount for a group; of a dict the last entry that fits one of its layers, None if none does."""
    if not isinstance(amount, Mapping):
        return 0.5 if amount is None else amount
    named = [value for pattern, value in amount.items() if any(matches(path, [pattern]) for path in group.paths)]
    return named[-1] if named else None


def kept_whole(graph: ChannelGraph) -> str:
    """The layers that keep all their channels, each with the reason; those tied to an input or output left out."""
    kept = graph.kept_layers().items()
    return "; ".join(f"'{path}' ({reason})" for path, reason in kept if reason not in (INPUT_STAYS, OUTPUT_STAYS))


def _warn_kept(graph: ChannelGraph) -> None:
    kept = kept_whole(graph)
    if kept:
        warnings.warn(f"Layers that keep all their channels: {kept}.", stacklevel=5)


def _ranking(groups: Sequence[Group], options: ChannelOptions) -> Ranking:
    return Ranking(
        tuple(len(group.channels) for group in groups),
        tuple(_step(group, options.round_to) for group in groups),
        tuple(_covers(group) for group in groups),
        options.scope,
        options.min_kept,
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
    """The parts of the group that one axis of a weight has alone: it must not lose all its channels."""
    covers = set()
    for slot in group.slots:
        own = np.isin(group.channels, slot.labels)
        if not own.all() and np.isin(slot.labels, group.channels).all():
            covers.add(tuple(np.flatnonzero(own).tolist()))
    return tuple(sorted(covers))


def _attach(pool: ChannelPool, graph: ChannelGraph, chosen, kernels: set[int]) -> None:
    """Puts the pool's constraint on every weight of the chosen groups."""
    channels = np.concatenate([graph.groups[index].channels for index in chosen])
    place = np.full(1 + max(int(slot.labels.max()) for slot in graph.slots), len(channels))
    place[channels] = np.arange(len(channels))
    cuts: dict[int, tuple[keras.Variable, list]] = {}
    for slot in graph.slots:
        positions = place[slot.labels]
        if slot.role != "statistic" and (positions < len(channels)).any():
            cuts.setdefault(id(slot.variable), (slot.variable, []))[1].append(
                (slot.axis, positions, id(slot.variable) in kernels)
            )
    for variable, own in cuts.values():
        constraints.attach(variable, ChannelMask(pool, tuple(own)))


def _first_mask(pool, model, graph, groups, amounts, is_threshold, budget) -> np.ndarray:
    """The mask before training: for budget, threshold or sparsity, or what the schedule asks for at step 0."""
    ranking = pool.ranking
    if amounts[0] == KEEP:
        return ~np.isin(np.concatenate([group.channels for group in groups]), graph.zero_channels())
    scores = pool.current_scores()
    if is_threshold:
        counts = [tf.reduce_sum(tf.cast(s >= t, tf.int32)) for s, t in zip(scores, amounts, strict=True)]
        return _joined(ranking.most(scores, counts, [tf.constant(size) for size in ranking.sizes]))
    if budget is not None:

        def size_left(masks: Sequence) -> int:
            return budget.measured(without_channels(model, graph, _removed(groups, _joined(masks))))

        limit = budget.limit(model)
        masks = ranking.masks(scores, sparsity_within(budget, limit, lambda s: size_left(ranking.masks(scores, s))))
        if ranking.scope == "global" and max(ranking.steps) > 1:
            masks = filled(masks, scores, ranking.steps, lambda trial: size_left(trial) <= limit)
        return _joined(masks)
    if pool.schedule is not None:
        due, sparsity = evaluate(pool.schedule, tf.constant(0, tf.int64))
        return _joined(ranking.masks(scores, sparsity)) if due else np.ones(pool.size, bool)
    return _joined(ranking.masks(scores, amounts[0] if ranking.scope == "global" else amounts))


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


def channel_scores(
    model: keras.Model, groups: Sequence[Group], criterion: Criterion, scoring: Mapping[str, Any]
) -> list[np.ndarray]:
    """The score of each channel of each group: the sum over all kernels that belong to it.

    Criteria of whole units (entropy, neuron importance) are read where the channel is created, averaged over its
    weights; Wanda's where it is read; the batch-normalization scale is the sum of |gamma| over the group; a random
    score is drawn for each channel.
    """
    if criterion.name == "random":
        generator = np.random.default_rng(scoring.get("seed", 0))
        return [generator.uniform(size=len(group.channels)) for group in groups]
    if criterion.name == "bn_scale":
        return [_scale_scores(group) for group in groups]
    roles = ("out",) if criterion.per_unit else ("in",) if criterion.name == "wanda" else ("out", "in", "each")
    slots = {(id(slot.variable), slot.axis): slot for group in groups for slot in group.slots if slot.role in roles}
    kernels = _kernels(model)
    slots = {key: slot for key, slot in slots.items() if id(slot.variable) in kernels}
    arrays = score_kernels(
        model, list({id(s.variable): s.variable for s in slots.values()}.values()), criterion, **scoring
    )
    count = 1 + max(int(group.channels.max()) for group in groups)
    totals = channel_sums(slots.values(), arrays, count, mean=criterion.per_unit)
    return [totals[group.channels] for group in groups]


def _kernels(model: keras.Model) -> set[int]:
    return {id(kernel) for kernel in ranked_kernels(model)}


def _scale_scores(group: Group) -> np.ndarray:
    gammas = [slot for slot in group.slots if slot.variable.name == "gamma" and slot.role == "each"]
    if not gammas:
        raise InvalidArgumentError(
            "criterion='bn_scale' needs a batch normalization with a scale behind each pruned layer.",
            received=f"none behind {', '.join(group.paths)}",
            fix="Leave these layers out with `exclude`, or take another criterion.",
        )
    scores = np.zeros(1 + max(int(slot.labels.max()) for slot in gammas))
    for slot in gammas:
        np.add.at(scores, slot.labels, np.abs(slot.variable.numpy()))
    return scores[group.channels]
