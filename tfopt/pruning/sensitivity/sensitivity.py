"""The verb `sensitivity`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras

from tfopt.core.data.evaluator import Evaluator
from tfopt.core.data.goals import Goal, as_goal
from tfopt.core.data.samples import Labelled, labelled
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.journal import FileJournal, Head
from tfopt.core.layers.registry import prunable_weights
from tfopt.core.models import constraints
from tfopt.core.models.graph import Graph, as_patterns, is_selected, read, with_graph
from tfopt.core.reporting.progress import progress
from tfopt.core.types import Data, Metric, Names
from tfopt.pruning.criteria import as_criterion
from tfopt.pruning.masks import PruningMask
from tfopt.pruning.prune import prune
from tfopt.pruning.sensitivity.curves import LayerCurve, Sensitivity
from tfopt.pruning.sensitivity.validation import check_prune_options, checked_sparsities, fingerprints, with_data

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def sensitivity(
    model: keras.Model,
    data: Data,
    metric: Metric = "accuracy",
    *,
    mode: str = "auto",
    sparsities: Sequence[float] = SPARSITIES,
    include: Names = None,
    exclude: Names = None,
    resume: str | os.PathLike | None = None,
    batch_size: int = 32,
    verbose: int = 1,
    **prune_options: Any,
) -> Sensitivity:
    """Prunes one layer at a time, to several sparsities, and takes the score of the model each time.

    Nothing is trained. The result tells which layers stand pruning and which do not, and gives the sparsity of each
    layer under a target for all: `prune(model, sparsity=sensitivity(model, data).sparsities(0.8))`.

    Args:
        model: a built Keras model.
        data: `(x, y)` to score on, or a dataset of such batches (read once, into memory): data that the model was not
            trained on, and not the test set either, for what is chosen by it looks better on it. Sample weights may
            come with it; scores count each sample once.
        metric: a standard score ("accuracy", "precision", "recall", "f1", "mae", "rmse"), another name that Keras
            knows, a `keras.metrics.Metric`, or a function `(y_true, y_pred) -> float`.
        mode: `"max"` if a higher score is better, `"min"` if a lower one is. `"auto"`: lower for errors and for losses
            of Keras, else higher.
        sparsities: fractions of zeros to try, each in (0, 1).
        include, exclude: layer names or globs, as in `prune`.
        resume: path of a JSON file to which each score is written as it comes. If it is there already, from a call
            with the same model, data and settings, only what is missing in it is measured.
        batch_size: samples at a time.
        verbose: 1 shows a progress bar.
        **prune_options: further options of `prune`, such as `criterion`. One that needs data is given `data`.

    Returns:
        A frozen `Sensitivity`: `baseline`, a curve for each layer, `sparsities(target)`, `plot()`.

    Raises:
        InvalidArgumentError: for options that do not fit, or `resume` with the results of another model or settings.
        UnsupportedModelError: for an unbuilt model, or one that is no graph.
        NonFiniteError: NaN or infinity in the weights, data, predictions or scores.
        NothingToDoError: no layer to prune.
        FileError: `resume` is some other file, or cannot be written.

    Source: Han et al. 2015, https://arxiv.org/abs/1506.02626, section 4.1 and figure 6.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="d"), keras.layers.Dense(2)])
        >>> x, y = keras.random.normal((20, 8)), keras.ops.arange(20) % 2
        >>> curves = sensitivity(model, (x, y), sparsities=(0.5, 0.75), verbose=0)
        >>> [sparsity for sparsity, score in curves["d"].points]
        [0.5, 0.75]
    """
    model = with_graph(model)
    graph = read(model)
    wanted = checked_sparsities(sparsities)
    _check_options(prune_options)
    goal = as_goal(metric, mode)
    samples = labelled(model, data)
    journal = FileJournal(resume, Head("sensitivity", 2, "resume", fingerprints(graph, samples, goal, prune_options)))
    bench = _Bench(graph, samples, goal, batch_size, {"include": include, "exclude": exclude}, prune_options)
    pruned = bench.pruned(wanted[0])
    paths = _pruned_layers(pruned, as_patterns(include, "include"), as_patterns(exclude, "exclude"))
    with progress("sensitivity", 1 + len(paths) * len(wanted), verbose) as step:
        baseline = journal.result("baseline", bench.score)
        step()
        points: dict[str, list] = {path: [] for path in paths}
        for sparsity in wanted:
            for path in paths:
                score = journal.result(f"{path} {sparsity!r}", partial(bench.score_of, path, sparsity))
                points[path].append((sparsity, score))
                step()
    curves = (LayerCurve(path, bench.weights(path), tuple(points[path])) for path in paths)
    return Sensitivity(model.name, goal.name, goal.mode, len(samples), baseline, tuple(curves))


def _check_options(options: dict[str, Any]) -> None:
    check_prune_options(options)
    if options.get("scope", "layer") != "layer":
        raise InvalidArgumentError(
            "A curve is that of one layer, so that layers cannot share a sparsity.",
            received=f"scope={options['scope']!r}",
            fix="Leave `scope` out; `.sparsities(target)` of the result shares a target among the layers.",
        )


class _Bench:
    """Scores the model with one layer pruned."""

    def __init__(self, graph: Graph, samples: Labelled, goal: Goal, batch_size: int, chosen: dict, options: dict):
        self._source, self._samples, self._goal = graph.model, samples, goal
        self._chosen, self._options = chosen, with_data(options, samples)
        self._evaluator = Evaluator(graph, batch_size)
        self._last: tuple[float, keras.Model] | None = None

    def score(self) -> float:
        return self._goal(self._samples.y, self._evaluator.predict(self._samples.x))

    def score_of(self, path: str, sparsity: float) -> float:
        variant = self._evaluator.model
        if not self._layers_are_independent():
            self._evaluator.put(
                variant.weights, prune(self._source, sparsity={path: sparsity}, **self._options).weights
            )
            return self.score()
        self._evaluator.put(_kernels(variant, path), _kernels(self.pruned(sparsity), path))
        try:
            return self.score()
        finally:
            self._evaluator.put(_kernels(variant, path), _kernels(self._source, path))

    def pruned(self, sparsity: float) -> keras.Model:
        """The model with all chosen layers pruned; the last one is kept, as it serves one layer after the other."""
        if self._last is None or self._last[0] != sparsity:
            self._last = (sparsity, prune(self._source, sparsity=sparsity, **self._chosen, **self._options))
        return self._last[1]

    def weights(self, path: str) -> int:
        return sum(math.prod(kernel.shape) for kernel in _kernels(self._source, path))

    def _layers_are_independent(self) -> bool:
        """True if a layer is pruned alike alone and with all others: one pruned model then serves all layers.

        Coupled channels are pruned together, and random numbers are drawn in turn.
        """
        criterion = as_criterion(self._options.get("criterion", "magnitude"))
        return self._options.get("pattern", "element") != "channel" and "seed" not in criterion.needs


def _kernels(model: keras.Model, path: str) -> list[keras.Variable]:
    return list(prunable_weights(dict(read(model).layers)[path]).values())


def _pruned_layers(pruned: keras.Model, included: list[str], excluded: list[str]) -> list[str]:
    """Paths of the layers that `prune` gave a mask; weights that layers share count for the first of them."""
    paths: list[str] = []
    seen: set[int] = set()
    for path, layer in read(pruned).layers:
        if isinstance(layer, keras.Model) or not is_selected(path, included, excluded):
            continue
        masked = [w for w in prunable_weights(layer).values() if constraints.find(w, PruningMask) is not None]
        if masked and not {id(weight) for weight in masked} <= seen:
            seen.update(id(weight) for weight in masked)
            paths.append(path)
    return paths
