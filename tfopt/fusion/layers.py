"""The fusion layers: several branches in, one tensor out. Each can be put into a Functional model by hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np
from keras import layers as kl
from keras import ops

from tfopt.core.composed import ComposedLayer
from tfopt.core.errors import InvalidArgumentError
from tfopt.fusion import align

LEARNED = "learned"
WAYS = ("mean", "weighted", "max", "product", "concat")
KINDS = ("soft", "hard")
SERIAL_WAYS = ("chain", "concat")
HIDDEN_UNITS = 64  # of the default head of a stacked fusion
_TOLERANCE = 1e-5  # of the sum of weights
_SMALLEST = 1e-7  # probability, before its logarithm is taken
_DENOMINATOR = 10_000  # of the fractions that votes are counted in


def as_weights(weights: Any) -> tuple[float, ...] | str | None:
    """`weights` as a tuple if they are non-negative and sum to 1; None and `"learned"` as they are.

    Raises:
        InvalidArgumentError: anything else, NaN among it.

    Example:
        >>> as_weights([0.25, 0.75])
        (0.25, 0.75)
    """
    if weights is None or (isinstance(weights, str) and weights == LEARNED):
        return weights
    values = np.array([np.nan]) if isinstance(weights, (str, dict)) else _as_array(weights)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (values < 0).any():
        raise InvalidArgumentError(
            "`weights` is a list of numbers of at least 0, one a branch, 'learned', or None for equal ones.",
            received=repr(weights),
        )
    if abs(values.sum() - 1) > _TOLERANCE:
        raise InvalidArgumentError(
            "`weights` sum to 1.",
            received=f"{values.tolist()}, which sum to {values.sum():.6g}",
            fix="Divide them by their sum.",
        )
    return tuple(values.tolist())


def _as_array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return np.array([np.nan])


class _Fusion(ComposedLayer):
    """What the fusion layers share: a list of branches in."""

    def check(self, shapes: list[align.Shape]) -> None:
        """Raises for branches that cannot be fused."""

    def create(self, shapes: list[align.Shape]) -> None:
        """Creates weights and inner layers."""

    def build(self, input_shape):
        shapes = align.as_shapes(input_shape, self.name)
        self.check(shapes)
        self.create(shapes)
        self.built = True

    def _check_count(self, weights, shapes: list[align.Shape]) -> None:
        if isinstance(weights, tuple) and len(weights) != len(shapes):
            raise InvalidArgumentError(
                f"'{self.name}' has one weight a branch.", received=f"{len(weights)} weights, {len(shapes)} branches"
            )

    def compute_output_spec(self, inputs):
        if not self.built:
            self.build(keras.tree.map_structure(lambda x: x.shape, inputs))
        return super().compute_output_spec(inputs)


@keras.saving.register_keras_serializable(package="tfopt")
class ParallelFusion(_Fusion):
    """Branches side by side become one tensor, value by value or one beside the other.

    Input: a list of n tensors (batch, ..., width). Output: a tensor of the same shape; for `"concat"` as wide as all
    branches together. Grids and widths that differ are aligned by the rules of `tfopt.fusion.align`.

    Args:
        how: `"mean"`; `"weighted"`, the sum of the branches times `weights`; `"max"`, the highest value; `"concat"`;
            or `"product"`, which takes probabilities: their product over the branches, computed as a sum of logarithms
            and divided by its sum over the classes (last axis), so that it is a probability again.
        weights: for `"weighted"`: n numbers of at least 0 that sum to 1, None for equal ones, or `"learned"`: trained
            with the model as the softmax of n values that start at 0.
        project: True brings branches of another width to that of the first by a learned matrix.
        from_logits: for `"product"`: the branches give logits in place of probabilities.
        multi_label: for `"product"`: each value is a probability of its own (sigmoid) rather than one of several
            classes (softmax). Branches with a single value are taken so anyway.

    Raises:
        InvalidArgumentError: an unknown `how`, weights out of range, as many as no branches, or without use; branches
            that cannot be aligned.

    Source: combination rules of Kittler et al. 1998, https://doi.org/10.1109/34.667881.

    Example:
        >>> a, b = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
        >>> ParallelFusion("weighted", weights=[0.75, 0.25])([a, b]).numpy().tolist()
        [[0.25, 0.75]]
    """

    def __init__(self, how="mean", weights=None, *, project=False, from_logits=False, multi_label=False, **kwargs):
        super().__init__(**kwargs)
        if how not in WAYS:
            raise InvalidArgumentError(f"`how` is one of {', '.join(WAYS)}.", received=repr(how))
        self.how, self.branch_weights = how, as_weights(weights)
        self.project, self.from_logits, self.multi_label = project, from_logits, multi_label
        if weights is not None and how != "weighted":
            raise InvalidArgumentError(
                "`weights` go with how='weighted'.", received=f"how='{how}', weights={weights!r}"
            )

    def check(self, shapes):
        self._check_count(self.branch_weights, shapes)
        align.check_grids(shapes, self.name)
        if self.how != "concat" and not self.project:
            align.check_widths(
                shapes, self.name, "For features, `project=True` learns to bring them to one width, or concatenate."
            )

    def create(self, shapes):
        self.projections = align.projections(shapes, self.dtype_policy) if self.project else {}
        self.logits = None
        if self.branch_weights == LEARNED:
            self.logits = self.add_weight(shape=(len(shapes),), initializer="zeros", name="logits")

    def call(self, inputs):
        branches = align.on_one_grid(list(inputs))
        branches = [self.projections[str(i)](x) if str(i) in self.projections else x for i, x in enumerate(branches)]
        if self.how == "concat":
            return ops.concatenate(branches, -1)
        if self.how == "max":
            return functools.reduce(ops.maximum, branches)
        if self.how == "product":
            return _product(branches, self.from_logits, self.multi_label)
        if self.how == "mean" or self.branch_weights is None:
            return _mean(branches)
        return _weighted(branches, ops.softmax(self.logits) if self.logits is not None else self.branch_weights)

    def get_config(self):
        return {
            **super().get_config(),
            "how": self.how,
            "weights": self.branch_weights,
            "project": self.project,
            "from_logits": self.from_logits,
            "multi_label": self.multi_label,
        }


@keras.saving.register_keras_serializable(package="tfopt")
class VotingFusion(_Fusion):
    """Classifiers vote: the output is each class's share of the votes; its argmax is the winner.

    Input: a list of n tensors (batch, ..., classes) of probabilities (any scores with the highest at the class voted
    for will do for hard votes). Output: (batch, ..., classes), which sums to 1 over the classes.

    Args:
        kind: `"soft"`: the mean of the probabilities. `"hard"`: each branch has one vote for its most probable class;
            no gradient passes.
        weights: of the branches: n numbers of at least 0 that sum to 1; None for equal ones.
        from_logits: the branches give logits; soft votes are then the mean of their softmax (or sigmoid).
        multi_label: each value is a probability of its own. The share of hard votes is then that of the branches that
            are above one half (logits above 0), in the same place. A single value is taken so anyway.

    Ties go to the lowest class index, as in scikit-learn: within a branch, and, by `argmax`, between branches, since
    equal votes give exactly equal shares (votes are counted in whole numbers, in the .tflite too). Weights are taken
    as fractions with denominators up to 10,000 for that.

    Raises:
        InvalidArgumentError: an unknown `kind`, weights out of range or as many as no branches; branches of different
            shapes or classes.

    Source: scikit-learn `ensemble/_voting.py`.

    Example:
        >>> a, b, c, d = (np.array([[p, 1 - p]]) for p in (0.9, 0.4, 0.3, 0.2))
        >>> VotingFusion("hard")([a, b, c, d]).numpy().tolist()
        [[0.25, 0.75]]
    """

    def __init__(self, kind="soft", weights=None, *, from_logits=False, multi_label=False, **kwargs):
        super().__init__(**kwargs)
        if kind not in KINDS:
            raise InvalidArgumentError(f"`kind` is one of {', '.join(KINDS)}.", received=repr(kind))
        if isinstance(weights, str):
            raise InvalidArgumentError(
                "Votes have given weights, a list of numbers, or equal ones.",
                received=repr(weights),
                fix="Learned weights are ParallelFusion('weighted', weights='learned').",
            )
        self.kind, self.branch_weights = kind, as_weights(weights)
        self.from_logits, self.multi_label = from_logits, multi_label

    def check(self, shapes):
        self._check_count(self.branch_weights, shapes)
        if len({shape[1:] for shape in shapes}) > 1:
            align.check_widths(shapes, self.name, "Models vote on the same classes.")
            raise InvalidArgumentError(f"The branches of '{self.name}' have the same shape.", received=str(shapes))

    def call(self, inputs):
        single = self.multi_label or inputs[0].shape[-1] == 1
        if self.kind == "hard":
            return self._count(inputs, single)
        if self.from_logits:
            inputs = [ops.sigmoid(x) if single else ops.softmax(x, -1) for x in inputs]
        return _mean(list(inputs)) if self.branch_weights is None else _weighted(inputs, self.branch_weights)

    def _count(self, inputs, single: bool):
        """Votes as whole numbers, then divided by their sum."""
        counts = _whole_numbers(self.branch_weights or [1.0] * len(inputs))
        if single:
            ballots = [ops.cast(ops.greater(x, 0.0 if self.from_logits else 0.5), "int32") for x in inputs]
        else:
            ballots = [ops.one_hot(_first_highest(x), x.shape[-1], dtype="int32") for x in inputs]
        cast = [ops.multiply(ballot, count) for ballot, count in zip(ballots, counts, strict=True) if count]
        votes = ops.cast(ops.sum(ops.stack(cast, 1), 1), self.compute_dtype)
        return ops.multiply(votes, 1.0 / sum(counts))

    def get_config(self):
        return {
            **super().get_config(),
            "kind": self.kind,
            "weights": self.branch_weights,
            "from_logits": self.from_logits,
            "multi_label": self.multi_label,
        }


@keras.saving.register_keras_serializable(package="tfopt")
class GatedFusion(_Fusion):
    """The weighted mean of the branches with weights that depend on what they give, sample by sample.

    The gate reads all branches, averaged over their grid and concatenated, and gives n weights by a dense layer with a
    softmax. It starts near equal weights.

    Input: a list of n tensors (batch, ..., width), aligned as in `ParallelFusion`. Output: a tensor of that shape.

    Args:
        project: True brings branches of another width to that of the first by a learned matrix.

    Raises:
        InvalidArgumentError: branches that cannot be aligned.

    Source: the gating network of Jacobs et al. 1991, https://doi.org/10.1162/neco.1991.3.1.79.

    Example:
        >>> GatedFusion()([np.ones((1, 4)), np.ones((1, 4))]).numpy().round(4).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, *, project=False, **kwargs):
        super().__init__(**kwargs)
        self.project = project

    def check(self, shapes):
        align.check_grids(shapes, self.name)
        if not self.project:
            align.check_widths(shapes, self.name, "`project=True` learns to bring them to one width.")

    def create(self, shapes):
        self.projections = align.projections(shapes, self.dtype_policy) if self.project else {}
        near_zero = keras.initializers.RandomNormal(stddev=0.01)
        self.gate = kl.Dense(
            len(shapes), "softmax", kernel_initializer=near_zero, name="gate", dtype=self.dtype_policy
        )
        self.gate.build((None, shapes[0][-1] * len(shapes) if self.project else sum(shape[-1] for shape in shapes)))

    def call(self, inputs):
        branches = align.on_one_grid(list(inputs))
        branches = [self.projections[str(i)](x) if str(i) in self.projections else x for i, x in enumerate(branches)]
        grid = list(range(1, len(branches[0].shape) - 1))
        seen = [ops.mean(x, grid) for x in branches] if grid else branches
        weights = self.gate(ops.concatenate(seen, -1))
        if grid:
            weights = ops.reshape(weights, (-1, *[1] * len(grid), len(branches)))
        return _weighted(branches, [weights[..., i : i + 1] for i in range(len(branches))])

    def get_config(self):
        return {**super().get_config(), "project": self.project}


