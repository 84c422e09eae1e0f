"""What the commands have in common: how they and their options are described."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def new_command(
    commands: Any, name: str, run: Callable[..., None], short: str, description: str, example: str
) -> argparse.ArgumentParser:
    """Adds a command with its help; `run` gets the arguments."""
    examples = "example:\n" + "\n".join(f"  {line}" for line in example.splitlines())
    command = described(commands.add_parser, name, help=short, description=description, epilog=examples)
    command.set_defaults(run=run)
    return command


def described(make: Callable[..., Any], *args: Any, **kwargs: Any) -> argparse.ArgumentParser:
    """A parser that shows texts as they are written."""
    return make(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)


def add_model_and_out(command: argparse.ArgumentParser, out: str = "a .keras file") -> None:
    command.add_argument("model", metavar="MODEL", type=Path, help="a .keras or .h5 file")
    command.add_argument("out", metavar="OUT", type=Path, help=f"{out} to write")


def add_save(command: argparse.ArgumentParser) -> None:
    command.add_argument("--save", metavar="FILE", type=Path, help="write it as .html, .md, .json or .txt too")


def add_selection(command: argparse.ArgumentParser, verb: str) -> None:
    for option, effect in (("include", f"{verb} only"), ("exclude", "leave out")):
        command.add_argument(
            f"--{option}", metavar="LAYER", action="append", help=f"{effect} this layer or glob; may be repeated"
        )


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return int(text)
