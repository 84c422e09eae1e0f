"""The choice by hand where every score is known, on digits with a test set that nothing saw, and its fine-tuning."""

import json
from functools import partial

import keras
import numpy as np
import pytest
from keras import layers as kl
from sklearn.datasets import load_digits
from sklearn.model_selection import KFold

import tfopt
from tfopt.core.data.splits import k_fold
from tfopt.core.errors import FileError, InvalidArgumentError, TargetNotMetError, UnsupportedModelError
from tfopt.pruning.sensitivity.find import GRID
from tfopt.pruning.sensitivity.finetuning import FineTuning

quiet = partial(tfopt.find_sparsity, verbose=0)


# A model that says its own kernel: the weights 1 to 1000 in disorder, each the prediction for one sample.

WEIGHTS = 1000


@pytest.fixture(scope="module")
def open_book():
    model = keras.Sequential([keras.Input((WEIGHTS,)), kl.Dense(1, use_bias=False, name="book")])
    model.set_weights([np.random.default_rng(0).permutation(WEIGHTS)[:, None] + 1])
    return model


READ = np.eye(WEIGHTS, dtype="float32"), np.arange(WEIGHTS)


def kept(y_true, y_pred):
    """Falls by as much as the sparsity rises."""
    return float((y_pred != 0).mean())


def test_refined_to_a_hundredth(open_book):
    choice = quiet(open_book, READ, 0.33, metric=kept)
    # 0.3 holds, 0.4 does not; then 0.35 no, 0.325 yes, 0.3375 no, and 0.33125 (331 zeros) no.
    assert [trial.sparsity for trial in choice.trials] == sorted([*GRID, 0.35, 0.325, 0.3375, 0.33125])
    for trial in choice.trials:
        assert trial.scores == (pytest.approx(1 - trial.sparsity, abs=0.0006),)
        assert trial.drop == pytest.approx(trial.sparsity, abs=0.0006)
        assert (trial.score_std, trial.drop_error) == (None, 0.0)
        assert trial.thresholds == {"book": WEIGHTS - round(WEIGHTS * (1 - trial.sparsity))}
    assert choice.sparsity == 0.325
    assert choice.chosen.scores == (0.675,)
    assert choice.thresholds == {"book": 325.0}
    assert choice.baseline == 1.0
    assert (choice.kernel_weights, choice.kernel_nonzero) == (1000, 675)
    zeros = choice.model.get_weights()[0] == 0
    assert np.array_equal(zeros, open_book.get_weights()[0] <= 325)


def test_a_limit_met_exactly_holds(open_book):
    assert quiet(open_book, READ, 0.3, metric=kept).sparsity == 0.3


def test_below_the_grid(open_book):
    choice = quiet(open_book, READ, 0.06, metric=kept)
    # 0.1 does not hold; then 0.05 yes, 0.075 no, 0.0625 (62 zeros) no, 0.05625 yes.
    assert choice.sparsity == 0.05625
    assert [trial.sparsity for trial in choice.trials][:5] == [0.05, 0.05625, 0.0625, 0.075, 0.1]


def test_own_sparsities_are_not_refined(open_book):
    choice = quiet(open_book, READ, 0.45, metric=kept, sparsities=[0.6, 0.2, 0.4])
    assert [trial.sparsity for trial in choice.trials] == [0.2, 0.4, 0.6]
    assert choice.sparsity == 0.4


def test_lower_can_be_better(open_book):
    choice = quiet(open_book, READ, 0.33, metric=lambda y_true, y_pred: 5 - kept(y_true, y_pred), mode="min")
    assert choice.sparsity == 0.325
    assert choice.baseline == 4.0


def test_luck_behind_a_failure_does_not_count(open_book):
    lucky = {1.0: 1.0, 0.9: 1.0, 0.8: 0.9, 0.7: 1.0}
    choice = quiet(open_book, READ, 0.05, metric=lambda t, p: lucky[kept(t, p)], sparsities=(0.1, 0.2, 0.3))
    assert choice.sparsity == 0.1


def test_folds_are_scored_apart_and_their_spread_counts(open_book):
    """Each fold's drop is its own share of the zeros; mean and standard error by numpy."""
    choice = quiet(open_book, READ, 0.33, metric=kept, cv=4, seed=3, sparsities=(0.29, 0.32, 0.33, 0.4))
    folds = [split.held_out for split in k_fold(READ[1], WEIGHTS, 4, 3)]
    for trial in choice.trials:
        cut = open_book.get_weights()[0][:, 0] <= round(WEIGHTS * trial.sparsity)
        drops = [cut[fold].mean() for fold in folds]
        np.testing.assert_allclose(trial.drops, drops, atol=1e-12)
        np.testing.assert_allclose(trial.score_std, np.std(drops, ddof=1))
        np.testing.assert_allclose(trial.drop_error, np.std(drops, ddof=1) / 2)
        assert trial.drop == pytest.approx(trial.sparsity)
    errors = {trial.sparsity: trial.drop_error for trial in choice.trials}
    assert 0 < errors[0.33] < 0.03
    assert 0.32 + errors[0.32] > 0.33  # within the limit on average, but not safely so
    assert choice.sparsity == 0.29


