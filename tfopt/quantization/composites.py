"""Layers that compute in several steps, as an LSTM does: each class has a wrapper class that computes them in 8 bits.

A wrapper repeats the maths of its layer on rounded kernels, with a range at each inner tensor that becomes integers in
the file. The layer stays inside, whole, and owns the weights. The wrapper classes stand in `wrappers/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tfopt.core.layers.registry import known_class
from tfopt.core.models.graph import Graph
from tfopt.core.models.rewrite import Rewrite
from tfopt.quantization.layers import QuantizedWrapper, rounded_kernel


class Composite(QuantizedWrapper):
    """Base of the wrapper classes. A subclass names its ranges in `__init__`, by `add_range`, and defines `call`."""

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        super().__init__(layer, **kwargs)
        self.activity_regularizer = getattr(layer, "activity_regularizer", None)

    @classmethod
    def of(cls, layer: keras.layers.Layer, state: Rewrite) -> keras.layers.Layer:
        """The wrapper around a copy of `layer`, as `Rewrite` puts it in the layer's place."""
        return cls(state.copy(layer))

    def rounded(self, kernel: keras.Variable, channel_axes: tuple[int, ...] = ()) -> Any:
        """A kernel in 8 bits, by default with one range, as LiteRT wants it of a matrix product."""
        return rounded_kernel(kernel, channel_axes)

    def rounded_parts(self, kernel: keras.Variable, columns: int) -> list:
        """The first `columns` of a kernel and the others, each in 8 bits with a range of its own."""
        return [rounded_kernel(kernel, (), part) for part in (slice(columns), slice(columns, None))]


_COMPOSITES: dict[type | None, type[QuantizedWrapper]] = {}


def composite(*layer_classes: type) -> Callable[[type[QuantizedWrapper]], type[QuantizedWrapper]]:
    """Class decorator: enters a wrapper class for `layer_classes`, and makes it known to Keras' loading of models.

    A `Composite` stands alone. A subclass of `QuantizedLayer` computes its layer in another form, and the scheme says
    what it gets besides: activation, folding, output range.
    """

    def decorate(cls: type[QuantizedWrapper]) -> type[QuantizedWrapper]:
        _COMPOSITES.update(dict.fromkeys(layer_classes, cls))
        return keras.saving.register_keras_serializable(package="tfopt")(cls)

    return decorate


def composite_for(op: keras.Operation, graph: Graph | None = None) -> type[QuantizedWrapper] | None:
    """The wrapper class for a layer where it stands in `graph`, None if there is none or the layer will do.

    It is that of a parent class too, with the same maths. Without `graph` the layer stands in another one.
    """
    found = _COMPOSITES.get(type(op)) or _COMPOSITES.get(known_class(type(op)))
    return found if found is not None and found.is_needed(op, graph) else None
