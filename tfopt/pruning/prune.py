"""The verb `prune`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.errors import InvalidArgumentError, NonFiniteError, NothingToDoError, first_line
from tfopt.core.models import constraints
from tfopt.core.models.graph import as_patterns, check_finite, check_model, check_patterns, walk_layers
from tfopt.core.models.opening import opened
from tfopt.core.models.rewrite import rewrite
from tfopt.core.models.selection import select_kernels
from tfopt.core.types import Schedule
from tfopt.interop import tfmot
from tfopt.pruning.arguments import KEEP, amount_of, as_min_kept, check_arguments, check_structure, check_whole_layers
from tfopt.pruning.budget import as_budget
from tfopt.pruning.channels import ChannelOptions, prune_channels
from tfopt.pruning.criteria import MAGNITUDE, Criterion, as_criterion
from tfopt.pruning.depth import prune_layers
from tfopt.pruning.masks import PruningMask, WeightPool
from tfopt.pruning.patterns import Block, Element, Pattern, ZerosInGroups, as_pattern
from tfopt.pruning.ranking import Rule
from tfopt.pruning.schedules import evaluate
from tfopt.pruning.scoring import score_kernels


def prune(
    model: keras.Model,
    schedule: Schedule | None = None,
    *,
    sparsity: float | Mapping[str, float] | str | None = None,
    threshold: float | Mapping[str, float] | None = None,
    criterion: str | Callable | Criterion = "magnitude",
    pattern: str | tuple[int, int] | Pattern = "element",
    scope: str = "layer",
    min_kept: float = 0.0,
    round_to: int = 1,
    to_macs: float | None = None,
    to_params: float | None = None,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
    data: Any = None,
    loss: str | Callable | None = None,
    seed: int = 0,
    verbose: int = 0,
) -> keras.Model:
    """Returns a copy of `model` whose kernels are masked; compile it and go on with `fit` as usual.

    The masks are weight constraints: every optimizer applies them after each update, with any compile option. No
    wrapper and no callback is needed, and the saved `.keras` file is plain Keras. Each kernel is pruned on its own
    (or all together, see `scope`) and ends with exactly `round(size * sparsity)` zeros, ties included.

    Args:
        model: a built Sequential or Functional model (a tf_keras model is handed to TFMOT's `prune_low_magnitude`).
        schedule: called with the optimizer's step (0 is before the first update), gives `(prune_now, sparsity)`:
            `tfopt.PolynomialDecay`, `tfopt.ConstantSparsity` (TFMOT's own) or any callable like them. Pruning then
            happens during `fit`. Without one the mask is applied at once and held in any later `fit`.
        sparsity: fraction of zeros in each kernel, in (0, 1), by default 0.5; or a dict from layer names or globs to
            fractions, which prunes these layers only; or `"keep"`, which holds the zeros that are there (of a pruned
            model loaded from disk) in further training. Not together with a schedule.
        threshold: instead of a sparsity: weights (blocks) whose score is below become zero; at least one of each
            kernel stays. A number of at least 0, or a dict as for `sparsity`.
        criterion: the scores; the lowest go first. `"magnitude"`, `"gradient"`, `"taylor"`, `"random"`, `"entropy"`,
            `"neuron"`, `"bn_scale"`, `"wanda"`, or a function from a weight tensor to scores of its shape. What the
            weights alone do not tell is scored once, now, and these scores stay while a mask grows. Weights that are
            zero already go before all others.
        pattern: what goes together. `"element"`: single weights. `(m, n)` or `"m:n"`: m zeros in each n consecutive
            weights along the input axis, as TFMOT's `sparsity_m_by_n`; `(2, 4)` is the 2:4 sparsity of the field. It
            fixes the sparsity; a schedule then only says when. `"4x1"` or `tfopt.Block(4, 1)`: blocks of 4 rows and
            1 column of the kernel's matrix; `sparsity` counts blocks. `"channel"`: filters, neurons, recurrent units,
            attention heads, masked through every layer that they are tied to; `tfopt.shrink` then takes them out.
            `"layer"`: whole residual blocks and repeated layers, gone at once.
        scope: `"layer"`, or `"global"`: all kernels are ranked together, and the sparsity is exact over all of them.
            Magnitudes are compared as they are; scores of a criterion that differs in scale from layer to layer are
            divided by the mean of their kernel first; those of channels always by the mean of their group.
        min_kept: fraction of each kernel, in [0, 1), that stays whatever its scores; it comes before the sparsity. At
            least one weight (block) always stays.
        round_to: for `"channel"`, the channels left in a layer are a multiple of this, rounded up; 8 suits most
            hardware.
        to_macs: for `"channel"` and `"layer"`, instead of a sparsity: prune until at most this fraction of the model's
            multiply-accumulates is left once it is shrunk.
        to_params: the same for parameters.
        include: layer names or globs to prune; all by default. Nested layers by path, as `"encoder/conv1"`.
        exclude: layer names or globs to leave alone.
        data: samples for a criterion that needs them: `(x, y)`, or x alone where no labels are needed.
        loss: for a criterion that needs gradients; by default the loss that `model` was compiled with.
        seed: of a criterion that draws at random.
        verbose: 1 shows progress over the data.

    Returns:
        A new, uncompiled model with the same layer names; the input model is not changed. Depthwise kernels and
        biases are not pruned (as in TFMOT's `prune_registry.py`), but with their channels. For `"channel"`, nested
        models of the same name stand in the place of layers made of Keras layers, as those of `tfopt.fusion`.

    Raises:
        InvalidArgumentError: an argument out of range or in contradiction to another, unknown layer name, schedule
            that cannot be called.
        UnsupportedModelError: a subclassed or unbuilt model.
        NonFiniteError: NaN or infinity in the weights or scores.
        NothingToDoError: no layer to prune, no weight below the threshold, or `"keep"` on a model without zeros.

    Source: Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878; TFMOT `sparsity/keras/pruning_impl.py`.

    Example:
        >>> import tfopt
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        >>> pruned = prune(model, sparsity=0.75)
        >>> [int((layer.kernel.numpy() == 0).sum()) for layer in pruned.layers]
        [24, 3]
        >>> half = prune(model, pattern="2:4")
        >>> [int((layer.kernel.numpy() == 0).sum()) for layer in half.layers]
        [16, 2]
        >>> [layer.units for layer in tfopt.shrink(prune(model, pattern="channel")).layers]
        [2, 1]
    """
    budget = as_budget(to_macs, to_params)
    scoring: dict[str, Any] = {"data": data, "loss": loss, "seed": seed, "verbose": verbose}
    if pattern == "layer":
        return prune_layers(
            model,
            sparsity=check_whole_layers(sparsity, schedule, threshold, scope, min_kept, round_to),
            to_macs=to_macs,
            to_params=to_params,
            criterion=criterion,
            include=include,
            exclude=exclude,
            **scoring,
        )
    by_channel, min_kept = pattern == "channel", as_min_kept(min_kept)
    rule = Rule(schedule, Element() if by_channel else as_pattern(pattern), as_criterion(criterion), min_kept)
    check_arguments(rule, scope, sparsity, threshold, budget)
    round_to = check_structure(by_channel, round_to, budget)
    if tfmot.is_tf_keras_model(model):
        return _by_tfmot(model, rule, scope, by_channel, sparsity, threshold, include, exclude)
    model = opened(check_model(model)) if by_channel else check_model(model)
    amount = amount_of(rule, sparsity, threshold)
    included, excluded = as_patterns(include, "include"), as_patterns(exclude, "exclude")
    check_patterns(model, included, "include")
    check_patterns(model, excluded, "exclude")
    if isinstance(amount, Mapping):
        check_patterns(model, list(amount), "sparsity" if threshold is None else "threshold")
    check_finite(model)
    if by_channel:
        options = ChannelOptions(rule, scope, round_to, included, excluded, scoring)
        return prune_channels(model, options, amount=amount, is_threshold=threshold is not None, budget=budget)

    targets = _targets(model, included, excluded, amount)
    scores = _scores(model, [kernel for kernel, _ in targets], rule, scoring)
    pruned = rewrite(model)
    pools = _pools(targets, rule, scope, scores, dict(zip(map(id, model.variables), pruned.variables, strict=True)))
    for pool, own in pools:
        _start(pool, own, is_threshold=threshold is not None)
    if schedule is None:
        _settle(pruned, [mask for pool, _ in pools for mask in pool.members], rule.pattern)
    return pruned


def _scores(model, kernels, rule: Rule, scoring: Mapping[str, Any]) -> dict[int, np.ndarray]:
    """The scores taken once, by the kernel's id; none where they follow from the weights at any time."""
    if rule.criterion is MAGNITUDE:
        return {}
    if rule.criterion.needs or rule.schedule is None:
        return score_kernels(model, kernels, rule.criterion, **scoring)
    for kernel in kernels:
        _check_in_graph(rule.criterion, kernel)
    return {}


def _check_in_graph(criterion: Criterion, kernel: keras.Variable) -> None:
    """Raises unless the criterion scores the kernel's weights inside a compiled training step."""
    try:
        scores = tf.function(criterion.score, autograph=False)(tf.constant(kernel.numpy()))
        shape = tuple(scores.shape)
    except (TypeError, ValueError, NotImplementedError, AttributeError, tf.errors.OpError) as error:
        raise InvalidArgumentError(
            "With a schedule, a criterion is a function of a weight tensor that runs inside a compiled training step.",
            received=f"{type(error).__name__}: {first_line(error)}",
            fix="Write it with TensorFlow or `keras.ops` operations.",
        ) from error
    if shape != tuple(kernel.shape):
        raise InvalidArgumentError(
            "A criterion gives a score for each weight.",
            received=f"shape {shape} for '{kernel.path}' of shape {tuple(kernel.shape)}",
        )
    if not np.isfinite(scores).all():
        raise NonFiniteError(
            "The scores of a criterion have to be finite.",
            received=f"NaN or infinity from '{criterion.name}' for '{kernel.path}'",
        )


def _pools(targets, rule: Rule, scope: str, scores: dict[int, np.ndarray], twins) -> list[tuple[WeightPool, Any]]:
    """Masks attached to the kernels' `twins`, in pools of what is ranked together, each with the amount wanted."""
    shared = WeightPool(rule)
    pools: list[tuple[WeightPool, Any]] = []
    for kernel, amount in targets:
        pool = shared if scope == "global" else WeightPool(rule)
        constraints.attach(twins[id(kernel)], PruningMask(pool, scores=scores.get(id(kernel))))
        if not pools or pool is not shared:
            pools.append((pool, amount))
    return pools


def _start(pool: WeightPool, amount, *, is_threshold: bool) -> None:
    """Prunes before training: to the wanted amount, or to what the schedule asks for at step 0."""
    if pool.rule.schedule is not None:
        _start_schedule(pool, pool.rule.schedule)
    elif is_threshold:
        pool.prune_below(amount)
    elif amount == KEEP:
        for mask in pool.members:
            mask.hold(mask.variable.numpy() != 0)
    else:
        pool.prune(amount)


def _start_schedule(pool: WeightPool, schedule: Schedule) -> None:
    """Prunes to what the schedule asks for at step 0."""
    due, sparsity = evaluate(schedule, tf.constant(0, tf.int64))
    if due:
        pool.prune(sparsity)


def _targets(model, included, excluded, amount) -> list[tuple[keras.Variable, Any]]:
    """The kernels to prune, each once, with the amount wanted for it."""
    chosen, unknown = select_kernels(model, included, excluded, amount)
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


def _received(model, amount) -> str:
    names = sorted({type(layer).__name__ for _, layer in walk_layers(model)})
    zeros = " without a zero in its kernels" if amount == KEEP else ""
    return f"'{model.name}'{zeros}, with layers of type {', '.join(names)}"


def _warn(targets, unknown: list[str]) -> None:
    frozen = [weight.path for weight, _ in targets if not weight.trainable]
    if unknown:
        warnings.warn(
            "Not pruned, as tfopt does not know these layer classes: " + ", ".join(unknown) + ". "
            "Name their kernels with `@tfopt.register_layer(prunable=...)`.",
            stacklevel=4,
        )
    if frozen:
        warnings.warn(
            "Pruned, but frozen (`trainable=False`): " + ", ".join(frozen) + ". A mask is applied at once, but a "
            "schedule only reaches weights that the optimizer updates.",
            stacklevel=4,
        )


def _settle(model, masks: list[PruningMask], pattern: Pattern) -> None:
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
    if dense and isinstance(pattern, ZerosInGroups):
        warnings.warn(
            f"Left dense, as {pattern.zeros}:{pattern.size} takes more weights along the input axis: "
            + ", ".join(dense)
            + ".",
            stacklevel=3,
        )


def _by_tfmot(model, rule: Rule, scope: str, by_channel: bool, sparsity, threshold, include, exclude):
    """TFMOT's pruning of a tf_keras model."""
    if by_channel or scope != "layer" or threshold is not None or not rule.by_magnitude or rule.min_kept:
        raise InvalidArgumentError(
            "TFMOT prunes the kernels of a tf_keras model one by one, by magnitude and to a sparsity.",
            received=f"scope='{scope}', threshold={threshold!r}, criterion='{rule.criterion.name}', "
            f"min_kept={rule.min_kept}" + (", pattern='channel'" if by_channel else ""),
            fix="Port the model to Keras 3, where tfopt does the work itself.",
        )
    options: dict[str, Any] = {}
    if isinstance(rule.pattern, ZerosInGroups):
        options["sparsity_m_by_n"] = (rule.pattern.zeros, rule.pattern.size)
    elif isinstance(rule.pattern, Block):
        options["block_size"] = (rule.pattern.height, rule.pattern.width)
        options["block_pooling_type"] = {"average": "AVG", "max": "MAX"}[rule.pattern.pooling]
    wanted = amount_of(rule, sparsity, None)
    return tfmot.prune(model, rule.schedule, sparsity=wanted, include=include, exclude=exclude, options=options)
