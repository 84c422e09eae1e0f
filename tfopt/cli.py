"""The `tfopt` command: each verb on files."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import numpy as np

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

Pruning a trained model at once costs accuracy. In Python, `tfopt.prune(model, schedule)` and `tfopt.quantize(model)`
give models to train on with `fit`: `tfopt demo` shows that whole road.
"""
SCHEMES = ("int8", "int16x8", "float16", *(f"int{bits}_weight_only" for bits in range(8, 1, -1)))
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
    with _quiet_start():
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
    parser = _described(
        argparse.ArgumentParser, prog="tfopt", description=DESCRIPTION, epilog=EXAMPLES + "\n" + EXIT_CODES
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the versions of tfopt, Keras and TensorFlow")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (
        _add_demo,
        _add_summary,
        _add_compare,
        _add_prune,
        _add_shrink,
        _add_cluster,
        _add_quantize,
        _add_export,
    ):
        add(commands)
    return parser


def _add_demo(commands) -> None:
    command = _command(
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


def _add_summary(commands) -> None:
    command = _command(
        commands,
        "summary",
        _summary,
        "parameters, zeros and multiply-accumulates per layer",
        "Shows a Keras model layer by layer, or what a .tflite file holds.",
        "tfopt summary model.keras\ntfopt summary model.tflite --save model.html",
    )
    command.add_argument("model", metavar="MODEL", type=Path, help="a .keras, .h5 or .tflite file")
    _add_save(command)


def _add_compare(commands) -> None:
    command = _command(
        commands,
        "compare",
        _compare,
        "scores, size and latency of several models side by side",
        "Measures Keras models and .tflite files on the same data into one table.",
        "tfopt compare model.keras model.tflite --data test.npz --save report.html",
    )
    command.add_argument("models", metavar="MODEL", type=Path, nargs="+", help=".keras, .h5 or .tflite files")
    command.add_argument("--data", metavar="FILE.npz", type=Path, help="arrays x and y to score on")
    _add_save(command)


def _add_prune(commands) -> None:
    command = _command(
        commands,
        "prune",
        _prune,
        "zero the least important weights or channels",
        "Zeroes the least important weights at once and writes a plain Keras model. Go on training it with\n"
        "`tfopt.prune(tfopt.load_model(OUT), sparsity='keep')`, which holds the zeros. `tfopt shrink` takes out\n"
        "channels that are zero.",
        "tfopt prune model.keras sparse.keras --sparsity 0.8\n"
        "tfopt prune model.keras sparse.keras --sparsity 0.5 --exclude 'block_1_*' --exclude head\n"
        "tfopt prune model.keras masked.keras --pattern channel --to-macs 0.5 --round-to 8",
    )
    _add_model_and_out(command)
    for option, effect in (
        ("sparsity", "fraction that goes, above 0, below 1 [0.5]"),
        ("to-macs", "channel, layer: leave so much of the multiply-accumulates"),
        ("to-params", "channel, layer: leave so much of the parameters"),
    ):
        command.add_argument(f"--{option}", type=float, metavar="FRACTION", help=effect)
    command.add_argument("--pattern", default="element", help="element, 2:4, 4x1, channel or layer [%(default)s]")
    command.add_argument("--scope", default="layer", help="rank each layer on its own, or 'global' [%(default)s]")
    command.add_argument("--round-to", type=_positive, default=1, metavar="N", help="channel: widths of multiples of N")
    command.add_argument("--criterion", default="magnitude", help="taylor, bn_scale, ...: as in Python [%(default)s]")
    command.add_argument("--data", metavar="FILE.npz", type=Path, help="arrays x and y for a criterion that needs them")
    _add_selection(command, "prune")


def _add_shrink(commands) -> None:
    command = _command(
        commands,
        "shrink",
        _shrink,
        "take out channels that are zero",
        "Writes a smaller model without the filters, neurons, units and heads that are zero through their group. Its\n"
        "outputs are those of MODEL.",
        "tfopt shrink masked.keras small.keras",
    )
    _add_model_and_out(command)


def _add_cluster(commands) -> None:
    command = _command(
        commands,
        "cluster",
        _cluster,
        "leave few distinct values in each kernel",
        "Gives the weights of each kernel a few shared values, and writes a plain Keras model that compresses well.\n"
        "Zeros of a pruned model stay. Go on training it with `tfopt.cluster(tfopt.load_model(OUT))`, which holds the\n"
        "clusters.",
        "tfopt cluster sparse.keras clustered.keras --clusters 16",
    )
    _add_model_and_out(command)
    command.add_argument("--clusters", type=int, default=16, metavar="N", help="values in each kernel [%(default)s]")
    command.add_argument("--init", default="kmeans++", help="or linear, density, random [%(default)s]")
    command.add_argument("--per-channel", action="store_true", help="N values in each channel of a convolution")
    _add_selection(command, "cluster")


def _add_quantize(commands) -> None:
    command = _command(
        commands,
        "quantize",
        _quantize,
        "compute in 8 or 16 bits, or store weights in few bits",
        "Puts fake quantization into a model and sets its ranges from data (post-training quantization). The\n"
        "result is a Keras model: score it, train it on, or export it to .tflite.",
        "tfopt quantize model.keras int8.keras --data train.npz --samples 500\n"
        "tfopt quantize model.keras small.keras --scheme int4_weight_only",
    )
    _add_model_and_out(command)
    command.add_argument(
        "--data", metavar="FILE.npz", type=Path, help="array x of typical inputs, for int8 and int16x8"
    )
    command.add_argument("--samples", type=_positive, default=500, help="how many of them to use [%(default)s]")
    command.add_argument("--scheme", choices=SCHEMES, default="int8", help="[%(default)s]")
    _add_selection(command, "quantize")


def _add_export(commands) -> None:
    command = _command(
        commands,
        "export",
        _export,
        "write a .tflite file that was run and checked",
        "Converts a model, runs the file, compares its outputs with the Keras model's and only then puts it in place.",
        "tfopt export int8.keras model.tflite --data test.npz\n"
        "tfopt export model.keras model.tflite --quantization int8 --data train.npz --compare-with model.keras\n"
        "tfopt export int8.keras model.tflite --input-type int8 --output-type int8 --c-array",
    )
    _add_model_and_out(command, out="a .tflite file")
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
        "--batch-size", type=_batch_size, default=1, metavar="N", help="samples at a time, or 'free' [%(default)s]"
    )
    command.add_argument("--metadata", metavar="FILE.json", type=Path, help="name, labels, ... to write into the file")
    command.add_argument("--compare-with", metavar="MODEL", type=Path, help="show the difference from this model too")
    command.add_argument("--c-array", action="store_true", help="write OUT as C source too, beside it: .cc and .h")


