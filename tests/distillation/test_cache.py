"""`cache_teacher`: what is kept, in memory and on disk, and how training reads it."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

import tfopt
from tfopt.core.data.outputs import output_kinds
from tfopt.core.errors import FileError, InvalidArgumentError, NonFiniteError, UnsupportedModelError
from tfopt.distillation import FeatureMatching, SoftTargets, Taught, cache, shards
from tfopt.distillation.feed import Feed, MemoryTable
from tfopt.distillation.scores import to_values

SAMPLES = 70
X = np.arange(2 * SAMPLES, dtype="float32").reshape(SAMPLES, 2) / SAMPLES - 1
Y = np.arange(SAMPLES)
WEIGHTS = np.linspace(0, 1, SAMPLES).astype("float32")


class Counting(kl.Layer):
    """Gives what it gets, and counts the runs of the model."""

    runs = 0

    def call(self, x):
        def count(values):
            Counting.runs += 1
            return values

        return tf.ensure_shape(tf.numpy_function(count, [x], x.dtype), x.shape)


def teacher(softmax=True, seed=0, activation="relu", name="hidden"):
    keras.utils.set_random_seed(seed)
    head = kl.Dense(3, "softmax" if softmax else None, name="head")
    return keras.Sequential([keras.Input((2,)), Counting(), kl.Dense(4, activation, name=name), head])


def logits(model, x):
    """By hand, in float64."""
    (kernel, bias), (head, head_bias) = (layer.get_weights() for layer in model.layers[1:])
    hidden = np.maximum(x @ kernel.astype(float) + bias, 0)
    return hidden, hidden @ head + head_bias


def passed(batches):
    """One pass: arrays of the whole, in the order that came."""
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *list(batches.as_numpy_iterator()))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small_shards(monkeypatch):
    """Three batches of ten a shard."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 30)


class Batches(keras.utils.PyDataset):
    num_batches = 7

    def __getitem__(self, i):
        part = slice(10 * i, 10 * i + 10)
        return X[part], Y[part], WEIGHTS[part]


FORMS = {
    "arrays": lambda: (X, Y, WEIGHTS),
    "lists": lambda: (X.tolist(), Y.tolist(), WEIGHTS.tolist()),
    "float64": lambda: (X.astype(float), Y, WEIGHTS.astype(float)),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y, WEIGHTS)).batch(10),
    "pydataset": Batches,
    "generator": lambda: ((X[i : i + 10], Y[i : i + 10], WEIGHTS[i : i + 10]) for i in range(0, SAMPLES, 10)),
}


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("form", FORMS)
def test_answers_go_with_their_samples(form, on_disk, tmp_path, small_shards):
    model = teacher()
    path = tmp_path / "cache" if on_disk else None
    cached = tfopt.cache_teacher(model, FORMS[form](), path, layers="hidden", batch_size=10, verbose=0)
    (inputs, outputs, features), y, weights = passed(cached)
    assert cached.samples == SAMPLES
    assert len(cached) == 7
    assert sorted(y) == list(range(SAMPLES))
    assert y.tolist() != sorted(y)
    np.testing.assert_array_equal(inputs, X[y])
    np.testing.assert_array_equal(weights, WEIGHTS[y])
    hidden, scores = logits(model, X[y])
    assert hidden.std() > 0.1
    assert (inputs.dtype, outputs.dtype, weights.dtype) == ("float32", "float16", "float32")
    np.testing.assert_allclose(outputs, scores, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(features["hidden"], hidden, rtol=1e-3, atol=1e-3)


def test_float32_keeps_all_digits():
    model = teacher()
    cached = tfopt.cache_teacher(model, X, dtype="float32", shuffle=False, verbose=0)
    (taught,) = passed(cached)
    np.testing.assert_allclose(taught.outputs, logits(model, X)[1], rtol=1e-5, atol=1e-6)


def test_dicts_several_outputs_nested_features_and_more_than_the_teacher_reads():
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    inner = keras.Sequential([keras.Input((5,)), kl.Dense(4, "tanh", name="deep")], name="block")
    x = inner(kl.Concatenate()([left, right]))
    model = keras.Model([left, right], {"a": kl.Dense(2)(x), "b": kl.Dense(1, "sigmoid")(x)})
    arrays = {"left": X, "right": np.ones((SAMPLES, 3), "float32"), "for_the_student": Y}
    y = {"a": np.zeros((SAMPLES, 2)), "b": np.ones((SAMPLES, 1))}
    cached = tfopt.cache_teacher(model, (arrays, y), layers=["block/deep"], shuffle=False, dtype="float32", verbose=0)
    taught, targets = passed(cached)
    assert sorted(taught.inputs) == ["for_the_student", "left", "right"]
    np.testing.assert_array_equal(taught.inputs["for_the_student"], Y)
    own = model.predict({"left": X, "right": arrays["right"]}, verbose=0)
    np.testing.assert_allclose(taught.outputs["a"], own["a"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-taught.outputs["b"])), own["b"], rtol=1e-5)
    assert taught.features["block/deep"].shape == (SAMPLES, 4)
    np.testing.assert_array_equal(targets["b"], y["b"])


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_kind_of_model(name):
    model = zoo.build(name)
    x = zoo.inputs_for(model, 6)
    (taught,) = passed(tfopt.cache_teacher(model, x, batch_size=4, shuffle=False, dtype="float32", verbose=0))
    scores = keras.tree.flatten(taught.outputs)
    for kind, outputs, expected in zip(output_kinds(model), scores, zoo.predictions(model, x), strict=True):
        np.testing.assert_allclose(to_values(kind, outputs), expected, rtol=2e-3, atol=2e-3)
    keras.tree.map_structure(np.testing.assert_array_equal, taught.inputs, x)


