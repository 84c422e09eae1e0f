"""How the outputs of branches are brought to one grid and one width, or refused.

A tensor `(batch, ..., width)` has its width on the last axis and a grid on the axes between, none for vectors. The
rules:

1. Grids: larger ones are pooled by average to the smallest, where each axis is a whole multiple of it. Others are
   refused, and so are vectors beside maps: what to do there (flatten, pool, resize) is for the user to say.
2. Widths: the same, unless the fusion concatenates, or projects the others to the width of the first by a learned
   matrix at each position.
3. From one model into the next (`fitted`): another width by such a matrix; another grid by flattening, a learned
   matrix and a reshape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers as kl
from keras import ops

from tfopt.core.errors import InvalidArgumentError

Shape = tuple[int | None, ...]


def as_shapes(shapes: object, name: str) -> list[Shape]:
    """The shapes of the branches that a fusion layer is called with, batch axis first."""
    several = isinstance(shapes, (list, tuple)) and len(shapes) > 0 and isinstance(shapes[0], (list, tuple))
    if not several:
        raise InvalidArgumentError(
            f"'{name}' is called with a list of tensors, one a branch.",
            received=f"a tensor of shape {shapes}" if shapes else "none",
            fix="Write `layer([a, b])`.",
        )
    found: list[Shape] = [tuple(shape) for shape in shapes]  # type: ignore[attr-defined]
    for shape in found:
        if len(shape) < 2 or shape[-1] is None:
            raise InvalidArgumentError(
                f"Each branch of '{name}' gives tensors (batch, ..., width) of a defined width.", received=str(found)
            )
    return found


def check_grids(shapes: Sequence[Shape], name: str) -> None:
    """Raises where rule 1 cannot bring the branches to one grid."""
    target = _smallest(shapes)
    fits = all(
        len(shape) == len(shapes[0])
        and all(
            size == aim or (size and aim and size % aim == 0) for size, aim in zip(shape[1:-1], target, strict=True)
        )
        for shape in shapes
    )
    if not fits:
        raise InvalidArgumentError(
            f"The branches of '{name}' have as many axes, and grids that are whole multiples of the smallest.",
            received=_listed(shapes),
            fix="Put a Flatten, a GlobalAveragePooling2D or a Resizing behind a branch.",
        )


def check_widths(shapes: Sequence[Shape], name: str, fix: str) -> None:
    """Raises unless all branches have the same width."""
    if len({shape[-1] for shape in shapes}) > 1:
        raise InvalidArgumentError(
            f"The branches of '{name}' have the same width: classes, features or channels on the last axis.",
            received=_listed(shapes),
            fix=fix,
        )


def on_one_grid(branches: list) -> list:
    """The branches by rule 1; `check_grids` has passed."""
    target = _smallest([branch.shape for branch in branches])
    return [_pooled(branch, target) for branch in branches]


def projections(shapes: Sequence[Shape], dtype: Any) -> dict[str, kl.Layer]:
    """For rule 2: number of a branch -> the matrix, built, that brings it to the width of the first."""
    width = shapes[0][-1]
    found = {}
    for index, shape in enumerate(shapes):
        if shape[-1] != width:
            found[str(index)] = kl.Dense(width, use_bias=False, name=f"projection_{index}", dtype=dtype)
            found[str(index)].build((None, *_smallest(shapes), shape[-1]))
    return found


def fitted(source: Shape, target: Shape | None, name: str, dtype: Any) -> list[kl.Layer]:
    """The layers of rule 3 from shape `source` to `target`, built; none where it is the same, or anything fits."""
    if target is None or _same(source, target):
        return []
    if len(source) == len(target) and _same(source[:-1], target[:-1]):
        chain: list[kl.Layer] = [kl.Dense(target[-1], use_bias=False, name=f"{name}_projection", dtype=dtype)]
    elif None in source[1:] or None in target[1:]:
        raise InvalidArgumentError(
            "To be projected to another grid, a tensor has defined axes.",
            received=f"{source} into a model that takes {target}",
            fix="Give `keras.Input` a full shape.",
        )
    else:
        sizes = [size for size in target[1:] if size is not None]
        chain = [kl.Flatten(name=f"{name}_flatten", dtype=dtype)] if len(source) > 2 else []
        chain.append(kl.Dense(math.prod(sizes), use_bias=False, name=f"{name}_projection", dtype=dtype))
        chain += [kl.Reshape(sizes, name=f"{name}_reshape", dtype=dtype)] if len(sizes) > 1 else []
    shape = source
    for layer in chain:
        layer.build(shape)
        shape = layer.compute_output_shape(shape)
    return chain


def joined_mask(shapes: Sequence[Shape], masks: Any) -> Any:
    """Which positions of the fused branches some branch counts; None unless each has a mask of its positions.

    Args:
        shapes: of the branches; `check_grids` has passed.
        masks: booleans (batch, steps) of each, or None.

    Example:
        >>> import numpy as np
        >>> masks = np.array([[True, False]]), np.array([[True, False, False, False]])
        >>> joined_mask([(1, 2, 3), (1, 4, 3)], masks).numpy().tolist()
        [[True, False]]
    """
    target = _smallest(shapes)
    if masks is None or any(mask is None or len(mask.shape) != 1 + len(target) for mask in masks):
        return None
    return functools.reduce(ops.logical_or, [_pooled_mask(mask, target) for mask in masks])


def joined_shape(first: Shape, second: Shape, name: str) -> Shape:
    """The shape of `joined` for tensors of these shapes; raises where rule 1 does not bring them together."""
    if len(second) == 2 < len(first):
        second = (*first[:-1], second[-1])
    elif len(first) == 2 < len(second):
        first = (*second[:-1], first[-1])
    check_grids([first, second], name)
    width = (first[-1] or 0) + (second[-1] or 0)
    return (first[0], *_smallest([first, second]), width)


def joined(first: Any, second: Any) -> Any:
    """Two tensors side by side on the last axis, by rule 1; a vector beside a map is repeated at each position."""
    if len(second.shape) == 2 < len(first.shape):
        second = _repeated(second, first.shape)
    elif len(first.shape) == 2 < len(second.shape):
        first = _repeated(first, second.shape)
    return ops.concatenate(on_one_grid([first, second]), -1)


def flat(branch: Any) -> Any:
    """A branch as vectors."""
    return branch if len(branch.shape) == 2 else ops.reshape(branch, (-1, math.prod(branch.shape[1:])))


def _repeated(vector: Any, shape: Shape) -> Any:
    grid = shape[1:-1]
    single = ops.reshape(vector, (-1, *[1] * len(grid), vector.shape[-1]))
    return ops.tile(single, (1, *grid, 1))


def _smallest(shapes: Sequence[Shape]) -> Shape:
    """The smallest grid; an axis that is not defined stays so."""
    first = shapes[0][1:-1]
    if any(len(shape) != len(shapes[0]) for shape in shapes):
        return first
    axes = zip(*(shape[1:-1] for shape in shapes), strict=True)
    return tuple(None if None in sizes else min(size for size in sizes if size is not None) for sizes in axes)


def _pooled(branch: Any, target: Shape) -> Any:
    grid = tuple(branch.shape[1:-1])
    if grid == target:
        return branch
    window = tuple(1 if size == aim else size // aim for size, aim in zip(grid, target, strict=True))
    return ops.average_pool(branch, window, window, "valid", "channels_last")


def _pooled_mask(mask: Any, target: Shape) -> Any:
    """By rule 1: a window counts if one of its positions does."""
    for axis, aim in enumerate(target, start=1):
        size = mask.shape[axis]
        if size != aim:
            shape = ops.shape(mask)
            mask = ops.any(ops.reshape(mask, (*shape[:axis], aim, size // aim, *shape[axis + 1 :])), axis + 1)
    return mask


def _same(first: Shape, second: Shape) -> bool:
    return len(first) == len(second) and all(
        None in (a, b) or a == b for a, b in zip(first[1:], second[1:], strict=True)
    )


def _listed(shapes: Sequence[Shape]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


def input_shape_of(stage: keras.layers.Layer) -> Shape | None:
    """The one shape that a built model or layer takes; None for a layer that takes its first input's."""
    if isinstance(stage, keras.Model) and stage.inputs:
        return tuple(stage.inputs[0].shape)
    return None
