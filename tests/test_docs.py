"""The Python code of the pages in docs/ runs, and gives what the pages say it gives."""

import ast
import json
import re
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def code_of(page: str) -> str:
    """The ```python blocks, at the lines where they stand on the page."""
    lines, inside = [], False
    for line in page.splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line == "```python" if fence else inside
    return "\n".join(lines)


def run(page: str, name: str = "page") -> dict[int, tuple[str, str]]:
    """Runs the code of a page as one program: line -> what an expression with `# ->` gives, and what is said."""
    code, namespace, claims = code_of(page), {"__name__": name}, {}
    said = {n: found[1] for n, line in enumerate(code.splitlines(), 1) if (found := re.search(r"# -> (.*)$", line))}
    for statement in ast.parse(code).body:
        if statement.end_lineno in said:
            assert isinstance(statement, ast.Expr), f"line {statement.lineno}: only an expression gives a value"
            value = eval(compile(ast.Expression(statement.value), name, "eval"), namespace)
            claims[statement.end_lineno] = repr(value), said.pop(statement.end_lineno)
        else:
            exec(compile(ast.Module([statement], []), name, "exec"), namespace)
    assert not said, f"what is said on the lines {sorted(said)} belongs to no statement"
    return claims


def test_there_are_pages():
    assert "pruning.md" in [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_gives_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claims = run(page.read_text(encoding="utf-8"), page.stem)
    assert claims, "a page with code says what it gives"
    wrong = {line: values for line, values in claims.items() if values[0] != values[1]}
    assert not wrong


def test_the_table_of_patterns_is_what_was_measured():
    page = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")
    measured = json.loads((ROOT / "benchmarks" / "results" / "prune_patterns.json").read_text())["measured"]["rows"]
    rows = {row["case"]: row for row in measured if row["file"] == "float" and row["case"] != "unpruned"}
    assert len(rows) == 7
    for case, row in rows.items():
        ratios = [f"{row[name]:.2f}" for name in ("size_ratio", "gzip_ratio", "latency_ratio")]
        assert f"| {' | '.join([case, *ratios])} |" in page


def test_the_table_of_fine_tuning_is_what_was_measured():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    modes = json.loads((ROOT / "benchmarks" / "results" / "fine_tuning.json").read_text())["measured"]["modes"]
    assert len(modes) == 5
    for name, runs in modes.items():
        accuracy, seconds = (fmean(run[figure] for run in runs) for figure in ("accuracy", "seconds"))
        assert f"| {name} | {runs[0]['trained']:,} | {100 * accuracy:.1f} % | {seconds:.0f} |" in page


def test_a_wrong_page_is_found_out():
    page = "Text\n```python\nx = 2\nx + 1  # -> 3\n```\n```\nno Python  # -> 5\n```\n```python\nx  # -> 7\n```"
    assert run(page) == {4: ("3", "3"), 10: ("2", "7")}
    with pytest.raises(AssertionError, match="only an expression"):
        run("```python\nx = 2  # -> 2\n```")
    with pytest.raises(AssertionError, match=r"lines \[2\]"):
        run("```python\n# -> 2\n```")
