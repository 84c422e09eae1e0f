"""Curves against direct evaluation, the split of a target by hand and by linear programming, and resuming."""

import inspect
import json
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl
from scipy.optimize import linprog
from sklearn.datasets import load_digits

import tfopt
from tfopt.core.data.goals import as_goal
from tfopt.core.data.samples import labelled
from tfopt.core.errors import FileError, InvalidArgumentError, NonFiniteError, NothingToDoError, UnsupportedModelError
from tfopt.pruning.criteria import Criterion
from tfopt.pruning.sensitivity import sensitivity as module
from tfopt.pruning.sensitivity.curves import MOST_CURVES, LayerCurve, Sensitivity

quiet = partial(tfopt.sensitivity, verbose=0)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype("float32")[:600], y[:600]


@pytest.fixture(scope="module")
def net(digits):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((64,)), kl.Dense(24, "relu", name="wide"), kl.Dense(10, name="head")])
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*digits, epochs=4, verbose=0)
    return model


def mean_output(y_true, y_pred):
    return float(np.mean([np.mean(np.abs(part)) for part in keras.tree.flatten(y_pred)]))


@pytest.mark.parametrize("name", ["nested", "shared", "sequence"])
def test_curves_equal_direct_evaluation(name):
    model = zoo.build(name)
    x, before = zoo.inputs_for(model), zoo.state(model)
    curves = quiet(model, (x, np.zeros(16)), mean_output, sparsities=(0.6,))
    assert curves.baseline == pytest.approx(mean_output(None, model(x)), rel=1e-6)
    assert len(curves.layers) == {"nested": 4, "shared": 3, "sequence": 5}[name]
    for curve in curves.layers:
        direct = tfopt.prune(model, sparsity={curve.path: 0.6})
        assert curve.points == ((0.6, pytest.approx(mean_output(None, direct(x)), rel=1e-6)),)
    assert len({curve.points for curve in curves.layers} | {curves.baseline}) == len(curves.layers) + 1
    assert all(np.array_equal(old, new) for old, new in zip(before, zoo.state(model), strict=True))


def test_accuracy_of_a_trained_net(net, digits):
    x, y = digits
    curves = quiet(net, digits, sparsities=(0.9, 0.5))
    assert curves["wide"].weights == 64 * 24
    for path in ("wide", "head"):
        for sparsity, score in curves[path].points:
            direct = tfopt.prune(net, sparsity={path: sparsity}).predict(x, verbose=0).argmax(1)
            assert score == (direct == y).mean()
    assert [sparsity for sparsity, _ in curves["head"].points] == [0.5, 0.9]
    assert curves.samples == 600


def test_the_split_feeds_prune(net, digits):
    curves = quiet(net, digits, sparsities=(0.3, 0.6, 0.9))
    split = curves.sparsities(0.7)
    pruned = tfopt.prune(net, sparsity=split)
    zeros = sum((layer.kernel.numpy() == 0).sum() for layer in pruned.layers)
    total = sum(layer.kernel.numpy().size for layer in pruned.layers)
    assert abs(zeros - 0.7 * total) <= 1  # half a weight of rounding for each of the two kernels
    assert split == curves.sparsities(0.7)


def test_include_and_exclude(net, digits):
    assert [curve.path for curve in quiet(net, digits, sparsities=[0.5], exclude="head").layers] == ["wide"]
    assert [curve.path for curve in quiet(net, digits, sparsities=[0.5], include="h*").layers] == ["head"]


# The split of a target. Scores fall from 1.


def record(*layers, baseline=1.0, mode="max"):
    return Sensitivity("net", "accuracy", mode, 100, baseline, tuple(LayerCurve(*layer) for layer in layers))


