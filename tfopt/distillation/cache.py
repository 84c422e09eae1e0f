"""The verb `cache_teacher`: what a teacher says about a data set, computed once and kept for every epoch after."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.data import Batch, as_inputs, paired_batches, whole_batch
from tfopt.core.errors import InvalidArgumentError, NonFiniteError
from tfopt.core.fingerprints import computation_fingerprint
from tfopt.core.graph import check_finite, check_model
from tfopt.core.keras_internals import functional_of
from tfopt.core.progress import progress
from tfopt.distillation.features import observed
from tfopt.distillation.heads import heads_of, to_scores
from tfopt.distillation.shards import Rows, ShardFolder, ShardTable, check_columns

CHUNK_BYTES = 2**22  # read at once: the cost of a call is shared by many small batches
CHUNK_BATCHES = 32


class Taught(NamedTuple):
    """What `x` is in a batch of a cached data set.

    Args:
        inputs: what the student gets.
        outputs: the teacher's outputs in their structure; logits, or log-probabilities, of a softmax or sigmoid.
        features: layer path -> what the layer of the teacher gives.
    """

    inputs: Any
    outputs: Any
    features: dict[str, Any]


def cache_teacher(
    teacher: keras.Model,
    data: Any,
    path: str | os.PathLike | None = None,
    *,
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
        teacher: a built Sequential or Functional model. It runs as in `predict`, without dropout.
        data: `x`, `(x, y)` or `(x, y, sample_weights)` of arrays, lists or dicts of arrays, which are not copied; or a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or an iterator of batches of that form, whose samples are kept
            beside the answers.
        path: of a folder to keep the cache in, or None to keep it in memory. A call that was stopped goes on where it
            was; a complete folder is opened and the teacher does not run. Training reads what it needs from it, not
            the whole into memory. Labels and sample weights of arrays are not kept: they may change.
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
            teacher, data or settings, or the answers exceed float16.
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
    check_finite(check_model(teacher))
    layers = _checked_arguments(dtype, layers, batch_size, seed)
    answers = _Answers(teacher, layers, dtype)
    whole = whole_batch(teacher, data)
    store: _Memory | ShardFolder = _Memory()
    run_size = batch_size
    if path is not None:
        settings = {"teacher": computation_fingerprint(teacher), "dtype": dtype, "layers": layers}
        settings["form of the data"] = "a data set" if whole is None else "arrays"
        store = ShardFolder(path, settings, batch_size)
        run_size = store.batch_size
    total = _batches_in(data) if whole is None else -(-len(whole.inputs[0]) // run_size)
    with progress("cache_teacher", total, verbose) as step:
        for batch in paired_batches(teacher, data, batch_size=run_size):
            _add(store, batch, answers, is_whole=whole is not None)
            step()
    tables = [store.finish()] if whole is None else [MemoryTable(_columns(_given(whole))), store.finish()]
    names = {part: _names(part, structure) for part, structure in {**_given(batch), **answers.structure}.items()}
    labels = [names[part] for part in ("targets", "weights") if part in names]
    element = Taught(names["inputs"], names["outputs"], names["features"]), *labels
    return TeacherCache(_Feed(tables, batch_size, shuffle, seed), element)


class TeacherCache(tf.data.Dataset):
    """A data set of `(Taught(inputs, outputs, features), y, sample_weight)`, as far as there are y and weights.

    `fit` of a Distiller takes it in place of x and y. Its batches are `tf.data`'s, and `rebatch` gives others.

    Args:
        feed: the rows and their order.
        element: structure of a batch with the names of the columns in it.
    """

    def __init__(self, feed: _Feed, element: Any):
        self._feed = feed
        self._pipeline = _pipeline(feed, element)
        super().__init__(self._pipeline._variant_tensor)

    @property
    def epoch(self) -> int:
        """The number of the next pass over the data, from 0. It decides the order, with the seed; a pass adds one."""
        return self._feed.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._feed.epoch = epoch

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self._feed)

    @property
    def element_spec(self) -> Any:
        """Structure, dtypes and shapes of a batch."""
        return self._pipeline.element_spec

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._pipeline]

    def __repr__(self) -> str:
        return f"<TeacherCache of {self.samples} samples: {self.element_spec}>"


class MemoryTable:
    """Rows in memory.

    Args:
        rows: column -> array, which is not copied.
    """

    def __init__(self, rows: Rows):
        self._rows = rows

    def __len__(self) -> int:
        return len(next(iter(self._rows.values())))

    @property
    def columns(self) -> dict[str, np.dtype]:
        """Name -> dtype with the shape of a row."""
        return {name: np.dtype((column.dtype, column.shape[1:])) for name, column in self._rows.items()}

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at the indices, as arrays of their own."""
        return {name: np.asarray(column).take(indices, axis=0) for name, column in self._rows.items()}


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


