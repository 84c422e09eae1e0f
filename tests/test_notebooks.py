"""Every notebook has a test that runs it, and is stored without outputs."""

import pytest
from notebook_runner import ROOT

nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_notebook_is_run():
    tests = (ROOT / "tests" / "notebooks").glob("test_*.py")
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem.removeprefix("test_") for path in tests)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
