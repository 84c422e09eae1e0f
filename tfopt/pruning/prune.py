"""The verb `prune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfopt.core.checks import as_count
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.graph import check_finite, check_patterns, read
from tfopt.core.models.opening import opened
from tfopt.core.models.selection import checked_selection
from tfopt.core.types import Data, Loss, Names, Schedule
from tfopt.interop import tfmot
from tfopt.pruning.arguments import Request, Scoring, as_min_kept, check_request, check_whole_layers
from tfopt.pruning.budget import as_budget
from tfopt.pruning.channels import prune_channels
from tfopt.pruning.criteria import Criterion, as_criterion
from tfopt.pruning.depth import prune_layers
from tfopt.pruning.patterns import Block, Element, Pattern, ZerosInGroups, as_pattern
from tfopt.pruning.ranking import Rule
from tfopt.pruning.weights import prune_weights


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
    include: Names = None,
    exclude: Names = None,
    data: Data = None,
    loss: Loss = None,
    seed: int = 0,
    verbose: int = 0,
) -> keras.Model:
    """Returns a copy of `model` whose kernels are masked; compile it and go on with `fit` as usual.

    The masks are weight constraints: every optimizer applies them after each update, with any compile option. No
    wrapper and no callback is needed, and the saved `.keras` file is plain Keras. Each kernel is pruned on its own
    (or all together, see `scope`) and ends with exactly `round(size * sparsity)` zeros, ties included.

    Args:
        model: a built Keras model (a tf_keras model is handed to TFMOT's `prune_low_magnitude`).
        schedule: called with the optimizer's step (0 is before the first update), gives `(prune_now, sparsity)`:
            `tfopt.PolynomialDecay`, `tfopt.ConstantSparsity` (TFMOT's own) or any callable like them. Pruning then
            happens during `fit`. Without one the mask is applied at once and held in any later `fit`.
        sparsity: fraction of zeros in each kernel, in (0, 1), by default 0.5; or a dict from layer names or globs to
            fractions, which prunes these layers only; or `"keep"`, which holds the zeros that are there (of a pruned
            model loaded from disk) in further training. Not together with a schedule.
        threshold: instead of a sparsity: weights (blocks) whose score is below become zero; at least one of each
            kernel stays. A number of at least 0, or a dict as for `sparsity`.
        criterion: the scores; the lowest go first. `"magnitude"`, `"gradient"`, `"taylor"`, `"random"`, `"entropy"`,
            `"neuron"`, `"bn_scale"`, `"wanda"`, a function from a weight tensor to scores of its shape, or a
            `tfopt.pruning.criteria.Criterion`. Criteria that need data are scored once, at this call. Their scores are
            reused while the mask grows. Weights that are zero already go before all others.
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
        UnsupportedModelError: an unbuilt model, or one that is no graph.
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
    scoring: Scoring = {"data": data, "loss": loss, "seed": seed, "verbose": verbose}
    budget = as_budget(to_macs, to_params)
    if pattern == "layer":
        return prune_layers(
            read(model),
            sparsity=check_whole_layers(sparsity, schedule, threshold, scope, min_kept, round_to),
            budget=budget,
            criterion=criterion,
            include=include,
            exclude=exclude,
            scoring=scoring,
        ).model
    by_channel = pattern == "channel"
    units = Element() if by_channel else as_pattern(pattern)
    rule = Rule(schedule, units, as_criterion(criterion), as_min_kept(min_kept))
    round_to = as_count("round_to", round_to)
    request = Request(rule, by_channel, scope, sparsity, threshold, budget, round_to, scoring)
    check_request(request)
    if tfmot.is_tf_keras_model(model):
        return _by_tfmot(model, request, include, exclude)
    graph = opened(read(model)) if by_channel else read(model)
    selection = checked_selection(graph, include, exclude)
    if isinstance(request.amount, Mapping):
        check_patterns(graph, list(request.amount), "threshold" if request.is_threshold else "sparsity")
    check_finite(graph)
    prune_parts = prune_channels if by_channel else prune_weights
    return prune_parts(graph, request, selection).model


def _by_tfmot(model: Any, request: Request, include: Names, exclude: Names) -> Any:
    """TFMOT's pruning of a tf_keras model."""
    rule, pattern = request.rule, request.rule.pattern
    options = _tfmot_options(pattern)
    by_kernel = request.scope == "layer" and not request.by_channel and not request.is_threshold and not rule.min_kept
    if not by_kernel or not rule.by_magnitude or options is None:
        raise InvalidArgumentError(
            "TFMOT prunes the kernels of a tf_keras model one by one, by magnitude and to a sparsity.",
            received=f"scope='{request.scope}', threshold={request.threshold!r}, criterion='{rule.criterion.name}', "
            f"min_kept={rule.min_kept}, pattern={'channel' if request.by_channel else pattern}",
            fix="Port the model to Keras 3, where tfopt does the work itself.",
        )
    return tfmot.prune(model, rule.schedule, sparsity=request.amount, include=include, exclude=exclude, options=options)


def _tfmot_options(pattern: Pattern) -> dict[str, Any] | None:
    """The pattern as options of `prune_low_magnitude`; None for one that TFMOT does not have."""
    if type(pattern) is Element:
        return {}
    if type(pattern) is ZerosInGroups:
        return {"sparsity_m_by_n": (pattern.zeros, pattern.size)}
    if type(pattern) is Block:
        pooling = {"average": "AVG", "max": "MAX"}[pattern.pooling]
        return {"block_size": (pattern.height, pattern.width), "block_pooling_type": pooling}
    return None
