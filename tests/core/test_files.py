"""Files are whole or as they were; permissions, links and files of others stay."""

import os
import stat

import pytest

from tfopt.core.errors import FileError
from tfopt.core.files import check_writable, left_over_parts, replacing, write_whole


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "file"
    assert write_whole(path, "ä") == path
    assert path.read_bytes() == "ä".encode()
    write_whole(str(path), b"\0")
    assert path.read_bytes() == b"\0"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="needs permissions of POSIX")
def test_permissions_stay(tmp_path):
    path, umask = tmp_path / "file", os.umask(0o027)
    try:
        write_whole(path, "new")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640  # of a new file: those that the process gives
    for mode in (0o600, 0o755):
        path.chmod(mode)
        write_whole(path, "again")
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_stays_and_the_file_behind_it_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file, link, far_link = tmp_path / "elsewhere" / "file", tmp_path / "link", tmp_path / "far"
    link.symlink_to("elsewhere/file")
    far_link.symlink_to(link)
    for content in ("new", "newer"):  # the first makes the file
        assert write_whole(far_link, content) == far_link
        assert file.read_text() == content
    assert link.is_symlink()
    assert far_link.is_symlink()
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def stopped():
        with replacing(path, ".keras") as part:
            part.write_text("half")
            assert part.suffix == ".keras"
            raise error

    with pytest.raises(FileError if error is OSError else error):
        stopped()
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("file", "old")]


def test_only_our_own_parts_are_left_over(tmp_path):
    others = [".upload.tmp", ".a.json.12345678.tmp", "a.json.12345678.tfopt-part", ".a.tfopt-part", ".b", "tfopt-part"]
    ours = [".a.json.0123abcd.tfopt-part", ".b.keras.0123abcd.tfopt-part.keras", ".workers.ab_1cdef.tfopt-part"]
    for name in (*others, *ours):
        (tmp_path / name).touch()
    assert [path.name for path in left_over_parts(tmp_path)] == ours
    assert [path.name for path in left_over_parts(tmp_path, "b.")] == ours[1:2]


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(FileError, match="must name a file. Received: the folder"):
        check_writable(tmp_path)
    with pytest.raises(FileError, match="must exist. Received: .*Create .*none' first"):
        check_writable(tmp_path / "none" / "file")
    if os.path.exists(os.devnull) and os.name != "nt":
        with pytest.raises(FileError, match="must name a file. Received: the device"):
            write_whole(os.devnull, "x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FileError, match="must be writable"):
        write_whole(tmp_path / "file", "x")
    assert not any(tmp_path.iterdir())
