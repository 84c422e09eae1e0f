"""The fusion layers: several branches in, one tensor out. Each can be put into a Functional model by hand."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers as kl
from keras import ops

from tfopt.core.checks import as_choice
from tfopt.core.data.outputs import KnowsOutput, OutputKind, mean_kind
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.opening import ComposedLayer
from tfopt.fusion import align, combine
from tfopt.fusion.combine import LEARNED

WAYS = ("mean", "weighted", "max", "product", "concat")
KINDS = ("soft", "hard")


class Fusion(ComposedLayer, KnowsOutput):
    """What the fusion layers share: a list of branches in."""

    fuses_branches = True

    def weights_of(self, count: int) -> tuple[float, ...] | None:
        """The weights of so many branches as they are now; None where branches have none of their own."""
        return None

    def check(self, shapes: list[align.Shape]) -> None:
        """Raises for branches that cannot be fused."""

    def create(self, shapes: list[align.Shape]) -> None:
        """Creates weights and inner layers."""

    def build(self, input_shape: Any) -> None:
        shapes = align.as_shapes(input_shape, self.name)
        self.check(shapes)
        self.create(shapes)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Padded steps stay padded where all branches say which they are, as `keras.layers.Average` has it."""
        return align.joined_mask([branch.shape for branch in inputs], previous_mask)

    def _check_count(self, weights: Any, shapes: list[align.Shape]) -> None:
        if isinstance(weights, tuple) and len(weights) != len(shapes):
            raise InvalidArgumentError(
                f"'{self.name}' has one weight a branch.", received=f"{len(weights)} weights, {len(shapes)} branches"
            )


@keras.saving.register_keras_serializable(package="tfopt")
class ParallelFusion(Fusion):
    """Branches side by side become one tensor, value by value or one beside the other.

    Input: a list of n tensors (batch, ..., width). Output: a tensor of the same shape; for `"concat"` as wide as all
    branches together. Grids and widths that differ are aligned by the rules of `tfopt.fusion.align`.

    Args:
        how: `"mean"`; `"weighted"`, the sum of the branches times `weights`; `"max"`, the highest value; `"concat"`;
            or `"product"`, which takes probabilities: their product over the branches, computed as a sum of logarithms
            and divided by its sum over the classes (last axis), so that it is a probability again.
        weights: for `"weighted"`: n numbers of at least 0 that sum to 1, None for equal ones, or `"learned"`: trained
            with the model as the softmax of n values that start at 0. `quantize` makes constants of them.
        project: True brings branches of another width to that of the first by a learned matrix.
        from_logits: for `"product"`: the branches give logits in place of probabilities.
        multi_label: for `"product"`: each value is a probability of its own (sigmoid) rather than one of several
            classes (softmax). Branches with a single value are taken so anyway.

    Raises:
        InvalidArgumentError: an unknown `how`, weights out of range, as many as no branches, or without use; branches
            that cannot be aligned.

    Source: combination rules of Kittler et al. 1998, https://doi.org/10.1109/34.667881.

    Example:
        >>> import numpy as np
        >>> a, b = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
        >>> ParallelFusion("weighted", weights=[0.75, 0.25])([a, b]).numpy().tolist()
        [[0.25, 0.75]]
    """

    def __init__(
        self,
        how: str = "mean",
        weights: Any = None,
        *,
        project: bool = False,
        from_logits: bool = False,
        multi_label: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        how = as_choice("how", how, WAYS)
        self.how, self.weights_given = how, combine.as_weights(weights)
        self.project, self.from_logits, self.multi_label = project, from_logits, multi_label
        self.logits = None
        if weights is not None and how != "weighted":
            raise InvalidArgumentError(
                "`weights` go with how='weighted'.", received=f"how='{how}', weights={weights!r}"
            )
        if (from_logits or multi_label) and how != "product":
            raise InvalidArgumentError(
                "`from_logits` and `multi_label` go with how='product'.",
                received=f"how='{how}', from_logits={from_logits!r}, multi_label={multi_label!r}",
            )

    def weights_of(self, count: int) -> Any:
        return (self.branch_weights or _equal(count)) if self.how in ("mean", "weighted") else None

    def output_kind(self, kinds: Sequence[OutputKind | None], width: int | None) -> OutputKind | None:
        """The product is of probabilities; other numbers than those of the branches come from projections."""
        if self.how == "product":
            return _shares(self.multi_label, width)
        return OutputKind.NUMBERS if self.how == "concat" or self.project else mean_kind(kinds)

    @property
    def branch_weights(self) -> tuple[float, ...] | None:
        """The weights of the branches as they are now, learned ones too; None where there are none given or learned."""
        if self.logits is None:
            return self.weights_given if isinstance(self.weights_given, tuple) else None
        return tuple(keras.ops.convert_to_numpy(ops.softmax(self.logits)).tolist())

    def check(self, shapes: Any) -> None:
        self._check_count(self.weights_given, shapes)
        align.check_grids(shapes, self.name)
        if self.how != "concat" and not self.project:
            align.check_widths(
                shapes, self.name, "For features, `project=True` learns to bring them to one width, or concatenate."
            )

    def create(self, shapes: Any) -> None:
        self.projections = align.projections(shapes, self.dtype_policy) if self.project else {}
        if self.weights_given == LEARNED:
            self.logits = self.add_weight(shape=(len(shapes),), initializer="zeros", name="logits")

    def call(self, inputs: Any) -> Any:
        branches = align.on_one_grid(list(inputs))
        branches = [self.projections[str(i)](x) if str(i) in self.projections else x for i, x in enumerate(branches)]
        if self.how == "concat":
            return ops.concatenate(branches, -1)
        if self.how == "max":
            return functools.reduce(ops.maximum, branches)
        if self.how == "product":
            return combine.product(branches, self.from_logits, self.multi_label)
        if self.how == "mean" or self.weights_given is None:
            return combine.mean(branches)
        return combine.weighted(branches, self.weights_given if self.logits is None else ops.softmax(self.logits))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "how": self.how,
            "weights": self.weights_given,
            "project": self.project,
            "from_logits": self.from_logits,
            "multi_label": self.multi_label,
        }


