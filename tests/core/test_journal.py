"""Journals: what a second call finds again, what it refuses, and what it never touches."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tfopt.core.errors import FileError, InvalidArgumentError
from tfopt.core.journal import FileJournal, FolderJournal, Head

SETTINGS = {"model": "m", "data": "d", "layers": ["a"]}


def head(verb="stack", version=2, **settings):
    return Head(verb, version, "directory", {**SETTINGS, **settings})


def in_file(folder, *arguments, **options):
    return FileJournal(folder / "stack.json", head(*arguments, **options))


def in_folder(folder, *arguments, **options):
    return FolderJournal(folder, head(*arguments, **options))


def never():
    raise AssertionError("it is on record")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# A file.


def test_a_file_goes_on(tmp_path):
    journal = in_file(tmp_path)
    assert not any(tmp_path.iterdir())  # nothing is measured yet
    assert journal.result("a", lambda: {"score": 0.5}) == {"score": 0.5}
    assert journal.result("a", never) == {"score": 0.5}
    again = in_file(tmp_path)
    assert ("a" in again, "b" in again) == (True, False)
    assert again.result("a", never) == {"score": 0.5}
    assert again.result("b", lambda: 2) == 2
    content = json.loads((tmp_path / "stack.json").read_text())
    assert content == {"kind": "tfopt stack 2", "settings": SETTINGS, "results": {"a": {"score": 0.5}, "b": 2}}
    assert len(contents(tmp_path)) == 1


def test_without_a_file_results_are_in_memory():
    journal = FileJournal(None, head())
    assert journal.result("a", lambda: 1) == journal.result("a", never) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"kind": "tfopt stack 2", "settings": 3}', "\xff"])
def test_other_files_are_refused_and_stay(tmp_path, content):
    path = tmp_path / "stack.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises((FileError, InvalidArgumentError), match="`directory` must.*Received: .*stack.json"):
        in_file(tmp_path)
    assert contents(tmp_path) == {"stack.json": content.encode("latin-1")}


def test_a_file_without_results(tmp_path):
    (tmp_path / "stack.json").write_text(json.dumps({"kind": "tfopt stack 2", "settings": SETTINGS}))
    with pytest.raises(FileError, match="without results. Choose another path"):
        in_file(tmp_path)


# Both.


@pytest.mark.parametrize("make", [in_file, in_folder])
def test_another_head_is_refused(tmp_path, make):
    journal = make(tmp_path)
    if make is in_file:
        journal.result("a", lambda: 1)
    before = contents(tmp_path)
    for changes, said in (
        ({"data": "e"}, "the same model, data and layers. Received: .*stack.json', which differs in data. Pass what"),
        ({"data": "e", "layers": ["a", "b"]}, "differs in data and layers"),
        ({"seed": "1"}, "differs in seed"),
    ):
        with pytest.raises(InvalidArgumentError, match=said):
            make(tmp_path, **changes)
    kept = (tmp_path / "stack.json").read_text()
    for kind in ("tfopt stack 1", "tfopt search 2"):
        (tmp_path / "stack.json").write_text(kept.replace("tfopt stack 2", kind))
        said = f"what this version of `stack` wrote. Received: .*whose kind is '{kind}' and not 'tfopt stack 2'"
        with pytest.raises(FileError, match=said):
            make(tmp_path)
    (tmp_path / "stack.json").write_text(kept)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("make", [in_file, in_folder])
def test_a_relative_path_holds_in_another_working_directory(tmp_path, monkeypatch, make):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    journal = make(type(tmp_path)("work"))
    monkeypatch.chdir("elsewhere")
    if make is in_file:
        journal.result("a", lambda: 1)
    else:
        journal.write_json("a.json", 1)
    assert len(contents(tmp_path / "work")) == (1 if make is in_file else 2)


@pytest.mark.parametrize("make", [in_file, in_folder])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, make):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FileError, match="must be writable"):
        make(tmp_path)


# A folder.


def test_a_folder_goes_on(tmp_path):
    folder = tmp_path / "new" / "work"
    arrays = {"a": np.arange(3), "b": np.eye(2, dtype="float32")}
    journal = in_folder(folder)
    assert journal.arrays("x.npz", lambda: arrays) == arrays
    journal.write_json("y.json", [1, "z"])
    with journal.replacing("z.keras") as part:
        part.write_text("whole")
    again = in_folder(folder)
    found = again.arrays("x.npz", never)
    assert {name: array.dtype for name, array in found.items()} == {name: array.dtype for name, array in arrays.items()}
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert again.read_json("y.json") == [1, "z"]
    assert sorted(contents(folder)) == ["stack.json", "x.npz", "y.json", "z.keras"]
    again.remove("x.npz")
    again.remove("x.npz")
    assert ("x.npz" in again, "y.json" in again) == (False, True)


@pytest.mark.parametrize("content", [b"", b"cut off", b"PK\x03\x04", b"[1]"])
def test_a_damaged_file(tmp_path, content):
    journal = in_folder(tmp_path)
    (tmp_path / "x.npz").write_bytes(content)
    says = "`directory` must be as `stack` wrote it. Received: '.*x.npz': .*. Delete the file; the next call"
    with pytest.raises(FileError, match=says):
        journal.arrays("x.npz", never)
    with pytest.raises(FileError, match="y.json"):
        journal.read_json("y.json")
    assert (tmp_path / "x.npz").read_bytes() == content
    os.remove(tmp_path / "x.npz")
    assert journal.arrays("x.npz", lambda: {"a": np.ones(1)})["a"] == 1


def test_files_of_others_stay(tmp_path):
    """Where the folder is refused, where it is taken because only hidden files are in it, and beside a journal."""
    (tmp_path / ".work.tmp").mkdir()
    for name in (".work.tmp/thesis.txt", ".stack.json.12345678.tmp", ".upload.tmp"):
        (tmp_path / name).write_text("precious")
    hidden = {".work.tmp", ".stack.json.12345678.tmp", ".upload.tmp"}
    in_folder(tmp_path).write_json("a.json", 1)
    assert set(os.listdir(tmp_path)) == hidden | {"stack.json", "a.json"}
    (tmp_path / "notes.txt").write_text("mine")
    in_folder(tmp_path)
    os.remove(tmp_path / "stack.json")
    with pytest.raises(FileError, match="no 'stack.json'. Pass a folder of its own, such as '.*/stack'"):
        in_folder(tmp_path)
    assert set(os.listdir(tmp_path)) == hidden | {"a.json", "notes.txt"}
    assert (tmp_path / ".work.tmp" / "thesis.txt").read_text() == "precious"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "work"):
        with pytest.raises(FileError, match="`directory` must be a folder to write to. Received: .*notes.txt"):
            in_folder(path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_whole_folder_is_only_read(tmp_path, monkeypatch):
    in_folder(tmp_path).arrays("x.npz", lambda: {"a": np.ones(1)})
    monkeypatch.setattr("tfopt.core.journal.write_whole", never)
    assert in_folder(tmp_path).arrays("x.npz", never)["a"] == 1


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from tfopt.core import files
    from tfopt.core.journal import FolderJournal, Head

    journal = FolderJournal(sys.argv[1], Head("stack", 2, "directory", {}))
    journal.arrays("x.npz", lambda: {"a": np.ones(1)})
    os.replace = lambda part, target: os.kill(os.getpid(), signal.SIGKILL)
    Path(sys.argv[1], f".workers.12345678{files.PART}").mkdir()
    journal.arrays("y.npz", lambda: {"a": np.ones(1)})
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals of POSIX")
def test_what_a_killed_process_left_goes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (whole, x), parts = {"stack.json", "x.npz"}, set(os.listdir(tmp_path)) - {"stack.json", "x.npz"}
    assert len(parts) == 2
    same = Head("stack", 2, "directory", {})
    shared = FolderJournal(tmp_path, same, shared=True)  # others may be writing them
    assert set(os.listdir(tmp_path)) == {whole, x, *parts}
    shared.clear_parts("y.")
    assert set(os.listdir(tmp_path)) == {whole, x, ".workers.12345678.tfopt-part"}
    journal = FolderJournal(tmp_path, same)
    assert set(os.listdir(tmp_path)) == {whole, x}
    assert journal.arrays("x.npz", never)["a"] == 1


def test_a_process_killed_at_the_head_leaves_an_empty_folder(tmp_path):
    (tmp_path / ".stack.json.0123abcd.tfopt-part").write_text("{")
    in_folder(tmp_path)
    assert os.listdir(tmp_path) == ["stack.json"]
