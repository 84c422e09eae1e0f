"""What criteria need to see of a model at work: gradients of a loss, inputs and outputs of layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.data.batches import as_inputs, input_batches, labelled_batches
from tfopt.core.data.losses import inferred_loss
from tfopt.core.errors import InvalidArgumentError, first_line
from tfopt.core.models.graph import Graph
from tfopt.core.models.rewrite import Rewrite, rewrite

Observer = Callable[[np.ndarray], None]


def batch_gradients(
    graph: Graph, kernels: Sequence[keras.Variable], data: Any, loss: Mapping[str, Any], *, verbose: int = 0
) -> Iterator[list[np.ndarray | None]]:
    """Gradients of the loss of each batch by the kernels, in inference mode; None for a kernel the loss does not see.

    Args:
        graph: of a model that computes in float32; a copy of it is run.
        kernels: variables of the model, trainable or not.
        data: samples and labels, as `labelled_batches` takes.
        loss: `loss` and `loss_weights` as for `compile`; empty for a loss after the form of the labels.
        verbose: 1 shows a progress bar.

    Raises:
        InvalidArgumentError: a loss unknown to Keras, or that does not fit labels and outputs.
    """
    copy = rewrite(graph).model
    watched = [variable.value for variable in counterparts(graph.model, copy, kernels)]
    for _, gradients in _gradients(copy, lambda inputs: watched, labelled_batches(copy, data), loss, verbose):
        yield gradients


def input_gradients(
    graph: Graph, data: Any, loss: Mapping[str, Any], *, batch_size: int = 32, verbose: int = 0
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray | None]]]:
    """The inputs of each batch and the gradients of its loss by them, otherwise as `batch_gradients`.

    A gradient is None for an input the loss does not see, or one of whole numbers.
    """
    batches = labelled_batches(graph.model, data, batch_size=batch_size)
    yield from _gradients(rewrite(graph).model, keras.tree.flatten, batches, loss, verbose)


def _gradients(
    copy: keras.Model, watched_of: Callable, batches: Iterator, loss: Mapping[str, Any], verbose: int
) -> Iterator:
    """For each batch its inputs, and the gradients of its loss by what `watched_of` gives for the input tensors."""
    first = next(batches)
    _compile(copy, loss, first)

    @tf.function(autograph=False, reduce_retracing=True)
    def gradients(inputs: Any, targets: Any, weights: Any) -> list:
        watched = watched_of(inputs)
        seen = [tensor for tensor in watched if tensor.dtype.is_floating]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(seen)
            total = copy.compute_loss(inputs, targets, copy(inputs, training=False), weights)
        found = {id(tensor): gradient for tensor, gradient in zip(seen, tape.gradient(total, seen), strict=True)}
        return [None if g is None else tf.convert_to_tensor(g) for g in (found.get(id(t)) for t in watched)]

    gradients.get_concrete_function(*keras.tree.map_structure(_any_batch_size, _tensors(copy, first)))
    for batch in _shown(itertools.chain([first], batches), verbose):
        yield batch[0], [None if g is None else g.numpy() for g in gradients(*_tensors(copy, batch))]


def observe(
    graph: Graph,
    inputs_of: Mapping[int, Observer],
    outputs_of: Mapping[int, Observer],
    data: Any,
    *,
    verbose: int = 0,
) -> None:
    """Runs the model over data in inference mode and shows what goes into its ops and what comes out.

    Args:
        graph: of the model; a copy of it is run.
        inputs_of: id of an op with a single input -> called with its input, at each of its calls for each batch.
        outputs_of: id of an op with a single output -> called with its output.
        data: samples, as `input_batches` takes.
        verbose: 1 shows a progress bar.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> show = {id(model.layers[0]): lambda values: print(values.tolist())}
        >>> observe(Graph(model), {}, show, np.array([[1.0, 2.0]]))
        [[3.0]]
    """

    def replace(op: keras.Operation, state: Rewrite) -> list | None:
        if id(op) not in inputs_of and id(op) not in outputs_of:
            return None
        before = [_Recorder(inputs_of[id(op)], name=f"{op.name}_before")] if id(op) in inputs_of else []
        behind = [_Recorder(outputs_of[id(op)], name=f"{op.name}_behind")] if id(op) in outputs_of else []
        return [*before, state.copy(op), *behind]

    watched = rewrite(graph, replace).model
    for inputs in _shown(input_batches(graph.model, data), verbose):
        watched(as_inputs(watched, inputs), training=False)


def counterparts(model: keras.Model, copy: keras.Model, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """The variables of a copy of the model that stand for `variables` of it: layers have the same paths in both."""
    copies = dict(Graph(copy).layers)
    pairs = {
        id(old): new
        for path, layer in Graph(model).layers
        if path in copies and not isinstance(layer, keras.Model)
        for old, new in zip(layer.variables, copies[path].variables, strict=True)
    }
    return [pairs[id(variable)] for variable in variables]


class _Recorder(keras.layers.Layer):
    """Passes its input on, and shows it to an observer while the model runs eagerly."""

    def __init__(self, observer: Observer, **kwargs: Any):
        super().__init__(**kwargs, autocast=False)
        self.observer = observer
        self.supports_masking = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if tf.executing_eagerly():
            self.observer(keras.ops.convert_to_numpy(inputs))
        return inputs

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def _tensors(model: keras.Model, batch: tuple) -> tuple:
    """The inputs in the structure of the model's, the targets and the sample weights of a batch, None as None."""
    inputs, *labels = batch
    return (
        as_inputs(model, inputs),
        *keras.tree.map_structure(lambda a: None if a is None else tf.constant(a), labels),
    )


def _any_batch_size(tensor: tf.Tensor | None) -> tf.TensorSpec | None:
    return None if tensor is None else tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


def _compile(copy: keras.Model, loss: Mapping[str, Any], batch: tuple) -> None:
    """Compiles with the loss, and takes it of one batch, so that what does not fit comes out here."""
    inputs, targets, weights = _tensors(copy, batch)
    predictions = copy(inputs, training=False)
    if not loss:
        loss = {"loss": inferred_loss(copy, predictions, batch[1])}
    try:
        keras.Model.compile(copy, **loss)
        copy.compute_loss(inputs, targets, predictions, weights)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        raise InvalidArgumentError(
            "The loss has to fit the labels and the model's outputs.",
            received=f"loss {getattr(loss['loss'], 'name', loss['loss'])}: {first_line(error)}",
            fix="Pass `loss=` as you would to `compile`, and `data=(x, y)` with labels of that form.",
        ) from error


def _shown(batches: Iterable, verbose: int) -> Iterator:
    """The batches, counted by a progress bar."""
    if not verbose:
        yield from batches
        return
    bar, count = keras.utils.Progbar(None, unit_name="batch"), 0
    for count, batch in enumerate(batches, start=1):
        yield batch
        bar.update(count)
    bar.update(count, finalize=True)
