"""The table: every layer class and op that tfopt knows, and what each verb makes of it."""

from __future__ import annotations

from dataclasses import replace

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
from conformance.cells import CELLS
from conformance.rows import Row
from keras import layers as kl

from tfopt.core.keras_internals import op_class
from tfopt.core.layers import registry
from tfopt.core.layers.registry import layers_named
from tfopt.core.models.opening import ComposedLayer

_MODULES = {
    "Kernels": kernels,
    "Recurrent layers and wrappers": recurrent,
    "Attention": attention,
    "Normalization": normalization,
    "Pooling, cropping, padding": pooling,
    "Moving and selecting values": shaping,
    "Merging": merging,
    "Activations and functions of single values": activations,
    "Other functions": functions,
    "Preprocessing": preprocessing,
    "Layers of tfopt": own,
}
# What the rows themselves do not say is in `cells.py`.
FAMILIES: dict[str, list[Row]] = {
    name: [replace(row, **CELLS.get(row.title, {})) for row in module.ROWS] for name, module in _MODULES.items()
}
ROWS: list[Row] = [row for rows in FAMILIES.values() for row in rows]

# Classes without a row, and why.
WITHOUT: dict[str, list[type]] = {
    "bases of other layers": [*layers_named("Layer", "Wrapper", "Pipeline"), ComposedLayer],
    "a model inside a model: each of its layers counts": [keras.Model],
    "they run code of another framework": layers_named("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    "its function is not in its config, so it is copied by name or not at all": [kl.Lambda],
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
