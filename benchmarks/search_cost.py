"""What a search costs beside training: `tfopt.search` against plain Keras Tuner, in seconds a trial.

One builder of small CNNs, the same images and as many trials in both, in turn in one process; `random` proposes the
same trials as Keras Tuner's `RandomSearch` does. Training is what `keras.Model.fit` takes, the making of its functions
too, less the callbacks that the search itself passes. All the rest of the call counts as outside of training:
proposals, building models, records, saved weights, clearing up.

Then the proposals alone, without files: create, report and end a trial with 100 to 120 others before it, the objective
being a formula and some noise. `tpe` against Keras Tuner's Bayesian oracle, in the same space.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_tuner
import numpy as np
from common import Target, arguments, finish, ratio_of_medians, spread, table
from datasets import fashion_parts
from keras import layers as kl

import tfopt
from tfopt.tuner.objective import as_objectives
from tfopt.tuner.proposers import make_oracle

PEER = "Keras Tuner"
OUTSIDE_LIMIT = 0.6
ORACLE_LIMIT = 0.05
FIRST_TIMED = 100  # trials before the first proposal that is timed


def main() -> int:
    options = arguments(__doc__, only=("loop", "oracle"))
    turns, trials, proposals = (1, 2, FIRST_TIMED + 2) if options.quick else (3, 8, 120)
    measured: dict[str, dict] = {}
    targets, bodies = [], []
    if options.only != "oracle":
        measured["loop"] = loop_costs(turns, trials)
        bodies.append(loop_table(measured["loop"]))
        targets += loop_targets(measured["loop"])
    if options.only != "loop":
        measured["oracle"] = {name: oracle_costs(name, proposals) for name in ("tpe", "bayesian")}
        bodies.append(oracle_table(measured["oracle"]))
        ratio = ratio_of_medians(*(measured["oracle"][name][FIRST_TIMED:] for name in ("tpe", "bayesian")))
        claim = f"a proposal after {FIRST_TIMED} to {proposals} trials: tpe / Keras Tuner's Bayesian"
        targets.append(Target(claim, ratio, ORACLE_LIMIT))
    return finish("search_cost", __doc__, "\n\n".join(bodies), measured, targets, options)


def builder(hp: keras_tuner.HyperParameters) -> keras.Model:
    """The articles' CNN, narrower, with all that a search may choose."""
    activation, kernel = hp.Choice("activation", ["relu", "elu", "tanh"]), hp.Choice("kernel_size", [1, 3, 5])
    pooling = {"max": kl.MaxPooling2D, "average": kl.AveragePooling2D}[hp.Choice("pooling", ["max", "average"])]
    filters = hp.Int("filters", 4, 16)
    trunk = [kl.Conv2D(filters * 2**i, kernel, padding="same", activation=activation) for i in range(3)]
    head = [kl.Flatten(), kl.Dense(32, activation), kl.Dense(10, "softmax")]
    model = keras.Sequential([keras.Input((28, 28, 1)), trunk[0], pooling(2), trunk[1], pooling(2), trunk[2], *head])
    rate = hp.Float("lr", 1e-4, 1e-2, sampling="log")
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def loop_costs(turns: int, trials: int) -> dict[str, list[dict]]:
    """For each search of each turn the seconds a trial in all, and of those the training's."""
    parts = fashion_parts(512, 256)
    data = {"train": parts["train"], "val": parts["validation"]}
    runs = {name: [] for name in (PEER, "tfopt, random", "tfopt, tpe")}
    searches = {
        PEER: partial(peer_search, data),
        "tfopt, random": partial(own_search, data, method="random"),
        "tfopt, tpe": partial(own_search, data, method="tpe"),
    }
    for search in searches.values():
        search(1, seed=turns)  # imports and first-time setup count for none
    for turn in range(turns):
        names = list(searches)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with FitClock() as clock:
                began = time.perf_counter()
                searches[name](trials, seed=turn)
                seconds = time.perf_counter() - began
            assert clock.fits == trials
            runs[name].append({"seconds": seconds / trials, "training": clock.seconds / trials})
            print(f"  turn {turn + 1}, {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    return runs


def own_search(data: dict, trials: int, *, seed: int, method: str) -> None:
    found = tfopt.search(
        builder, **data, method=method, budget=trials, epochs=1, stop_early=False, seed=seed, verbose=0
    )
    assert len(found.ranking) == trials


def peer_search(data: dict, trials: int, *, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.RandomSearch(
            builder, objective="val_accuracy", max_trials=trials, seed=seed + 1, directory=folder
        )
        tuner.search(*data["train"], validation_data=data["val"], epochs=1, verbose=0)
        assert len(tuner.oracle.get_best_trials(trials)) == trials


class FitClock:
    """The seconds that `keras.Model.fit` takes, less those of the callbacks that are passed to it."""

    def __enter__(self) -> "FitClock":
        self.seconds, self.fits = 0.0, 0
        self._fit = fit = keras.Model.fit

        def timed(model, *args, callbacks=(), **options):
            shell = _Timed(callbacks)
            began = time.perf_counter()
            history = fit(model, *args, callbacks=[shell], **options)
            self.seconds += time.perf_counter() - began - shell.seconds
            self.fits += 1
            return history

        keras.Model.fit = timed
        return self

    def __exit__(self, *_) -> None:
        keras.Model.fit = self._fit


class _Timed(keras.callbacks.Callback):
    """Passes on what callbacks are told, and counts their seconds."""

    def __init__(self, callbacks):
        super().__init__()
        self._callbacks, self.seconds = callbacks, 0.0

    def set_model(self, model):
        super().set_model(model)
        for callback in self._callbacks:
            callback.set_model(model)

    def set_params(self, params):
        for callback in self._callbacks:
            callback.set_params(params)


def _passed_on(name: str) -> Callable:
    def tell(self, *args, **logs):
        began = time.perf_counter()
        for callback in self._callbacks:
            getattr(callback, name)(*args, **logs)
        self.seconds += time.perf_counter() - began

    return tell


for _moment in ("train_begin", "train_end", "epoch_begin", "epoch_end", "train_batch_begin", "train_batch_end"):
    setattr(_Timed, f"on_{_moment}", _passed_on(f"on_{_moment}"))


def outside(runs: list[dict]) -> list[float]:
    return [run["seconds"] - run["training"] for run in runs]


def loop_table(runs: dict[str, list[dict]]) -> str:
    base = outside(runs[PEER])
    rows = [
        [
            name,
            spread([run["seconds"] for run in turns]),
            spread([run["training"] for run in turns]),
            spread(outside(turns)),
            f"{ratio_of_medians(outside(turns), base):.2f}",
        ]
        for name, turns in runs.items()
    ]
    return table(["seconds a trial, median (range)", "in all", "training", "outside", f"by {PEER}'s"], rows)


def loop_targets(runs: dict[str, list[dict]]) -> list[Target]:
    base = outside(runs[PEER])
    return [
        Target(f"outside training: {name} / {PEER}", ratio_of_medians(outside(turns), base), OUTSIDE_LIMIT)
        for name, turns in runs.items()
        if name != PEER
    ]


def oracle_costs(method: str, trials: int) -> list[float]:
    """Seconds to create, report and end each of so many trials."""
    space = keras_tuner.HyperParameters()
    builder(space)
    oracle = make_oracle(method, as_objectives("val_accuracy"), seed=1)
    oracle.save = lambda: None
    oracle._save_trial = lambda trial: None
    oracle.update_space(space)
    noise, seconds = np.random.default_rng(0), []
    for _ in range(trials):
        began = time.perf_counter()
        trial = oracle.create_trial("tuner")
        oracle.update_trial(
            trial.trial_id, {"val_accuracy": score(trial.hyperparameters.values) + noise.normal(0, 0.01)}
        )
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
        seconds.append(time.perf_counter() - began)
    return seconds


def score(values: dict) -> float:
    """An accuracy, smooth in the numbers, with steps for the choices."""
    step = 0.05 * (values["activation"] == "relu") + 0.03 * (values["pooling"] == "max")
    return step + 0.9 - 0.1 * (np.log10(values["lr"]) + 3) ** 2 - 0.02 * abs(values["filters"] - 12)


def oracle_table(seconds: dict[str, list[float]]) -> str:
    moments = {"11 to 20": slice(10, 20), "51 to 60": slice(50, 60), "101 to the last": slice(FIRST_TIMED, None)}
    rows = [
        [name, *(f"{1e3 * statistics.median(values[part]):.1f}" for part in moments.values())]
        for name, values in (("tfopt, tpe", seconds["tpe"]), ("Keras Tuner, Bayesian", seconds["bayesian"]))
    ]
    return table(["milliseconds a proposal, median of trials", *moments], rows)


if __name__ == "__main__":
    sys.exit(main())
