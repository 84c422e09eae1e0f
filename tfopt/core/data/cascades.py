"""Models in turn: each answers what it is sure of and leaves the rest to the next. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Run = Callable[[list[np.ndarray]], np.ndarray]


def in_turn(
    arrays: list[np.ndarray], stages: Sequence[Run], thresholds: Sequence[float], from_logits: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The answers to all samples, and the number of the stage that gave each.

    Args:
        arrays: the inputs, (n, ...) each.
        stages: functions from inputs to answers (n, classes). One is called with the samples that those before it were
            not sure of, and not at all if there are none.
        thresholds: confidence from which a stage answers, one for each but the last.
        from_logits: as for `confidence`.

    Example:
        >>> def cheap(inputs):
        ...     return np.stack([inputs[0], 1 - inputs[0]], -1)
        >>> def large(inputs):
        ...     return np.array([[0.0, 1.0]] * len(inputs[0]))
        >>> answers, stage = in_turn([np.array([0.9, 0.6])], [cheap, large], [0.8], False)
        >>> answers.argmax(-1).tolist(), stage.tolist()
        ([0, 1], [0, 1])
    """
    rows = np.arange(len(arrays[0]))
    stage_of = np.zeros(len(rows), int)
    answers = np.empty(0)
    for number, (run, threshold) in enumerate(zip(stages, (*thresholds, 0.0), strict=True)):
        new = run([array[rows] for array in arrays])
        if not number:
            answers = np.empty((len(rows), *new.shape[1:]), new.dtype)
        answers[rows], stage_of[rows] = new, number
        rows = rows[confidence(new, from_logits) < np.float32(threshold)]
        if not len(rows):
            break
    return answers, stage_of


def confidence(answers: np.ndarray, from_logits: bool) -> np.ndarray:
    """The highest probability of each row; of a single probability `p` the larger of `p` and `1 - p`.

    Args:
        answers: probabilities (n, classes), or logits, whose softmax gives them.

    Example:
        >>> confidence(np.array([[0.25], [0.75]]), False).tolist()
        [0.75, 0.75]
    """
    if answers.shape[-1] == 1:
        return np.maximum(answers, 1 - answers)[:, 0]
    if not from_logits:
        return answers.max(-1)
    return 1 / np.exp(answers - answers.max(-1, keepdims=True)).sum(-1)
