"""Which tensor of a model gets an 8-bit range: TFMOT's 8-bit scheme (`default_8bit_transforms.py`) for any graph.

A convolution or matrix product, the batch normalization behind it and the rectifier behind that become one integer
operation in the file, so they share one range, at the end.
"""

from __future__ import annotations

import keras
from keras import layers as kl

from tfopt.core.keras_internals import application_layer, children
from tfopt.core.layers.registry import Entry, Output, activation_output, entry_of, kernel_axes, prunable_weights
from tfopt.core.models import constraints
from tfopt.core.models.graph import Graph
from tfopt.quantization.composites import composite_for
from tfopt.quantization.forms import averages_all, float_form
from tfopt.quantization.layers import QuantizedLayer
from tfopt.quantization.treatment import Treatment

CHOSEN = "left out by `include`, `exclude` or `overrides`"
WEIGHTS = "only its weights are quantized"
_FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
# Their kernels have a scale for each channel, and so the same integers before and after the channels are scaled. With
# one scale for a whole kernel, as in Dense, rounding the folded kernel would give other integers than those trained.
_FOLDS_NORMALIZATION = (kl.Conv1D, kl.Conv2D, kl.DepthwiseConv1D, kl.DepthwiseConv2D)


def treatment(op: keras.Operation, graph: Graph) -> Treatment:
    """How `op` is quantized where it stands in `graph`."""
    if not isinstance(op, kl.Layer) and not _gives_floats(op, graph):
        return Treatment({})
    wrapper = composite_for(op)
    if wrapper is not None and (wrapper.float_reason(op) or not issubclass(wrapper, QuantizedLayer)):
        return Treatment({}, composite=True, reason=wrapper.float_reason(op))
    if masks_a_number(op):
        return Treatment({}, reason="only zero is sure to be an 8-bit integer; use mask_value=0.0")
    entry = entry_of(op)
    if entry is None or entry.output in (None, Output.FLOAT):
        return Treatment({}, reason=(entry and entry.reason) or _why_unknown(op))
    if entry.output is not Output.RANGE:
        return Treatment({}, output=averages_all(op, graph))
    refused = float_form(op, graph)
    if refused:
        return Treatment({}, reason=refused)
    kernels, name = _kernel_axes(op, entry, graph), activation_name(op)
    if name is None or (kernels and name in _FUSED_ACTIVATIONS):
        return Treatment(kernels, output=not feeds_fusion(op, graph), affine=_stands_alone(op, graph))
    behaviour = activation_output(name)
    if behaviour is None:
        return Treatment({}, reason=f"the activation '{name}' is unknown to the catalog")
    ranged = behaviour is not Output.FIXED
    if behaviour is Output.FLOAT:
        note = f"LiteRT has no integer version of the activation '{name}'"
        return Treatment(kernels, activation=name, output=True, note=note) if kernels else Treatment({}, reason=note)
    if isinstance(op, kl.Activation):
        return Treatment({}, output=ranged and name != "linear" and not feeds_fusion(op, graph))
    return Treatment(kernels, activation=name, output=ranged)


def weight_treatment(op: keras.Operation) -> Treatment:
    """How `op` is quantized where only weights are: with a range for each index of a kernel's output axes."""
    entry = entry_of(op)
    kernels = dict(entry.kernels) if entry is not None else {}
    if isinstance(op, kl.Layer):
        kernels.update({name: kernel_axes(op, name).units for name in prunable_weights(op)})
        if not kernels and not entry and any(len(weight.shape) > 1 for weight in op.weights):
            return Treatment({}, reason="unknown to the catalog")
    return Treatment(kernels, reason=WEIGHTS)


def masks_a_number(op: keras.Operation) -> bool:
    """True for a masking layer that looks for another value than zero, which rounding would change."""
    return isinstance(op, kl.Masking) and op.mask_value != 0


def _kernel_axes(op: keras.Operation, entry: Entry, graph: Graph) -> dict[str, tuple[int, ...]]:
    """Each kernel to round and its channel axes, none where its weights take their values from one small set.

    One range turns the set into as many integers; one a channel would turn it into other integers in each, and a file
    that compresses worse. Batch normalization is folded in by scaling channels, which takes ranges of their own.
    """
    if isinstance(graph.sole_consumer(op), kl.BatchNormalization):
        return dict(entry.kernels)
    return {
        name: () if len(axes) == 1 and constraints.holds_shared_values(getattr(op, name)) else axes
        for name, axes in entry.kernels
    }


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
        return isinstance(op, _FOLDS_NORMALIZATION)
    fusable = _has_kernels(op) or isinstance(op, (kl.BatchNormalization, kl.Add)) or _is_op(op, "Add")
    return fusable and is_rectifier(reader)


def _stands_alone(op: keras.Operation, graph: Graph) -> bool:
    """True for a layer that scales and shifts channels, unless it folds into the kernel before it."""
    if isinstance(op, kl.BatchNormalization):
        producer = graph.sole_producer(op)
        folds = producer is not None and graph.sole_consumer(producer) is op and feeds_fusion(producer, graph)
        return not folds
    return isinstance(op, (kl.Rescaling, kl.Normalization, application_layer("LayerScale")))


def is_rectifier(op: keras.Operation) -> bool:
    """ReLU, and ReLU with a highest value, in their forms as layer, activation and op."""
    if isinstance(op, kl.ReLU):
        return op.negative_slope == 0 and op.threshold == 0
    if isinstance(op, kl.Activation):
        return activation_name(op) in ("relu", "relu6")
    return _is_op(op, "Relu") or _is_op(op, "Relu6")


def _gives_floats(op: keras.Operation, graph: Graph) -> bool:
    """False for ops that compute masks or indices."""
    tensors = [tensor for call in graph.calls_of(op) for tensor in call.outputs]
    return not tensors or any(keras.backend.is_float_dtype(tensor.dtype) for tensor in tensors)


def _has_kernels(op: keras.Operation) -> bool:
    entry = entry_of(op)
    return entry is not None and bool(entry.kernels)


def _is_op(op: keras.Operation, name: str) -> bool:
    return not isinstance(op, kl.Layer) and type(op).__name__ == name


def _why_unknown(op: keras.Operation) -> str:
    if isinstance(op, kl.Layer) and children(op):
        return "layers inside a layer are not quantized"
    return "unknown to the catalog"
