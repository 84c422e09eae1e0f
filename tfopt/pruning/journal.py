"""Results of a long measurement, kept in a file as they come, so that a second call goes on where the first stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfopt.core.errors import FileError, InvalidArgumentError, first_line
from tfopt.core.files import check_writable, write_whole


class Journal:
    """Results by key, in a JSON file that is written whole after each one.

    Args:
        path: of the file, which is read if it is there; None keeps the results in memory only.
        kind: the verb whose results these are.
        settings: `{name: fingerprint}` of all that a result depends on besides its key.

    Raises:
        FileError: the file is not a journal of this kind, or cannot be written.
        InvalidArgumentError: it holds results of other settings.
    """

    def __init__(self, path: str | os.PathLike | None, kind: str, settings: Mapping[str, str]):
        self._path = None if path is None else check_writable(path)
        self._kind = f"tfopt {kind} 1"
        self._settings = dict(settings)
        self._results: dict[str, Any] = {}
        if self._path is not None and self._path.exists():
            self._results = self._read(self._path)

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def result(self, key: str, measure: Callable[[], Any]) -> Any:
        """The result on record, or that of `measure()`, then recorded."""
        if key not in self._results:
            self._results[key] = measure()
            if self._path is not None:
                content = {"kind": self._kind, "settings": self._settings, "results": self._results}
                write_whole(self._path, json.dumps(content, indent=1))
        return self._results[key]

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text())
            kind, settings, results = content["kind"], dict(content["settings"]), dict(content["results"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self._not_a_journal(path, first_line(error)) from error
        if kind != self._kind:
            raise self._not_a_journal(path, repr(kind))
        other = [name for name, value in self._settings.items() if settings.get(name) != value]
        if other:
            raise InvalidArgumentError(
                "`resume` goes on with the same model, data and settings only.",
                received=f"'{path}', recorded with another {' and another '.join(other)}",
                fix="Pass what was passed then, or the path of a new file.",
            )
        return results

    def _not_a_journal(self, path: Path, received: str) -> FileError:
        return FileError(
            f"`resume` is a file that an earlier call wrote ({self._kind}), or a new one.",
            received=f"'{path}': {received}",
            fix="Choose another path, or delete the file.",
        )