@pytest.mark.parametrize("kind", ["splitter", "pairs"])
def test_folds_of_any_kind(open_book, kind):
    folds = KFold(4) if kind == "splitter" else [(np.arange(250, 1000), np.arange(250)), (np.arange(250), [999, 998])]
    choice = quiet(open_book, READ, 1.0, metric=kept, cv=folds, sparsities=(0.4,))
    cut = open_book.get_weights()[0][:, 0] <= 400
    held_out = [out for _, out in (folds.split(READ[0]) if kind == "splitter" else folds)]
    np.testing.assert_allclose(choice.chosen.drops, [cut[out].mean() for out in held_out], atol=1e-12)


def test_out_of_reach(open_book):
    with pytest.raises(TargetNotMetError) as raised:
        quiet(open_book, READ, 0.1, metric=kept, sparsities=(0.2, 0.3))
    message = str(raised.value)
    assert "at most `max_drop` = 0.1 of kept. Received: a drop of 0.2000 at 0.2" in message
    assert [line.split() for line in message.splitlines() if line.startswith("30.0")] == [
        ["30.0", "%", "0.7000", "0.3000", "300.000000", "no"]
    ]
    assert "try `finetune=epochs`" in message


def test_nothing_failed(open_book):
    assert "Nothing tried failed" in str(quiet(open_book, READ, 0.5, metric=kept, sparsities=(0.2, 0.3)))


# Digits, in three parts.


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(5).permutation(len(y))
    x, y = (x[order] / 16).astype("float32"), y[order]
    return {"train": (x[:600], y[:600]), "validation": (x[600:1200], y[600:1200]), "test": (x[1200:], y[1200:])}


@pytest.fixture(scope="module")
def net(digits):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((64,)), kl.Dense(32, "relu", name="wide"), kl.Dense(10, name="head")])
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*digits["train"], epochs=10, verbose=0)
    return model


def accuracy(model, data):
    x, y = data
    return float((np.asarray(model(x)).argmax(1) == y).mean())


@pytest.mark.parametrize("cv", [None, 5])
def test_the_drop_holds_on_a_test_set_that_nothing_saw(net, digits, cv):
    """Seeds are fixed and pruning is deterministic; with 597 test samples one point is 6 of them."""
    choice = quiet(net, digits["validation"], 0.03, cv=cv)
    assert 0.2 < choice.sparsity < 0.95
    assert accuracy(net, digits["test"]) - accuracy(choice.model, digits["test"]) <= 0.03
    assert choice.baseline == pytest.approx(accuracy(net, digits["validation"]))
    for trial in choice.trials[::4]:
        direct = tfopt.prune(net, sparsity=trial.sparsity)
        assert trial.score == pytest.approx(accuracy(direct, digits["validation"]))
    assert choice.chosen.drop + choice.chosen.drop_error <= 0.03
    failed = min(trial.sparsity for trial in choice.trials if not trial.within(0.03))
    assert choice.sparsity < failed <= choice.sparsity + 0.01


def test_layers_left_out_stay_as_they_are(net, digits):
    choice = quiet(net, digits["validation"], 0.05, exclude="head", sparsities=(0.5,))
    assert np.array_equal(choice.model.layers[1].kernel, net.layers[1].kernel)
    assert choice.kernel_weights == 64 * 32
    assert list(choice.thresholds) == ["wide"]


def test_fine_tuning(net, digits):
    before, steps = net.get_weights(), int(net.optimizer.iterations)
    options = {"finetune": 1, "cv": 2, "max_drop": 0.3, "seed": 4}
    choice = quiet(net, digits["train"], sparsities=(0.5, 0.7), **options)
    assert (choice.finetune, choice.samples) == (1, 600)
    assert [len(trial.scores) for trial in choice.trials] == [2, 2]
    assert (choice.model.layers[0].kernel.numpy() == 0).mean() == pytest.approx(0.7, abs=1e-3)
    assert int(choice.model.optimizer.iterations) == 19  # 600 samples in batches of 32
    assert all(np.array_equal(old, new) for old, new in zip(before, net.get_weights(), strict=True))
    assert int(net.optimizer.iterations) == steps
    # A trial depends neither on those before it nor on the state of the random generators.
    keras.utils.set_random_seed(99)
    alone = quiet(net, digits["train"], sparsities=(0.7,), **options)
    assert alone.chosen.scores == choice.trials[1].scores
    assert alone.baseline == choice.baseline


