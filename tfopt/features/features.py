"""The verbs `rank_features` and `drop_features`: which inputs matter to a model, and the model without the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfopt.core.channels.slicing import without_channels
from tfopt.core.checks import as_choice, as_count, as_seed
from tfopt.core.data.gathering import counterparts
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, NothingToDoError
from tfopt.core.keras_internals import compiled_loss, functional_of
from tfopt.core.models.fake_quantized import check_not_quantized
from tfopt.core.models.graph import check_finite, check_model
from tfopt.features.channels import Features, Place
from tfopt.features.folding import bias_shifts
from tfopt.features.ranking import Feature, FeatureRanking
from tfopt.features.scores import by_gradients, by_permutation, by_weights


def rank_features(
    model: keras.Model,
    data: Any = None,
    *,
    criterion: str = "permutation",
    metric: Any = None,
    mode: str = "auto",
    loss: str | Callable | None = None,
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
        model: a built Sequential or Functional model.
        data: `(x, y)` or a dataset of such batches; best data that the model was not trained on. Not for `"weights"`.
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
        UnsupportedModelError: a subclassed, unbuilt or quantized model.

    Source: permutation importance of Breiman 2001, https://doi.org/10.1023/A:1010933404324, for any model Fisher et al.
        2019, https://arxiv.org/abs/1801.01489; Taylor as Molchanov et al. 2017, https://arxiv.org/abs/1611.06440.

    Example:
        >>> kernel = keras.initializers.Constant([[3.0], [-0.5], [1.0]])
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer=kernel)])
        >>> rank_features(model, criterion="weights", names=["age", "height", "weight"]).lowest(1)
        [1]
    """
    _check_model(model, "rank_features")
    repeats, batch_size, seed = as_count("repeats", repeats), as_count("batch_size", batch_size), as_seed(seed)
    criterion = as_choice("criterion", criterion, ("permutation", "weights", "taylor"))
    if data is None and criterion != "weights":
        raise InvalidArgumentError(
            f"The criterion '{criterion}' is measured on data.", received="data=None", fix="Pass `(x, y)`."
        )
    features = Features(model)
    places, kept = _ranked(features)
    called = _names(features, names)
    if criterion == "permutation":
        found = by_permutation(
            model,
            features,
            places,
            data,
            metric=metric,
            mode=mode,
            repeats=repeats,
            seed=seed,
            batch_size=batch_size,
            verbose=verbose,
        )
    elif criterion == "taylor":
        chosen = {"loss": loss} if loss is not None else compiled_loss(model)
        found = by_gradients(model, features, places, data, chosen, batch_size=batch_size, verbose=verbose)
    else:
        found = by_weights(features, places)
    ranked = tuple(
        Feature(name, index, called[name][index], found.values[name, index], found.spread.get((name, index)))
        for name, index in places
    )
    widths = tuple((name, features.width(name)) for name in features.inputs)
    return FeatureRanking(model.name, criterion, found.unit, found.baseline, found.samples, widths, ranked, kept)


def drop_features(model: keras.Model, drop: Any = None, *, keep: Any = None, fill: Any = None) -> keras.Model:
    """Returns the model for inputs without some of their features, which count as a constant from then on.

    The new model is called with `np.delete(x, drop, axis=-1)`, or `x[..., keep]`, and gives in inference what `model`
    gives for `x` with the constant in place of the dropped features: 0, or the value in `fill`. Where 0 is far from
    what a feature usually is, its mean as `fill` takes away less of what the model learned. A layer between the
    input and the first kernel, such as `Normalization`, may make another constant of it, which is folded into the bias
    behind that kernel. Fine-tune the new model then.

    Args:
        model: a built Sequential or Functional model; nested models are entered.
        drop: indices along the last axis of the input; `{name of the input: indices}` for several inputs.
            `rank_features(model, data).lowest(5)` gives some.
        keep: instead, the indices to keep. Inputs that are not named keep all. Their order stays that of the model.
        fill: what dropped features count as: a number, an array with a value for each feature of the input (all of
            them, such as `x.mean(0)`), or a dict of those by input.

    Returns:
        A new, uncompiled model of the same layer names, without weight constraints; `model` is not changed.

    Raises:
        InvalidArgumentError: indices out of range or twice, all features of an input, an unknown input, a `fill` of
            another shape.
        NothingToDoError: no feature to drop.
        UnsupportedModelError: a feature that has to stay, with the reason; a constant that cannot be folded into a
            bias; a subclassed, unbuilt or quantized model.
        NonFiniteError: NaN or infinity in the weights or `fill`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2)])
        >>> small = drop_features(model, [0, 2])
        >>> small.input_shape, tuple(small.get_layer("hidden").kernel.shape)
        ((None, 2), (2, 3))
    """
    _check_model(model, "drop_features")
    features = Features(model)
    dropped = features.dropped(drop, keep)
    constants = _constants(model, features, dropped, fill)
    if any(values.any() for _, values in constants.values()):
        features = Features(model, zero=False)
    removed = features.channels(dropped)
    shifts = bias_shifts(model, features.graph, removed, constants)
    small = without_channels(model, features.graph, removed)
    biases = counterparts(model, small, [bias for bias, _ in shifts])
    for bias, (_, shift) in zip(biases, shifts, strict=True):
        bias.assign(keras.ops.convert_to_numpy(bias) + shift)
    return small


def _check_model(model: keras.Model, verb: str) -> None:
    check_model(model)
    check_not_quantized(model, verb)
    check_finite(model)


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


def _constants(
    model: keras.Model, features: Features, dropped: dict[str, np.ndarray], fill: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of an input -> indices of its dropped features and the values they count as."""
    given: dict[str, Any] = {}
    if fill is not None:
        number = np.ndim(fill) == 0 and not isinstance(fill, Mapping)
        given = dict.fromkeys(dropped, fill) if number else features.by_input(fill, "fill", "values")
    dtypes = dict(zip(features.inputs, (tensor.dtype for tensor in functional_of(model).inputs), strict=True))
    constants = {}
    for name, indices in dropped.items():
        values = _filled(given.get(name, 0.0), name, features.width(name))[indices]
        if not keras.backend.is_float_dtype(dtypes[name]) and (values != np.floor(values)).any():
            raise InvalidArgumentError(
                f"`fill` has whole numbers for input '{name}' of {dtypes[name]}.", received=repr(values[:5].tolist())
            )
        constants[name] = (indices, values)
    return constants


def _filled(fill: Any, name: str, width: int) -> np.ndarray:
    values = np.asarray(fill)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool) or values.shape not in ((), (width,)):
        raise InvalidArgumentError(
            "`fill` is a number, or has a value for each feature, dropped or not.",
            received=f"shape {values.shape} of {values.dtype} for {width} features of input '{name}'",
        )
    if not np.isfinite(values).all():
        raise NonFiniteError("`fill` has to be finite.", received=f"NaN or infinity for input '{name}'")
    return np.broadcast_to(values.astype("float64"), (width,))
