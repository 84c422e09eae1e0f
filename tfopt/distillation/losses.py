"""Losses between the outputs of a student and of its teacher: tensors in, one loss a sample out, shape (batch,).

All is computed in float32, whatever comes in. Positions inside a sample, as the pixels of a segmentation or the steps
of a sequence, are averaged. A mask (batch, ...) of booleans leaves positions out, one of numbers weighs them. Logits
may be log-probabilities as well, as a softmax does not see the difference, and may be infinite.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from tfopt.core.errors import InvalidArgumentError
from tfopt.distillation.shapes import check_classes, check_same_shape, fits, sample_mean

INFINITE = 1e20  # stands for infinity in logits: differences and products with a squared temperature stay finite
ABSENT = -1e30  # logit of a class that is left out, below any other
SERIES = 11  # terms that give the exponential function to float32 in [-1, 1]
REGRESSIONS = ("mse", "mae", "huber")


def soft_targets(student: Any, teacher: Any, temperature: float, mask: Any = None) -> Any:
    """Divergence of the softened class probabilities, `T^2 KL(softmax(teacher / T) || softmax(student / T))`.

    The factor keeps the size of the gradients as T grows. For large T the loss becomes half the squared difference of
    the centred logits over the number of classes.

    Args:
        student, teacher: logits (batch, ..., classes).
        temperature: T, above 0.
        mask: booleans (batch, ...) of the positions that count; None for all.

    Returns:
        float32 (batch,), in nats.

    Raises:
        InvalidArgumentError: if the classes are not the same, or fewer than two.

    Source: Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531, section 2.

    Example:
        >>> import numpy as np
        >>> loss = soft_targets(np.log([[0.5, 0.5]]), np.log([[0.75, 0.25]]), temperature=1.0)
        >>> round(float(loss[0]), 5)  # 0.75 log(0.75 / 0.5) + 0.25 log(0.25 / 0.5)
        0.13081
    """
    check_classes(student.shape, teacher.shape)
    divergence = _divergence(_softened(student, temperature), _softened(teacher, temperature))
    return temperature**2 * sample_mean(divergence, mask)


def decoupled_targets(
    student: Any,
    teacher: Any,
    labels: Any,
    temperature: float,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
    mask: Any = None,
) -> Any:
    """Soft targets in two parts with weights of their own (DKD), times T^2.

    The first is the divergence of "the labelled class or another" (TCKD), the second that of the probabilities among
    the other classes (NCKD). Soft targets are TCKD + (1 - p) NCKD, with the teacher's probability p of the labelled
    class: the surer the teacher, the less they teach of the other classes.

    Args:
        student, teacher: logits (batch, ..., classes).
        labels: class numbers (batch, ...) or (batch, ..., 1), or rows (batch, ..., classes), whose largest entry
            counts. A class number out of range gives NaN.
        temperature: T, above 0.
        target_weight, other_weight: the paper's alpha and beta.
        mask: booleans (batch, ...) of the positions that count; None for all.

    Returns:
        float32 (batch,), in nats.

    Raises:
        InvalidArgumentError: if the classes are not the same, fewer than two, or labels have none of these shapes.

    Source: Zhao et al. 2022, https://arxiv.org/abs/2203.08679, section 3.

    Example:
        >>> import numpy as np
        >>> student, teacher = np.log([[0.5, 0.25, 0.25]]), np.log([[0.5, 0.375, 0.125]])
        >>> loss = decoupled_targets(student, teacher, np.array([0]), 1.0, target_weight=1.0, other_weight=2.0)
        >>> round(float(loss[0]), 5)  # twice the divergence of [0.75, 0.25] from [0.5, 0.5]
        0.26162
    """
    check_classes(student.shape, teacher.shape)
    target = _target(labels, student.shape)
    student, teacher = (_from_largest(_softened(logits, temperature)) for logits in (student, teacher))
    others = [ops.where(target, ABSENT, logits) for logits in (student, teacher)]
    both = [
        ops.stack([ops.sum(ops.where(target, logits, 0.0), -1), ops.logsumexp(rest, -1)], -1)
        for logits, rest in zip((student, teacher), others, strict=True)
    ]
    loss = target_weight * _divergence(*both) + other_weight * _divergence(*others)
    loss = ops.where(ops.any(target, -1), loss, float("nan"))
    return temperature**2 * sample_mean(loss, mask)


def binary_targets(student: Any, teacher: Any, temperature: float, mask: Any = None) -> Any:
    """Divergence of softened probabilities of labels that do not exclude each other, mean over the labels, times T^2.

    Args:
        student, teacher: logits of sigmoids (batch, ...).
        temperature: T, above 0.
        mask: booleans (batch, ...) of the positions that count; None for all.

    Returns:
        float32 (batch,), in nats.

    Raises:
        InvalidArgumentError: if the shapes differ.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, for each label as two classes; Yang et al. 2023,
    https://arxiv.org/abs/2308.06453.

    Example:
        >>> import numpy as np
        >>> loss = binary_targets(np.zeros((1, 2)), np.array([[np.log(3.0), 0.0]]), temperature=1.0)
        >>> round(float(loss[0]), 5)  # half the divergence of [0.75, 0.25] from [0.5, 0.5]
        0.06541
    """
    check_same_shape(student.shape, teacher.shape, "Give both as many labels.")
    pairs = [ops.stack([z, ops.zeros_like(z)], -1) for z in (_softened(x, temperature) for x in (student, teacher))]
    return temperature**2 * sample_mean(_divergence(*pairs), mask)


def regression_targets(student: Any, teacher: Any, kind: str = "mse", mask: Any = None) -> Any:
    """Mean error of each sample against the teacher's outputs.

    Args:
        student, teacher: outputs (batch, ...).
        kind: "mse", "mae", or "huber", which is half the square up to an error of 1 and linear beyond.
        mask: booleans (batch, ...) of the positions that count; None for all.

    Returns:
        float32 (batch,).

    Raises:
        InvalidArgumentError: if the shapes differ.

    Source: Ba and Caruana 2014, https://arxiv.org/abs/1312.6184, for "mse" (there on logits).

    Example:
        >>> import numpy as np
        >>> loss = regression_targets(np.array([[1.0, 5.0]]), np.array([[2.0, 2.0]]), "huber")
        >>> loss.numpy().tolist()  # the mean of 0.5 and 2.5
        [1.5]
    """
    check_same_shape(student.shape, teacher.shape, "Give both as many outputs.")
    error = ops.cast(student, "float32") - ops.cast(teacher, "float32")
    errors = {"mse": ops.square, "mae": ops.abs, "huber": huber}
    return sample_mean(errors[kind](error), mask)


def bounded_targets(student: Any, teacher: Any, labels: Any, margin: float = 0.0, mask: Any = None) -> Any:
    """Mean squared error against the labels, of samples in which the student does not beat its teacher by a margin.

    The teacher is a bound to reach, not a target: its own errors are not learned.

    Args:
        student, teacher: outputs (batch, ...).
        labels: in the same shape, or without a last axis of 1.
        margin: how much lower than the teacher's the student's error has to be, in squared units, 0 or more.
        mask: booleans (batch, ...) of the positions that count; None for all.

    Returns:
        float32 (batch,).

    Raises:
        InvalidArgumentError: if the shapes differ.

    Source: Chen et al. 2017, "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS,
    https://papers.nips.cc/paper/6676, the teacher bounded regression loss.

    Example:
        >>> import numpy as np
        >>> outputs = np.array([[1.0], [4.0]]), np.array([[2.0], [3.0]])
        >>> bounded_targets(*outputs, labels=np.zeros((2, 1))).numpy().tolist()  # the first is better than its teacher
        [0.0, 16.0]
    """
    check_same_shape(student.shape, teacher.shape, "Give both as many outputs.")
    if len(labels.shape) == len(student.shape) - 1 and student.shape[-1] == 1:
        labels = ops.expand_dims(labels, -1)
    if not fits(labels.shape, student.shape):
        raise InvalidArgumentError(
            "Labels are numbers in the shape of the outputs.",
            received=f"labels {tuple(labels.shape)}, outputs {tuple(student.shape)}",
            fix="Give one label for each output.",
        )
    labels = ops.cast(labels, "float32")
    own, bound = (sample_mean(ops.square(ops.cast(x, "float32") - labels), mask) for x in (student, teacher))
    return ops.where(own + margin > bound, own, 0.0)


def huber(error: Any) -> Any:
    """Half the square up to 1, linear with slope 1 beyond.

    Example:
        >>> import numpy as np
        >>> huber(np.array([-0.5, 3.0])).numpy().tolist()
        [0.125, 2.5]
    """
    size = ops.abs(error)
    square = ops.minimum(size, 1.0)
    return square * (size - 0.5 * square)


def _softened(logits: Any, temperature: float) -> Any:
    """Finite float32 logits over T."""
    return ops.clip(ops.cast(logits, "float32"), -INFINITE, INFINITE) / temperature


def _divergence(student: Any, teacher: Any) -> Any:
    """KL(softmax(teacher) || softmax(student)) over the last axis, with small values as exact as large ones.

    With p the teacher's probabilities and x = student - teacher, less its mean under p, it equals log(sum(p exp(x))),
    and log(1 + sum(p (exp(x) - 1 - x))). Nothing cancels in the second, which is what a high temperature needs: there
    the divergence falls with T^-2 and would drown in the rounding of logarithms of probabilities.
    """
    log_teacher = ops.log_softmax(teacher, -1)
    probabilities = ops.exp(log_teacher)
    x = _from_largest(student) - _from_largest(teacher)
    x = x - ops.sum(probabilities * x, -1, keepdims=True)
    near = ops.max(ops.abs(x), -1, keepdims=True) <= 1.0
    # The place that `where` leaves out gets a harmless 0, or its overflow would be a NaN in the gradient.
    small = ops.log1p(ops.sum(probabilities * _curvature(ops.where(near, x, 0.0)), -1))
    large = ops.sum(probabilities * (log_teacher - ops.log_softmax(student, -1)), -1)
    return ops.where(near[..., 0], small, large)


def _from_largest(logits: Any) -> Any:
    return logits - ops.stop_gradient(ops.max(logits, -1, keepdims=True))


def _curvature(x: Any) -> Any:
    """exp(x) - 1 - x in [-1, 1], by its series: the difference itself has few digits near 0."""
    series = ops.ones_like(x)
    for n in range(SERIES, 2, -1):
        series = 1.0 + x / n * series
    return 0.5 * ops.square(x) * series


def _target(labels: Any, scores: Any) -> Any:
    """Booleans (batch, ..., classes), true at the labelled class."""
    classes, rank, shape = scores[-1], len(scores), tuple(labels.shape)
    if len(shape) == rank and shape[-1] == classes:
        labels = ops.argmax(labels, -1)
    elif len(shape) == rank and shape[-1] == 1:
        labels = ops.squeeze(labels, -1)
    elif len(shape) != rank - 1:
        raise InvalidArgumentError(
            "Labels are class numbers (batch, ...) or rows (batch, ..., classes).",
            received=f"labels {shape} for scores {tuple(scores)}",
            fix="Give each position one class number, or one number for each class.",
        )
    return ops.equal(ops.cast(labels, "int32")[..., None], ops.arange(classes, dtype="int32"))
