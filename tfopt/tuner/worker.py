"""A worker of a search: a process of its own that runs the trials that it is given. `tfopt.tuner.workers` starts it.

The search is handed over in a folder: arrays as files that all workers map into memory, everything else pickled.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.errors import FileError, InvalidArgumentError, TfoptError, first_line
from tfopt.tuner.packages import load
from tfopt.tuner.trainer import Trainer

STARTED, UNUSABLE, ENDED, RAISED = "started", "unusable", "ended", "raised"  # what a worker says
_FILE = "search.pickle"
_OWN = ("tfopt", "keras", "keras_tuner")  # packages whose classes a worker has by itself


@dataclasses.dataclass(frozen=True)
class _Array:
    """An array in a file."""

    path: Path


@dataclasses.dataclass(frozen=True)
class _Dataset:
    """A dataset in a folder."""

    path: Path


def hand_over(trainer: Trainer, folder: Path) -> None:
    """Writes what a worker needs.

    Raises:
        InvalidArgumentError: the space cannot be pickled, or a dataset has no end.
        FileError: the folder cannot be written.
    """
    kept = {
        "registered": _registered(),
        "floatx": keras.config.floatx(),
        "dtype_policy": keras.config.dtype_policy().name,
        "image_data_format": keras.config.image_data_format(),
    }
    try:
        data = [_saved(part, folder / name) for part, name in ((trainer.train, "train"), (trainer.val, "val"))]
        content = _pickled([kept, _pickled([dataclasses.replace(trainer, train=None, val=None), data])])
        (folder / _FILE).write_bytes(content)
    except OSError as error:
        raise FileError("The data for the workers are written to `directory`.", received=str(error)) from error


def main(folder: str, descriptor: int) -> None:
    """Runs trials until there are no more, or the process that gives them is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection: Connection = Connection(descriptor)
    try:
        trainer = _handed_over(Path(folder))
    except Exception as error:
        connection.send((UNUSABLE, f"{type(error).__name__}: {first_line(error)}"))
        raise SystemExit(1) from error
    connection.send((STARTED, None))
    while True:
        try:
            trial, hp, deadline = connection.recv()
        except EOFError:
            return
        try:
            ended = trainer(trial, hp, trainer.journal.trials, deadline)
        except TfoptError as error:
            connection.send((RAISED, error))
        except Exception as error:
            connection.send((RAISED, TfoptError("A worker failed.", received=f"{type(error).__name__}: {error}")))
            raise
        else:
            connection.send((ENDED, (ended, hp)))


def _end_with_parent() -> None:
    """Ends this process once the other end of its standard input is closed: the one that started it is gone."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _handed_over(folder: Path) -> Trainer:
    kept, inner = pickle.loads((folder / _FILE).read_bytes())
    keras.config.set_floatx(kept["floatx"])
    keras.config.set_dtype_policy(kept["dtype_policy"])
    keras.config.set_image_data_format(kept["image_data_format"])
    for name, value in kept["registered"].items():
        package, _, own = name.rpartition(">")
        if package:
            keras.saving.register_keras_serializable(package, own)(value)
        else:
            keras.saving.get_custom_objects()[name] = value
    trainer, data = pickle.loads(inner)
    training, validation = map(_loaded, data)
    return dataclasses.replace(trainer, train=training, val=validation)


def _registered() -> dict[str, Any]:
    """The classes and functions that the user has registered with Keras."""
    found = keras.saving.get_custom_objects()
    return {name: value for name, value in found.items() if (value.__module__ or "").split(".")[0] not in _OWN}


def _pickled(value: Any) -> bytes:
    try:
        return load("cloudpickle").dumps(value)
    except (pickle.PicklingError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise InvalidArgumentError(
            "The space of a search with workers must be picklable.",
            received=f"{type(error).__name__}: {first_line(error)}",
            fix="Open files, locks and sessions inside of the builder, not around it, or search with `workers=1`.",
        ) from error


def _saved(data: Any, path: Path) -> Any:
    """The data with files in place of arrays and datasets."""
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise InvalidArgumentError("A dataset for workers must have an end.", received="one that repeats for ever")
        data.save(str(path))
        return _Dataset(path)
    if not isinstance(data, tuple):
        return data
    numbers = itertools.count()
    return keras.tree.map_structure(lambda array: _saved_array(array, path, next(numbers)), data)


def _saved_array(array: Any, path: Path, number: int) -> Any:
    values = None if array is None else np.asarray(array)
    if values is None or values.dtype.kind in "OV":  # not for memory maps
        return values
    file = path.with_name(f"{path.name}{number}.npy")
    np.save(file, values)
    return _Array(file)


def _loaded(data: Any) -> Any:
    if isinstance(data, _Dataset):
        return tf.data.Dataset.load(str(data.path))
    if not isinstance(data, tuple):
        return data
    return keras.tree.map_structure(
        lambda part: np.asarray(np.load(part.path, mmap_mode="r")) if isinstance(part, _Array) else part, data
    )
