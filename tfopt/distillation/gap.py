"""How far a student is from its teacher on the same samples."""

from __future__ import annotations

from typing import Any

from keras import ops

from tfopt.distillation.scores import Task


def gap(task: Task | None, student: Any, teacher: Any, labels: Any) -> Any:
    """How much better the teacher is: its accuracy less the student's, of numbers its mean absolute error less.

    Args:
        task: what the output says: classes, labels that do not exclude each other, or numbers.
        student, teacher: float32 logits or numbers (batch, ...).
        labels: class numbers or one-hot rows; 0 and 1; or numbers.

    Returns:
        A scalar, above 0 where the teacher is better.

    Example:
        >>> import numpy as np
        >>> float(gap(Task.CLASSES, np.array([[0.0, 1.0]]), np.array([[2.0, 1.0]]), np.array([0])))
        1.0
    """
    return ops.mean(_score(task, teacher, labels)) - ops.mean(_score(task, student, labels))


def disagreement(task: Task | None, student: Any, teacher: Any) -> Any:
    """The share of answers that differ; of numbers the mean absolute difference.

    Args: as `gap`.

    Example:
        >>> import numpy as np
        >>> float(disagreement(Task.LABELS, np.array([[1.0, -1.0]]), np.array([[3.0, 4.0]])))
        0.5
    """
    if task is Task.CLASSES:
        return ops.mean(_differs(ops.argmax(student, -1), ops.argmax(teacher, -1)))
    if task is Task.LABELS:
        return ops.mean(_differs(student > 0, teacher > 0))
    return ops.mean(ops.abs(student - teacher))


def _score(task: Task | None, scores: Any, labels: Any) -> Any:
    if task is Task.CLASSES:
        return 1.0 - _differs(ops.argmax(scores, -1), ops.cast(_class_numbers(labels, scores), "int32"))
    labels = ops.reshape(ops.cast(labels, "float32"), ops.shape(scores))
    if task is Task.LABELS:
        return 1.0 - _differs(scores > 0, labels > 0.5)
    return -ops.abs(scores - labels)


def _class_numbers(labels: Any, scores: Any) -> Any:
    if len(labels.shape) < len(scores.shape):
        return labels
    return labels[..., 0] if labels.shape[-1] == 1 else ops.argmax(labels, -1)


def _differs(one: Any, other: Any) -> Any:
    return ops.cast(ops.not_equal(ops.cast(one, "int32"), ops.cast(other, "int32")), "float32")
