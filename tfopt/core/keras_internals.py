"""The few places where Keras 3 has no public way. Everything private that tfopt touches stands here."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src import backend
from keras.src import ops as keras_ops
from keras.src.activations import activations
from keras.src.applications import convnext, inception_resnet_v2
from keras.src.backend.common import global_state, symbolic_scope
from keras.src.backend.common.stateless_scope import StatelessScope
from keras.src.backend.common.variables import initialize_all_variables
from keras.src.layers.layer import CallContext
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.ops.node import Node
from tensorflow.python.util import tf_decorator, tf_export

__all__ = [
    "Functional",
    "Node",
    "adds_losses",
    "application_layer",
    "call_in",
    "called_in",
    "children",
    "clear_losses",
    "compile_options",
    "compiled_loss",
    "create_values",
    "flat_inputs",
    "forget_compilation",
    "forget_nodes",
    "functional_like_constructor",
    "functional_of",
    "has_graph",
    "in_symbolic_scope",
    "input_names",
    "label_loss",
    "logits_behind",
    "mask_of",
    "moving_average_of",
    "name_counts",
    "node_counts",
    "op_class",
    "output_spec",
    "own_variables",
    "public_name",
    "running_apply",
    "set_mask",
    "set_value",
    "sublayers",
    "tensor_of",
    "topological_nodes",
    "track_loss",
    "updates_done",
    "values_come_later",
]


def functional_of(model: keras.Model) -> Functional:
    """The graph of a Functional or built Sequential model."""
    return model._functional if isinstance(model, keras.Sequential) else model


def has_graph(model: keras.Model) -> bool:
    """False for a Sequential that is not built yet, and for a subclassed model."""
    return isinstance(functional_of(model), Functional)


def input_names(model: keras.Model) -> list[str]:
    """Names of the input layers, in the order of the model's inputs; copies of a model have the same."""
    return [tensor._keras_history.operation.name for tensor in functional_of(model).inputs]


def topological_nodes(functional: Functional) -> list[Node]:
    """Call nodes from the inputs to the outputs, input nodes left out."""
    by_depth = functional._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def sublayers(op: keras.Operation) -> list[keras.layers.Layer]:
    """The layer and all layers inside it, parents before children; an op has none."""
    if not isinstance(op, keras.layers.Layer):
        return []
    return list(op._flatten_layers(include_self=True, recursive=True))


def children(op: keras.Operation) -> list[keras.layers.Layer]:
    """The layers directly inside a layer; an op has none."""
    if not isinstance(op, keras.layers.Layer):
        return []
    return list(op._flatten_layers(include_self=False, recursive=False))


def op_class(name: str) -> type:
    """The class of the op that a `keras.ops` function leaves in a graph, such as `"Add"` for `x + y`."""
    modules = keras_ops.numpy, keras_ops.nn, keras_ops.core, keras_ops.math, activations
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def application_layer(name: str) -> type:
    """A layer class that `keras.applications` keeps to itself, such as `"LayerScale"` of ConvNeXt."""
    return getattr(convnext, name, None) or getattr(inception_resnet_v2, name)


def compiled_loss(model: keras.Model) -> dict:
    """The `loss` and `loss_weights` that the model was compiled with, as given; empty without a loss."""
    config = model._compile_config.config if getattr(model, "_compile_config", None) else {}
    return {key: config[key] for key in ("loss", "loss_weights")} if config.get("loss") is not None else {}


def values_come_later(*ops: keras.Operation) -> contextlib.AbstractContextManager:
    """Inside, the variables that the `ops` build get no values; `create_values` gives them theirs.

    Drawing random initial values that a copy then overwrites would take most of the time of cloning a model. Only for
    layers of Keras and tfopt: other authors' may set values themselves when they build, as stateful recurrent ones do.
    """
    own = all(
        type(layer).__module__.partition(".")[0] in ("keras", "tfopt") and not getattr(layer, "stateful", False)
        for op in ops
        for layer in sublayers(op)
    )
    return StatelessScope(initialize_variables=False) if own else contextlib.nullcontext()


def set_value(variable: keras.Variable, source: keras.Variable | np.ndarray) -> None:
    """Gives `variable` the value of `source`, as its first value if it has none yet."""
    if variable._value is None:
        variable._initializer = lambda shape, dtype: source if isinstance(source, np.ndarray) else tensor_of(source)
    else:
        variable.assign(source)


