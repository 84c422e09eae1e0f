"""The loss that gradients are taken of, where neither the user nor `compile` says it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfopt.core.data.outputs import OutputKind, output_kinds
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of


def inferred_loss(model: keras.Model, predictions: Any, targets: Any) -> Any:
    """The usual loss for labels of that form, one for each output of the model.

    With several scores a sample, class numbers give sparse categorical and one-hot rows categorical cross-entropy; with
    one score a sample, labels 0 and 1 give binary cross-entropy, as any number of them do for independent probabilities
    (a sigmoid); anything else of equal shape the mean squared error. Whether scores are probabilities or logits is told
    by the layers that give them, see `output_kinds`, and by the predictions where these do not tell: probabilities are
    rows that sum to 1, or single values in [0, 1].

    Args:
        model: gave the predictions.
        predictions: array, list or dict of arrays.
        targets: in the same structure.

    Returns:
        A `keras.losses.Loss`, or a list or dict of them, as `compile` takes.

    Raises:
        InvalidArgumentError: if labels and predictions do not go together, as targets of a regression for
            log-probabilities.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> loss = inferred_loss(model, np.zeros((2, 3)), np.array([0, 2]))
        >>> type(loss).__name__, loss.get_config()["from_logits"]
        ('SparseCategoricalCrossentropy', True)
    """
    structure = functional_of(model).output
    if isinstance(structure, dict):
        names = sorted(targets) if isinstance(targets, dict) else type(targets).__name__
        _check_outputs(names == sorted(structure), f"{names} for outputs {sorted(structure)}")
    else:
        _check_outputs(not isinstance(targets, dict), "a dict for outputs without names")
    scores, labels = ([np.asarray(part) for part in keras.tree.flatten(parts)] for parts in (predictions, targets))
    outputs = len(functional_of(model).outputs)
    _check_outputs(len(labels) == outputs, f"{len(labels)} arrays for {outputs} outputs")
    kinds = output_kinds(model, scores)
    losses = [_loss(*parts) for parts in zip(scores, labels, kinds, strict=True)]
    if isinstance(structure, dict):
        return keras.tree.pack_sequence_as(structure, losses)
    return losses if len(losses) > 1 else losses[0]


def _check_outputs(fits: bool, received: str) -> None:
    if not fits:
        raise InvalidArgumentError("The labels must have the structure of the model's outputs.", received=received)


def _loss(scores: np.ndarray, labels: np.ndarray, kind: OutputKind | None) -> keras.losses.Loss:
    classes = scores.shape[-1] if scores.ndim > 1 else 1
    same_shape = labels.shape == scores.shape or (classes == 1 and labels.size == scores.size)
    zero_one = bool(np.isin(labels, (0, 1)).all())
    whole = labels.dtype == bool or bool((labels == np.floor(labels)).all())
    # Log-probabilities are logits of themselves: their log_softmax changes nothing.
    from_logits = kind not in (OutputKind.PROBABILITIES, OutputKind.INDEPENDENT)
    if classes > 1 and whole and labels.shape in (scores.shape[:-1], (*scores.shape[:-1], 1)):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    if not same_shape:
        raise InvalidArgumentError(
            "Labels must be class numbers, one-hot rows, or targets of the shape of the predictions.",
            received=f"labels {labels.shape} of {labels.dtype}, predictions {scores.shape}",
            fix="For labels of another form pass `loss=`.",
        )
    if zero_one and (classes == 1 or kind is OutputKind.INDEPENDENT):
        # Single values in [0, 1] of which the layers tell nothing are probabilities.
        return keras.losses.BinaryCrossentropy(from_logits=from_logits and kind is not None)
    if classes > 1 and zero_one and bool((labels.sum(-1) == 1).all()):
        return keras.losses.CategoricalCrossentropy(from_logits=from_logits)
    if kind is OutputKind.LOG_PROBABILITIES:
        raise InvalidArgumentError(
            "The labels for log-probabilities must be class numbers or one-hot rows.",
            received=f"other numbers of shape {labels.shape}",
            fix="For rows of probabilities pass `loss=keras.losses.CategoricalCrossentropy(from_logits=True)`.",
        )
    return keras.losses.MeanSquaredError()
