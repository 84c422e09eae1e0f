"""The verbs that change, join and train models, on ten models that are written as code.

Ten models of the zoo (`zoo_models/own`) with blocks and layers of their own are given as they are to each verb. A
result has to be finite, and of the shape of the model's outputs. A verb may find nothing to do, as another kernel size
in a model without convolutions: it says so. A step is a fault if it ends in another error than one of tfopt's, or in a
wrong result.
"""

from __future__ import annotations

import importlib
import re
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from common import Target, arguments, finish, table

import tfopt

MODELS = {
    "images": ("nested_blocks", "vit_patches", "cct", "swin_windows", "mlp_mixer", "gmlp"),
    "sequences": ("tcn", "speaker_cnn", "series_transformer"),
    "tables": ("deep_and_cross",),
}
QUICK = ("mlp_mixer", "deep_and_cross")
MARKS = {"ok": "ok", "nothing": "nothing to do", "refused": "REFUSED", "fault": "FAULT"}


class Case:
    """A model of the zoo, another one of the same kind, data and labels."""

    def __init__(self, module: str, name: str):
        zoo = importlib.import_module(f"zoo_models.own.{module}")
        self.make = getattr(zoo, name)
        animal = self.make()
        self.x = np.asarray(animal.data)
        self.shape = np.asarray(animal.model(self.x, training=False)).shape
        self.classes = self.shape[-1] > 1
        generator, count = np.random.default_rng(0), len(self.x)
        self.y = generator.integers(0, self.shape[-1], count) if self.classes else generator.normal(size=(count, 1))

    def model(self, seed: int = 0) -> keras.Model:
        """Built and compiled."""
        keras.utils.set_random_seed(seed)
        model = self.make().model
        model(self.x[:1], training=False)
        model.compile(keras.optimizers.SGD(0.01), self.loss)
        return model

    @property
    def loss(self) -> str:
        return "sparse_categorical_crossentropy" if self.classes else "mse"

    @property
    def data(self) -> tuple:
        return self.x, self.y


def distilled(case: Case) -> keras.Model:
    student = case.model()
    distiller = tfopt.Distiller(student, case.model(1))
    distiller.compile("sgd", case.loss)
    distiller.fit(*case.data, verbose=0)
    return student


def without_a_block(case: Case) -> keras.Model:
    """Drops the first part of the model that can go."""
    model = case.model()
    names = [layer.name for layer in model.layers if layer.weights]
    for name in names:
        try:
            return tfopt.drop_layers(model, name)
        except tfopt.TfoptError as error:
            said = error
    raise tfopt.NothingToDoError("A layer that keeps the shape must be there to drop.", received=str(said))


def searched(case: Case) -> keras.Model:
    space = {"activation": ("relu", "elu")}
    options: dict[str, Any] = {"objectives": "val_loss", "budget": 2, "epochs": 1, "verbose": 0}
    return tfopt.search(case.model(), space, train=case.data, val=case.data, **options).best_models()[0]


def ranked(case: Case) -> None:
    assert tfopt.rank_features(case.model(), case.data).features


VERBS: dict[str, Callable[[Case], keras.Model | None]] = {
    "scale_width": lambda case: tfopt.scale_width(case.model(), 0.5),
    "swap_activation": lambda case: tfopt.swap_activation(case.model(), "elu"),
    "swap_kernel_size": lambda case: tfopt.swap_kernel_size(case.model(), 5),
    "swap_pooling": lambda case: tfopt.swap_pooling(case.model(), "average"),
    "drop_layers": without_a_block,
    "rank_features": ranked,
    "Distiller": distilled,
    "init_from": lambda case: tfopt.init_from(case.model(), case.model(1), verbose=0),
    "fuse": lambda case: tfopt.fuse([case.model(), case.model(1)]),
    "stack": lambda case: tfopt.stack([case.model(), case.model(1)], *case.data, folds=2, epochs=1).model,
    "fine_tune": lambda case: tfopt.fine_tune(
        case.model(),
        *case.data,
        mode="full",
        how=tfopt.recipe(epochs=1, loss=case.loss),
        verbose=0,
    ),
    "search": searched,
}


def main() -> int:
    options = arguments(__doc__)
    rows = []
    for module, names in MODELS.items():
        for name in names:
            if not options.quick or name in QUICK:
                rows.append(row_of(module, name))
                print(in_a_line(rows[-1]), file=sys.stderr, flush=True)
    return finish("zoo_verbs", __doc__, report_of(rows), {"models": rows}, targets_of(rows), options)


def row_of(module: str, name: str) -> dict:
    begin, case = time.perf_counter(), Case(module, name)
    steps = {verb: step_of(run, case) for verb, run in VERBS.items()}
    return {"model": name, "steps": steps, "seconds": round(time.perf_counter() - begin)}


def step_of(run: Callable[[Case], keras.Model | None], case: Case) -> dict:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(run(case), case)
    except tfopt.NothingToDoError as error:
        return {"state": "nothing", "message": str(error)}
    except tfopt.TfoptError as error:
        return {"state": "refused", "message": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
        return {"state": "fault", "message": f"{type(error).__name__}: {error}"[:500]}
    return {"state": "ok"}


def check(model: keras.Model | None, case: Case) -> None:
    if model is None:
        return
    got = np.asarray(model(case.x, training=False))
    assert got.shape == case.shape, f"outputs of shape {got.shape} instead of {case.shape}"
    assert np.isfinite(got).all(), "outputs that are not finite"


def in_a_line(row: dict) -> str:
    bad = {verb: step for verb, step in row["steps"].items() if step["state"] in ("refused", "fault")}
    told = "; ".join(f"{verb} {step['state']}: {step['message'][:200]}" for verb, step in bad.items())
    return f"{row['model']} ({row['seconds']} s): {told or 'ok'}"


def report_of(rows: list[dict]) -> str:
    cells = [[row["model"], *(MARKS[row["steps"][verb]["state"]] for verb in VERBS), row["seconds"]] for row in rows]
    said = [
        re.sub(r"\x1b\[[0-9;]*m|\n", " ", f"- {row['model']}, {verb}, {step['state']}: {step['message']}")
        for row in rows
        for verb, step in row["steps"].items()
        if step["state"] != "ok"
    ]
    return "\n\n".join([table(["model", *VERBS, "s"], cells), "\n".join(said)])


def targets_of(rows: list[dict]) -> list[Target]:
    bad = sum(step["state"] in ("refused", "fault") for row in rows for step in row["steps"].values())
    return [Target("steps that were refused or ended in a fault", bad, 0)]


if __name__ == "__main__":
    sys.exit(main())