def test_several_teachers_are_averaged_by_probability():
    models = [teacher(seed=1), teacher(seed=2)]
    cached = tfopt.cache_teacher(models, X, teacher_weights=[3, 1], dtype="float32", shuffle=False, verbose=0)
    (taught,) = passed(cached)
    one, two = (np.exp(s) / np.exp(s).sum(-1, keepdims=True) for s in (logits(m, X)[1] for m in models))
    np.testing.assert_allclose(np.exp(taught.outputs), 0.75 * one + 0.25 * two, rtol=1e-4)


def test_logits_of_several_teachers_are_averaged_as_they_were_trained():
    models = [teacher(softmax=False, seed=1), teacher(softmax=False, seed=2)]
    with pytest.raises(InvalidArgumentError, match="Compile a teacher with the loss"):
        tfopt.cache_teacher(models, X, verbose=0)
    models[0].compile(loss="mse")
    (taught,) = passed(tfopt.cache_teacher(models, X, dtype="float32", shuffle=False, verbose=0))
    np.testing.assert_allclose(taught.outputs, (logits(models[0], X)[1] + logits(models[1], X)[1]) / 2, rtol=1e-4)


# Order


@settings(max_examples=12, deadline=None)
@given(samples=st.integers(1, 40), batch_size=st.integers(1, 17), at_once=st.integers(1, 4), seed=st.integers(0, 3))
def test_each_pass_has_every_sample_once_in_an_order_of_seed_and_epoch(samples, batch_size, at_once, seed):
    rows = np.arange(samples)
    made = [cache.TeacherCache(Feed([MemoryTable({"x": rows})], batch_size, True, seed), ("x",)) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfopt.distillation.feed.CHUNK_BATCHES", at_once)
        passes = [[batch[0] for batch in made[0].as_numpy_iterator()] for _ in range(2)]
        made[1].epoch = 1
        again = [batch[0] for batch in made[1].as_numpy_iterator()]
    for batches in passes:
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert sorted(np.concatenate(batches)) == rows.tolist()
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(passes[1]))
    if samples > 20:
        assert np.concatenate(passes[0]).tolist() != np.concatenate(passes[1]).tolist()


def test_without_shuffle_the_order_is_that_of_the_data():
    cached = tfopt.cache_teacher(teacher(), (X, Y), batch_size=16, shuffle=False, verbose=0)
    for _ in range(2):
        np.testing.assert_array_equal(passed(cached)[1], Y)


