"""What rounding the kernels shifts, put right from data: bias correction and batch-normalization statistics.

Both go through the network once, from the inputs to the outputs, so that each layer is corrected for inputs that are
corrected already. Over several batches the corrections are running means: time is linear in layers and samples, memory
that of one batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.layers.registry import channel_axis
from tfopt.core.models.batch_norm import ChannelStatistics, assign_finite
from tfopt.core.models.fake_quantized import mode
from tfopt.core.models.graph import Graph
from tfopt.quantization.layers import QuantizedLayer
from tfopt.quantization.side_by_side import SideBySide, Step

# Layers that compute a linear function of their input, plus a bias, before their activation.
_LINEAR = (
    kl.Dense,
    kl.EinsumDense,
    kl.Conv1D,
    kl.Conv2D,
    kl.Conv3D,
    kl.Conv1DTranspose,
    kl.Conv2DTranspose,
    kl.Conv3DTranspose,
    kl.DepthwiseConv1D,
    kl.DepthwiseConv2D,
)


def correct_biases(pair: SideBySide, batches: Sequence[list[np.ndarray]]) -> list[str]:
    """Takes the mean output error of each rounded kernel, channel by channel, out of the bias; in place.

    The error is that of the output before the activation, against the float model on the same samples; activations
    are not rounded. Without a bias it goes into the mean of the batch normalization behind the layer.

    Returns:
        The paths of layers with kernels that have neither, and stay as they are.

    Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721, empirical bias correction.
    """
    corrections: dict[str, _Correction] = {}
    left: dict[str, None] = {}

    def correct(step: Step) -> None:
        op = step.call.op
        if not (isinstance(op, QuantizedLayer) and op.kernels and isinstance(op.layer, _LINEAR)):
            return
        if step.path not in corrections:
            target = _target(op, step.graph)
            if target is None:
                left[step.path] = None
                return
            corrections[step.path] = _Correction(step.path, *target)
        corrections[step.path].follow(step)

    _through(pair, batches, correct)
    return list(left)


def reestimate_batch_norms(pair: SideBySide, batches: Sequence[list[np.ndarray]]) -> None:
    """Sets the statistics of all batch normalizations to those of the data, in both models, in place."""
    statistics: dict[tuple[str, bool], ChannelStatistics] = {}

    def estimate(step: Step) -> None:
        for is_plain, values in ((True, step.exact), (False, step.rounded)):
            layer = step.plain if is_plain else getattr(step.call.op, "layer", step.call.op)
            if isinstance(layer, kl.BatchNormalization):
                inputs = values[id(step.call.inputs[0])]
                statistics.setdefault((step.path, is_plain), ChannelStatistics(step.path)).follow(layer, inputs)

    _through(pair, batches, estimate)


def _through(pair: SideBySide, batches: Any, visit: Any) -> None:
    with mode("calibrate"):
        for batch in batches:
            pair.run(batch, visit)


def _target(op: QuantizedLayer, graph: Graph) -> tuple[keras.Variable, int] | None:
    """The variable that takes the correction, and its sign in the output."""
    if op.layer.bias is not None:
        return op.layer.bias, 1
    reader = graph.sole_consumer(op)
    reader = getattr(reader, "layer", reader)
    if isinstance(reader, kl.BatchNormalization) and not op.ranges():
        return reader.moving_mean, -1
    return None


@dataclass
class _Correction:
    """The running mean of one layer's error, and the variable that takes it out.

    A layer that is called several times has one bias for all of its calls: the mean goes over them too.
    """

    path: str
    variable: keras.Variable
    sign: int
    error: np.ndarray = field(default_factory=lambda: np.zeros(()))
    positions: int = 0
    start: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.start = keras.ops.convert_to_numpy(self.variable)

    def follow(self, step: Step) -> None:
        op = step.call.op
        wanted = _linear_output(step.plain, step.plain, step, step.exact)
        got = _linear_output(op.run, op.layer, step, step.rounded)
        with np.errstate(invalid="ignore"):  # infinity less infinity; `assign_finite` refuses the outcome
            error = _mean_like(got - wanted, self.variable, channel_axis(op.layer))
        if self.sign > 0:  # the bias of this call holds what was corrected so far
            error = error + self.start - keras.ops.convert_to_numpy(self.variable)
        positions = got.size // self.start.size
        self.positions += positions
        self.error = self.error + (error - self.error) * (positions / self.positions)
        assign_finite(self.variable, self.start - self.sign * self.error, self.path)


def _linear_output(run: Any, layer: kl.Layer, step: Step, values: Any) -> np.ndarray:
    """What the layer gives before its activation."""
    args, kwargs = step.call.arguments(values)
    with _without_activation(layer):
        return np.asarray(run(*args, **kwargs), np.float64)


@contextlib.contextmanager
def _without_activation(layer: kl.Layer) -> Iterator[None]:
    activation, layer.activation = layer.activation, keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation


def _mean_like(error: np.ndarray, variable: keras.Variable, axis: int) -> np.ndarray:
    """The mean over all positions that share one element of `variable`."""
    error = np.moveaxis(error, axis, -1)
    shape = (1,) * (error.ndim - len(variable.shape)) + tuple(variable.shape)
    axes = tuple(i for i, size in enumerate(shape) if size == 1)
    return error.mean(axis=axes).reshape(variable.shape)