def tensor_of(variable: keras.Variable) -> Any:
    """The value as a tensor that shares its memory: half the time of Keras' ways to read a variable, which copy."""
    return variable._value.value()


def create_values() -> None:
    """Creates the values of all variables built within `values_come_later`."""
    initialize_all_variables()


def running_apply() -> Any:
    """The scope of the optimizer's `apply` that runs now, if any: one object a call; its `caller` is the optimizer.

    A weight constraint is called by the optimizer without a reference to it. `apply` opens a name scope with the
    optimizer as caller, so the scope stack tells it, whichever model was compiled and in custom training loops too.
    """
    stack = global_state.get_global_attribute("name_scope_stack") or []
    return next((s for s in reversed(stack) if isinstance(s.caller, keras.optimizers.Optimizer)), None)


def updates_done(optimizer: keras.optimizers.Optimizer) -> Any:
    """How many weight updates are done when the `apply` that runs now ends; accumulated gradients count once."""
    return (optimizer._iterations.value + 1) // (optimizer.gradient_accumulation_steps or 1)


def compile_options(model: keras.Model, metrics: bool = False) -> dict:
    """The arguments that a compiled model was last compiled with, as the user gave them; metrics only if asked for."""
    names = ["optimizer", "loss", "loss_weights", "run_eagerly", "steps_per_execution", "jit_compile"]
    names += ["metrics", "weighted_metrics"] if metrics else []
    return {name: model._compile_config.config[name] for name in names}


def compile_metrics(model: keras.Model) -> dict:
    """The metrics that a compiled model was last compiled with, as arguments for another: metric objects are copied."""

    def fresh(metric: Any) -> Any:
        return type(metric).from_config(metric.get_config()) if isinstance(metric, keras.Metric) else metric

    config = model._compile_config.config
    return {name: keras.tree.map_structure(fresh, config[name]) for name in ("metrics", "weighted_metrics")}


def moving_average_of(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> keras.Variable | None:
    """The optimizer's exponential moving average of `variable`, or None without `use_ema`."""
    if not getattr(optimizer, "use_ema", False):
        return None
    return optimizer._model_variables_moving_average[optimizer._get_variable_index(variable)]


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


def name_counts() -> dict[str, int]:
    """How many names Keras has made of each kind by itself: `{"dense": 2}` after `dense` and `dense_1`."""
    return dict(global_state.get_global_attribute("object_name_uids") or {})


def flat_inputs(functional: Functional, inputs: Any, mask: Any = None) -> list:
    """What a call of the model is given, as tensors in the order and dtypes of its inputs, each with its mask."""
    tensors = functional._standardize_inputs(inputs)
    for tensor, part in zip(tensors, [] if mask is None else keras.tree.flatten(mask), strict=False):
        if part is not None:
            set_mask(tensor, part)
    return tensors


def call_in(op: keras.Operation, args: tuple, kwargs: dict, training: bool | None) -> Any:
    """Calls a layer or op as a Functional model does: `training` of the model goes before what the graph holds."""
    if training is not None and getattr(op, "_call_has_training_arg", False):
        kwargs = {**kwargs, "training": training}
    return op(*args, **kwargs)


def mask_of(tensor: Any) -> Any:
    """The mask that layers have attached to a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: Any, mask: Any) -> None:
    """Attaches a mask to a tensor, as a masking layer does."""
    tensor._keras_mask = mask


def logits_behind(tensor: Any) -> Any:
    """What the softmax or sigmoid that gave `tensor` was given, or None: Keras leaves it there for its losses."""
    return getattr(tensor, "_keras_logits", None)


def label_loss(model: keras.Model, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """The loss that the model was compiled with, without regularizers and `add_loss`; None without one."""
    return None if model._compile_loss is None else model._compile_loss(y, y_pred, sample_weight)


def track_loss(model: keras.Model, loss: Any, batch_size: Any) -> None:
    """Adds the loss of a batch to what the logs show as `loss`."""
    model._loss_tracker.update_state(loss, sample_weight=batch_size)


def forget_compilation(model: keras.Model) -> None:
    """Drops loss and metrics of an earlier `compile`, which Keras keeps where a later one passes none."""
    model._compile_loss = model._compile_metrics = model.loss = None
