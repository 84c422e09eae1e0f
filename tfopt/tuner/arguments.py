"""The arguments of `search`, checked and in the form that it works with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.checks import is_whole
from tfopt.core.data.splits import Split, make_folds
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import compile_options
from tfopt.core.models.fingerprints import architecture_fingerprint, fingerprint, model_fingerprint
from tfopt.tuner.code import code_fingerprint
from tfopt.tuner.methods import METHODS
from tfopt.tuner.objective import Objective
from tfopt.tuner.packages import load
from tfopt.tuner.proposers import Proposer
from tfopt.tuner.sources import Budget
from tfopt.tuner.space import SearchSpace


def as_hypermodel(model_or_builder: Any, space: Any, inherit: bool) -> Any:
    """What builds and fits the trials, as a Keras Tuner `HyperModel`."""
    keras_tuner = load("keras_tuner")
    if isinstance(model_or_builder, keras.Model):
        if isinstance(space, dict):
            return SearchSpace.from_model(model_or_builder, **{"inherit": inherit, **space})
        if isinstance(space, SearchSpace):
            return space
        raise InvalidArgumentError(
            "A model needs a `space`: a `SearchSpace`, or a dict of the arguments of `SearchSpace.from_model`.",
            received=repr(space),
            fix="Such as space={'kernel_size': (1, 3, 5), 'width': (0.5, 1), 'lr': (1e-4, 1e-2)}.",
        )
    if space is not None:
        raise InvalidArgumentError("A builder makes its own space; `space` goes with a model.", received=repr(space))
    if isinstance(model_or_builder, keras_tuner.HyperModel):
        return model_or_builder
    if callable(model_or_builder):
        made = keras_tuner.HyperModel(name=getattr(model_or_builder, "__name__", None))
        made.build = model_or_builder
        return made
    raise InvalidArgumentError(
        "`model_or_builder` must be a model, a function `hp -> model` or a `keras_tuner.HyperModel`.",
        received=type(model_or_builder).__name__,
    )


def check_data(hypermodel: Any, train: Any, val: Any, objectives: Sequence[Objective], cv: Any) -> None:
    """Raises for data that do not go together, or not with the space or the objectives."""
    arrays = isinstance(train, tuple) and len(train) in (2, 3)
    if not arrays and not isinstance(train, (tf.data.Dataset, keras.utils.PyDataset)):
        raise InvalidArgumentError(
            "`train` must be `(x, y)`, `(x, y, sample_weights)` or a dataset of batches.", received=type(train).__name__
        )
    if cv is not None and (val is not None or not arrays):
        raise InvalidArgumentError(
            "`cv` splits arrays, and is scored on its folds instead of `val`.",
            received="`val`" if arrays else type(train).__name__,
        )
    if cv is None and val is None and any(objective.name.startswith("val_") for objective in objectives):
        raise InvalidArgumentError("An objective 'val_...' needs data to validate on.", fix="Pass `val` or `cv`.")
    if not arrays and "batch_size" in getattr(hypermodel, "training", {}):
        raise InvalidArgumentError(
            "A space with `batch_size` needs arrays to make batches of.", received=type(train).__name__
        )


def check_place(workers: int, storage: Any, name: Any, proposer: Proposer) -> None:
    """Raises for a storage that the search cannot run on."""
    if storage is None:
        if name is not None:
            raise InvalidArgumentError("`name` is that of a search in a `storage`.", received=repr(name))
        return
    if not isinstance(storage, str) or not isinstance(name, str) or not name:
        raise InvalidArgumentError(
            "A search in a `storage` has the address of a database and a `name`.",
            received=f"{type(storage).__name__} and {name!r}",
            fix="Such as storage='postgresql://user@host/searches', name='first'.",
        )
    if proposer.method.sampler is None:
        able = ", ".join(name for name, method in METHODS.items() if method.sampler is not None)
        raise InvalidArgumentError(
            f"In a `storage` `method` must be one of {able}, or a sampler of Optuna.",
            received=proposer.name,
            fix="Search with `workers=` on one machine, where all methods work.",
        )
    if workers > 1:
        raise InvalidArgumentError(
            "`workers` are those of one call, and calls share a `storage`.",
            received=f"workers={workers}",
            fix="Start the script once for each worker.",
        )


def as_budget(budget: Any) -> Budget:
    """The budget that a number of trials, or a text such as `"600s"`, stands for."""
    if is_whole(budget) and budget >= 1:
        return Budget(int(budget), None)
    if isinstance(budget, str) and budget.endswith("s"):
        try:
            seconds = float(budget[:-1])
        except ValueError:
            seconds = math.nan
        if 0 < seconds < math.inf:
            return Budget(None, seconds)
    raise InvalidArgumentError("`budget` must be a number of trials, or seconds such as '600s'.", received=repr(budget))


def as_folds(cv: Any, train: Any, seed: int) -> tuple[Split, ...]:
    """The folds of the training data to score on; none without `cv`."""
    if cv is None:
        return ()
    return tuple(make_folds(cv, train[1], len(keras.tree.flatten(train[0])[0]), argument="cv", seed=seed))


def parts(train: Any, val: Any, folds: Sequence[Split]) -> list[tuple]:
    """What to train and to validate on, a pair for each training of a trial."""
    if not folds:
        return [(train, val)]
    return [(_rows(train, split.train), _rows(train, split.held_out)) for split in folds]


def _rows(data: tuple, numbers: Any) -> tuple:
    return tuple(keras.tree.map_structure(lambda array: np.asarray(array)[numbers], part) for part in data)


def fingerprints(hypermodel: Any, train: Any, val: Any) -> dict[str, str]:
    """Fingerprints of the space and the data."""
    if isinstance(hypermodel, SearchSpace):
        axes = [[axis.name, list(axis.values)] for axis in hypermodel.axes]
        inherited = model_fingerprint(hypermodel.model) if hypermodel.inherit else ""
        architecture = architecture_fingerprint(hypermodel.model)
        options = compile_options(hypermodel.model)
        written = code_fingerprint(
            [type(hypermodel), *(options[name] for name in ("optimizer", "loss", "loss_weights"))]
        )
        described = [axes, hypermodel.training, hypermodel.inherit, inherited, architecture, written]
    else:
        described = [type(hypermodel).__name__, hypermodel.name or "", code_fingerprint(hypermodel)]
    return {"space": fingerprint(described), "data": fingerprint([_content(train), _content(val)])}


def _content(data: Any) -> Any:
    """Of a dataset its length, the shapes in it, and its first batch unless that is another at each reading."""
    if isinstance(data, tf.data.Dataset):
        about, batches = [str(data.element_spec), int(data.cardinality())], lambda: next(iter(data), ())
    elif isinstance(data, keras.utils.PyDataset):
        about, batches = [type(data).__name__, data.num_batches], lambda: data[0]
    else:
        return data
    first, again = (fingerprint(batches()) for _ in range(2))
    return [*about, first if first == again else ""]
