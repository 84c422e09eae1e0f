"""A batch of inputs as each of several models takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfopt.core.data.inputs import arrays_in, inputs_of
from tfopt.core.data.pairs import in_order_of, paired
from tfopt.core.keras_internals import functional_of


class Asked:
    """Gives other models the inputs that come in the order, or by the names, of one.

    Args:
        model: whose inputs are given.

    Example:
        >>> def net(*names):
        ...     inputs = {name: keras.Input((1,), name=name) for name in ("a", "b")}
        ...     joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
        ...     return keras.Model([inputs[name] for name in names], joined)
        >>> first, second = net("a", "b"), net("b", "a")
        >>> x = [keras.ops.array([[1.0]]), keras.ops.array([[2.0]])]
        >>> second(Asked(first).of(second, x)).numpy().tolist()
        [[1.0, 2.0]]
    """

    def __init__(self, model: keras.Model):
        self._model, self._inputs = model, inputs_of(model)
        self._orders: dict[int, list[int]] = {}

    def of(self, model: keras.Model, inputs: Any) -> Any:
        """What `model` is called with.

        Raises:
            InvalidArgumentError: inputs without the names of the model's, or that `paired` cannot tell apart.
        """
        if len(self._inputs) == 1 and not isinstance(inputs, Mapping):
            return inputs
        if id(model) not in self._orders:
            self._orders[id(model)] = paired(self._inputs, inputs_of(model), self._model.name, model.name)
        flat = arrays_in(inputs, self._inputs, functional_of(self._model).input)
        return in_order_of(model, flat, self._orders[id(model)])