def test_a_distribution_strategy_gets_every_sample():
    cached = tfopt.cache_teacher(teacher(), (X, Y), batch_size=16, verbose=0)
    batches = tf.distribute.MirroredStrategy(["CPU:0"]).experimental_distribute_dataset(cached)
    taught, y = zip(*batches, strict=True)
    assert isinstance(taught[0], Taught)
    assert sorted(np.concatenate(y)) == list(range(SAMPLES))
    np.testing.assert_array_equal(np.concatenate([part.inputs for part in taught]), X[np.concatenate(y)])


# Memory


def test_arrays_are_not_copied_and_shards_are_mapped(tmp_path):
    cached = tfopt.cache_teacher(teacher(), (X, Y), tmp_path / "cache", verbose=0)
    given, answers = cached._feed._tables
    assert np.shares_memory(given._rows["inputs_0"], X)
    assert all(isinstance(shard, np.memmap) for shard in answers._shards)


# On disk


def interrupted(model, data, path, after, **options):
    """Stops at the run of the teacher with that number."""

    def stop(batch):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        whole = cache.Answers.__call__
        calls = iter(range(after))
        patch.setattr(
            cache.Answers, "__call__", lambda self, b: whole(self, b) if next(calls, None) is not None else stop(b)
        )
        with pytest.raises(KeyboardInterrupt):
            tfopt.cache_teacher(model, data, path, batch_size=10, verbose=0, **options)


@pytest.mark.parametrize("form", ["arrays", "dataset"])
@pytest.mark.parametrize(("after", "left"), [(0, 7), (2, 7), (3, 4), (5, 4), (6, 1)])
def test_goes_on_at_the_first_missing_shard(form, after, left, tmp_path, small_shards):
    model = teacher()
    tfopt.cache_teacher(model, FORMS[form](), tmp_path / "whole", layers=["hidden"], batch_size=10, verbose=0)
    interrupted(model, FORMS[form](), tmp_path / "parts", after, layers=["hidden"])
    Counting.runs = 0
    resumed = tfopt.cache_teacher(model, FORMS[form](), tmp_path / "parts", layers=["hidden"], batch_size=10, verbose=0)
    assert Counting.runs == left
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    names = ["cache_teacher.json", "manifest.json", *(f"shard-0000{i}.npy" for i in range(3))]
    assert sorted(files(tmp_path / "parts")) == names
    opened = tfopt.cache_teacher(model, FORMS[form](), tmp_path / "parts", layers=["hidden"], batch_size=10, verbose=0)
    assert Counting.runs == left
    keras.tree.map_structure(np.testing.assert_array_equal, passed(opened), passed(resumed))


def test_a_complete_cache_takes_other_labels_other_batches_and_another_name(tmp_path, small_shards):
    path = tmp_path / "cache"
    model = teacher()
    tfopt.cache_teacher(model, (X, Y), path, batch_size=10, verbose=0)
    renamed = teacher(name="other")
    Counting.runs = 0
    cached = tfopt.cache_teacher(renamed, (X, 1 - Y, WEIGHTS), path, batch_size=16, verbose=0)
    assert Counting.runs == 0
    taught, y, weights = passed(cached)
    assert [len(batch[1]) for batch in cached.as_numpy_iterator()] == [16] * 4 + [6]
    np.testing.assert_array_equal(weights, WEIGHTS[1 - y])
    np.testing.assert_allclose(taught.outputs, logits(model, X[1 - y])[1], rtol=1e-3, atol=1e-3)


def changed(array, index, value):
    other = array.copy()
    other[index] = value
    return other


