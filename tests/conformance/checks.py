"""What each verb does to the model of a row, found out by running it."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from conformance.rows import Row, inputs_for, randomized

import tfopt
from tfopt.core.keras_internals import sublayers
from tfopt.core.models.graph import read
from tfopt.core.models.rewrite import rewrite

CLUSTERS = 4
REFUSALS = (ValueError, TypeError, NotImplementedError)  # tfopt's errors are ValueErrors


@functools.lru_cache(maxsize=2)
def subject(row: Row):
    """The model of a row and data for it."""
    keras.utils.set_random_seed(0)
    model = randomized(row.build())
    return model, inputs_for(model)


def outputs_of(model: keras.Model, x) -> list[np.ndarray]:
    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


def heard(call: Callable[[], object]) -> tuple[str, object]:
    """What a verb warns of and what it gives; of one that refuses the text of its error and None."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = call()
        except REFUSALS as error:
            return str(error), None
    return " ".join(str(warning.message) for warning in caught), value


def classes_in(model: keras.Model) -> set[type]:
    """The classes of all layers and ops of a model."""
    found = {type(tensor._keras_history.operation) for tensor in model.inputs}
    for graph in [read(model), *(read(part) for _, part in read(model).layers if isinstance(part, keras.Model))]:
        for call in graph.calls:
            found |= {type(call.op), *map(type, sublayers(call.op))}
    return found


