"""The few places where Keras 3 has no public way. Everything private that tfopt touches stands here."""

import contextlib
from collections.abc import Container, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src import ops as keras_ops
from keras.src.activations import activations
from keras.src.applications import convnext, inception_resnet_v2
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import StatelessScope
from keras.src.backend.common.variables import initialize_all_variables, register_uninitialized_variable
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.ops.node import KerasHistory, Node
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.trainers.compile_utils import MetricsList
from keras.src.utils import tracking
from keras.src.utils.tracking import TrackedList, TrackedSet, Tracker

__all__ = [
    "TRACKED_DICTS",
    "Functional",
    "KerasSaveable",
    "MeansToLower",
    "Node",
    "TrackedList",
    "TrackedSet",
    "Tracker",
    "application_layer",
    "call_in",
    "children",
    "compile_options",
    "compiled_again",
    "compiled_loss",
    "create_values",
    "flat_inputs",
    "forget_compilation",
    "functional_like_constructor",
    "functional_of",
    "has_graph",
    "history_within",
    "inner_nodes",
    "input_names",
    "label_loss",
    "logits_behind",
    "mask_of",
    "moving_average_of",
    "name_counts",
    "new_variable_like",
    "only_own_values",
    "op_class",
    "own_state",
    "retrack",
    "running_apply",
    "set_mask",
    "set_value",
    "sublayers",
    "tensor_of",
    "topological_nodes",
    "track_loss",
    "unmade",
    "updates_done",
    "values_come_later",
]

TRACKED_DICTS = [getattr(tracking, name) for name in ("TrackedDict", "TrackedOrderedDict") if hasattr(tracking, name)]
"""What Keras makes of dicts in attributes of layers; Keras 3.12 has no ordered one."""


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
        variable._initializer = lambda shape, dtype: tf.cast(
            source if isinstance(source, np.ndarray) else tensor_of(source), dtype
        )
    else:
        variable.assign(source)


def tensor_of(variable: keras.Variable) -> Any:
    """The value as a tensor that shares its memory: half the time of Keras' ways to read a variable, which copy."""
    return variable._value.value()


def create_values() -> None:
    """Creates the values of all variables built within `values_come_later`."""
    initialize_all_variables()


@contextlib.contextmanager
def only_own_values() -> Iterator[None]:
    """Inside, `create_values` creates those of variables built inside; what has none at the end is forgotten.

    Keras keeps one list of variables without values for the whole process, and fails on it again and again.
    """
    before = global_state.get_global_attribute("uninitialized_variables", [])
    global_state.set_global_attribute("uninitialized_variables", [])
    try:
        yield
    finally:
        global_state.set_global_attribute("uninitialized_variables", before)


def new_variable_like(variable: keras.Variable) -> keras.Variable:
    """A variable like another, without regularizer and constraint; `create_values` gives it the same value."""
    made = object.__new__(type(variable))
    state = {name: value for name, value in vars(variable).items() if not name.startswith("_self_")}
    vars(made).update({**state, "_value": None, "_regularizer": None, "_constraint": None})
    set_value(made, variable)
    register_uninitialized_variable(made)
    return made


def compiled_again(function: Any, python_function: Any) -> Any:
    """What `tf.function` makes of another function, with the options of one that exists and nothing that it traced."""
    return function._clone(python_function)


# How a layer is taken apart.

_WRAPPED = ("build", "quantize")  # methods that Keras wraps in each layer anew
_COMPILED = {
    **dict.fromkeys(["optimizer", "loss", "train_function", "test_function", "predict_function"]),
    **dict.fromkeys(["_compile_config", "_compile_loss", "_compile_metrics", "_loss_tracker"]),
    "compiled": False,
}


def unmade(kind: type) -> Any:
    """An object of a class, without attributes and before its `__init__`."""
    if not issubclass(kind, keras.layers.Layer):
        return object.__new__(kind)
    made = keras.layers.Layer.__new__(kind)
    wrapped = {name: vars(made)[name] for name in _WRAPPED}
    vars(made).clear()
    vars(made).update(wrapped)
    return made


def own_state(value: KerasSaveable, nodes: Container[int]) -> dict[str, Any]:
    """The attributes of a layer, op, metric or loss, to give to another of its class.

    Calls that made a graph are left out, but for `nodes`, by id; so is what `compile` gave to a model.
    """
    state = {name: part for name, part in vars(value).items() if name not in _WRAPPED}
    for name in ("_inbound_nodes", "_outbound_nodes"):
        if name in state:
            state[name] = [node for node in state[name] if id(node) in nodes]
    if "_losses" in state:
        state.update(_losses=[], _loss_ids=set())
    if isinstance(value, keras.Model):
        state.update((name, empty) for name, empty in _COMPILED.items() if name in state)
        links = state.get("_self_unconditional_checkpoint_dependencies", ())
        state["_self_unconditional_checkpoint_dependencies"] = [link for link in links if link.name != "optimizer"]
        names = state.get("_self_unconditional_dependency_names", {})
        state["_self_unconditional_dependency_names"] = {k: v for k, v in names.items() if k != "optimizer"}
    return state


def inner_nodes(op: Any) -> list[Node]:
    """The calls within the graphs of the models inside a layer."""
    models = [layer for layer in sublayers(op) if isinstance(layer, keras.Model) and has_graph(layer)]
    return [node for model in models for node in functional_of(model)._nodes]


def history_within(tensor: keras.KerasTensor, nodes: Container[int]) -> KerasHistory | None:
    """Where a symbolic tensor comes from, counted among some nodes only; None if from another."""
    history: Any = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    calls = history.operation._inbound_nodes
    if id(calls[history.node_index]) not in nodes:
        return None
    return history._replace(node_index=sum(id(node) in nodes for node in calls[: history.node_index]))


def retrack(tracker: Tracker) -> None:
    """Makes a copied tracker know what is in its stores: it goes by the ids of objects."""
    tracker.stored_ids = {name: set(map(id, store)) for name, (_, store) in tracker.config.items()}


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


class MeansToLower(MetricsList):
    """Means in the logs of a model, of which callbacks know that lower is better, as they know it of a loss.

    Args:
        names: in the logs.
    """

    def __init__(self, names: Iterable[str]):
        super().__init__([keras.metrics.Mean(name=name) for name in names], name="means_to_lower")
        for mean in self.metrics:
            mean._direction = "down"

    def result(self) -> dict[str, Any]:
        """Name -> mean."""
        return self.get_result()


def forget_compilation(model: keras.Model) -> None:
    """Drops loss and metrics of an earlier `compile`, which Keras keeps where a later one passes none."""
    model._compile_loss = model._compile_metrics = model.loss = None
