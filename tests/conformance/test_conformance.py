"""Each row of the table against what the verbs do. A cell that says "cannot" fails where it can, and the reverse."""

from __future__ import annotations

import os

import keras
import pytest
from conformance import checks
from conformance.rows import No
from conformance.table import ROWS, WITHOUT, covered, of_keras, registered

import tfopt

# Set where the suite runs on another version of Keras: that version, on which every tenth row is enough.
OTHER_KERAS = os.environ.get("TFOPT_TEST_KERAS", "")


@pytest.fixture(scope="module", params=ROWS[::10] if OTHER_KERAS else ROWS, ids=lambda row: row.title)
def row(request):
    return request.param


def test_keras_is_the_version_that_is_meant():
    assert keras.__version__.startswith(OTHER_KERAS)


def test_every_class_is_in_the_table():
    classes = registered() | of_keras()
    assert len(classes) > 180
    assert not classes - covered() - {cls for group in WITHOUT.values() for cls in group}
    assert len({row.title for row in ROWS}) == len(ROWS)


def test_the_model_holds_the_classes(row):
    assert set(row.covers) <= checks.classes_in(checks.subject(row)[0])


def test_copy(row):
    checks.check_copy(row)


def test_prune(row):
    assert checks.pruned_kernels(row) == row.kernels


def test_cluster(row):
    assert checks.clustered_kernels(row) == row.kernels


def test_channels(row):
    said = checks.kept_channels(row)
    assert bool(said) == (row.channels is not None)
    assert row.channels is None or row.channels.reason in said


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_file(row, scheme):
    cell, found = getattr(row, scheme), checks.quantized(row, scheme)
    assert bool(found.refused) == isinstance(cell, No)
    if isinstance(cell, No):
        assert cell.reason in found.refused
        return
    assert found.floats == cell.floats
    assert found.steps <= cell.steps
    assert ("stay float" in found.said) == bool(cell.reason)
    assert cell.reason in found.said


def test_training(row):
    """One step of training reaches every weight, unless the table says why not."""
    found, (model, _) = checks.quantized(row, "int8"), checks.subject(row)
    if found.fresh is not None:
        reached = {weight.path for weight in model.trainable_weights} <= found.learned
        assert reached == (row.trains is None)


def test_strip(row):
    found, (model, x) = checks.quantized(row, "int8"), checks.subject(row)
    if found.fresh is not None:
        checks.check_equal(model, tfopt.strip(found.fresh), x, row.opened)


def test_save(row):
    found, (model, x) = checks.quantized(row, "int8"), checks.subject(row)
    checks.check_saved(model if found.ready is None else found.ready, x)
