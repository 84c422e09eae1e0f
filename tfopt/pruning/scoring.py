"""Scores of a model's kernels under a criterion, with what the criterion needs gathered from data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.checks import as_seed
from tfopt.core.data.gathering import batch_gradients, counterparts, observe
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, UnsupportedModelError, first_line
from tfopt.core.keras_internals import compiled_loss
from tfopt.core.layers.registry import channel_axis
from tfopt.core.models.rewrite import in_float32
from tfopt.core.types import Data, Loss
from tfopt.pruning.criteria import MEASURED, Criterion
from tfopt.pruning.sites import Site, find_sites, why_not


def score_kernels(
    model: keras.Model,
    kernels: Sequence[keras.Variable],
    criterion: Criterion,
    *,
    data: Data = None,
    loss: Loss = None,
    seed: int = 0,
    verbose: int = 0,
) -> dict[int, np.ndarray]:
    """Scores of each kernel, `{id(variable): float32 array of its shape}`.

    Inputs, outputs and gradients are those of inference, in float32 whatever the policy of the model.

    Args:
        model: a built Sequential or Functional model; it is not changed.
        kernels: variables of the model, out of `prunable_weights` of its layers.
        criterion: from `as_criterion`.
        data: for a criterion that needs gradients, samples and labels as `labelled_batches` takes; for one that needs
            activations or input norms, samples as `input_batches` takes. Arrays are cut into batches of 32.
        loss: what gradients are taken of, as for `compile`; by default the loss the model was compiled with, else one
            after the form of the labels (see `inferred_loss`). The penalties of the model's regularizers are added.
        seed: of a random criterion, a whole number of at least 0.
        verbose: 1 shows a progress bar while data is read.

    Raises:
        InvalidArgumentError: data or labels are missing or of the wrong form, a loss that does not fit, a wrong seed,
            or scores that are no array of the kernel's shape.
        UnsupportedModelError: the criterion has no meaning for some of the kernels; the message names their layers.
        NonFiniteError: NaN or infinity in data, gradients, activations or scores.

    Example:
        >>> from tfopt.pruning.criteria import as_criterion
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> kernel = model.layers[0].kernel
        >>> scores = score_kernels(model, [kernel], as_criterion("wanda"), data=np.array([[3.0, 1.0], [4.0, 0.0]]))
        >>> scores[id(kernel)].tolist()
        [[5.0], [1.0]]
    """
    check_scoring(criterion, data, seed)
    working = in_float32(model) if criterion.reads_data else model
    sites = find_sites(working, counterparts(model, working, kernels))
    _check_meaning(criterion, sites)
    given = _given(working, sites, criterion, data, seed, verbose)
    if "gradients" not in criterion.needs:
        scores = [_score(criterion, site, values) for site, values in zip(sites, given, strict=True)]
    else:
        chosen = {"loss": loss} if loss is not None else compiled_loss(model)
        scores = _mean_scores(working, sites, criterion, given, data, chosen, verbose)
    return {id(kernel): each.astype("float32") for kernel, each in zip(kernels, scores, strict=True)}


def check_scoring(criterion: Criterion, data: Data, seed: Any) -> None:
    """Raises for data or a seed that the criterion cannot use."""
    wanted = MEASURED & set(criterion.needs)
    if wanted and data is None:
        raise InvalidArgumentError(
            f"The criterion '{criterion.name}' is measured on data.",
            received="data=None",
            fix="Pass `data=(x, y)`." if "gradients" in wanted else "Pass `data=x`, some hundred samples.",
        )
    if "gradients" in wanted and len(wanted) > 1 and hasattr(data, "__next__"):
        raise InvalidArgumentError(
            f"The criterion '{criterion.name}' reads the data twice, for gradients and for activations.",
            received=f"{type(data).__name__}, which can be read once",
            fix="Pass arrays or a `tf.data.Dataset`.",
        )
    if "seed" in criterion.needs:
        as_seed(seed)


def check_in_graph(criterion: Criterion, kernel: keras.Variable) -> None:
    """Raises unless the criterion scores the kernel's weights inside a compiled training step."""
    try:
        scores = tf.function(criterion.score, autograph=False)(tf.constant(kernel.numpy()))
        shape = tuple(scores.shape)
    except (TypeError, ValueError, NotImplementedError, AttributeError, tf.errors.OpError) as error:
        raise InvalidArgumentError(
            "A criterion that scores weights anew while they are trained must run inside a compiled training step.",
            received=f"{type(error).__name__}: {first_line(error)}",
            fix="Write it with TensorFlow or `keras.ops` operations.",
        ) from error
    if shape != tuple(kernel.shape):
        raise InvalidArgumentError(
            "A criterion must give a score for each weight.",
            received=f"shape {shape} for '{kernel.path}' of shape {tuple(kernel.shape)}",
        )
    if not np.isfinite(scores).all():
        raise NonFiniteError(
            "The scores of a criterion must be finite.",
            received=f"NaN or infinity from '{criterion.name}' for '{kernel.path}'",
        )


def _check_meaning(criterion: Criterion, sites: list[Site]) -> None:
    reasons = {}
    for site in sites:
        reason = next(filter(None, (why_not(need, site) for need in criterion.needs)), "")
        if reason:
            reasons[site.path] = f"'{site.path}' ({type(site.layer).__name__}: {reason})"
    _refuse(criterion, reasons)


