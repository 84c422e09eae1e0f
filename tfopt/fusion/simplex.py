"""Weights that are not negative and sum to one: predictions in, weights out."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np

from tfopt.core.data.outputs import OutputKind
from tfopt.core.errors import InvalidArgumentError
from tfopt.fusion.predictions import TINY, Predictions, Rank

ROUNDS = 50  # of the greedy selection: weights are multiples of 1/n, n at most so many


def greedy(predictions: Predictions, rank: Callable[[np.ndarray], Rank]) -> np.ndarray:
    """Ensemble selection with replacement: the model that helps most is added again and again.

    Starts with the best model. The best of all `ROUNDS` ensembles is kept, so that its rank is at least that of the
    best model. Of equally good models the first is taken.

    Source: Caruana et al. 2004, "Ensemble Selection from Libraries of Models", ICML, sections 2 and 2.1.
    """
    total = np.zeros_like(predictions.values[0])
    counts = np.zeros(len(predictions.values))
    best, best_rank = counts, (-np.inf, -np.inf)
    for size in range(1, ROUNDS + 1):
        ranks = [rank((total + values) / size) for values in predictions.values]
        chosen = max(range(len(ranks)), key=ranks.__getitem__)
        total = total + predictions.values[chosen]
        counts = counts + np.eye(len(counts))[chosen]
        if ranks[chosen] > best_rank:
            best, best_rank = counts, ranks[chosen]
    return best / best.sum()


def nnls(predictions: Predictions) -> np.ndarray:
    """Non-negative least squares against the targets, or one-hot labels, then divided by their sum.

    Source: Breiman 1996, "Stacked Regressions", Machine Learning 24; Lawson and Hanson 1974 for the solver.
    """
    if predictions.kind is OutputKind.LOGITS:
        raise InvalidArgumentError(
            "The predictions for `method='nnls'` must be probabilities: it compares them with labels of 0 and 1.",
            received="logits",
            fix="Add a softmax (or sigmoid) to the models, or pass `method='logloss'`.",
        )
    columns = predictions.matrix.reshape(len(predictions.values), -1).T
    weights, _ = _optimize().nnls(columns, predictions.targets().reshape(-1))
    return _on_simplex(weights)


def logloss(predictions: Predictions) -> np.ndarray:
    """The least log loss of the weighted sum: a convex problem, so that there is no better minimum.

    Of logits, the sum goes through a softmax (or sigmoid); it is convex too.
    """
    if predictions.kind is OutputKind.NUMBERS:
        raise InvalidArgumentError(
            "The labels for `method='logloss'` must be classes.",
            received="a regression",
            fix="Pass 'nnls' or 'greedy'.",
        )
    models = len(predictions.values)
    objective = _softmax_loss(predictions) if predictions.kind is OutputKind.LOGITS else _likelihood(predictions)
    found = _optimize().minimize(
        objective,
        np.full(models, 1 / models),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * models,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return _on_simplex(found.x)


def _likelihood(predictions: Predictions) -> Callable:
    """Mean negative logarithm of the mixture's probability of the right class, and its gradient."""
    right = np.stack([predictions.of_true_class(values) for values in predictions.values])

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixture = np.maximum(weights @ right, TINY)
        return -np.log(mixture).mean(), -(right / mixture).mean(1)

    return objective


def _softmax_loss(predictions: Predictions) -> Callable:
    """Mean log loss of the softmax, or sigmoid, of summed logits, and its gradient: probability less label."""
    logits, targets = predictions.matrix, predictions.targets()

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        summed = np.tensordot(weights, logits, 1)
        excess = predictions.probabilities(summed) - targets
        return predictions.loss(summed), (logits * excess).sum(-1).mean(-1)

    return objective


def _on_simplex(weights: np.ndarray) -> np.ndarray:
    weights = np.maximum(weights, 0)
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


def _optimize() -> ModuleType:
    try:
        from scipy import optimize
    except ImportError as error:
        raise InvalidArgumentError(
            "`method='nnls'` and `'logloss'` solve with SciPy.", received=str(error), fix="pip install tfopt[fusion]"
        ) from error
    return optimize
