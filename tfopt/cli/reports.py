"""The commands that measure: `demo`, `summary`, `compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfopt.cli.files import load_arrays, quiet_start, show
from tfopt.cli.options import add_save, new_command


def add_demo(commands: Any) -> None:
    command = new_command(
        commands,
        "demo",
        _demo,
        "the whole road on real data, in a few minutes",
        "Trains a CNN on 5000 MNIST images, halves its width, prunes it to 80 %, goes on with quantization-aware\n"
        "training, exports int8 .tflite, runs the files and writes report.html.",
        "tfopt demo --out demo-out",
    )
    command.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the results [%(default)s]")
    command.add_argument("--seed", type=int, default=0, help="of split, weights and batches [%(default)s]")
    command.add_argument("--quiet", action="store_true", help="show the table only")


def add_summary(commands: Any) -> None:
    command = new_command(
        commands,
        "summary",
        _summary,
        "parameters, zeros and multiply-accumulates per layer",
        "Shows a Keras model layer by layer, or what a .tflite file holds.",
        "tfopt summary model.keras\ntfopt summary model.tflite --save model.html",
    )
    command.add_argument("model", metavar="MODEL", type=Path, help="a .keras, .h5 or .tflite file")
    add_save(command)


def add_compare(commands: Any) -> None:
    command = new_command(
        commands,
        "compare",
        _compare,
        "scores, size and latency of several models side by side",
        "Measures Keras models and .tflite files on the same data into one table.",
        "tfopt compare model.keras model.tflite --data test.npz --save report.html",
    )
    command.add_argument("models", metavar="MODEL", type=Path, nargs="+", help=".keras, .h5 or .tflite files")
    command.add_argument("--data", metavar="FILE.npz", type=Path, help="arrays x and y to score on")
    add_save(command)


def _demo(arguments: argparse.Namespace) -> None:
    with quiet_start():
        from tfopt.demo import run_demo

    comparison = run_demo(arguments.out, seed=arguments.seed, verbose=0 if arguments.quiet else 1)
    if arguments.quiet:
        print(comparison)


def _summary(arguments: argparse.Namespace) -> None:
    with quiet_start():
        from tfopt.report.measure import summary

    show(summary(arguments.model), arguments.save)


def _compare(arguments: argparse.Namespace) -> None:
    with quiet_start():
        from tfopt.report.compare import compare

    data = load_arrays(arguments.data, "x", "y") if arguments.data else None
    contenders = {name: str(path) for name, path in zip(_names(arguments.models), arguments.models, strict=True)}
    show(compare(contenders, (data["x"], data["y"]) if data else None), arguments.save)


def _names(paths: list[Path]) -> list[str]:
    """Short names for a table: file names where these differ, else the paths as given."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
