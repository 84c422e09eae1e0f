"""Several processes run the trials of one search: nothing is lost when one dies, none outlives the search."""

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from searched import DATA, EPOCHS, Watched, X, Y, is_running, net, notes, wait_for

from tfopt.core.errors import InvalidArgumentError, TfoptError
from tfopt.tuner.folder import FolderTrials
from tfopt.tuner.journal import SearchJournal, Trial
from tfopt.tuner.loop import run_trials
from tfopt.tuner.objective import as_objectives
from tfopt.tuner.proposers import make_oracle
from tfopt.tuner.sources import Budget
from tfopt.tuner.space import SearchSpace
from tfopt.tuner.trainer import Trainer
from tfopt.tuner.tune import search
from tfopt.tuner.worker import _handed_over, hand_over
from tfopt.tuner.workers import _START, _environment

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from searched import DATA, EPOCHS, Watched
from tfopt.tuner.tune import search

folder = sys.argv[1]
found = search(
    Watched(folder, 0.3, together=2), train=DATA, val=DATA, method="grid", objectives="val_loss", budget=6,
    epochs=EPOCHS, stop_early=False, directory=f"{folder}/search", workers=2, verbose=0,
)
"""
CHIEF = """
import sys
import keras_tuner
from searched import DATA, net
from tfopt.tuner.space import SearchSpace

space = SearchSpace.from_model(net(4), width=(0.5, 1, 2), lr=(1e-3, 1e-1))
tuner = keras_tuner.RandomSearch(space, objective="val_loss", max_trials=3, directory=sys.argv[1], project_name="own")
tuner.search(*DATA, validation_data=DATA, epochs=1, verbose=0)
"""


def start(script, *arguments, **environment):
    """Starts a script in a process of its own."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths, **environment})


def run(space, **options):
    settings = {"train": DATA, "val": DATA, "method": "grid", "objectives": "val_loss", "epochs": EPOCHS}
    return search(space, **{**settings, "budget": 6, "stop_early": False, "verbose": 0, **options})


def test_deaths_of_workers_lose_nothing(tmp_path, monkeypatch):
    """Each of six trials is run by one of two workers; one kills its worker once, one each time."""
    monkeypatch.setattr("tfopt.tuner.workers.DEATHS", 2)
    result = run(Watched(tmp_path, once=[2], always=[5]), directory=tmp_path / "search", workers=2)
    trials = {trial.values["units"]: trial for trial in result.trials}
    assert [trial.number for trial in result.trials] == list(range(6))
    assert {units: trial.state for units, trial in trials.items()} == {
        **dict.fromkeys([1, 2, 3, 4, 6], "complete"),
        5: "failed",
    }
    assert trials[5].reason == "2 workers died in it, the last by SIGKILL"
    assert len(notes(tmp_path, 5)) == 2
    epochs, processes = zip(*((epoch, process) for _, process, epoch in notes(tmp_path, 2)), strict=True)
    assert sorted(epochs) == list(range(EPOCHS))  # taken up after the last one, none done again
    assert len(set(processes)) == 2
    assert os.getpid() not in {process for _, process, _ in notes(tmp_path)}
    assert not any(is_running(process) for _, process, _ in notes(tmp_path))
    assert not list((tmp_path / "search").glob(".*"))

    alone = run(Watched(tmp_path), directory=tmp_path / "alone")  # the same, in this process and without deaths
    for trial in alone.trials:
        of_workers = result.trials[trial.number]
        assert of_workers.values == trial.values
        if trial.values["units"] != 5:
            assert len(of_workers.runs[0].history) == EPOCHS
            assert of_workers.figures == pytest.approx(trial.figures, rel=1e-4)
    assert result.best.values == alone.best.values or alone.best.values["units"] == 5
    model = result.best_models()[0]
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(result.best.figures["val_loss"], rel=1e-4)


def test_no_worker_outlives_the_search_and_the_next_call_goes_on(tmp_path):
    parent = start(SCRIPT, tmp_path)
    wait_for(lambda: len({process for _, process, _ in notes(tmp_path)}) == 2)
    wait_for(lambda: len(list((tmp_path / "search").glob("*.npz"))) == 2)
    parent.kill()
    parent.wait()
    workers = {process for _, process, _ in notes(tmp_path)}
    wait_for(lambda: not any(map(is_running, workers)), 60)
    before = [json.loads(path.read_text()) for path in sorted((tmp_path / "search").glob("0*.json"))]
    assert sum(trial["state"] == "running" for trial in before) == 2

    result = run(Watched(tmp_path, 0.3, together=2), directory=tmp_path / "search")  # by one worker, this process
    assert sorted(trial.values["units"] for trial in result.trials) == [1, 2, 3, 4, 5, 6]
    assert {trial.state for trial in result.trials} == {"complete"}
    for trial in before:
        assert result.trials[trial["number"]].values == trial["values"]
        backed_up = [epoch for _, process, epoch in notes(tmp_path, trial["values"]["units"]) if process in workers]
        again = [epoch for _, process, epoch in notes(tmp_path, trial["values"]["units"]) if process == os.getpid()]
        assert len(backed_up) >= 1
        assert sorted({*backed_up, *again}) == list(range(EPOCHS))
        assert len(backed_up) + len(again) <= EPOCHS + 1  # one at most was not on disk yet


