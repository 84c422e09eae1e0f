"""The trials of a search for the HParams tab of TensorBoard."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfopt.core.errors import FileError
from tfopt.tuner import journal as states
from tfopt.tuner.journal import Trial
from tfopt.tuner.objective import Objective
from tfopt.tuner.packages import load


def write_hparams(directory: str | os.PathLike, objectives: Sequence[Objective], trials: Sequence[Trial]) -> Path:
    """Writes what is varied into `directory`, and a folder a trial below it, whole or not at all.

    Raises:
        FileError: `directory` holds files or cannot be written.
        InvalidArgumentError: the package tensorboard is not installed.
    """
    load("tensorboard")
    target = Path(directory)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileError("`directory` is a folder that is not there yet, or is empty.", received=f"'{target}'")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            unfinished = Path(folder) / "whole"
            _write_experiment(unfinished, objectives, trials)
            for trial in trials:
                _write_trial(unfinished / f"{trial.number:05d}", trial)
            os.replace(unfinished, target)
    except OSError as error:
        raise FileError("The folder could not be written.", received=f"'{target}': {error}") from error
    return target


def _write_experiment(folder: Path, objectives: Sequence[Objective], trials: Sequence[Trial]) -> None:
    """Which hyperparameters and figures there are; the objectives come first."""
    api = load("tensorboard.plugins.hparams.api")
    names = dict.fromkeys(name for trial in trials for name in trial.values)
    figures = dict.fromkeys(
        [*(goal.name for goal in objectives), *(name for trial in trials for name in trial.figures)]
    )
    columns = {name: [trial.values[name] for trial in trials if name in trial.values] for name in names}
    hparams = [api.HParam(name, _domain(values)) for name, values in columns.items()]
    with _writer(folder):
        api.hparams_config(hparams=hparams, metrics=[api.Metric(name) for name in figures])


def _write_trial(folder: Path, trial: Trial) -> None:
    """The values and figures of a trial, and the logs of its first training as scalars by epoch."""
    api = load("tensorboard.plugins.hparams.api")
    summary = load("tensorboard.plugins.hparams.summary")
    history = trial.runs[0].history if trial.runs else []
    with _writer(folder):
        api.hparams(trial.values, trial_id=f"trial {trial.number}, {trial.state}")
        for epoch, logs in enumerate(history):
            for name, value in logs.items():
                tf.summary.scalar(f"epoch/{name}", value, step=epoch + 1)
        for name, value in trial.figures.items():
            tf.summary.scalar(name, value)
        ended = "FAILURE" if trial.state in (states.FAILED, states.INFEASIBLE) else "SUCCESS"
        status = summary.api_pb2.Status.Value(f"STATUS_{ended}")
        tf.summary.experimental.write_raw_pb(summary.session_end_pb(status).SerializeToString())


@contextmanager
def _writer(folder: Path) -> Iterator[None]:
    """Summaries go into a file in the folder."""
    writer = tf.summary.create_file_writer(str(folder))
    try:
        with writer.as_default(step=0):
            yield
    finally:
        writer.close()


def _domain(values: Sequence[Any]) -> Any:
    """The values on record; a range where they are numbers that hardly repeat."""
    api = load("tensorboard.plugins.hparams.api")
    distinct = sorted(set(values))
    is_range = all(isinstance(value, float) for value in values) and len(distinct) > len(values) / 2
    if is_range and len(distinct) > 1:
        return api.RealInterval(distinct[0], distinct[-1])
    return api.Discrete(distinct)
