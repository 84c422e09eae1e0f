"""Convolutions of another kernel size that read the same places and give the same grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.errors import UnsupportedModelError
from tfopt.core.keras_internals import sublayers
from tfopt.core.models import constraints
from tfopt.core.models.graph import Graph
from tfopt.core.models.rewrite import Rewrite
from tfopt.editing.places import Outcome, Place, Plan, new_name, policy_of

_FORWARD = (kl.Conv1D, kl.Conv2D, kl.Conv3D, kl.SeparableConv1D, kl.SeparableConv2D)
_DEPTHWISE = (kl.DepthwiseConv1D, kl.DepthwiseConv2D)
_TRANSPOSED = (kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)
_CONVOLUTIONS = (*_FORWARD, *_DEPTHWISE, *_TRANSPOSED)
_PADDINGS = (kl.ZeroPadding1D, kl.ZeroPadding2D, kl.ZeroPadding3D)
_CROPPINGS = (kl.Cropping1D, kl.Cropping2D, kl.Cropping3D)
_HIDDEN = (*_CONVOLUTIONS, kl.ConvLSTM1D, kl.ConvLSTM2D, kl.ConvLSTM3D)  # inside a wrapper or a recurrent layer


@dataclass(frozen=True)
class Axis:
    """A spatial axis of a convolution.

    Args:
        length: of the input; None if it is not known or differs from call to call.
        size: of the kernel.
    """

    length: int | None
    size: int
    stride: int
    dilation: int

    @property
    def reach(self) -> int:
        """How many inputs a kernel spans."""
        return (self.size - 1) * self.dilation + 1

    def before(self, transposed: bool) -> int | None:
        """How much padding "same" puts in front, as TensorFlow counts it; None if that depends on the length."""
        if transposed or self.stride == 1:
            return max(self.reach - self.stride, 0) // 2
        if self.length is None:
            return None
        steps = -(-self.length // self.stride)
        return max((steps - 1) * self.stride + self.reach - self.length, 0) // 2


@dataclass(frozen=True)
class Resize:
    """How a convolution gets another kernel size.

    Args:
        offsets: along each axis, where the first weight of the old kernel comes to lie in the new one.
        padding: the padding mode of the new layer.
        around: what is put around the input, of a transposed convolution taken off the output: `(before, after)` for
            each axis, negative to crop.
        exact: a larger kernel computes what the smaller one did.
    """

    size: int
    offsets: tuple[int, ...]
    padding: str
    around: tuple[tuple[int, int], ...]
    exact: bool = True


def plan_kernels(graph: Graph, places: list[Place], size: int) -> tuple[Plan, Outcome]:
    """What to put where, and what is said of it and of the rest."""
    outcome = Outcome("swap_kernel_size")
    held = {id(variable) for variable in constraints.constrained(graph.model)}
    plan: Plan = {}
    for place in places:
        op: Any = place.op
        if not place.chosen:
            continue
        if not isinstance(op, _CONVOLUTIONS):
            if any(isinstance(layer, _HIDDEN) for layer in sublayers(op)):
                outcome.missed[place.path] = "its kernel is inside a wrapper or a recurrent layer"
        elif set(op.kernel_size) == {size}:
            outcome.left[place.path] = f"its kernel has size {size} already"
        elif not place.asked and set(op.kernel_size) == {1}:
            outcome.left[place.path] = "a kernel of size 1 mixes channels only"
        elif isinstance(op, _TRANSPOSED) and (reason := _refusal(op, size)):
            outcome.missed[place.path] = reason
        else:
            _check_free(place, held)
            resize = _resize(place, size)
            plan |= _plan_one(place, resize, places)
            outcome.swapped[place.path] = f"{_spelled(op.kernel_size)} -> {_spelled((size,) * op.rank)}"
            if not resize.exact:
                outcome.notes[place.path] = "its outputs move, as the old kernel fits nowhere in the new one"
    return plan, outcome


def _plan_one(place: Place, resize: Resize, places: list[Place]) -> Plan:
    """The layer with its new kernel, and what pads or crops before it (a transposed one: behind it).

    A padding or cropping layer that is there for this layer alone is taken into account, and goes.
    """
    op: Any = place.op
    near = _own_padding(place) if any(map(any, resize.around)) else None
    around = np.array(resize.around) + (0 if near is None else _amounts(near))
    names = [new_name(f"{op.name}_{kind}", places) for kind in ("crop", "pad")]
    if near is not None:
        names[int(isinstance(near, _PADDINGS))] = near.name

    def put(state: Rewrite) -> list[keras.Operation]:
        layer = state.resized(
            op,
            lambda variable: _placed(variable, resize),
            kernel_size=(resize.size,) * op.rank,
            padding=resize.padding,
        )
        around_it = _layers_around(place, around, names)
        return [layer, *around_it] if isinstance(op, _TRANSPOSED) else [*around_it, layer]

    return {id(op): put} if near is None else {id(op): put, id(near): lambda state: []}


def _own_padding(place: Place) -> keras.Operation | None:
    """The padding or cropping layer that feeds a layer, and no other."""
    near = None if isinstance(place.op, _TRANSPOSED) else place.graph.sole_producer(place.op)
    own = isinstance(near, (*_PADDINGS, *_CROPPINGS)) and place.graph.sole_consumer(near) is place.op
    return near if own else None


def _amounts(layer: Any) -> np.ndarray:
    """What a padding layer adds, or a cropping layer takes off as negative numbers: an array (axis, side)."""
    amounts = layer.padding if isinstance(layer, _PADDINGS) else layer.cropping
    return np.reshape(amounts, (-1, 2)) * (1 if isinstance(layer, _PADDINGS) else -1)


def _layers_around(place: Place, around: np.ndarray, names: list[str]) -> list[kl.Layer]:
    """A cropping and a padding layer, as far as they are needed."""
    op: Any = place.op
    layers = []
    for kinds, name, amounts in zip((_CROPPINGS, _PADDINGS), names, (-around, around), strict=True):
        sides = np.maximum(amounts, 0).tolist()
        if np.any(sides):
            options: dict[str, Any] = {"name": name, "dtype": policy_of(place)}
            if kinds[op.rank - 1] is not kl.Cropping1D:  # it has no other data format
                options["data_format"] = op.data_format
            layers.append(kinds[op.rank - 1](sides[0] if op.rank == 1 else sides, **options))
    return layers


def _spelled(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _refusal(op: Any, size: int) -> str | None:
    """Why a transposed convolution keeps its kernel size."""
    if op.output_padding is not None:
        return "with `output_padding` the output grid follows from the kernel size"
    if op.padding == "valid" and any(size < old for old in op.kernel_size):
        return "its output would get smaller"
    return None


def _check_free(place: Place, held: set[int]) -> None:
    bound = [variable.name for variable in place.op.weights if id(variable) in held and _is_spatial(variable)]
    if bound:
        raise UnsupportedModelError(
            "A kernel with a mask or clusters keeps its size: they belong to its weights one by one.",
            received=f"'{place.path}' with a constraint on its {bound[0]}",
            fix="Swap first and prune or cluster then, or take the constraints off with `tfopt.strip`.",
        )


def _resize(place: Place, size: int) -> Resize:
    op: Any = place.op
    axes = _axes(place)
    still = ((0, 0),) * op.rank
    if op.padding == "causal":
        return Resize(size, (size - axes[0].size,), "causal", still)
    if op.padding == "same":
        fits = [_fit_same(axis, size, isinstance(op, _TRANSPOSED)) for axis in axes]
        return Resize(size, tuple(offset for offset, _ in fits), "same", still, all(exact for _, exact in fits))
    if isinstance(op, _TRANSPOSED):
        offsets, around = zip(*(_fit_transposed(axis, size) for axis in axes), strict=True)
        return Resize(size, offsets, "valid", around)
    under_same = [offset for axis in axes if (offset := _fit_under_same(axis, size)) is not None]
    if len(under_same) == op.rank:
        return Resize(size, tuple(under_same), "same", still)
    offsets, around = zip(*(_fit_valid(axis, size) for axis in axes), strict=True)
    return Resize(size, offsets, "valid", around)


def _axes(place: Place) -> list[Axis]:
    op: Any = place.op
    first = 2 if op.data_format == "channels_first" else 1
    lengths = [{call.inputs[0].shape[first + i] for call in place.calls} for i in range(op.rank)]
    agreed = [next(iter(found)) if len(found) == 1 else None for found in lengths]
    return list(map(Axis, agreed, op.kernel_size, op.strides, op.dilation_rate))


def _fit_same(axis: Axis, size: int, transposed: bool) -> tuple[int, bool]:
    """Offset of the old kernel with padding "same", and whether each weight then reads the input that it read.

    A kernel smaller than the stride is not padded at all: the centre of a larger one is kept, though it moves.
    """
    new = replace(axis, size=size)
    if size < axis.size and new.reach < axis.stride:
        return (size - axis.size) // 2, True
    old_before, new_before = axis.before(transposed), new.before(transposed)
    if old_before is None or new_before is None:
        added = new.reach - axis.reach
        moved, aligned = added // 2, added % 2 == 0 and min(axis.reach, new.reach) >= axis.stride
    else:
        moved, aligned = new_before - old_before, True
    offset, rest = divmod(moved, axis.dilation)
    return offset, size < axis.size or (aligned and rest == 0)


def _fit_under_same(axis: Axis, size: int) -> int | None:
    """Offset at which a larger kernel with padding "same" does what the old one did with "valid"; None without one."""
    before = replace(axis, size=size).before(transposed=False)
    if axis.length is None or before is None or size < axis.size:
        return None
    grid, wanted = -(-axis.length // axis.stride), (axis.length - axis.reach) // axis.stride + 1
    if grid != wanted or before % axis.dilation or before // axis.dilation > size - axis.size:
        return None
    return before // axis.dilation


def _fit_valid(axis: Axis, size: int) -> tuple[int, tuple[int, int]]:
    """Offset with padding "valid", and what to put around the input so that the output grid stays."""
    added = size - axis.size
    offset = added // 2
    return offset, (offset * axis.dilation, (added - offset) * axis.dilation)


def _fit_transposed(axis: Axis, size: int) -> tuple[int, tuple[int, int]]:
    """The same for a transposed convolution, whose output gets larger by what the kernel reaches beyond the stride."""
    added = max(replace(axis, size=size).reach - axis.stride, 0) - max(axis.reach - axis.stride, 0)
    offset = min((size - axis.size) // 2, added // axis.dilation)
    return offset, (-offset * axis.dilation, offset * axis.dilation - added)


def _is_spatial(variable: keras.Variable) -> bool:
    """True for the weights of a convolution whose first axes are the spatial ones."""
    return variable.name in ("kernel", "depthwise_kernel")


def _placed(variable: keras.Variable, resize: Resize) -> np.ndarray:
    """The value of a variable, a kernel cropped or padded with zeros to its new size."""
    kernel = keras.ops.convert_to_numpy(variable)
    if not _is_spatial(variable):
        return kernel
    rank = len(resize.offsets)
    placed = np.zeros((resize.size,) * rank + kernel.shape[rank:], kernel.dtype)
    spans = [
        (max(offset, 0), min(offset + old, resize.size), offset)
        for offset, old in zip(resize.offsets, kernel.shape, strict=False)
    ]
    target = tuple(slice(start, stop) for start, stop, _ in spans)
    source = tuple(slice(start - offset, stop - offset) for start, stop, offset in spans)
    placed[target] = kernel[source]
    return placed
