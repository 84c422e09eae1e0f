"""The state of a search on disk: a file a trial, each written whole, so that nothing is lost when the process dies."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfopt.core.errors import FileError, InvalidArgumentError, first_line
from tfopt.core.files import write_whole

RUNNING, COMPLETE, STOPPED, INFEASIBLE, FAILED = "running", "complete", "stopped", "infeasible", "failed"
DEATHS = 3  # of workers in one trial, until it is given up
_KIND = "tfopt search 2"


@dataclass(frozen=True)
class Run:
    """One training of a trial.

    Args:
        figures: the logs of its best epoch.
        history: of each epoch the logs.
        stopped: why it ended before its last epoch, if it did.
    """

    figures: dict[str, float]
    history: list[dict[str, float]]
    stopped: str | None = None


@dataclass(frozen=True)
class Trial:
    """One point of the space, and what came of it.

    Args:
        number: from 0 on.
        values: of the hyperparameters.
        state: `"running"`, `"complete"`, `"stopped"` (early, with figures that count), `"infeasible"` (a constraint
            was broken before training), `"failed"`.
        figures: costs, and the logs of the best epoch, the mean over `runs`.
        violation: by how much it breaks the constraints, as a fraction of their bounds; 0 if it does not.
        runs: trainings, one for each execution and fold.
        seconds: that the trial took.
        reason: why it failed, stopped or is infeasible.
        proposed_after: how many trials were over when it was proposed.
        ended_as: its place among the trials in the order of their ends, from 0 on.
    """

    number: int
    values: dict[str, Any]
    state: str = RUNNING
    figures: dict[str, float] = field(default_factory=dict)
    violation: float = 0.0
    runs: tuple[Run, ...] = ()
    seconds: float = 0.0
    reason: str = ""
    proposed_after: int = 0
    ended_as: int = 0

    @property
    def is_trained(self) -> bool:
        """True if it has all figures."""
        return self.state in (COMPLETE, STOPPED)


@dataclass(frozen=True)
class Backup:
    """A training under way, as it was after an epoch.

    Args:
        run: which training of the trial.
        weights: of the model and the optimizer.
        best_weights: of the model after its best epoch.
        best_epoch: counted from the first of `history`.
    """

    run: int
    history: list[dict[str, float]]
    weights: list[np.ndarray]
    best_weights: list[np.ndarray]
    best_epoch: int


class Journal:
    """The folder of a search.

    Args:
        directory: made if it is not there; None is a folder that goes when the journal does.
        settings: `{name: fingerprint}` of all that the trials depend on.
        shared: other processes write to it at the same time.

    Raises:
        FileError: the folder cannot be made, or holds something else.
        InvalidArgumentError: it holds a search with other settings.
    """

    def __init__(self, directory: str | os.PathLike | None, settings: Mapping[str, str], *, shared: bool = False):
        self.settings = dict(settings)
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="tfopt-search-")
            directory = self._temporary.name
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError("`directory` is a folder to write to.", received=f"'{directory}': {error}") from error
        head = self.directory / "search.json"
        holds_files = any(self.directory.glob("[!.]*"))  # looked at first: another process may begin the search now
        if head.exists():
            self._check(head)
        elif holds_files:
            raise FileError("`directory` is empty, or that of an earlier search.", received=f"'{self.directory}'")
        else:
            write_whole(head, json.dumps({"kind": _KIND, "settings": self.settings}, indent=1))
        if not shared:
            self._clear_left_overs()

    def __reduce__(self) -> Any:
        return _shared, (self.directory, self.settings)

    def trials(self) -> list[Trial]:
        """All trials on record, in order."""
        return [self._read(path) for path in sorted(self.directory.glob("[0-9]*.json"))]

    def trial(self, number: int) -> Trial | None:
        """A trial on record."""
        path = self._path(number, "json")
        return self._read(path) if path.exists() else None

    def write(self, trial: Trial) -> None:
        """Records the trial; what it needed to go on is no longer kept once it is over."""
        write_whole(self._path(trial.number, "json"), json.dumps(dataclasses.asdict(trial), indent=1))
        if trial.state != RUNNING:
            self._path(trial.number, "npz").unlink(missing_ok=True)
            self._clear(f".{trial.number:05d}.*.tmp*")  # of a worker that died in this trial

    def forget(self, number: int) -> None:
        """Drops what there is of a trial."""
        self._clear(f"{number:05d}.*")

    def model_path(self, number: int) -> Path:
        """Where the trained model of a trial is."""
        return self._path(number, "keras")

    def load_model(self, trial: Trial) -> Any:
        """The trained model of a trial.

        Raises:
            FileError: it is not in this folder.
        """
        recorded = self.trial(trial.number)
        if recorded is None or recorded.values != trial.values or not self.model_path(trial.number).exists():
            raise FileError(
                "The model of a trial is in the `directory` of the worker that trained it.",
                received=f"trial {trial.number}, which is not in '{self.directory}'",
                fix="Let all workers have one `directory`, on a file system that they share.",
            )
        return keras.saving.load_model(self.model_path(trial.number))

    def save_model(self, number: int, model: Any) -> None:
        """Saves the model of a trial, whole or not at all."""
        unfinished = self.directory / f".{number:05d}.{os.getpid()}.tmp.keras"
        model.save(unfinished)
        os.replace(unfinished, self.model_path(number))

    def save_backup(self, number: int, backup: Backup) -> None:
        """Keeps what a training needs to go on after this epoch."""
        arrays = {f"w{i}": _plain(array) for i, array in enumerate(backup.weights)}
        arrays |= {f"b{i}": _plain(array) for i, array in enumerate(backup.best_weights)}
        facts = {"run": backup.run, "history": backup.history, "best_epoch": backup.best_epoch}
        stream = io.BytesIO()
        np.savez(stream, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]
        write_whole(self._path(number, "npz"), stream.getvalue())

    def backup(self, number: int) -> Backup | None:
        """What was kept of the training that is under way in a trial, if anything."""
        path = self._path(number, "npz")
        if not path.exists():
            return None
        with np.load(path) as arrays:
            facts = json.loads(str(arrays["facts"]))
            lists = {
                key: [arrays[f"{key}{i}"] for i in range(len(arrays.files)) if f"{key}{i}" in arrays] for key in "wb"
            }
        return Backup(facts["run"], facts["history"], lists["w"], lists["b"], facts["best_epoch"])

    def _path(self, number: int, suffix: str) -> Path:
        return self.directory / f"{number:05d}.{suffix}"

    def _read(self, path: Path) -> Trial:
        try:
            content = json.loads(path.read_text())
            runs = tuple(Run(**run) for run in content.pop("runs"))
            return Trial(**content, runs=runs)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FileError(
                "A trial on record has to be readable.", received=f"'{path}': {first_line(error)}"
            ) from error

    def _clear_left_overs(self) -> None:
        """Removes what a process left that was killed while it wrote, or between the two steps of `write`."""
        self._clear(".*.tmp*")
        for backup in self.directory.glob("[0-9]*.npz"):
            record = backup.with_suffix(".json")
            if record.exists() and self._read(record).state != RUNNING:
                backup.unlink(missing_ok=True)

    def _clear(self, pattern: str) -> None:
        for left_over in self.directory.glob(pattern):
            if left_over.is_dir():
                shutil.rmtree(left_over, ignore_errors=True)
            else:
                left_over.unlink(missing_ok=True)

    def _check(self, head: Path) -> None:
        try:
            content = json.loads(head.read_text())
            kind, recorded = content["kind"], dict(content["settings"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FileError("`directory` is that of a search.", received=f"'{head}': {first_line(error)}") from error
        if kind != _KIND:
            raise FileError("`directory` is that of a search of this version.", received=f"'{head}': {kind}")
        check_same(recorded, self.settings, f"'{self.directory}'")


def check_same(recorded: Mapping[str, str], settings: Mapping[str, str], where: str) -> None:
    """Raises unless a search on record has the same settings as this one."""
    other = [name for name in {**recorded, **settings} if recorded.get(name) != settings.get(name)]
    if other:
        raise InvalidArgumentError(
            "A search goes on with the same space, data and settings only.",
            received=f"{where}, with another {' and another '.join(other)}",
            fix="Pass what was passed then, or begin a search of its own elsewhere.",
        )


def _shared(directory: Path, settings: Mapping[str, str]) -> Journal:
    """The journal as another process has it."""
    return Journal(directory, settings, shared=True)


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that numpy's files know: bfloat16 as float32."""
    return array.astype("float32") if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array