def _demo(arguments: argparse.Namespace) -> None:
    with _quiet_start():
        from tfopt.demo import run_demo

    comparison = run_demo(arguments.out, seed=arguments.seed, verbose=0 if arguments.quiet else 1)
    if arguments.quiet:
        print(comparison)


def _summary(arguments: argparse.Namespace) -> None:
    with _quiet_start():
        from tfopt.report.measure import summary

    _show(summary(arguments.model), arguments.save)


def _compare(arguments: argparse.Namespace) -> None:
    with _quiet_start():
        from tfopt.report.compare import compare

    data = _arrays(arguments.data, "x", "y") if arguments.data else None
    contenders = {name: str(path) for name, path in zip(_names(arguments.models), arguments.models, strict=True)}
    _show(compare(contenders, (data["x"], data["y"]) if data else None), arguments.save)


def _prune(arguments: argparse.Namespace) -> None:
    with _quiet_start():
        from tfopt.core.loading import load_model
        from tfopt.pruning.prune import prune

    _check_out(arguments.out)
    arrays = _arrays(arguments.data, "x", "y") if arguments.data else None
    names = ("sparsity", "to_macs", "to_params", "pattern", "scope", "round_to", "criterion", "include", "exclude")
    options = {name: getattr(arguments, name) for name in names}
    data = None if arrays is None else (arrays["x"], arrays["y"])
    _save(prune(load_model(arguments.model), data=data, **options), arguments.out)


def _shrink(arguments: argparse.Namespace) -> None:
    with _quiet_start():
        from tfopt.core.loading import load_model
        from tfopt.pruning.shrink import shrink

    _check_out(arguments.out)
    model = load_model(arguments.model)
    small = shrink(model)
    _save(small, arguments.out)
    print(f"{model.count_params():,} parameters -> {small.count_params():,}")


def _cluster(arguments: argparse.Namespace) -> None:
    with _quiet_start():
        from tfopt.clustering.cluster import cluster
        from tfopt.core.loading import load_model

    _check_out(arguments.out)
    options = {name: getattr(arguments, name) for name in ("init", "per_channel", "include", "exclude")}
    _save(cluster(load_model(arguments.model), arguments.clusters, **options), arguments.out)


