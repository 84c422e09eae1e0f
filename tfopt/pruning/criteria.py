"""Importance of weights: arrays in, scores of the same shape out; the lowest scores go first.

All that tells one criterion from another is an attribute of `Criterion`: a new one is a function and a line in
`CRITERIA`, and no other file asks for its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import sublayers
from tfopt.core.layers.channels import Group
from tfopt.core.types import Tensor

NEEDS = ("gradients", "input_norms", "activations", "gamma", "seed", "axis")
MEASURED = frozenset({"gradients", "input_norms", "activations"})  # the needs that are measured on data
ROLES = ("out", "in", "each")  # of the axes of weights, see `core.layers.channels.Slot`

ChannelScores = Callable[[keras.Model, Sequence[Group], int], list[np.ndarray]]


@dataclass(frozen=True)
class Criterion:
    """A score function, and what it is to be given.

    Args:
        name: as users write it.
        score: `(weights, **needs) -> scores` of the shape of `weights`.
        needs: keyword arguments of `score` besides the weights, out of `NEEDS`:

            - `gradients`: gradient of the loss of one batch, in the shape of the weights. The score of a kernel is
              the mean of its scores over the batches.
            - `input_norms`: L2 norm of each input feature over the data, shaped to broadcast against the weights.
            - `activations`: outputs of each unit, `(samples, units)`, the mean over positions in space or time.
            - `gamma`: scales of the batch normalization behind the layer, shaped to broadcast against the weights.
            - `seed`: an integer, another one for each kernel.
            - `axis`: the axes of the kernel that count its units, such as `(-1,)`. A gate of an LSTM or GRU counts
              as units of its own.

            With none, scores can be taken anew at any training step; otherwise they are taken once, when `prune` is
            called.
        per_unit: all weights of a unit (filter, neuron) have the same score. A channel is then scored where it is
            created.
        comparable: scores of different layers can be ranked together as they are.
        dynamic: `score` follows the weights while they are trained: those of channels too are scored anew each time a
            mask grows, and a pruned weight may come back. It needs nothing but the weights, as TensorFlow tensors.
        roles: which weights count in the score of a channel, if not `per_unit`: `"out"` for those that create it,
            `"in"` for those that read it, `"each"` for those with one value a channel.
        of_channels: scores whole channels by itself, `(model, groups, seed) -> [scores of the channels of a group]`;
            otherwise a channel has the sum of the scores of its weights.

    Example:
        >>> Criterion("smallest", lambda weights: -tf.abs(weights), comparable=True).reads_data
        False
    """

    name: str
    score: Callable[..., Any]
    needs: tuple[str, ...] = ()
    per_unit: bool = False
    comparable: bool = False
    dynamic: bool = False
    roles: tuple[str, ...] = ROLES
    of_channels: ChannelScores | None = None

    @property
    def reads_data(self) -> bool:
        """Whether it needs something that is measured on data."""
        return not MEASURED.isdisjoint(self.needs)

    @property
    def counted_roles(self) -> tuple[str, ...]:
        """Which weights count in the score of a channel."""
        return ("out",) if self.per_unit else self.roles


def magnitude(weights: Tensor) -> Tensor:
    """Absolute value (Han et al. 2015, https://arxiv.org/abs/1506.02626; Zhu and Gupta 2017).

    Example:
        >>> magnitude(tf.constant([-2.0, 0.5])).numpy().tolist()
        [2.0, 0.5]
    """
    return tf.abs(weights)


def gradient_magnitude(weights: Tensor, gradients: Tensor) -> Tensor:
    """Absolute gradient: how much the loss hangs on a weight (as RigL ranks connections, Evci et al. 2020,
    https://arxiv.org/abs/1911.11134).

    Example:
        >>> gradient_magnitude(tf.constant([4.0, 0.0]), tf.constant([0.5, -3.0])).numpy().tolist()
        [0.5, 3.0]
    """
    return tf.abs(gradients)


def taylor(weights: Tensor, gradients: Tensor) -> Tensor:
    """`|w * g|`, the change of the loss to first order if the weight became 0 (Molchanov et al. 2017,
    https://arxiv.org/abs/1611.06440; for single weights Lee et al. 2019, https://arxiv.org/abs/1810.02340).

    Example:
        >>> taylor(tf.constant([4.0, 0.25]), tf.constant([0.5, -3.0])).numpy().tolist()
        [2.0, 0.75]
    """
    return tf.abs(tf.multiply(weights, gradients))


def random(weights: Tensor, seed: int) -> Tensor:
    """Uniform in [0, 1), the same for the same seed and shape: the baseline (Liu et al. 2022,
    https://arxiv.org/abs/2202.02643).

    Example:
        >>> weights = tf.zeros(3)
        >>> bool(tf.reduce_all(random(weights, seed=1) == random(weights, seed=1)))
        True
    """
    return tf.random.stateless_uniform(weights.shape, seed=np.array([seed, 0], "int64"))


def neuron(weights: Tensor, axis: int | tuple[int, ...] = -1) -> Tensor:
    """Sum of the absolute weights of each unit, for all of its weights (Li et al. 2017,
    https://arxiv.org/abs/1608.08710).

    Args:
        weights: a kernel.
        axis: the axis, or axes, that count the units.

    Example:
        >>> neuron(tf.constant([[1.0, -2.0], [3.0, 0.5]])).numpy().tolist()
        [[4.0, 2.5], [4.0, 2.5]]
    """
    rank = len(weights.shape)
    units = {int(index) % rank for index in np.atleast_1d(axis)}
    others = [index for index in range(rank) if index not in units]
    return tf.broadcast_to(tf.reduce_sum(tf.abs(weights), others, keepdims=True), weights.shape)


def entropy(weights: Tensor, activations: np.ndarray, axis: int | tuple[int, ...] = -1, bins: int = 10) -> np.ndarray:
    """Information of each unit, for all of its weights: the entropy of its activations over the samples, in bits.

    The range of each unit is cut into bins of equal width, so a unit that always gives the same value has entropy 0,
    and none has more than `log2(bins)` (Luo and Wu 2017, https://arxiv.org/abs/1706.05791).

    Args:
        weights: a kernel.
        activations: `(samples, units)`.
        axis: the axis of `weights` that counts the units.
        bins: number of bins.

    Example:
        >>> activations = np.array([[0.0, 5.0], [1.0, 5.0]])
        >>> entropy(np.ones((1, 2), "float32"), activations).tolist()
        [[1.0, 0.0]]
    """
    activations = np.asarray(activations, "float64")
    shares = np.stack([np.histogram(unit, bins)[0] for unit in activations.T]) / len(activations)
    bits = -np.sum(shares * np.log2(np.where(shares > 0, shares, 1)), axis=1) + 0.0  # no -0.0
    (unit_axis,) = np.atleast_1d(axis)
    return np.broadcast_to(along(bits, int(unit_axis), len(weights.shape)), weights.shape).astype("float32")


def bn_scale(weights: Tensor, gamma: Tensor) -> Tensor:
    """Absolute scale of the batch normalization behind each unit, for all of its weights (Liu et al. 2017,
    https://arxiv.org/abs/1708.06519).

    Example:
        >>> bn_scale(tf.ones((2, 2)), gamma=tf.constant([[-0.5, 2.0]])).numpy().tolist()
        [[0.5, 2.0], [0.5, 2.0]]
    """
    return tf.broadcast_to(tf.abs(gamma), weights.shape)


def wanda(weights: Tensor, input_norms: Tensor) -> Tensor:
    """`|w| * norm` of the input feature that the weight multiplies (Sun et al. 2023,
    https://arxiv.org/abs/2306.11695).

    Example:
        >>> wanda(tf.constant([[1.0, -2.0], [3.0, 1.0]]), input_norms=tf.constant([[2.0], [0.5]])).numpy().tolist()
        [[2.0, 4.0], [1.5, 0.5]]
    """
    return tf.abs(weights) * input_norms


def random_channels(model: keras.Model, groups: Sequence[Group], seed: int) -> list[np.ndarray]:
    """A number drawn for each channel: sums over its weights would grow alike with their count."""
    generator = np.random.default_rng(seed)
    return [generator.uniform(size=len(group.channels)) for group in groups]


def bn_scale_channels(model: keras.Model, groups: Sequence[Group], seed: int) -> list[np.ndarray]:
    """The sum of |gamma| of all batch normalizations over a channel."""
    layers = [layer for layer in sublayers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    scales = {id(layer.gamma) for layer in layers if layer.scale}
    return [_scale_sums(group, scales) for group in groups]


def _scale_sums(group: Group, scales: set[int]) -> np.ndarray:
    gammas = [slot for slot in group.slots if id(slot.variable) in scales]
    if not gammas:
        raise InvalidArgumentError(
            "criterion='bn_scale' needs a batch normalization with a scale behind each pruned layer.",
            received=f"none behind {', '.join(group.paths)}",
            fix="Leave these layers out with `exclude`, or take another criterion.",
        )
    scores = np.zeros(1 + max(int(slot.labels.max()) for slot in gammas))
    for slot in gammas:
        np.add.at(scores, slot.labels, np.abs(slot.variable.numpy()))
    return scores[group.channels]


MAGNITUDE = Criterion("magnitude", magnitude, comparable=True, dynamic=True)
CRITERIA = {
    criterion.name: criterion
    for criterion in (
        MAGNITUDE,
        Criterion("gradient", gradient_magnitude, ("gradients",), comparable=True),
        Criterion("taylor", taylor, ("gradients",), comparable=True),
        Criterion("random", random, ("seed",), comparable=True, of_channels=random_channels),
        Criterion("entropy", entropy, ("activations", "axis"), per_unit=True, comparable=True),
        Criterion("neuron", neuron, ("axis",), per_unit=True),
        Criterion("bn_scale", bn_scale, ("gamma",), per_unit=True, of_channels=bn_scale_channels),
        Criterion("wanda", wanda, ("input_norms",), roles=("in",)),
    )
}


def along(vector: Sequence[float] | np.ndarray, axis: int, rank: int) -> np.ndarray:
    """A vector as an array of `rank` axes, its values along `axis`.

    Example:
        >>> along([1.0, 2.0, 3.0], axis=-2, rank=4).shape
        (1, 1, 3, 1)
    """
    shape = [1] * rank
    shape[axis] = -1
    return np.reshape(vector, shape)


def as_criterion(criterion: str | Callable | Criterion) -> Criterion:
    """The criterion of that name, or a user's function as one.

    A function takes the weights first, and by keyword what it names of `NEEDS`; other parameters need a default. It
    gets NumPy arrays; one of the weights alone gets tensors where a schedule calls it inside the training step.

    Raises:
        InvalidArgumentError: an unknown name, or a function with parameters that nothing is known to fill.

    Example:
        >>> def kept_by_gradient(weights, gradients):
        ...     return abs(gradients) / (abs(weights) + 1)
        >>> as_criterion(kept_by_gradient).needs
        ('gradients',)
    """
    if isinstance(criterion, Criterion):
        return _checked(criterion)
    if isinstance(criterion, str) and criterion in CRITERIA:
        return CRITERIA[criterion]
    known = next((known for known in CRITERIA.values() if known.score is criterion), None)
    if known is not None:
        return known
    if isinstance(criterion, str) or not callable(criterion):
        raise InvalidArgumentError(
            f"`criterion` must be one of {', '.join(CRITERIA)}, or a function of the weights.", received=repr(criterion)
        )
    return Criterion(getattr(criterion, "__name__", type(criterion).__name__), criterion, _needs(criterion))


def _checked(criterion: Criterion) -> Criterion:
    if not callable(criterion.score) or set(criterion.needs) - set(NEEDS):
        raise InvalidArgumentError(
            f"A `Criterion` has a function `score` and `needs` out of {', '.join(NEEDS)}.", received=criterion
        )
    if criterion.dynamic and criterion.needs:
        raise InvalidArgumentError(
            "A `Criterion` that is `dynamic` must need nothing but the weights.",
            received=f"needs={criterion.needs}",
            fix="Leave `dynamic` out: what it needs is then taken once, when `prune` is called.",
        )
    if not criterion.roles or set(criterion.roles) - set(ROLES):
        raise InvalidArgumentError(
            f"The `roles` of a `Criterion` must be some of {', '.join(ROLES)}.", received=repr(criterion.roles)
        )
    return criterion


def _needs(function: Callable) -> tuple[str, ...]:
    """The needs that a function names in its signature, in the order of its parameters."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # functions written in C, as NumPy's, may not tell theirs: of the weights alone then
        return ()
    fixed = getattr(function, "keywords", {})  # of a functools.partial
    needs = tuple(p.name for p in parameters[1:] if p.name in NEEDS and p.name not in fixed)
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = all(p.name in NEEDS or p.default is not p.empty or p.kind in open_ended for p in parameters[1:])
    by_keyword = all(p.kind is not p.POSITIONAL_ONLY for p in parameters[1:] if p.name in needs)
    takes_weights = bool(parameters) and parameters[0].kind not in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
    if not (known and by_keyword and takes_weights and parameters[0].name not in NEEDS):
        raise InvalidArgumentError(
            f"A function as `criterion` takes the weights first, then by keyword any of {', '.join(NEEDS)}.",
            received=f"{getattr(function, '__name__', 'a function')}{inspect.signature(function)}",
            fix="Fix other parameters with `functools.partial`, or give them a default.",
        )
    return needs
