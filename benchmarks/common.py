"""What every benchmark needs: times taken in turn, ratios of medians, and a record that says where and when.

A script calls `arguments`, measures, and ends with `sys.exit(finish(...))`, which prints a Markdown report and writes
it, with a JSON twin, to `--out` (by default `benchmarks/results/`).
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGES = (
    *("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy"),
    *("keras-tuner", "optuna"),
)
VECTOR_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Target:
    """A figure that has to stay at or below a limit."""

    claim: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        return self.value <= self.limit


def arguments(description: str, only: Sequence[str] = (), **paths: str) -> argparse.Namespace:
    """The options of every benchmark, `--quick` and `--out DIR`, and a script's own.

    Args:
        description: the script's docstring; its first line is shown by `--help`.
        only: the parts of the benchmark, of which `--only` names one to run.
        paths: name -> help, of options that take a path.
    """
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small settings: shows that it runs, figures mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the reports (default: %(default)s)")
    if only:
        parser.add_argument("--only", choices=only, help="the one part to run (default: all)")
    for name, meaning in paths.items():
        parser.add_argument(f"--{name}", type=Path, help=meaning)
    return parser.parse_args()


def times_in_turn(runs: Mapping[str, tuple[Callable[[], object], int]]) -> dict[str, list[float]]:
    """Seconds of each repetition of each run.

    The runs take turns, so that a slower minute of the machine meets all of them, and another one begins each round.

    Args:
        runs: name -> (what to time, how often).
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(max(count for _, count in runs.values())):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            run, count = runs[name]
            if turn < count:
                gc.collect()
                begin = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begin)
                if seconds[name][-1] > 1:
                    print(f"  turn {turn + 1}, {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def training_steps(model: Any, batches: Iterable, steps: int) -> Callable[[], None]:
    """What trains a model, which `fit` has warmed up, for some steps through the function that `fit` compiled."""
    iterator = iter(batches)

    def run() -> None:
        for _ in range(steps):
            logs = model.train_function(iterator)
        for value in logs.values():
            float(value)  # waits for the last step

    return run


def ratio_of_medians(values: Sequence[float], base: Sequence[float]) -> float:
    return statistics.median(values) / statistics.median(base)


def spread(values: Sequence[float]) -> str:
    """Median and range, as `"1.50 (1.20-1.90)"`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def finish(
    name: str, description: str, body: str, measured: dict, targets: Sequence[Target], options: argparse.Namespace
) -> int:
    """Prints and writes the report; the exit code: 0 if all targets are met or `--quick` was given, else 1."""
    where = _environment()
    verdicts = [[t.claim, f"{t.value:.3f}", f"<= {t.limit:.3f}", "met" if t.met else "MISSED"] for t in targets]
    report = "\n\n".join(
        [
            f"# {name}" + (" (--quick: not a measurement)" if options.quick else ""),
            description.strip(),
            body,
            *([table(["claim", "measured", "target", ""], verdicts)] if verdicts else []),
            "\n".join(f"- {key}: {value}" for key, value in where.items()),
        ]
    )
    print(report)
    record = {**where, "quick": options.quick, "measured": measured, "targets": [asdict(t) for t in targets]}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.md").write_text(report + "\n")
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0 if options.quick or all(target.met for target in targets) else 1


def commit() -> str:
    """The commit that is measured, with `+` if files of tfopt differ from it."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "../tfopt"], capture_output=True, check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + ("+" if changed.returncode else "")


def _environment() -> dict[str, str]:
    """Command, commit, machine, versions and date."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    script = os.path.relpath(sys.argv[0], Path(__file__).parent.parent)
    return {
        "command": shlex.join(["python", script, *sys.argv[1:]]),
        "commit": commit(),
        "machine": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.machine()}",
        "versions": f"Python {platform.python_version()}, {versions}",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _cpu_model() -> str:
    """Name of the CPU and its widest vector instructions: float and int8 kernels differ with them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = values.get("model name") or platform.processor() or "unknown CPU"
    vectors = [flag for flag in VECTOR_FLAGS if flag in values.get("flags", "").split()]
    return f"{name} ({' '.join(vectors)})" if vectors else name
