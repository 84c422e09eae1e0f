"""Statistics of batch normalizations, taken from data anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.errors import NonFiniteError
from tfopt.core.models.graph import Call, Graph, compute


def has_batch_norm(graph: Graph) -> bool:
    """True if the model, or one nested in it, normalizes batches."""
    return any(isinstance(layer, kl.BatchNormalization) for _, layer in graph.layers)


def reestimate_batch_norms(graph: Graph, batches: Iterable[list[np.ndarray]]) -> None:
    """Sets the statistics of all batch normalizations to those of the data, in place.

    The model runs in inference mode, so that Dropout and the like do not disturb. Each batch is taken in by one
    normalization after the other, so that each sees inputs that are normalized already.

    Args:
        graph: of the model.
        batches: of inputs, as `input_batches` gives them.

    Raises:
        NonFiniteError: what the layers compute is not finite in float32.

    Example:
        >>> from tfopt.core.models.graph import read
        >>> model = keras.Sequential([keras.Input((2,)), kl.BatchNormalization(name="bn")])
        >>> reestimate_batch_norms(read(model), [[np.array([[1.0, 5.0]])], [np.array([[3.0, 5.0]])]])
        >>> model.layers[0].moving_mean.numpy().tolist(), model.layers[0].moving_variance.numpy().tolist()
        ([2.0, 5.0], [1.0, 0.0])
    """
    statistics: dict[int, ChannelStatistics] = {}

    def estimate(call: Call, values: Mapping[int, Any]) -> None:
        if isinstance(call.op, kl.BatchNormalization):
            seen = statistics.setdefault(id(call.op), ChannelStatistics(call.op.name))
            seen.follow(call.op, values[id(call.inputs[0])])

    for batch in batches:
        compute(graph, batch, before=estimate)


@dataclass
class ChannelStatistics:
    """Mean and variance of each channel over all inputs that one batch normalization has seen."""

    path: str
    count: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(()))
    variance: np.ndarray = field(default_factory=lambda: np.zeros(()))

    def follow(self, layer: kl.BatchNormalization, inputs: Any) -> None:
        """Takes one more batch of inputs in and gives the layer the statistics of all."""
        values = np.moveaxis(np.asarray(inputs, np.float64), layer.axis, -1)
        values = values.reshape(-1, values.shape[-1])
        share = len(values) / (self.count + len(values))
        with np.errstate(invalid="ignore", over="ignore"):  # `assign_finite` refuses the outcome
            mean, variance = values.mean(0), values.var(0)
            # Chan et al.: the variance of two parts together is their mean variance and what their means differ by.
            self.variance = (1 - share) * (self.variance + share * (mean - self.mean) ** 2) + share * variance
            self.mean = self.mean + share * (mean - self.mean)
        self.count += len(values)
        assign_finite(layer.moving_mean, self.mean, self.path)
        assign_finite(layer.moving_variance, self.variance, self.path)


def assign_finite(variable: keras.Variable, value: np.ndarray, path: str) -> None:
    """Sets the variable; `path` is the layer to name in the error."""
    with np.errstate(over="ignore"):
        value = value.astype("float32")
    if not np.isfinite(value).all():
        raise NonFiniteError(
            "What the layers compute has to be finite in float32.",
            received=f"NaN or infinity, first of '{path}'",
            fix="Scale the data as it was in training, and look for very large weights in and before that layer.",
        )
    variable.assign(value)
