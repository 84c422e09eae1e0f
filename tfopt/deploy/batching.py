"""Many samples through an interpreter at once, where that changes no output."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from tfopt.deploy.session import Session


def run_batch(session: Session, arrays: list[np.ndarray], size: int) -> list[np.ndarray]:
    """Runs up to `size` samples; a batch that falls short is filled up, so that all batches are of one size."""
    count = len(arrays[0])
    if count < size:
        arrays = [np.concatenate([a, np.repeat(a[-1:], size - count, axis=0)]) for a in arrays]
    return [values[:count] for values in session.run(arrays)]


def batched_session(
    openings: Iterable[Callable[[], Session]], arrays: list[np.ndarray], size: int, like: Session | None
) -> Session | None:
    """The first session that runs batches of `size` samples, None if there is none. `arrays` are what is to be run.

    Args:
        openings: open the sessions to try.
        like: the session whose outputs, sample by sample, have to come out to the bit; None where the file itself
            declares a free batch and only its shapes are in doubt, as a Reshape to a constant may sit inside.
    """
    rows = np.linspace(0, len(arrays[0]) - 1, size).astype(int)
    some = [array[rows] for array in arrays]
    for opening in openings:
        try:
            session = opening()
            together = session.run(some)
        except (ValueError, RuntimeError):  # the shapes inside do not go with a batch
            continue
        if like is not None and _equal_and_telling(together, like, some):
            return session
        if like is None and all(values.ndim > 0 and len(values) == size for values in together):
            return session
    return None


def _equal_and_telling(together: list[np.ndarray], session: Session, arrays: list[np.ndarray]) -> bool:
    """True if the samples give the same one by one; outputs that are all alike would not tell one from another."""
    alone = [session.run([array[row : row + 1] for array in arrays]) for row in range(len(arrays[0]))]
    one_by_one = [np.concatenate(values) for values in zip(*alone, strict=True)]
    equal = all(np.array_equal(a, b) for a, b in zip(together, one_by_one, strict=True))
    return equal and any((values != values[:1]).any() for values in one_by_one)
