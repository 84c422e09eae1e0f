"""The verb `scale_width`: the same network with fewer (or more) filters and neurons in each layer."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.channels.graph import ChannelGraph
from tfopt.core.channels.slicing import without_channels
from tfopt.core.checks import POSITIVE, as_count, as_number, as_whole
from tfopt.core.errors import InvalidArgumentError, NothingToDoError
from tfopt.core.layers.channels import Group
from tfopt.core.layers.nodes import OwnWeight
from tfopt.core.models.copying import config_of, tells_all
from tfopt.core.models.graph import (
    Call,
    Graph,
    as_patterns,
    check_patterns,
    is_selected,
    read,
    trace_back,
)
from tfopt.core.models.opening import opened
from tfopt.core.models.redrawing import redrawn
from tfopt.core.models.rewrite import DoesNotFitError, Rewrite, rewrite

# Config key that holds the number of output channels, by layer class.
_WIDTH_KEYS: dict[type, str] = {
    kl.Conv1D: "filters",
    kl.Conv2D: "filters",
    kl.Conv3D: "filters",
    kl.Conv1DTranspose: "filters",
    kl.Conv2DTranspose: "filters",
    kl.Conv3DTranspose: "filters",
    kl.SeparableConv1D: "filters",
    kl.SeparableConv2D: "filters",
    kl.Dense: "units",
}
# Layers with kernels whose output is as wide as their input.
_FOLLOWERS = (kl.DepthwiseConv1D, kl.DepthwiseConv2D, kl.MultiHeadAttention, kl.GroupQueryAttention)


def scale_width(
    model: keras.Model,
    factor: float,
    *,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
    round_to: int = 1,
    seed: int | None = None,
) -> keras.Model:
    """Returns the same architecture with `factor` times the filters and neurons, freshly initialised: train it anew.

    Scaled are the `filters` of convolutions (plain, transposed, separable, 1D to 3D) and the `units` of `Dense`.
    Layers that give an output of the model keep their width, and so does everything that only passes it on (an
    activation, a reshape). Depthwise convolutions and normalisations follow their input; recurrent layers, embeddings
    and layers inside a wrapper such as `TimeDistributed` keep their width.

    Where widths so scaled do not fit together, as in sums with the weights of your own layers or between tokens and
    channels, a factor below 1 takes the same share of all channels that belong together, as `prune` groups them.

    Args:
        model: a built Keras model. Its weights are not used, but for `Normalization`.
        factor: above 0; 0.5 halves each width, 2 doubles it.
        include: layer names or globs to scale; all by default. Nested layers by path, as `"encoder/conv1"`.
        exclude: layer names or globs that keep their width.
        round_to: new widths are rounded to the nearest multiple of this (and of the layer's `groups`), at least one.
        seed: makes the new weights reproducible, whatever the global seed.

    Returns:
        A new, uncompiled model of the same layer names.

    Raises:
        InvalidArgumentError: `factor` or `round_to` out of range, unknown layer name, or widths that no longer fit
            together, such as the addition of a scaled and an unscaled branch.
        NothingToDoError: no width changes.
        UnsupportedModelError: an unbuilt model, or one that is no graph.

    Warns:
        Of layers that keep their width, since their channels belong to an input or an output.

    Source: the width multiplier of Howard et al. 2017, https://arxiv.org/abs/1704.04861.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64), keras.layers.Dense(10)])
        >>> [layer.units for layer in scale_width(model, 0.5).layers]
        [32, 10]
    """
    graph = opened(read(model), blocks_only=True)
    factor = as_number("factor", factor, POSITIVE, fix="0.5 halves the width of each layer.")
    round_to = as_count("round_to", round_to)
    included, excluded = as_patterns(include, "include"), as_patterns(exclude, "exclude")
    check_patterns(graph, included, "include")
    check_patterns(graph, excluded, "exclude")
    widths = _new_widths(graph, factor, included, excluded, round_to)
    try:
        return _rebuilt(graph, widths, seed).model
    except InvalidArgumentError:
        narrow = _with_what_they_meet(graph, widths) if factor < 1 else None
        if narrow is None:
            raise
        return _rebuilt(narrow, {}, seed).model


def reinitialised(model: keras.Model, seed: int | None = None) -> keras.Model:
    """Returns the same architecture with new weights, but for those of `Normalization`; `seed` as in `scale_width`."""
    return _rebuilt(opened(read(model), blocks_only=True), {}, seed).model


def _new_widths(graph: Graph, factor: float, included: list[str], excluded: list[str], round_to: int) -> dict[int, int]:
    """Id of each layer whose width changes -> its new width."""
    heads = _heads(graph)
    widths = {}
    for path, layer in graph.layers:
        key = _WIDTH_KEYS.get(type(layer))
        if key is None or id(layer) in heads or not is_selected(path, included, excluded):
            continue
        step = math.lcm(round_to, getattr(layer, "groups", 1))
        width = max(step, math.floor(getattr(layer, key) * factor / step + 0.5) * step)
        if width != getattr(layer, key):
            widths[id(layer)] = width
    if not widths:
        raise NothingToDoError(
            "At least one layer has to change its width.",
            received=f"'{graph.model.name}' with factor={factor}, round_to={round_to}",
            fix="Only hidden convolutions and Dense layers are scaled, not those that give an output of the model.",
        )
    return widths


def _with_what_they_meet(graph: Graph, widths: dict[int, int]) -> Graph | None:
    """The graph of a copy with fewer channels in all that the layers meet, as additions; None where that cannot be.

    Layers that feed one sum have one width, and weights of authors' own layers follow: channels are counted, as
    `prune(pattern="channel")` does, and the same share of each group goes. None where a group holds a layer that is not
    to change.
    """
    ratios = {path: _ratio(layer, widths) for path, layer in graph.layers if id(layer) in widths}
    fixed = {path for path, layer in graph.layers if type(layer) in _WIDTH_KEYS} - set(ratios)
    channels = ChannelGraph(opened(graph, composed=False))
    changed = [group for group in channels.groups if not ratios.keys().isdisjoint(group.paths)]
    if not changed or any(not fixed.isdisjoint(group.paths) for group in changed):
        return None
    stay = ratios.keys() - {path for group in changed for path in group.paths}
    if stay:
        why = channels.kept_layers()
        named = ", ".join(f"'{path}'" + (f" ({why[path]})" if path in why else "") for path in sorted(stay))
        warnings.warn(f"These layers keep their width: {named}.", stacklevel=3)
    return without_channels(channels, np.concatenate([_left_out(group, ratios) for group in changed]))


def _left_out(group: Group, ratios: Mapping[str, Fraction]) -> np.ndarray:
    """The channels of a group that go, evenly spread, so that the parts of a split become narrower alike."""
    ratio = min((ratios[path] for path in group.paths if path in ratios), default=Fraction(1))
    places = np.arange(len(group.channels))
    share = np.floor((places + 1) * float(ratio) + 1e-9) > np.floor(places * float(ratio) + 1e-9)
    kept = set(group.channels[share].tolist()) or {int(group.channels[0])}
    kept |= {int(part[0]) for part in group.parts if kept.isdisjoint(part.tolist())}
    return np.array([channel for channel in group.channels.tolist() if channel not in kept], np.int64)


def _heads(graph: Graph) -> set[int]:
    """Ids of the layers that set the width of an output of the model."""
    heads = set()

    def goes_on(call: Call) -> bool:
        if _sets_width(call.op):
            heads.add(id(call.op))
        return not _sets_width(call.op)

    trace_back(graph, goes_on)
    return heads


def _sets_width(op: keras.Operation) -> bool:
    """False for an op whose output is as wide as its input, such as an activation, a pooling or an addition."""
    if type(op) in _WIDTH_KEYS:
        return True
    if isinstance(op, _FOLLOWERS) or not isinstance(op, keras.layers.Layer):
        return False
    return any(len(weight.shape) >= 2 for weight in op.weights)


def _rebuilt(graph: Graph, widths: dict[int, int], seed: int | None) -> Graph:
    input_widths = _nested_input_widths(graph, widths)
    seeds = None if seed is None else itertools.count(as_whole("seed", seed))
    reached = graph.model.name

    def replace(op: keras.Operation, state: Rewrite) -> Any:
        nonlocal reached
        reached = state.path
        if isinstance(op, (keras.Model, kl.Normalization)) or not isinstance(op, keras.layers.Layer):
            return None
        if not tells_all(op) and not op.trainable_variables:  # adapted, or a function: nothing to draw anew
            return None
        if isinstance(op, OwnWeight):
            return state.resized(op, redrawn)
        config = config_of(op)
        if id(op) in widths:
            config[_WIDTH_KEYS[type(op)]] = widths[id(op)]
        elif id(op) in input_widths:
            config["batch_shape"] = (*config["batch_shape"][:-1], input_widths[id(op)])
        elif isinstance(op, kl.Reshape):
            config["target_shape"] = _following_shape(op)
        return state.remade(op, **(config if seeds is None else _seeded(config, seeds)))

    try:
        return rewrite(graph, replace)
    except DoesNotFitError as error:
        raise InvalidArgumentError(
            f"The shapes in '{graph.model.name}' have to fit together after scaling.",
            received=f"at '{reached}': {_reason(error.__cause__ or error)}",
            fix="Name the layers that feed it in `include` or `exclude`, so that they scale together or not at all.",
        ) from error


def _nested_input_widths(graph: Graph, widths: dict[int, int]) -> dict[int, int]:
    """Id of each input layer of a nested model whose width changes -> its new width."""
    found: dict[int, int] = {}

    def outputs_of(graph: Graph, input_ratios: list[Fraction]) -> list[Fraction]:
        """By how much each output of a model is wider than before, given the same of its inputs."""
        ratios = {id(tensor): ratio for tensor, ratio in zip(graph.inputs, input_ratios, strict=True)}
        for call in graph.calls:
            incoming = [ratios[id(tensor)] for tensor in call.inputs]
            if isinstance(call.op, keras.Model):
                inner = graph.inner(call.op)
                for tensor, ratio in zip(inner.inputs, incoming, strict=True):
                    if ratio != 1:
                        found[id(tensor._keras_history.operation)] = int(tensor.shape[-1] * ratio)
                outgoing = outputs_of(inner, incoming)
            elif _sets_width(call.op):
                outgoing = [_ratio(call.op, widths)] * len(call.outputs)
            else:
                outgoing = [_joined_ratio(call, incoming)] * len(call.outputs)
            ratios.update((id(tensor), ratio) for tensor, ratio in zip(call.outputs, outgoing, strict=True))
        return [ratios[id(tensor)] for tensor in graph.outputs]

    outputs_of(graph, [Fraction(1)] * len(graph.inputs))
    return found


def _ratio(layer: keras.layers.Layer, widths: dict[int, int]) -> Fraction:
    return Fraction(widths[id(layer)], getattr(layer, _WIDTH_KEYS[type(layer)])) if id(layer) in widths else Fraction(1)


def _joined_ratio(call: Call, incoming: list[Fraction]) -> Fraction:
    """The ratio of an op that passes widths on; where branches of different ratio meet, only a concatenation fits."""
    if len(set(incoming)) <= 1 or not isinstance(call.op, kl.Concatenate):
        return incoming[0] if incoming else Fraction(1)
    old = [tensor.shape[-1] for tensor in call.inputs]
    return sum((width * ratio for width, ratio in zip(old, incoming, strict=True)), Fraction(0)) / sum(old)


def _following_shape(reshape: kl.Reshape) -> tuple[int, ...]:
    """The target shape, its last axis left to follow the input where both have the same width."""
    shape = tuple(reshape.target_shape)
    if -1 not in shape and shape and shape[-1] == reshape.input.shape[-1]:
        return (*shape[:-1], -1)
    return shape


def _seeded(config: Any, seeds: Iterator[int]) -> Any:
    """The config with a seed of its own for each initializer that has none."""
    if isinstance(config, list):
        return [_seeded(item, seeds) for item in config]
    if not isinstance(config, dict):
        return config
    seeded = {key: _seeded(value, seeds) for key, value in config.items()}
    if seeded.get("module") == "keras.initializers" and seeded["config"].get("seed", 0) is None:
        seeded["config"]["seed"] = next(seeds)
    return seeded


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("Exception encountered")), type(error).__name__)
