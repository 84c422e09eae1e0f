"""The state of a search on disk: a file a trial, each written whole, so that nothing is lost when the process dies."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfopt.core.errors import FileError, InvalidArgumentError, first_line
from tfopt.core.files import write_whole

RUNNING, COMPLETE, STOPPED, INFEASIBLE, FAILED = "running", "complete", "stopped", "infeasible", "failed"
_KIND = "tfopt search 1"


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
    """

    number: int
    values: dict[str, Any]
    state: str = RUNNING
    figures: dict[str, float] = field(default_factory=dict)
    violation: float = 0.0
    runs: tuple[Run, ...] = ()
    seconds: float = 0.0
    reason: str = ""

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

    Raises:
        FileError: the folder cannot be made, or holds something else.
        InvalidArgumentError: it holds a search with other settings.
    """

    def __init__(self, directory: str | os.PathLike | None, settings: Mapping[str, str]):
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="tfopt-search-")
            directory = self._temporary.name
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError("`directory` is a folder to write to.", received=f"'{directory}': {error}") from error
        head = self.directory / "search.json"
        if head.exists():
            self._check(head, settings)
        elif any(self.directory.glob("[!.]*")):
            raise FileError("`directory` is empty, or that of an earlier search.", received=f"'{self.directory}'")
        else:
            write_whole(head, json.dumps({"kind": _KIND, "settings": dict(settings)}, indent=1))
        for left_over in self.directory.glob(".*.tmp"):  # of a process that was killed while it wrote
            left_over.unlink(missing_ok=True)
        for backup in self.directory.glob("[0-9]*.npz"):  # or between the two steps of `write`
            record = backup.with_suffix(".json")
            if record.exists() and self._read(record).state != RUNNING:
                backup.unlink(missing_ok=True)

    def trials(self) -> list[Trial]:
        """All trials on record, in order."""
        return [self._read(path) for path in sorted(self.directory.glob("[0-9]*.json"))]

    def write(self, trial: Trial) -> None:
        """Records the trial; what it needed to go on is no longer kept once it is over."""
        write_whole(self._path(trial.number, "json"), json.dumps(dataclasses.asdict(trial), indent=1))
        if trial.state != RUNNING:
            self._path(trial.number, "npz").unlink(missing_ok=True)

    def model_path(self, number: int) -> Path:
        """Where the trained model of a trial is."""
        return self._path(number, "keras")

    def save_model(self, number: int, model: Any) -> None:
        """Saves the model of a trial, whole or not at all."""
        unfinished = self.directory / f".{number:05d}.tmp.keras"
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

    def _check(self, head: Path, settings: Mapping[str, str]) -> None:
        try:
            content = json.loads(head.read_text())
            kind, recorded = content["kind"], dict(content["settings"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FileError("`directory` is that of a search.", received=f"'{head}': {first_line(error)}") from error
        other = [name for name, value in settings.items() if recorded.get(name) != value]
        if kind != _KIND or other:
            raise InvalidArgumentError(
                "A search goes on with the same space, data and settings only.",
                received=f"'{self.directory}', with another {' and another '.join(other) or 'format'}",
                fix="Pass what was passed then, or a new `directory`.",
            )


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that numpy's files know: bfloat16 as float32."""
    return array.astype("float32") if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array
