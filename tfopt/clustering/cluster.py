"""The verb `cluster`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfopt.clustering.centroids import INITS, find_centroids, nearest
from tfopt.clustering.clusters import ZERO, WeightClusters
from tfopt.core.checks import as_choice, as_flag, as_whole
from tfopt.core.data.gathering import counterparts
from tfopt.core.errors import InvalidArgumentError, NothingToDoError
from tfopt.core.layers.registry import range_axes
from tfopt.core.models import constraints
from tfopt.core.models.fake_quantized import check_not_quantized
from tfopt.core.models.graph import Graph, check_finite, check_patterns, read
from tfopt.core.models.rewrite import rewrite
from tfopt.core.models.selection import Kernel, Selection, checked_selection, select_kernels
from tfopt.core.reporting.progress import progress
from tfopt.core.types import Names
from tfopt.interop import tfmot


def cluster(
    model: keras.Model,
    n_clusters: int | Mapping[str, int] = 16,
    *,
    init: str = "kmeans++",
    per_channel: bool = False,
    include: Names = None,
    exclude: Names = None,
    seed: int = 0,
    verbose: int = 0,
) -> keras.Model:
    """Returns a copy of `model` whose kernels hold at most `n_clusters` distinct values each, in any further `fit` too.

    A file of such kernels compresses well: 16 values take 4 bits a weight, less after `prune`. The clusters are weight
    constraints: after each optimizer update each weight becomes the mean of its cluster, so that `fit` trains the
    centroids by the mean gradient of their members. No wrapper is needed, and the saved `.keras` file is plain Keras.

    Zero is kept: in a kernel that is masked by `prune`, or in which at least one weight in `n_clusters` is zero, one
    of the values is zero, and stays zero, so prune first and then cluster.

    A kernel that holds at most `n_clusters` distinct values already keeps them as its clusters. That is how a
    clustered model loaded from disk is trained on: `tfopt.cluster(tfopt.load_model(path))`.

    Args:
        model: a built Keras model, best a trained one (a tf_keras model is handed to TFMOT's
            `cluster_weights`).
        n_clusters: distinct values in each kernel, at least 2, zero among them; or a dict from layer names or globs to
            numbers, which clusters these layers only.
        init: `"kmeans++"` (k-means to its end: the least squared error), `"linear"`, `"density"` or `"random"` (as in
            TFMOT, which assigns each weight to the nearest of the first centroids and leaves the rest to training;
            some kernels then hold fewer values), see `find_centroids`.
        per_channel: gives each output channel of a convolution clusters of its own, `n_clusters` each; other kernels
            have one set. More accurate and larger: `quantize` then gives each channel its own range too, where it gives
            one to a kernel of one set (unless batch normalization, which scales channels, follows).
        include: layer names or globs to cluster; all by default. Nested layers by path, as `"encoder/conv1"`.
        exclude: layer names or globs to leave alone.
        seed: of the first centroids of `"kmeans++"` and those of `"random"`.
        verbose: 1 shows progress over the kernels.

    Returns:
        A new, uncompiled model with the same layer names; the input model is not changed. Kernels are those that
        `prune` takes (depthwise ones are not among them, as in TFMOT).

    Raises:
        InvalidArgumentError: an argument out of range, or an unknown layer name.
        UnsupportedModelError: an unbuilt model, or one that is no graph, or one that is quantized already.
        NonFiniteError: NaN or infinity in the weights.
        NothingToDoError: no kernel to cluster, or clustered already.

    Source: TFMOT `clustering/keras`; Han, Mao and Dally 2016, https://arxiv.org/abs/1510.00149.

    Example:
        >>> model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(16), keras.layers.Dense(4)])
        >>> clustered = cluster(model, {"dense*": 8})
        >>> [len(np.unique(layer.kernel)) for layer in clustered.layers]
        [8, 8]
    """
    n_clusters, per_channel = _counts(n_clusters), as_flag("per_channel", per_channel)
    as_choice("init", init, INITS)
    if tfmot.is_tf_keras_model(model):
        return tfmot.cluster(model, n_clusters, init=init, per_channel=per_channel, include=include, exclude=exclude)
    graph = read(model)
    check_not_quantized(graph, "cluster")
    selection = checked_selection(graph, include, exclude)
    if isinstance(n_clusters, Mapping):
        check_patterns(graph, list(n_clusters), "n_clusters")
    kernels = _kernels(graph, selection, n_clusters)
    check_finite(graph)
    clustered = rewrite(graph).model
    copies = counterparts(graph.model, clustered, [kernel.variable for kernel in kernels])
    generator = np.random.default_rng(seed)
    with progress("Clustering kernels", len(kernels), verbose) as done:
        for kernel, copy in zip(kernels, copies, strict=True):
            axes = range_axes(kernel.layer, kernel.name) if per_channel else ()
            _attach(copy, kernel.amount, axes, init, generator)
            done()
    return clustered


def _counts(n_clusters: Any) -> Any:
    """The number of clusters, or the dict of them, as Python's own; raises for another value."""
    if isinstance(n_clusters, Mapping) and not n_clusters:
        raise InvalidArgumentError("An `n_clusters` dict must name at least one layer.", received="{}")
    if isinstance(n_clusters, Mapping):
        return {name: _counts(count) for name, count in n_clusters.items()}
    what = "a whole number of at least 2, or a dict from layer names or globs to such"
    return as_whole("n_clusters", n_clusters, least=2, what=what, fix="16 suits most kernels.")


