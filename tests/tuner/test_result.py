"""What a result tells: importance of hyperparameters, the log for TensorBoard."""

import itertools

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tfopt.core.errors import FileError, InvalidArgumentError
from tfopt.tuner.journal import Run, Trial
from tfopt.tuner.objective import as_constraints, as_objectives
from tfopt.tuner.result import IMPORTANCE, SearchResult


def result(trials, objectives="val_accuracy", constraints=()):
    return SearchResult("net", "random", as_objectives(objectives), as_constraints(constraints), tuple(trials), None)


def trials_of(points, score):
    """A trained trial for each point, with what `score` gives for it."""
    return [
        Trial(number, values, "complete", {"val_accuracy": score(**values), "macs": 10.0 * number})
        for number, values in enumerate(points)
    ]


def grid(**values):
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def test_importance_is_the_share_of_the_variance():
    points = grid(kind=["a", "b"], width=[0.5, 1.0, 2.0, 4.0], kernel_size=[1, 3, 5], idle=[True, False])
    best = {"a": 0.0, "b": 6.0}
    shares = result(
        trials_of(points, lambda kind, width, **_: best[kind] + 2 * [0.5, 1, 2, 4].index(width))
    ).importance()
    assert list(shares) == ["kind", "width", *list(shares)[2:]]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["kind"] == pytest.approx(9 / 14, abs=0.08)  # two values 6 apart: 6² / 4
    assert shares["width"] == pytest.approx(5 / 14, abs=0.08)  # 0, 2, 4, 6: 5
    assert shares["kernel_size"] < 0.02
    assert shares["idle"] < 0.02


def test_importance_does_not_depend_on_the_scale_of_a_range():
    scales = [lambda rank: 10.0**-rank, lambda rank: 3.0 - rank]
    shares = [
        result(
            trials_of(grid(lr=[scale(rank) for rank in range(4)], b=[1, 2, 3]), lambda lr, b: lr * 0 + b)
        ).importance()
        for scale in scales
    ]
    assert shares[0] == shares[1]


def test_importance_is_of_what_all_trained_trials_have():
    points = [{"a": i % 3, "same": 1, "tuner/epochs": i, **({"depth_2": i} if i > 3 else {})} for i in range(9)]
    trials = [*trials_of(points, lambda a, **_: a / 3), Trial(9, {"a": 7}, "infeasible", {"macs": 3.0})]
    assert result(trials).importance() == {"a": pytest.approx(1)}


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        ([], "0 trained trials"),
        (trials_of(grid(a=[1, 2, 3, 4]), lambda a: a), "4 trained trials"),
        (trials_of(grid(a=[1, 2, 3, 4, 5]), lambda a: 0.5), "the same val_accuracy in all 5 trials"),
        (trials_of([{"a": 1}] * 3 + [{"a": 1, "b": 2}] * 3, lambda a, b=0: b), "without a difference"),
    ],
)
def test_too_little_for_importance_is_said(trials, said):
    found = result(trials)
    for call in (found.importance, found.plot_importance):
        with pytest.raises(InvalidArgumentError, match=said):
            call()
    assert IMPORTANCE.format("val_accuracy") not in found.figures()


def test_importance_is_plotted_and_on_the_page(tmp_path):
    found = result(
        trials_of(grid(a=[1, 2, 3], b=["$x", "y"]), lambda a, b: a + (b == "y") / 10), ("val_accuracy", "macs")
    )
    shares = found.importance()
    axes = found.plot_importance().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*reversed(shares)]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(
        [100 * share for share in reversed(shares.values())]
    )
    page = found.save(tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 3
    assert "explains, interactions included (fANOVA)" in page


def events(folder):
    """What a folder holds: `{tag: {step: value}}`, and by tag what the HParams tab reads."""
    read = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in read.Tags()["tensors"] if not tag.startswith("_hparams_/")]
    scalars = {
        tag: {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in read.Tensors(tag)} for tag in tags
    }
    content = read.PluginTagToContent("hparams")
    return scalars, {tag.split("/")[1]: HParamsPluginData.FromString(part) for tag, part in content.items()}


def test_tensorboard_reads_every_trial(tmp_path):
    run = Run({"loss": 0.25}, [{"loss": 0.5}, {"loss": 0.25}])
    values = [{"lr": 0.1 / number, "kind": "deep", "k": number % 2, "flag": True} for number in range(1, 5)]
    trials = [
        Trial(0, values[0], "complete", {"val_accuracy": 0.75, "macs": 64.0}, 0.0, (run, run)),
        Trial(1, values[1], "stopped", {"val_accuracy": 0.5, "macs": 32.0}, 0.0, (run,)),
        Trial(2, values[2], "infeasible", {"macs": 4096.0}, 3.0, reason="breaks macs <= 1,024"),
        Trial(3, values[3], "failed", reason="ValueError"),
    ]
    folder = result(trials, ("val_accuracy", "macs")).to_tensorboard(tmp_path / "logs" / "first")
    assert folder == tmp_path / "logs" / "first"
    assert [path.name for path in sorted(folder.iterdir()) if path.is_dir()] == [f"{i:05d}" for i in range(4)]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["first"]

    _, found = events(folder)
    experiment = found["experiment"].experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["val_accuracy", "macs"]
    domains = {info.name: info for info in experiment.hparam_infos}
    assert set(domains) == set(values[0])
    assert (domains["lr"].domain_interval.min_value, domains["lr"].domain_interval.max_value) == (0.025, 0.1)
    assert [part.number_value for part in domains["k"].domain_discrete.values] == [0, 1]
    assert [part.string_value for part in domains["kind"].domain_discrete.values] == ["deep"]

    ended = [Status.STATUS_SUCCESS, Status.STATUS_SUCCESS, Status.STATUS_FAILURE, Status.STATUS_FAILURE]
    for trial, status in zip(trials, ended, strict=True):
        scalars, found = events(folder / f"{trial.number:05d}")
        written = found["session_start_info"].session_start_info.hparams
        assert written["lr"].number_value == trial.values["lr"]
        assert (written["kind"].string_value, written["flag"].bool_value) == ("deep", True)
        assert found["session_end_info"].session_end_info.status == status
        history = {"epoch/loss": {1: 0.5, 2: 0.25}} if trial.runs else {}
        assert scalars == {**history, **{name: {0: value} for name, value in trial.figures.items()}}


def test_a_log_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    found = result(trials_of(grid(a=[1, 2]), lambda a: a))
    (tmp_path / "empty").mkdir()
    assert found.to_tensorboard(tmp_path / "empty").is_dir()
    for taken in ("empty", "empty/00000"):
        with pytest.raises(FileError, match="not there yet, or is empty"):
            found.to_tensorboard(tmp_path / taken)
    (tmp_path / "file").write_text("mine")
    for taken in ("file", "file/logs"):
        with pytest.raises(FileError):
            found.to_tensorboard(tmp_path / taken)
    before = sorted(tmp_path.rglob("*"))

    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("tfopt.tuner.hparams._write_trial", full)
    with pytest.raises(FileError, match="disk full"):
        found.to_tensorboard(tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before
