"""Kills a search again and again and looks at what is left: `python crash.py FOLDER KILLS SEED`, prints JSON.

TensorFlow is imported once, before it has started any thread; each search runs in a fork.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np

from tfopt.tuner.tune import search

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = X.sum(1)
LONGEST = 0.6  # seconds that a child lives after it has started, or written its first file


def builder(hp):
    if hp.Choice("units", [1, 2, 3, 4]) == 4:
        raise RuntimeError("four is too many")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(hp.get("units")), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(hp.Float("lr", 1e-3, 1.0, sampling="log")), "mse", run_eagerly=True)
    return model


def run(folder, budget):
    data = (X, Y)
    options = {"epochs": 3, "batch_size": 16, "executions": 2, "stop_early": False, "verbose": 0, "seed": 1}
    return search(builder, train=data, val=data, objectives="val_loss", budget=budget, directory=folder, **options)


def in_child(folder, budget, lives=None):
    """Exit code of a child that searches; `lives` are the seconds until it is killed, and whether it writes first."""
    before = written(folder)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(folder, budget)
            code = 0
        finally:
            os._exit(code)
    if lives is not None:
        seconds, writes = lives
        until = time.monotonic() + 20
        while writes and written(folder) == before and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def written(folder):
    """When a file of the folder was last written."""
    return folder.stat().st_mtime_ns if folder.exists() else 0


def on_record(folder):
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*.json"))}


def main(folder, kills, seed):
    chance = random.Random(seed)
    finished, killed, lost, resumed = {}, 0, 0, 0
    for _ in range(kills):
        killed += in_child(folder, 10_000, (chance.uniform(0, LONGEST), chance.random() < 0.8)) == -signal.SIGKILL
        now = on_record(folder)
        lost += sum(now.get(name) != trial for name, trial in finished.items())
        finished = {name: trial for name, trial in now.items() if trial["state"] != "running"}
        resumed += len(list(folder.glob("*.npz")))
    code = in_child(folder, len(finished) + 2)
    trials = on_record(folder)
    lost += sum(trials.get(name) != trial for name, trial in finished.items())
    print(
        json.dumps(
            {
                "killed": killed,
                "lost": lost,
                "in_training": resumed,
                "finished_before": len(finished),
                "last_exit": code,
                "trials": [trials[name] for name in sorted(trials)],
                "left_over": sorted(path.name for path in folder.glob(".*"))
                + sorted(p.name for p in folder.glob("*.npz")),
                "models": len(list(folder.glob("*.keras"))),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
