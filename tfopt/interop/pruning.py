"""How TFMOT prunes a tf_keras model: schedules for its layers, first masks, and the callback that moves them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfopt.core.checks import FRACTION, as_callable, as_number
from tfopt.core.errors import InvalidArgumentError
from tfopt.interop.models import layer_amounts, walk
from tfopt.interop.packages import core, tfmot


def check_amount(schedule: object, sparsity: object) -> None:
    """Raises unless a schedule or a sparsity, or neither, says how much to prune."""
    if schedule is not None and sparsity is not None:
        raise InvalidArgumentError(
            "`schedule` and `sparsity` exclude each other: the schedule says how sparse a kernel becomes.",
            received=f"schedule={schedule!r}, sparsity={sparsity!r}",
            fix="Pass one of them.",
        )
    if schedule is not None:
        as_callable(
            "schedule",
            schedule,
            what="a callable that gives (prune_now, sparsity) for a training step",
            fix="Use `tfopt.PolynomialDecay(...)` or `tfopt.ConstantSparsity(...)`.",
        )
    fractions = [] if sparsity is None else list(sparsity.values()) if isinstance(sparsity, Mapping) else [sparsity]
    for fraction in fractions:
        what = "a fraction of zeros above 0 and below 1, for a tf_keras model"
        as_number("sparsity", fraction, FRACTION, what=what, fix="0.8 leaves one weight in five.")


def held(sparsity: Any) -> Any:
    """The schedule that sets the mask at step 0 and never again."""
    return tfmot().sparsity.keras.ConstantSparsity(
        0.5 if sparsity is None else float(sparsity), begin_step=0, end_step=0
    )


def layer_schedules(
    model: Any, schedule: Callable | None, sparsity: Any, include: object, exclude: object
) -> dict[str, Any]:
    """Path -> schedule of the layers to prune, where not all are pruned alike."""
    amounts = layer_amounts(model, sparsity, "sparsity", include, exclude)
    layers = dict(walk(model))
    one_for_all = None if isinstance(sparsity, Mapping) else schedule or held(sparsity)
    return {path: one_for_all or held(amount) for path, amount in amounts.items() if _prunable(layers[path])}


def _prunable(layer: Any) -> bool:
    if not hasattr(layer, "get_prunable_weights"):
        registry = core("sparsity.keras.prune_registry").PruneRegistry
        if not registry.supports(layer):
            return False
        registry.make_prunable(layer)  # what TFMOT's wrapper does first, here on the clone
    return bool(layer.get_prunable_weights())


def mask_now(wrappers: list) -> None:
    """Computes and applies the first masks, and leaves the step as TFMOT's callback expects it."""
    for wrapper in wrappers:
        step = wrapper.pruning_step.numpy()
        wrapper.pruning_step.assign(1 if wrapper.sparsity_m_by_n else 0)  # where TFMOT sets a mask of m by n
        wrapper.pruning_obj.conditional_mask_update()
        wrapper.pruning_obj.weight_mask_op()
        wrapper.pruning_step.assign(step)


def with_update_step(model: Any) -> Any:
    """Lets `model.fit` add TFMOT's callback where the user did not."""
    plain_fit = model.fit
    signature = inspect.signature(plain_fit)

    @functools.wraps(plain_fit)
    def fit(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.arguments["callbacks"] = _callbacks_with_update_step(call.arguments.get("callbacks"))
        return plain_fit(*call.args, **call.kwargs)

    model.fit = fit
    return model


def _callbacks_with_update_step(callbacks: Any) -> Any:
    """First in the list, so that a checkpoint at the end of an epoch sees the masked weights."""
    update_step = tfmot().sparsity.keras.UpdatePruningStep
    given = callbacks.callbacks if hasattr(callbacks, "callbacks") else tf.nest.flatten(callbacks or [])
    if any(isinstance(callback, update_step) for callback in given):
        return callbacks
    if hasattr(callbacks, "callbacks"):
        callbacks.append(update_step())
        return callbacks
    return [update_step(), *given]
