"""The verb `fine_tune`: trains a pretrained model, or parts of it, on other data."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
from keras import layers as kl

from tfopt.core.checks import as_choice, is_whole, plain
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import compiled_loss, sublayers
from tfopt.core.models.flow import has_kernel
from tfopt.core.models.graph import Call, Graph, as_patterns, check_patterns, is_selected, read, trace_back, with_graph
from tfopt.core.models.rewrite import rewrite
from tfopt.core.types import Arrays, Data
from tfopt.training.recipes import Recipe, recipe

MODES = ("features", "partial", "full")


def fine_tune(
    model: keras.Model,
    x: Data,
    y: Arrays = None,
    *,
    mode: str = "features",
    layers: str | list[str] | int | None = None,
    how: Recipe | None = None,
    stages: int = 1,
    freeze_batch_norm: bool = False,
    metrics: Any = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **options: Any,
) -> keras.Model:
    """Returns a trained copy of `model`, all of which or parts of which are trained.

    Layers that are not trained are frozen (`trainable=False`) and stay so in the result. Frozen batch normalization
    runs in inference mode: it uses its statistics and keeps them.

    Args:
        model: a built Keras model, with a head for the new task.
        x, y, options: as `keras.Model.fit` takes them: arrays or batches, `validation_data`, `verbose`.
        mode: `"features"` trains the head on the features that the rest extracts, `"partial"` trains `layers`,
            `"full"` everything.
        layers: names or globs, those of a nested model standing for all in it, or the number of layers with weights
            counted from the output. With `"features"` it is the head, the last layers with weights by default.
        how: the optimizer, loss, epochs and so on, as `recipe` makes them. By default 5 epochs of Adam at a learning
            rate of 1e-3 for `"features"` and 1e-4 otherwise, with the loss that `model` is compiled with.
        stages: for `"partial"` and `"full"`: in how many stages of equal length to unfreeze, from the output to the
            input. Of as many groups of layers, the first stage trains the last and each further one a group more.
        freeze_batch_norm: batch normalization stays frozen in the layers that are trained, too.
        metrics, callbacks: as `compile` and `fit` take them.

    Returns:
        A new, compiled model with the names and weight constraints of `model`; its `history` holds all epochs.

    Raises:
        InvalidArgumentError: an unknown mode or layer name, nothing to train, no loss, or more stages than epochs.
        UnsupportedModelError: an unbuilt model, or one that is no graph.

    Source: gradual unfreezing, Howard and Ruder 2018, https://arxiv.org/abs/1801.06146.

    Example:
        >>> import numpy as np
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((4,)), dense(3, "relu", name="body"), dense(2, name="head")])
        >>> how = recipe(epochs=1, loss="mse")
        >>> tuned = fine_tune(model, np.ones((8, 4)), np.ones((8, 2)), how=how, verbose=0)
        >>> [layer.trainable for layer in tuned.layers]
        [False, True]
    """
    model = with_graph(model)
    graph = read(model)
    chosen = _chosen(graph, mode, layers)
    how = _with_loss(how or recipe(epochs=5, learning_rate=1e-3 if mode == "features" else 1e-4), model)
    stages = _checked_stages(stages, mode, len(chosen), how)
    copy = rewrite(graph)
    tuned = copy.model
    _train_only(copy, chosen, freeze_batch_norm)
    before = {}
    for i in range(stages if stages > 1 else 0):
        last = chosen[-math.ceil(len(chosen) * (i + 1) / stages) :]
        before[round(i * how.epochs / stages)] = functools.partial(_train_only, copy, last, freeze_batch_norm)
    tuned.history = how.fit(tuned, x, y, metrics=metrics, callbacks=callbacks, before=before, **options)
    return tuned


def _chosen(graph: Graph, mode: str, layers: Any) -> list[str]:
    """Paths of the layers to train, in the order of computation."""
    mode = as_choice("mode", mode, MODES)
    if (mode == "full" and layers is not None) or (mode == "partial" and layers is None):
        raise InvalidArgumentError(
            "`layers` says what to train with 'partial', or what the head is with 'features'.",
            received=f"mode={mode!r} with layers={layers!r}",
        )
    paths = [path for path, layer in _leaves(graph) if layer.weights]
    if is_whole(layers) and layers > 0:
        chosen = paths[-layers:]
    elif layers is not None:
        patterns = as_patterns(layers, "layers")
        check_patterns(graph, patterns, "layers")
        chosen = [path for path in paths if patterns and is_selected(path, patterns, [])]
    else:
        heads = _heads(graph)
        chosen = paths if mode == "full" else [path for path, layer in _leaves(graph) if id(layer) in heads]
    if not chosen:
        raise InvalidArgumentError(
            "At least one layer with weights is trained.", received=f"mode={mode!r} with layers={layers!r}"
        )
    return chosen


def _leaves(graph: Graph, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """`(path, layer)` of each layer that is no model, in the order of computation."""
    for op in dict.fromkeys(call.op for call in graph.calls):
        if isinstance(op, keras.Model):
            yield from _leaves(graph.inner(op), f"{prefix}{op.name}/")
        elif isinstance(op, kl.Layer):
            yield prefix + op.name, op


def _heads(graph: Graph) -> set[int]:
    """Ids of the last layers with kernels before each output, and of the layers with weights that follow them."""
    heads = set()

    def goes_on(call: Call) -> bool:
        if getattr(call.op, "weights", ()):
            heads.add(id(call.op))
        return not has_kernel(call.op)

    trace_back(graph, goes_on)
    return heads


def _with_loss(how: Recipe, model: keras.Model) -> Recipe:
    """The recipe, with the loss that the model is compiled with where it has none."""
    if how.loss is not None:
        return how
    compiled = compiled_loss(model)
    if not compiled:
        raise InvalidArgumentError(
            "Training needs a loss.", received=f"'{model.name}', without one", fix="Pass `how=recipe(loss=...)`."
        )
    return replace(how, loss=compiled["loss"])


def _checked_stages(stages: Any, mode: str, layers: int, how: Recipe) -> int:
    stages = plain(stages)
    if not is_whole(stages) or not 1 <= stages <= min(layers, how.epochs) or (stages > 1 and mode == "features"):
        raise InvalidArgumentError(
            "`stages` must be from 1 to the number of epochs and of layers to train; 'features' has one stage.",
            received=f"{stages!r} with mode={mode!r}, {how.epochs} epochs and {layers} layers",
        )
    if stages > 1 and how.optimizer.use_ema:
        raise InvalidArgumentError("A moving average of the weights goes with one stage.", received=f"{stages} stages")
    return stages


def _train_only(graph: Graph, paths: list[str], freeze_batch_norm: bool) -> None:
    """Freezes all layers but those at `paths`."""
    for layer in sublayers(graph.model):
        layer.trainable = True
    trained = {id(layer) for path, layer in _leaves(graph) if path in paths}
    for _, layer in _leaves(graph):
        layer.trainable = id(layer) in trained or not layer.weights
    for layer in sublayers(graph.model):
        if freeze_batch_norm and isinstance(layer, kl.BatchNormalization):
            layer.trainable = False
