"""Predictions of a model's variants, without compiling or tracing anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.checks import as_count
from tfopt.core.data.samples import take
from tfopt.core.models.rewrite import rewrite


class Evaluator:
    """One copy of a model that takes the weights of its variants and predicts.

    Its function is traced once for all of them, and has none of the set-up of `Model.predict`, which for the small
    data of a validation takes longer than the predictions.
    """

    def __init__(self, model: keras.Model, batch_size: int):
        self._batch_size = as_count("batch_size", batch_size)
        self.model = rewrite(model)
        self._run = tf.function(lambda x: self.model(x, training=False), reduce_retracing=True)

    def put(self, variables: Iterable[keras.Variable], sources: Iterable[keras.Variable]) -> None:
        for variable, source in zip(variables, sources, strict=True):
            variable.assign(source.value)

    def predict(self, x: Any) -> Any:
        samples = len(keras.tree.flatten(x)[0])
        starts = range(0, samples, self._batch_size)
        outputs = [self._run(take(x, slice(start, start + self._batch_size))) for start in starts]
        return keras.tree.map_structure(lambda *parts: np.concatenate([part.numpy() for part in parts]), *outputs)
