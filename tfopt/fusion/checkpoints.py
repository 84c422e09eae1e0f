"""Arrays of a long computation, kept in a folder as they come, for a second call to go on where the first stopped."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tfopt.core.errors import FileError, InvalidArgumentError, first_line
from tfopt.core.files import write_whole

SETTINGS = "stack.json"


class Checkpoints:
    """Named arrays, one `.npz` file a piece of work, each written whole, beside a file that says what they are of.

    Args:
        directory: created if missing; None keeps nothing.
        settings: `{name: fingerprint}` of all that the arrays depend on besides their key.

    Raises:
        FileError: the folder holds something else, or cannot be written.
        InvalidArgumentError: it holds the work of other settings.
    """

    def __init__(self, directory: str | os.PathLike | None, settings: Mapping[str, str]):
        self._folder = None if directory is None else _created(directory)
        if self._folder is None:
            return
        path = self._folder / SETTINGS
        if path.exists():
            _check_same(path, settings)
        elif any(not file.name.startswith(".") for file in self._folder.iterdir()):
            raise FileError(
                "`directory` is an empty folder, or one that an earlier call wrote.",
                received=f"'{self._folder}' with files, but without '{SETTINGS}'",
            )
        else:
            write_whole(path, json.dumps(dict(settings), indent=1))

    def arrays(self, key: str, measure: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays on record, or those of `measure()`, then recorded."""
        path = None if self._folder is None else self._folder / f"{key}.npz"
        if path is not None and path.exists():
            return _read(path)
        measured = dict(measure())
        if path is not None:
            stream = io.BytesIO()
            np.savez(stream, **measured)  # type: ignore[arg-type]
            write_whole(path, stream.getvalue())
        return measured


def _created(directory: str | os.PathLike) -> Path:
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError("`directory` is a folder to write to.", received=f"'{folder}': {error.strerror}") from error
    return folder


def _check_same(path: Path, settings: Mapping[str, str]) -> None:
    try:
        recorded = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise FileError(
            "The folder has to say what it holds.",
            received=f"'{path}': {first_line(error)}",
            fix="Choose a new folder.",
        ) from error
    other = [name for name, value in settings.items() if recorded.get(name) != value]
    if other:
        raise InvalidArgumentError(
            "`directory` goes on with the same models, data and settings only.",
            received=f"'{path.parent}', recorded with other {' and other '.join(other)}",
            fix="Pass what was passed then, or a new folder.",
        )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(
            "A file of an earlier call has to be whole.", received=f"'{path}': {first_line(error)}", fix="Delete it."
        ) from error
