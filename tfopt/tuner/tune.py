"""The verb `search`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from tfopt.core.checks import as_count, as_seed, plain
from tfopt.core.models.copying import classes_inside
from tfopt.core.models.fingerprints import fingerprint
from tfopt.core.types import Data, Folds
from tfopt.tuner.arguments import as_budget, as_folds, as_hypermodel, check_data, check_place, fingerprints
from tfopt.tuner.folder import search_in_folder
from tfopt.tuner.journal import SearchJournal
from tfopt.tuner.objective import as_constraints, as_objectives
from tfopt.tuner.proposers import as_proposer
from tfopt.tuner.result import SearchResult
from tfopt.tuner.space import SearchSpace
from tfopt.tuner.storage import search_in_storage
from tfopt.tuner.studies import Address
from tfopt.tuner.trainer import Trainer

if TYPE_CHECKING:
    from keras_tuner import Oracle
    from optuna.samplers import BaseSampler


def search(
    model_or_builder: keras.Model | Callable[[Any], keras.Model] | Any,
    space: SearchSpace | dict[str, Any] | None = None,
    *,
    train: Data,
    val: Data = None,
    method: str | BaseSampler | Oracle = "tpe",
    objectives: Any = ("val_accuracy",),
    constraints: Any = (),
    budget: int | str = 20,
    epochs: int = 10,
    batch_size: int = 32,
    executions: int = 1,
    cv: Folds = None,
    inherit: bool = True,
    stop_early: bool = True,
    directory: str | os.PathLike | None = None,
    workers: int = 1,
    storage: str | None = None,
    name: str | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> SearchResult:
    """Trains variants of a model and returns the best that keep to the constraints.

    A constraint on a cost (`parameters`, `macs`, `tflite_bytes`, `latency_ms`) is checked before a variant is trained:
    parameters, MACs and a lower bound of the file size on the built model, in milliseconds; size and latency, if one
    of the two is asked for, on its int8 .tflite with random weights, in seconds, once an architecture. What breaks one
    is recorded as infeasible and not counted in `budget`. Each trial is recorded in a file of its own: called again
    with the same `directory`, the search goes on, a trial that was cut off from its last epoch.

    The random generators of Python, NumPy and TensorFlow are seeded anew for each trial. With one worker and no
    `storage` the same call makes the same trials; several hear of each other's results in the order of their ends.

    Args:
        model_or_builder: a compiled model to vary; or a function `hp -> compiled model`, or a `keras_tuner.HyperModel`.
        space: what to vary of a model: a `SearchSpace`, or a dict of the arguments of `SearchSpace.from_model`.
        train: `(x, y)` or `(x, y, sample_weights)` of arrays, or a `tf.data.Dataset` of batches.
        val: the same, to choose by; not with `cv`.
        method: `"tpe"` and `"nsga2"` (samplers of Optuna), `"random"`, `"grid"` (in random order), `"bayesian"`,
            `"hyperband"` (of Keras Tuner; the last two for one objective). Or a sampler of Optuna, such as
            `optuna.samplers.TPESampler(n_startup_trials=20)`, or a new oracle of Keras Tuner with the same objectives.
            The search works on a copy of it; `budget` takes the place of the oracle's `max_trials`.
        objectives: one name or several: a cost, or what `fit` logs, such as `"val_accuracy"` or `"val_loss"`. For
            others the direction goes with it: `("val_iou", "max")`. The first that `fit` logs chooses the epoch.
        constraints: such as `"tflite_bytes <= 100_000"`, `"latency_ms <= 2"`, `"val_accuracy >= 0.9"`.
        budget: number of trials, or seconds as in `"600s"`, over all calls with one `directory` or `storage`. Trainings
            end with the epoch in which the time is up.
        epochs: of each training; with `"hyperband"` the most.
        batch_size: in samples, for arrays, where the space does not choose it.
        executions: trainings of each trial from other seeds, whose mean counts.
        cv: a number of folds of `train`, a splitter of scikit-learn, or pairs (train, held out) of arrays of sample
            numbers, instead of `val`; the mean over the folds counts.
        inherit: where `space` is a dict: variants start from the weights of the model.
        stop_early: ends a training whose best epoch is worse than the median of the others after as many epochs,
            compared with those trials only that cost no more. Not with `"hyperband"`.
        directory: where trials are recorded, made if it is not there; None keeps them until the result is deleted. With
            `storage` it holds models and trainings under way, and is best one that all machines share.
        workers: number of processes that run trials, each a new interpreter with its share of the processors. The
            space must be picklable; a `tf.data.Dataset` is written to `directory` once, with what it draws then. A
            worker that dies is replaced and its trial goes on from its last epoch; after three deaths the trial has
            failed. Files are measured by one process at a time, while other workers may train: with `"latency_ms"`
            leave processors free. Needs `cloudpickle`, of `tfopt[search]`.
        storage: address of a database, such as `"postgresql://user:password@host/database"`: every process that makes
            this call, on any machine, is a worker of one search. The trial of a worker that dies is taken over. For
            `"tpe"`, `"nsga2"`, `"random"` and samplers, whose seed is then another in each process. PostgreSQL needs
            `pip install tfopt[distributed]`; SQLite (`"sqlite:///path"`) does for one machine.
        name: of the search in `storage`.
        seed: of the method and of each trial.
        verbose: 1 shows a progress bar.

    Returns:
        A frozen `SearchResult`: `best`, `best_models(n)`, `pareto`, all `trials` with the reason for each that
        failed; prints as a table, shows in Jupyter, saves as a page with plots, `to_dataframe()`.

    Raises:
        InvalidArgumentError: options that do not fit, an objective that is not logged, a missing package, or a
            `directory` or `storage` with a search of other settings.
        FileError: `directory` cannot be written, or holds something else.
        TfoptError: the database cannot be reached, or workers cannot load the space and the data.

    Example:
        >>> import numpy as np
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((4,)), dense(8, "relu"), dense(2, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> data = np.eye(4), np.array([0, 1, 0, 1])
        >>> space = {"width": (0.5, 1, 2), "lr": (1e-3, 1e-1)}
        >>> found = search(model, space, train=data, val=data, budget=2, epochs=1, constraints="macs <= 60", verbose=0)
        >>> found.best.figures["macs"] <= 60, len(found.best_models(1))
        (True, 1)
    """
    goals, limits = as_objectives(objectives), as_constraints(constraints)
    hypermodel = as_hypermodel(model_or_builder, space, inherit)
    epochs, batch_size = as_count("epochs", epochs), as_count("batch_size", batch_size)
    executions, workers, seed = as_count("executions", executions), as_count("workers", workers), as_seed(seed)
    cv, verbose = plain(cv), plain(verbose)
    check_data(hypermodel, train, val, goals, cv)
    folds = as_folds(cv, train, seed)
    proposer = as_proposer(method, goals)
    check_place(workers, storage, name, proposer)
    amount = as_budget(budget)
    if storage is None:
        proposes = proposer.oracle(goals, seed=seed, epochs=epochs, constrained=bool(limits))
    else:
        proposes = proposer.shared_sampler()
    settings = fingerprints(hypermodel, train, val)
    asked, splits = [str(part) for part in (*goals, *limits)], [[fold.train, fold.held_out] for fold in folds]
    options = [proposer.identity, asked, epochs, batch_size, executions, splits, stop_early, seed]
    settings["settings"] = fingerprint(options)
    folder = None if directory is None else Path(directory).absolute()  # the working directory may change
    trainer = Trainer(
        space=hypermodel,
        journal=SearchJournal(folder, settings, shared=storage is not None, classes=_own_classes(hypermodel)),
        objectives=goals,
        constraints=limits,
        train=train,
        val=val,
        folds=folds,
        executions=executions,
        epochs=epochs,
        batch_size=batch_size,
        stop_early=stop_early and not proposer.method.sets_epochs,
        seed=seed,
    )
    if storage is None:
        found = search_in_folder(trainer, proposes, workers, amount, verbose)
    else:
        found = search_in_storage(trainer, Address(storage, str(name), settings), proposes, amount, verbose)
    return SearchResult(hypermodel.name or "builder", proposer.name, goals, limits, tuple(found), trainer.journal)


def _own_classes(hypermodel: Any) -> dict[str, type]:
    """The classes of layers in the model to vary, so that its trained variants load without being told of them."""
    model = getattr(hypermodel, "model", None)
    classes = classes_inside(model) if isinstance(model, keras.Model) else {}
    return {name: cls for name, cls in classes.items() if not cls.__module__.startswith(("keras.", "tfopt."))}
