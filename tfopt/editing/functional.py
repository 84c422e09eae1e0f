"""The verb `functional`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfopt.core.checks import shown
from tfopt.core.errors import InvalidArgumentError, NothingToDoError
from tfopt.core.keras_internals import has_graph
from tfopt.core.models.graph import Graph, read
from tfopt.core.models.opening import is_closed, opened
from tfopt.core.models.rewrite import rewrite
from tfopt.core.models.tracing import traced_model
from tfopt.core.types import Data


def functional(model: keras.Model, data: Data | None = None) -> keras.Model:
    """A Functional copy of a model that is written as code, down to the Keras layers and ops inside its own layers.

    Subclassed models, Lambda layers and layers of your own become nested Functional models of the same name. Weights of
    such a layer become layers of the name of the weight, and train on. The other verbs do this by themselves where they
    have to look inside; the copy shows what they see, and is saved and loaded without the code.

    Args:
        model: any Keras model that has been called or built.
        data: a batch of inputs as `model` takes them, or a dataset of batches; for a model that has not been called, or
            whose inputs are no floats. Shapes and dtypes are read from it, the batch size stays free.

    Returns:
        A new, uncompiled model that computes the same in inference and in training.

    Raises:
        UnsupportedModelError: the `call` of the model does not run on symbolic tensors; the message says why.
        NothingToDoError: a model with nothing in it that could be opened.
        InvalidArgumentError: `data` that holds no arrays.

    Warns:
        Of layers that stay as they are, with the reasons.

    Example:
        >>> class Twice(keras.Model):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.dense = keras.layers.Dense(4, name="dense")
        ...     def call(self, x):
        ...         return self.dense(self.dense(x))
        >>> opened_model = functional(Twice(), keras.ops.zeros((1, 4)))
        >>> [layer.name for layer in opened_model.layers]
        ['inputs', 'dense']
    """
    graph = read(model) if data is None or _has_inputs(model) else Graph(_traced_on(model, data))
    if graph.model is model and not any(is_closed(layer) for _, layer in graph.layers):
        raise NothingToDoError(
            "The model must hold a layer or model that is written as code.",
            received=f"'{model.name}', a {type(model).__name__} of layers that tfopt knows",
            fix="Use it as it is.",
        )
    result = opened(graph)
    if result.closed:
        closed = ", ".join(f"'{path}' ({reason})" for path, reason in result.closed.items())
        warnings.warn(f"These layers stay as they are: {closed}.", stacklevel=2)
    return rewrite(graph).model if result is graph else result.model


def _has_inputs(model: object) -> bool:
    """True for a model that says itself what it takes, and for what is no model."""
    return not isinstance(model, keras.Model) or has_graph(model)


def _traced_on(model: keras.Model, data: Data) -> keras.Model:
    """The graph of a model for inputs like those in `data`; one without weights yet is called once, on zeros."""
    inputs = _symbolic(_first_inputs(data), "inputs")
    if not model.built:
        model(keras.tree.map_structure(lambda tensor: tf.zeros((1, *tensor.shape[1:]), tensor.dtype), inputs))
    return traced_model(model, inputs)


def _first_inputs(data: Data) -> Any:
    """The inputs of the first batch, as the model takes them."""
    if isinstance(data, keras.utils.PyDataset):
        batch = data[0]
    elif isinstance(data, tf.data.Dataset) or hasattr(data, "__next__"):
        batch = next(iter(data), None)
    else:
        return data
    return batch[0] if isinstance(batch, tuple) else batch


def _symbolic(values: Any, name: str) -> Any:
    """An input for each array, without its size along the first axis; those of a dict have its keys as names."""
    if isinstance(values, Mapping):
        return {key: _symbolic(value, str(key)) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_symbolic(value, f"{name}_{i}") for i, value in enumerate(values)]
    if not getattr(values, "shape", None):
        raise InvalidArgumentError(
            "`data` must be a batch of inputs: an array, or a list or dict of arrays.",
            received=shown(values),
            fix="Pass a few samples, as `x[:1]`, or a dataset of batches.",
        )
    dtype = keras.backend.standardize_dtype(values.dtype)
    return keras.Input(tuple(values.shape)[1:], dtype="float32" if dtype == "float64" else dtype, name=name)
