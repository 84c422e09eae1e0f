"""Out-of-fold predictions against scikit-learn and by hand; leaks, resumed and killed runs, folds of all kinds."""

import json
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers as kl
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GroupKFold, RepeatedKFold, StratifiedKFold, TimeSeriesSplit

import tfopt
from tfopt.core.errors import FileError, InvalidArgumentError, NonFiniteError, UnsupportedModelError
from tfopt.fusion.heads import LinearHead
from tfopt.fusion.stacking import stack as loud_stack


def stack(*args, **options):
    return loud_stack(*args, verbose=0, **options)


# The oracle: the same base models, folds and final estimator in scikit-learn.


def digit_net(units, seed):
    """Starts from the same values each time; trained on whole batches, the order of samples does not matter."""
    start = [keras.initializers.GlorotUniform(seed=seed + layer) for layer in range(2)]
    layers = [kl.Dense(units, "tanh", kernel_initializer=start[0]), kl.Dense(4, "softmax", kernel_initializer=start[1])]
    model = keras.Sequential([keras.Input((64,)), *layers], name=f"net_{units}")
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    return model


class KerasNet(ClassifierMixin, BaseEstimator):
    def __init__(self, units, seed):
        self.units, self.seed = units, seed

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        self.model_ = digit_net(self.units, self.seed)
        self.model_.fit(x, y, batch_size=len(x), epochs=4, verbose=0)
        return self

    def predict(self, x):
        return self.predict_proba(x).argmax(1)

    def predict_proba(self, x):
        return self.model_.predict(x, verbose=0)


class Recording(LogisticRegression):
    def fit(self, x, y):
        self.matrix_ = x
        return super().fit(x, y)


def test_scikit_learn_stacks_the_same():
    x, y = load_digits(n_class=4, return_X_y=True)
    x = (x / 16).astype("float32")
    (x, x_test), y = (x[:120], x[120:200]), y[:120]
    cv = StratifiedKFold(2, shuffle=True, random_state=5)
    nets = [("a", KerasNet(5, 1)), ("b", KerasNet(9, 2))]
    oracle = StackingClassifier(nets, Recording(max_iter=2000), cv=cv, stack_method="predict_proba").fit(x, y)
    result = stack([digit_net(5, 1), digit_net(9, 2)], x, y, folds=cv, epochs=4, fit={"batch_size": 120}, seed=5)
    np.testing.assert_allclose(result.out_of_fold, oracle.final_estimator_.matrix_, atol=1e-4)
    np.testing.assert_allclose(result.model.predict(x_test, verbose=0), oracle.predict_proba(x_test), atol=2e-3)
    held_out = [out for _, out in cv.split(x, y)]
    for place, scores in enumerate(result.scores):
        right = result.out_of_fold[:, 4 * place : 4 * place + 4].argmax(1) == y
        assert scores == pytest.approx([right[out].mean() for out in held_out])
    mean = (result.out_of_fold[:, :4] + result.out_of_fold[:, 4:]).argmax(1) == y
    assert result.mean_scores == pytest.approx([mean[out].mean() for out in held_out])
    matrix, scored = result.out_of_fold, []
    for out in held_out:
        kept = np.setdiff1d(np.arange(120), out)
        final = LogisticRegression(max_iter=2000).fit(matrix[kept], y[kept])
        scored.append((final.predict(matrix[out]) == y[out]).mean())
    assert result.stack_scores == pytest.approx(scored)
    assert result.score == pytest.approx(np.mean(scored))


# A model that only learns the mean of its targets: one step of gradient descent with rate 1/2 is exactly there.


def mean_model(name="mean"):
    model = keras.Sequential([keras.Input((2,)), kl.Dense(1)], name=name)
    model.compile(keras.optimizers.SGD(0.5), "mse")
    return model


