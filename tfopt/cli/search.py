"""The command `search`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfopt.cli.files import check_out, load_arrays, quiet_start, save_model
from tfopt.cli.options import add_save, new_command, positive
from tfopt.tuner.methods import METHODS

if TYPE_CHECKING:
    import keras

AXES = ("activation", "kernel_size", "pooling", "width", "depth", "lr", "batch_size", "decay", "clipnorm")


def add_search(commands: Any) -> None:
    command = new_command(
        commands,
        "search",
        _search,
        "the best variant of a model within bounds",
        "Trains variants of a model, which start from its weights, and writes the best that keeps to the constraints.\n"
        "A constraint on parameters, macs, tflite_bytes or latency_ms is checked before training. With --directory,\n"
        "the same command again goes on where it was killed, and a larger --budget searches on.",
        "tfopt search model.keras --train train.npz --val val.npz --out best.keras \\\n"
        '      --width 0.5,1 --kernel-size 1,3,5 --lr 1e-4,1e-2 --constraint "tflite_bytes <= 100_000" --budget 40\n'
        "tfopt search model.keras --train train.npz --cv 5 --out best.keras --depth 0.5,1 --batch-size 32,64 \\\n"
        "      --objective val_accuracy --objective macs --budget 600s --directory runs/first --save report.html",
    )
    command.add_argument("model", metavar="MODEL", type=Path, help="a compiled .keras or .h5 file, or see --loss")
    command.add_argument("--train", metavar="FILE.npz", type=Path, required=True, help="arrays x and y to train on")
    command.add_argument("--val", metavar="FILE.npz", type=Path, help="arrays x and y to choose by")
    command.add_argument("--out", metavar="OUT", type=Path, required=True, help="a .keras file to write")
    _add_space(command)
    _add_search_options(command)
    _add_compilation(command)
    add_save(command)


def _add_space(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what to vary, values set apart by commas")
    for option, kind, effect in (
        ("activation", str, "such as relu,elu,prelu"),
        ("kernel-size", int, "of convolutions, such as 1,3,5"),
        ("pooling", str, "of max,average,adaptive"),
        ("width", float, "factors of all widths, such as 0.5,1"),
        ("depth", float, "fractions of the blocks that stay, such as 0.5,1"),
        ("lr", float, "learning rates; two are the ends of a range"),
        ("batch-size", int, "in samples"),
        ("decay", str, "of none,step,exponential,cosine,plateau"),
        ("clipnorm", float, "bounds of gradients; none is no clipping"),
    ):
        may_be_none = option in ("decay", "clipnorm")
        group.add_argument(f"--{option}", type=_Values(kind, may_be_none), default=(), metavar="VALUES", help=effect)
    group.add_argument(
        "--per",
        choices=("model", "stage", "layer"),
        default="model",
        help="one activation, kernel size and pooling for all, for each grid or each layer [%(default)s]",
    )
    group.add_argument("--no-inherit", action="store_true", help="variants start from new weights")


def _add_search_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("how to search")
    group.add_argument("--method", choices=METHODS, default="tpe", help="[%(default)s]")
    group.add_argument(
        "--objective",
        action="append",
        metavar="NAME",
        help="val_accuracy, macs, ...; val_iou:max where the direction is not known; may be repeated [val_accuracy]",
    )
    group.add_argument(
        "--constraint",
        action="append",
        default=[],
        metavar="BOUND",
        help='such as "tflite_bytes <= 100_000" or "latency_ms <= 2"; may be repeated',
    )
    group.add_argument("--budget", type=_budget, default=20, metavar="N|600s", help="trials or seconds [%(default)s]")
    group.add_argument("--epochs", type=positive, default=10, metavar="N", help="of each training [%(default)s]")
    group.add_argument("--executions", type=positive, default=1, metavar="N", help="trainings a trial [%(default)s]")
    group.add_argument("--cv", type=positive, metavar="K", help="score on K folds of the training data, without --val")
    group.add_argument("--directory", metavar="DIR", type=Path, help="record each trial, to go on from there")
    group.add_argument("--workers", type=positive, default=1, metavar="N", help="processes that train [%(default)s]")
    group.add_argument("--storage", metavar="URL", help="a database in which several machines search, with --name")
    group.add_argument("--name", help="of the search in the database")
    group.add_argument("--seed", type=int, default=0, help="of the method and each trial [%(default)s]")


def _add_compilation(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("for a model that is not compiled, or to compile it otherwise")
    group.add_argument("--loss", metavar="NAME", help="such as sparse_categorical_crossentropy")
    group.add_argument("--optimizer", metavar="NAME", help="with --loss [adam]")
    group.add_argument(
        "--metrics", type=_Values(str, False), metavar="NAMES", help="with --loss [those of the objectives]"
    )


def _search(arguments: argparse.Namespace) -> None:
    with quiet_start():
        from tfopt.core.reporting.render import check_report_path
        from tfopt.tuner.tune import search

    check_out(arguments.out, arguments.model)
    if arguments.save:
        check_report_path(arguments.save)
    objectives = [_objective(text) for text in arguments.objective or ["val_accuracy"]]
    found = search(
        _compiled(arguments, [name for name, *_ in objectives]),
        {name: getattr(arguments, name) for name in (*AXES, "per")},
        train=_pair(arguments.train),
        val=_pair(arguments.val) if arguments.val else None,
        objectives=[goal if len(goal) > 1 else goal[0] for goal in objectives],
        constraints=arguments.constraint,
        inherit=not arguments.no_inherit,
        **{name: getattr(arguments, name) for name in ("method", "budget", "epochs", "executions", "cv")},
        **{name: getattr(arguments, name) for name in ("directory", "workers", "storage", "name", "seed")},
    )
    print(found)
    if arguments.save:
        print(f"Saved {found.save(arguments.save)}")
    save_model(found.best_models()[0], arguments.out)


def _pair(path: Path) -> tuple[Any, Any]:
    arrays = load_arrays(path, "x", "y")
    return arrays["x"], arrays["y"]


def _compiled(arguments: argparse.Namespace, objectives: list[str]) -> keras.Model:
    """The model, compiled as the options say, or as it was when it was saved."""
    from tfopt.core.errors import InvalidArgumentError
    from tfopt.core.models.loading import load_model

    if arguments.loss is None:
        if arguments.optimizer or arguments.metrics:
            raise InvalidArgumentError("`--optimizer` and `--metrics` go with `--loss`.", received="no `--loss`")
        model = load_model(arguments.model, compile=True)
        if not model.compiled:
            raise InvalidArgumentError(
                "The model must be compiled.",
                received=f"'{arguments.model}', which is not",
                fix="Pass --loss, such as --loss sparse_categorical_crossentropy.",
            )
        return model
    model = load_model(arguments.model)
    metrics = arguments.metrics if arguments.metrics is not None else _metrics(objectives)
    try:
        model.compile(arguments.optimizer or "adam", arguments.loss, metrics=list(metrics))
        model.get_compile_config()
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError("The model must compile with these options.", received=str(error).strip()) from error
    return model


def _metrics(objectives: list[str]) -> list[str]:
    """The metrics that objectives ask for."""
    from tfopt.tuner.objective import COSTS

    names = [name.removeprefix("val_") for name in objectives if name not in COSTS]
    return [name for name in dict.fromkeys(names) if name != "loss"]


def _objective(text: str) -> tuple[str, ...]:
    """The name, and the direction if one is given."""
    return tuple(text.rsplit(":", 1))


def _budget(text: str) -> int | str:
    return int(text) if text.isdigit() else text


class _Values:
    """What argparse makes of `1,3,5`."""

    def __init__(self, kind: type, may_be_none: bool):
        self._kind, self._may_be_none = kind, may_be_none

    def __call__(self, text: str) -> tuple:
        parts = [part.strip() for part in text.split(",")]
        try:
            return tuple(None if self._may_be_none and part == "none" else self._kind(part) for part in parts)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{self._names()} set apart by commas, not {text!r}") from error

    def _names(self) -> str:
        return {int: "whole numbers", float: "numbers"}[self._kind]
