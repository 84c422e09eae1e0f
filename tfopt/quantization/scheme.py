"""Which tensor of a model gets an 8-bit range: TFMOT's 8-bit scheme (`default_8bit_transforms.py`) for any graph.

A convolution or matrix product, the batch normalization behind it and the rectifier behind that become one integer
operation in the file, so they share one range, at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import activations
from keras import layers as kl

from tfopt.core.keras_internals import children
from tfopt.core.layers.activations import activation_kind, applies, spelled
from tfopt.core.layers.nodes import OwnWeight
from tfopt.core.layers.registry import Output, Record, kernel_axes, known_class, prunable_weights, record_of
from tfopt.core.models import constraints
from tfopt.core.models.graph import Graph
from tfopt.quantization import lowering
from tfopt.quantization.composites import composite_for
from tfopt.quantization.layers import QuantizedLayer
from tfopt.quantization.treatment import Treatment

CHOSEN = "left out by `include`, `exclude` or `overrides`"
WEIGHTS = "only its weights are quantized"


def treatment(op: keras.Operation, graph: Graph) -> Treatment:
    """How `op` is quantized where it stands in `graph`."""
    if (isinstance(op, OwnWeight) or not isinstance(op, kl.Layer)) and not _gives_floats(op, graph):
        return Treatment({})
    if is_fixed(op, graph):
        return Treatment({}, output=_meets_values(op, graph))
    record = record_of(op)
    if record is not None and record.output is Output.FLOAT:
        return Treatment({}, reason=record.reason or _why_unknown(op))
    wrapper = composite_for(op, graph)
    if wrapper is not None and (wrapper.float_reason(op) or not issubclass(wrapper, QuantizedLayer)):
        return Treatment({}, composite=True, reason=wrapper.float_reason(op))
    if lowering.masks_a_number(op):
        return Treatment({}, reason="only zero is sure to be an 8-bit integer; use mask_value=0.0")
    if record is None or record.output is None:
        return Treatment({}, reason=_why_unknown(op))
    if record.output is not Output.RANGE:
        return Treatment({}, output=lowering.averages_all(op, graph))
    refused = lowering.float_form(op, graph)
    if refused:
        return Treatment({}, reason=refused)
    return _with_range(op, _kernel_axes(op, record, graph), graph)


def is_fixed(op: keras.Operation, graph: Graph) -> bool:
    """True for an op on constants and sizes alone: the file holds what it gives, and it is computed as it is."""
    tensors = [tensor for call in graph.calls_of(op) for tensor in call.outputs]
    return not isinstance(op, kl.Layer) and bool(tensors) and all(id(tensor) in graph.fixed for tensor in tensors)


def _meets_values(op: keras.Operation, graph: Graph) -> bool:
    """True if what an op on constants gives is read by one on values, or leaves the graph."""
    for tensor in (tensor for call in graph.calls_of(op) for tensor in call.outputs):
        readers = [output for call in graph.consumers(tensor) for output in call.outputs]
        meets = graph.is_output(tensor) or any(id(output) not in graph.fixed for output in readers)
        if meets and 0 not in tensor.shape:
            return True
    return False


def _with_range(op: keras.Operation, kernels: dict[str, tuple[int, ...]], graph: Graph) -> Treatment:
    """How an op is quantized whose output gets a range, unless its follower's or the runtime's own will do."""
    function = getattr(op, "activation", None)
    if function is None or (kernels and lowering.fuses_activation(op)):
        return Treatment(kernels, output=not feeds_fusion(op, graph), affine=_stands_alone(op, graph))
    kind = activation_kind(function)
    if kind is None:
        return Treatment({}, reason=_why_unknown_function(op, function))
    ranged = kind.output is not Output.FIXED
    if kind.output is Output.FLOAT:
        note = f"LiteRT has no integer version of the activation '{spelled(function)}'"
        return (
            Treatment(kernels, activation=function, output=True, note=note) if kernels else Treatment({}, reason=note)
        )
    if known_class(type(op)) is kl.Activation:
        return Treatment({}, output=ranged and not applies(op, activations.linear) and not feeds_fusion(op, graph))
    return Treatment(kernels, activation=function, output=ranged)


def weight_treatment(op: keras.Operation) -> Treatment:
    """How `op` is quantized where only weights are: with a range for each index of a kernel's output axes."""
    record = record_of(op)
    kernels = dict(record.kernels) if record is not None else {}
    if isinstance(op, kl.Layer):
        kernels.update({name: kernel_axes(op, name).units for name in prunable_weights(op)})
        if not kernels and not record and any(len(weight.shape) > 1 for weight in op.weights):
            return Treatment({}, reason=_why_unknown(op))
    return Treatment(kernels, reason=WEIGHTS)


def _kernel_axes(op: keras.Operation, record: Record, graph: Graph) -> dict[str, tuple[int, ...]]:
    """Each kernel to round and its channel axes, none where its weights take their values from one small set.

    One range turns the set into as many integers; one a channel would turn it into other integers in each, and a file
    that compresses worse. Batch normalization is folded in by scaling channels, which takes ranges of their own.
    """
    if _is_batch_normalization(graph.sole_consumer(op)):
        return dict(record.kernels)
    return {
        name: () if len(axes) == 1 and constraints.holds_shared_values(getattr(op, name)) else axes
        for name, axes in record.kernels.items()
    }


def feeds_fusion(op: keras.Operation, graph: Graph) -> bool:
    """True if the only reader of `op` is fused into it: batch normalization behind kernels, a rectifier behind sums."""
    reader = graph.sole_consumer(op)
    if reader is None or not (getattr(op, "activation", None) is None or applies(op, activations.linear)):
        return False
    if _is_batch_normalization(reader):
        return lowering.folds_normalization(op)
    return (_has_kernels(op) or lowering.fuses_rectifier(op)) and lowering.is_rectifier(reader)


def _stands_alone(op: keras.Operation, graph: Graph) -> bool:
    """True for a layer that scales and shifts channels, unless it folds into the kernel before it."""
    if _is_batch_normalization(op):
        producer = graph.sole_producer(op)
        folds = producer is not None and graph.sole_consumer(producer) is op and feeds_fusion(producer, graph)
        return not folds
    return lowering.is_affine(op)


def _is_batch_normalization(op: keras.Operation | None) -> bool:
    return known_class(type(op)) is kl.BatchNormalization


def _gives_floats(op: keras.Operation, graph: Graph) -> bool:
    """False for ops that compute masks or indices."""
    tensors = [tensor for call in graph.calls_of(op) for tensor in call.outputs]
    return not tensors or any(keras.backend.is_float_dtype(tensor.dtype) for tensor in tensors)


def _has_kernels(op: keras.Operation) -> bool:
    record = record_of(op)
    return record is not None and bool(record.kernels)


def _why_unknown(op: keras.Operation) -> str:
    if isinstance(op, kl.Layer) and children(op):
        return "layers inside a layer are not quantized"
    return "unknown to tfopt; `@tfopt.register_layer` makes it known"


def _why_unknown_function(op: keras.Operation, function: Callable) -> str:
    """Why the layer around a function stays float that is not one of Keras, and a way to have less of it float."""
    said = f"the activation '{spelled(function)}' is not one of `keras.activations`"
    if known_class(type(op)) is kl.Activation:
        return said
    return f"{said}; in an `Activation` layer behind it, only the activation stays float"
