"""What losses ask of the shapes of student and teacher, and how values at many positions become one a sample."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfopt.core.errors import InvalidArgumentError


def check_same_shape(student: Any, teacher: Any, fix: str) -> None:
    """Raises unless the shapes are equal, as far as they are known.

    Args:
        student, teacher: shapes, None where a size is not known.
        fix: what to do where they differ.

    Raises:
        InvalidArgumentError: names both shapes.

    Example:
        >>> check_same_shape((None, 10), (32, 10), "")
        >>> check_same_shape((None, 10), (None, 100), "Give both as many classes.")
        Traceback (most recent call last):
        ...
        tfopt.core.errors.InvalidArgumentError: Student and teacher are of one shape.
        Received: student (None, 10), teacher (None, 100). Give both as many classes.
    """
    if not fits(student, teacher):
        raise InvalidArgumentError(
            "Student and teacher are of one shape.", received=both_shapes(student, teacher), fix=fix
        )


def check_classes(student: Any, teacher: Any) -> None:
    """Raises unless both are scores (batch, ..., classes) of the same two classes or more.

    Raises:
        InvalidArgumentError: names both shapes.

    Example:
        >>> check_classes((None, 7, 10), (None, 7, 10))
    """
    fix = "Give the student the teacher's classes, or distil from features, as FeatureMatching does."
    check_same_shape(student, teacher, fix)
    if len(student) < 2 or student[-1] == 1:
        raise InvalidArgumentError(
            "Classes are told apart by two scores or more a sample, shape (batch, ..., classes).",
            received=both_shapes(student, teacher),
            fix="A single sigmoid is distilled by BinaryTargets, a number by RegressionTargets.",
        )


def check_features(student: Any, teacher: Any, positions: bool = False) -> None:
    """Raises unless both are features (batch, ..., channels) of one rank and each has its channels known.

    Args:
        student, teacher: shapes, None where a size is not known.
        positions: asks for a grid, (batch, steps, channels) at least.

    Raises:
        InvalidArgumentError: names both shapes.

    Example:
        >>> check_features((None, 14, 14, 32), (None, 7, 7, 64), positions=True)
    """
    rank = 3 if positions else 2
    if len(student) != len(teacher) or len(student) < rank or None in (student[-1], teacher[-1]):
        form = "(batch, positions, channels)" if positions else "(batch, channels) or (batch, positions, channels)"
        raise InvalidArgumentError(
            f"Features of student and teacher are both {form}, with as many axes and a known number of channels.",
            received=both_shapes(student, teacher),
            fix="Name layers of one kind, such as two convolutions; RelationalDistance compares any two.",
        )


def fits(one: Any, other: Any) -> bool:
    """True for equal shapes, as far as they are known.

    Example:
        >>> fits((None, 10), (32, 10)), fits((None, 10), (None, 1))
        (True, False)
    """
    return len(one) == len(other) and all(
        m is None or n is None or m == n for m, n in zip(tuple(one), tuple(other), strict=True)
    )


def both_shapes(student: Any, teacher: Any) -> str:
    """Two shapes for an error message.

    Example:
        >>> both_shapes((None, 2), [3, 4])
        'student (None, 2), teacher (3, 4)'
    """
    return f"student {tuple(student)}, teacher {tuple(teacher)}"


def sample_mean(values: Any, mask: Any = None) -> Any:
    """The mean of each sample over its positions, of those in the mask if there is one.

    Args:
        values: tensor (batch, ...).
        mask: booleans (batch, ...) of the rank of `values` or lower. A sample without any has a mean of 0. Or numbers,
            weights of the positions: the mean is then over all positions, each times its weight.

    Returns:
        A tensor (batch,).

    Raises:
        InvalidArgumentError: if the mask is of other positions.

    Example:
        >>> import numpy as np
        >>> sample_mean(np.array([[1.0, 3.0], [2.0, 9.0]]), np.array([[True, True], [True, False]])).numpy().tolist()
        [2.0, 2.0]
    """
    if mask is None:
        return _mean(values, 1)
    if not fits(mask.shape, values.shape[: len(mask.shape)]):
        raise InvalidArgumentError(
            "A mask is of the positions that are compared.",
            received=f"mask {tuple(mask.shape)}, positions {tuple(values.shape)}",
            fix="The layer that ends the sequence must not hand on its mask: see its `compute_mask`.",
        )
    values = _mean(values, len(mask.shape))
    inside = ops.cast(mask, values.dtype)
    axes = tuple(range(1, len(values.shape)))
    counted = ops.where(ops.cast(mask, "bool"), values, 0.0)  # what is outside may be NaN
    if keras.backend.is_float_dtype(keras.backend.standardize_dtype(mask.dtype)):
        return _mean(counted * inside, 1)
    return ops.sum(counted, axes) / ops.maximum(ops.sum(inside, axes), 1.0)


def without_padding(student: Any, teacher: Any, mask: Any) -> tuple[Any, Any]:
    """Both with zeros at the positions outside of a mask.

    Args:
        student, teacher: tensors (batch, positions, channels).
        mask: booleans (batch, positions), or of fewer axes; None where all positions count.

    Raises:
        InvalidArgumentError: if there is a mask and the positions are not the same.

    Example:
        >>> import numpy as np
        >>> both = without_padding(np.ones((1, 2, 1)), np.full((1, 2, 1), 5.0), np.array([[True, False]]))
        >>> [values.numpy().ravel().tolist() for values in both]
        [[1.0, 0.0], [5.0, 0.0]]
    """
    if mask is None:
        return student, teacher
    rank = len(mask.shape)
    shapes = [tuple(x.shape[:rank]) for x in (student, teacher, mask)]
    if min(len(student.shape), len(teacher.shape)) <= rank or not fits(*shapes[:2]) or not fits(*shapes[1:]):
        raise InvalidArgumentError(
            "Features of padded steps are compared at the same steps.",
            received=f"{both_shapes(student.shape, teacher.shape)}, mask {tuple(mask.shape)}",
            fix="Name layers with as many steps, or layers behind the one that ends the sequence.",
        )
    return _zeroed(student, mask), _zeroed(teacher, mask)


def _zeroed(values: Any, mask: Any) -> Any:
    mask = ops.reshape(mask, (*ops.shape(mask), *[1] * (len(values.shape) - len(mask.shape))))
    return ops.where(ops.cast(mask, "bool"), values, 0.0)


def _mean(values: Any, first_axis: int) -> Any:
    """The mean over all axes from one on."""
    axes = tuple(range(first_axis, len(values.shape)))
    return ops.mean(values, axes) if axes else values


def common_grid(student: Any, teacher: Any) -> tuple[Any, Any]:
    """Both on the smaller grid of the two along each axis: the larger one is averaged over adaptive windows.

    Output i of n is the mean of the inputs from floor(i * m / n) to before ceil((i + 1) * m / n), with m inputs: equal
    windows where n divides m, windows that may share an input elsewhere.

    Args:
        student, teacher: tensors (batch, positions, channels), with one to any number of axes of positions.

    Example:
        >>> import numpy as np
        >>> steps = np.arange(3.0).reshape((1, 3, 1))
        >>> [values.numpy().ravel().tolist() for values in common_grid(steps, steps[:, :2])]
        [[0.5, 1.5], [0.0, 1.0]]
    """
    student, teacher = ops.convert_to_tensor(student), ops.convert_to_tensor(teacher)
    for axis in range(1, len(student.shape) - 1):
        sizes = ops.shape(student)[axis], ops.shape(teacher)[axis]
        size = min(sizes) if all(isinstance(n, int) for n in sizes) else ops.minimum(*sizes)
        student, teacher = _pool(student, axis, size), _pool(teacher, axis, size)
    return student, teacher


def _pool(values: Any, axis: int, size: Any) -> Any:
    """Adaptive average pooling along one axis."""
    shape = list(ops.shape(values))
    width = shape[axis]
    if not isinstance(size, int) or width % size:
        pooled = ops.tensordot(values, ops.cast(_windows(width, size), values.dtype), [[axis], [1]])
        return ops.moveaxis(pooled, -1, axis)
    if width == size:
        return values
    return ops.mean(ops.reshape(values, [*shape[:axis], size, width // size, *shape[axis + 1 :]]), axis + 1)


def _windows(width: Any, size: Any) -> Any:
    """The matrix (size, width) that averages over adaptive windows; either number may be known only when it runs."""
    output, column = ops.arange(size)[:, None], ops.arange(width)[None, :]
    start, end = output * width // size, -((output + 1) * -width // size)
    inside = ops.cast(ops.logical_and(column >= start, column < end), "float32")
    return inside / ops.cast(end - start, "float32")
