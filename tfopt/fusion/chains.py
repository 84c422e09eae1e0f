"""Fusion by a chain of layers: a head behind all branches, or the branches one behind the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers as kl
from keras import ops

from tfopt.core.checks import as_choice
from tfopt.core.data.outputs import KnowsOutput, OutputKind, kind_of_layer
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.opening import ComposedLayer
from tfopt.fusion import align
from tfopt.fusion.layers import Fusion

SERIAL_WAYS = ("chain", "concat")
HIDDEN_UNITS = 64  # of the default head of a stacked fusion


@keras.saving.register_keras_serializable(package="tfopt")
class StackedFusion(Fusion):
    """The outputs of all branches, flattened and concatenated, go into a head that is trained on them: stacking.

    Input: a list of n tensors; their shapes may differ, but are defined. Output: that of the head.

    Args:
        meta: the head: a Keras layer, a model that takes vectors as wide as all branches together, or a list of layers
            to call one after the other. None is Dense 64 with a rectifier, then Dense `outputs`.
        outputs: width of the default head; by default that of the branches, where they all have the same.
        activation: of the default head's last layer, `"softmax"` for instance; linear by default.

    Raises:
        InvalidArgumentError: no width for the default head, a `meta` that is no layer, branches whose shapes are not
            defined.

    Source: Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1.

    Example:
        >>> import numpy as np
        >>> StackedFusion(outputs=10)([np.ones((2, 3, 3, 8)), np.ones((2, 16))]).shape
        TensorShape([2, 10])
    """

    def __init__(self, meta: Any = None, *, outputs: Any = None, activation: Any = None, **kwargs: Any):
        super().__init__(**kwargs)
        if meta is not None and (outputs is not None or activation is not None):
            raise InvalidArgumentError(
                "`outputs` and `activation` are those of the default head.",
                received=f"meta, outputs={outputs!r} and activation={activation!r}",
                fix="Leave them out, or `meta`.",
            )
        self.meta, self.outputs, self.activation = as_chain(meta, "meta"), outputs, activation
        self.is_default = meta is None
        self.supports_masking = False  # the head reads padded steps too, of which Keras warns

    def output_kind(self, kinds: Sequence[OutputKind | None], width: int | None) -> OutputKind | None:
        """That of the head."""
        return kind_of_layer(self.meta[-1])

    def check(self, shapes: Any) -> None:
        for shape in shapes:
            if None in shape[1:]:
                raise InvalidArgumentError(
                    f"The branches of '{self.name}' have defined shapes, to be flattened.",
                    received=str(shapes),
                    fix="Put a GlobalAveragePooling2D behind the branch, or give `keras.Input` a full shape.",
                )
        if self.is_default and self.outputs is None and len({shape[1:] for shape in shapes}) > 1:
            raise InvalidArgumentError(
                f"The default head of '{self.name}' is as wide as the branches where they agree.",
                received=str(shapes),
                fix="Pass `outputs`, or a head of your own as `meta`.",
            )

    def create(self, shapes: Any) -> None:
        if self.is_default:
            width = self.outputs or shapes[0][-1]
            self.meta = [
                kl.Dense(HIDDEN_UNITS, "relu", name="hidden", dtype=self.dtype_policy),
                kl.Dense(width, self.activation, name="outputs", dtype=self.dtype_policy),
            ]
        build_chain(self.meta, (None, sum(math.prod(shape[1:]) for shape in shapes)))

    def call(self, inputs: Any) -> Any:
        branches = [align.flat(x) for x in inputs]
        values = ops.concatenate(branches, -1) if len(branches) > 1 else branches[0]
        for layer in self.meta:
            values = layer(values)
        return values

    def get_config(self) -> dict[str, Any]:
        meta = None if self.is_default else [keras.saving.serialize_keras_object(layer) for layer in self.meta]
        return {**super().get_config(), "meta": meta, "outputs": self.outputs, "activation": self.activation}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        return cls(**_with_layers(config, "meta", custom_objects))


@keras.saving.register_keras_serializable(package="tfopt")
class SerialFusion(ComposedLayer, KnowsOutput):
    """Layers or models one behind the other: the output of one is the input of the next.

    Where a model takes another shape than it is given, a learned projection stands between: a matrix at each position
    for another width, or flattening, a matrix and a reshape for another grid.

    Input: a tensor. Output: that of the last stage.

    Args:
        stages: Keras layers or models with one input and one output. They are used as they are, not copied.
        how: `"chain"`, or `"concat"`: each stage but the first reads the layer's input and the output of the stage
            before, concatenated on the last axis. Grids are then aligned as in `ParallelFusion`, and a vector beside a
            map is repeated at each position.

    Raises:
        InvalidArgumentError: no stages, or anything but layers in them; an unknown `how`; grids that cannot be aligned.

    Source: `"concat"` has the form of cascade-correlation, Fahlman and Lebiere 1990, Advances in NIPS 2.

    Example:
        >>> import numpy as np
        >>> SerialFusion([kl.Dense(3), kl.Dense(2)], how="concat")(np.ones((1, 4))).shape
        TensorShape([1, 2])
    """

    def __init__(self, stages: Any, how: str = "chain", **kwargs: Any):
        super().__init__(**kwargs)
        how = as_choice("how", how, SERIAL_WAYS)
        self.stages, self.how = as_chain(stages, "stages"), how
        if not self.stages:
            raise InvalidArgumentError("`stages` holds at least one layer or model.", received=repr(stages))

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Nothing more: the last stage has given its output the mask that it has."""

    def output_kind(self, kinds: Sequence[OutputKind | None], width: int | None) -> OutputKind | None:
        """That of the last stage."""
        return kind_of_layer(self.stages[-1])

    def build(self, input_shape: Any) -> None:
        shape, self.adapters = tuple(input_shape), {}
        for index, stage in enumerate(self.stages):
            if index and self.how == "concat":
                shape = align.joined_shape(tuple(input_shape), shape, self.name)
            target = align.input_shape_of(stage)
            chain = align.fitted(shape, target, f"stage_{index}", self.dtype_policy)
            if chain:
                self.adapters[str(index)] = chain
            shape = build_chain([stage], shape if target is None or not chain else target)

    def call(self, inputs: Any) -> Any:
        values = inputs
        for index, stage in enumerate(self.stages):
            if index and self.how == "concat":
                values = align.joined(inputs, values)
            for layer in self.adapters.get(str(index), []):
                values = layer(values)
            values = stage(values)
        return values

    def get_config(self) -> dict[str, Any]:
        stages = [keras.saving.serialize_keras_object(stage) for stage in self.stages]
        return {**super().get_config(), "stages": stages, "how": self.how}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        return cls(**_with_layers(config, "stages", custom_objects))