def test_split_by_hand():
    # Drops a weight: b costs 0.1/150 up to 0.5, then 0.8/120; a, under the chord of its bulge, 0.5/90 all the way.
    # 200 of 400 weights: 150 of b, then 50 of a.
    a = ("a", 100, ((0.5, 0.6), (0.9, 0.5)))
    b = ("b", 300, ((0.5, 0.9), (0.9, 0.1)))
    assert record(a, b).sparsities(0.5) == {"a": 0.5, "b": 0.5}
    # 330 weights: all 90 of a, then 90 more of b.
    assert record(a, b).sparsities(0.825) == {"a": 0.9, "b": 0.8}
    # 30 weights: b alone, so that a is not named.
    assert record(a, b).sparsities(0.075) == {"b": 0.1}
    assert sorted(record(a, b).sparsities(0.9)) == ["a", "b"]


def test_layers_that_cost_the_same_advance_together():
    free = [(name, weights, ((0.4, 1.2), (0.8, 1.0))) for name, weights in (("a", 10), ("b", 1000))]
    assert record(*free).sparsities(0.4) == {"a": 0.4, "b": 0.4}  # a rise above the baseline is no gain


def test_a_lower_score_can_be_better():
    layers = ("a", 100, ((0.5, 0.6), (0.9, 0.5))), ("b", 300, ((0.5, 0.9), (0.9, 0.1)))
    mirrored = [(path, weights, tuple((s, 2 - score) for s, score in points)) for path, weights, points in layers]
    assert record(*mirrored, mode="min").sparsities(0.5) == record(*layers).sparsities(0.5)


def test_names_at_the_top_come_first():
    nested, top = ("block/dense", 10, ((0.9, 0.9),)), ("dense", 10, ((0.9, 0.9),))
    assert list(record(nested, top).sparsities(0.5)) == ["dense", "block/dense"]


@pytest.mark.parametrize("target", [0, 1, -0.5, "half", True, float("nan")])
def test_targets_are_fractions(target):
    with pytest.raises(InvalidArgumentError, match="`target` must be a number above 0 and below 1"):
        record(("a", 10, ((0.5, 0.9),))).sparsities(target)


def test_targets_lie_within_the_curves():
    with pytest.raises(InvalidArgumentError, match="curves end at 0.500 overall.*Measure higher"):
        record(("a", 10, ((0.5, 0.9),))).sparsities(0.51)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 1000), st.lists(st.integers(0, 50), min_size=3, max_size=3)), min_size=1),
    st.floats(0.01, 0.89),
)
def test_split_is_the_optimum_of_a_linear_program(layers, target):
    """On convex curves, where a drop is the highest of the lines through its segments."""
    places = np.array([0.0, 0.3, 0.6, 0.9])
    drops = [np.concatenate([[0], np.cumsum(sorted(steps))]) / 500 for _, steps in layers]
    weights = np.array([weights for weights, _ in layers])
    curves = [
        (f"l{i}", int(weights[i]), tuple(zip(places[1:].tolist(), (1 - drops[i][1:]).tolist(), strict=True)))
        for i in range(len(layers))
    ]
    split = record(*curves).sparsities(target)
    chosen = np.array([split.get(f"l{i}", 0.0) for i in range(len(layers))])
    assert chosen @ weights == pytest.approx(target * weights.sum(), rel=1e-6)

    n = len(layers)  # unknowns: n sparsities, n drops
    rows, bounds = [np.concatenate([-weights, np.zeros(n)])], [-target * weights.sum()]
    for i, drop in enumerate(drops):
        for slope, place, height in zip(np.diff(drop) / 0.3, places, drop, strict=False):
            row = np.zeros(2 * n)
            row[i], row[n + i] = slope, -1
            rows.append(row)
            bounds.append(slope * place - height)
    best = linprog(np.repeat([0, 1], n), np.array(rows), bounds, bounds=[(0, 0.9)] * n + [(0, None)] * n)
    cost = sum(np.interp(chosen[i], places, drops[i]) for i in range(n))
    assert cost == pytest.approx(best.fun, abs=1e-6)


# Resuming.


class Counted:
    """Accuracy that stops the program at its n-th call."""

    def __init__(self, stop_at=None):
        self.calls, self.stop_at = 0, stop_at
        self.__name__ = "counted"

    def __call__(self, y_true, y_pred):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return float((y_pred.argmax(1) == y_true).mean())


