"""Results of a long computation on disk, kept as they come: a second call goes on where the first stopped.

A journal is a JSON file or a folder. Its head says which verb wrote it and on which settings the results depend.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfopt.core.errors import FileError, InvalidArgumentError, TfoptError, first_line
from tfopt.core.files import check_writable, left_over_parts, replacing, write_whole


@dataclass(frozen=True)
class Head:
    """Whose journal it is, and what the results in it depend on.

    Args:
        verb: whose results are kept.
        version: of the layout and of the fingerprints; journals of another version are refused.
        argument: of the verb, which names the journal.
        settings: `{name: fingerprint}` of all that each result depends on besides its key.
    """

    verb: str
    version: int
    argument: str
    settings: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return f"tfopt {self.verb} {self.version}"

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "settings": dict(self.settings)}

    def check(self, path: Path) -> dict[str, Any]:
        """The content of the file that holds the head.

        Raises:
            FileError: it cannot be read, or another verb or version wrote it.
            InvalidArgumentError: it has other settings.
        """
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise self.refusal(f"'{path}', which cannot be read: {first_line(error)}") from error
        said = content if isinstance(content, dict) else {}
        if said.get("kind") != self.kind:
            raise self.refusal(f"'{path}', whose kind is {said.get('kind')!r} and not {self.kind!r}")
        settings = said.get("settings")
        check_settings(settings if isinstance(settings, dict) else {}, self.settings, self.argument, f"'{path}'")
        return said

    def refusal(self, received: str, fix: str = "Choose another path.") -> FileError:
        return FileError(
            f"`{self.argument}` must be new, or what this version of `{self.verb}` wrote.",
            received=received,
            fix=fix,
        )


def check_settings(recorded: Mapping[str, Any], settings: Mapping[str, Any], argument: str, where: str) -> None:
    """Raises unless the settings on record are those of this call."""
    names = list({**settings, **recorded})
    other = [name for name in names if name not in recorded or recorded[name] != settings.get(name)]
    if other:
        raise InvalidArgumentError(
            f"`{argument}` must be continued with the same {_listed(names)}.",
            received=f"{where}, which differs in {_listed(other)}",
            fix=f"Pass what was passed then, or another `{argument}`.",
        )


class FileJournal:
    """Results by key in a JSON file.

    Args:
        path: of the file, which is read if it is there; None keeps the results in memory only.
        head: what the file must say of itself.

    Raises:
        FileError: the file is something else, or cannot be written.
        InvalidArgumentError: it holds results of other settings.
    """

    def __init__(self, path: str | os.PathLike | None, head: Head):
        self._path = None if path is None else check_writable(path).absolute()
        self._head = head
        self._results: dict[str, Any] = {}
        if self._path is not None and self._path.exists():
            results = head.check(self._path).get("results")
            if not isinstance(results, dict):
                raise head.refusal(f"'{self._path}' without results")
            self._results = results

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def result(self, key: str, measure: Callable[[], Any]) -> Any:
        """The result on record, or that of `measure()`, then recorded."""
        if key not in self._results:
            self._results[key] = measure()
            if self._path is not None:
                write_whole(self._path, json.dumps({**self._head.as_dict(), "results": self._results}, indent=1))
        return self._results[key]


class FolderJournal:
    """A folder of files, each written whole.

    Files that a killed process left unfinished are removed. Files of others are never touched.

    Args:
        path: made if it is not there.
        head: what the folder must say of itself, in the file that is named after the verb.
        damaged: what to do about a file that cannot be read.
        shared: other processes write to the folder at the same time.

    Raises:
        FileError: the folder holds something else, or cannot be written.
        InvalidArgumentError: it holds results of other settings.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        head: Head,
        *,
        damaged: str = "Delete the file; the next call makes it anew.",
        shared: bool = False,
    ):
        self.folder = Path(path).absolute()  # the process may go to another working directory later
        self._head, self._damaged = head, damaged
        file = self.folder / f"{head.verb}.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            is_used = any(not found.name.startswith(".") for found in self.folder.iterdir())
        except OSError as error:
            raise FileError(
                f"`{head.argument}` must be a folder to write to.",
                received=f"'{path}': {error.strerror}",
                fix="Choose another path.",
            ) from error
        if file.exists():  # asked after `is_used`: another process may begin the same journal now
            head.check(file)
        elif is_used:
            own = f"Pass a folder of its own, such as '{self.folder / head.verb}'."
            raise head.refusal(f"'{path}', which holds other files and no '{file.name}'", own)
        else:
            write_whole(file, json.dumps(head.as_dict(), indent=1))
        if not shared:
            self.clear_parts()

    def path(self, name: str) -> Path:
        return self.folder / name

    def __contains__(self, name: str) -> bool:
        return self.path(name).exists()

    def write(self, name: str, content: bytes | str) -> None:
        write_whole(self.path(name), content)

    def replacing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path to write to, for a file that is made by others; see `core.files.replacing`."""
        return replacing(self.path(name), self.path(name).suffix)

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def clear_parts(self, name: str = "") -> None:
        """Removes what killed processes left unfinished of the files whose names begin with `name`."""
        with contextlib.suppress(OSError):  # a folder that is only read may keep them
            for part in left_over_parts(self.folder, name):
                if part.is_dir() and not part.is_symlink():
                    shutil.rmtree(part, ignore_errors=True)
                else:
                    part.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1))

    def read_json(self, name: str) -> Any:
        with self.reading(name):
            return json.loads(self.path(name).read_text())

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        stream = io.BytesIO()
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        self.write(name, stream.getvalue())

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        with self.reading(name), np.load(self.path(name)) as arrays:
            return dict(arrays)

    def arrays(self, name: str, measure: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays on record, or those of `measure()`, then recorded."""
        if name in self:
            return self.read_arrays(name)
        measured = dict(measure())
        self.write_arrays(name, measured)
        return measured

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turns what goes wrong with a damaged file into one error."""
        try:
            yield
        except TfoptError:
            raise
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise self.damage(name, first_line(error)) from error

    def damage(self, name: str, received: str) -> FileError:
        return FileError(
            f"A file in `{self._head.argument}` must be as `{self._head.verb}` wrote it.",
            received=f"'{self.path(name)}': {received}",
            fix=self._damaged,
        )


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
