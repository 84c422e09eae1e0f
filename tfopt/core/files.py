"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from tfopt.core.errors import FileError

PART = ".tfopt-part"  # in the names of unfinished files, so that no other file is taken for one
_PART_NAME = re.compile(r"\..+\.[a-z0-9_]{8}" + re.escape(PART) + r"(\.\w+)?")


def check_writable(path: str | os.PathLike) -> Path:
    """The path, if a file can be written there; raises before any work is done."""
    target = _behind_links(path)
    if target.exists() and not target.is_file():
        kind = "folder" if target.is_dir() else "device"
        raise FileError("The path must name a file.", received=f"the {kind} '{path}'", fix="Add a file name to it.")
    if not target.parent.is_dir():
        raise FileError(
            "The folder to write to must exist.", received=f"'{path}'", fix=f"Create '{target.parent}' first."
        )
    if not os.access(target.parent, os.W_OK):
        raise FileError(
            "The folder to write to must be writable.",
            received=f"'{target.parent}'",
            fix="Choose another folder, or change its permissions.",
        )
    return Path(path)


def write_whole(path: str | os.PathLike, content: bytes | str) -> Path:
    """Writes a file, so that whoever reads it sees the old content or the new, even if the process is killed.

    A symbolic link stays, and the file behind it is written. The permissions of a file that is there stay.
    """
    check_writable(path)
    with replacing(path) as part, part.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """Gives the path of a part to write, and puts it in the place of `path` at the end, whole or not at all.

    Args:
        path: of a file to write.
        suffix: of the part, for writers that ask for one.

    Raises:
        FileError: the part cannot be written.
    """
    target = _behind_links(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PART}{suffix}")
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    try:
        if mode is not None:
            part.touch(0o600)  # nobody reads the content of a private file before it is in place
        yield part
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        if mode is not None:
            part.chmod(mode)
        os.replace(part, target)
    except OSError as error:
        raise FileError("The file could not be written.", received=f"'{path}': {error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def left_over_parts(folder: Path, name: str = "") -> list[Path]:
    """Unfinished files and folders of processes that were killed, of those targets whose names begin with `name`."""
    found = (path for path in folder.iterdir() if path.name.startswith(f".{name}"))
    return sorted(path for path in found if _PART_NAME.fullmatch(path.name))


def _behind_links(path: str | os.PathLike) -> Path:
    """The file that a symbolic link stands for; of other paths the path itself."""
    return Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)
