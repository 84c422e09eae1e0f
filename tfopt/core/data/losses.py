"""The loss that gradients are taken of, where neither the user nor `compile` says it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of
from tfopt.core.models.graph import Graph


def inferred_loss(model: keras.Model, predictions: Any, targets: Any) -> Any:
    """The usual loss for labels of that form, one for each output of the model.

    With several scores a sample, class numbers give sparse categorical and one-hot rows categorical cross-entropy; with
    one score a sample, labels 0 and 1 give binary cross-entropy; anything else of equal shape the mean squared error.
    Scores are taken as probabilities where they can be: rows that sum to 1, or values in [0, 1] that are not the
    plain output of a linear layer.

    Args:
        model: gave the predictions.
        predictions: array, list or dict of arrays.
        targets: in the same structure.

    Returns:
        A `keras.losses.Loss`, or a list or dict of them, as `compile` takes.

    Raises:
        InvalidArgumentError: if labels and predictions do not go together.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> loss = inferred_loss(model, np.zeros((2, 3)), np.array([0, 2]))
        >>> type(loss).__name__, loss.get_config()["from_logits"]
        ('SparseCategoricalCrossentropy', True)
    """
    tensors = functional_of(model).output
    if not isinstance(tensors, dict):
        _check_outputs(not isinstance(targets, dict), "a dict for outputs without names")
        labels, tensors = keras.tree.flatten(targets), keras.tree.flatten(tensors)
        _check_outputs(len(labels) == len(tensors), f"{len(labels)} arrays for {len(tensors)} outputs")
        parts = zip(tensors, keras.tree.flatten(predictions), labels, strict=True)
        losses = [_loss(np.asarray(scores), label, _last_op(model, tensor)) for tensor, scores, label in parts]
        return losses if len(losses) > 1 else losses[0]
    names = sorted(targets) if isinstance(targets, dict) else type(targets).__name__
    _check_outputs(names == sorted(tensors), f"{names} for outputs {sorted(tensors)}")
    return {
        name: _loss(np.asarray(predictions[name]), targets[name], _last_op(model, tensor))
        for name, tensor in tensors.items()
    }


def _check_outputs(fits: bool, received: str) -> None:
    if not fits:
        raise InvalidArgumentError("The labels have the structure of the model's outputs.", received=received)


def _loss(scores: np.ndarray, labels: np.ndarray, last_op: keras.Operation) -> keras.losses.Loss:
    classes = scores.shape[-1] if scores.ndim > 1 else 1
    same_shape = labels.shape == scores.shape or (classes == 1 and labels.size == scores.size)
    zero_one = bool(np.isin(labels, (0, 1)).all())
    whole = labels.dtype == bool or bool((labels == np.floor(labels)).all())
    if classes > 1 and whole and labels.shape in (scores.shape[:-1], (*scores.shape[:-1], 1)):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=not _rows_sum_to_1(scores))
    if not same_shape:
        raise InvalidArgumentError(
            "Labels are class numbers, one-hot rows, or targets of the shape of the predictions.",
            received=f"labels {labels.shape} of {labels.dtype}, predictions {scores.shape}",
            fix="For labels of another form pass `loss=`.",
        )
    if classes > 1 and zero_one and bool((labels.sum(-1) == 1).all()):
        return keras.losses.CategoricalCrossentropy(from_logits=not _rows_sum_to_1(scores))
    if classes == 1 and zero_one:
        return keras.losses.BinaryCrossentropy(from_logits=not _in_unit_interval(scores) or _is_linear(last_op))
    return keras.losses.MeanSquaredError()


def _rows_sum_to_1(scores: np.ndarray) -> bool:
    return _in_unit_interval(scores) and bool(np.allclose(scores.sum(-1), 1, atol=1e-3))


def _in_unit_interval(scores: np.ndarray) -> bool:
    return bool(((scores >= 0) & (scores <= 1)).all())


def _is_linear(op: keras.Operation) -> bool:
    return getattr(getattr(op, "activation", None), "__name__", None) == "linear"


def _last_op(model: keras.Model, tensor: keras.KerasTensor) -> keras.Operation | None:
    """The layer or op that gives an output of the model, looked for in nested models too."""
    call = Graph(model).producer(tensor)
    if call is None or not isinstance(call.op, keras.Model):
        return call and call.op
    index = [id(output) for output in call.outputs].index(id(tensor))
    return _last_op(call.op, Graph(call.op).outputs[index])
