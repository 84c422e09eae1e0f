"""A progress bar for work that is not a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(description: str, total: int | None, verbose: int) -> Iterator[Callable[[], None]]:
    """Gives a function to call after each of `total` steps, None if not known; nothing is shown with `verbose=0`.

    Example:
        >>> with progress("count", 3, verbose=0) as step:
        ...     for _ in range(3):
        ...         step()
    """
    if not verbose:
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
