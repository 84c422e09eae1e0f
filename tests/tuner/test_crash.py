"""A search that is killed again and again loses nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 30
SCRIPT = Path(__file__).with_name("crash.py")


def outcome(folder, kills):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(SCRIPT), str(folder), str(kills), "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_thirty_kills_lose_no_finished_trial(tmp_path):
    found = outcome(tmp_path / "killed", KILLS)
    assert found["killed"] == KILLS
    assert found["lost"] == 0
    assert found["last_exit"] == 0  # opened again, and searched to its end
    assert found["in_training"] > 5  # kills that cut a training off
    assert found["left_over"] == []
    trials = found["trials"]
    assert len(trials) == found["finished_before"] + 2
    assert {trial["state"] for trial in trials} <= {"complete", "failed"}
    assert found["models"] == sum(trial["state"] == "complete" for trial in trials)
    assert [trial["number"] for trial in trials] == list(range(len(trials)))

    whole = outcome(tmp_path / "whole", 0)["trials"]  # the first two, never killed
    for cut, uncut in zip(trials, whole, strict=False):
        assert cut["values"] == uncut["values"]
        assert cut["figures"] == pytest.approx(uncut["figures"], rel=1e-4)
        assert [len(run["history"]) for run in cut["runs"]] == [len(run["history"]) for run in uncut["runs"]]