@keras.saving.register_keras_serializable(package="tfopt")
class StackedFusion(_Fusion):
    """The outputs of all branches, flattened and concatenated, go into a head that is trained on them: stacking.

    Input: a list of n tensors; their shapes may differ, but are defined. Output: that of the head.

    Args:
        meta: the head: a Keras layer, a model that takes vectors as wide as all branches together, or a list of layers
            to call one after the other. None is Dense 64 with a rectifier, then Dense `outputs`.
        outputs: width of the default head; by default that of the branches, where they all have the same.
        activation: of the default head's last layer, `"softmax"` for instance; linear by default.

    Raises:
        InvalidArgumentError: no width for the default head, a `meta` that is no layer, branches whose shapes are not
            defined.

    Source: Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1.

    Example:
        >>> StackedFusion(outputs=10)([np.ones((2, 3, 3, 8)), np.ones((2, 16))]).shape
        TensorShape([2, 10])
    """

    def __init__(self, meta=None, *, outputs=None, activation=None, **kwargs):
        super().__init__(**kwargs)
        if meta is not None and (outputs is not None or activation is not None):
            raise InvalidArgumentError(
                "`outputs` and `activation` are those of the default head.",
                received=f"meta, outputs={outputs!r} and activation={activation!r}",
                fix="Leave them out, or `meta`.",
            )
        self.meta, self.outputs, self.activation = as_chain(meta, "meta"), outputs, activation
        self.is_default = meta is None

    def check(self, shapes):
        for shape in shapes:
            if None in shape[1:]:
                raise InvalidArgumentError(
                    f"The branches of '{self.name}' have defined shapes, to be flattened.",
                    received=str(shapes),
                    fix="Put a GlobalAveragePooling2D behind the branch, or give `keras.Input` a full shape.",
                )
        if self.is_default and self.outputs is None and len({shape[1:] for shape in shapes}) > 1:
            raise InvalidArgumentError(
                f"The default head of '{self.name}' is as wide as the branches where they agree.",
                received=str(shapes),
                fix="Pass `outputs`, or a head of your own as `meta`.",
            )

    def create(self, shapes):
        if self.is_default:
            width = self.outputs or shapes[0][-1]
            self.meta = [
                kl.Dense(HIDDEN_UNITS, "relu", name="hidden", dtype=self.dtype_policy),
                kl.Dense(width, self.activation, name="outputs", dtype=self.dtype_policy),
            ]
        build_chain(self.meta, (None, sum(math.prod(shape[1:]) for shape in shapes)))

    def call(self, inputs):
        branches = [align.flat(x) for x in inputs]
        values = ops.concatenate(branches, -1) if len(branches) > 1 else branches[0]
        for layer in self.meta:
            values = layer(values)
        return values

    def get_config(self):
        meta = None if self.is_default else [keras.saving.serialize_keras_object(layer) for layer in self.meta]
        return {**super().get_config(), "meta": meta, "outputs": self.outputs, "activation": self.activation}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**_with_layers(config, "meta", custom_objects))


