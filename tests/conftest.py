"""Set up for all tests: quiet logs, fixed seeds, no state carried from one test file to the next."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import pytest


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """The tests of a file share a worker (`--dist loadgroup`), as they share fixtures; each notebook is on its own."""
    for item in items:
        own = item.nodeid if item.path.name == "test_notebooks.py" else item.path
        item.add_marker(pytest.mark.xdist_group(str(own)))


@pytest.fixture(autouse=True)
def _seeds():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _fresh_keras_session():
    yield
    keras.backend.clear_session()
