"""The samples of a comparison, as each model and each file takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import keras
import numpy as np

from tfopt.core.data.batches import as_tensor
from tfopt.core.data.inputs import Input, arrays_in, inputs_of, with_rank
from tfopt.core.data.pairs import in_order_of, paired
from tfopt.core.data.samples import gathered
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of
from tfopt.core.models.graph import Graph
from tfopt.core.models.preprocessing import reads_raw
from tfopt.deploy.runner import TFLiteModel
from tfopt.deploy.tensors import as_inputs
from tfopt.editing.preprocessing import split

Runner: TypeAlias = Any
"""A Keras model or a `TFLiteModel`."""


@dataclass(frozen=True)
class Samples:
    """What contenders are scored on.

    Args:
        x: inputs as the user gave them: a dict by name, or in the order of `first`.
        y: labels.
        first: the contender that `x` is for: the first.
        numbers: the same samples as they are behind the preprocessing of `first`, where it has some.
    """

    x: Any
    y: Any
    first: Runner
    numbers: Samples | None = None

    @classmethod
    def of(cls, data: Any, first: Runner | Graph) -> Samples:
        """Those of `(x, y)`, a data set or an iterator; raises unless there is one label a sample."""
        given = gathered(data)
        lengths = [_length(part) for part in (given.x, given.y)]
        if lengths[0] != lengths[1] or lengths[0] == 0:
            raise InvalidArgumentError(
                "There must be one label a sample, and at least one sample.",
                received=f"{lengths[0]} samples, {lengths[1]} labels",
            )
        if not isinstance(first, Graph):
            return cls(given.x, given.y, first)
        raw = cls(given.x, given.y, first.model)
        return replace(raw, numbers=raw._preprocessed(first)) if reads_raw(first) else raw

    def _preprocessed(self, whole: Graph) -> Samples:
        preprocessing, rest = split(whole)
        return Samples(preprocessing.predict(self.inputs_for(preprocessing), verbose=0), self.y, rest)

    def __len__(self) -> int:
        return _length(self.y)

    def inputs_for(self, runner: Runner) -> Any:
        """What `predict` of a model or a file is given.

        Raises:
            InvalidArgumentError: an input is missing, or nothing tells which input is which.
        """
        if self.numbers is not None and not _is_whole(runner):
            return self.numbers.inputs_for(runner)
        own = _inputs(runner)
        if isinstance(self.x, Mapping):
            arrays, order = self._arrays(runner), list(range(len(own)))
        else:
            arrays = self._arrays(self.first)
            order = paired(_inputs(self.first), own, _name(self.first), _name(runner))
        arrays = [_array(arrays[place], each) for place, each in zip(order, own, strict=True)]
        if isinstance(runner, TFLiteModel):
            return arrays if len(arrays) > 1 else arrays[0]
        return in_order_of(runner, arrays, range(len(arrays)))

    def _arrays(self, runner: Runner) -> list:
        structure = None if isinstance(runner, TFLiteModel) else functional_of(runner).input
        return arrays_in(self.x, _inputs(runner), structure)


def _array(values: Any, own: Input) -> Any:
    array = with_rank(np.asarray(values), own)
    return as_tensor(array, "string") if own.dtype == "string" else array


def _is_whole(runner: Runner) -> bool:
    """True for a model with strings or lookups in it."""
    return not isinstance(runner, TFLiteModel) and bool(reads_raw(Graph(runner)))


def _inputs(runner: Runner) -> list[Input]:
    return as_inputs(runner.inputs) if isinstance(runner, TFLiteModel) else inputs_of(runner)


def _name(runner: Runner) -> str:
    if isinstance(runner, TFLiteModel):
        return runner.path.name if runner.path else "file"
    return runner.name


def _length(part: Any) -> int:
    first = keras.tree.flatten(part)[0] if isinstance(part, (Mapping, list, tuple)) and len(part) else part
    whole = part if np.ndim(first) == 0 else first
    if np.ndim(whole) == 0:
        raise InvalidArgumentError("`data` must hold arrays.", received=type(part).__name__)
    return len(whole)
