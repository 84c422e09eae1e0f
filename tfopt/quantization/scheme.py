"""Which tensor of a model gets an 8-bit range: TFMOT's 8-bit scheme (`default_8bit_transforms.py`) for any graph.

A convolution or matrix product, the batch normalization behind it and the rectifier behind that become one integer
operation in the file, so they share one range, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import layers as kl

from tfopt.core import constraints
from tfopt.core.catalog import Entry, Output, activation_output, entry_of
from tfopt.core.graph import Graph
from tfopt.core.keras_internals import children

_FUSED_ACTIVATIONS = ("linear", "relu", "relu6")


@dataclass(frozen=True)
class Treatment:
    """What happens to one op. `kernels` to round, `activation` to take out of the layer, `output` to quantize."""

    kernels: dict[str, tuple[int, ...]]
    activation: str | None = None
    output: bool = False
    affine: bool = False  # scales and shifts channels, with no kernel before it to fold into
    reason: str = ""  # why it stays float

    @property
    def is_float(self) -> bool:
        return bool(self.reason)

    @property
    def is_plain(self) -> bool:
        """Nothing to add: the op moves values, or its follower quantizes for it."""
        return not (self.kernels or self.activation or self.output or self.affine)


def treatment(op: keras.Operation, graph: Graph) -> Treatment:
    """How `op` is quantized where it stands in `graph`."""
    entry = entry_of(op)
    if entry is None or entry.output in (None, Output.FLOAT):
        return Treatment({}, reason=(entry and entry.reason) or _why_unknown(op))
    if entry.output is not Output.RANGE:
        return Treatment({})
    kernels, name = _kernel_axes(op, entry, graph), activation_name(op)
    if name is None or (kernels and name in _FUSED_ACTIVATIONS):
        return Treatment(kernels, output=not feeds_fusion(op, graph), affine=_stands_alone(op, graph))
    behaviour = activation_output(name)
    if behaviour is None:
        return Treatment({}, reason=f"the activation '{name}' is unknown to the catalog")
    ranged = behaviour is Output.RANGE
    if isinstance(op, kl.Activation):
        return Treatment({}, output=ranged and name != "linear" and not feeds_fusion(op, graph))
    return Treatment(kernels, activation=name, output=ranged)


def _kernel_axes(op: keras.Operation, entry: Entry, graph: Graph) -> dict[str, tuple[int, ...]]:
    """Each kernel to round and its channel axes, none where its weights take their values from one small set.

    One range turns the set into as many integers; one a channel would turn it into other integers in each, and a file
    that compresses worse. Batch normalization is folded in by scaling channels, which takes ranges of their own.
    """
    if isinstance(graph.sole_consumer(op), kl.BatchNormalization):
        return dict(entry.kernels)
    return {name: () if constraints.holds_shared_values(getattr(op, name)) else axes for name, axes in entry.kernels}


def activation_name(op: keras.Operation) -> str | None:
    """Name of the activation function a layer applies; None for a layer without one."""
    activation = getattr(op, "activation", None)
    return None if activation is None else getattr(activation, "__name__", type(activation).__name__)


def feeds_fusion(op: keras.Operation, graph: Graph) -> bool:
    """True if the only reader of `op` is fused into it: batch normalization behind kernels, a rectifier behind sums."""
    reader = graph.sole_consumer(op)
    if reader is None or activation_name(op) not in (None, "linear"):
        return False
    if isinstance(reader, kl.BatchNormalization):
        return _has_kernels(op)
    fusable = _has_kernels(op) or isinstance(op, (kl.BatchNormalization, kl.Add)) or _is_op(op, "Add")
    return fusable and is_rectifier(reader)


def _stands_alone(op: keras.Operation, graph: Graph) -> bool:
    """True for a layer that scales and shifts channels, unless it folds into the kernel before it."""
    if isinstance(op, kl.BatchNormalization):
        producer = graph.sole_producer(op)
        folds = producer is not None and graph.sole_consumer(producer) is op and feeds_fusion(producer, graph)
        return not (folds and _has_kernels(producer))
    return isinstance(op, (kl.Rescaling, kl.Normalization))


def is_rectifier(op: keras.Operation) -> bool:
    """ReLU and ReLU6 in their forms as layer, activation and op."""
    if isinstance(op, kl.ReLU):
        return op.negative_slope == 0 and op.threshold == 0 and op.max_value in (None, 6)
    if isinstance(op, kl.Activation):
        return activation_name(op) in ("relu", "relu6")
    return _is_op(op, "Relu") or _is_op(op, "Relu6")


def _has_kernels(op: keras.Operation) -> bool:
    entry = entry_of(op)
    return entry is not None and bool(entry.kernels)


def _is_op(op: keras.Operation, name: str) -> bool:
    return not isinstance(op, kl.Layer) and type(op).__name__ == name


def _why_unknown(op: keras.Operation) -> str:
    if isinstance(op, kl.Layer) and children(op):
        return "layers inside a layer are not quantized"
    return "unknown to the catalog"