@keras.saving.register_keras_serializable(package="tfopt")
class SerialFusion(ComposedLayer):
    """Layers or models one behind the other: the output of one is the input of the next.

    Where a model takes another shape than it is given, a learned projection stands between: a matrix at each position
    for another width, or flattening, a matrix and a reshape for another grid.

    Input: a tensor. Output: that of the last stage.

    Args:
        stages: Keras layers or models with one input and one output. They are used as they are, not copied.
        how: `"chain"`, or `"concat"`: each stage but the first reads the layer's input and the output of the stage
            before, concatenated on the last axis. Grids are then aligned as in `ParallelFusion`, and a vector beside a
            map is repeated at each position.

    Raises:
        InvalidArgumentError: no stages, or anything but layers in them; an unknown `how`; grids that cannot be aligned.

    Source: cascade-correlation is the first of such networks, Fahlman and Lebiere 1990; the form is that of stacked
    classifiers in sequence.

    Example:
        >>> SerialFusion([kl.Dense(3), kl.Dense(2)], how="concat")(np.ones((1, 4))).shape
        TensorShape([1, 2])
    """

    def __init__(self, stages, how="chain", **kwargs):
        super().__init__(**kwargs)
        if how not in SERIAL_WAYS:
            raise InvalidArgumentError(f"`how` is one of {', '.join(SERIAL_WAYS)}.", received=repr(how))
        self.stages, self.how = as_chain(stages, "stages"), how
        if not self.stages:
            raise InvalidArgumentError("`stages` holds at least one layer or model.", received=repr(stages))

    def build(self, input_shape):
        shape, self.adapters = tuple(input_shape), {}
        for index, stage in enumerate(self.stages):
            if index and self.how == "concat":
                shape = align.joined_shape(tuple(input_shape), shape, self.name)
            target = align.input_shape_of(stage)
            chain = align.fitted(shape, target, f"stage_{index}", self.dtype_policy)
            if chain:
                self.adapters[str(index)] = chain
            shape = build_chain([stage], shape if target is None or not chain else target)
        self.built = True

    def call(self, inputs):
        values = inputs
        for index, stage in enumerate(self.stages):
            if index and self.how == "concat":
                values = align.joined(inputs, values)
            for layer in self.adapters.get(str(index), []):
                values = layer(values)
            values = stage(values)
        return values

    def compute_output_spec(self, inputs):
        if not self.built:
            self.build(inputs.shape)
        return super().compute_output_spec(inputs)

    def get_config(self):
        stages = [keras.saving.serialize_keras_object(stage) for stage in self.stages]
        return {**super().get_config(), "stages": stages, "how": self.how}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**_with_layers(config, "stages", custom_objects))