NUMBERS = np.random.default_rng(0).normal(size=24)
NOTHING = np.zeros((24, 2), "float32")  # so that there is no gradient but that of the bias
GROUPS = np.repeat(np.arange(6), 4)[np.random.default_rng(1).permutation(24)]
ORDER = np.random.default_rng(0).permutation(24)
ONCE = {"epochs": 1, "fit": {"batch_size": 24}}
PAIRS = [(np.arange(4, 24), np.arange(4)), (np.arange(12), np.arange(12, 20))]
FOLDS = {
    "a number": (3, [(np.setdiff1d(ORDER, ORDER[fold::3]), ORDER[fold::3]) for fold in range(3)], None),
    "groups": (GroupKFold(3), GroupKFold(3), GROUPS),
    "time": (TimeSeriesSplit(3), TimeSeriesSplit(3), None),
    "repeated": (RepeatedKFold(n_splits=2, n_repeats=2, random_state=3), None, None),
    "pairs": (PAIRS, None, None),
}


@pytest.mark.parametrize("case", FOLDS)
def test_each_sample_meets_a_model_that_has_not_seen_it(case):
    folds, oracle, groups = FOLDS[case]
    oracle = oracle or folds
    splits = oracle if isinstance(oracle, list) else list(oracle.split(NOTHING, NUMBERS, groups))
    total, times = np.zeros(24), np.zeros(24)
    for train, held_out in splits:
        total[held_out] += NUMBERS[train].mean()
        times[held_out] += 1
        assert groups is None or not set(GROUPS[train]) & set(GROUPS[held_out])
    result = stack([mean_model()], NOTHING, NUMBERS, folds=folds, groups=groups, **ONCE)
    wanted = np.where(times > 0, total / np.maximum(times, 1), np.nan)
    np.testing.assert_allclose(result.out_of_fold[:, 0], wanted, atol=1e-6)
    assert result.samples == (times > 0).sum()
    assert result.epochs == ((1,) * len(splits),)
    assert result.metric == "mse"
    held_out = splits[1:] if case == "time" else splits  # the first fold of a time series has no fold before it
    assert result.scores[0] == pytest.approx([((wanted[out] - NUMBERS[out]) ** 2).mean() for _, out in held_out])
    assert len(result.stack_scores) == len(held_out)
    bias = result.model.get_layer("mean").get_weights()[1]
    assert bias == pytest.approx(NUMBERS.mean(), abs=1e-6)


def test_one_fold_is_held_out_stacking_without_a_score():
    result = stack([mean_model()], NOTHING, NUMBERS, folds=[(np.arange(12), np.arange(12, 24))], **ONCE)
    assert result.samples == 12
    assert (result.stack_scores, result.score) == ((), None)
    assert "stack" in str(result)


# A model that knows its samples by heart.


