"""Runs a notebook from top to bottom. Each has a test file of its own, so that the workers share them out."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(name, folder, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)
