"""Files are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tfopt.core.errors import FileError


def check_writable(path: str | os.PathLike) -> Path:
    """The path, if a file can be written there; raises before any work is done."""
    target = Path(path)
    if target.is_dir():
        raise FileError("The path has to name a file.", received=f"the folder '{target}'")
    if not target.parent.is_dir():
        raise FileError(
            "The folder to write to has to exist.", received=f"'{target}'", fix=f"Create '{target.parent}' first."
        )
    if not os.access(target.parent, os.W_OK):
        raise FileError("The folder has to be writable.", received=f"'{target.parent}'")
    return target


def write_whole(path: str | os.PathLike, content: bytes | str) -> Path:
    """Writes `content` to a temporary file beside `path`, syncs it to disk and renames it over `path`.

    Whoever reads `path` sees the old file or the new one, never a part, even if the process is killed.
    """
    target = check_writable(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise FileError("The file could not be written.", received=f"'{target}': {error}") from error
    return target
