"""Turns records into text, Markdown, HTML and JSON."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfopt.core.errors import FileError
from tfopt.core.files import check_writable, write_whole
from tfopt.core.reporting.figures import INK

if TYPE_CHECKING:
    from tfopt.core.reporting.figures import Figure

UNKNOWN = "-"
FORMATS = (".html", ".md", ".json", ".txt")


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `names` columns hold names, the others numbers, which are set flush right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    names: int = 1

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        return (*self.rows, self.total) if self.total else self.rows


class Report:
    """A frozen record that prints as a table, shows in Jupyter and is saved as text, Markdown, JSON or HTML.

    A subclass is a dataclass and gives `title`, `tables` and `figures`.
    """

    @property
    def title(self) -> str:
        raise NotImplementedError

    def tables(self) -> list[Table]:
        raise NotImplementedError

    def figures(self) -> dict[str, Figure]:
        """`{caption: figure}` for the HTML page."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n\n".join(as_text(table) for table in self.tables())

    __repr__ = __str__

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        return "\n\n".join(as_markdown(table) for table in self.tables()) + "\n"

    def _repr_html_(self) -> str:
        return f"<style>{_STYLE}</style><div class='tfopt'>{self._body()}</div>"

    def to_html(self) -> str:
        """One page that needs no other file: tables and plots."""
        return _PAGE.format(title=html.escape(self.title), style=_STYLE, body=self._body())

    def _body(self) -> str:
        return "".join(map(as_html, self.tables())) + self.plots_as_html()

    def plots_as_html(self) -> str:
        """The figures with their captions, to put into a page."""
        return "".join(
            f"<figure>{as_svg(figure)}<figcaption>{html.escape(caption)}</figcaption></figure>"
            for caption, figure in self.figures().items()
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers, unrounded."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_json(self) -> str:
        """The numbers, unrounded, as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the report, whole or not at all, in the format of the suffix: .html, .md, .json or .txt.

        Raises:
            FileError: for another suffix, or a path that cannot be written.
        """
        writers: dict[str, Callable[[], str]] = {
            ".html": self.to_html,
            ".md": self.to_markdown,
            ".json": self.to_json,
            ".txt": lambda: f"{self}\n",
        }
        target = check_report_path(path)
        return write_whole(target, writers[target.suffix.lower()]())


def check_report_path(path: str | os.PathLike) -> Path:
    """The path, if a report can be saved there; raises before any work is done."""
    target = check_writable(path)
    if target.suffix.lower() not in FORMATS:
        raise FileError(f"A report is saved as {', '.join(FORMATS)}.", received=f"'{target}'")
    return target


def as_text(table: Table) -> str:
    """The table in columns of a fixed-width font."""
    widths = [max(map(len, column)) for column in zip(table.columns, *table.lines, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    body = [_aligned(row, widths, table.names) for row in table.rows]
    total = [rule, _aligned(table.total, widths, table.names)] if table.total else []
    return "\n".join([table.caption, _aligned(table.columns, widths, table.names), rule, *body, *total, *table.notes])


def as_markdown(table: Table) -> str:
    """The table as a Markdown table."""
    marks = ["---" if index < table.names else "---:" for index in range(len(table.columns))]
    lines = [_markdown_row(row) for row in (table.columns, marks, *table.lines)]
    notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join([f"**{table.caption}**", "", *lines, *notes])


def as_html(table: Table) -> str:
    """The table as HTML; whatever a user named is escaped."""
    head = _html_row(table.columns, "th", table.names)
    body = "".join(_html_row(row, "td", table.names) for row in table.rows)
    foot = f"<tfoot>{_html_row(table.total, 'td', table.names)}</tfoot>" if table.total else ""
    whole = f"<table><thead>{head}</thead><tbody>{body}</tbody>{foot}</table>"
    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in table.notes)
    return f"<h2>{html.escape(table.caption)}</h2><div class='scroll'>{whole}</div>{notes}"


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element to put into a page: no metadata, no addresses, ink in the colour of the text."""
    stream = io.StringIO()
    figure.savefig(
        stream,
        format="svg",
        transparent=True,
        bbox_inches="tight",
        metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
    )
    element = stream.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r'\sxmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"|(<svg[^>]*?)\sheight="[^"]*"', r"\1\2", element, count=1)
    return element.replace(INK, "currentColor")


def count(value: int | None) -> str:
    """1234567 -> "1,234,567"."""
    return UNKNOWN if value is None else f"{value:,}"


def percent(fraction: float | None) -> str:
    """0.805 -> "80.5 %"."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.1f} %"


def decimal(value: float | None, digits: int = 4) -> str:
    """0.97301 -> "0.9730"."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def shape_text(shape: Sequence[int | None]) -> str:
    """(None, 28, 28) -> "(?, 28, 28)"."""
    return f"({', '.join('?' if dim is None else str(dim) for dim in shape)})"


def _aligned(cells: Sequence[str], widths: list[int], names: int) -> str:
    parts = [
        cell.ljust(width) if index < names else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(parts).rstrip()


def _markdown_row(cells: Sequence[str]) -> str:
    """Escaped, for Markdown passes HTML on and ends a cell at a bar."""
    escaped = [" ".join(html.escape(cell, quote=False).replace("|", "&#124;").split()) for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _html_row(cells: Sequence[str], tag: str, names: int) -> str:
    opened = [f"<{tag}>" if index < names else f"<{tag} class='number'>" for index in range(len(cells))]
    parts = [f"{start}{html.escape(cell)}</{tag}>" for start, cell in zip(opened, cells, strict=True)]
    return f"<tr>{''.join(parts)}</tr>"


_STYLE = """
.tfopt { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; }
.tfopt h2 { font-size: 1.3em; margin: 1.4em 0 .6em; }
.tfopt .scroll { overflow-x: auto; }
.tfopt table { font-size: .93em; border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tfopt th, .tfopt td { padding: .38em .6em; text-align: left; border-bottom: 1px solid #d9dee7; }
.tfopt th { font-weight: 600; border-bottom: 2px solid #9aa5b8; }
.tfopt .number { text-align: right; }
.tfopt tbody tr:hover { background: #8aa4c822; }
.tfopt tfoot td { font-weight: 600; border-top: 2px solid #9aa5b8; }
.tfopt .note, .tfopt figcaption { color: #5b6678; font-size: .87em; margin: .45em 0; max-width: 62em; }
.tfopt figure { margin: 2.2em 0; }
.tfopt svg { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {
  .tfopt { color: #dfe5ee; }
  .tfopt th, .tfopt td { border-color: #3a4352; }
  .tfopt th, .tfopt tfoot td { border-color: #6a768a; }
  .tfopt .note, .tfopt figcaption { color: #9aa6b8; }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ margin: 0; background: #fbfcfe; }}
main {{ max-width: 1400px; margin: 0 auto; padding: 1.5em; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #151a22; }} }}
{style}</style>
</head>
<body>
<main class="tfopt">{body}</main>
</body>
</html>
"""