def test_fine_tuning_with_several_inputs_and_outputs():
    left, right = keras.Input((6,)), keras.Input((3,))
    model = keras.Model([left, right], [kl.Dense(2, name="a")(left), kl.Dense(4, name="b")(right)])
    model.compile("adam", ["mse", "mse"])
    x = [np.ones((8, 6), "float32"), np.ones((8, 3), "float32")]
    y = [np.zeros((8, 2)), np.zeros((8, 4))]
    choice = quiet(
        model, (x, y), 9.0, metric=lambda t, p: np.abs(p[1] - t[1]).mean(), mode="min", sparsities=(0.5,), finetune=2
    )
    assert choice.samples == 1
    assert int(choice.model.optimizer.iterations) == 2


def test_fine_tuning_by_hand(digits):
    """One linear layer, one step of SGD on all samples: the trial is that step by numpy, for both models."""
    x, y = digits["train"]
    x, y = x[:64], y[:64].astype("float32")
    model = keras.Sequential([keras.Input((64,)), kl.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    choice = quiet(
        model, (x, y), 10.0, metric="rmse", sparsities=(0.5,), finetune=1, batch_size=64, validation_data=(x[:9], y[:9])
    )
    kernel = model.get_weights()[0]
    mask = tfopt.prune(model, sparsity=0.5).get_weights()[0] != 0

    def error(start, mask):
        stepped = (start - 0.1 * 2 / 64 * x.T @ (x @ start - y[:, None])) * mask
        return np.sqrt((((x[:9] @ stepped)[:, 0] - y[:9]) ** 2).mean())

    assert choice.baseline == pytest.approx(error(kernel, True), rel=1e-4)
    assert choice.chosen.score == pytest.approx(error(kernel * mask, mask), rel=1e-4)
    assert choice.samples == 9


def test_held_out_samples_are_not_trained_on(net, digits, monkeypatch):
    y, seen = digits["train"][1], []
    ids = np.arange(600, dtype="float32")[:, None] * np.ones((1, 64), "float32")
    monkeypatch.setattr(FineTuning, "run", lambda self, model, samples: seen.append(set(samples.x[:, 0].astype(int))))
    quiet(net, (ids, y), 1.0, finetune=1, cv=3, sparsities=(0.5,))
    folds = [set(split.held_out) for split in k_fold(y, 600, 3, 0)]
    everything = set(range(600))
    assert seen == [*[everything - fold for fold in folds] * 2, everything]
    seen.clear()
    quiet(net, (ids, y), 1.0, finetune=1, validation_split=0.25, sparsities=(0.5,))
    assert [len(part) for part in seen] == [450, 450, 600]
    seen.clear()
    quiet(net, (ids, y), 1.0, finetune=1, validation_data=(ids[:5] + 1000, y[:5]), sparsities=(0.5,))
    assert seen == [everything] * 3


# Resuming.


class Counted:
    def __init__(self, stop_at=None):
        self.calls, self.stop_at, self.__name__ = 0, stop_at, "counted"

    def __call__(self, y_true, y_pred):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return float((y_pred.argmax(1) == y_true).mean())


@pytest.mark.parametrize(("options", "done"), [({"cv": 3}, 4), ({"finetune": 1}, 1)])
def test_a_stopped_search_goes_on(net, digits, tmp_path, options, done):
    path, folds = tmp_path / "trials.json", options.get("cv", 1)
    search = partial(quiet, net, digits["validation"], 0.9, sparsities=(0.5, 0.7), **options)
    with pytest.raises(KeyboardInterrupt):
        search(metric=Counted(stop_at=done + 1), resume=path)
    assert len(json.loads(path.read_text())["results"]) == done
    rest = Counted()
    resumed = search(metric=rest, resume=path)
    assert rest.calls == 3 * folds - done
    again = Counted()
    assert search(metric=again, resume=path).to_dict() == resumed.to_dict()
    assert again.calls == 0
    for other in ({"cv": 2, "finetune": None}, {"finetune": 2, "cv": None}, {"seed": 9, "cv": 3}):
        with pytest.raises(InvalidArgumentError, match="which differs in way of scoring"):
            search(metric=Counted(), resume=path, **{"finetune": None, **options, **other})
    with pytest.raises(FileError, match="'tfopt find_sparsity 2' and not 'tfopt sensitivity 2'"):
        tfopt.sensitivity(net, digits["validation"], resume=path, verbose=0)


def test_another_optimizer_is_another_way_of_scoring(digits, tmp_path):
    model = keras.Sequential([keras.Input((64,)), kl.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy
    search = partial(
        quiet, model, digits["validation"], 1.0, sparsities=(0.5,), finetune=1, resume=tmp_path / "trials.json"
    )
    model.compile(keras.optimizers.SGD(0.1), loss(from_logits=True))
    first = search().to_dict()
    model.compile(keras.optimizers.SGD(0.1), loss(from_logits=True))
    assert search().to_dict() == first
    for optimizer, from_logits in ((keras.optimizers.SGD(0.2), True), (keras.optimizers.SGD(0.1), False)):
        model.compile(optimizer, loss(from_logits=from_logits))
        with pytest.raises(InvalidArgumentError, match="differs in way of scoring"):
            search()


# Errors.

WRONG = {
    "`max_drop` must be a number of at least 0": {"max_drop": -0.1},
    "`max_drop` must be a number": {"max_drop": "1 %"},
    "`max_drop` must be": {"max_drop": float("nan")},
    "`sparsities` must be fractions": {"sparsities": (0.0, 0.5)},
    "these are not. Received: sparsity=0.5": {"sparsity": 0.5},
    "`cv` must be a number of folds, from 2": {"cv": 1},
    "from 2 to the number of samples": {"cv": 601},
    "`cv` must be": {"cv": True},
    "`finetune` must be a number of epochs": {"finetune": 0},
    "`finetune` must be a number of epochs of at least 1": {"finetune": 0.5},
    "`validation_split` must be a fraction above 0": {"finetune": 1, "validation_split": 1.0},
    "must leave a sample each.*Received: 0.0001 of 600 samples": {"finetune": 1, "validation_split": 0.0001},
    "leaves out. Received: validation_split=0.2 without `finetune`": {"validation_split": 0.2},
    "leaves out. Received: validation_split=0.2 with `cv`": {"validation_split": 0.2, "finetune": 1, "cv": 2},
    "Received: no `finetune`. Without `finetune` pass it as `data`": {"validation_data": 1},
    "both `validation_data` and `cv`": {"validation_data": 1, "finetune": 1, "cv": 2},
    "`validation_data` must be a pair": {"validation_data": 1, "finetune": 1},
    "`mode` must be one of": {"mode": "higher"},
    "named by a string": {"metric": "accurracy"},
    "`include` must fit": {"include": "conv"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_options(net, digits, message):
    with pytest.raises(InvalidArgumentError, match=message):
        quiet(net, digits["validation"], **WRONG[message])


def test_models_that_cannot_be_trained(net, digits):
    with pytest.raises(InvalidArgumentError, match="not compiled. Call `model.compile"):
        quiet(tfopt.prune(net), digits["validation"], finetune=1)
    lossless = keras.models.clone_model(net)
    lossless.compile("adam")
    with pytest.raises(InvalidArgumentError, match="without a loss"):
        quiet(lossless, digits["validation"], finetune=1)
    with pytest.raises(UnsupportedModelError):
        quiet("net.keras", digits["validation"])


# Renderings.


@pytest.fixture(scope="module")
def choice(open_book):
    return quiet(open_book, READ, 0.33, metric=kept, cv=4, sparsities=(0.1, 0.25, 0.4))


def test_renderings(choice, tmp_path):
    lines = str(choice).splitlines()
    assert lines[1].split("  ")[0] == "sparsity"
    assert [line.split()[-1] for line in lines[3:6]] == ["yes", "chosen", "no"]
    assert "Chosen: 25.0 %, 750 of 1,000 kernel weights not zero." in lines
    assert "in 4 folds, one standard error" in str(choice)
    assert choice._repr_html_().count("<svg") == 1
    saved = json.loads(choice.save(tmp_path / "choice.json").read_text())
    assert saved["sparsity"] == 0.25
    assert saved["trials"][1]["drop"] == pytest.approx(0.25)
    assert saved["trials"][1]["thresholds"] == {"book": 250.0}
    assert saved["model"] == choice.model.name


def test_plot(choice):
    (axes,) = choice.plot().axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sparsity of the pruned kernels, %", "kept")
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["limit: 0.33 worse"].get_ydata(), 0.67)
    np.testing.assert_allclose(lines["unpruned"].get_ydata(), 1.0)
    np.testing.assert_allclose(lines["chosen"].get_xydata(), [[25, 0.75]])
    (bars,) = axes.containers
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [[10, 0.9], [25, 0.75], [40, 0.6]])


def test_progress_is_shown(open_book, capsys):
    tfopt.find_sparsity(open_book, READ, 0.33, metric=kept)
    assert "find_sparsity" in capsys.readouterr().out
