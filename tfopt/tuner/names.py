"""What a figure of a training is called, whatever number Keras puts behind the name of an unnamed metric or output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfopt.core.keras_internals import compile_options, name_counts


def names_made_since(before: Mapping[str, int]) -> dict[str, str]:
    """`{name: what it would be in a fresh process}` of the names that Keras has made since `before`, a `name_counts`.

    Example:
        >>> before = name_counts()
        >>> names = [keras.metrics.AUC().name for _ in range(2)]
        >>> [names_made_since(before)[name] for name in names]
        ['auc', 'auc_1']
    """
    return {
        _name(kind, number): _name(kind, number - before.get(kind, 0))
        for kind, count in name_counts().items()
        for number in range(before.get(kind, 0), count)
    }


class Figures:
    """Turns the logs of a model into figures: numbers under names that do not depend on the models made before.

    A metric that logs a value for each class counts with its mean.

    Args:
        model: compiled.
        made: the names that Keras made when the model was built, as `names_made_since` gives them.
    """

    def __init__(self, model: keras.Model, made: Mapping[str, str]):
        options = compile_options(model, metrics=True)
        given = keras.tree.flatten([options["metrics"], options["weighted_metrics"]])
        metrics = [metric.name for metric in given if isinstance(metric, keras.Metric)]
        outputs = list(getattr(model, "output_names", None) or [])
        self._outputs = sorted(outputs, key=len, reverse=True) if len(outputs) > 1 else []
        self._fresh = {name: made[name] for name in (*metrics, *outputs) if name in made}

    def __call__(self, logs: Mapping[str, Any]) -> dict[str, float]:
        figures = {self._renamed(name): float(np.mean(value)) for name, value in logs.items()}
        if len(figures) < len(logs):  # two would have one name
            return {name: float(np.mean(value)) for name, value in logs.items()}
        return figures

    def _renamed(self, name: str) -> str:
        rest = name.removeprefix("val_")
        start = name[: len(name) - len(rest)]
        output = next((output for output in self._outputs if rest.startswith(f"{output}_")), None)
        if output is not None:
            start += f"{self._fresh.get(output, output)}_"
            rest = rest.removeprefix(f"{output}_")
        return start + self._fresh.get(rest, rest)


def _name(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind
