"""The few places where Keras 3 has no public way. Everything private that tfopt touches stands here."""

import keras
from keras.src import ops as keras_ops
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.ops.node import Node

__all__ = [
    "Functional",
    "Node",
    "applying_optimizer",
    "children",
    "functional_like_constructor",
    "functional_of",
    "moving_average_of",
    "op_class",
    "sublayers",
    "topological_nodes",
    "updates_done",
]


def functional_of(model: keras.Model) -> Functional | None:
    """The graph of a Functional or built Sequential model, or None where Keras holds none."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if isinstance(model, Functional) else None


def topological_nodes(functional: Functional) -> list[Node]:
    """Call nodes from the inputs to the outputs, input nodes left out."""
    by_depth = functional._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layer and all layers inside it, parents before children."""
    return list(layer._flatten_layers(include_self=True, recursive=True))


def children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers directly inside a layer."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def op_class(name: str) -> type:
    """The class of the op that a `keras.ops` function leaves in a graph, such as `"Add"` for `x + y`."""
    return getattr(keras_ops.numpy, name, None) or getattr(keras_ops.nn, name)


def applying_optimizer() -> keras.optimizers.Optimizer | None:
    """The optimizer whose `apply` runs now, if any.

    A weight constraint is called by the optimizer without a reference to it. `apply` opens a name scope with the
    optimizer as caller, so the scope stack tells it, whichever model was compiled and in custom training loops too.
    """
    stack = global_state.get_global_attribute("name_scope_stack") or []
    for scope in reversed(stack):
        if isinstance(scope.caller, keras.optimizers.Optimizer):
            return scope.caller
    return None


def updates_done(optimizer: keras.optimizers.Optimizer):
    """How many weight updates are done when the `apply` that runs now ends; accumulated gradients count once."""
    return (optimizer._iterations.value + 1) // (optimizer.gradient_accumulation_steps or 1)


def moving_average_of(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> keras.Variable | None:
    """The optimizer's exponential moving average of `variable`, or None without `use_ema`."""
    if not getattr(optimizer, "use_ema", False):
        return None
    return optimizer._model_variables_moving_average[optimizer._get_variable_index(variable)]
