"""Files that an earlier version saved load and compute what they did; `tests/saved/make.py` wrote them.

Every class that tfopt had registered with Keras occurs in them, and every one is still registered. A file names its
classes as Keras registered them, not by their modules, which may change.
"""

import functools
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import tfopt

SAVED = Path(__file__).resolve().parent / "saved"
FILES = sorted(SAVED.glob("*.keras"))
OBJECTS = json.loads((SAVED / "objects.json").read_text())
CLOSE = 1e-5  # of the spread of the values on record
SAME = 0.9  # share of the values that have to be that close where rounding may go the other way on another processor


def content(path):
    """The config in a `.keras` file, and the version of Keras that wrote it."""
    with zipfile.ZipFile(path) as stored:
        parts = [json.loads(stored.read(name)) for name in ("config.json", "metadata.json")]
    return parts[0], parts[1]["keras_version"]


def numbers(version):
    return [int(part) for part in version.split(".")[:2]]


def skip_before(version):
    if numbers(keras.__version__) < numbers(version):
        pytest.skip(f"written by Keras {version}")


@functools.cache
def recorded(path):
    with np.load(path.with_suffix(".npz")) as arrays:
        return dict(arrays)


def several(path, kind):
    """The arrays on record that were one list."""
    arrays = recorded(path)
    return [arrays[f"{kind}_{i}"] for i in range(len(arrays)) if f"{kind}_{i}" in arrays]


def as_argument(arrays):
    return arrays if len(arrays) > 1 else arrays[0]


def check_outputs(model, path, kind, steps):
    outputs = keras.tree.flatten(model(as_argument(several(path, "input")), training=False))
    for i, (got, want, step) in enumerate(zip(outputs, several(path, kind), steps, strict=True)):
        got = keras.ops.convert_to_numpy(got)
        close = CLOSE * np.ptp(want)
        np.testing.assert_allclose(got, want, rtol=0, atol=step + close, err_msg=f"{kind} {i}")
        share = np.mean(np.abs(got - want) <= close)
        assert share >= (SAME if step else 1), f"{kind} {i}: {share:.0%} are what they were"


def registered_in(config):
    """Names of the classes of tfopt anywhere in a config."""
    if isinstance(config, list):
        return set().union(*map(registered_in, config))
    if not isinstance(config, dict):
        return set()
    name = config.get("registered_name") or ""
    return set().union({name} if name.startswith("tfopt>") else (), *map(registered_in, config.values()))


def check_config(now, before, place="config"):
    """What a config held is in it still; there may be more, and classes may lie in other modules."""
    if isinstance(before, dict):
        for key, value in before.items():
            if key not in ("module", "shared_object_id"):
                assert key in now, f"{place} has lost {key}"
                check_config(now[key], value, f"{place}.{key}")
    elif isinstance(before, list):
        assert len(now) == len(before), place
        for i, (new, old) in enumerate(zip(now, before, strict=True)):
            check_config(new, old, f"{place}[{i}]")
    else:
        assert now == before, place


def as_json(thing):
    """A layer, model, loss or optimizer as Keras serializes it, tuples as lists."""
    return json.loads(json.dumps(keras.saving.serialize_keras_object(thing)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_load_and_compute_what_they_did(path):
    """Trained on, too, where the model was compiled: with the state of the optimizer, and counts of batches."""
    config, version = content(path)
    skip_before(version)
    model, arrays = keras.models.load_model(path), recorded(path)
    check_config(as_json(model), config)
    check_outputs(model, path, "output", arrays["steps"])
    labels = several(path, "label")
    assert model.compiled == bool(labels)
    if not labels:
        return
    x, y = as_argument(several(path, "input")), as_argument(labels)
    if isinstance(model, tfopt.Distiller):
        logs = model.evaluate(x, y, batch_size=len(labels[0]), verbose=0, return_dict=True)
        want = {name.removeprefix("log_"): value for name, value in arrays.items() if name.startswith("log_")}
        assert set(want) <= set(logs)
        for name, value in want.items():
            np.testing.assert_allclose(logs[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    model.train_on_batch(x, y)
    check_outputs(model, path, "trained", arrays["trained_steps"])


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_made_from_their_configs(name):
    skip_before(content(FILES[0])[1])
    thing = keras.saving.deserialize_keras_object(OBJECTS[name])
    assert keras.saving.get_registered_name(type(thing)) == OBJECTS[name]["registered_name"]
    check_config(as_json(thing), OBJECTS[name])


def test_every_class_is_registered_and_in_a_file():
    names = set(json.loads((SAVED / "registered.json").read_text()))
    assert names <= set(keras.saving.get_custom_objects())
    in_files = set().union(*(registered_in(content(path)[0]) for path in FILES))
    assert names == in_files


def test_every_file_has_its_record():
    assert {path.stem for path in FILES} == {path.stem for path in SAVED.glob("*.npz")}


FRESH = """
import json, sys
import tfopt
import keras
print(json.dumps(list(keras.saving.get_custom_objects())))
"""


def test_a_new_process_needs_no_more_than_the_import():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    registered = set(json.loads(done.stdout))
    for path in FILES:
        assert registered_in(content(path)[0]) <= registered, path.stem


def test_adaptive_clipping_of_every_optimizer_is_registered():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    names = ("SGD", "Adam", "AdamW", "RMSprop", "Lion", "Nadam", "Adagrad", "Adadelta", "Adamax", "Adafactor", "Ftrl")
    assert {f"tfopt>AdaptivelyClipped{name}" for name in names} <= set(json.loads(done.stdout))
