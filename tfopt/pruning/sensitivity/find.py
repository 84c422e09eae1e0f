"""The verb `find_sparsity`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfopt.core.checks import NOT_NEGATIVE, as_number
from tfopt.core.data.goals import Goal, as_goal
from tfopt.core.data.samples import Labelled, labelled
from tfopt.core.data.splits import Split, hold_out, make_folds
from tfopt.core.errors import InvalidArgumentError, TargetNotMetError
from tfopt.core.journal import FileJournal, Head
from tfopt.core.models.fingerprints import fingerprint
from tfopt.core.models.graph import check_finite, read, with_graph
from tfopt.core.reporting.progress import progress
from tfopt.core.reporting.render import as_text
from tfopt.core.types import Data, Folds, Metric
from tfopt.pruning.criteria import as_criterion
from tfopt.pruning.sensitivity.choice import SparsityChoice, Trial, trial_table
from tfopt.pruning.sensitivity.finetuning import FineTuning
from tfopt.pruning.sensitivity.trials import Trials
from tfopt.pruning.sensitivity.validation import check_prune_options, checked_sparsities, fingerprints, masked_kernels

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TOLERANCE = 0.01


def find_sparsity(
    model: keras.Model,
    data: Data,
    max_drop: float = 0.01,
    *,
    metric: Metric = "accuracy",
    mode: str = "auto",
    sparsities: Sequence[float] | None = None,
    cv: Folds = None,
    finetune: int | None = None,
    validation_data: Data = None,
    validation_split: float | None = None,
    seed: int = 0,
    resume: str | os.PathLike | None = None,
    batch_size: int = 32,
    verbose: int = 1,
    **prune_options: Any,
) -> SparsityChoice:
    """Tries many sparsities, and so many thresholds, and keeps the highest that costs at most `max_drop` of the score.

    A sparsity counts only if all lower ones that were tried hold too: one that does better than its neighbours is
    luck. Drops are taken on the same samples as the score of the unpruned model.

    - Plain: `data` is a validation set, each sparsity is scored on it. The drop on it is within `max_drop`; that on
      new data scatters around it. Nothing beyond that is promised: a small validation set can be wrong by more.
    - `cv=k`: scores on k folds, stratified by class. The mean drop plus one standard error over the folds has to be
      within `max_drop`: a margin for new data, which for drops that scatter normally holds about five times in six.
    - `finetune=epochs`: each pruned model is trained before it is scored on samples left out of that training: a fold
      with `cv`, else `validation_data` or a part of `data`. The unpruned model is trained as long, so that pruning is
      not credited with what training alone gives. Training sets of folds overlap, so that the standard error is
      somewhat too small.

    What was chosen on `data` is to be reported on data that had no part in it.

    Args:
        model: a built Keras model; compiled, if it is to be fine-tuned: its loss, and for each
            trial a new optimizer of the same settings, are used.
        data: `(x, y)` or `(x, y, sample_weights)`, or a dataset of such batches (read once, into memory). The weights
            count in fine-tuning and in the loss of a criterion; scores count each sample once, as `metrics=` of
            `compile` does.
        max_drop: in the units of the metric: 0.01 is one point of accuracy in a hundred.
        metric, mode, batch_size, verbose: as in `sensitivity`. The batch size holds for fine-tuning too.
        sparsities: fractions to try, each in (0, 1). By default 0.1 to 0.95, then halfway between the last that held
            and the first that did not, until they are 0.01 apart.
        cv: a number of folds, 2 or more; a splitter of scikit-learn; or pairs (train, held out) of arrays of sample
            numbers.
        finetune: epochs.
        validation_data: like `data`, to score on where there is fine-tuning without `cv`.
        validation_split: fraction of `data` to take for that instead, by default 0.2, stratified by class.
        seed: of folds, splits, order of training and random criteria.
        resume: path of a JSON file to which each score is written as it comes; a second call goes on from there.
        **prune_options: further options of `prune`: `include`, `exclude`, `criterion` and so on. A criterion that needs
            data is given `data`, where there is fine-tuning only what is trained on.

    Returns:
        A frozen `SparsityChoice`: `sparsity`, the pruned `model` (fine-tuned on all of `data` if so asked), all
        `trials` with their scores and thresholds, `plot()`. For size and speed pass the models to `compare`.

    Raises:
        TargetNotMetError: not even the lowest sparsity tried is within `max_drop`; the message shows what was tried.
        InvalidArgumentError: for options that do not fit, fine-tuning of a model that is not compiled, or `resume`
            with the results of another model or settings.
        UnsupportedModelError, NonFiniteError, NothingToDoError, FileError: as in `sensitivity`.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, use_bias=False)])
        >>> model.set_weights([np.eye(8, 2)])
        >>> x = np.random.default_rng(0).normal(size=(50, 8))
        >>> choice = find_sparsity(model, (x, x[:, :2].argmax(1)), sparsities=(0.5, 0.75, 0.95), verbose=0)
        >>> choice.sparsity, int((choice.model.layers[0].kernel.numpy() == 0).sum())
        (0.75, 14)
    """
    model = with_graph(model)
    graph = read(model)
    max_drop = _checked_drop(max_drop)
    check_prune_options(prune_options)
    wanted = GRID if sparsities is None else checked_sparsities(sparsities)
    goal = as_goal(metric, mode)
    training = None if finetune is None else FineTuning.of(model, finetune, batch_size, seed)
    samples = labelled(model, data)
    final = np.arange(len(samples))
    if validation_data is None:
        folds = _folds(samples, cv, validation_split, training is not None, seed)
    else:
        _check_held_out(cv, validation_split, training)
        samples = samples.and_more(labelled(model, validation_data, "validation_data"))
        folds = [Split(final, np.arange(len(final), len(samples)))]
    check_finite(graph)
    scoring = [seed, [[split.train, split.held_out] for split in folds], training and training.settings]
    settings = {**fingerprints(graph, samples, goal, prune_options), "way of scoring": fingerprint(scoring)}
    journal = FileJournal(resume, Head("find_sparsity", 2, "resume", settings))
    trials = Trials(graph, samples, folds, goal, training, _seeded(prune_options, seed), journal, batch_size)
    tried = _search(trials, wanted, max_drop, refine=sparsities is None, verbose=verbose)
    chosen = _highest_within(tried, max_drop)
    if chosen is None:
        raise _out_of_reach(tried, max_drop, goal, training)
    return _choice(trials, tried, chosen, max_drop, samples.rows(final))


def _checked_drop(max_drop: Any) -> float:
    what, fix = "a number of at least 0, in the units of the metric", "0.01 is one point of accuracy in a hundred."
    return as_number("max_drop", max_drop, NOT_NEGATIVE, what=what, fix=fix)


def _folds(samples: Labelled, cv: Any, fraction: float | None, train: bool, seed: int) -> list[Split]:
    if fraction is not None and (cv is not None or not train):
        raise InvalidArgumentError(
            "`validation_split` is what fine-tuning without `cv` leaves out.",
            received=f"validation_split={fraction!r} {'with `cv`' if train else 'without `finetune`'}",
            fix="Leave it out: with `cv` folds are scored, without `finetune` all of `data`.",
        )
    if cv is not None:
        return make_folds(cv, samples.y, len(samples), argument="cv", seed=seed)
    if train:
        return [hold_out(samples.y, len(samples), 0.2 if fraction is None else fraction, seed)]
    return [Split(np.arange(0), np.arange(len(samples)))]


def _check_held_out(cv: Any, fraction: float | None, training: FineTuning | None) -> None:
    if cv is not None or fraction is not None or training is None:
        other = "cv" if cv is not None else "validation_split"
        raise InvalidArgumentError(
            "`validation_data` is what fine-tuning is scored on, in place of `validation_split` and `cv`.",
            received="no `finetune`" if training is None else f"both `validation_data` and `{other}`",
            fix="Without `finetune` pass it as `data`." if training is None else "Pass one of them.",
        )


def _seeded(options: dict[str, Any], seed: int) -> dict[str, Any]:
    needs = as_criterion(options.get("criterion", "magnitude")).needs
    return {**options, "seed": seed} if "seed" in needs else options


def _search(
    trials: Trials, wanted: Sequence[float], max_drop: float, *, refine: bool, verbose: int
) -> tuple[Trial, ...]:
    """All trials in ascending order of sparsity."""
    folds = len(trials.folds)
    with progress("find_sparsity", (1 + len(wanted)) * folds, verbose) as step:
        trials(0.0, step)
        tried = {sparsity: trials(sparsity, step) for sparsity in wanted}
    bad = next((sparsity for sparsity in wanted if not tried[sparsity].within(max_drop)), None)
    if refine and bad is not None:
        good = max((sparsity for sparsity in wanted if sparsity < bad), default=0.0)
        with progress("between two of them", math.ceil(math.log2((bad - good) / TOLERANCE)) * folds, verbose) as step:
            while bad - good > TOLERANCE:
                middle = round((good + bad) / 2, 6)
                tried[middle] = trials(middle, step)
                good, bad = (middle, bad) if tried[middle].within(max_drop) else (good, middle)
    return tuple(tried[sparsity] for sparsity in sorted(tried))


def _highest_within(tried: Sequence[Trial], max_drop: float) -> Trial | None:
    """The last trial before the first that fails."""
    failed = next((place for place, trial in enumerate(tried) if not trial.within(max_drop)), len(tried))
    return tried[failed - 1] if failed else None


def _out_of_reach(
    tried: Sequence[Trial], max_drop: float, goal: Goal, training: FineTuning | None
) -> TargetNotMetError:
    table = as_text(trial_table("Tried", tried, max_drop))
    more = "more epochs of `finetune`" if training else "`finetune=epochs`"
    return TargetNotMetError(
        f"The lowest sparsity tried has to cost at most `max_drop` = {max_drop:g} of {goal.name}.",
        received=f"a drop of {tried[0].drop:.4f} at {tried[0].sparsity:g}",
        fix=f"Allow a larger `max_drop`, try {more}, leave sensitive layers out with `exclude`, or score on more data."
        f"\n{table}",
    )


def _choice(
    trials: Trials, tried: tuple[Trial, ...], chosen: Trial, max_drop: float, final: Labelled
) -> SparsityChoice:
    model = trials.pruned(chosen.sparsity, final)
    if trials.training is not None:
        trials.training.run(model, final)
    kernels = [keras.ops.convert_to_numpy(kernel) for kernel in masked_kernels(model)]
    return SparsityChoice(
        sparsity=chosen.sparsity,
        model=model,
        metric=trials.goal.name,
        mode=trials.goal.mode,
        max_drop=float(max_drop),
        baseline=trials(0.0).score,
        samples=sum(len(split.held_out) for split in trials.folds),
        finetune=None if trials.training is None else trials.training.epochs,
        kernel_weights=sum(kernel.size for kernel in kernels),
        kernel_nonzero=sum(int(np.count_nonzero(kernel)) for kernel in kernels),
        trials=tried,
    )
