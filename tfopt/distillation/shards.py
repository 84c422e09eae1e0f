"""Rows of arrays on disk, in files that are written whole: a long computation goes on where it was stopped."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt.core.errors import FileError, InvalidArgumentError, first_line
from tfopt.core.files import write_whole
from tfopt.core.models.fingerprints import fingerprint

SHARD_ROWS = 8192
SHARD_BYTES = 2**25  # no shard is larger, unless a single batch is

_KIND = "tfopt teacher cache 1"
_MANIFEST = "manifest.json"

Rows = dict[str, np.ndarray]  # column -> array, samples first


class ShardFolder:
    """A folder of shards: each holds the rows of some batches, and a manifest says of which.

    Every batch is passed to `add`, also those whose rows are there already: their samples are compared with the record.

    Args:
        path: of the folder, which is made if it is not there.
        settings: `{name: value}` of all that the rows depend on besides the samples.
        batch_size: of the batches to come.

    Raises:
        FileError: it is a folder of something else, a file in it is damaged, or it cannot be written.
        InvalidArgumentError: it holds rows of other settings.
    """

    def __init__(self, path: str | os.PathLike, settings: Mapping[str, Any], batch_size: int):
        self._path = _checked_folder(Path(path))
        self._record: dict[str, Any] = {"kind": _KIND, "settings": dict(settings), "batch_size": batch_size}
        self._record |= {"complete": False, "shards": []}
        if (self._path / _MANIFEST).exists():
            self._record = _read_manifest(self._path / _MANIFEST)
            self._check_settings(settings, batch_size)
            for shard in self._shards:
                self._check_content(self._path / shard["file"], shard["content"])
        else:
            self._write_manifest()
        self._samples: list[str] = []  # of the shard that grows: a fingerprint for each batch
        self._rows: list[Rows] = []
        self._number = 0

    @property
    def batch_size(self) -> int:
        """Of the batches that `add` takes: of a complete folder, that with which it was made."""
        return self._record["batch_size"]

    def add(self, samples: Sequence[np.ndarray], rows: Callable[[], Rows]) -> None:
        """Takes the next batch; `rows()` is called if its rows are not there yet."""
        if self._record["complete"] and self._number == len(self._shards):
            raise self._other_data("more batches than were recorded")
        self._samples.append(fingerprint(list(samples)))
        if not self._is_stored():
            self._rows.append(rows())
            check_columns(self._rows[0], self._rows[-1])
        if len(self._samples) == self._batches_a_shard():
            self._close_shard()

    def finish(self) -> ShardTable:
        """All rows, after the last batch."""
        if self._samples and self._number == len(self._shards):
            self._close_shard(is_last=True)
        if self._samples or self._number < len(self._shards):
            raise self._other_data("fewer batches than were recorded")
        if not self._record["complete"]:
            self._record["complete"] = True
            self._write_manifest()
        return ShardTable([self._path / shard["file"] for shard in self._shards])

    @property
    def _shards(self) -> list[dict[str, Any]]:
        return self._record["shards"]

    def _file(self) -> Path:
        return self._path / f"shard-{self._number:05d}.npy"

    def _is_stored(self) -> bool:
        return self._number < len(self._shards) and self._file().exists()

    def _batches_a_shard(self) -> int:
        if self._number < len(self._shards):
            return self._shards[self._number]["batches"]
        if self._shards:
            return self._shards[0]["batches"]
        columns = list(self._rows[0].values())
        return max(1, min(SHARD_ROWS // len(columns[0]), SHARD_BYTES // sum(column.nbytes for column in columns)))

    def _close_shard(self, is_last: bool = False) -> None:
        samples = fingerprint(self._samples)
        if self._number < len(self._shards) and self._shards[self._number]["samples"] != samples:
            raise self._other_data(f"other samples in the {len(self._samples)} batches of '{self._file().name}'")
        if self._rows:
            content = _as_npy(self._rows)
            write_whole(self._file(), content)
            entry = {"file": self._file().name, "batches": len(self._samples), "samples": samples}
            self._shards[self._number : self._number + 1] = [{**entry, "content": _digest(content)}]
            self._record["complete"] |= is_last
            self._write_manifest()
        self._number, self._samples, self._rows = self._number + 1, [], []

    def _write_manifest(self) -> None:
        write_whole(self._path / _MANIFEST, json.dumps(self._record, indent=1))

    def _check_settings(self, settings: Mapping[str, Any], batch_size: int) -> None:
        recorded = self._record["settings"]
        other = [name for name, value in settings.items() if recorded.get(name) != value]
        if not self._record["complete"] and self.batch_size != batch_size:
            other.append(f"batch_size ({self.batch_size}, not {batch_size})")
        if other:
            raise InvalidArgumentError(
                "A cache belongs to one teacher, its layers and a dtype.",
                received=f"'{self._path}', made with another {' and another '.join(other)}",
                fix="Pass what was passed then, or the path of a new folder.",
            )

    def _check_content(self, file: Path, recorded: str) -> None:
        """A shard that is gone is made anew; one that is not what was written is an error."""
        try:
            content = _digest(np.memmap(file, mode="r")) if file.exists() else recorded
        except (OSError, ValueError) as error:
            raise _damaged(file, first_line(error)) from error
        if content != recorded:
            raise _damaged(file, f"{file.stat().st_size} bytes that are not those written")

    def _other_data(self, received: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            "A cache belongs to its data: the same samples in the same order.",
            received=f"{received} in '{self._path}'",
            fix="Pass the data as it was then, without random augmentation or shuffling, or the path of a new folder.",
        )


class ShardTable:
    """Rows in files, of which only those that are asked for are read.

    Args:
        files: all of the same columns, in the order of the rows.
    """

    def __init__(self, files: Sequence[Path]):
        self._shards = [np.load(file, mmap_mode="r") for file in files]
        self._starts = np.cumsum([0, *map(len, self._shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def columns(self) -> dict[str, np.dtype]:
        """Name -> dtype with the shape of a row."""
        dtype = self._shards[0].dtype
        return {name: dtype[name] for name in dtype.names}

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at the indices, as arrays of their own."""
        dtype = self._shards[0].dtype
        taken = np.empty(len(indices), f"V{dtype.itemsize}")  # numpy copies bytes faster than the fields of a record
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(shards):
            here = shards == number
            taken[here] = self._shards[number].view(taken.dtype)[indices[here] - self._starts[number]]
        records = taken.view(dtype)
        return {name: np.ascontiguousarray(records[name]) for name in dtype.names}


