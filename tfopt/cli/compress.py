"""The commands that make a model smaller: `prune`, `shrink`, `cluster`, `quantize`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfopt.cli.files import check_out, load_arrays, quiet_start, save_model
from tfopt.cli.options import add_model_and_out, add_selection, new_command, positive

SCHEMES = ("int8", "int16x8", "float16", *(f"int{bits}_weight_only" for bits in range(8, 1, -1)))


def add_prune(commands: Any) -> None:
    command = new_command(
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
    add_model_and_out(command)
    for option, effect in (
        ("sparsity", "fraction that goes, above 0, below 1 [0.5]"),
        ("to-macs", "channel, layer: leave so much of the multiply-accumulates"),
        ("to-params", "channel, layer: leave so much of the parameters"),
    ):
        command.add_argument(f"--{option}", type=float, metavar="FRACTION", help=effect)
    command.add_argument("--pattern", default="element", help="element, 2:4, 4x1, channel or layer [%(default)s]")
    command.add_argument("--scope", default="layer", help="rank each layer on its own, or 'global' [%(default)s]")
    command.add_argument("--round-to", type=positive, default=1, metavar="N", help="channel: widths of multiples of N")
    command.add_argument("--criterion", default="magnitude", help="taylor, bn_scale, ...: as in Python [%(default)s]")
    command.add_argument("--data", metavar="FILE.npz", type=Path, help="arrays x and y for a criterion that needs them")
    add_selection(command, "prune")


def add_shrink(commands: Any) -> None:
    command = new_command(
        commands,
        "shrink",
        _shrink,
        "take out channels that are zero",
        "Writes a smaller model without the filters, neurons, units and heads that are zero through their group. Its\n"
        "outputs are those of MODEL.",
        "tfopt shrink masked.keras small.keras",
    )
    add_model_and_out(command)


def add_cluster(commands: Any) -> None:
    command = new_command(
        commands,
        "cluster",
        _cluster,
        "leave few distinct values in each kernel",
        "Gives the weights of each kernel a few shared values, and writes a plain Keras model that compresses well.\n"
        "Zeros of a pruned model stay. Go on training it with `tfopt.cluster(tfopt.load_model(OUT))`, which holds the\n"
        "clusters.",
        "tfopt cluster sparse.keras clustered.keras --clusters 16",
    )
    add_model_and_out(command)
    command.add_argument("--clusters", type=int, default=16, metavar="N", help="values in each kernel [%(default)s]")
    command.add_argument("--init", default="kmeans++", help="or linear, density, random [%(default)s]")
    command.add_argument("--per-channel", action="store_true", help="N values in each channel of a convolution")
    add_selection(command, "cluster")


def add_quantize(commands: Any) -> None:
    command = new_command(
        commands,
        "quantize",
        _quantize,
        "compute in 8 or 16 bits, or store weights in few bits",
        "Puts fake quantization into a model and sets its ranges from data (post-training quantization). The\n"
        "result is a Keras model: score it, train it on, or export it to .tflite.",
        "tfopt quantize model.keras int8.keras --data train.npz --samples 500\n"
        "tfopt quantize model.keras small.keras --scheme int4_weight_only",
    )
    add_model_and_out(command)
    command.add_argument(
        "--data", metavar="FILE.npz", type=Path, help="array x of typical inputs, for int8 and int16x8"
    )
    command.add_argument("--samples", type=positive, default=500, help="how many of them to use [%(default)s]")
    command.add_argument("--scheme", choices=SCHEMES, default="int8", help="[%(default)s]")
    add_selection(command, "quantize")


def _prune(arguments: argparse.Namespace) -> None:
    with quiet_start():
        from tfopt.core.models.loading import load_model
        from tfopt.pruning.prune import prune

    check_out(arguments.out, arguments.model)
    arrays = load_arrays(arguments.data, "x", "y") if arguments.data else None
    names = ("sparsity", "to_macs", "to_params", "pattern", "scope", "round_to", "criterion", "include", "exclude")
    options = {name: getattr(arguments, name) for name in names}
    data = None if arrays is None else (arrays["x"], arrays["y"])
    save_model(prune(load_model(arguments.model), data=data, **options), arguments.out)


def _shrink(arguments: argparse.Namespace) -> None:
    with quiet_start():
        from tfopt.core.models.loading import load_model
        from tfopt.pruning.shrink import shrink

    check_out(arguments.out, arguments.model)
    model = load_model(arguments.model)
    small = shrink(model)
    save_model(small, arguments.out)
    print(f"{model.count_params():,} parameters -> {small.count_params():,}")


def _cluster(arguments: argparse.Namespace) -> None:
    with quiet_start():
        from tfopt.clustering.cluster import cluster
        from tfopt.core.models.loading import load_model

    check_out(arguments.out, arguments.model)
    options = {name: getattr(arguments, name) for name in ("init", "per_channel", "include", "exclude")}
    save_model(cluster(load_model(arguments.model), arguments.clusters, **options), arguments.out)


def _quantize(arguments: argparse.Namespace) -> None:
    with quiet_start():
        from tfopt.core.errors import InvalidArgumentError
        from tfopt.core.models.loading import load_model
        from tfopt.quantization.calibrate import calibrate
        from tfopt.quantization.quantize import quantize

    check_out(arguments.out, arguments.model)
    has_ranges = arguments.scheme in ("int8", "int16x8")
    if has_ranges != (arguments.data is not None):
        raise InvalidArgumentError(
            "`--data` sets the ranges of int8 and int16x8; the other schemes have none.",
            received=f"--scheme {arguments.scheme} with{'' if arguments.data else 'out'} --data",
        )
    x = load_arrays(arguments.data, "x")["x"] if has_ranges else None
    model = load_model(arguments.model)
    quantized = quantize(model, arguments.scheme, include=arguments.include, exclude=arguments.exclude)
    save_model(calibrate(quantized, x, samples=arguments.samples) if has_ranges else quantized, arguments.out)
