"""The package as a user gets it: public names, what the import loads, content of the wheel."""

import json
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import tfopt

ROOT = Path(__file__).resolve().parent.parent


def fresh(program):
    """What a program in a new process prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", tfopt.__all__)
def test_public_names_resolve_and_are_documented(name):
    value = getattr(tfopt, name)
    assert callable(value) or isinstance(value, ModuleType)
    assert value.__doc__
    assert name in dir(tfopt)


def test_unknown_names():
    with pytest.raises(AttributeError, match="tfopt attribute prun"):
        _ = tfopt.prun


def test_all_errors_are_value_errors_of_one_family():
    errors = [getattr(tfopt, name) for name in tfopt.__all__ if name.endswith("Error")]
    assert len(errors) == 8
    assert all(issubclass(error, tfopt.TfoptError) and issubclass(error, ValueError) for error in errors)


def test_import_loads_nothing_heavy_and_changes_no_environment():
    loaded, changed = fresh("""
import json, os, sys, warnings
import keras
before = dict(os.environ), keras.config.floatx(), keras.config.dtype_policy().name, list(warnings.filters)
already = set(sys.modules)
import tfopt
after = dict(os.environ), keras.config.floatx(), keras.config.dtype_policy().name, list(warnings.filters)
heavy = ["tensorflow_model_optimization", "tf_keras", "keras_tuner", "optuna", "matplotlib", "mlxtend", "sklearn",
         "ai_edge_litert", "tfopt.pruning.prune", "tfopt.report.compare"]
print(json.dumps([[name for name in heavy if name in set(sys.modules) - already], before != after]))
""")
    assert loaded == []
    assert not changed


def test_nothing_is_loaded_before_keras_is():
    loaded = fresh("""
import json, sys
import tfopt
print(json.dumps([name for name in ("keras", "tensorflow", "numpy") if name in sys.modules]))
""")
    assert loaded == []


def test_files_load_with_keras_once_tfopt_is_imported():
    registered = fresh("""
import json
import tfopt
import keras
print(json.dumps([name for name in keras.saving.get_custom_objects() if name.startswith("tfopt>")]))
""")
    names = ("FakeQuantize", "QuantizedLayer", "Distiller", "SoftTargets", "ParallelFusion", "Cascade")
    assert {f"tfopt>{name}" for name in names} <= set(registered)


def test_a_keras_newer_than_tested_is_warned_of_at_import():
    said = fresh("""
import json, warnings
import keras
keras.__version__ = "3.99.0"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import tfopt
print(json.dumps([str(warning.message) for warning in caught if "tfopt" in str(warning.message)]))
""")
    assert len(said) == 1
    assert said[0].startswith("tfopt was tested with Keras up to 3.15; you have 3.99.0.")


@pytest.mark.parametrize(
    ("version", "warns"),
    [
        *(("3.12.4", False), ("3.15.1", False), ("3.15.99", False), ("3.9.0", False)),
        *(("3.16.0", True), ("3.16.0rc1", True), ("4.0.0", True), ("unknown", False)),
    ],
)
def test_which_versions_of_keras_are_warned_of(version, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tfopt._warn_of_untested(version)
    assert bool(caught) == warns


def test_the_warning_can_be_silenced():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "tfopt was tested")
        tfopt._warn_of_untested("3.99.0")


def test_the_newest_keras_that_is_tested_is_the_one_of_the_constraints():
    pins = re.findall(r"^keras==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert max((int(major), int(minor)) for major, minor in pins) == tfopt._TESTED_KERAS


def test_the_wheel_holds_every_module(tmp_path):
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_text((ROOT / name).read_text())
    modules = sorted(
        path.relative_to(ROOT) for path in (ROOT / "tfopt").rglob("*.py*") if path.suffix in (".py", ".pyi")
    )
    for path in [*modules, Path("tfopt/py.typed")]:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_text((ROOT / path).read_text())
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {str(path) for path in modules} | {"tfopt/py.typed"} <= set(names)
    assert not [name for name in names if not name.startswith(("tfopt/", "tfopt-"))]
    assert wheel.name == f"tfopt-{tfopt.__version__}-py3-none-any.whl"


@pytest.mark.parametrize(
    "first",
    [
        "from tfopt import cache_teacher",
        "from tfopt.distillation import SoftTargets",
        "from tfopt.quantization.layers import QuantizedLayer",
        "from tfopt.training import fine_tune",
    ],
)
def test_anything_of_tfopt_may_be_the_first_import(first):
    """Keras, and with it all that is registered, is then imported in the middle of it."""
    assert fresh(f"""
import json
{first}
import keras
print(json.dumps("tfopt>Distiller" in keras.saving.get_custom_objects()))
""")
