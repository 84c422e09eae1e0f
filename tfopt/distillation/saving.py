"""How a Distiller is written to files and read again."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from tfopt.core.models.constraints import constrained


class SavedWithTeacher(keras.Model):
    """A model whose `.keras` file holds a student, a teacher and losses, and whose weights are without the teacher's.

    Keras does not know of the teacher as a part of the model. When it saves, it finds it as an attribute.
    """

    student: keras.Model
    teacher: Any
    distillation_losses: list
    alpha: float
    temperature: float
    teacher_weights: Sequence[float] | None
    _given: Any
    _options: dict[str, Any]
    _was_constrained = False

    def warn_of_lost_masks(self) -> None:
        """Warns where a student was pruned or clustered before it was saved, and is not any more."""
        if self._was_constrained and not constrained(self.student):
            warnings.warn(
                "The student was pruned or clustered when this Distiller was saved. Masks and clusters are in no file: "
                "this `fit` does not hold them. Put `tfopt.prune(student, sparsity='keep')` into a new Distiller.",
                stacklevel=3,
            )

    def save_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the weights of student, projections and optimizer."""
        with self._teacher_aside():
            super().save_weights(filepath, *args, **kwargs)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Loads what `save_weights` saved."""
        with self._teacher_aside():
            super().load_weights(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, the models in full."""
        serialize = keras.saving.serialize_keras_object
        return {
            "student": serialize(self.student),
            "teacher": serialize(self.teacher),
            "losses": None if self._given is None else [serialize(loss) for loss in self.distillation_losses],
            "alpha": self.alpha,
            "temperature": self.temperature,
            "teacher_weights": None if self.teacher_weights is None else list(self.teacher_weights),
            "name": self.name,
            "constrained": self._was_constrained or bool(constrained(self.student)),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> SavedWithTeacher:
        """A Distiller of the same models with new weights."""
        config = dict(config)
        was_constrained = config.pop("constrained", False)
        parts = {name: config[name] for name in ("student", "teacher", "losses")}
        loaded = {
            name: keras.saving.deserialize_keras_object(part, custom_objects=custom_objects)
            for name, part in parts.items()
        }
        distiller = cls(**{**config, **loaded})
        object.__setattr__(distiller, "_was_constrained", was_constrained)
        return distiller

    def get_compile_config(self) -> dict[str, Any]:
        """The arguments of `compile`."""
        return {**super().get_compile_config(), **self._options} if self.compiled else {}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as a saved Distiller was, for Keras to load the state of the optimizer."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @contextlib.contextmanager
    def _teacher_aside(self) -> Iterator[None]:
        teacher = self.teacher
        object.__setattr__(self, "teacher", None)
        try:
            yield
        finally:
            object.__setattr__(self, "teacher", teacher)
