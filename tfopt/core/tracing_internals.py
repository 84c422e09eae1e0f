"""The private parts of Keras and TensorFlow that are used to run `call` of a layer on symbolic tensors."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend
from keras.src.backend.common import global_state, symbolic_scope
from keras.src.layers.layer import CallContext
from tensorflow.python.util import tf_decorator, tf_export

from tfopt.core.keras_internals import mask_of, sublayers

__all__ = [
    "adds_losses",
    "called_in",
    "clear_losses",
    "forget_nodes",
    "in_symbolic_scope",
    "keep_mask",
    "kept_mask",
    "node_counts",
    "output_spec",
    "own_variables",
    "public_name",
]


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights of the layer itself, those of layers inside it left out."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def output_spec(function: Any, args: tuple, kwargs: dict) -> Any:
    """Shapes and dtypes of what a function gives, for symbolic tensors anywhere among its arguments."""
    return backend.compute_output_spec(function, *args, **kwargs)


def in_symbolic_scope() -> bool:
    """True where Keras runs a call to work out its shapes."""
    return symbolic_scope.in_symbolic_scope()


def public_name(function: Any) -> str | None:
    """The name behind "tf." under which TensorFlow exports this very function, or None."""
    name = tf_export.get_canonical_name_for_symbol(function)
    found: Any = tf
    for part in (name or "").split("."):
        found = getattr(found, part, None)
    return name if tf_decorator.unwrap(found)[1] is tf_decorator.unwrap(function)[1] else None


def node_counts(ops: list[keras.Operation]) -> list[tuple[keras.Operation, int, int]]:
    """How many calls each op has been part of."""
    return [(op, len(op._inbound_nodes), len(op._outbound_nodes)) for op in ops]


def forget_nodes(counts: list[tuple[keras.Operation, int, int]]) -> None:
    """Makes ops forget the calls that came after `node_counts`."""
    for op, inbound, outbound in counts:
        del op._inbound_nodes[inbound:], op._outbound_nodes[outbound:]


def adds_losses(layer: keras.layers.Layer) -> bool:
    """True if `add_loss` was called in the layer or one inside it."""
    return any(inner._losses for inner in sublayers(layer))


@contextlib.contextmanager
def called_in(layer: keras.layers.Layer, training: bool | None) -> Iterator[None]:
    """Layers called within it find themselves in a call of `layer` that was told `training`."""
    before = global_state.get_global_attribute("current_call_ctx")
    context = CallContext(entry_layer=layer)
    context.set_value("training", training)
    global_state.set_global_attribute("current_call_ctx", context)
    try:
        yield
    finally:
        global_state.set_global_attribute("current_call_ctx", before)


def clear_losses(layer: keras.layers.Layer) -> None:
    """Drops what `add_loss` has added in the layer and those inside it."""
    layer._clear_losses()


def keep_mask(tensor: Any) -> None:
    """Remembers the mask of a tensor where no layer takes it away, as attention does of tensors that it has read."""
    if mask_of(tensor) is not None:
        tensor._tfopt_mask = mask_of(tensor)


def kept_mask(tensor: Any) -> Any:
    """The mask that `keep_mask` has remembered, else that which the tensor carries, or None."""
    return getattr(tensor, "_tfopt_mask", mask_of(tensor))
