"""What the branches of a fusion give, and what has to take its place so that it can be fused."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tfopt.core.data.outputs import End, OutputKind, end_in, ends_of
from tfopt.core.errors import InvalidArgumentError
from tfopt.fusion.plan import Plan

_Kinds = list[OutputKind | None]


def fusable(plan: Plan, branches: Sequence[keras.Model]) -> tuple[list[keras.Model], _Kinds]:
    """The branches, with outputs that can be fused, and what each of these outputs is.

    The product takes logits, so that the softmax or sigmoid at the end of a branch is left out. Elsewhere a softmax
    takes the place of a log_softmax: the mean of log-probabilities would be that of no probabilities.

    Raises:
        InvalidArgumentError: for outputs that cannot be fused so.
    """
    outputs = len(branches[0].outputs)
    if plan.of_features:
        if plan.how == "vote" or plan.combine == "product":
            raise InvalidArgumentError(
                "Votes and products must be of probabilities.",
                received="`layers`, whose outputs are features",
                fix="Leave out `layers`, or pass another `how`.",
            )
        return list(branches), [OutputKind.NUMBERS] * outputs
    ends = [ends_of(branch) for branch in branches]
    if plan.how == "stacked" or plan.combine == "concat":
        return list(branches), [_common([own[i].kind for own in ends]) for i in range(outputs)]
    branches = [_with_probabilities(branch, own) for branch, own in zip(branches, ends, strict=True)]
    kinds = [_checked(plan, branches, [_as_fused(own[i].kind) for own in ends], i) for i in range(outputs)]
    if plan.how == "parallel" and plan.combine == "product":
        branches = [_with_logits(branch) for branch in branches]
    return branches, kinds


def _common(kinds: _Kinds) -> OutputKind | None:
    return kinds[0] if len(set(kinds)) == 1 else OutputKind.NUMBERS


def _as_fused(kind: OutputKind | None) -> OutputKind | None:
    return OutputKind.PROBABILITIES if kind is OutputKind.LOG_PROBABILITIES else kind


def _with_probabilities(branch: keras.Model, ends: Sequence[End]) -> keras.Model:
    """The branch with a softmax in place of each log_softmax."""
    logarithms = [end for end in ends if end.kind is OutputKind.LOG_PROBABILITIES]
    if any(end.op is None for end in logarithms):
        raise InvalidArgumentError(
            "Log-probabilities must come from a log_softmax at the end of the model, which a softmax can replace.",
            received=f"'{branch.name}', whose log-probabilities come about otherwise",
            fix="Put a `keras.layers.Activation('exponential')` behind them.",
        )
    return end_in(branch, logarithms, "softmax")


def _checked(plan: Plan, branches: Sequence[keras.Model], kinds: _Kinds, index: int) -> OutputKind | None:
    """What all outputs of one number are."""
    if len(set(kinds)) > 1:
        listed = ", ".join(f"'{branch.name}' {_named(own)}" for branch, own in zip(branches, kinds, strict=True))
        raise InvalidArgumentError(
            "All models must give one kind of output: probabilities (softmax or sigmoid), or logits and numbers.",
            received=listed,
            fix="Add a `keras.layers.Softmax` behind the models that give logits.",
        )
    if plan.how in ("vote", "cascade") or plan.combine == "product":
        _check_classes(plan, branches[0], kinds[0], is_single=branches[0].outputs[index].shape[-1] == 1)
    return kinds[0]


def _check_classes(plan: Plan, branch: keras.Model, kind: OutputKind | None, is_single: bool) -> None:
    """Raises for outputs that are not known to tell classes."""
    if kind is None:
        raise InvalidArgumentError(
            "Votes, products and cascades must know what an output is: probabilities or logits.",
            received=f"{_named(kind)} from '{branch.name}'",
            fix="End the models in a softmax or sigmoid, or use a layer of `tfopt.fusion` on their outputs, such as "
            "`VotingFusion(from_logits=...)`.",
        )
    if plan.how == "cascade" and kind is OutputKind.INDEPENDENT and not is_single:
        raise InvalidArgumentError(
            "The models of a cascade must choose one of several classes.",
            received="several independent probabilities (sigmoid)",
            fix="Pass another `how`, such as 'mean'.",
        )
    if kind is OutputKind.NUMBERS and is_single:
        raise InvalidArgumentError(
            "Models that vote, those of a product and of a cascade must answer with a class.",
            received="a single linear output, which is a logit or a number",
            fix="Add a `keras.layers.Activation('sigmoid')` to classifiers; average others by how='mean'.",
        )


def _with_logits(branch: keras.Model) -> keras.Model:
    """The branch with logits for probabilities."""
    ends = ends_of(branch)
    if any(end.op is None and end.kind is not OutputKind.NUMBERS for end in ends):
        raise InvalidArgumentError(
            "The product must be of logits: of models that end in a layer with a softmax or sigmoid, or before it.",
            received=f"'{branch.name}', whose probabilities come about otherwise",
            fix="Use `tfopt.fusion.ParallelFusion('product')` on its outputs.",
        )
    return end_in(branch, ends, "linear")


def _named(kind: OutputKind | None) -> str:
    return "values within [0, 1] of an unknown kind" if kind is None else kind.value
