"""Set up for all tests: quiet logs, fixed seeds, no state carried from one test file to the next."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import pytest


@pytest.fixture(autouse=True)
def _seeds():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _fresh_keras_session():
    """What TensorFlow keeps of each file is never freed; out of the collector's sight, it costs later files no time."""
    yield
    keras.backend.clear_session()
    gc.collect()
    gc.freeze()