def as_chain(layers: Any, argument: str) -> list[keras.layers.Layer]:
    """A layer, a model, a list of them or None as a list."""
    chain = [] if layers is None else list(layers) if isinstance(layers, (list, tuple)) else [layers]
    for layer in chain:
        if not isinstance(layer, keras.layers.Layer):
            raise InvalidArgumentError(
                f"`{argument}` is a Keras layer, a model, or a list of them.", received=repr(layers)
            )
    names = [layer.name for layer in chain]
    if len(set(names)) < len(names):
        raise InvalidArgumentError(
            f"The layers in `{argument}` have names of their own.",
            received=", ".join(names),
            fix="Pass `name=` where you make them; one layer in two places is a Functional model.",
        )
    return chain


def build_chain(chain: Sequence[keras.layers.Layer], shape: align.Shape) -> align.Shape:
    """Builds layers that are called one after the other; the shape that the last one gives."""
    for layer in chain:
        if not layer.built:
            layer.build(shape)
        shape = tuple(layer.compute_output_shape(shape))
    return shape


def _with_layers(config: dict, key: str, custom_objects: Any) -> dict:
    """A config with the layers of a list made from their configs."""
    if config.get(key) is None:
        return config
    layers = [
        layer
        if isinstance(layer, keras.layers.Layer)
        else keras.saving.deserialize_keras_object(layer, custom_objects=custom_objects)
        for layer in config[key]
    ]
    return {**config, key: layers}