OTHERS = {
    "a value": (lambda: {"data": changed(X, 65, 9.0)}, "other samples in the 1 batches of 'shard-00002.npy'"),
    "the order": (lambda: {"data": X[::-1]}, "other samples in the 3 batches of 'shard-00000.npy'"),
    "fewer": (lambda: {"data": X[:60]}, "fewer batches"),
    "fewer in a shard": (lambda: {"data": X[:55]}, "other samples"),
    "more": (lambda: {"data": np.concatenate([X, X])}, "other samples|more batches"),
    "weights": (lambda: {"teacher": teacher(seed=1)}, "differs in teacher"),
    "activation": (lambda: {"teacher": teacher(activation="elu")}, "differs in teacher"),
    "two teachers": (lambda: {"teacher": [teacher(), teacher(seed=1)]}, "differs in teacher"),
    "dtype": (lambda: {"dtype": "float32"}, "differs in dtype"),
    "layers": (lambda: {"layers": ["hidden"]}, "differs in layers"),
    "form": (lambda: {"data": tf.data.Dataset.from_tensor_slices(X).batch(10)}, "differs in form of the data"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_cache_of_something_else_is_refused(other, tmp_path, small_shards):
    path = tmp_path / "cache"
    tfopt.cache_teacher(teacher(), X, path, batch_size=10, verbose=0)
    before = files(path)
    options, says = OTHERS[other]
    arguments = {"teacher": teacher(), "data": X, **options()}
    Counting.runs = 0
    with pytest.raises(InvalidArgumentError, match=says):
        tfopt.cache_teacher(path=path, batch_size=10, verbose=0, **arguments)
    assert files(path) == before
    assert Counting.runs == 0


def test_more_whole_shards_than_were_recorded(tmp_path, small_shards):
    tfopt.cache_teacher(teacher(), X[:60], tmp_path / "cache", batch_size=10, verbose=0)
    with pytest.raises(InvalidArgumentError, match="more batches than were recorded"):
        tfopt.cache_teacher(teacher(), X, tmp_path / "cache", batch_size=10, verbose=0)


def test_an_unfinished_cache_goes_on_with_its_batch_size(tmp_path, small_shards):
    interrupted(teacher(), X, tmp_path / "cache", 4)
    with pytest.raises(InvalidArgumentError, match="20, for .* of batches of 10"):
        tfopt.cache_teacher(teacher(), X, tmp_path / "cache", batch_size=20, verbose=0)


def test_a_shuffled_data_set_is_refused(tmp_path):
    shuffled = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(SAMPLES).batch(10)
    cached = tfopt.cache_teacher(teacher(), shuffled, tmp_path / "cache", verbose=0)
    taught, y = passed(cached)
    np.testing.assert_array_equal(taught.inputs, X[y])  # what was seen is what is kept
    with pytest.raises(InvalidArgumentError, match="without random augmentation or shuffling"):
        tfopt.cache_teacher(teacher(), shuffled, tmp_path / "cache", verbose=0)


@pytest.mark.parametrize("damage", ["truncated", "a bit", "empty", "manifest", "no table", "kind"])
def test_damaged_files(damage, tmp_path, small_shards):
    path = tmp_path / "cache"
    tfopt.cache_teacher(teacher(), X, path, batch_size=10, verbose=0)
    names = {"manifest": "manifest.json", "no table": "manifest.json", "kind": "cache_teacher.json"}
    file = path / names.get(damage, "shard-00001.npy")
    content = bytearray(file.read_bytes())
    whole = bytes(content)
    content[-5] ^= 1
    parts = {"truncated": whole[:-7], "a bit": bytes(content), "empty": b"", "manifest": whole[:50]}
    parts["no table"] = b'{"shards": [3]}'
    parts["kind"] = json.dumps({"kind": "something"}).encode()
    file.write_bytes(parts[damage])
    with pytest.raises(FileError, match=rf"{file.name}.*(Delete the file|another path)"):
        tfopt.cache_teacher(teacher(), X, path, batch_size=10, verbose=0)
    if damage != "kind":
        file.unlink()
        Counting.runs = 0
        tfopt.cache_teacher(teacher(), X, path, batch_size=10, verbose=0)
        assert Counting.runs == (3 if file.suffix == ".npy" else 7)
        assert file.read_bytes() == whole


KILLED = """
    import os, random, signal, sys, time
    import keras, numpy as np, tfopt
    from tfopt.core import journal
    from tfopt.distillation import cache
    from tfopt.distillation import shards
    shards.SHARD_ROWS = 200
    folder = sys.argv[1]

    def run(path, kill=None):
        keras.utils.set_random_seed(0)
        teacher = keras.Sequential([keras.Input((6,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(5)])
        x = np.random.default_rng(0).normal(size=(2050, 6)).astype("float32")
        if kill == "between files":  # the shard is written, the manifest does not know of it
            write, files = journal.write_whole, []
            def stop(file, content):
                files.append(file)
                if len(files) == 8:
                    os.kill(os.getpid(), signal.SIGKILL)
                return write(file, content)
            journal.write_whole = stop
        elif kill == "in a file":
            replace = os.replace
            def stop(source, target):
                if "shard-00005" in str(target):
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target)
            os.replace = stop
        elif kill is not None:
            whole = cache.Answers.__call__
            batches = iter(range(kill))
            def answer(self, batch):
                if next(batches, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return whole(self, batch)
            cache.Answers.__call__ = answer
        tfopt.cache_teacher(teacher, x, f"{folder}/{path}", batch_size=50, verbose=0)

    for path, kill in [("whole", None), ("a", "between files"), ("a", "in a file"), ("b", 17), ("b", 20), ("a", None),
                       ("b", None)]:
        child = os.fork()  # TensorFlow has not started any thread yet
        if not child:
            run(path, kill)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_killed_while_it_is_made(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=300,
    )
    killed = -signal.SIGKILL
    assert done.stdout.split() == list(map(str, [0, killed, killed, killed, killed, 0, 0])), done.stderr[-2000:]
    whole = files(tmp_path / "whole")
    assert len(whole) == 13
    assert files(tmp_path / "a") == whole
    assert files(tmp_path / "b") == whole


# Arguments and data


def endless():
    return tf.data.Dataset.from_tensor_slices(X).batch(10).repeat()


BAD = {
    "dtype": ({"dtype": "bfloat16"}, "'float16' or 'float32'"),
    "batch size": ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
    "seed": ({"seed": -1}, "`seed` must be a whole number"),
    "layers": ({"layers": [3]}, "`layers` must be a path"),
    "unknown layer": ({"layers": "hiden"}, "Did you mean 'hidden'"),
    "no teacher": ({"teacher": []}, "There has to be a teacher"),
    "endless": ({"data": endless()}, "Leave out `repeat`"),
    "shape": ({"data": np.ones((4, 3))}, "shape of the model's input"),
    "weights without labels": ({"data": (X, None, WEIGHTS)}, "Sample weights come with labels"),
    "lengths": ({"data": (X, Y[:3])}, "the same number of samples"),
    "no sample": ({"data": X[:0]}, "at least one sample"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case, tmp_path):
    options, says = BAD[case]
    with pytest.raises(InvalidArgumentError, match=says):
        tfopt.cache_teacher(**{"teacher": teacher(), "data": X, "verbose": 0, **options})


def test_teachers_without_a_graph_or_of_other_inputs():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(UnsupportedModelError):
        tfopt.cache_teacher(Own(), X, verbose=0)
    wide = keras.Sequential([keras.Input((3,)), kl.Dense(3, "softmax")])
    with pytest.raises(InvalidArgumentError, match="the same inputs"):
        tfopt.cache_teacher([teacher(), wide], X, verbose=0)


def test_answers_beyond_float16_and_not_finite():
    model = teacher(softmax=False)
    model.layers[-1].set_weights([np.zeros((4, 3)), np.array([0.0, -1e5, 1.0])])
    with pytest.raises(InvalidArgumentError, match=r'up to 65504. Received: 100000 .*Pass dtype="float32"'):
        tfopt.cache_teacher(model, X, verbose=0)
    (taught,) = passed(tfopt.cache_teacher(model, X, dtype="float32", verbose=0))
    np.testing.assert_array_equal(taught.outputs[:, 1], np.float32(-1e5))
    model.layers[-1].set_weights([np.full((4, 3), 3e38), np.full(3, 3e38)])
    with pytest.raises(NonFiniteError, match="inf from the teacher"):
        tfopt.cache_teacher(model, 10 * X, dtype="float32", verbose=0)


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_sequences_of_different_lengths_are_refused(on_disk, tmp_path):
    model = keras.Sequential([keras.Input((None, 2)), kl.Dense(3)])
    batches = (np.ones((4, length, 2), "float32") for length in (5, 7))
    with pytest.raises(InvalidArgumentError, match="Pad all sequences to one length"):
        tfopt.cache_teacher(model, batches, tmp_path / "cache" if on_disk else None, verbose=0)


# Training


class Plain(keras.Model):
    """A training step of its own, by Keras alone."""

    def __init__(self):
        super().__init__()
        self.net = kl.Dense(3)

    def train_step(self, data):
        taught, _ = data
        assert isinstance(taught, Taught)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.net(taught.inputs) - tf.cast(taught.outputs, "float32")))
        self.optimizer.apply_gradients([(g, v) for v in [self.net.kernel] for g in tape.gradient(loss, [v])])
        return {"distance": loss}


def test_fit_of_any_model_takes_it():
    cached = tfopt.cache_teacher(teacher(), (X, Y), batch_size=16, verbose=0)
    model = Plain()
    model.compile(keras.optimizers.Adam(0.05))
    history = model.fit(cached, epochs=5, verbose=0, shuffle=False)
    assert history.params["steps"] == 5
    assert history.history["distance"][-1] < 0.8 * history.history["distance"][0]
    assert cached.epoch == 5


def student():
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((2,)), kl.Dense(4, "relu", name="small"), kl.Dense(3, "softmax")])


def trained(x, y=None, losses=SoftTargets, model=None, fit=None, **compile_options):
    """Weights and history after two epochs."""
    net = student()
    distiller = tfopt.Distiller(net, model, losses())
    distiller.compile("adam", "sparse_categorical_crossentropy", **compile_options)
    options = {"epochs": 2, "verbose": 0, "shuffle": False, "batch_size": 16, **(fit or {})}
    history = distiller.fit(x, y, **options)
    return np.concatenate([weight.ravel() for weight in net.get_weights()]), history.history


def with_features():
    return [SoftTargets(), FeatureMatching(student_layer="small", teacher_layer="hidden")]


@pytest.mark.parametrize(
    ("losses", "compile_options", "fit"),
    [
        (with_features, {}, {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}),
        (SoftTargets, {"jit_compile": True, "steps_per_execution": 2}, {}),
    ],
    ids=["features", "jit"],
)
def test_a_distiller_learns_the_same_as_from_the_teacher(losses, compile_options, fit):
    model = keras.Sequential([keras.Input((2,)), *teacher().layers[1:]])  # XLA cannot compile what counts the runs
    options = {"dtype": "float32", "layers": ["hidden"], "batch_size": 10, "shuffle": False, "verbose": 0}
    cached = tfopt.cache_teacher(model, (X, Y % 3), **options)
    weights, history = trained(cached, losses=losses, fit=fit, **compile_options)
    expected, expected_history = trained(X, Y % 3, losses=losses, model=model, fit=fit, **compile_options)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_allclose(history["loss"], expected_history["loss"], rtol=1e-5)


def test_an_epoch_has_the_same_order_after_a_resume(monkeypatch):
    orders, draw = [], Feed.order

    def order(self):
        orders.append(draw(self).tolist())
        return np.array(orders[-1])

    monkeypatch.setattr(Feed, "order", order)

    def epochs(**options):
        cached = tfopt.cache_teacher(teacher(), X, batch_size=10, verbose=0)  # no labels
        distiller = tfopt.Distiller(student(), losses=[SoftTargets()])
        distiller.compile("sgd", loss=None)
        orders.clear()
        distiller.fit(cached, verbose=0, **options)
        return orders[-options["epochs"] + options.get("initial_epoch", 0) :]

    whole = epochs(epochs=4)
    assert len({tuple(order) for order in whole}) == 4
    assert epochs(epochs=4, initial_epoch=2) == whole[2:]


def test_validation_data_can_be_cached():
    cached = tfopt.cache_teacher(teacher(), (X, Y % 3), batch_size=16, verbose=0)
    _, history = trained(cached, fit={"validation_data": cached})
    assert len(history["val_distillation_loss"]) == 2
