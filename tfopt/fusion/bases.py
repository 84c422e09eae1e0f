"""The base models of a stack: trained from the start as often as needed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from tfopt.core.checks import as_count
from tfopt.core.data.pairs import as_read_by
from tfopt.core.data.samples import Labelled, labelled
from tfopt.core.data.training import ShuffledBatches, compile_alike
from tfopt.core.errors import InvalidArgumentError, UnsupportedModelError
from tfopt.core.keras_internals import compile_options
from tfopt.core.models.constraints import constrained
from tfopt.core.models.fake_quantized import check_not_quantized
from tfopt.core.models.fingerprints import fingerprint
from tfopt.core.models.graph import check_finite, read
from tfopt.core.models.rewrite import untrained
from tfopt.fusion.predictions import one_output

FIT_OPTIONS = ("batch_size", "callbacks", "class_weight", "validation_data", "validation_batch_size", "validation_freq")
BATCH_SIZE = 32


@dataclass(frozen=True)
class Training:
    """How models are trained: epochs, the order of samples, and further arguments of `fit`."""

    epochs: int
    seed: int
    options: Mapping[str, Any]

    @classmethod
    def of(cls, epochs: Any, seed: int, options: Mapping[str, Any] | None, argument: str) -> Training:
        epochs = as_count("epochs", epochs)
        unknown = sorted(set(options or {}) - set(FIT_OPTIONS))
        if unknown:
            raise InvalidArgumentError(
                f"`{argument}` holds arguments of `model.fit` among {', '.join(FIT_OPTIONS)}.",
                received=", ".join(unknown),
                fix="`epochs` is an argument of its own; samples are shuffled, and nothing is printed.",
            )
        return cls(epochs, seed, dict(options or {}))

    @property
    def batch_size(self) -> int:
        return self.options.get("batch_size", BATCH_SIZE)

    def of_base(self, base: Base, first: Base) -> Training:
        """The training with validation data that have their inputs in the order of a base model, not of the first."""
        data = self.options.get("validation_data")
        if base is first or data is None or len(first.model.inputs) == 1:
            return self
        held_out = labelled(first.model, data, "validation_data")
        x = as_read_by(base.model, held_out.x, first.model)
        return replace(self, options={**self.options, "validation_data": replace(held_out, x=x).parts})

    def run(self, model: keras.Model, samples: Labelled, *key: int) -> int:
        """Trains a compiled model; `key` and the seed tell the order of samples. Returns the epochs that ran."""
        batches = ShuffledBatches(samples, self.batch_size, seed_of(self.seed, *key))
        options = {name: value for name, value in self.options.items() if name != "batch_size"}
        return len(model.fit(batches, epochs=self.epochs, shuffle=False, verbose=0, **options).epoch)


class Trainee:
    """One compiled model that is trained from the start again and again, so that its functions are traced once.

    Args:
        build: gives a compiled model with new initial values, alike each time.
    """

    def __init__(self, build: Callable[[], keras.Model]):
        self._build = build
        self.model = build()
        optimizer = self.model.optimizer
        optimizer.build(self.model.trainable_variables)
        self._optimizer_start = [keras.ops.convert_to_numpy(variable) for variable in optimizer.variables]

    def restart(self, seed: int) -> keras.Model:
        """The model with new initial values, which the seed tells; all that it learned before is gone."""
        for variable, value in zip(_state(self.model), _state(self.fresh(seed)), strict=True):
            variable.assign(value)
        for variable, value in zip(self.model.optimizer.variables, self._optimizer_start, strict=True):
            variable.assign(value)
        return self.model

    def fresh(self, seed: int) -> keras.Model:
        """Another model, with the same initial values."""
        with _initial_values(seed):
            model = self._build()
        if model is self.model:
            raise InvalidArgumentError(
                "A function that builds a base model gives a new one each time.",
                received=f"'{model.name}' twice",
                fix="Build it inside the function, or pass the model itself.",
            )
        return model


class Base(Trainee):
    """A base model, given as a compiled model or as a function that builds one.

    Args:
        given: what the user gave.
        place: its number among the base models.
    """

    def __init__(self, given: Any, place: int):
        self.place = place
        build = _builder(given) if isinstance(given, keras.Model) or not callable(given) else given
        super().__init__(lambda: _checked(build()))

    def samples(self, samples: Labelled, first: Base) -> Labelled:
        """The samples of the first base model with the inputs as this model takes them."""
        return labelled(self.model, (as_read_by(self.model, samples.x, first.model), samples.y), "x, y")

    @property
    def width(self) -> int:
        """How many numbers the model gives for a sample."""
        return self.model.outputs[0].shape[1]

    @property
    def fingerprint(self) -> str:
        """Of structure, compile options and the values that training does not make; numbers in names do not count."""
        structure = re.sub(r'_\d+"', '"', self.model.to_json())
        kept = [layer for _, layer in read(self.model).layers if not layer.trainable or hasattr(layer, "adapt")]
        values = [keras.ops.convert_to_numpy(variable) for layer in kept for variable in layer.variables]
        return fingerprint([structure, values])


@contextmanager
def _initial_values(seed: int) -> Iterator[None]:
    """Inside, the seeds that Keras draws for initial values and Dropout are those of `seed`."""
    state = random.getstate()
    random.seed(seed)  # `keras.random.make_default_seed` asks Python's generator
    try:
        yield
    finally:
        random.setstate(state)


def seed_of(*numbers: int) -> int:
    """One seed for a piece of work, another for any other."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _state(model: keras.Model) -> list[keras.Variable]:
    """Weights and the states of random generators, as of Dropout; not those of metrics."""
    measured = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in measured]


def bases_of(models: Any) -> list[Base]:
    """The base models, checked."""
    if isinstance(models, (keras.Model, str)) or not isinstance(models, Sequence) or not len(models):
        raise InvalidArgumentError(
            "`models` is a list of compiled models, or of functions that build them.", received=repr(models)
        )
    return [Base(given, place) for place, given in enumerate(models)]


def _builder(model: Any) -> Callable[[], keras.Model]:
    """A function that builds the model again, compiled alike."""
    graph = read(model)
    check_finite(graph)
    check_not_quantized(graph, "stack")
    if constrained(model):
        raise UnsupportedModelError(
            "Base models are trained from the start, without what `prune` and `cluster` made of their weights.",
            received=f"'{model.name}', pruned or clustered",
            fix="Stack the plain models, then prune or cluster the result.",
        )
    options = compile_options(model, metrics=True) if model.compiled else {}

    def build() -> keras.Model:
        copy = untrained(graph).model
        if options.get("loss") is not None:
            compile_alike(copy, options)
        return copy

    return build


def _checked(model: Any) -> keras.Model:
    read(model)
    one_output(model, "stack")
    if not model.compiled or compile_options(model)["loss"] is None:
        raise InvalidArgumentError(
            "A base model is trained with its own optimizer and loss, and so has to be compiled.",
            received=f"'{model.name}', not compiled or without a loss",
            fix="Call `model.compile(optimizer, loss)` first, also in a function that builds it.",
        )
    if len(model.outputs[0].shape) != 2 or None in model.outputs[0].shape[1:]:
        raise UnsupportedModelError(
            "A base model gives one row of numbers a sample.",
            received=f"'{model.name}' with outputs of shape {model.outputs[0].shape}",
        )
    return model
