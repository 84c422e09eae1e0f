"""What teachers answer to batches of data, as arrays to be kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.data.batches import Batch, as_inputs
from tfopt.core.data.inputs import Input, inputs_of
from tfopt.core.data.pairs import paired
from tfopt.core.errors import InvalidArgumentError, NonFiniteError
from tfopt.core.keras_internals import compiled_loss, functional_of
from tfopt.core.models.fingerprints import computation_fingerprint, fingerprint
from tfopt.core.models.graph import check_finite, read
from tfopt.distillation.choice import task_of
from tfopt.distillation.outputs import part_of
from tfopt.distillation.scores import Task
from tfopt.distillation.shards import Rows
from tfopt.distillation.teachers import Teachers


class Answers:
    """Runs one teacher or several on batches. Nothing runs before the first.

    Args:
        teacher: a built Keras model or a list of them.
        teacher_weights: as for `Distiller`.
        layers: paths of the features to give too.
        dtype: "float16" or "float32".

    Raises:
        UnsupportedModelError: a teacher has no layer graph.
        InvalidArgumentError: teachers or layers do not fit.
        NonFiniteError: NaN or infinity in a teacher.
    """

    def __init__(
        self, teacher: Any, teacher_weights: Sequence[float] | None = None, *, layers: Sequence[str], dtype: str
    ):
        self._teachers = Teachers(_checked_models(teacher), teacher_weights)
        self._layers, self._dtype = list(layers), dtype
        for path in layers:
            self._teachers.feature_shape(path)
        self._tasks = _tasks(self._teachers)

    @property
    def model(self) -> keras.Model:
        """A teacher, which stands for the inputs of all."""
        return self._teachers.models[0]

    @property
    def structure(self) -> dict[str, Any]:
        """Of what is answered, without the values."""
        outputs = functional_of(self.model).output
        is_single = isinstance(outputs, (list, tuple)) and len(outputs) == 1
        return {"outputs": outputs[0] if is_single else outputs, "features": dict.fromkeys(self._layers)}

    @property
    def settings(self) -> dict[str, Any]:
        """All that the answers depend on besides the samples."""
        models = [computation_fingerprint(model) for model in self._teachers.models]
        tasks = [task and task.name for task in self._tasks]
        teacher = models[0] if len(models) == 1 else fingerprint([models, self._teachers.weights, tasks])
        return {"teacher": teacher, "dtype": self._dtype, "layers": self._layers}

    def __call__(self, batch: Batch) -> Rows:
        """The answers to a batch.

        Raises:
            NonFiniteError: NaN or infinity.
            InvalidArgumentError: they exceed the dtype.
        """
        answers = self._run(as_inputs(self.model, batch.inputs))
        return {name: _narrowed(values.numpy(), self._dtype) for name, values in answers.items()}

    @cached_property
    def _run(self) -> Callable[[Any], dict[str, tf.Tensor]]:
        def run(inputs: Any) -> Any:
            taught = self._teachers.answer(inputs, self._layers, self._tasks)
            return columns_of({"outputs": taught.outputs, "features": taught.features})

        signature = keras.tree.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), functional_of(self.model).input
        )
        return tf.function(run, input_signature=[signature])


def columns_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The values of structures, each under the name of its part and its place in it.

    Example:
        >>> columns_of({"inputs": (1, {"a": 2}), "targets": 3})
        {'inputs_0': 1, 'inputs_1': 2, 'targets_0': 3}
    """
    flat = {part: keras.tree.flatten(structure) for part, structure in parts.items()}
    return {f"{part}_{i}": value for part, values in flat.items() for i, value in enumerate(values)}


def names_in(part: str, structure: Any) -> Any:
    """The structure of a part with the names of `columns_of`; tuples for lists, which tf.data takes for tensors.

    Example:
        >>> names_in("inputs", [1, {"a": 2}])
        ('inputs_0', {'a': 'inputs_1'})
    """
    names = [f"{part}_{i}" for i in range(len(keras.tree.flatten(structure)))]
    return keras.tree.pack_sequence_as(keras.tree.lists_to_tuples(structure), names)


def _checked_models(teacher: Any) -> list[keras.Model]:
    models = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
    if not models:
        raise InvalidArgumentError("There has to be a teacher.", received=repr(teacher))
    for model in models:
        check_finite(read(model))
    first = inputs_of(models[0])
    for model in models[1:]:
        others = inputs_of(model)
        order = paired(first, others, models[0].name, model.name) if len(first) == len(others) else []
        if not order or any(_kind(first[place]) != _kind(own) for place, own in zip(order, others, strict=True)):
            raise InvalidArgumentError(
                "Several teachers must get the same inputs.",
                received=f"{', '.join(map(str, first))} of '{models[0].name}', {', '.join(map(str, others))} of "
                f"'{model.name}'",
            )
    return models


def _kind(own: Input) -> tuple:
    return own.shape, own.dtype


def _tasks(teachers: Teachers) -> list[Task | None]:
    """The task of each output, which decides how several teachers are averaged.

    Raises:
        InvalidArgumentError: where several give numbers and nothing tells whether they are logits.
    """
    losses = next((loss for loss in map(_trained_by, teachers.models) if loss is not None), None)
    tasks = [task_of(kind, kind, part_of(losses, i, teachers.names)) for i, kind in enumerate(teachers.kinds)]
    if len(teachers.models) > 1 and None in tasks:
        raise InvalidArgumentError(
            "Numbers of several teachers are averaged as what they are, logits or a regression.",
            received=f"output '{teachers.names[tasks.index(None)]}', of which nothing tells",
            fix="Compile a teacher with the loss that it was trained by: `teacher.compile(loss=...)`.",
        )
    return tasks


def _trained_by(model: keras.Model) -> Any:
    return compiled_loss(model).get("loss")


def _narrowed(values: np.ndarray, dtype: str) -> np.ndarray:
    """Floats in the dtype of the cache."""
    if not keras.backend.is_float_dtype(str(values.dtype)):
        return values
    largest = float(np.abs(values).max(initial=0))
    if not np.isfinite(largest):  # NaN is the largest where there is one
        raise NonFiniteError("What a teacher answers has to be finite.", received=f"{largest} from the teacher")
    limit = float(np.finfo(dtype).max)
    if largest > limit:
        raise InvalidArgumentError(
            f"{dtype} holds numbers up to {limit:g}.",
            received=f"{largest:g} from the teacher",
            fix='Pass dtype="float32".',
        )
    return values.astype(dtype)
