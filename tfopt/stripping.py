"""The verb `strip`."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tfopt.core.errors import NothingToDoError
from tfopt.core.models import constraints
from tfopt.core.models.graph import read
from tfopt.core.models.rewrite import Rewrite, rewrite
from tfopt.interop import tfmot


def strip(model: keras.Model) -> keras.Model:
    """Returns the plain float Keras model: masks, clusters and fake quantization gone, trained weights kept.

    Pruned weights stay zero and clustered ones stay equal, but nothing holds them in further training.

    Args:
        model: a model from `prune`, `cluster` or `quantize` (a tf_keras model goes to TFMOT's `strip_pruning` or
            `strip_clustering`).

    Returns:
        A new, uncompiled model of Keras layers only; the input model is not changed.

    Raises:
        UnsupportedModelError: an unbuilt model, or one that is no graph.
        NothingToDoError: the model is plain already.

    Example:
        >>> import tfopt
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> plain = strip(tfopt.prune(model, sparsity=0.5))
        >>> plain.layers[0].kernel.constraint is None
        True
    """
    if tfmot.is_tf_keras_model(model):
        return tfmot.strip(model)
    graph = read(model)
    replaced = []

    def replace(op: keras.Operation, state: Rewrite) -> Sequence[keras.Operation] | None:
        if not hasattr(op, "stripped"):
            return None
        replaced.append(op)
        return op.stripped(state)

    stripped = rewrite(graph, replace).model
    removed = [constraints.remove(weight) for weight in stripped.variables]
    if not replaced and not any(removed):
        raise NothingToDoError(
            "The model has to hold masks, clusters or fake quantization to strip.",
            received=f"'{model.name}', a plain Keras model",
            fix="A pruned or clustered model loaded from disk is plain already.",
        )
    return stripped
