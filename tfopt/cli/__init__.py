"""The `tfopt` command: each verb on files."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tfopt.cli.compress import add_cluster, add_prune, add_quantize, add_shrink
from tfopt.cli.export import add_export
from tfopt.cli.files import quiet_start
from tfopt.cli.options import described
from tfopt.cli.reports import add_compare, add_demo, add_summary
from tfopt.cli.search import add_search

DESCRIPTION = """\
Makes Keras 3 models small and fast and puts them on the edge.

MODEL is a .keras or .h5 file. FILE.npz holds the arrays `x` (inputs, samples first) and `y` (labels), as written by
`numpy.savez("data.npz", x=x, y=y)`. Nothing is changed in place: each command writes a new file.
"""
EXAMPLES = """\
from a trained model to the edge:
  tfopt summary model.keras                                  what it is made of
  tfopt prune model.keras sparse.keras --sparsity 0.8        zero four weights in five
  tfopt quantize sparse.keras int8.keras --data train.npz    8 bits, ranges from data
  tfopt export int8.keras model.tflite --data train.npz      write, run and check the .tflite
  tfopt compare model.keras model.tflite --data test.npz     what it cost, what it saved
  tfopt search model.keras --train train.npz --val val.npz --out best.keras --width 0.5,1 --constraint "macs <= 1e6"
                                                             the best variant within bounds

Pruning a trained model at once costs accuracy. In Python, `tfopt.prune(model, schedule)` and `tfopt.quantize(model)`
give models to train on with `fit`: `tfopt demo` shows that whole road.
"""
EXIT_CODES = "exit codes: 0 done, 1 something in the input is wrong (one line on stderr says what), 2 wrong usage"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Args:
        argv: the arguments without the program's name; `sys.argv[1:]` by default.

    Example:
        >>> main(["--version"])
        Traceback (most recent call last):
            ...
        SystemExit: 0
    """
    arguments = _parser().parse_args(argv)
    with quiet_start():
        import tfopt.quantization.quantize  # noqa: F401 - registers them, so that quantized models load
        from tfopt.core.errors import TfoptError
    try:
        arguments.run(arguments)
    except TfoptError as error:
        print(f"tfopt {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tfopt {arguments.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = described(
        argparse.ArgumentParser, prog="tfopt", description=DESCRIPTION, epilog=EXAMPLES + "\n" + EXIT_CODES
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the versions of tfopt, Keras and TensorFlow")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (
        add_demo,
        add_summary,
        add_compare,
        add_prune,
        add_shrink,
        add_cluster,
        add_quantize,
        add_export,
        add_search,
    ):
        add(commands)
    return parser


class _Version(argparse.Action):
    """`--version`, without importing TensorFlow to find out its version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from importlib.metadata import version

        from tfopt import __version__

        print(f"tfopt {__version__}, keras {version('keras')}, tensorflow {version('tensorflow')}")
        parser.exit()
