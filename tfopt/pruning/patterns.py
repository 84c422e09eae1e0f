"""What is pruned as one, and which of it stays: scores in, boolean masks out.

A pattern divides a kernel into units (single weights, or blocks of them) that stay or go together. Kernels are read as
matrices: the last axis holds the outputs, all others together are the rows, over which the products are summed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from tfopt.core.checks import as_choice, as_whole, is_whole
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.types import Tensor

POOLINGS = ("average", "max")


def kept_count(size: int, sparsity: Tensor) -> tf.Tensor:
    """How many of `size` units stay at a sparsity, at least one, as an int32 scalar.

    The rounding is that of TFMOT's `pruning_impl.py`, in double precision.

    Example:
        >>> int(kept_count(10, 0.75))
        2
    """
    kept = tf.round(tf.cast(size, tf.float64) * (1.0 - tf.cast(sparsity, tf.float64)))
    return tf.cast(tf.maximum(kept, 1.0), tf.int32)


@dataclass(frozen=True)
class Pattern:
    """Base of the patterns whose units are ranked by their scores. A pattern says what its units are."""

    @property
    def fixed_sparsity(self) -> float | None:
        """The sparsity that the pattern gives each kernel; None where it is to be chosen."""
        return None

    def units(self, shape: Sequence[int]) -> int:
        """How many units a kernel of that shape has."""
        raise NotImplementedError

    def pooled(self, scores: Tensor) -> tf.Tensor:
        """The score of each unit, `(units,)`."""
        raise NotImplementedError

    def spread(self, stays: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        """The mask of a kernel from what `pooled` counts as its units."""
        raise NotImplementedError

    def mask(self, scores: Tensor, kept: Tensor) -> tf.Tensor:
        """True in the `kept` units of highest score, exactly so many: of equals the first in memory order stay.

        Args:
            scores: float tensor of any static shape.
            kept: int32 scalar.
        """
        return self.masks([scores], kept, [1])[0]

    def masks(
        self, scores: Sequence[Tensor], kept: Tensor, floors: Sequence[int], alive: Sequence[Tensor] | None = None
    ) -> list[tf.Tensor]:
        """The masks of kernels whose units are ranked together.

        Args:
            scores: a float tensor for each kernel.
            kept: how many units stay in all of them, an int32 scalar; more where the floors ask for it.
            floors: how many stay at least in each.
            alive: boolean tensors; a unit where none is True comes after all others.
        """
        pooled = [tf.cast(self.pooled(each), tf.float32) for each in scores]
        if alive is not None:
            living = [self.pooled(tf.cast(each, tf.float32)) > 0 for each in alive]
            pooled = [_or_else(lives, each, -math.inf) for lives, each in zip(living, pooled, strict=True)]
        if len(pooled) > 1:
            pooled = [_or_else(~highest(each, n), each, math.inf) for each, n in zip(pooled, floors, strict=True)]
        stays = highest(tf.concat(pooled, 0), tf.maximum(kept, sum(floors)))
        parts = tf.split(stays, [int(each.shape[0]) for each in pooled])
        return [self.spread(part, each.shape) for part, each in zip(parts, scores, strict=True)]


@dataclass(frozen=True)
class Element(Pattern):
    """Single weights.

    Example:
        >>> Element().mask(tf.constant([[3.0, 1.0], [1.0, 1.0]]), 2).numpy().tolist()
        [[True, True], [False, False]]
    """

    def units(self, shape: Sequence[int]) -> int:
        return math.prod(shape)

    def pooled(self, scores: Tensor) -> tf.Tensor:
        return tf.reshape(scores, [-1])

    def spread(self, stays: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        return tf.reshape(stays, shape)


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of the kernel's matrix, pruned as one; a runtime can skip them whole.

    The matrix of a dense kernel `(in, out)` is the kernel, that of a convolution `(kh, kw, in, out)` has
    `kh * kw * in` rows. Blocks at the lower and right border are smaller where the matrix is no multiple of them.

    Args:
        height: rows of a block, along the inputs.
        width: columns of a block, along the outputs.
        pooling: the score of a block is the `"average"` or the `"max"` of its weights' scores.

    Raises:
        InvalidArgumentError: a size below 1, or another pooling.

    Source: TFMOT's `block_size` and `block_pooling_type`, for kernels of any rank. TFMOT pools a border block that
    lacks two rows (columns) or more over weights beside it; here each block is scored by its own.

    Example:
        >>> scores = tf.constant([[1.0, 1.0, 9.0, 9.0], [1.0, 1.0, 0.0, 0.0]])
        >>> Block(1, 2).mask(scores, 2).numpy().astype(int).tolist()
        [[1, 1, 1, 1], [0, 0, 0, 0]]
    """

    height: int
    width: int
    pooling: str = "average"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            what = "a whole number of at least 1, in elements of the block"
            object.__setattr__(self, name, as_whole(name, getattr(self, name), least=1, what=what))
        object.__setattr__(self, "pooling", as_choice("pooling", self.pooling, POOLINGS))

    def units(self, shape: Sequence[int]) -> int:
        return math.prod(self._grid(shape))

    def pooled(self, scores: Tensor) -> tf.Tensor:
        height, width = _matrix_shape(scores.shape)
        rows, columns = self._grid(scores.shape)
        # What is beyond the border counts neither in a maximum nor in a mean.
        inside = tf.pad(tf.ones((height, width), tf.bool), self._beyond(scores.shape))
        padded = tf.pad(tf.reshape(scores, (height, width)), self._beyond(scores.shape))
        blocks, counts = (tf.reshape(each, (rows, self.height, columns, self.width)) for each in (padded, inside))
        if self.pooling == "max":
            return tf.reshape(tf.reduce_max(_or_else(counts, blocks, -math.inf), axis=(1, 3)), [-1])
        counted = tf.reduce_sum(tf.cast(counts, scores.dtype), axis=(1, 3))
        return tf.reshape(tf.reduce_sum(blocks, axis=(1, 3)) / counted, [-1])

    def spread(self, stays: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        height, width = _matrix_shape(shape)
        grid = tf.reshape(stays, self._grid(shape))
        weights = tf.repeat(tf.repeat(grid, self.height, axis=0), self.width, axis=1)
        return tf.reshape(weights[:height, :width], shape)

    def _grid(self, shape: Sequence[int]) -> tuple[int, int]:
        height, width = _matrix_shape(shape)
        return -(-height // self.height), -(-width // self.width)

    def _beyond(self, shape: Sequence[int]) -> list[list[int]]:
        """Rows and columns that the border blocks lack."""
        height, width = _matrix_shape(shape)
        return [[0, -height % self.height], [0, -width % self.width]]


@dataclass(frozen=True)
class ZerosInGroups(Element):
    """`zeros` zeros in each `size` consecutive weights along the input axis, the last but one of a kernel.

    2 in 4 is the 2:4 sparsity of the field (https://arxiv.org/abs/2104.08378). In a last group that is not full, as
    many weights stay as in a full one.

    Raises:
        InvalidArgumentError: unless 0 < zeros < size.

    Source: TFMOT's `sparsity_m_by_n=(zeros, size)` (`pruning_utils.py`), for kernels of any rank.

    Example:
        >>> ZerosInGroups(2, 4).mask(tf.constant([[4.0], [1.0], [3.0], [2.0], [1.0]])).numpy().ravel().tolist()
        [True, False, True, False, True]
    """

    zeros: int
    size: int

    def __post_init__(self) -> None:
        numbers = (self.zeros, self.size)
        if not all(map(is_whole, numbers)) or not 0 < self.zeros < self.size:
            raise InvalidArgumentError(
                "A pattern (m, n) must put m zeros into each n weights, 0 < m < n.",
                received=repr(numbers),
                fix="(2, 4), also written '2:4', is what sparse tensor cores take.",
            )
        object.__setattr__(self, "zeros", int(self.zeros))
        object.__setattr__(self, "size", int(self.size))

    @property
    def fixed_sparsity(self) -> float:
        return self.zeros / self.size

    def __str__(self) -> str:
        return f"{self.zeros}:{self.size}"

    def mask(self, scores: Tensor, kept: Tensor = None) -> tf.Tensor:
        """True at the weights of highest score in each group; of equals the first stay. `kept` is of no account."""
        is_matrix = len(scores.shape) > 1
        inputs_last = tf.linalg.matrix_transpose(scores) if is_matrix else tf.convert_to_tensor(scores)
        rows = inputs_last.shape[-1]
        beyond = [[0, 0]] * (len(scores.shape) - 1) + [[0, -rows % self.size]]
        padded = tf.pad(inputs_last, beyond, constant_values=-math.inf)
        order = _descending(tf.reshape(padded, (-1, self.size)))
        stays = tf.argsort(order) < self.size - self.zeros
        stays = tf.reshape(stays, padded.shape)[..., :rows]
        return tf.linalg.matrix_transpose(stays) if is_matrix else stays

    def masks(
        self, scores: Sequence[Tensor], kept: Tensor, floors: Sequence[int], alive: Sequence[Tensor] | None = None
    ) -> list[tf.Tensor]:
        living = [None] * len(scores) if alive is None else alive
        ranked = [each if a is None else _or_else(a, each, -math.inf) for each, a in zip(scores, living, strict=True)]
        return [self.mask(each) for each in ranked]


def as_pattern(pattern: object) -> Pattern:
    """The pattern written as `"element"`, `(2, 4)`, `"2:4"`, `"4x1"` or a `Block`."""
    if isinstance(pattern, Pattern):
        return pattern
    if pattern == "element":
        return Element()
    if isinstance(pattern, (tuple, list)) and len(pattern) == 2:
        return ZerosInGroups(*pattern)
    written = re.fullmatch(r"(\d+)([:x])(\d+)", pattern) if isinstance(pattern, str) else None
    if written is None:
        raise InvalidArgumentError(
            "`pattern` is 'element', n:m as (2, 4) or '2:4', or a block as '4x1' or `tfopt.Block(4, 1)`.",
            received=repr(pattern),
        )
    first, sign, second = written.groups()
    return (ZerosInGroups if sign == ":" else Block)(int(first), int(second))


def highest(scores: Tensor, kept: Tensor) -> tf.Tensor:
    """True at the `kept` highest of the scores `(n,)`; of equals the first stay."""
    return tf.math.invert_permutation(_descending(scores)) < kept


def _descending(scores: Tensor) -> tf.Tensor:
    return tf.argsort(scores, direction="DESCENDING", stable=True)


def _or_else(condition: Tensor, scores: Tensor, other: float) -> tf.Tensor:
    """The scores where the condition holds, `other` elsewhere."""
    return tf.where(condition, scores, tf.cast(other, scores.dtype))


def _matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    return math.prod(shape[:-1]), int(shape[-1])