def test_a_search_is_handed_over(tmp_path):
    @keras.saving.register_keras_serializable("Tests of workers")
    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    model = keras.Sequential([keras.Input((4,)), Doubled(), *net(3).layers])
    model.compile("adam", "mse", metrics=["mae"])
    space = SearchSpace.from_model(model, width=(0.5, 1, 2), lr=(1e-3, 1e-1))
    batches = tf.data.Dataset.from_tensor_slices(DATA).batch(8)
    trainer = Trainer(
        space=space,
        journal=SearchJournal(tmp_path / "search", {"a": "b"}),
        objectives=as_objectives("val_loss"),
        constraints=(),
        train=({"x": X}, Y, None),
        val=batches,
        folds=(),
        executions=1,
        epochs=2,
        batch_size=8,
        stop_early=True,
        seed=0,
    )
    hand_over(trainer, tmp_path)
    found = _handed_over(tmp_path)
    assert (found.epochs, found.batch_size, found.seed, found.objectives) == (2, 8, 0, trainer.objectives)
    assert found.journal.directory == trainer.journal.directory
    np.testing.assert_array_equal(found.train[0]["x"], X)
    assert isinstance(found.train[0]["x"].base, np.memmap)
    assert found.train[2] is None
    for old, new in zip(batches, found.val, strict=True):
        np.testing.assert_array_equal(old[0], new[0])
    assert [axis.values for axis in found.space.axes] == [axis.values for axis in space.axes]
    np.testing.assert_array_equal(found.space.model(X), model(X))
    assert found.space.model.compiled


def test_trials_are_taken_up_in_the_order_of_then(tmp_path):
    """Hyperband's proposals depend on what was known when: two at a time, cut off and gone on with."""

    class Formula:
        size = 2

        def __init__(self, end_after):
            self.tasks, self.left = [], end_after

        def give(self, trial, hp, deadline):
            self.tasks.append((trial, hp))

        def ended(self):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            trial, hp = self.tasks.pop(-1 if self.left % 3 else 0)  # not in the order of their starts
            loss = float(hp.get("units")) / hp.values["tuner/epochs"]
            return [(Trial(**{**vars(trial), "state": "complete", "figures": {"val_loss": loss}}), hp)]

    class Space(Watched):
        def build(self, hp):
            hp.Int("units", 1, 100)

    def proposals(folder, *ends):
        for end_after in ends:
            trials = FolderTrials(
                *(Space(tmp_path), make_oracle("hyperband", as_objectives("val_loss"), epochs=9)),
                *(SearchJournal(folder, {}), as_objectives("val_loss"), 0),
            )
            with contextlib.suppress(KeyboardInterrupt):
                run_trials(trials, Formula(end_after), Budget(40, None), 0)
        return [(trial.values, trial.proposed_after) for trial in SearchJournal(folder, {}).trials()]

    whole = proposals(tmp_path / "whole", 40)
    assert len(whole) == 40
    assert any(values["tuner/round"] > 0 for values, _ in whole)
    cut = proposals(tmp_path / "cut", 12, 40)
    assert [row for row in cut if row[1] < 12] == [row for row in whole if row[1] < 12]
    assert len(cut) == 40


def test_what_cannot_go_to_workers_is_refused(tmp_path):
    lock = threading.Lock()

    def builder(hp):
        with lock:
            return net(hp.Choice("units", [1, 2]))

    with pytest.raises(InvalidArgumentError, match=r"picklable.*lock.*inside of the builder"):
        run(builder, workers=2, directory=tmp_path)
    assert not list(tmp_path.glob(".*"))
    endless = tf.data.Dataset.from_tensor_slices(DATA).batch(8).repeat()
    with pytest.raises(InvalidArgumentError, match="must have an end"):
        run(Watched(tmp_path), train=endless, val=DATA, workers=2)
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        run(Watched(tmp_path), workers=0)


def test_errors_of_workers_come_back(tmp_path):
    with pytest.raises(InvalidArgumentError, match="logged are loss, val_loss"):
        run(Watched(tmp_path), objectives=[("val_iou", "max")], budget=1, workers=2)
    processes = {process for _, process, _ in notes(tmp_path)}
    assert processes
    assert not any(map(is_running, processes))


def test_a_module_that_a_worker_does_not_find(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("from searched import net\n\ndef build(hp):\n    return net(2)\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        builder = importlib.import_module("only_here").build
    with pytest.raises(TfoptError, match="able to load the space and the data.*No module named 'only_here'"):
        run(builder, budget=1, workers=2, directory=tmp_path / "search")


def test_workers_run_nothing_of_the_current_directory(tmp_path):
    for name in ("json", "signal", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')")
    package = tmp_path / "path" / "tfopt" / "tuner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "worker.py").write_text(
        "import json, multiprocessing\n\ndef main(folder, descriptor):\n    print(folder, descriptor)\n"
    )
    paths = [str(tmp_path / "path"), *(path for path in sys.path if path)]
    command = [sys.executable, "-c", _START, "folder", "7", *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "folder 7\n", done.stderr


def test_workers_share_the_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for size, threads in ((2, "4"), (3, "2"), (20, "1")):
        found = _environment(size)
        assert found["OMP_NUM_THREADS"] == found["TF_NUM_INTRAOP_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert _environment(2)["OMP_NUM_THREADS"] == "5"


def test_keras_tuners_own_chief_takes_a_space(tmp_path):
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}
    processes = [start(CHIEF, tmp_path, KERASTUNER_TUNER_ID=name, **address) for name in ("chief", "worker0")]
    assert [process.wait(400) for process in processes] == [0, 0]
    trials = [json.loads(path.read_text()) for path in (tmp_path / "own").glob("trial_*/trial.json")]
    assert [trial["status"] for trial in trials] == ["COMPLETED"] * 3
