"""The verb `drop_features`: a model without some of its inputs' features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfopt.core.channels.slicing import without_channels
from tfopt.core.data.gathering import counterparts
from tfopt.core.errors import InvalidArgumentError, NonFiniteError
from tfopt.core.keras_internals import functional_of
from tfopt.core.models.graph import with_graph
from tfopt.features.folding import bias_shifts
from tfopt.features.inputs import Features, read_float


def drop_features(model: keras.Model, drop: Any = None, *, keep: Any = None, fill: Any = None) -> keras.Model:
    """Returns the model for inputs without some of their features, which count as a constant from then on.

    The new model is called with `np.delete(x, drop, axis=-1)`, or `x[..., keep]`, and gives in inference what `model`
    gives for `x` with the constant in place of the dropped features: 0, or the value in `fill`. Where 0 is far from
    what a feature usually is, its mean as `fill` takes away less of what the model learned. A layer between the
    input and the first kernel, such as `Normalization`, may make another constant of it, which is folded into the bias
    behind that kernel. Fine-tune the new model then.

    Args:
        model: a built Keras model; nested models are entered.
        drop: indices along the last axis of the input; `{name of the input: indices}` for several inputs.
            `rank_features(model, data).lowest(5)` gives some.
        keep: instead, the indices to keep. Inputs that are not named keep all. Their order stays that of the model.
        fill: what dropped features count as: a number, an array with a value for each feature of the input (all of
            them, such as `x.mean(0)`), or a dict of those by input.

    Returns:
        A new, uncompiled model of the same layer names, without weight constraints; `model` is not changed.

    Raises:
        InvalidArgumentError: indices out of range or twice, all features of an input, an unknown input, a `fill` of
            another shape.
        NothingToDoError: no feature to drop.
        UnsupportedModelError: a feature that has to stay, with the reason; a constant that cannot be folded into a
            bias; an unbuilt or quantized model, or one that is no graph.
        NonFiniteError: NaN or infinity in the weights or `fill`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2)])
        >>> small = drop_features(model, [0, 2])
        >>> small.input_shape, tuple(small.get_layer("hidden").kernel.shape)
        ((None, 2), (2, 3))
    """
    model = with_graph(model)
    graph = read_float(model, "drop_features")
    features = Features(graph)
    dropped = features.dropped(drop, keep)
    constants = _constants(model, features, dropped, fill)
    if any(values.any() for _, values in constants.values()):
        features = Features(graph, zero=False)
    removed = features.channels(dropped)
    shifts = bias_shifts(features.graph, removed, constants)
    small = without_channels(features.graph, removed).model
    biases = counterparts(features.graph.graph.model, small, [bias for bias, _ in shifts])
    for bias, (_, shift) in zip(biases, shifts, strict=True):
        bias.assign(keras.ops.convert_to_numpy(bias) + shift)
    return small


def _constants(
    model: keras.Model, features: Features, dropped: dict[str, np.ndarray], fill: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of an input -> indices of its dropped features and the values they count as."""
    given: dict[str, Any] = {}
    if fill is not None:
        number = np.ndim(fill) == 0 and not isinstance(fill, Mapping)
        given = dict.fromkeys(dropped, fill) if number else features.by_input(fill, "fill", "values")
    dtypes = dict(zip(features.inputs, (tensor.dtype for tensor in functional_of(model).inputs), strict=True))
    constants = {}
    for name, indices in dropped.items():
        values = _filled(given.get(name, 0.0), name, features.width(name))[indices]
        if not keras.backend.is_float_dtype(dtypes[name]) and (values != np.floor(values)).any():
            raise InvalidArgumentError(
                f"`fill` has whole numbers for input '{name}' of {dtypes[name]}.", received=repr(values[:5].tolist())
            )
        constants[name] = (indices, values)
    return constants


def _filled(fill: Any, name: str, width: int) -> np.ndarray:
    values = np.asarray(fill)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool) or values.shape not in ((), (width,)):
        raise InvalidArgumentError(
            "`fill` is a number, or has a value for each feature, dropped or not.",
            received=f"shape {values.shape} of {values.dtype} for {width} features of input '{name}'",
        )
    if not np.isfinite(values).all():
        raise NonFiniteError("`fill` has to be finite.", received=f"NaN or infinity for input '{name}'")
    return np.broadcast_to(values.astype("float64"), (width,))
