"""The verb `rank_features`: which inputs matter to a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfopt.core.checks import as_choice, as_count, as_seed
from tfopt.core.errors import InvalidArgumentError, NothingToDoError
from tfopt.core.models.graph import with_graph
from tfopt.core.types import Data, Loss, Metric
from tfopt.features.inputs import Features, Place, read_float
from tfopt.features.ranking import Feature, FeatureRanking
from tfopt.features.scores import MEASURES, Options


def rank_features(
    model: keras.Model,
    data: Data = None,
    *,
    criterion: str = "permutation",
    metric: Metric = None,
    mode: str = "auto",
    loss: Loss = None,
    names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    repeats: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    verbose: int = 0,
) -> FeatureRanking:
    """How important each input feature is to the model; `drop_features` then takes out the least important.

    A feature is an index of the last axis of an input: a column of a table, a channel of a time series `(steps,
    features)` or of an image. Only those that can be dropped are ranked; the result says why others are not.

    - `"permutation"`: how much worse the score gets when the values of the feature are shuffled among the samples, a
      series as a whole. The same shuffles are used for all features. Of two features that say the same, each looks
      unimportant as long as the other is there: drop a few at a time and rank again.
    - `"weights"`: sum of the magnitudes of the weights that read the feature, in the first layer behind it that has a
      kernel. It needs no data, but features of one scale, as behind a `Normalization` layer.
    - `"taylor"`: mean over samples of `|sum over positions of x * dL/dx|`, with the loss `L` of that sample: the first
      order of how the loss changes when the feature becomes 0. It says little where 0 is far from what the feature
      usually is: center the data then.

    Args:
        model: a built Keras model.
        data: `(x, y)`, with sample weights or not, or a dataset of such batches; best data that the model was not
            trained on. Weights count in the loss of Taylor, not in scores. Not for `"weights"`.
        criterion: `"permutation"`, `"weights"` or `"taylor"`.
        metric: for permutation: a standard score, another name that Keras knows, a `keras.metrics.Metric`, or a
            function `(y_true, y_pred) -> float`. By default accuracy, or the mean absolute error of a regression.
        mode: `"max"` if a higher score is better, `"min"` if a lower one is, `"auto"` by the metric.
        loss: for Taylor, as for `compile`; by default the loss the model was compiled with, else one that suits labels.
        names: of the features, in order; for several inputs `{name of the input: names}`.
        repeats: how often each feature is shuffled.
        seed: of the shuffles.
        batch_size: samples at a time.
        verbose: 1 shows a progress bar.

    Returns:
        A frozen `FeatureRanking` that prints as a table: `features`, `lowest(number)`, `highest(number)`, `plot()`.

    Raises:
        InvalidArgumentError: for options that do not fit, or data without labels.
        NothingToDoError: no feature can be dropped; says why.
        NonFiniteError: NaN or infinity in weights, data, scores or gradients.
        UnsupportedModelError: an unbuilt or quantized model, or one that is no graph.

    Source: permutation importance of Breiman 2001, https://doi.org/10.1023/A:1010933404324, for any model Fisher et al.
        2019, https://arxiv.org/abs/1801.01489; Taylor as Molchanov et al. 2017, https://arxiv.org/abs/1611.06440.

    Example:
        >>> kernel = keras.initializers.Constant([[3.0], [-0.5], [1.0]])
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer=kernel)])
        >>> rank_features(model, criterion="weights", names=["age", "height", "weight"]).lowest(1)
        [1]
    """
    model = with_graph(model)
    graph = read_float(model, "rank_features")
    counts = {"repeats": as_count("repeats", repeats), "batch_size": as_count("batch_size", batch_size)}
    options = Options(data, metric, mode, loss, seed=as_seed(seed), verbose=verbose, **counts)
    criterion = as_choice("criterion", criterion, MEASURES)
    if data is None and criterion != "weights":
        raise InvalidArgumentError(
            f"The criterion '{criterion}' is measured on data.", received="data=None", fix="Pass `(x, y)`."
        )
    features = Features(graph)
    places, kept = _ranked(features)
    called = _names(features, names)
    found = MEASURES[criterion](graph, features, places, options)
    ranked = tuple(
        Feature(name, index, called[name][index], found.values[name, index], found.spread.get((name, index)))
        for name, index in places
    )
    widths = tuple((name, features.width(name)) for name in features.inputs)
    return FeatureRanking(model.name, criterion, found.unit, found.baseline, found.samples, widths, ranked, kept)


def _ranked(features: Features) -> tuple[list[Place], tuple[str, ...]]:
    """The features that can be dropped, and sentences that say why others cannot."""
    places, reasons = [], defaultdict(list)
    for name in features.inputs:
        for index in range(features.width(name)):
            reason = features.why_kept(name, index)
            if reason:
                reasons[name, reason].append(index)
            else:
                places.append((name, index))
    kept = tuple(
        f"Not ranked, as they have to stay: {len(indices)} of {features.width(name)} features of '{name}': {reason}."
        for (name, reason), indices in reasons.items()
    )
    if not places:
        raise NothingToDoError("The model has to have a feature that can be dropped.", received=" ".join(kept)[:-1])
    return places, kept


def _names(features: Features, names: Any) -> dict[str, list[str]]:
    called = {name: [str(index) for index in range(features.width(name))] for name in features.inputs}
    for name, given in ({} if names is None else features.by_input(names, "names", "names")).items():
        words = list(given) if not isinstance(given, str) else [given]
        if len(words) != features.width(name):
            raise InvalidArgumentError(
                "`names` has a name for each feature.",
                received=f"{len(words)} names for {features.width(name)} features of input '{name}'",
            )
        called[name] = [str(word) for word in words]
    return called