def noisy_task(seed, samples):
    """The sign of the first feature, wrong three times in ten; thirty features of noise tell the samples apart."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(samples, 32)).astype("float32")
    return x, ((x[:, 0] > 0) ^ (random.random(samples) < 0.3)).astype("int64")


def honest():
    inputs = keras.Input((32,))
    model = keras.Model(inputs, kl.Dense(2, "softmax")(inputs[:, :1]), name="honest")
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    return model


def memoriser():
    inputs = keras.Input((32,))
    model = keras.Model(inputs, kl.Dense(2, "softmax")(kl.Dense(256, "relu")(inputs[:, 1:])), name="memoriser")
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


def test_a_model_that_memorises_is_not_trusted():
    (x, y), (x_new, y_new) = noisy_task(0, 200), noisy_task(1, 2000)
    result = stack([honest, memoriser], x, y, folds=3, epochs=15, fit={"batch_size": 50})
    branches = [result.model.get_layer(name) for name in ("honest", "memoriser")]
    in_fold, new = (np.concatenate([b.predict(each, verbose=0) for b in branches], 1) for each in (x, x_new))
    assert (in_fold[:, 2:].argmax(1) == y).mean() == 1.0  # by heart
    assert np.mean(result.scores[1]) < 0.6  # and of no use for others
    leaking = LogisticRegression().fit(in_fold, y)
    trust = {
        "in-fold": np.abs(leaking.coef_).reshape(2, 2).sum(1),
        "out-of-fold": np.abs(result.model.get_layer("fusion").get_weights()[0]).reshape(2, 2, 2).sum((1, 2)),
    }
    print({name: (both / both.sum()).round(3).tolist() for name, both in trust.items()})
    assert trust["in-fold"][1] > 3 * trust["in-fold"][0]
    assert trust["out-of-fold"][1] < trust["out-of-fold"][0] / 3
    assert result.contributions[0] > 0.1 > result.contributions[1]
    leaked = (leaking.predict(new) == y_new).mean()
    stacked = (result.model.predict(x_new, verbose=0).argmax(1) == y_new).mean()
    assert leaked < 0.6
    assert stacked > leaked + 0.1


# Trainings: what they start from, how long they are, and how they go on.


class Watch(keras.callbacks.Callback):
    """Sees what each training starts from and how many epochs and steps it has."""

    def __init__(self):
        super().__init__()
        self.starts, self.epochs, self.steps = [], [], []

    def on_train_begin(self, logs=None):
        self.starts.append([weight.copy() for weight in self.model.get_weights()])
        self.epochs.append(0)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs[-1] += 1

    def on_train_end(self, logs=None):
        self.steps.append(int(self.model.optimizer.iterations))


def test_every_training_is_new_and_as_long_as_asked_for():
    """Eight epochs, where a clone of Keras' `SKLearnClassifier` trains one; frozen and adapted layers stay."""
    adapted, frozen = kl.Normalization(), kl.Dense(6, "relu", trainable=False)
    model = keras.Sequential([keras.Input((4,)), adapted, frozen, kl.Dense(5, "relu"), kl.Dense(1)], name="base")
    x = np.random.default_rng(0).normal(3, 2, (30, 4)).astype("float32")
    adapted.adapt(x)
    model.compile("adam", "mse", metrics=["mae"])
    before, watch = model.get_weights(), Watch()
    result = stack([model], x, x.sum(1), folds=3, epochs=8, fit={"batch_size": 10, "callbacks": [watch]})
    assert watch.epochs == [8, 8, 8, 8]
    assert watch.steps == [16, 16, 16, 24]  # 20 samples in each of three folds, then all 30
    assert result.epochs == ((8, 8, 8),)
    for start in watch.starts:
        for place, (weight, given) in enumerate(zip(start, before, strict=True)):
            kept = np.array_equal(weight, given)
            assert kept == (place < 5 or given.ndim < 2)  # Normalization has 3, the frozen layer 2; biases start at 0
    kernels = [start[5] for start in watch.starts]
    assert len({kernel.tobytes() for kernel in kernels}) == 4
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), before, strict=True))
    branch = result.model.get_layer("base")
    assert all(np.array_equal(*pair) for pair in zip(branch.get_weights()[:5], before[:5], strict=True))
    assert not branch.trainable