def test_a_stopped_measurement_goes_on(net, digits, tmp_path):
    path = tmp_path / "curves.json"
    options = {"sparsities": (0.5, 0.8), "resume": path}
    with pytest.raises(KeyboardInterrupt):
        quiet(net, digits, Counted(stop_at=4), **options)
    assert len(json.loads(path.read_text())["results"]) == 3
    rest = Counted()
    resumed = quiet(net, digits, rest, **options)
    assert rest.calls == 2  # of 1 + 2 * 2
    assert resumed.to_dict() == quiet(net, digits, Counted(), sparsities=(0.5, 0.8)).to_dict()
    more = Counted()
    assert len(quiet(net, digits, more, sparsities=(0.5, 0.8, 0.9), resume=path)["head"].points) == 3
    assert more.calls == 2
    assert list(tmp_path.iterdir()) == [path]


def test_results_of_something_else_are_refused(net, digits, tmp_path):
    path, (x, y) = tmp_path / "curves.json", digits
    go_on = partial(quiet, sparsities=(0.5,), resume=path)
    go_on(net, digits)
    other = tfopt.prune(net, sparsity=0.1)
    for what, call in {
        "model": partial(go_on, other, digits),
        "data": partial(go_on, net, (x[1:], y[1:])),
        "metric": partial(go_on, net, digits, "f1"),
        "metric and options of prune": partial(go_on, net, digits, "f1", nonsense=1),
    }.items():
        with pytest.raises(InvalidArgumentError, match=f"which differs in {what}. Pass what was passed then"):
            call()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"kind": "tfopt other 1", "settings": {}, "results": {}}'])
def test_other_files_are_refused_and_left_alone(net, digits, tmp_path, content):
    path = tmp_path / "notes.json"
    path.write_text(content)
    with pytest.raises(FileError, match="what this version of `sensitivity` wrote"):
        quiet(net, digits, resume=path)
    assert path.read_text() == content


def test_a_path_that_cannot_be_written_is_told_at_once(net, digits, tmp_path):
    with pytest.raises(FileError, match="folder to write to must exist"):
        quiet(net, digits, Counted(stop_at=1), resume=tmp_path / "none" / "curves.json")


# Options of `prune`.


@pytest.fixture
def prune_calls(monkeypatch):
    """The options of each call of `prune`; those it does not know yet are left out of the real call."""
    calls, real = [], module.prune
    known = {"sparsity", "include", "exclude"}

    def spy(model, **options):
        calls.append(options)
        return real(model, **{name: value for name, value in options.items() if name in known})

    monkeypatch.setattr(module, "prune", spy)
    return calls


def test_one_pruned_model_serves_all_layers(net, digits, prune_calls):
    quiet(net, digits, sparsities=(0.5, 0.8), pattern="element")
    assert prune_calls == [{"sparsity": s, "include": None, "exclude": None, "pattern": "element"} for s in (0.5, 0.8)]


@pytest.mark.parametrize("options", [{"pattern": "channel"}, {"criterion": Criterion("dice", abs, needs=("seed",))}])
def test_layers_that_depend_on_each_other_are_pruned_one_by_one(net, digits, prune_calls, options):
    curves = quiet(net, digits, sparsities=(0.5, 0.8), **options)
    asked = [call["sparsity"] for call in prune_calls[1:]]
    assert asked == [{"wide": 0.5}, {"head": 0.5}, {"wide": 0.8}, {"head": 0.8}]
    assert curves.to_dict() == quiet(net, digits, sparsities=(0.5, 0.8)).to_dict()


def test_criteria_that_need_data_get_it(net, digits, prune_calls):
    quiet(net, digits, sparsities=(0.5,), criterion=Criterion("taylor", abs, needs=("gradients",)))
    ((x, y),) = [call["data"] for call in prune_calls]
    assert np.array_equal(x, digits[0])
    assert np.array_equal(y, digits[1])


