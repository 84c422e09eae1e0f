"""What several models predict for the same samples, their weighted sums and how good those are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfopt.core.data.batches import gives_batches
from tfopt.core.data.goals import Goal, as_goal
from tfopt.core.data.metrics import score
from tfopt.core.data.outputs import OutputKind, kind_of_values, output_kinds
from tfopt.core.data.pairs import as_read_by
from tfopt.core.data.samples import labelled
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, NothingToDoError, UnsupportedModelError
from tfopt.core.models.graph import read

TINY = 1e-7  # the least probability that a logarithm is taken of, as in Keras
Rank = tuple[float, float]


@dataclass(frozen=True)
class Predictions:
    """Predictions of several models and the labels they are for.

    Args:
        values: float64, shape (models, samples, ...).
        y: labels or targets, samples first.
        kind: probabilities, independent ones or logits; `NUMBERS` for a regression.
    """

    values: np.ndarray
    y: np.ndarray
    kind: OutputKind

    @classmethod
    def of(cls, predicted: Sequence[np.ndarray], kinds: Sequence[OutputKind | None], y: Any) -> Predictions:
        """Checked, with probabilities for log-probabilities, as `fuse` has it.

        Args:
            predicted: of each model.
            kinds: what these are; None where nothing tells.
            y: labels or targets.
        """
        if len(predicted) < 2:
            raise (NothingToDoError if predicted else InvalidArgumentError)(
                "There must be two models or more to fit weights to.", received=f"{len(predicted)}"
            )
        shapes = [array.shape for array in predicted]
        if len(set(shapes)) > 1:
            raise InvalidArgumentError(
                "All models must predict the same: outputs of one shape.",
                received=", ".join(map(str, shapes)),
                fix="Models of other classes or outputs are combined by `stack`.",
            )
        values = np.stack([np.asarray(array, np.float64) for array in predicted])
        if not np.isfinite(values).all():
            raise NonFiniteError("The predictions must be finite.", received="NaN or infinity")
        y = np.asarray(y)
        if "accuracy" not in score(y, values[0]):
            return cls(values, y, OutputKind.NUMBERS)
        values = np.stack([as_fused(each, kind) for each, kind in zip(values, kinds, strict=True)])
        found = [_of_classes(each, kind) for each, kind in zip(values, kinds, strict=True)]
        if len(set(found)) > 1:
            raise InvalidArgumentError(
                "All models of a weighted sum must give the same: probabilities, or logits.",
                received=", ".join(kind.value for kind in found),
                fix="Add a softmax (or sigmoid) to the models that give logits.",
            )
        return cls(values, y, found[0])

    def rows(self, index: np.ndarray) -> Predictions:
        return Predictions(self.values[:, index], self.y[index], self.kind)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """The weighted sum of the models' predictions, shape (samples, ...)."""
        return np.tensordot(weights, self.values, 1)

    def rank(self, predicted: np.ndarray, goal: Goal) -> Rank:
        """The score, higher for better, and after it what decides between equal ones: the loss, negated."""
        value = goal(self.y, predicted)
        return value if goal.mode == "max" else -value, -self.loss(predicted)

    def loss(self, predicted: np.ndarray) -> float:
        """Mean log loss of classes, mean squared error of a regression."""
        if self.kind is OutputKind.NUMBERS:
            return float(np.mean((predicted - self.y.reshape(predicted.shape)) ** 2))
        return float(-np.log(np.maximum(self.of_true_class(self.probabilities(predicted)), TINY)).mean())

    def probabilities(self, predicted: np.ndarray) -> np.ndarray:
        if self.kind is not OutputKind.LOGITS:
            return predicted
        if _columns(predicted) == 1:
            return 1 / (1 + np.exp(-np.clip(predicted, -700, 700)))
        powers = np.exp(predicted - predicted.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def of_true_class(self, probabilities: np.ndarray) -> np.ndarray:
        """The probability of the right class, flat; further axes, as in segmentation, count as samples."""
        targets = self.targets()
        if _columns(probabilities) == 1:
            flat = probabilities.reshape(-1)
            return np.where(targets[:, 0] == 1, flat, 1 - flat)
        return (probabilities.reshape(targets.shape) * targets).sum(-1)

    def targets(self) -> np.ndarray:
        """One-hot rows, a column of 0 and 1, or the targets of a regression; shape (samples, outputs)."""
        columns = _columns(self.values[0])
        if self.kind is OutputKind.NUMBERS or self.y.size == self.values[0].size:
            return self.y.reshape(-1, columns).astype(np.float64)
        return np.eye(columns)[self.y.reshape(-1).astype(int)]

    @property
    def matrix(self) -> np.ndarray:
        """Shape (models, samples, outputs)."""
        return self.values.reshape(len(self.values), -1, _columns(self.values[0]))

    @property
    def loss_name(self) -> str:
        return "mean squared error" if self.kind is OutputKind.NUMBERS else "log loss"

    def goal(self, metric: Any, mode: str) -> Goal:
        """That of the metric; None stands for accuracy of classes and the mean squared error of a regression."""
        return as_goal(("mse" if self.kind is OutputKind.NUMBERS else "accuracy") if metric is None else metric, mode)


def predicted_by(models: Any, x: Any, y: Any, batch_size: int) -> tuple[list[np.ndarray], list[OutputKind | None]]:
    """The predictions of each model and what they are; an array stands for those of a model that ran before."""
    if isinstance(models, (keras.Model, np.ndarray, str, dict)) or not isinstance(models, Sequence):
        raise InvalidArgumentError(
            "`models` must be a list of models, or of their predictions as arrays.", received=type(models).__name__
        )
    first = next((model for model in models if isinstance(model, keras.Model)), None)
    predicted = [_predicted(model, x, y, first, batch_size) for model in models]
    return predicted, [_kind_of(model, array) for model, array in zip(models, predicted, strict=True)]


def check_in_memory(x: Any, y: Any, arguments: str) -> None:
    """Raises for data that is not arrays: each model has to meet the same samples in the same order."""
    is_stream = gives_batches(x)
    if is_stream or y is None:
        raise InvalidArgumentError(
            f"`{arguments}` must be arrays: inputs, and one label a sample.",
            received=type(x).__name__ if is_stream else "no labels",
            fix="Collect the batches first: `np.concatenate([x for x, _ in dataset])`, and so the labels."
            if is_stream
            else None,
        )


def names_of(models: Sequence[Any]) -> tuple[str, ...]:
    """A name for each, no two the same.

    Example:
        >>> names_of([keras.Sequential(name="a"), keras.Sequential(name="a"), np.zeros(3)])
        ('a', 'a_2', 'predictions_3')
    """
    names: list[str] = []
    for place, model in enumerate(models, start=1):
        name = model.name if isinstance(model, keras.Model) else f"predictions_{place}"
        while name in names:
            name = f"{name}_{place}"
        names.append(name)
    return tuple(names)


def one_output(model: keras.Model, verb: str) -> None:
    """Raises for a model of several outputs."""
    if len(model.outputs) > 1:
        raise UnsupportedModelError(
            f"The models of `{verb}` must have one output.",
            received=f"'{model.name}' with {len(model.outputs)}",
            fix="Take one output at a time: `keras.Model(model.inputs, model.outputs[0])`.",
        )


def _predicted(model: Any, x: Any, y: Any, first: keras.Model | None, batch_size: int) -> np.ndarray:
    """What a model gives for the samples; inputs without names are in the order of the first model."""
    if isinstance(model, keras.Model):
        read(model)
        one_output(model, "fit_weights")
        if first is not None and isinstance(x, (list, tuple)) and len(first.inputs) > 1:
            x = as_read_by(model, labelled(first, (x, y), "x_val, y_val").x, first)
        samples = labelled(model, (x, y), "x_val, y_val")
        return np.asarray(model.predict(samples.x, batch_size=batch_size, verbose=0))
    if not isinstance(model, np.ndarray):
        read(model)
    if len(model) != len(y):
        raise InvalidArgumentError(
            "There must be one prediction a label, samples first.", received=f"{model.shape} for {len(y)} labels"
        )
    return model


def _columns(predicted: np.ndarray) -> int:
    return predicted.shape[-1] if predicted.ndim > 1 else 1


def _kind_of(model: Any, predicted: np.ndarray) -> OutputKind | None:
    return output_kinds(model, predicted)[0] if isinstance(model, keras.Model) else kind_of_values(predicted)


def as_fused(predicted: np.ndarray, kind: OutputKind | None) -> np.ndarray:
    """The predictions as `fuse` takes them: probabilities for log-probabilities."""
    return np.exp(predicted) if kind is OutputKind.LOG_PROBABILITIES else predicted


def _of_classes(predicted: np.ndarray, kind: OutputKind | None) -> OutputKind:
    """What the predictions of a classifier are: single values in [0, 1] of which nothing else tells, probabilities."""
    if kind in (OutputKind.PROBABILITIES, OutputKind.LOG_PROBABILITIES):
        return OutputKind.PROBABILITIES
    if kind is OutputKind.INDEPENDENT or (kind is None and _columns(predicted) == 1):
        return OutputKind.INDEPENDENT
    return OutputKind.LOGITS
