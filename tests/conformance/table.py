"""The table: every layer class and op that tfopt knows, and what each verb makes of it."""

from __future__ import annotations

import keras
from conformance import (
    activations,
    attention,
    functions,
    kernels,
    merging,
    normalization,
    own,
    pooling,
    preprocessing,
    recurrent,
    shaping,
)
from conformance.rows import Row
from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers import nodes, registry
from tfopt.core.layers.registry import layers_named
from tfopt.core.models.opening import ComposedLayer

FAMILIES: dict[str, list[Row]] = {
    "Kernels": kernels.ROWS,
    "Recurrent layers and wrappers": recurrent.ROWS,
    "Attention": attention.ROWS,
    "Normalization": normalization.ROWS,
    "Pooling, cropping, padding": pooling.ROWS,
    "Moving and selecting values": shaping.ROWS,
    "Merging": merging.ROWS,
    "Activations and functions of single values": activations.ROWS,
    "Other functions": functions.ROWS,
    "Preprocessing": preprocessing.ROWS,
    "Layers of tfopt": own.ROWS,
}
ROWS: list[Row] = [row for rows in FAMILIES.values() for row in rows]

# Classes without a row, and why.
WITHOUT: dict[str, list[type]] = {
    "bases of other layers": [*layers_named("Layer", "Wrapper", "Pipeline"), ComposedLayer],
    "a model inside a model: each of its layers counts": [keras.Model],
    "they run code of another framework": layers_named("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    "they stand in opened layers for weights, constants, sizes, masks and functions": [
        *(nodes.OwnWeight, nodes.Constant, nodes.Size, nodes.MaskOf, nodes.WithMask),
        *(nodes.FunctionCall, nodes.MovingCall),
    ],
    "Keras mixes up its arguments when it is called in a model": [op_class("ConvTranspose")],
    "Keras makes a graph with a cycle of its call": layers_named("Equalization"),
    "it takes bounding boxes, not tensors that a layer reads": layers_named("MaxNumBoundingBoxes"),
}


def registered() -> set[type]:
    """The classes of Keras and tfopt that tfopt holds facts of; not those that tests register."""
    return {cls for cls in registry._RECORDS if cls.__module__.partition(".")[0] in ("keras", "tfopt")}


def of_keras() -> set[type]:
    """Keras' layers."""
    return {cls for cls in vars(kl).values() if isinstance(cls, type) and issubclass(cls, kl.Layer)}


def covered() -> set[type]:
    return {cls for row in ROWS for cls in row.covers}