def check_equal(model: keras.Model, copy: keras.Model, x, opened: bool = False) -> None:
    """The copy has the same layers and weights and computes the same; `opened` where layers became several."""
    layers = [[(path, type(layer)) for path, layer in read(each).layers] for each in (model, copy)]
    assert opened or layers[0] == layers[1]
    for old, new in zip(model.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(np.array(new), np.array(old))
    for old, new in zip(outputs_of(model, x), outputs_of(copy, x), strict=True):
        np.testing.assert_array_equal(new, old)


def check_copy(row: Row) -> None:
    model, x = subject(row)
    check_equal(model, rewrite(read(model)).model, x)


def changed_weights(model: keras.Model, other: keras.Model) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """`(path, values before, values after)` of each weight that the two models differ in."""
    pairs = ((old.path, np.array(old), np.array(new)) for old, new in zip(model.weights, other.weights, strict=True))
    return [(path, old, new) for path, old, new in pairs if not np.array_equal(old, new)]


def is_around(path: str) -> bool:
    """True for a layer that stands around the tested ones."""
    return path.startswith(("front_", "back_"))


def tested(changed: list[tuple[str, np.ndarray, np.ndarray]]) -> tuple[str, ...]:
    """The paths of changed weights inside the tested layers, each once."""
    return tuple(dict.fromkeys(path.partition("/")[2] for path, *_ in changed if not is_around(path)))


def pruned_kernels(row: Row) -> tuple[str, ...]:
    """The tested layers' weights that `prune` masks; half of each is zero."""
    model, _ = subject(row)
    _, pruned = heard(lambda: tfopt.prune(model, sparsity=0.5))
    changed = changed_weights(model, pruned)
    for path, old, new in changed:
        assert (new != 0).sum() == round(new.size / 2), path
        np.testing.assert_array_equal(new[new != 0], old[new != 0])
    return tested(changed)


def clustered_kernels(row: Row) -> tuple[str, ...]:
    """The tested layers' weights that `cluster` shares; each holds as many values as asked for."""
    model, _ = subject(row)
    _, clustered = heard(lambda: tfopt.cluster(model, CLUSTERS))
    changed = changed_weights(model, clustered)
    for path, _, new in changed:
        assert len(np.unique(new)) == CLUSTERS, path
    return tested(changed)


def kept_channels(row: Row) -> str:
    """What `prune` says of layers that keep their channels; the others are gone after `shrink`, and nothing else."""
    model, x = subject(row)
    said, masked = heard(lambda: tfopt.prune(model, pattern="channel", sparsity=0.5))
    if masked is None:
        return said
    small = tfopt.shrink(masked)
    for old, new in zip(outputs_of(masked, x), outputs_of(small, x), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5)
    assert small.count_params() < model.count_params()
    kept = said.partition("Layers that keep all their channels: ")[2]
    if not kept:
        check_widths(row, model, small)
    return kept


def check_widths(row: Row, model: keras.Model, small: keras.Model) -> None:
    """Each layer that creates channels has lost half of them."""
    sizes = {path: sum(np.prod(w.shape) for w in layer.weights) for path, layer in read(model).layers}
    for path, layer in read(small).layers:
        if path.startswith("front_"):
            assert layer.output.shape[-1] == model.get_layer(path).output.shape[-1] // 2
        elif row.kernels and not is_around(path) and sizes.get(path):
            assert sum(np.prod(w.shape) for w in layer.weights) < sizes[path]


class Quantized(NamedTuple):
    """A quantized model of a row.

    Args:
        said: what `quantize` warned of.
        refused: why there is no file.
        fresh: the model as `quantize` gives it.
        ready: after a step of training and `calibrate`.
        learned: paths of the weights that the step has changed.
        floats: the operations in float of its file.
        steps: how far its file is from it, in steps of the output.
    """

    said: str
    refused: str = ""
    fresh: keras.Model | None = None
    ready: keras.Model | None = None
    learned: frozenset[str] = frozenset()
    floats: str = ""
    steps: float = 0.0


@functools.lru_cache(maxsize=2)
def quantized(row: Row, scheme: str) -> Quantized:
    """`quantize`, for 8 bits one step of training, `calibrate`, `export_tflite`, and the file against the model."""
    model, x = subject(row)
    said, fresh = heard(lambda: tfopt.quantize(model, scheme))
    if fresh is None:
        return Quantized("", said)
    trained = train_a_step(fresh, x) if scheme == "int8" else fresh
    refused, ready = heard(lambda: tfopt.calibrate(trained, x))
    if ready is None:
        return Quantized(said, refused)
    found = Quantized(said, "", fresh, ready, learned(model, trained))
    with tempfile.TemporaryDirectory() as folder:
        refused, path = heard(lambda: tfopt.export_tflite(ready, Path(folder) / "m.tflite", data=x, tolerance=0.5).path)
        if path is None:
            return found._replace(refused=refused)
        file = tfopt.TFLiteModel(path)
    return found._replace(floats=float_ops(file), steps=distance(file, ready, x))


def train_a_step(model: keras.Model, x) -> keras.Model:
    """A copy of the model after one step of training towards zeros."""
    copy = rewrite(read(model)).model
    copy.compile(keras.optimizers.SGD(1e-2), "mse", run_eagerly=True)
    targets = [np.zeros_like(y) for y in outputs_of(model, x)]
    losses = copy.train_on_batch(x, targets if len(targets) > 1 else targets[0])
    assert np.isfinite(losses).all()
    return copy


def learned(model: keras.Model, trained: keras.Model) -> frozenset[str]:
    """Paths of the weights that training has changed."""
    pairs = zip(model.weights, tfopt.strip(trained).weights, strict=True)
    return frozenset(old.path for old, new in pairs if not np.array_equal(np.array(old), np.array(new)))


def float_ops(file: tfopt.TFLiteModel) -> str:
    """The operations in float, as "ADD*2 MUL"; those that only change type or shape left out."""
    ops = [op.name for op in file.op_types() if "float32" in (op.input_dtype, op.output_dtype)]
    counts = Counter(name for name in ops if name not in ("QUANTIZE", "DEQUANTIZE", "RESHAPE"))
    return " ".join(name if count == 1 else f"{name}*{count}" for name, count in sorted(counts.items()))


def distance(file: tfopt.TFLiteModel, model: keras.Model, x) -> float:
    """The largest mean difference of an output between file and model, in steps of the output."""
    got = file.predict(x)
    got = list(got.values()) if isinstance(got, dict) else keras.tree.flatten(got)
    trios = zip(got, outputs_of(model, x), file.output_steps(), strict=True)
    return max(float(np.abs(own - wanted).mean() / step) for own, wanted, step in trios)


def check_saved(model: keras.Model, x) -> None:
    """A model that is saved and loaded computes the same."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/m.keras")
        loaded = keras.models.load_model(f"{folder}/m.keras", safe_mode=False)
    for old, new in zip(outputs_of(model, x), outputs_of(loaded, x), strict=True):
        np.testing.assert_array_equal(new, old)
