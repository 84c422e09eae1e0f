"""What a model costs, measured before it is trained."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfopt.core.data.batches import input_batches
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.layers.registry import prunable_weights
from tfopt.core.models.graph import read
from tfopt.core.models.macs import model_macs
from tfopt.core.models.opening import opened
from tfopt.deploy.runner import TFLiteModel
from tfopt.deploy.tflite import export_tflite
from tfopt.tuner.objective import Constraint

try:
    import fcntl
except ImportError:  # Windows, which has no workers that measure at the same time
    fcntl = None  # type: ignore[assignment]

_SAMPLES = 16  # to calibrate the file on; its size does not depend on them
_OF_A_FILE = ("tflite_bytes", "latency_ms")


class Costs:
    """Measures models, cheapest figure first, until a constraint is broken.

    Size and latency are those of an int8 .tflite with random weights in place of the model's, so that they hold for
    the trained model: neither zeros nor equal weights make the file smaller. Files of one architecture are made once.
    Processes of one user on one machine measure files one after the other, so that no two disturb each other's latency;
    what trains at the same time still shares caches and memory with it.

    Args:
        names: figures that are wanted besides those that are constrained.
        constraints: of all kinds; those on costs are looked at.
        data: a few inputs for the file; None only if no figure of a file is wanted.
    """

    def __init__(self, names: Collection[str], constraints: Sequence[Constraint], data: Any):
        self._constraints = [constraint for constraint in constraints if constraint.is_cost]
        self._wanted = {*names, *(constraint.name for constraint in self._constraints)}
        self._data = data
        self._files: dict[str, dict[str, float]] = {}

    def __call__(self, model: keras.Model) -> tuple[dict[str, float], Constraint | None, float]:
        """The figures, the first constraint that is broken, if any, and by how much.

        Raises:
            InvalidArgumentError: MACs are wanted and unknown.
            ExportError: a file is wanted, and the converter fails.
        """
        figures: dict[str, float] = {"parameters": int(sum(np.prod(weight.shape) for weight in model.weights))}
        macs = list(model_macs(opened(read(model))).values())
        if None not in macs:
            figures["macs"] = sum(macs)  # type: ignore[arg-type]
        elif "macs" in self._wanted:
            raise InvalidArgumentError("The MACs of each layer must be known.", received=f"'{model.name}'")
        upper = [constraint for constraint in self._constraints if constraint.operator[0] == "<"]
        broken = _broken(self._constraints, figures) or _broken(upper, {"tflite_bytes": least_bytes(model)})
        if broken is None and self._wanted & {*_OF_A_FILE}:
            figures |= self._of_file(model)
            broken = _broken(self._constraints, figures)
        if broken is None:
            return figures, None, 0.0
        return figures, *broken

    def _of_file(self, model: keras.Model) -> dict[str, float]:
        key = _architecture(model)
        if key not in self._files:
            own = [variable.numpy() for variable in model.weights]
            try:
                _randomise(model)
                with _measures_alone():
                    self._files[key] = file_figures(model, self._data)
            finally:
                for variable, value in zip(model.weights, own, strict=True):
                    variable.assign(value)
        return self._files[key]


def file_figures(model: keras.Model, data: Any) -> dict[str, float]:
    """Size and latency of the int8 .tflite of a model: `tflite_bytes`, `latency_ms` (median, one thread)."""
    samples = next(input_batches(model, data, batch_size=_SAMPLES, limit=_SAMPLES))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        export_tflite(
            model, path, "int8", data=samples if len(samples) > 1 else samples[0], sparse=False, tolerance=1e9
        )
        latency = TFLiteModel(path).latency(runs=30, warmup=5)
        return {"tflite_bytes": path.stat().st_size, "latency_ms": latency.median_ms}


def least_bytes(model: keras.Model) -> int:
    """What an int8 file takes at least: a byte for each element of a kernel.

    Example:
        >>> least_bytes(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        12
    """
    kernels = {
        id(weight): weight
        for _, layer in read(model).layers
        if not isinstance(layer, keras.Model)
        for weight in prunable_weights(layer).values()
    }
    return int(sum(np.prod(weight.shape) for weight in kernels.values()))


def _architecture(model: keras.Model) -> str:
    """The config of a model, with the numbers that Keras gives to names counted from 0."""
    text = json.dumps(model.get_config(), sort_keys=True, default=str)
    for number, name in enumerate(dict.fromkeys(re.findall(r'"name": "([^"]+)"', text))):
        base = re.sub(r"_\d+$", "", name)
        text = text.replace(f'"{name}"', f'"{base}#{number}"')
    return text


def _broken(constraints: Sequence[Constraint], figures: Mapping[str, float]) -> tuple[Constraint, float] | None:
    """The first constraint that is broken, and by how much."""
    for constraint in constraints:
        if constraint.name in figures and (violation := constraint.violation(figures[constraint.name])):
            return constraint, violation
    return None


@contextmanager
def _measures_alone() -> Iterator[None]:
    """Waits until no other process of this user measures; the system ends the wait for one that died."""
    if fcntl is None:
        yield
        return
    path = Path(tempfile.gettempdir()) / f"tfopt-{os.getuid()}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _randomise(model: keras.Model) -> None:
    """Puts weights that keep activations near 1 into the model."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if not keras.backend.is_float_dtype(variable.dtype):
            continue
        if len(variable.shape) < 2:
            values = generator.uniform(0.5, 1.5, variable.shape)
        else:
            values = generator.uniform(-1, 1, variable.shape) * np.sqrt(3 / np.prod(variable.shape[:-1]))
        variable.assign(values)