@keras.saving.register_keras_serializable(package="tfopt")
class VotingFusion(Fusion):
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
        >>> import numpy as np
        >>> a, b, c, d = (np.array([[p, 1 - p]]) for p in (0.9, 0.4, 0.3, 0.2))
        >>> VotingFusion("hard")([a, b, c, d]).numpy().tolist()
        [[0.25, 0.75]]
    """

    def __init__(
        self,
        kind: str = "soft",
        weights: Any = None,
        *,
        from_logits: bool = False,
        multi_label: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        kind = as_choice("kind", kind, KINDS)
        if isinstance(weights, str):
            raise InvalidArgumentError(
                "Votes have given weights, a list of numbers, or equal ones.",
                received=repr(weights),
                fix="Learned weights are ParallelFusion('weighted', weights='learned').",
            )
        self.kind, self.weights_given = kind, combine.as_weights(weights)
        self.from_logits, self.multi_label = from_logits, multi_label

    def weights_of(self, count: int) -> Any:
        return self.weights_given or _equal(count)

    def output_kind(self, kinds: Sequence[OutputKind | None], width: int | None) -> OutputKind | None:
        """The share of each class in the votes."""
        return _shares(self.multi_label, width)

    def check(self, shapes: Any) -> None:
        self._check_count(self.weights_given, shapes)
        if len({shape[1:] for shape in shapes}) > 1:
            align.check_widths(shapes, self.name, "Models vote on the same classes.")
            raise InvalidArgumentError(f"The branches of '{self.name}' have the same shape.", received=str(shapes))

    def call(self, inputs: Any) -> Any:
        single = self.multi_label or inputs[0].shape[-1] == 1
        if self.kind == "hard":
            return self._count(inputs, single)
        if self.from_logits:
            inputs = [ops.sigmoid(x) if single else ops.softmax(x, -1) for x in inputs]
        return (
            combine.mean(list(inputs)) if self.weights_given is None else combine.weighted(inputs, self.weights_given)
        )

    def _count(self, inputs: Any, single: bool) -> Any:
        """Votes as whole numbers, then divided by their sum."""
        weights = self.weights_given
        counts = combine.whole_numbers(weights if isinstance(weights, tuple) else [1.0] * len(inputs))
        if single:
            ballots = [ops.cast(ops.greater(x, 0.0 if self.from_logits else 0.5), "int32") for x in inputs]
        else:
            ballots = [ops.one_hot(combine.first_highest(x), x.shape[-1], dtype="int32") for x in inputs]
        cast = [ops.multiply(ballot, count) for ballot, count in zip(ballots, counts, strict=True) if count]
        votes = ops.cast(ops.sum(ops.stack(cast, 1), 1), self.compute_dtype)
        return ops.multiply(votes, 1.0 / sum(counts))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kind": self.kind,
            "weights": self.weights_given,
            "from_logits": self.from_logits,
            "multi_label": self.multi_label,
        }


@keras.saving.register_keras_serializable(package="tfopt")
class GatedFusion(Fusion):
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
        >>> import numpy as np
        >>> GatedFusion()([np.ones((1, 4)), np.ones((1, 4))]).numpy().round(4).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, *, project: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.project = project

    def output_kind(self, kinds: Sequence[OutputKind | None], width: int | None) -> OutputKind | None:
        """A weighted mean of the branches."""
        return OutputKind.NUMBERS if self.project else mean_kind(kinds)

    def check(self, shapes: Any) -> None:
        align.check_grids(shapes, self.name)
        if not self.project:
            align.check_widths(shapes, self.name, "`project=True` learns to bring them to one width.")

    def create(self, shapes: Any) -> None:
        self.projections = align.projections(shapes, self.dtype_policy) if self.project else {}
        near_zero = keras.initializers.RandomNormal(stddev=0.01)
        self.gate = kl.Dense(len(shapes), "softmax", kernel_initializer=near_zero, name="gate", dtype=self.dtype_policy)
        self.gate.build((None, shapes[0][-1] * len(shapes) if self.project else sum(shape[-1] for shape in shapes)))

    def call(self, inputs: Any) -> Any:
        branches = align.on_one_grid(list(inputs))
        branches = [self.projections[str(i)](x) if str(i) in self.projections else x for i, x in enumerate(branches)]
        grid = list(range(1, len(branches[0].shape) - 1))
        seen = [ops.mean(x, grid) for x in branches] if grid else branches
        weights = self.gate(ops.concatenate(seen, -1))
        if grid:
            weights = ops.reshape(weights, (-1, *[1] * len(grid), len(branches)))
        return combine.weighted(branches, [weights[..., i : i + 1] for i in range(len(branches))])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "project": self.project}


def _shares(multi_label: bool, width: int | None) -> OutputKind:
    return OutputKind.INDEPENDENT if multi_label or width == 1 else OutputKind.PROBABILITIES


def _equal(count: int) -> tuple[float, ...]:
    return (1 / count,) * count