def _refuse(criterion: Criterion, reasons: dict[str, str]) -> None:
    """Raises if there is a layer that the criterion has no meaning for."""
    if reasons:
        raise UnsupportedModelError(
            f"The criterion '{criterion.name}' has to have a meaning for each kernel it scores.",
            received=", ".join(reasons.values()),
            fix=f"Leave these layers out with `exclude={list(reasons)}`, or choose another criterion.",
        )


def _given(
    model: keras.Model, sites: list[Site], criterion: Criterion, data: Data, seed: int, verbose: int
) -> list[dict[str, Any]]:
    """For each site what the criterion needs, but for the gradients."""
    needs = criterion.needs
    inputs = {id(site.layer): _InputNorm(channel_axis(site.layer)) for site in sites if "input_norms" in needs}
    outputs = {id(site.last): _UnitMeans(channel_axis(site.layer)) for site in sites if "activations" in needs}
    if inputs or outputs:
        observe(model, inputs, outputs, data, verbose=verbose)
    given = []
    for i, site in enumerate(sites):
        values: dict[str, Any] = {}
        if "input_norms" in needs:
            values["input_norms"] = site.along_inputs(_finite(inputs[id(site.layer)].result(), site))
        if "activations" in needs:
            values["activations"] = _finite(outputs[id(site.last)].result(), site)
        if "gamma" in needs:
            values["gamma"] = site.along_units(cast("keras.Variable", site.gamma).numpy())
        if "seed" in needs:
            values["seed"] = int(np.random.SeedSequence((seed, i)).generate_state(1)[0])
        if "axis" in needs:
            values["axis"] = site.axes.units
        given.append(values)
    return given


class _InputNorm:
    """L2 norm of each channel over samples and positions."""

    def __init__(self, axis: int):
        self.axis = axis
        self.total: Any = 0.0

    def __call__(self, values: np.ndarray) -> None:
        self.total = self.total + np.sum(_channels_last(values, self.axis) ** 2, axis=(0, 1))

    def result(self) -> np.ndarray:
        return np.sqrt(self.total).astype("float32")


class _UnitMeans:
    """Mean of each channel over the positions, for each sample: `(samples, channels)`."""

    def __init__(self, axis: int):
        self.axis = axis
        self.means: list[np.ndarray] = []

    def __call__(self, values: np.ndarray) -> None:
        self.means.append(np.mean(_channels_last(values, self.axis), axis=1).astype("float32"))

    def result(self) -> np.ndarray:
        return np.concatenate(self.means)


def _channels_last(values: np.ndarray, axis: int) -> np.ndarray:
    """Values as `(samples, positions, channels)`."""
    values = np.moveaxis(values.astype("float64"), axis, -1)
    return values.reshape(len(values), -1, values.shape[-1])


def _finite(values: np.ndarray, site: Site) -> np.ndarray:
    if not np.isfinite(values).all():
        raise NonFiniteError(
            "Inputs and outputs of the layers have to be finite.", received=f"NaN or infinity at '{site.path}'"
        )
    return values


def _mean_scores(
    model: keras.Model,
    sites: list[Site],
    criterion: Criterion,
    given: list[dict[str, Any]],
    data: Data,
    loss: Mapping[str, Any],
    verbose: int,
) -> list[np.ndarray]:
    """The scores of each kernel, a mean over the batches."""
    totals = [np.zeros(site.kernel.shape) for site in sites]
    count = 0
    for gradients in batch_gradients(model, [site.kernel for site in sites], data, loss, verbose=verbose):
        _check_gradients(criterion, sites, gradients)
        for total, site, known, gradient in zip(totals, sites, given, gradients, strict=True):
            total += _score(criterion, site, {**known, "gradients": gradient})
        count += 1
    return [total / count for total in totals]


def _check_gradients(criterion: Criterion, sites: list[Site], gradients: list[np.ndarray | None]) -> None:
    unseen = {}
    for site, gradient in zip(sites, gradients, strict=True):
        if gradient is None:
            unseen[site.path] = f"'{site.path}' ({type(site.layer).__name__}: the loss does not depend on it)"
        elif not np.isfinite(gradient).all():
            raise NonFiniteError(
                "The gradients of the loss have to be finite.",
                received=f"NaN or infinity for '{site.path}'",
                fix="Check the labels and the scale of the data.",
            )
    _refuse(criterion, unseen)


def _score(criterion: Criterion, site: Site, given: dict[str, Any]) -> np.ndarray:
    """What the criterion says of a kernel, checked; it gets a copy of the weights."""
    weights = np.array(site.kernel.numpy(), "float32")
    result = criterion.score(weights, **given)
    try:
        scores = np.asarray(result, "float32")
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"The criterion '{criterion.name}' gives an array of numbers.", received=type(result).__name__
        ) from error
    if scores.shape != weights.shape:
        raise InvalidArgumentError(
            f"The criterion '{criterion.name}' gives one score a weight.",
            received=f"scores {scores.shape} for the kernel {weights.shape} of '{site.path}'",
        )
    if not np.isfinite(scores).all():
        raise NonFiniteError(
            f"The scores of the criterion '{criterion.name}' have to be finite.",
            received=f"NaN or infinity for '{site.path}'",
        )
    return scores
