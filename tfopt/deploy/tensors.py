"""Inputs and outputs of a .tflite file: checked, quantized on the way in, dequantized on the way out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfopt.core.data.inputs import Input
from tfopt.core.errors import InvalidArgumentError


@dataclass(frozen=True)
class Tensor:
    """An input or output of the file: real value = scale * (stored value - zero_point).

    Args:
        name: its name in the signature: that of the Keras input, or `output_0`.
        shape: None where the size is free.
        dtype: as stored, such as `"int8"`.
        scale: 0.0 where the tensor is not quantized.
        index: of the tensor in the file.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float
    zero_point: int
    index: int = field(repr=False)

    @property
    def quantized(self) -> bool:
        return self.scale > 0

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"


def tensors_of(details: list[dict], names: Mapping[int, str]) -> tuple[Tensor, ...]:
    """Tensors from the interpreter's `details`, named by `names` where the signature names them.

    Outputs that Keras numbered, `output_0`, `output_1`, are sorted: the interpreter may list them in another order.
    """
    found = tuple(_tensor(detail, names.get(detail["index"], detail["name"])) for detail in details)
    return tuple(sorted(found, key=lambda tensor: _number(tensor.name))) if are_numbered(found) else found


def are_numbered(tensors: tuple[Tensor, ...]) -> bool:
    """True for outputs without names of their own: those of a list, not of a dict."""
    return all(_number(tensor.name) >= 0 for tensor in tensors)


def checked_inputs(x: Any, specs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """One array an input, of the dtype the file stores, in the order of `specs`."""
    arrays = [_checked(values, spec) for values, spec in zip(_in_order(x, specs), specs, strict=True)]
    counts = {len(array) for array in arrays}
    if len(counts) > 1 or 0 in counts:
        raise InvalidArgumentError(
            "Each input has to hold the same number of samples, at least one.",
            received=", ".join(f"{len(array)} in '{spec.name}'" for array, spec in zip(arrays, specs, strict=True)),
        )
    return arrays


def as_inputs(specs: tuple[Tensor, ...]) -> list[Input]:
    """What a file takes, to be held against the inputs of models."""
    return [Input(spec.name, spec.shape, spec.dtype, (spec.name,)) for spec in specs]


def dequantized(values: np.ndarray, spec: Tensor) -> np.ndarray:
    """Real values, float32, of a quantized output; other outputs as they are."""
    if not spec.quantized:
        return values
    return ((values.astype(np.float32) - spec.zero_point) * spec.scale).astype(np.float32)


def random_sample(spec: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Seeded values to time the file with: floats in [0, 1), zeros for integers, which may be indices."""
    if spec.dtype.startswith("float"):
        return np.random.default_rng(0).random(shape).astype(spec.dtype)
    return np.full(shape, spec.zero_point, spec.dtype)


def _tensor(detail: dict, name: str) -> Tensor:
    declared = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    scale, zero_point = detail["quantization"]
    shape = tuple(None if dim < 0 else int(dim) for dim in declared)
    return Tensor(name, shape, np.dtype(detail["dtype"]).name, float(scale), int(zero_point), int(detail["index"]))


def _number(name: str) -> int:
    match = re.fullmatch(r"output_(\d+)", name)
    return int(match[1]) if match else -1


def _in_order(x: Any, specs: tuple[Tensor, ...]) -> list:
    names = [spec.name for spec in specs]
    if isinstance(x, Mapping):
        if set(x) != set(names):
            raise InvalidArgumentError("The keys have to name the inputs.", received=f"{list(x)} for {names}")
        return [x[name] for name in names]
    several = isinstance(x, (list, tuple)) and (
        len(specs) > 1 or (len(x) == 1 and np.ndim(x[0]) == len(specs[0].shape))
    )
    values = list(x) if several else [x]
    if len(values) != len(specs):
        raise InvalidArgumentError(
            "There has to be one array an input.", received=f"{len(values)} for {names}", fix="Pass a list or a dict."
        )
    return values


def _checked(values: Any, spec: Tensor) -> np.ndarray:
    array = np.asarray(values)
    fits = array.ndim == len(spec.shape) > 0 and all(
        want in (None, got) for want, got in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        raise InvalidArgumentError(
            f"Input '{spec.name}' has the shape (samples, {', '.join(map(str, spec.shape[1:]))}).",
            received=str(array.shape),
        )
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise InvalidArgumentError(f"Input '{spec.name}' takes numbers.", received=f"dtype {array.dtype}")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise InvalidArgumentError(f"Input '{spec.name}' has to be finite.", received="NaN or infinity")
    return array if array.dtype == spec.dtype else _stored(array, spec)


def _stored(array: np.ndarray, spec: Tensor) -> np.ndarray:
    """`array` in the dtype of the file."""
    if not np.issubdtype(np.dtype(spec.dtype), np.integer):
        return array.astype(spec.dtype)
    limits = np.iinfo(spec.dtype)
    if spec.quantized:
        return np.clip(np.rint(array / spec.scale) + spec.zero_point, limits.min, limits.max).astype(spec.dtype)
    if (array != np.rint(array)).any() or array.min() < limits.min or array.max() > limits.max:
        raise InvalidArgumentError(
            f"Input '{spec.name}' takes integers of {spec.dtype}.",
            received=f"{array.dtype} {array.min()}..{array.max()}",
        )
    return array.astype(spec.dtype)