# Data and metrics.


def test_data_in_any_form(net, digits):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return tuple(part[100 * index : 100 * (index + 1)] for part in digits)

    wanted = quiet(net, digits, sparsities=(0.8,)).to_dict()
    dataset = tf.data.Dataset.from_tensor_slices(digits).batch(100)
    x, y = digits
    for data in (dataset, Batches(), iter(dataset), [x, list(y)], (tf.constant(x), y[:, None]), (x, np.eye(10)[y])):
        assert quiet(net, data, sparsities=(0.8,)).to_dict() == wanted


def test_several_inputs_as_a_dataset():
    model = zoo.build("shared")
    x = zoo.inputs_for(model)
    y = {"a": np.zeros((16, 2)), "b": np.ones((16, 3))}
    samples = labelled(model, tf.data.Dataset.from_tensor_slices((x, y)).batch(5))
    for name in ("left", "right"):
        np.testing.assert_array_equal(samples.x[name], x[name])
    assert {name: part.shape for name, part in samples.y.items()} == {"a": (16, 2), "b": (16, 3)}
    chosen = samples.rows(np.array([3, 1]))
    np.testing.assert_array_equal(chosen.x["left"], x["left"][[3, 1]])
    assert len(chosen) == 2


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("accuracy", "max"),
        ("f1", "max"),
        ("mae", "min"),
        ("rmse", "min"),
        ("mse", "min"),
        ("mean_absolute_error", "min"),
        ("root_mean_squared_error", "min"),
        ("sparse_categorical_crossentropy", "min"),
        ("cosine_similarity", "max"),
        ("sparse_top_k_categorical_accuracy", "max"),
        (keras.metrics.AUC(), "max"),
        (keras.metrics.MeanSquaredError(name="error"), "min"),
        (keras.metrics.FalsePositives(), "min"),
        (keras.losses.huber, "min"),
        (mean_output, "max"),
    ],
)
def test_which_way_is_better(metric, mode):
    assert as_goal(metric, "auto").mode == mode
    assert as_goal(metric, "min").mode == "min"


def test_errors_are_minimised():
    model = keras.Sequential([keras.Input((20,)), kl.Dense(1, use_bias=False, name="out")])
    x = np.random.default_rng(0).normal(size=(50, 20)).astype("float32")
    curves = quiet(model, (x, model.predict(x, verbose=0)), "mae", sparsities=(0.5, 0.9))
    assert curves.mode == "min"
    assert curves.baseline == pytest.approx(0, abs=1e-6)
    cut = [
        np.where(tfopt.prune(model, sparsity=s).layers[0].kernel.numpy() == 0, model.get_weights()[0], 0)
        for s in (0.5, 0.9)
    ]
    assert [score for _, score in curves["out"].points] == pytest.approx([np.abs(x @ c).mean() for c in cut], rel=1e-4)
    assert "lower is better" in str(curves)


# Errors.

WRONG = {
    "`sparsities` must be fractions": {"sparsities": (0.5, 1.0)},
    "`sparsities` must be fractions of zeros": {"sparsities": ()},
    "`sparsities` must be": {"sparsities": 0.5},
    "`mode` must be one of 'auto', 'max', 'min'": {"mode": "up"},
    "threshold=0.1, .*these are not|these are not. Received: threshold=0.1": {"threshold": 0.1},
    "these are not. Received: schedule": {"schedule": None},
    "A curve is that of one layer": {"scope": "global"},
    "named by a string": {"metric": "accurracy"},
    "has to suit the task. Received: 'mae' for a task with accuracy": {"metric": "mae"},
    "A metric is a function": {"metric": 3},
    "`batch_size` must be a whole number": {"batch_size": 0},
    "`include` must fit a layer": {"include": "conv"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_options(net, digits, message):
    with pytest.raises(InvalidArgumentError, match=message):
        quiet(net, digits, **WRONG[message])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x, y: x, "pair \\(x, y\\)"),
        (lambda x, y: (x, None), "pair \\(x, y\\)"),
        (lambda x, y: (x, y, y, y), "pair \\(x, y\\).*tuple of 4"),
        (lambda x, y: (x, y, y[1:]), "600 samples, 599 or 600 labels"),
        (lambda x, y: (x, y[1:]), "600 samples, 599 labels"),
        (lambda x, y: (x[:, 1:], y), "shape of the model's input"),
        (lambda x, y: (x[:0], y[:0]), "at least one sample"),
        (lambda x, y: tf.data.Dataset.from_tensors((x, y)).repeat(), "must have an end"),
        (lambda x, y: tf.data.Dataset.from_tensors(x), "pair \\(x, y\\)"),
    ],
)
def test_wrong_data(net, digits, data, message):
    with pytest.raises(InvalidArgumentError, match=message):
        quiet(net, data(*digits))


