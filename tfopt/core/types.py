"""Names for the arguments of verbs that take objects of many classes, each with what is accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Data: TypeAlias = Any
"""Samples as `fit` takes them: x, `(x, y)` or `(x, y, sample_weights)` of arrays, lists or dicts of arrays, or a
`tf.data.Dataset`, a `keras.utils.PyDataset` or an iterable of batches of that form."""

Metric: TypeAlias = Any
"""A name, a `keras.metrics.Metric`, or a function `(y_true, y_pred) -> float`."""

Loss: TypeAlias = str | Callable | None
"""A loss as `keras.Model.compile` takes it."""

Schedule: TypeAlias = Callable[[Any], tuple]
"""A callable from the training step, a tensor, to `(prune_now, sparsity)`."""

Names: TypeAlias = str | list[str] | None
"""A layer name, a glob, or a list of them."""

Tensor: TypeAlias = Any
"""A `tf.Tensor`, or what TensorFlow makes one of: a NumPy array, a `keras.Variable`."""

Arrays: TypeAlias = Any
"""An array with samples along its first axis, or a list or dict of such arrays, as a model's inputs or outputs."""

Folds: TypeAlias = Any
"""A number of folds, a splitter of scikit-learn, or a list of pairs (train, held out) of sample numbers."""