def test_the_seed_tells_all():
    x = np.random.default_rng(0).normal(size=(24, 2)).astype("float32")
    model = keras.Sequential([keras.Input((2,)), kl.Dense(4, "tanh"), kl.Dropout(0.3), kl.Dense(1)])
    model.compile("adam", "mse")
    first, _, again = (stack([model], x, x.sum(1), folds=2, epochs=1, seed=seed).out_of_fold for seed in (1, 2, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, _)


KILLED = """
import os, signal, sys
import keras, numpy as np
sys.path.insert(0, {tests!r})
from test_stacking import resumable

class Watch(keras.callbacks.Callback):
    trainings = 0
    def on_train_begin(self, logs=None):
        Watch.trainings += 1
        if Watch.trainings == 6:
            os.kill(os.getpid(), signal.SIGKILL)

resumable(Watch(), {folder!r})
"""


def resumable(watch, directory, epochs=2):
    """Two models in three folds and once more: eight trainings."""
    random = np.random.default_rng(0)
    x = random.normal(size=(30, 2)).astype("float32")
    net = keras.Sequential([keras.Input((2,)), kl.Dense(4, "tanh"), kl.Dropout(0.1), kl.Dense(1)])
    net.compile("adam", "mse")
    fit = {"batch_size": 8, "callbacks": [watch]}
    return stack([mean_model(), net], x, x.sum(1), folds=3, epochs=epochs, fit=fit, directory=directory), x


def test_goes_on_after_kill_9(tmp_path):
    folder = tmp_path / "work"
    program = KILLED.format(tests=str(__import__("pathlib").Path(__file__).parent), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    wanted = {f"fold_{fold}_model_{place}.npz" for fold, place in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1))}
    assert set(kept) == {*wanted, "stack.json"}
    watch = Watch()
    resumed, x = resumable(watch, folder)
    assert len(watch.epochs) == 8 - 5
    assert all((folder / name).read_bytes() == content for name, content in kept.items())
    whole, _ = resumable(Watch(), None)
    np.testing.assert_allclose(resumed.out_of_fold, whole.out_of_fold, atol=1e-5)
    np.testing.assert_allclose(resumed.model.predict(x, verbose=0), whole.model.predict(x, verbose=0), atol=1e-4)
    assert resumed.epochs == whole.epochs == ((2, 2, 2), (2, 2, 2))
    again = Watch()
    resumable(again, folder)
    assert again.epochs == []
    with pytest.raises(InvalidArgumentError, match="which differs in training"):
        resumable(Watch(), folder, epochs=3)
    (folder / "fold_0_model_0.npz").write_bytes(b"cut off")
    with pytest.raises(FileError, match="must be as `stack` wrote it.*fold_0_model_0.npz.*Delete the file"):
        resumable(Watch(), folder)
    (folder / "stack.json").write_text("{")
    with pytest.raises(FileError, match="which cannot be read"):
        resumable(Watch(), folder)
    (folder / "stack.json").unlink()
    with pytest.raises(FileError, match="other files and no 'stack.json'"):
        resumable(Watch(), folder)


# Tasks, inputs, meta-models.


def small_net(outputs, activation, loss, name, dtype=None):
    layers = [kl.Dense(6, "tanh", dtype=dtype), kl.Dense(outputs, activation, dtype=dtype)]
    model = keras.Sequential([keras.Input((4,)), *layers], name=name)
    model.compile(keras.optimizers.Adam(0.05), loss)
    return model


X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
Y = X[:, :3].argmax(1)
FEW = {"folds": 2, "epochs": 2}


def test_two_classes_told_by_one_number(tmp_path):
    y = (X[:, 0] > 0).astype(int)
    nets = [small_net(1, "sigmoid", "binary_crossentropy", "net", dtype) for dtype in (None, "mixed_float16")]
    result = stack(nets, X, y, **FEW)
    oracle = LogisticRegression().fit(result.out_of_fold.astype("float32"), y)
    got = result.model.get_layer("fusion").get_weights()
    np.testing.assert_allclose(got[0], oracle.coef_.T, atol=1e-3)
    np.testing.assert_allclose(got[1], oracle.intercept_, atol=1e-3)
    assert result.models == ("net", "net_2")
    _, accuracy = result.model.evaluate(X, y, verbose=0)
    assert accuracy == pytest.approx(((result.model.predict(X, verbose=0)[:, 0] > 0.5) == y).mean())
    result.model.save(tmp_path / "stack.keras")
    loaded = keras.models.load_model(tmp_path / "stack.keras")
    np.testing.assert_allclose(loaded.predict(X, verbose=0), result.model.predict(X, verbose=0), atol=1e-6)