def as_chain(layers: Any, argument: str) -> list[keras.layers.Layer]:
    """A layer, a model, a list of them or None as a list."""
    chain = [] if layers is None else list(layers) if isinstance(layers, (list, tuple)) else [layers]
    for layer in chain:
        if not isinstance(layer, keras.layers.Layer):
            raise InvalidArgumentError(
                f"`{argument}` is a Keras layer, a model, or a list of them.", received=repr(layers)
            )
    return chain


def build_chain(chain: Sequence[keras.layers.Layer], shape: align.Shape) -> align.Shape:
    """Builds layers that are called one after the other; the shape that the last one gives."""
    for layer in chain:
        if not layer.built:
            layer.build(shape)
        shape = tuple(layer.compute_output_shape(shape))
    return shape


def _with_layers(config: dict, key: str, custom_objects) -> dict:
    """A config with the layers of a list made from their configs."""
    if config.get(key) is None:
        return config
    layers = [
        layer
        if isinstance(layer, keras.layers.Layer)
        else keras.saving.deserialize_keras_object(layer, custom_objects=custom_objects)
        for layer in config[key]
    ]
    return {**config, key: layers}


def _mean(branches: list):
    return ops.multiply(functools.reduce(ops.add, branches), 1.0 / len(branches)) if len(branches) > 1 else branches[0]


