"""The command `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfopt.cli.files import json_of, load_arrays, quiet_start
from tfopt.cli.options import add_model_and_out, new_command, positive


def add_export(commands: Any) -> None:
    command = new_command(
        commands,
        "export",
        _export,
        "write a .tflite file that was run and checked",
        "Converts a model, runs the file, compares its outputs with the Keras model's and only then puts it in place.",
        "tfopt export int8.keras model.tflite --data test.npz\n"
        "tfopt export model.keras model.tflite --quantization int8 --data train.npz --compare-with model.keras\n"
        "tfopt export int8.keras model.tflite --input-type int8 --output-type int8 --c-array",
    )
    add_model_and_out(command, out="a .tflite file")
    _add_numbers(command)
    command.add_argument("--metadata", metavar="FILE.json", type=Path, help="name, labels, ... to write into the file")
    command.add_argument("--compare-with", metavar="MODEL", type=Path, help="show the difference from this model too")
    command.add_argument("--c-array", action="store_true", help="write OUT as C source too, beside it: .cc and .h")


def _add_numbers(command: argparse.ArgumentParser) -> None:
    """Adds the options that say what numbers the file computes in."""
    command.add_argument(
        "--quantization",
        choices=("auto", "none", "dynamic", "float16", "int8"),
        default="auto",
        help="auto: what a quantized model was quantized for, none for a float one [%(default)s]",
    )
    command.add_argument("--data", metavar="FILE.npz", type=Path, help="array x: inputs to compare and calibrate on")
    for side in ("input", "output"):
        command.add_argument(
            f"--{side}-type",
            choices=("float32", "int8", "uint8"),
            default="float32",
            help="of an int8 file [%(default)s]",
        )
    command.add_argument(
        "--batch-size", type=batch_size, default=1, metavar="N", help="samples at a time, or 'free' [%(default)s]"
    )


def _export(arguments: argparse.Namespace) -> None:
    with quiet_start():
        from tfopt.core.models.loading import load_model
        from tfopt.deploy.c_array import export_c_array
        from tfopt.deploy.tflite import export_tflite

    data = load_arrays(arguments.data, "x")["x"] if arguments.data else None
    export = export_tflite(
        load_model(arguments.model),
        arguments.out,
        arguments.quantization,
        data=data,
        input_type=arguments.input_type,
        output_type=arguments.output_type,
        batch_size=arguments.batch_size,
        metadata=json_of(arguments.metadata) if arguments.metadata else None,
        compare_with=arguments.compare_with,
    )
    print(export)
    if arguments.c_array:
        print("Saved " + ", ".join(map(str, export_c_array(export.path, export.path.with_suffix(".cc")))))


def batch_size(text: str) -> int | None:
    """What `--batch-size` says; None for a batch that is left free."""
    return None if text == "free" else positive(text)