def test_regression_of_two_numbers_with_the_inputs_beside():
    y = X[:, :2] @ np.array([[1.0, 2.0], [0.5, -1.0]])
    result = stack([small_net(2, None, "mse", "a"), small_net(2, None, "mse", "b")], X, y, passthrough=True, **FEW)
    features = np.concatenate([result.out_of_fold, X], 1)
    oracle = RidgeCV().fit(features, y)
    got = result.model.get_layer("fusion").get_weights()
    np.testing.assert_allclose(got[0], oracle.coef_.T, atol=1e-3)
    branches = [result.model.get_layer(name).predict(X, verbose=0) for name in ("a", "b")]
    wanted = oracle.predict(np.concatenate([*branches, X], 1))
    np.testing.assert_allclose(result.model.predict(X, verbose=0), wanted, atol=1e-3)
    assert result.models == ("a", "b", "inputs")
    assert result.contributions[2] > 10 * max(result.contributions[:2])


def two_inputs():
    left, right = keras.Input((2,), name="left"), keras.Input((2,), dtype="int32", name="right")
    both = kl.Concatenate()([left, kl.Flatten()(kl.Embedding(5, 2)(right))])
    model = keras.Model({"left": left, "right": right}, kl.Dense(3, "softmax")(both), name="two")
    model.compile("adam", "categorical_crossentropy")
    return model


def test_own_meta_model_and_several_inputs():
    meta = keras.Sequential([kl.Dense(8, "relu"), kl.Dense(3, "softmax")])
    meta.compile(keras.optimizers.Adam(0.02), "categorical_crossentropy", metrics=["accuracy"])
    x = {"left": X[:, :2], "right": np.random.default_rng(2).integers(0, 5, (48, 2))}
    watch, y = Watch(), np.eye(3)[Y]
    options = {"meta_fit": {"epochs": 6, "callbacks": [watch]}, "passthrough": True}
    result = stack([two_inputs(), two_inputs()], x, y, meta=meta, **options, **FEW)
    assert watch.epochs == [6, 6, 6]  # on all, and without each of the two folds
    assert not meta.built
    assert result.model.get_layer("fusion").get_weights()[0].shape == (3 + 3 + 4, 8)
    assert set(result.model.input) == {"left", "right"}
    assert result.model.predict(x, verbose=0).shape == (48, 3)
    assert len(result.model.evaluate(x, y, verbose=0)) == 2
    built = keras.Sequential([keras.Input((6,)), kl.Dense(3, "softmax")])
    built.compile("sgd", "categorical_crossentropy")
    before = built.get_weights()
    result = stack([two_inputs(), two_inputs()], x, y, meta=built, meta_fit={"epochs": 1}, **FEW)
    assert all(np.array_equal(*pair) for pair in zip(built.get_weights(), before, strict=True))
    lines = str(result).splitlines()
    assert lines[0] == "Stack of 2 models by accuracy"
    assert [line.split()[0] for line in lines[3:7]] == ["two", "two_2", "plain", "stack"]
    assert result._repr_html_().count("<tr>") == 5
    assert json.loads(result.to_json())["epochs"] == [[2, 2], [2, 2]]
    assert len(result.plot().axes[0].patches) == 2


@pytest.mark.parametrize("seen", [(0, 1, 2), (0, 2), (1, 2), (1,)])
def test_default_head_with_classes_that_are_missing(seen):
    """Folds of a time series may lack classes: these get no probability, the others that of scikit-learn."""
    y = np.random.default_rng(3).choice(seen, 48)
    head = LinearHead(np.arange(3), 3).trained(X, y)
    predicted = head.predict(X, verbose=0)
    wanted = np.zeros((48, 3))
    wanted[:, list(seen)] = 1.0 if len(seen) == 1 else LogisticRegression().fit(X, y).predict_proba(X)
    np.testing.assert_allclose(predicted, wanted, atol=1e-4)


def net(**changes):
    options = {"outputs": 3, "activation": "softmax", "loss": "sparse_categorical_crossentropy", "name": "net"}
    return small_net(**{**options, **changes})