def _weighted(branches, weights):
    """The sum of the branches times their weights; a branch of weight 0, whose products would have no range, is out."""
    given = isinstance(weights, tuple)
    parts = [
        ops.multiply(branch, weights[i]) for i, branch in enumerate(branches) if not given or weights[i] != 0
    ]
    return functools.reduce(ops.add, parts)


def _product(branches: list, from_logits: bool, multi_label: bool):
    """The product of probabilities, normalised: the softmax of the sum of logits, of which logarithms are a form."""
    single = multi_label or branches[0].shape[-1] == 1
    if not from_logits:
        logarithms = [ops.log(ops.maximum(x, _SMALLEST)) for x in branches]
        if single:
            others = [ops.log(ops.maximum(1.0 - x, _SMALLEST)) for x in branches]
            logarithms = [ops.subtract(x, other) for x, other in zip(logarithms, others, strict=True)]
        branches = logarithms
    total = functools.reduce(ops.add, branches)
    return ops.sigmoid(total) if single else ops.softmax(total, -1)


def _first_highest(scores):
    """Index of the highest score on the last axis, the lowest of equal ones; in operations that LiteRT has."""
    highest = ops.greater_equal(scores, ops.max(scores, -1, keepdims=True))
    return ops.argmax(ops.cast(highest, "int32"), -1)


def _whole_numbers(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of the weights.

    Example:
        >>> _whole_numbers([0.5, 1 / 3, 1 / 6])
        [3, 2, 1]
    """
    fractions = [Fraction(weight).limit_denominator(_DENOMINATOR) for weight in weights]
    common = math.lcm(*(fraction.denominator for fraction in fractions))
    if common > 2**20:  # weights of no common measure, as fitted ones are: they tie by chance only
        return [round(weight * 2**20) for weight in weights]
    return [int(fraction * common) for fraction in fractions]