def _kernels(graph: Graph, selection: Selection, n_clusters: Any) -> list[Kernel]:
    kernels, unknown = select_kernels(graph, selection, n_clusters)
    if not kernels:
        raise NothingToDoError(
            "The model has to have a kernel to cluster: convolution, dense, embedding, recurrent or attention layers.",
            received=f"'{graph.model.name}', with layers of type "
            + ", ".join(sorted({type(layer).__name__ for _, layer in graph.layers})),
            fix="Check `include` and `exclude`; layers of your own join with `@tfopt.register_layer(prunable=...)`.",
        )
    held = [kernel.variable.path for kernel in kernels if constraints.find(kernel.variable, WeightClusters)]
    if held:
        raise NothingToDoError(
            "A kernel is clustered once.",
            received=f"clusters on {', '.join(held[:5])}" + (", ..." if len(held) > 5 else ""),
            fix="Go on training the model as it is, leave these layers out, or `tfopt.strip` it first.",
        )
    if unknown:
        warnings.warn(
            f"Not clustered, as tfopt does not know these layer classes: {', '.join(unknown)}. "
            "Name their kernels with `@tfopt.register_layer(prunable=...)`.",
            stacklevel=3,
        )
    return kernels


def _attach(
    variable: keras.Variable, count: int, axes: tuple[int, ...], init: str, generator: np.random.Generator
) -> None:
    """Gives the kernel its clusters: sets its values and attaches the constraint that keeps them equal."""
    weights = np.array(keras.ops.convert_to_numpy(variable), np.float32)
    front = tuple(axis % weights.ndim for axis in axes)
    turned = np.moveaxis(weights, front, range(len(front)))
    rows = turned.reshape(int(np.prod(turned.shape[: len(front)], dtype=int)), -1)
    zero = constraints.holds_zeros(variable) or int((rows == 0).sum()) * count >= rows.size
    values, labels = np.empty_like(rows), np.empty(rows.shape, np.int32)
    for index, row in enumerate(rows):
        centroids = find_centroids(row, count, init, zero=zero, seed=generator)
        places = nearest(row, centroids)
        values[index] = centroids[places]
        labels[index] = np.where(zero & (values[index] == 0), ZERO, places + 1) + index * (count + 1)
    variable.assign(np.moveaxis(values.reshape(turned.shape), range(len(front)), front))
    constraints.attach(
        variable, WeightClusters(np.moveaxis(labels.reshape(turned.shape), range(len(front)), front), count, axes)
    )
