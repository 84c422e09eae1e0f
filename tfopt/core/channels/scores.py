"""The score of a channel: what its weights add up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import keras
import numpy as np

from tfopt.core.channels.graph import ChannelGraph
from tfopt.core.layers.channels import Slot
from tfopt.core.layers.registry import prunable_weights
from tfopt.core.models.graph import Graph


def channel_magnitudes(channels: ChannelGraph) -> np.ndarray:
    """The sum of absolute weights of each channel over all kernels that create or read it, by channel number.

    Example:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((1,)), dense(2, name="a"), dense(1, name="b")])
        >>> model.set_weights([np.array([[1.0, -3.0]]), np.zeros(2), np.array([[0.5], [-1.0]]), np.zeros(1)])
        >>> channels = ChannelGraph(Graph(model))
        >>> channel_magnitudes(channels)[channels.groups[0].channels].tolist()
        [1.5, 4.0]
    """
    values = {id(kernel): np.abs(keras.ops.convert_to_numpy(kernel)) for kernel in ranked_kernels(channels.graph)}
    slots = [slot for slot in channels.slots if id(slot.variable) in values]
    return channel_sums(slots, values, channels.count)


def ranked_kernels(graph: Graph) -> list[keras.Variable]:
    """The weights that count in a channel's score: no biases, scales, slopes and depthwise kernels."""
    layers = (layer for _, layer in graph.layers if not isinstance(layer, keras.Model))
    return [kernel for layer in layers for kernel in prunable_weights(layer).values()]


def channel_sums(
    slots: Iterable[Slot], scores: Mapping[int, np.ndarray], count: int, *, mean: bool = False
) -> np.ndarray:
    """The scores of weights, summed for each channel, by channel number.

    Args:
        slots: axes of the scored weights.
        scores: `{id(variable): array of its shape}`.
        count: of the channel numbers; those above are left out.
        mean: take the mean over the weights that a channel has in a slot, and sum these.
    """
    totals = np.zeros(count)
    for slot in slots:
        rows = np.moveaxis(scores[id(slot.variable)], slot.axis, 0).reshape(len(slot.labels), -1)
        known = slot.labels < count
        np.add.at(totals, slot.labels[known], (rows.mean(1) if mean else rows.sum(1))[known])
    return totals
