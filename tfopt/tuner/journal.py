"""The state of a search on disk: a file a trial, each written whole, so that nothing is lost when the process dies."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfopt.core.errors import FileError
from tfopt.core.files import PART
from tfopt.core.journal import FolderJournal, Head

RUNNING, COMPLETE, STOPPED, INFEASIBLE, FAILED = "running", "complete", "stopped", "infeasible", "failed"
DEATHS = 3  # of workers in one trial, until it is given up


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


class SearchJournal:
    """The folder of a search.

    Args:
        directory: made if it is not there; None is a folder that goes when the journal does.
        settings: `{name: fingerprint}` of all that the trials depend on.
        shared: other processes write to it at the same time.
        classes: of users' layers in the models, by name.

    Raises:
        FileError: the folder cannot be made, or holds something else.
        InvalidArgumentError: it holds a search with other settings.
    """

    def __init__(
        self,
        directory: str | os.PathLike | None,
        settings: Mapping[str, str],
        *,
        shared: bool = False,
        classes: Mapping[str, type] | None = None,
    ):
        self._settings, self._classes = dict(settings), classes
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="tfopt-search-")
            directory = self._temporary.name
        head = Head("search", 3, "directory", self._settings)
        self._files = FolderJournal(directory, head, damaged="Pass the path of a new folder.", shared=shared)
        if not shared:
            self._clear_backups()

    def __reduce__(self) -> Any:
        return _shared, (self.directory, self._settings)

    @property
    def directory(self) -> Path:
        return self._files.folder

    def trials(self) -> list[Trial]:
        """All trials on record, in order."""
        return [self._read(name) for name in self._names("json")]

    def trial(self, number: int) -> Trial | None:
        """A trial on record."""
        name = _name(number, "json")
        return self._read(name) if name in self._files else None

    def write(self, trial: Trial) -> None:
        """Records the trial; what it needed to go on is no longer kept once it is over."""
        self._files.write_json(_name(trial.number, "json"), dataclasses.asdict(trial))
        if trial.state != RUNNING:
            self._files.remove(_name(trial.number, "npz"))
            self._files.clear_parts(_name(trial.number, ""))  # of a worker that died in this trial

    def forget(self, number: int) -> None:
        """Drops what there is of a trial."""
        for suffix in ("json", "npz", "keras"):
            self._files.remove(_name(number, suffix))

    def model_path(self, number: int) -> Path:
        """Where the trained model of a trial is."""
        return self._files.path(_name(number, "keras"))

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
        return keras.saving.load_model(self.model_path(trial.number), custom_objects=self._classes)

    def save_model(self, number: int, model: Any) -> None:
        """Saves the model of a trial, whole or not at all."""
        with self._files.replacing(_name(number, "keras")) as part:
            model.save(part)

    def save_backup(self, number: int, backup: Backup) -> None:
        """Keeps what a training needs to go on after this epoch."""
        arrays = {f"w{i}": _plain(array) for i, array in enumerate(backup.weights)}
        arrays |= {f"b{i}": _plain(array) for i, array in enumerate(backup.best_weights)}
        facts = {"run": backup.run, "history": backup.history, "best_epoch": backup.best_epoch}
        self._files.write_arrays(_name(number, "npz"), {"facts": np.array(json.dumps(facts)), **arrays})

    def backup(self, number: int) -> Backup | None:
        """What was kept of the training that is under way in a trial, if anything."""
        name = _name(number, "npz")
        if name not in self._files:
            return None
        with self._files.reading(name):
            arrays = self._files.read_arrays(name)
            facts = json.loads(str(arrays.pop("facts")))
            lists = {key: [arrays[f"{key}{i}"] for i in range(len(arrays)) if f"{key}{i}" in arrays] for key in "wb"}
            return Backup(facts["run"], facts["history"], lists["w"], lists["b"], facts["best_epoch"])

    def new_folder(self, name: str) -> tempfile.TemporaryDirectory:
        """A folder in this one, for other processes; if this process is killed, the next search removes it."""
        return tempfile.TemporaryDirectory(
            prefix=f".{name}.", suffix=PART, dir=self.directory, ignore_cleanup_errors=True
        )

    def _read(self, name: str) -> Trial:
        with self._files.reading(name):
            content = self._files.read_json(name)
            runs = tuple(Run(**run) for run in content.pop("runs"))
            return Trial(**content, runs=runs)

    def _clear_backups(self) -> None:
        """Removes what a process left that was killed between the two steps of `write`."""
        for name in self._names("npz"):
            trial = self.trial(int(Path(name).stem))
            if trial is not None and trial.state != RUNNING:
                self._files.remove(name)

    def _names(self, suffix: str) -> list[str]:
        """Of the files of trials, in the order of their numbers."""
        return sorted(path.name for path in self.directory.glob(f"*.{suffix}") if path.stem.isdecimal())


def _name(number: int, suffix: str) -> str:
    """Of a file of a trial."""
    return f"{number:05d}.{suffix}"


def _shared(directory: Path, settings: Mapping[str, str]) -> SearchJournal:
    """The journal as another process has it."""
    return SearchJournal(directory, settings, shared=True)


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that numpy's files know: bfloat16 as float32."""
    return array.astype("float32") if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array
