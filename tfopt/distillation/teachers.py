"""Runs one teacher or several once, unchanged, and gives what losses compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from tfopt.core.checks import POSITIVE, as_numbers
from tfopt.core.data.outputs import OutputKind, output_kinds
from tfopt.core.data.pairs import output_names, paired_outputs
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of
from tfopt.distillation.asked import Asked
from tfopt.distillation.features import feature_shape, observed
from tfopt.distillation.outputs import has_keys, output_shapes
from tfopt.distillation.scores import OF_CLASSES, Task, averaged, task_of_kind, to_scores
from tfopt.distillation.taught import Taught


class Teachers:
    """One or several models that teach; several answer by the weighted mean of their probabilities.

    Args:
        models: built Keras models of the same inputs and outputs, told by their names.
        weights: one number above 0 a model, in any unit; None for equal ones.
        like: the model in whose order inputs are given; None for the first teacher.

    Raises:
        InvalidArgumentError: if their outputs differ, or the weights do not fit.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> Teachers([model]).answer(np.array([[3.0, 4.0]]), paths=[]).outputs.numpy().tolist()
        [[3.0, 4.0]]
    """

    def __init__(
        self, models: Sequence[keras.Model], weights: Sequence[float] | None = None, like: keras.Model | None = None
    ):
        self.models = list(models)
        self._asked = Asked(self.models[0] if like is None else like)
        self._orders = [paired_outputs(model, self.models[0]) for model in self.models]
        self.weights = _shares(weights, len(self.models))
        self.names = output_names(self.models[0])
        self.shapes = output_shapes(self.models[0])
        self.has_keys = has_keys(self.models[0])
        self._check_outputs()
        self._kinds = [_in(order, output_kinds(model)) for model, order in zip(self.models, self._orders, strict=True)]
        self.kinds = [_common(kinds) for kinds in zip(*self._kinds, strict=True)]
        self._runs: dict[tuple, list[keras.Model]] = {}

    def answer(
        self, inputs: Any, paths: Iterable[str], tasks: Sequence[Task | None] | None = None, outputs: bool = True
    ) -> Taught:
        """One run of each teacher in inference mode, without gradients; nothing in them changes.

        Args:
            inputs: a batch.
            paths: features to give, see `observed`; of several teachers with the name of one before it.
            tasks: of each output; by default what its kind says, and numbers are averaged as they are.
            outputs: False for features alone: the layers behind them do not run.
        """
        flat: list[list] = []
        features: dict[str, Any] = {}
        # What a run assigns, such as moving statistics or the state of recurrent layers, is dropped with the scope.
        with keras.StatelessScope():
            runs = zip(self.models, self._observed(paths, outputs), self._orders, self._kinds, strict=True)
            for model, run, order, kinds in runs:
                given, found = run(self._asked.of(model, inputs), training=False)
                features.update({self._prefix(model) + path: value for path, value in found.items()})
                if outputs:
                    values = _in(order, keras.tree.flatten(given))
                    flat.append([to_scores(*pair) for pair in zip(kinds, values, strict=True)])
        scores = [
            averaged(task, members, self.weights)
            for task, members in zip(tasks or map(task_of_kind, self.kinds), zip(*flat, strict=True), strict=False)
        ]
        scores, features = keras.tree.map_structure(keras.ops.stop_gradient, (scores, features))
        return Taught(inputs, self._structured(scores) if outputs else None, features)

    def places(self, student: keras.Model) -> list[int]:
        """For each output of a student the place of that of the teachers."""
        return paired_outputs(self.models[0], student)

    def _observed(self, paths: Iterable[str], outputs: bool) -> list[keras.Model]:
        """What runs each teacher, made once."""
        key = (tuple(sorted(paths)), outputs)
        if key not in self._runs:
            own = self._own(key[0])
            self._runs[key] = [observed(*pair, outputs, folds=True) for pair in zip(self.models, own, strict=True)]
        return self._runs[key]

    def _structured(self, flat: list) -> Any:
        """As the first teacher gives its outputs."""
        structure = functional_of(self.models[0]).output
        if isinstance(structure, (list, tuple)) and len(structure) == 1:
            return flat[0]
        return keras.tree.pack_sequence_as(structure, flat)

    def feature_shape(self, path: str) -> tuple[int | None, ...]:
        """Shape of a feature, the batch with it."""
        model, own = self._of_path(path)
        return feature_shape(model, own)

    def _own(self, paths: Sequence[str]) -> list[list[str]]:
        """The paths in each of the models."""
        pairs = [self._of_path(path) for path in paths]
        return [[own for owner, own in pairs if owner is model] for model in self.models]

    def _of_path(self, path: str) -> tuple[keras.Model, str]:
        if len(self.models) == 1:
            return self.models[0], path
        name, _, rest = path.partition("/")
        found = [model for model in self.models if model.name == name]
        if len(found) != 1 or not rest:
            raise InvalidArgumentError(
                "With several teachers, `teacher_layer` begins with the name of one of them, which no other has.",
                received=repr(path),
                fix=f"The teachers are {', '.join(model.name for model in self.models)}.",
            )
        return found[0], rest

    def _prefix(self, model: keras.Model) -> str:
        return "" if len(self.models) == 1 else f"{model.name}/"

    def _check_outputs(self) -> None:
        for model, order in zip(self.models, self._orders, strict=True):
            keys, shapes = output_names(model) if has_keys(model) else self.names, output_shapes(model)
            same = len(shapes) == len(order) and _in(order, shapes) == self.shapes
            if has_keys(model) != self.has_keys or keys != self.names or not same:
                raise InvalidArgumentError(
                    "Several teachers have the same outputs.",
                    received=f"{self.shapes} of '{self.models[0].name}', {output_shapes(model)} of '{model.name}'",
                )


def _in(order: Sequence[int], values: Sequence[Any]) -> list:
    return [values[place] for place in order]


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights that sum to 1."""
    if weights is None:
        return [1.0 / count] * count
    numbers = as_numbers("teacher_weights", weights, POSITIVE)
    if len(numbers) != count:
        raise InvalidArgumentError(
            "`teacher_weights` must hold one number above 0 for each teacher.",
            received=f"{weights!r} for {count} teachers",
        )
    return [number / sum(numbers) for number in numbers]


def _common(kinds: Sequence[OutputKind | None]) -> OutputKind | None:
    """What the mean of outputs is: that of logits and probabilities are probabilities."""
    if len(set(kinds)) == 1:
        return kinds[0]
    if set(OF_CLASSES) & set(kinds):
        return OutputKind.PROBABILITIES
    return OutputKind.INDEPENDENT if OutputKind.INDEPENDENT in kinds else None
