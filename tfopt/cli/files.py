"""What the commands read and write. TensorFlow is loaded only in here and in the functions that run a command."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import numpy as np


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Keeps away what TensorFlow writes to the terminal while it is imported; errors still come as exceptions."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
        logging.getLogger("absl").setLevel(logging.ERROR)
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def show(report: Any, save: Path | None) -> None:
    """Prints a report, and saves it where asked for."""
    print(report)
    if save:
        print(f"Saved {report.save(save)}")


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file; pickled objects are refused."""
    import zipfile

    import numpy as np

    from tfopt.core.errors import FileError

    try:
        with np.load(path, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("one array without a name")
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise FileError(
            f"The data file has to hold the arrays {' and '.join(names)}.",
            received=f"'{path}': {str(error).strip(chr(34))}",
            fix='Write it with `numpy.savez("data.npz", x=x, y=y)`.',
        ) from error


def json_of(path: Path) -> Any:
    """What a JSON file holds."""
    import json

    from tfopt.core.errors import FileError

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError("The metadata file has to hold JSON.", received=f"'{path}': {error}") from error


def check_out(path: Path, model: Path) -> None:
    """Raises before any work is done if a Keras model cannot be written to `path`, or is the one that is read."""
    from tfopt.core.errors import FileError
    from tfopt.core.files import check_writable

    if path.suffix != ".keras":
        raise FileError("The model is written as a .keras file.", received=f"'{path}'")
    check_writable(path)
    if path.exists() and model.exists() and path.samefile(model):
        raise FileError(
            "The model must be written to another file than it is read from.",
            received=f"'{path}' for both",
            fix="Give OUT another name.",
        )


def save_model(model: keras.Model, path: Path) -> None:
    """Writes the file whole or not at all, and says what was written."""
    from tfopt.core.files import write_whole

    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "model.keras"
        model.save(temporary)
        content = temporary.read_bytes()
    print(f"{write_whole(path, content)}: {len(content):,} bytes")
