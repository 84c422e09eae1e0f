"""The verb `shrink`."""

from __future__ import annotations

import keras

from tfopt.core.channels.graph import ChannelGraph
from tfopt.core.channels.slicing import without_channels
from tfopt.core.errors import NothingToDoError
from tfopt.core.models.fake_quantized import check_not_quantized
from tfopt.core.models.graph import check_finite, read
from tfopt.core.models.opening import opened


def shrink(model: keras.Model) -> keras.Model:
    """Returns a plain, smaller Keras model without the pruned channels: filters, neurons, recurrent units, heads.

    A channel goes when all weights of its group are zero, as `prune(..., pattern="channel")` leaves them: in the layer
    that creates it, in those that read it, and in all that are tied to it, by a residual addition for instance. A model
    loaded from disk is recognised by its zeros just as well. Outputs stay as they were, to rounding.

    Args:
        model: a built Keras model; nested models are entered.

    Returns:
        A new, uncompiled model with the same layer names and no weight constraints; the input model is not changed.
        LayerNormalization over removed channels divides by the old width, so it is called with zeros in their place.

    Raises:
        UnsupportedModelError: an unbuilt or quantized model, or one that is no graph.
        NonFiniteError: NaN or infinity in the weights.
        NothingToDoError: no channel is zero throughout its group; says which layers keep theirs for what reason.

    Source: the task of Fang et al. 2023 (DepGraph), https://arxiv.org/abs/2301.12900.

    Example:
        >>> import tfopt
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((8,)), dense(16, "relu"), dense(12, "relu"), dense(3)])
        >>> small = shrink(tfopt.prune(model, pattern="channel", sparsity=0.75))
        >>> [layer.units for layer in small.layers]
        [4, 3, 3]
    """
    graph = read(model)
    check_not_quantized(graph, "shrink")
    check_finite(graph)
    channels = ChannelGraph(opened(graph))
    zero = channels.zero_channels()
    if not len(zero):
        kept = "; ".join(f"'{path}' ({reason})" for path, reason in channels.kept_layers().items())
        raise NothingToDoError(
            "At least one channel has to be zero in all weights of its group.",
            received=f"'{model.name}'" + (f", with layers that keep their channels: {kept}" if kept else ""),
            fix="Mask channels first with `prune(model, pattern='channel', ...)`.",
        )
    return without_channels(channels, zero).model