def check_columns(first: Rows, rows: Rows) -> None:
    """Raises unless a sample has the same columns, dtypes and shapes in all batches."""

    def kind(batch: Rows) -> dict[str, tuple]:
        return {name: (column.dtype, column.shape[1:]) for name, column in batch.items()}

    for name, (dtype, shape) in kind(first).items():
        if kind(rows).get(name) != (dtype, shape):
            raise InvalidArgumentError(
                "All samples of a cache have the same dtype and shape.",
                received=f"{name} of {dtype} {shape}, then {' '.join(map(str, kind(rows).get(name, ['none'])))}",
                fix="Pad all sequences to one length, or train with the teacher itself instead of a cache.",
            )


def _as_npy(batches: Sequence[Rows]) -> bytes:
    """The content of a .npy file: an array of records, one a sample."""
    first = batches[0]
    dtype = np.dtype([(name, column.dtype, column.shape[1:]) for name, column in first.items()])
    records = np.empty(sum(len(next(iter(rows.values()))) for rows in batches), dtype)
    for name in first:
        np.concatenate([rows[name] for rows in batches], out=records[name])
    stream = io.BytesIO()
    np.save(stream, records, allow_pickle=False)
    return stream.getvalue()


def _digest(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _checked_folder(path: Path) -> Path:
    """The folder, made if it is not there; parts of files that a killed process left in it are cleared away."""
    try:
        path.mkdir(exist_ok=True)
        for part in path.glob(".*.tmp"):
            part.unlink()
        is_other = not (path / _MANIFEST).exists() and any(path.iterdir())
    except OSError as error:
        raise FileError(
            "The path of a cache names a folder; the one that it is in has to exist.", received=f"'{path}': {error}"
        ) from error
    if is_other:
        raise FileError(
            "A cache has a folder of its own.",
            received=f"'{path}', which holds other files",
            fix=f"Pass the path of a new folder, such as '{path / 'teacher'}'.",
        )
    return path


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
        kind = record["kind"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(file, first_line(error)) from error
    if kind != _KIND:
        raise _damaged(file, repr(kind))
    return record


def _damaged(file: Path, received: str) -> FileError:
    if file.name == _MANIFEST:
        fix = "Pass the path of a new folder."
    else:
        fix = "Delete the file: the next call makes it anew."
    return FileError(f"A cache holds what was written to it ({_KIND}).", received=f"'{file}': {received}", fix=fix)
