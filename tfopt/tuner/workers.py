"""Several processes on one machine that run the trials of one search."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from tfopt.core.errors import InvalidArgumentError, TfoptError
from tfopt.tuner.journal import DEATHS, FAILED, Trial
from tfopt.tuner.packages import load
from tfopt.tuner.trainer import Trainer
from tfopt.tuner.worker import RAISED, STARTED, UNUSABLE, hand_over

_FAREWELL = 10  # seconds that a worker takes at most to end
_START = (
    "import sys\n"
    "sys.path[:] = sys.argv[3:]\n"  # first: it still begins with the current directory, whatever lies there
    "import signal\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # a Ctrl-C goes to the whole group; the search ends its workers
    "from tfopt.tuner.worker import main\n"
    "main(sys.argv[1], int(sys.argv[2]))\n"
)


class Workers:
    """A team of processes, started as they are needed, each a fresh interpreter. To be used with `with`.

    A worker that dies is replaced, and its trial goes on from its last epoch. Workers end with this process, however
    it ends. Each has its share of the processors, unless the variables of the environment that TensorFlow and OpenMP
    read say otherwise.

    Args:
        size: how many.

    Raises:
        InvalidArgumentError: `cloudpickle` is not installed, the space cannot be pickled, or this is Windows.
    """

    def __init__(self, trainer: Trainer, size: int):
        if os.name == "nt":
            raise InvalidArgumentError(
                "Workers need pipes that processes inherit.",
                received="Windows",
                fix="Search with `workers=1`, under WSL, or with `storage=`, started several times.",
            )
        load("cloudpickle")
        self.size = size
        self._trainer, self._journal = trainer, trainer.journal
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}
        self._deaths: Counter[int] = Counter()

    def __enter__(self) -> Workers:
        self._folder = self._journal.new_folder("workers")
        try:
            hand_over(self._trainer, Path(self._folder.name))
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *reason: Any) -> None:
        for worker in (*self._idle, *self._busy.values()):
            worker.kill()
        self._folder.cleanup()

    def give(self, trial: Trial, hp: Any, deadline: float) -> None:
        worker = self._idle.pop() if self._idle else _Worker(self._folder.name, self.size)
        self._busy[worker.connection] = worker
        worker.give(trial, hp, deadline)

    def ended(self) -> Sequence[tuple[Trial, Any]]:
        found: list[tuple[Trial, Any]] = []
        while not found:
            for connection in wait(list(self._busy)):
                worker = self._busy[connection]  # type: ignore[index]
                try:
                    said, what = worker.connection.recv()
                except (EOFError, OSError):
                    found += self._replace(worker)
                    continue
                if said == RAISED:
                    raise what
                if said == UNUSABLE:
                    raise TfoptError(
                        "A worker must be able to load the space and the data.",
                        received=what,
                        fix="Define functions and classes in the script, or in modules that a new process finds.",
                    )
                if said == STARTED:
                    worker.has_started = True
                else:
                    self._idle.append(self._busy.pop(worker.connection))
                    found.append(what)
        return found

    def _replace(self, worker: _Worker) -> list[tuple[Trial, Any]]:
        """Gives the trial of a worker that died to another; gives it back as failed if that has happened too often."""
        del self._busy[worker.connection]
        how = worker.how_it_ended()
        trial, hp, deadline = worker.task
        trial = self._journal.trial(trial.number) or trial
        self._deaths[trial.number] += 1
        deaths = self._deaths[trial.number]
        if deaths < DEATHS:
            self.give(trial, hp, deadline)
            return []
        if not worker.has_started:
            raise TfoptError("Workers must start.", received=f"{deaths} that ended before, {how}")
        return [(dataclasses.replace(trial, state=FAILED, reason=f"{deaths} workers died in it, {how}"), hp)]


class _Worker:
    """One process."""

    task: tuple[Trial, Any, float]

    def __init__(self, folder: str, size: int):
        self.has_started = False
        self.connection, other = Pipe()
        command = [sys.executable, "-c", _START, folder, str(other.fileno()), *map(str, sys.path)]
        with other:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=[other.fileno()], env=_environment(size)
            )

    def give(self, trial: Trial, hp: Any, deadline: float) -> None:
        self.task = trial, hp, deadline
        with contextlib.suppress(OSError):  # it has died: its end of the connection tells
            self.connection.send(self.task)

    def how_it_ended(self) -> str:
        """To be asked once its end of the connection is closed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_FAREWELL)
        self.kill()
        code = self._process.returncode
        return f"the last with exit code {code}" if code >= 0 else f"the last by {signal.Signals(-code).name}"

    def kill(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()  # type: ignore[union-attr]


def _environment(size: int) -> dict[str, str]:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, processors // size))
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {**dict.fromkeys(names, threads), "TF_FORCE_GPU_ALLOW_GROWTH": "true", **os.environ}
