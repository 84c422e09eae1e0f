"""The verb `cache_teacher`: what a teacher says about a data set, computed once and kept for every epoch after."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.checks import as_choice, as_count, as_names, as_seed
from tfopt.core.data.batches import Batch, paired_batches, whole_batch
from tfopt.core.data.inputs import inputs_of, is_numbered
from tfopt.core.data.pairs import names_its_outputs, output_names
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.graph import with_graph
from tfopt.core.reporting.progress import progress
from tfopt.core.types import Data
from tfopt.distillation.answers import Answers, columns_of, names_in
from tfopt.distillation.feed import Feed, MemoryTable, batches_of
from tfopt.distillation.shards import Rows, ShardFolder, check_columns
from tfopt.distillation.taught import Taught


def cache_teacher(
    teacher: Any,
    data: Data,
    path: str | os.PathLike | None = None,
    *,
    teacher_weights: Sequence[float] | None = None,
    dtype: str = "float16",
    layers: str | Sequence[str] = (),
    batch_size: int = 64,
    shuffle: bool = True,
    seed: int = 0,
    verbose: int = 1,
) -> TeacherCache:
    """Runs the teacher once over data and keeps what it gives, so that no epoch of `Distiller.fit` runs it again.

    The teacher's answers belong to the very samples that it saw. Where training is to see other ones in each epoch, by
    random augmentation in the data or in the student, a cache is wrong: pass the teacher itself to the Distiller. What
    a random data set gives while the cache is made is kept, and is then the same in every epoch.

    Args:
        teacher: a built Keras model, which runs as in `predict`; or a list of them, of which the
            mean of the probabilities is kept.
        data: `x`, `(x, y)` or `(x, y, sample_weights)` of arrays, lists or dicts of arrays, which are not copied; or a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or an iterator of batches of that form, whose samples are kept
            beside the answers.
        path: of a folder to keep the cache in, or None to keep it in memory. A call that was stopped goes on where it
            was; a complete folder is opened and the teacher does not run. Training reads what it needs from it, not
            the whole into memory. Labels and sample weights of arrays are not kept: they may change.
        teacher_weights: of several teachers, as for `Distiller`.
        dtype: "float16" or "float32", of the answers.
        layers: whose features to keep as well, those of nested models by path: `"backbone/block3/relu"`.
        batch_size: of the batches that the teacher and then `fit` get. A data set has its own for the teacher.
        shuffle: in another order in each epoch.
        seed: of the orders: the same in every process.
        verbose: 1 shows progress.

    Returns:
        A `TeacherCache`, to be passed to `fit` in place of x and y.

    Raises:
        InvalidArgumentError: an argument is out of range, the data have a wrong form, `path` holds a cache of another
            teacher, data or settings, teachers do not fit together, or the answers exceed float16.
        NonFiniteError: NaN or infinity in the teacher, the data or the answers.
        FileError: `path` is not the folder of a cache, or a file in it is damaged.
        UnsupportedModelError: the teacher has no layer graph.

    Example:
        >>> teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
        >>> cache = cache_teacher(teacher, (np.ones((100, 2)), np.zeros(100)), verbose=0)
        >>> taught, y = next(iter(cache))
        >>> tuple(taught.inputs.shape), tuple(taught.outputs.shape), tuple(y.shape), len(cache)
        ((64, 2), (64, 3), (64,), 2)
    """
    teacher = with_graph(teacher)
    layers = sorted(set(as_names("layers", layers, what="a path of a layer or a list of them")))
    dtype = as_choice("dtype", dtype, ("float16", "float32"))
    batch_size, seed = as_count("batch_size", batch_size), as_seed(seed)
    answers = Answers(teacher, teacher_weights, layers=layers, dtype=dtype)
    whole = whole_batch(answers.model, data)
    store: _Memory | ShardFolder = _Memory()
    run_size = batch_size
    if path is not None:
        form = {"form of the data": "a data set" if whole is None else "arrays"}
        store = ShardFolder(path, {**answers.settings, **form}, batch_size)
        run_size = store.batch_size
    total = _batches_in(data) if whole is None else -(-len(whole.inputs[0]) // run_size)
    with progress("cache_teacher", total, verbose) as step:
        for batch in paired_batches(answers.model, data, batch_size=run_size):
            _add(store, batch, answers, is_whole=whole is not None)
            step()
    tables = [store.finish()] if whole is None else [MemoryTable(columns_of(_given(whole))), store.finish()]
    names = {part: names_in(part, structure) for part, structure in {**_given(batch), **answers.structure}.items()}
    labels = [names[part] for part in ("targets", "weights") if part in names]
    inputs, outputs = _by_name(names["inputs"], names["outputs"], answers.model)
    element = Taught(inputs, outputs, names["features"]), *labels
    return TeacherCache(Feed(tables, batch_size, shuffle, seed), element)


class TeacherCache(tf.data.Dataset):
    """A data set of `(Taught(inputs, outputs, features), y, sample_weight)`, as far as there are y and weights.

    `fit` of a Distiller takes it in place of x and y, with another `batch_size` if one is given.

    Args:
        feed: the rows and their order.
        element: structure of a batch with the names of the columns in it.
    """

    def __init__(self, feed: Feed, element: Any):
        self._feed, self._element = feed, element
        self._pipeline = batches_of(feed, element)
        super().__init__(self._pipeline._variant_tensor)

    @property
    def epoch(self) -> int:
        """The number of the next pass over the data, from 0. It decides the order, with the seed; a pass adds one."""
        return self._feed.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._feed.epoch = epoch

    def in_order(self, callbacks: Any) -> Any:
        """The callbacks of a `fit` with one more, by which an epoch has the same order in a `fit` that was resumed."""
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(_InOrder(self))
            return callbacks
        given = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks] if callbacks else []
        return [*given, _InOrder(self)]

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self._feed)

    def rebatch(self, batch_size: int, drop_remainder: bool = False, name: str | None = None) -> tf.data.Dataset:
        """The same data in batches of another size; as every `tf.data.Dataset` has it."""
        if drop_remainder:
            return super().rebatch(batch_size, drop_remainder, name)
        return TeacherCache(self._feed.rebatched(batch_size), self._element)

    @property
    def element_spec(self) -> Any:
        """Structure, dtypes and shapes of a batch."""
        return self._pipeline.element_spec

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._pipeline]

    def __repr__(self) -> str:
        return f"<TeacherCache of {self.samples} samples: {self.element_spec}>"


class _InOrder(keras.callbacks.Callback):
    """Tells a cache which epoch it is."""

    def __init__(self, cache: TeacherCache):
        super().__init__()
        self._cache = cache

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._cache.epoch = epoch


class _Memory:
    """What `ShardFolder` is on disk."""

    def __init__(self) -> None:
        self._batches: list[Rows] = []

    def add(self, samples: Sequence[np.ndarray], rows: Callable[[], Rows]) -> None:
        self._batches.append(rows())
        check_columns(self._batches[0], self._batches[-1])

    def finish(self) -> MemoryTable:
        names = list(self._batches[0])
        return MemoryTable({name: np.concatenate([rows.pop(name) for rows in self._batches]) for name in names})


def _add(store: _Memory | ShardFolder, batch: Batch, answers: Answers, is_whole: bool) -> None:
    """Adds the answers; the samples too, unless they are at hand as whole arrays."""
    kept = {} if is_whole else columns_of(_given(batch))
    store.add(list(kept.values()) or batch.inputs, lambda: {**kept, **answers(batch)})


def _by_name(inputs: Any, outputs: Any, teacher: keras.Model) -> tuple[Any, Any]:
    """Several inputs and outputs as dicts where the teacher has names for all: the student may have another order."""
    keys = [own.name for own in inputs_of(teacher)]
    if isinstance(inputs, tuple) and len(inputs) == len(keys) and not any(map(is_numbered, keys)):
        inputs = dict(zip(keys, inputs, strict=True))
    if isinstance(outputs, tuple) and len(outputs) == len(teacher.outputs) and names_its_outputs(teacher):
        outputs = dict(zip(output_names(teacher), outputs, strict=True))
    return inputs, outputs


def _given(batch: Batch) -> dict[str, Any]:
    """The parts of a batch that came with the data, without those that are None."""
    parts = {"inputs": batch.given, "targets": batch.targets, "weights": batch.weights}
    return {part: structure for part, structure in parts.items() if structure is not None}


def _batches_in(data: Any) -> int | None:
    """Of a data set or an iterator, where it is known; raises for one that never ends."""
    known = None
    if isinstance(data, keras.utils.PyDataset):
        known = data.num_batches
        is_endless = known is None
    else:
        cardinality = int(data.cardinality()) if isinstance(data, tf.data.Dataset) else tf.data.UNKNOWN_CARDINALITY
        is_endless = cardinality == tf.data.INFINITE_CARDINALITY
        known = cardinality if cardinality >= 0 else None
    if is_endless:
        raise InvalidArgumentError(
            "A cache holds one pass over the data.", received="a data set without end", fix="Leave out `repeat`."
        )
    return known