class _Answers:
    """Runs the teacher on batches. Nothing runs before the first."""

    def __init__(self, teacher: keras.Model, layers: Sequence[str], dtype: str):
        self._teacher = teacher
        self._observed = observed(teacher, layers)
        self._dtype = dtype
        outputs = functional_of(teacher).output
        is_single = isinstance(outputs, (list, tuple)) and len(outputs) == 1
        self.structure = {"outputs": outputs[0] if is_single else outputs, "features": dict.fromkeys(layers)}

    def __call__(self, batch: Batch) -> Rows:
        answers = self._run(as_inputs(self._teacher, batch.inputs))
        return {name: _narrowed(values.numpy(), self._dtype) for name, values in answers.items()}

    @cached_property
    def _run(self) -> Callable[[Any], dict[str, tf.Tensor]]:
        heads = heads_of(self._teacher)

        def run(inputs):
            outputs, features = self._observed(inputs, training=False)
            flat = keras.tree.flatten(outputs)
            scores = [to_scores(head, values) for head, values in zip(heads, flat, strict=True)]
            return _columns({"outputs": scores, "features": features})

        signature = keras.tree.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), functional_of(self._teacher).input
        )
        return tf.function(run, input_signature=[signature])


class _Feed:
    """Which rows come next."""

    def __init__(self, tables: Sequence[MemoryTable | ShardTable], batch_size: int, shuffle: bool, seed: int):
        self._tables = tables
        self.batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._tables[0])

    @property
    def columns(self) -> dict[str, np.dtype]:
        """Name -> dtype with the shape of a row; what is float64 comes as Keras' float, as in `fit` with arrays."""
        columns = {name: dtype for table in self._tables for name, dtype in table.columns.items()}
        return {
            name: np.dtype((keras.config.floatx(), dtype.shape)) if dtype.base == np.float64 else dtype
            for name, dtype in columns.items()
        }

    @property
    def batches_at_once(self) -> int:
        """How many whole batches to read in one call."""
        size = self.batch_size * sum(dtype.itemsize for dtype in self.columns.values())
        return max(1, min(CHUNK_BATCHES, CHUNK_BYTES // size))

    def order(self) -> np.ndarray:
        """The indices of the rows in the order of the next pass."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        if not self._shuffle:
            return np.arange(len(self))
        return np.random.default_rng([self._seed, epoch]).permutation(len(self))

    def take(self, indices: np.ndarray) -> list[np.ndarray]:
        """The rows at indices (batches, samples), a list of columns."""
        taken = [table.take(indices.ravel()) for table in self._tables]
        rows = {name: column for part in taken for name, column in part.items()}
        return [
            rows[name].astype(dtype.base, copy=False).reshape(*indices.shape, *dtype.shape)
            for name, dtype in self.columns.items()
        ]


def _pipeline(feed: _Feed, element: Any) -> tf.data.Dataset:
    """Batches of the structure `element`.

    Python reads many small batches in one call and TensorFlow takes them apart: a third of what a `PyDataset` costs.
    """
    size = feed.batch_size
    rest = len(feed) % size

    def order(_):
        return tf.ensure_shape(tf.numpy_function(feed.order, [], tf.int64), [len(feed)])

    def indices(order):
        whole = tf.data.Dataset.from_tensor_slices(tf.reshape(order[: len(feed) - rest], [-1, size]))
        last = tf.data.Dataset.from_tensors(order[None, len(feed) - rest :])
        return whole.batch(feed.batches_at_once).concatenate(last) if rest else whole.batch(feed.batches_at_once)

    def batches(indices):
        columns = feed.columns
        rows = tf.numpy_function(feed.take, [indices], [dtype.base for dtype in columns.values()])
        named = {
            name: tf.ensure_shape(row, (None, None, *dtype.shape))
            for (name, dtype), row in zip(columns.items(), rows, strict=True)
        }
        return tf.data.Dataset.from_tensor_slices(keras.tree.map_structure(lambda name: named[name], element))

    options = tf.data.Options()
    # The order is in the memory of this process, which is where the batches are made under a distribution strategy too.
    options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    count = tf.data.experimental.assert_cardinality(-(-len(feed) // size))
    made = tf.data.Dataset.range(1).map(order).flat_map(indices).flat_map(batches)
    return made.apply(count).with_options(options).prefetch(tf.data.AUTOTUNE)


def _add(store: _Memory | ShardFolder, batch: Batch, answers: _Answers, is_whole: bool) -> None:
    """Adds the answers; the samples too, unless they are at hand as whole arrays."""
    kept = {} if is_whole else _columns(_given(batch))
    store.add(list(kept.values()) or batch.inputs, lambda: {**kept, **answers(batch)})


def _given(batch: Batch) -> dict[str, Any]:
    """The parts of a batch that came with the data, without those that are None."""
    parts = {"inputs": batch.given, "targets": batch.targets, "weights": batch.weights}
    return {part: structure for part, structure in parts.items() if structure is not None}


def _columns(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The values of structures under the names that `_names` gives."""
    flat = {part: keras.tree.flatten(structure) for part, structure in parts.items()}
    return {f"{part}_{i}": value for part, values in flat.items() for i, value in enumerate(values)}


def _names(part: str, structure: Any) -> Any:
    """The structure with the names of columns in place of values; tuples for lists, which tf.data takes for tensors."""
    names = [f"{part}_{i}" for i in range(len(keras.tree.flatten(structure)))]
    return keras.tree.pack_sequence_as(keras.tree.lists_to_tuples(structure), names)


def _narrowed(values: np.ndarray, dtype: str) -> np.ndarray:
    """Floats in the dtype of the cache."""
    if not keras.backend.is_float_dtype(values.dtype):
        return values
    if not np.isfinite(values.astype("float32")).all():
        raise NonFiniteError("What the teacher gives has to be finite.", received="NaN or infinity")
    largest = float(np.abs(values).max(initial=0))
    if largest > np.finfo(dtype).max:
        raise InvalidArgumentError(
            f"{dtype} holds numbers up to {np.finfo(dtype).max:g}.",
            received=f"{largest:g} from the teacher",
            fix='Pass dtype="float32".',
        )
    return values.astype(dtype)


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


def _checked_arguments(dtype: str, layers: str | Sequence[str], batch_size: int, seed: int) -> list[str]:
    """The layers, as a list without repetitions."""
    if dtype not in ("float16", "float32"):
        raise InvalidArgumentError('`dtype` is "float16" or "float32".', received=repr(dtype))
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InvalidArgumentError(f"`{name}` is a whole number of at least {least}.", received=repr(value))
    listed = [layers] if isinstance(layers, str) else layers
    if not isinstance(listed, (list, tuple)) or not all(isinstance(path, str) for path in listed):
        raise InvalidArgumentError("`layers` is a path of a layer or a list of them.", received=repr(layers))
    return sorted(set(listed))
