"""Rows of arrays on disk, in files that are written whole: a long computation goes on where it was stopped."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.journal import FolderJournal, Head
from tfopt.core.models.fingerprints import fingerprint

SHARD_ROWS = 8192
SHARD_BYTES = 2**25  # no shard is larger, unless a single batch is

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
        self._journal = FolderJournal(path, Head("cache_teacher", 2, "path", settings))
        self._record: dict[str, Any] = {"batch_size": batch_size, "complete": False, "shards": []}
        if _MANIFEST in self._journal:
            with self._journal.reading(_MANIFEST):
                self._record |= self._journal.read_json(_MANIFEST)
                recorded = [(shard["file"], shard["content"]) for shard in self._shards]
            self._check_batch_size(batch_size)
            for file, content in recorded:
                self._check_content(file, content)
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
        return ShardTable([self._journal.path(shard["file"]) for shard in self._shards])

    @property
    def _shards(self) -> list[dict[str, Any]]:
        return self._record["shards"]

    def _file(self) -> str:
        return f"shard-{self._number:05d}.npy"

    def _is_stored(self) -> bool:
        return self._number < len(self._shards) and self._file() in self._journal

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
            raise self._other_data(f"other samples in the {len(self._samples)} batches of '{self._file()}'")
        if self._rows:
            content = _as_npy(self._rows)
            self._journal.write(self._file(), content)
            entry = {"file": self._file(), "batches": len(self._samples), "samples": samples}
            self._shards[self._number : self._number + 1] = [{**entry, "content": _digest(content)}]
            self._record["complete"] |= is_last
            self._write_manifest()
        self._number, self._samples, self._rows = self._number + 1, [], []

    def _write_manifest(self) -> None:
        self._journal.write_json(_MANIFEST, self._record)

    def _check_batch_size(self, batch_size: int) -> None:
        if not self._record["complete"] and self.batch_size != batch_size:
            raise InvalidArgumentError(
                "`batch_size` must stay the same until a cache is complete.",
                received=f"{batch_size}, for '{self._journal.folder}' of batches of {self.batch_size}",
                fix=f"Pass `batch_size={self.batch_size}`, or the path of a new folder.",
            )

    def _check_content(self, file: str, recorded: str) -> None:
        """A shard that is gone is made anew; one that is not what was written is an error."""
        if file not in self._journal:
            return
        with self._journal.reading(file):
            content = np.memmap(self._journal.path(file), mode="r")
        if _digest(content) != recorded:
            raise self._journal.damage(file, f"{len(content)} bytes that are not those written")

    def _other_data(self, received: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            "A cache belongs to its data: the same samples in the same order.",
            received=f"{received} in '{self._journal.folder}'",
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
