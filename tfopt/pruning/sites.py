"""Where kernels stand in a model, and what there is to see of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.layers.registry import KernelAxes, channel_axis, is_per_channel, kernel_axes, prunable_weights
from tfopt.core.models.graph import Call, Graph, walk_layers
from tfopt.pruning.criteria import along


@dataclass(frozen=True)
class Site:
    """A kernel where it stands: in a layer, with one of the layer's calls.

    `graph` is None for a layer that several models share, as nothing follows it alone then.
    """

    kernel: keras.Variable
    path: str
    layer: kl.Layer
    name: str
    call: Call
    graph: Graph | None

    @cached_property
    def axes(self) -> KernelAxes:
        return kernel_axes(self.layer, self.name)

    @cached_property
    def followers(self) -> list[keras.Operation]:
        """The ops that alone follow the layer and keep its channels apart, in their order."""
        found: list[keras.Operation] = []
        op = self.graph.sole_consumer(self.layer) if self.graph else None
        while self.graph and op is not None and is_per_channel(op):
            found.append(op)
            op = self.graph.sole_consumer(op)
        return found

    @property
    def last(self) -> keras.Operation:
        """The op whose output is what the rest of the model sees of the layer's units."""
        return self.followers[-1] if self.followers else self.layer

    @property
    def gamma(self) -> keras.Variable | None:
        """The scales of the batch normalization among the followers; None without."""
        normalization = next((op for op in self.followers if isinstance(op, kl.BatchNormalization)), None)
        rank = len(self.call.outputs[0].shape)
        if normalization is None or normalization.axis % rank != channel_axis(self.layer) % rank:
            return None
        return normalization.gamma

    def along_units(self, vector: np.ndarray) -> np.ndarray:
        """One value a unit, shaped to broadcast against the kernel."""
        return along(vector, self.axes.units[0], len(self.kernel.shape))

    def along_inputs(self, vector: np.ndarray) -> np.ndarray:
        """One value an input feature, shaped to broadcast against the kernel."""
        return along(vector, cast("int", self.axes.inputs), len(self.kernel.shape))


def find_sites(model: keras.Model, kernels: Sequence[keras.Variable]) -> list[Site]:
    """Where each of the kernels stands in the model, or in a model nested in it."""
    found: dict[int, Site] = {}
    calls = _calls(model)
    for path, layer in walk_layers(model):
        if isinstance(layer, keras.Model):
            continue
        for name, kernel in prunable_weights(layer).items():
            (graph, call), *others = calls[id(layer)]
            alone = None if any(other is not graph for other, _ in others) else graph
            found.setdefault(id(kernel), Site(kernel, path, layer, name, call, alone))
    return [found[id(kernel)] for kernel in kernels]


def _calls(model: keras.Model) -> dict[int, list[tuple[Graph, Call]]]:
    """Id of each op -> its calls, in the model and the models nested in it."""
    models = {id(layer): layer for _, layer in walk_layers(model) if isinstance(layer, keras.Model)}
    calls: dict[int, list[tuple[Graph, Call]]] = defaultdict(list)
    for graph in map(Graph, [model, *models.values()]):
        for call in graph.calls:
            calls[id(call.op)].append((graph, call))
    return calls


def why_not(need: str, site: Site) -> str:
    """Why there is no such thing as `need` (of a `Criterion`) for the kernel; "" if there is."""
    return _REASONS[need](site) if need in _REASONS else ""


def _why_no_input_norms(site: Site) -> str:
    if "/" in site.name:
        return "a layer inside a layer, whose input is not seen"
    if site.axes.inputs is None:
        return "the features of its input do not lie along one axis of the kernel"
    return ""


def _why_no_activations(site: Site) -> str:
    if "/" in site.name:
        return "a layer inside a layer, whose output is not seen"
    return "" if _units_are_channels(site) else "its units are not the channels of its output"


def _why_no_gamma(site: Site) -> str:
    if site.gamma is None or "/" in site.name:
        return "no batch normalization with a scale alone follows it"
    return "" if _units_are_channels(site) else "its units are not the channels of its output"


def _units_are_channels(site: Site) -> bool:
    if not site.axes.channels or len(site.call.outputs) != 1:
        return False
    return site.call.outputs[0].shape[channel_axis(site.layer)] == site.kernel.shape[site.axes.units[0]]


_REASONS = {"input_norms": _why_no_input_norms, "activations": _why_no_activations, "gamma": _why_no_gamma}
