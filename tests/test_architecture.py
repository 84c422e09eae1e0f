"""The floors of the house: each module imports only what lies below it, and each outside package has one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "tfopt"
MODULES = sorted(ROOT.rglob("*.py"))

FLOORS = {
    **dict.fromkeys(["core", "interop"], 1),
    **dict.fromkeys(["pruning", "clustering", "quantization", "distillation", "fusion", "editing", "training"], 2),
    **dict.fromkeys(["stripping", "deploy"], 2),
    "report": 3,
    **dict.fromkeys(["search", "pipeline", "demo"], 4),
    **dict.fromkeys(["cli", "__init__", "__main__"], 5),
}
# Outside package -> the rooms or files that may import it.
DOORS = {
    "tensorflow_model_optimization": ["interop/packages.py"],
    "tf_keras": ["interop/packages.py"],
    "ai_edge_litert": ["deploy/"],
    "keras_tuner": ["search/"],
    "optuna": ["search/"],
    "keras.src": ["core/keras_internals.py"],
    "mlxtend": ["demo.py"],
    "matplotlib": ["report/", "search/", "core/figures.py"],
    "scipy": ["fusion/simplex.py"],
    "sklearn": ["fusion/splits.py", "fusion/heads.py"],
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def room(path):
    """The first part of a module's path: its package, or the name of a file beside the packages."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree):
    """Dotted names of all modules and names that a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full"
            yield from (f"{node.module}.{item.name}" for item in node.names)


def own_rooms(tree):
    """Rooms of tfopt that a file imports from; "tfopt" for a name of the package itself, which may be any verb."""
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] == "tfopt":
            yield parts[1] if len(parts) > 1 and parts[1] in FLOORS else "tfopt"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards_only(path):
    here = room(path)
    assert here in FLOORS, f"give '{here}' a floor"
    for there in own_rooms(ast.parse(path.read_text())):
        if there == "tfopt":
            assert FLOORS[here] >= 4, "only search, pipeline, demo and cli see the whole package"
        elif there != here:
            assert FLOORS[there] < FLOORS[here] or {here, there} == {"core", "interop"}, f"{here} imports {there}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_outside_packages_have_one_door(path):
    names = list(imported(ast.parse(path.read_text())))
    for package, doors in DOORS.items():
        if not any(name_of(path).startswith(door) for door in doors):
            assert not [n for n in names if n == package or n.startswith(package + ".")], f"{package} has other doors"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_deploy_and_interop_convert(path):
    if room(path) not in ("deploy", "interop"):
        attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not attributes & {"TFLiteConverter", "Interpreter"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_exceptions_are_caught_by_name(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            reraised = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert caught not in ("everything", "Exception", "BaseException") or reraised


def test_core_stands_alone():
    """`core` knows TFMOT and tf_keras only through `interop`, and `interop` builds on `core` without a circle."""
    uses = {here: set() for here in ("core", "interop")}
    for path in MODULES:
        if room(path) in uses:
            uses[room(path)] |= set(own_rooms(ast.parse(path.read_text())))
    assert not ("interop" in uses["core"] and "core" in uses["interop"])
