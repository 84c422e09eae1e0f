"""Searches whose trials are in a database: PostgreSQL with workers that are killed, SQLite for the rest."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
import pytest
from searched import DATA, EPOCHS, Watched, notes, wait_for

from tfopt.core.errors import FileError, InvalidArgumentError, TfoptError
from tfopt.tuner import studies
from tfopt.tuner.journal import Trial
from tfopt.tuner.tune import search

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
from searched import DATA, EPOCHS, Watched
from tfopt.tuner import studies
from tfopt.tuner.tune import search

url, folder = sys.argv[1:]
studies.HEARTBEAT, studies.GRACE = 1, 15
found = search(
    Watched(folder, 0.3, together=2), train=DATA, val=DATA, objectives="val_loss", budget=5, epochs=EPOCHS,
    stop_early=False, directory=f"{folder}/search", storage=url, name="deaths", verbose=0,
)
print(json.dumps([[trial.number, trial.values, trial.state, trial.figures] for trial in found.trials]))
"""


def server_program(name):
    """The path of a program of PostgreSQL; Debian has them outside of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return shutil.which(name) or (str(found[-1]) if found else None)


@pytest.fixture(scope="module")
def postgresql():
    """The address of an empty server of its own, which listens in a folder. It does not run as root."""
    programs = [server_program(name) for name in ("initdb", "postgres")]
    if None in programs:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    account = {}
    if os.getuid() == 0:
        name = next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})
        account = {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        if account:
            shutil.chown(folder, account["user"], account["group"])
        options = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **account}
        data = f"{folder}/data"
        subprocess.run([programs[0], "-D", data, "-U", "tester", "-A", "trust", "--no-sync"], check=True, **options)
        settings = ["listen_addresses=", f"unix_socket_directories={folder}", "fsync=off"]
        command = [programs[1], "-D", data, *(part for setting in settings for part in ("-c", setting))]
        server = subprocess.Popen(command, **{**options, "stderr": subprocess.DEVNULL})
        try:
            wait_for(lambda: Path(folder, ".s.PGSQL.5432").exists(), 120)
            yield f"postgresql://tester@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # does not wait for its clients
            server.wait()


@pytest.fixture
def sqlite(tmp_path):
    return f"sqlite:///{tmp_path}/studies.db"


def run(space, storage, **options):
    settings = {"train": DATA, "val": DATA, "objectives": "val_loss", "epochs": EPOCHS, "stop_early": False}
    return search(space, **{**settings, "budget": 5, "verbose": 0, "storage": storage, "name": "a", **options})


def study_of(storage, name="a"):
    return optuna.load_study(study_name=name, storage=storage)


def test_the_trial_of_a_killed_worker_is_finished_by_another(postgresql, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", SCRIPT, postgresql, str(tmp_path)]
    killed, other = (
        subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    )

    def epochs(worker, units):
        return [epoch for _, process, epoch in notes(tmp_path, units) if process == worker.pid]

    cut_off = wait_for(lambda: [units for units in range(1, 7) if len(epochs(killed, units)) == 2])[0]
    killed.kill()
    killed.communicate()
    said, errors = other.communicate(timeout=400)
    assert other.returncode == 0, errors[-2000:]
    trials = json.loads(said)
    assert [state for _, _, state, _ in trials] == ["complete"] * 5
    units = [values["units"] for _, values, _, _ in trials]
    assert len(set(units)) == 5
    before, after = epochs(killed, cut_off), epochs(other, cut_off)
    assert len(before) == 2
    assert sorted({*before, *after}) == list(range(EPOCHS))  # finished by the other
    assert len(after) <= EPOCHS - 1  # and not from the start

    def again(**options):
        return run(
            Watched(tmp_path, 0.3, together=2),
            postgresql,
            name="deaths",
            **{"directory": tmp_path / "search", **options},
        )

    whole = again()  # nothing left to do
    assert [[trial.number, trial.values, trial.state, trial.figures] for trial in whole.trials] == trials
    assert len(whole.best_models(5)) == 5
    with pytest.raises(FileError, match="Let all workers have one `directory`"):
        again(directory=tmp_path / "elsewhere").best_models()
    with pytest.raises(InvalidArgumentError, match="`name` must be.*differs in settings"):
        again(epochs=EPOCHS + 1, directory=None)


@pytest.mark.parametrize("method", ["tpe", "nsga2", "random"])
def test_it_goes_on_and_ends_where_there_is_nothing_left_to_try(sqlite, tmp_path, method):
    space = Watched(tmp_path)
    options = {"method": method, "epochs": 1, "directory": tmp_path / "search"}
    first = run(space, sqlite, budget=2, **options)
    assert len(first.trials) == 2
    whole = run(space, sqlite, budget=40, **options)
    assert whole.trials[:2] == first.trials
    assert sorted(trial.values["units"] for trial in whole.trials) == [1, 2, 3, 4, 5, 6]  # the space has six points
    assert len(notes(tmp_path)) == 6
    told = {trial.params["units"]: trial.value for trial in study_of(sqlite).trials if trial.state.name == "COMPLETE"}
    assert told == {trial.values["units"]: trial.figures["val_loss"] for trial in whole.trials}


def test_constraints_cost_no_budget_and_are_told(sqlite, tmp_path):
    found = run(Watched(tmp_path), sqlite, budget=2, epochs=1, constraints="parameters <= 13")  # 6 a unit and 1
    assert sum(trial.state == "complete" for trial in found.trials) == 2
    for trial in found.trials:
        assert trial.state == ("complete" if trial.values["units"] <= 2 else "infeasible")
        assert trial.violation == pytest.approx(max(0, (6 * trial.values["units"] + 1) / 13 - 1))
    assert found.best_models()


def test_a_budget_of_seconds_is_that_of_all_calls(sqlite, tmp_path):
    class Slow(Watched):
        def build(self, hp):
            hp.Float("unused", 0, 1)
            return super().build(hp)

    options = {"epochs": 10_000, "directory": tmp_path / "search"}
    first = run(Slow(tmp_path, 0.05), sqlite, budget="1.5s", **options)
    assert first.trials[-1].reason == "the time is up"
    assert 1.4 < sum(trial.seconds for trial in first.trials) < 6
    assert run(Slow(tmp_path, 0.05), sqlite, budget="1.5s", **options).trials == first.trials


def test_a_trial_that_is_cut_off_by_hand_is_the_next(sqlite, tmp_path):
    class Stopped(Watched):
        def _note(self, units, epoch):
            super()._note(units, epoch)
            if epoch == 1 and len(notes(tmp_path)) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Stopped(tmp_path), sqlite, directory=tmp_path / "search")
    (units,) = {units for units, _, _ in notes(tmp_path)}
    found = run(Stopped(tmp_path), sqlite, directory=tmp_path / "search", budget=2)
    assert found.trials[0].number == 0
    assert found.trials[0].values == {"units": units}
    assert [epoch for _, _, epoch in notes(tmp_path, units)] == list(range(EPOCHS))  # none twice


def test_a_worker_whose_trial_was_taken_over_drops_it(sqlite, tmp_path):
    """As for one that was asleep for longer than the grace period."""

    class Asleep(Watched):
        def _note(self, units, epoch):
            super()._note(units, epoch)
            if len(notes(tmp_path)) == 1:
                study = study_of(sqlite)
                (trial,) = study.get_trials()
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                studies.begin_again(study, trial)

    found = run(Asleep(tmp_path), sqlite, budget=2, directory=tmp_path / "search")
    assert [trial.state for trial in found.trials] == ["complete"] * 2
    assert found.trials[0].number == 0
    first, *others = [trial.state.name for trial in study_of(sqlite).trials]
    assert first == "FAIL"
    assert others.count("COMPLETE") == 2


def test_a_trial_that_workers_die_of_is_given_up(sqlite, tmp_path):
    run(Watched(tmp_path), sqlite, budget=1, epochs=1)
    study = study_of(sqlite)
    study.enqueue_trial({"units": 3})
    for death in range(studies.DEATHS):
        asked = study.ask()
        assert asked.suggest_categorical("units", [1, 2, 3, 4, 5, 6]) == 3
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
        studies.begin_again(study, study.trials[asked.number])
        waiting = [trial for trial in study.trials if trial.state.name == "WAITING"]
        assert len(waiting) == (death + 1 < studies.DEATHS)
    found = run(Watched(tmp_path), sqlite, budget=2, epochs=1)
    assert found.trials[1] == Trial(1, {"units": 3}, "failed", reason="3 workers died in it")
    assert len(found.trials) == 2


def test_a_worker_that_died_before_its_first_sign_of_life_does_not_hold_up_the_others(sqlite, tmp_path, monkeypatch):
    run(Watched(tmp_path), sqlite, budget=1, epochs=1)
    study_of(sqlite).ask()
    monkeypatch.setattr(studies, "GRACE", 2)
    found = run(Watched(tmp_path), sqlite, budget=2, epochs=1)
    assert [(trial.number, trial.state) for trial in found.trials] == [(0, "complete"), (1, "complete")]


def test_studies_of_something_else_are_refused(sqlite, tmp_path):
    optuna.create_study(storage=sqlite, study_name="mine").ask()
    with pytest.raises(InvalidArgumentError, match="free, or that of an earlier search"):
        run(Watched(tmp_path), sqlite, name="mine")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": None}, "a `name`"),
        ({"name": ""}, "a `name`"),
        ({"storage": 3}, "address of a database"),
        ({"storage": None}, "that of a search in a `storage`"),
        ({"method": "bayesian"}, "`method` must be one of tpe, nsga2, random"),
        ({"workers": 2}, "Start the script once for each worker"),
        ({"storage": "secret words"}, "address of a database"),
        ({"storage": "postgresql://me:my:secret@word@host:port/db"}, "address of a database"),
        ({"storage": "mongodb://me:secret@host/db"}, "mongodb"),
        ({"storage": "oracle+oracledb://me:secret@host/db"}, "driver of 'oracle"),
    ],
)
def test_other_options_are_refused(tmp_path, options, said):
    with pytest.raises(InvalidArgumentError, match=said) as caught:
        run(Watched(tmp_path), **{"storage": "sqlite://", **options})
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InvalidArgumentError, match=r"pip install tfopt\[distributed\]"):
        run(Watched(tmp_path), "postgresql://me:secret@host/db")


def test_passwords_are_not_shown(tmp_path):
    with contextlib.closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for query in ("", "?password=secret"):
            with pytest.raises(TfoptError, match=rf"within reach.*me.*127.0.0.1:{port}/db") as caught:
                run(Watched(tmp_path), f"postgresql://me:secret@127.0.0.1:{port}/db{query}")
            assert "secret" not in str(caught.value)
            assert caught.value.__suppress_context__