def pictures():
    model = keras.Sequential([keras.Input((4, 4, 1)), kl.Conv2D(3, 3)])
    model.compile("adam", "mse")
    return model


def not_compiled():
    return keras.Sequential([keras.Input((4,)), kl.Dense(3)])


def wide_meta():
    model = keras.Sequential([keras.Input((7,)), kl.Dense(3)])
    model.compile("adam", "mse")
    return model


def pruned():
    model = tfopt.prune(net(), sparsity=0.5)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


WRONG = {
    "none": (lambda: stack([], X, Y), InvalidArgumentError, "list of compiled models"),
    "a model": (lambda: stack(net(), X, Y), InvalidArgumentError, "list of compiled models"),
    "not compiled": (lambda: stack([not_compiled()], X, Y), InvalidArgumentError, "has to be compiled"),
    "builds none": (lambda: stack([not_compiled], X, Y), InvalidArgumentError, "has to be compiled"),
    "no model": (lambda: stack([3], X, Y), UnsupportedModelError, "keras.Model"),
    "pictures": (lambda: stack([pictures()], X, Y), UnsupportedModelError, "one row of numbers"),
    "pruned": (lambda: stack([pruned()], X, Y), UnsupportedModelError, "then prune or cluster"),
    "labels": (lambda: stack([net()], X, Y + 1), InvalidArgumentError, "in 0..2"),
    "fewer labels": (lambda: stack([net()], X, Y[1:]), InvalidArgumentError, "48 samples, 47 labels|48, 47"),
    "no labels": (lambda: stack([net()], X, None), InvalidArgumentError, "no labels"),
    "shape": (lambda: stack([net()], X[:, :3], Y), InvalidArgumentError, "shape of the model's input"),
    "folds": (lambda: stack([net()], X, Y, folds=1), InvalidArgumentError, "from 2 to"),
    "groups": (lambda: stack([net()], X, Y, groups=Y), InvalidArgumentError, "GroupKFold"),
    "no groups": (lambda: stack([net()], X, Y, folds=GroupKFold(2)), InvalidArgumentError, "[Gg]roups"),
    "beyond": (lambda: stack([net()], X, Y, folds=[([0, 1], [48])]), InvalidArgumentError, "0..47"),
    "epochs": (lambda: stack([net()], X, Y, epochs=0), InvalidArgumentError, "at least 1"),
    "fit": (lambda: stack([net()], X, Y, fit={"epochs": 3}), InvalidArgumentError, "argument of its own"),
    "meta_fit": (lambda: stack([net()], X, Y, meta_fit={"epochs": 3}), InvalidArgumentError, "`meta` of your own"),
    "meta": (lambda: stack([net()], X, Y, meta="dense"), InvalidArgumentError, "compiled Keras model"),
    "meta not compiled": (lambda: stack([net()], X, Y, meta=not_compiled()), UnsupportedModelError, "3 numbers"),
    "meta's width": (lambda: stack([net()], X, Y, meta=wide_meta()), UnsupportedModelError, r"\(None, 7\)"),
    "metric": (lambda: stack([net()], X, Y, metric="best"), InvalidArgumentError, "named by a string"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_come_before_any_training(case):
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_a_function_that_gives_one_model_again_and_again():
    model = net()
    with pytest.raises(InvalidArgumentError, match="a new one each time. Received: 'net' twice"):
        stack([lambda: model], X, Y, **FEW)


def test_a_model_that_diverges():
    model = net(activation=None, loss="mse", outputs=1)
    model.compile(keras.optimizers.SGD(1e30), "mse")
    with pytest.raises(NonFiniteError, match="NaN or infinity from 'net' in fold 1"):
        stack([model], X, X[:, 0], **FEW)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InvalidArgumentError, match="The default `meta`.*tfopt\\[fusion\\]"):
        stack([net()], X, Y, folds=3)


def test_public_name():
    assert tfopt.stack is loud_stack
