"""The verb `prune`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfopt.core import constraints
from tfopt.core.catalog import entry_of, prunable_weights
from tfopt.core.errors import InvalidArgumentError, NothingToDoError
from tfopt.core.graph import as_patterns, check_finite, check_model, check_patterns, is_selected, matches, walk_layers
from tfopt.core.keras_internals import children
from tfopt.core.rewrite import rewrite
from tfopt.interop import tfmot
from tfopt.pruning.criteria import magnitude
from tfopt.pruning.masks import PruningMask
from tfopt.pruning.patterns import element_mask, kept_count
from tfopt.pruning.schedules import Schedule, check_schedule, evaluate

KEEP = "keep"


def prune(
    model: keras.Model,
    schedule: Schedule | None = None,
    *,
    sparsity: float | Mapping[str, float] | str | None = None,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
) -> keras.Model:
    """Returns a copy of `model` whose kernels are masked by magnitude; compile it and go on with `fit` as usual.

    The masks are weight constraints: every optimizer applies them after each update, with any compile option. No
    wrapper and no callback is needed, and the saved `.keras` file is plain Keras. Each kernel is pruned on its own and
    ends with exactly `round(size * sparsity)` zeros, ties included.

    Args:
        model: a built Sequential or Functional model (a tf_keras model is handed to TFMOT's `prune_low_magnitude`).
        schedule: called with the optimizer's step (0 is before the first update), gives `(prune_now, sparsity)`:
            `tfopt.PolynomialDecay`, `tfopt.ConstantSparsity` (TFMOT's own) or any callable like them. Pruning then
            happens during `fit`. Without one the mask is applied at once and held in any later `fit`.
        sparsity: fraction of zeros in each kernel, in (0, 1), by default 0.5; or a dict from layer names or globs to
            fractions, which prunes these layers only; or `"keep"`, which holds the zeros that are there (of a pruned
            model loaded from disk) in further training. Not together with a schedule.
        include: layer names or globs to prune; all by default. Nested layers by path, as `"encoder/conv1"`.
        exclude: layer names or globs to leave alone.

    Returns:
        A new, uncompiled model with the same layer names; the input model is not changed. Depthwise kernels and
        biases are not pruned (as in TFMOT's `prune_registry.py`).

    Raises:
        InvalidArgumentError: sparsity out of range, unknown layer name, schedule that cannot be called.
        UnsupportedModelError: a subclassed or unbuilt model.
        NonFiniteError: NaN or infinity in the weights.
        NothingToDoError: no layer to prune, or `"keep"` on a model without zeros.

    Source: Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878; TFMOT `sparsity/keras/pruning_impl.py`.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        >>> pruned = prune(model, sparsity=0.75)
        >>> [int((layer.kernel.numpy() == 0).sum()) for layer in pruned.layers]
        [24, 3]
    """
    if tfmot.is_tf_keras_model(model):
        wanted = 0.5 if sparsity is None and schedule is None else sparsity
        return tfmot.prune(model, schedule, sparsity=wanted, include=include, exclude=exclude)
    check_model(model)
    _check_arguments(schedule, sparsity)
    included, excluded = as_patterns(include, "include"), as_patterns(exclude, "exclude")
    check_patterns(model, included, "include")
    check_patterns(model, excluded, "exclude")
    if isinstance(sparsity, Mapping):
        check_patterns(model, list(sparsity), "sparsity")
    check_finite(model)

    pruned = rewrite(model)
    targets = _targets(pruned, included, excluded, sparsity)
    for weight, fraction in targets:
        mask = PruningMask(schedule)
        constraints.attach(weight, mask)
        mask.hold(_first_mask(weight, schedule, fraction))
    return pruned


def _check_arguments(schedule, sparsity) -> None:
    if schedule is not None:
        if sparsity is not None:
            raise InvalidArgumentError(
                "`schedule` and `sparsity` exclude each other: the schedule says how sparse a kernel becomes.",
                received=f"schedule={schedule!r}, sparsity={sparsity!r}",
                fix="Pass one of them. For several schedules call `prune` once for each, with `include`.",
            )
        check_schedule(schedule)
    elif isinstance(sparsity, Mapping):
        if not sparsity:
            raise InvalidArgumentError("A `sparsity` dict names at least one layer.", received="{}")
        for fraction in sparsity.values():
            _check_fraction(fraction)
    elif sparsity is not None and sparsity != KEEP:
        _check_fraction(sparsity)


def _check_fraction(fraction) -> None:
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float, np.number)) or not 0.0 < fraction < 1.0:
        raise InvalidArgumentError(
            "`sparsity` is a fraction of zeros above 0 and below 1.",
            received=repr(fraction),
            fix="0.8 leaves one weight in five. 'keep' holds the zeros that are there.",
        )


def _targets(model, included, excluded, sparsity) -> list[tuple[keras.Variable, float | str | None]]:
    """The kernels to prune, each once, with the sparsity wanted for it."""
    targets, seen, unknown = [], set(), []
    for path, layer in walk_layers(model):
        fraction = _fraction_for(path, sparsity)
        if isinstance(layer, keras.Model) or fraction is _NOT_NAMED:
            continue
        if not is_selected(path, included, excluded):
            continue
        kernels = prunable_weights(layer)
        if not kernels and _is_unknown(layer):
            unknown.append(f"'{path}' ({type(layer).__name__})")
        for weight in kernels.values():
            if id(weight) not in seen:
                seen.add(id(weight))
                targets.append((weight, fraction))
    if sparsity == KEEP:
        targets = [target for target in targets if not np.all(target[0].numpy())]
    if not targets:
        raise NothingToDoError(
            "The model has to have a kernel to prune: convolution, dense, embedding, recurrent or attention layers.",
            received=_received(model, sparsity),
            fix="Check `include` and `exclude`; layers of your own join with `@tfopt.register_layer(prunable=...)`.",
        )
    _warn(targets, unknown)
    return targets


_NOT_NAMED = object()


def _fraction_for(path: str, sparsity):
    """The fraction for a layer; a later entry of a dict wins over an earlier one."""
    if not isinstance(sparsity, Mapping):
        return 0.5 if sparsity is None else sparsity
    named = [fraction for pattern, fraction in sparsity.items() if matches(path, [pattern])]
    return named[-1] if named else _NOT_NAMED


def _is_unknown(layer) -> bool:
    return entry_of(layer) is None and not children(layer) and any(len(weight.shape) >= 2 for weight in layer.weights)


def _received(model, sparsity) -> str:
    names = sorted({type(layer).__name__ for _, layer in walk_layers(model)})
    zeros = " without a zero in its kernels" if sparsity == KEEP else ""
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


def _first_mask(weight: keras.Variable, schedule, fraction) -> np.ndarray:
    """The mask before training: the zeros to keep, the wanted sparsity, or what the schedule asks for at step 0."""
    if fraction == KEEP:
        return weight.numpy() != 0
    if schedule is not None:
        due, fraction = evaluate(schedule, tf.constant(0, tf.int64))
        if not due:
            return np.ones(weight.shape, bool)
    kept = kept_count(int(np.prod(weight.shape)), fraction)
    return element_mask(magnitude(tf.convert_to_tensor(weight.numpy())), kept).numpy()