def _quantize(arguments: argparse.Namespace) -> None:
    with _quiet_start():
        from tfopt.core.errors import InvalidArgumentError
        from tfopt.core.loading import load_model
        from tfopt.quantization.calibrate import calibrate
        from tfopt.quantization.quantize import quantize

    _check_out(arguments.out)
    has_ranges = arguments.scheme in ("int8", "int16x8")
    if has_ranges != (arguments.data is not None):
        raise InvalidArgumentError(
            "`--data` sets the ranges of int8 and int16x8; the other schemes have none.",
            received=f"--scheme {arguments.scheme} with{'' if arguments.data else 'out'} --data",
        )
    x = _arrays(arguments.data, "x")["x"] if has_ranges else None
    model = load_model(arguments.model)
    quantized = quantize(model, arguments.scheme, include=arguments.include, exclude=arguments.exclude)
    _save(calibrate(quantized, x, samples=arguments.samples) if has_ranges else quantized, arguments.out)


def _export(arguments: argparse.Namespace) -> None:
    with _quiet_start():
        from tfopt.core.loading import load_model
        from tfopt.deploy.c_array import export_c_array
        from tfopt.deploy.tflite import export_tflite

    data = _arrays(arguments.data, "x")["x"] if arguments.data else None
    export = export_tflite(
        load_model(arguments.model),
        arguments.out,
        arguments.quantization,
        data=data,
        input_type=arguments.input_type,
        output_type=arguments.output_type,
        batch_size=arguments.batch_size,
        metadata=_json(arguments.metadata) if arguments.metadata else None,
        compare_with=arguments.compare_with,
    )
    print(export)
    if arguments.c_array:
        print("Saved " + ", ".join(map(str, export_c_array(export.path, export.path.with_suffix(".cc")))))


def _show(report: Any, save: Path | None) -> None:
    print(report)
    if save:
        print(f"Saved {report.save(save)}")


def _arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file; pickled objects are refused."""
    import zipfile

    import numpy as np

    from tfopt.core.errors import FileError

    try:
        with np.load(path, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("one array without a name")
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise FileError(
            f"The data file has to hold the arrays {' and '.join(names)}.",
            received=f"'{path}': {str(error).strip(chr(34))}",
            fix='Write it with `numpy.savez("data.npz", x=x, y=y)`.',
        ) from error


def _json(path: Path) -> Any:
    import json

    from tfopt.core.errors import FileError

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError("The metadata file has to hold JSON.", received=f"'{path}': {error}") from error


def _check_out(path: Path) -> None:
    """Raises before any work is done if a Keras model cannot be written to `path`."""
    from tfopt.core.errors import FileError
    from tfopt.core.files import check_writable

    if path.suffix != ".keras":
        raise FileError("The model is written as a .keras file.", received=f"'{path}'")
    check_writable(path)


def _save(model: keras.Model, path: Path) -> None:
    """Writes the file whole or not at all, and says what was written."""
    from tfopt.core.files import write_whole

    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "model.keras"
        model.save(temporary)
        content = temporary.read_bytes()
    print(f"{write_whole(path, content)}: {len(content):,} bytes")


def _names(paths: list[Path]) -> list[str]:
    """Short names for a table: file names where these differ, else the paths as given."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _command(commands, name: str, run, short: str, description: str, example: str) -> argparse.ArgumentParser:
    examples = "example:\n" + "\n".join(f"  {line}" for line in example.splitlines())
    command = _described(commands.add_parser, name, help=short, description=description, epilog=examples)
    command.set_defaults(run=run)
    return command


def _described(make, *args, **kwargs) -> argparse.ArgumentParser:
    """A parser that shows texts as they are written."""
    return make(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)


def _add_model_and_out(command: argparse.ArgumentParser, out: str = "a .keras file") -> None:
    command.add_argument("model", metavar="MODEL", type=Path, help="a .keras or .h5 file")
    command.add_argument("out", metavar="OUT", type=Path, help=f"{out} to write")


def _add_save(command: argparse.ArgumentParser) -> None:
    command.add_argument("--save", metavar="FILE", type=Path, help="write it as .html, .md, .json or .txt too")


def _add_selection(command: argparse.ArgumentParser, verb: str) -> None:
    for option, effect in (("include", f"{verb} only"), ("exclude", "leave out")):
        command.add_argument(
            f"--{option}", metavar="LAYER", action="append", help=f"{effect} this layer or glob; may be repeated"
        )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return int(text)


def _batch_size(text: str) -> int | None:
    return None if text == "free" else _positive(text)


class _Version(argparse.Action):
    """`--version`, without importing TensorFlow to find out its version."""

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib.metadata import version

        from tfopt import __version__

        print(f"tfopt {__version__}, keras {version('keras')}, tensorflow {version('tensorflow')}")
        parser.exit()


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Keeps away what TensorFlow writes to the terminal while it is imported; errors still come as exceptions."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
        logging.getLogger("absl").setLevel(logging.ERROR)
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


if __name__ == "__main__":
    sys.exit(main())
