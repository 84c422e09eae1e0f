"""The floors of the house: each module imports only what lies below it, and each outside package has one door."""

import ast
import graphlib
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "tfopt"
MODULES = sorted(ROOT.rglob("*.py"))

FLOORS = {
    **dict.fromkeys(["core", "interop"], 1),
    **dict.fromkeys(["pruning", "features", "clustering", "quantization", "distillation", "fusion", "editing"], 2),
    **dict.fromkeys(["training", "stripping"], 2),
    "deploy": 3,
    "report": 4,
    "tuner": 5,
    **dict.fromkeys(["pipeline", "demo"], 6),
    "cli": 7,
    **dict.fromkeys(["__init__", "__main__"], 8),
}
# Outside package -> the rooms or files that may import it.
DOORS = {
    "tensorflow_model_optimization": ["interop/packages.py"],
    "tf_keras": ["interop/packages.py"],
    "ai_edge_litert": ["deploy/"],
    "keras_tuner": ["tuner/"],
    "optuna": ["tuner/"],
    "keras.src": ["core/keras_internals.py", "core/tracing_internals.py"],
    "mlxtend": ["demo.py"],
    "matplotlib": ["report/", "tuner/", "core/reporting/figures.py"],
    "scipy": ["fusion/simplex.py"],
    "sklearn": ["fusion/heads.py"],
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
            assert FLOORS[here] >= 5, "only tuner, pipeline, demo and cli see the whole package"
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


# Inside `core`: each part imports only itself and what stands before it. A file beside the parts is a part of its own.
CORE = [
    "version",
    "types",
    "errors",
    "keras_internals",
    "tracing_internals",
    "checks",
    "files",
    "journal",
    "reporting",
    "layers",
    "models",
    "channels",
    "data",
]


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) == "core"], ids=name_of)
def test_core_imports_downwards_only(path):
    here = path.relative_to(ROOT / "core").parts[0].removesuffix(".py")
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[:2] == ["tfopt", "core"] and here != "__init__":
            assert CORE.index(parts[2]) <= CORE.index(here), f"{here} imports {name}"


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_two_modules_import_each_other_in_a_circle():
    """Counted are imports inside functions and those for type checkers too."""
    paths = {module_of(path): path for path in MODULES}
    imports = {}
    for module, path in paths.items():
        names = list(imported(ast.parse(path.read_text())))
        found = {name if name in paths else name.rpartition(".")[0] for name in names if name.startswith("tfopt.")}
        imports[module] = (found & set(paths)) - {module}
    order = graphlib.TopologicalSorter(imports)
    order.prepare()  # raises CycleError, which names the circle


def test_core_stands_alone():
    """`core` knows TFMOT and tf_keras only through `interop`, and `interop` builds on `core` without a circle."""
    uses = {here: set() for here in ("core", "interop")}
    for path in MODULES:
        if room(path) in uses:
            uses[room(path)] |= set(own_rooms(ast.parse(path.read_text())))
    assert not ("interop" in uses["core"] and "core" in uses["interop"])


# The limits of the house: what is longer is hard to read at once.
FILE_LINES, FUNCTION_LINES, WITHIN = 400, 30, 0.98
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(source):
    """Numbers of the lines that hold code: no blank lines, comments and docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for t in tokens if t.type not in NO_CODE for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def lengths(source):
    """`{name: lines of code}` of all functions of a file, those inside others too, from `def` to the end."""
    lines = code_lines(source)
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {f"{n.name}, line {n.lineno}": len(lines & set(range(n.lineno, n.end_lineno + 1))) for n in functions}


def test_lines_of_code_by_hand():
    source = (
        'def f(x):\n    """Says.\n\n    More.\n    """\n    # why\n    y = """two\nlines"""\n\n    return x  # it\n'
    )
    assert lengths(source) == {"f, line 1": 4}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= FILE_LINES


def test_functions_are_short():
    found = {f"{name_of(path)}: {name}": n for path in MODULES for name, n in lengths(path.read_text()).items()}
    longer = {name: n for name, n in found.items() if n > FUNCTION_LINES}
    assert len(longer) <= (1 - WITHIN) * len(found), longer