def test_other_errors(net, digits, monkeypatch):
    x, y = digits
    with pytest.raises(NonFiniteError, match="data has to be finite"):
        quiet(net, (np.where(x == x[0, 2], np.nan, x), y))
    with pytest.raises(NonFiniteError, match="metric has to be finite"):
        quiet(net, digits, lambda y_true, y_pred: float("inf"))
    with pytest.raises(UnsupportedModelError):
        quiet("net.keras", digits)
    with pytest.raises(NothingToDoError):
        quiet(keras.Sequential([keras.Input((64,)), kl.ReLU()]), digits)
    with pytest.raises(TypeError, match="patern"):
        quiet(net, digits, patern="element")
    two = keras.Input((64,))
    several = keras.Model(two, [kl.Dense(10)(two), kl.Dense(10)(two)])
    with pytest.raises(InvalidArgumentError, match="'accuracy' for several outputs. Pass a function"):
        quiet(several, (x, [y, y]))


# Renderings.


@pytest.fixture(scope="module")
def curves(net, digits):
    return tfopt.sensitivity(net, digits, sparsities=(0.5, 0.9), verbose=0)


def test_renderings(curves, tmp_path):
    lines = str(curves).splitlines()
    assert lines[1].split() == ["layer", "weights", "50.0", "%", "90.0", "%"]
    assert lines[3].split()[:2] == ["wide", "1,536"]
    assert f"No layer pruned: {curves.baseline:.4f}. On 600 samples; higher is better." in lines
    assert curves._repr_html_().count("<svg") == 1
    assert "<table>" in curves._repr_html_()
    saved = json.loads(curves.save(tmp_path / "curves.json").read_text())
    assert saved["layers"][0]["points"][1] == [0.9, curves["wide"].points[1][1]]
    assert curves.save(tmp_path / "curves.html").read_text().count("<svg") == 1


def test_plot(curves):
    (axes,) = curves.plot().axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sparsity of the layer's kernels, %", "accuracy")
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    scores = [score for _, score in curves["head"].points]
    np.testing.assert_allclose(drawn["head"], np.column_stack([[0, 50, 90], [curves.baseline, *scores]]))
    assert any(np.allclose(line.get_ydata(), curves.baseline) for line in axes.lines)


def test_plots_of_many_layers_name_the_most_sensitive():
    layers = [(f"l{i}", 10, ((0.5, 1 - i / 100),)) for i in range(MOST_CURVES + 5)]
    figure = record(*layers).plot()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted(f"l{i}" for i in range(5, MOST_CURVES + 5))
    assert figure.legends[0].get_title().get_text() == f"the {MOST_CURVES} most sensitive of {len(layers)} layers"
    assert len(figure.axes[0].lines) == len(layers) + 1


def test_progress_is_shown(net, digits, capsys):
    tfopt.sensitivity(net, digits, sparsities=(0.5,))
    assert "sensitivity" in capsys.readouterr().out
    quiet(net, digits, sparsities=(0.5,))
    assert capsys.readouterr().out == ""


def test_default_sparsities():
    assert inspect.signature(tfopt.sensitivity).parameters["sparsities"].default == (
        *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    )
