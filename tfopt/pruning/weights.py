"""Pruning of weights: single ones, groups or blocks of each kernel are masked."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.data.gathering import counterparts
from tfopt.core.errors import NothingToDoError
from tfopt.core.models import constraints
from tfopt.core.models.graph import walk_layers
from tfopt.core.models.rewrite import rewrite
from tfopt.core.models.selection import Selection, select_kernels
from tfopt.pruning.arguments import KEEP, Request, Scoring
from tfopt.pruning.criteria import MAGNITUDE
from tfopt.pruning.masks import PruningMask, WeightPool
from tfopt.pruning.patterns import Pattern
from tfopt.pruning.ranking import Rule
from tfopt.pruning.schedules import evaluate
from tfopt.pruning.scoring import check_in_graph, score_kernels

Target = tuple[keras.Variable, Any]  # a kernel and the amount wanted for it


def prune_weights(model: keras.Model, request: Request, selection: Selection) -> keras.Model:
    """A copy of a checked `model` whose least important weights are masked."""
    rule = request.rule
    targets = _targets(model, selection, request.amount)
    kernels = [kernel for kernel, _ in targets]
    scores = _scores(model, kernels, rule, request.scoring)
    pruned = rewrite(model)
    pools = _pools(targets, request, scores, counterparts(model, pruned, kernels))
    for pool, amount in pools:
        _start(pool, amount, request.is_threshold)
    if rule.schedule is None:
        _settle(pruned, [mask for pool, _ in pools for mask in pool.members], rule.pattern)
    return pruned


def _scores(model: keras.Model, kernels: list[keras.Variable], rule: Rule, scoring: Scoring) -> dict[int, np.ndarray]:
    """The scores taken once, by the kernel's id; none where they follow from the weights at any time."""
    if rule.criterion is MAGNITUDE:
        return {}
    if rule.criterion.needs or rule.schedule is None:
        return score_kernels(model, kernels, rule.criterion, **scoring)
    for kernel in kernels:
        check_in_graph(rule.criterion, kernel)
    return {}


def _pools(
    targets: list[Target], request: Request, scores: dict[int, np.ndarray], copies: list[keras.Variable]
) -> list[tuple[WeightPool, Any]]:
    """Masks attached to the kernels' copies, in pools of what is ranked together, each with the amount wanted."""
    shared = WeightPool(request.rule)
    pools: list[tuple[WeightPool, Any]] = []
    for (kernel, amount), copy in zip(targets, copies, strict=True):
        pool = shared if request.scope == "global" else WeightPool(request.rule)
        constraints.attach(copy, PruningMask(pool, scores=scores.get(id(kernel))))
        if not pools or pool is not shared:
            pools.append((pool, amount))
    return pools


def _start(pool: WeightPool, amount: Any, is_threshold: bool) -> None:
    """Prunes before training: to the wanted amount, or to what the schedule asks for at step 0."""
    if pool.schedule is not None:
        due, sparsity = evaluate(pool.schedule, tf.constant(0, tf.int64))
        if due:
            pool.prune(sparsity)
    elif is_threshold:
        pool.prune_below(amount)
    elif amount == KEEP:
        for mask in pool.members:
            mask.hold(mask.variable.numpy() != 0)
    else:
        pool.prune(amount)


def _targets(model: keras.Model, selection: Selection, amount: Any) -> list[Target]:
    """The kernels to prune, each once, with the amount wanted for it."""
    chosen, unknown = select_kernels(model, selection, amount)
    targets = [(kernel.variable, kernel.amount) for kernel in chosen]
    if amount == KEEP:
        targets = [target for target in targets if not np.all(target[0].numpy())]
    if not targets:
        raise NothingToDoError(
            "The model has to have a kernel to prune: convolution, dense, embedding, recurrent or attention layers.",
            received=_received(model, amount),
            fix="Check `include` and `exclude`; layers of your own join with `@tfopt.register_layer(prunable=...)`.",
        )
    _warn(targets, unknown)
    return targets


def _received(model: keras.Model, amount: Any) -> str:
    names = sorted({type(layer).__name__ for _, layer in walk_layers(model)})
    zeros = " without a zero in its kernels" if amount == KEEP else ""
    return f"'{model.name}'{zeros}, with layers of type {', '.join(names)}"


def _warn(targets: list[Target], unknown: list[str]) -> None:
    frozen = [weight.path for weight, _ in targets if not weight.trainable]
    if unknown:
        warnings.warn(
            "Not pruned, as tfopt does not know these layer classes: " + ", ".join(unknown) + ". "
            "Name their kernels with `@tfopt.register_layer(prunable=...)`.",
            stacklevel=5,
        )
    if frozen:
        warnings.warn(
            "Pruned, but frozen (`trainable=False`): " + ", ".join(frozen) + ". A mask is applied at once, but a "
            "schedule only reaches weights that the optimizer updates.",
            stacklevel=5,
        )


def _settle(model: keras.Model, masks: list[PruningMask], pattern: Pattern) -> None:
    """Ends a pruning at once: raises if all kernels stayed dense, warns if groups of n weights do not fit into some."""
    for mask in masks:
        mask.scores = None  # a mask that is held is never ranked by them again
    dense = [mask.variable.path for mask in masks if np.all(mask.mask.numpy())]
    if len(dense) == len(masks):
        raise NothingToDoError(
            "At least one weight has to become zero.",
            received=f"'{model.name}', no weight below the threshold or kernels too small for sparsity and pattern",
            fix="Pass a higher `sparsity` or `threshold`.",
        )
    if dense and pattern.fixed_sparsity is not None:
        warnings.warn(
            f"Left dense, as {pattern} takes more weights along the input axis: " + ", ".join(dense) + ".",
            stacklevel=4,
        )
