"""The checks of what `prune` is asked for, before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from tfopt.core.checks import FRACTION, NOT_NEGATIVE, Range, as_choice, as_number, plain
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.types import Data, Loss
from tfopt.pruning.budget import Budget
from tfopt.pruning.ranking import Rule
from tfopt.pruning.schedules import check_schedule

KEEP = "keep"
SCOPES = ("layer", "global")


class Scoring(TypedDict, total=False):
    """What scores are taken on, as `score_kernels` takes it."""

    data: Data
    loss: Loss
    seed: int
    verbose: int


@dataclass(frozen=True)
class Request:
    """What `prune` was asked for, where kernels or channels are masked; see there.

    Args:
        by_channel: the pattern is `"channel"`; that of the rule does not count then.
    """

    rule: Rule
    by_channel: bool = False
    scope: str = "layer"
    sparsity: Any = None
    threshold: Any = None
    budget: Budget | None = None
    round_to: int = 1
    scoring: Scoring = field(default_factory=Scoring)

    @property
    def is_threshold(self) -> bool:
        return self.threshold is not None

    @property
    def amount(self) -> Any:
        """The fraction, the threshold, `"keep"` or the dict of them that is asked for; None with a schedule."""
        amount = self.threshold if self.is_threshold else self.sparsity
        if amount is None and self.rule.schedule is None:
            return 0.5
        return {name: plain(each) for name, each in amount.items()} if isinstance(amount, Mapping) else plain(amount)


def check_request(request: Request) -> None:
    """Raises `InvalidArgumentError` for arguments out of range, or that contradict each other."""
    rule, scope, sparsity, threshold = request.rule, request.scope, request.sparsity, request.threshold
    as_choice("scope", scope, SCOPES)
    _check_one_amount(request)
    if rule.schedule is not None:
        check_schedule(rule.schedule)
    _check_values(sparsity, threshold)
    if scope == "global":
        _check_global(rule, sparsity, threshold)
    if rule.pattern.fixed_sparsity is not None:
        _check_fixed(rule, sparsity, threshold)
    elif sparsity == KEEP:
        _check_keep(rule, scope)
    elif any(fraction + rule.min_kept > 1 + 1e-9 for fraction in _values(sparsity, "sparsity")):
        raise InvalidArgumentError(
            "`sparsity` and `min_kept` are fractions of the same kernel: together at most 1.",
            received=f"sparsity={sparsity!r}, min_kept={rule.min_kept!r}",
        )
    _check_structure(request)


def as_min_kept(min_kept: Any) -> float:
    """The fraction of each kernel that stays; raises for another value."""
    return as_number(
        "min_kept",
        min_kept,
        Range(least=0, below=1),
        what="a fraction of each kernel in [0, 1)",
        fix="0.05 leaves at least one weight in twenty of each kernel.",
    )


def _check_structure(request: Request) -> None:
    """Raises for arguments that only whole channels have a use for."""
    budget = request.budget
    if not request.by_channel and (request.round_to > 1 or budget is not None):
        raise InvalidArgumentError(
            "`round_to`, `to_macs` and `to_params` are for whole channels: zeros in a kernel change neither its width "
            "nor what it computes.",
            received=f"round_to={request.round_to}" if budget is None else f"to_{budget.kind}={budget.fraction}",
            fix="Add `pattern='channel'`.",
        )


def check_whole_layers(sparsity: Any, schedule: Any, threshold: Any, scope: str, min_kept: Any, round_to: Any) -> Any:
    """`sparsity`; raises for arguments that have no meaning where whole layers go."""
    by_layer = isinstance(sparsity, (str, Mapping))
    given = {"sparsity": sparsity if by_layer else None, "schedule": schedule, "threshold": threshold}
    given.update(scope=None if scope == "layer" else scope, min_kept=min_kept or None)
    given.update(round_to=None if round_to == 1 else round_to)
    given = {name: value for name, value in given.items() if value is not None}
    if given:
        raise InvalidArgumentError(
            "pattern='layer' takes out whole blocks at once: a fraction by `sparsity`, or to `to_macs`, `to_params`.",
            received=", ".join(f"{name}={value!r}" for name, value in given.items()),
            fix="Leave these arguments out.",
        )
    return sparsity


def _check_values(sparsity: Any, threshold: Any) -> None:
    for fraction in _values(sparsity, "sparsity"):
        as_number(
            "sparsity",
            fraction,
            FRACTION,
            what="a fraction of zeros above 0 and below 1",
            fix="0.8 leaves one weight in five. 'keep' holds the zeros that are there.",
        )
    for limit in _values(threshold, "threshold"):
        as_number(
            "threshold",
            limit,
            NOT_NEGATIVE,
            what="a finite score of at least 0, or a dict from layer names or globs to such",
            fix="With the criterion 'magnitude' it is the absolute value below which weights become zero.",
        )


def _values(amount: Any, argument: str) -> list:
    """The numbers in a number, a dict of numbers, None or `"keep"`."""
    if isinstance(amount, Mapping):
        if not amount:
            raise InvalidArgumentError(f"A `{argument}` dict names at least one layer.", received="{}")
        return list(amount.values())
    return [] if amount is None or (argument == "sparsity" and amount == KEEP) else [amount]


def _check_one_amount(request: Request) -> None:
    given = {"schedule": request.rule.schedule, "sparsity": request.sparsity, "threshold": request.threshold}
    if request.budget is not None:
        given[f"to_{request.budget.kind}"] = request.budget.fraction
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise InvalidArgumentError(
            "`schedule`, `sparsity`, `threshold`, `to_macs` and `to_params` exclude each other: each says how much is "
            "pruned.",
            received=", ".join(f"{name}={value!r}" for name, value in given.items()),
            fix="Pass one of them. For several schedules call `prune` once for each, with `include`.",
        )


def _check_global(rule: Rule, sparsity: Any, threshold: Any) -> None:
    if rule.pattern.fixed_sparsity is not None:
        raise InvalidArgumentError(
            f"The scope 'global' lets kernels become differently sparse; {rule.pattern} makes all equally sparse.",
            received=f"pattern={rule.pattern}, scope='global'",
            fix="Leave `scope` out.",
        )
    if isinstance(sparsity, Mapping):
        raise InvalidArgumentError(
            "The scope 'global' ranks all kernels together to one sparsity; a dict gives each layer its own.",
            received=f"sparsity={sparsity!r}, scope='global'",
            fix="Pass one fraction and choose the layers with `include`, or leave `scope` out.",
        )
    if threshold is not None:
        raise InvalidArgumentError(
            "A `threshold` judges each weight by itself, so that there is nothing to rank together.",
            received=f"threshold={threshold!r}, scope='global'",
            fix="Leave `scope` out.",
        )


def _check_fixed(rule: Rule, sparsity: Any, threshold: Any) -> None:
    """A pattern such as n:m says alone how many weights stay."""
    fixed = rule.pattern.fixed_sparsity
    fits = sparsity != KEEP and all(fraction == fixed for fraction in _values(sparsity, "sparsity"))
    if fits and threshold is None and not rule.min_kept:
        return
    given = {"sparsity": sparsity, "threshold": threshold, "min_kept": rule.min_kept or None}
    raise InvalidArgumentError(
        f"The pattern {rule.pattern} fixes the sparsity of each kernel at {fixed:g}.",
        received=", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None),
        fix="Leave these arguments out.",
    )


def _check_keep(rule: Rule, scope: str) -> None:
    if rule != Rule() or scope != "layer":
        raise InvalidArgumentError(
            "`sparsity='keep'` holds the zeros that are there: nothing is ranked.",
            received=f"pattern={rule.pattern}, criterion='{rule.criterion.name}', min_kept={rule.min_kept}, "
            f"scope='{scope}'",
            fix="Leave `pattern`, `criterion`, `min_kept` and `scope` out.",
        )
