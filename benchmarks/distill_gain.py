"""What a student gains from a teacher: test accuracy against the same student trained as long on labels alone.

Two parts, each with a report of its own (`--only fashion`, `--only cifar`).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from cifar import Muon, fine_tune, from_scratch, larger_resnet, say
from common import Target, arguments, finish, table
from datasets import cifar10, fashion_mnist, for_resnet8, resnet8

import tfopt
from tfopt.core.files import write_whole
from tfopt.demo import article_cnn
from tfopt.distillation import SoftTargets

FASHION = """Fashion-MNIST: a student learns from three networks at once, against the same student on labels alone.

The teacher is `tfopt.fuse` of three CNNs of the articles (Conv 32-64-64, Dense 64-10), trained {teacher_epochs} epochs
each, the same for all seeds; the student is three quarters as wide. Student and distilled student start from the same
weights and train for {student_epochs} epochs, each in an order of its own, all on 50,000 images. All accuracies are on
the 10,000 test images after the last epoch.

What gains nothing, with one seed: 15 epochs (on the 10,000 images held back: alone 91.33 %, distilled 91.23 % at a
temperature of 2, 90.88 % at 4), and half the width (15 epochs, on the test images: alone 89.84 %, distilled 89.68 % at
a temperature of 2, 89.65 % at 1). Distilled, a student learns its training images more slowly, after 15 epochs 93.4 %
of them against 94.6 %, and loses less on others: it needs the time, and a student that labels alone lets overfit.
"""
CIFAR = """CIFAR-10: the MLPerf Tiny ResNet-8 learns from a larger ResNet, against the same student on labels alone.

Student: the shipped ResNet-8, fine-tuned for {base_epochs} epochs. Teacher: a larger ResNet, of eleven layers and
trained for {teacher_epochs} epochs. Both students then go on from the same weights for {student_epochs} epochs with the
optimizer Muon, on images moved and flipped in the same way. All accuracies are on the 10,000 test images, in the second
table after each epoch.
"""
FASHION_GAIN, CIFAR_GAIN = 0.3, 0.7  # points
SEEDS = (0, 1, 2)
FASHION_WIDTH, FASHION_ALPHA, FASHION_TEMPERATURE = 0.75, 0.9, 2.0
CIFAR_ALPHA, CIFAR_TEMPERATURE = 0.9, 3.0
BATCH_SIZE = 128


def main() -> int:
    options = arguments(
        __doc__,
        only=("fashion", "cifar"),
        work="folder of trained models: a run that was stopped goes on from there (default: start anew)",
    )
    parts = {"fashion": report_fashion, "cifar": report_cifar}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        return max(part(options, work) for name, part in parts.items() if options.only in (None, name))


def report_fashion(options, work: Path) -> int:
    settings = {"teacher_epochs": 12, "student_epochs": 30}
    (x, y), (x_test, y_test) = fashion_mnist()
    size = 50_000
    if options.quick:
        settings, size = dict.fromkeys(settings, 1), 2000
    train, test = (x[:size, ..., None] / np.float32(255), y[:size]), (x_test[..., None] / np.float32(255), y_test)
    members = [
        kept(work / f"member-{seed}.keras", lambda s=seed: member_of_teacher(train, settings["teacher_epochs"], s))
        for seed in range(3)
    ]
    teacher = tfopt.fuse(members, how="mean")
    # Its answers do not change from epoch to epoch: there is no augmentation here.
    answers = tfopt.cache_teacher(teacher, train, batch_size=BATCH_SIZE, verbose=0)
    rows = [fashion_trial(seed, train, test, answers, settings["student_epochs"], work) for seed in SEEDS]
    gains = [100 * (row["distilled"] - row["alone"]) for row in rows]
    body = table(
        ["seed", "alone", "distilled", "gain, points"],
        [
            [row["seed"], percent(row["alone"]), percent(row["distilled"]), f"{gain:+.2f}"]
            for row, gain in zip(rows, gains, strict=True)
        ],
    )
    scores = {"members": [accuracy(member, test) for member in members], "teacher": accuracy(teacher, test)}
    body += f"\n\nTeacher {percent(scores['teacher'])}, its members {', '.join(map(percent, scores['members']))}."
    body += f"\n\nMean gain {statistics.mean(gains):+.2f} points, standard deviation {statistics.stdev(gains):.2f}."
    targets = [
        Target("points wanted less points gained, mean of the seeds", FASHION_GAIN - statistics.mean(gains), 0.0)
    ]
    measured = {"trials": rows, **scores}
    return finish("distill_gain_fashion", FASHION.format(**settings), body, measured, targets, options)


def member_of_teacher(train, epochs: int, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    member = article_cnn()
    fit(member, epochs, seed, *train)
    return member


def fashion_trial(seed: int, train, test, answers, epochs: int, work: Path) -> dict:
    def alone() -> keras.Model:
        student = new_student(seed)
        fit(student, epochs, seed, *train)
        return student

    def distilled() -> keras.Model:
        student = new_student(seed)
        distiller = tfopt.Distiller(student, losses=SoftTargets(FASHION_TEMPERATURE), alpha=FASHION_ALPHA)
        fit(distiller, epochs, seed, answers)
        return student

    students = {run.__name__: kept(work / f"{run.__name__}-{seed}.keras", run) for run in (alone, distilled)}
    result = {"seed": seed, **{name: accuracy(student, test) for name, student in students.items()}}
    say(str(result))
    return result


def new_student(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return tfopt.scale_width(article_cnn(), FASHION_WIDTH)


def fit(model: keras.Model, epochs: int, seed: int, x, y=None) -> None:
    """Adam, its rate falling to 0 along a cosine; `x` are images, or batches of all that is needed."""
    steps = len(x) if y is None else -(-len(x) // BATCH_SIZE)
    keras.utils.set_random_seed(seed)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * steps)
    model.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=None if y is None else BATCH_SIZE, epochs=epochs, verbose=0)


def report_cifar(options, work: Path) -> int:
    settings = {"base_epochs": 3, "teacher_epochs": 30, "student_epochs": 20}
    train, test = cifar10()
    if options.quick:
        settings = dict.fromkeys(settings, 1)
        train, test = (train[0][:1024], train[1][:1024]), (test[0][:500], test[1][:500])
    test = for_resnet8(test[0]), test[1]

    def run(name: str, build: Callable[[], keras.Model], **recipe) -> keras.Model:
        curve = Curve(work / f"{name}-curve.json", test)
        return kept(work / f"{name}.keras", lambda: trained(build(), train, curve, **recipe))

    def distiller() -> keras.Model:
        return tfopt.Distiller(copy_of(base), teacher, SoftTargets(CIFAR_TEMPERATURE), alpha=CIFAR_ALPHA)

    base = run("base", resnet8, epochs=settings["base_epochs"], learning_rate=1e-4)
    teacher = run("larger", larger_resnet, **from_scratch(settings["teacher_epochs"]))
    recipe = {"epochs": settings["student_epochs"], "learning_rate": 2e-3, "decay": True, "optimizer": Muon}
    alone = run("alone", lambda: copy_of(base), **recipe)
    distilled = run("distilled", distiller, **recipe)
    models = {"base": base, "teacher": teacher, "alone": alone, "distilled": distilled}
    rows = {
        name: {"accuracy": accuracy(model, test), "macs": tfopt.summary(model).macs} for name, model in models.items()
    }
    curves = {name: Curve(work / f"{name}-curve.json", test).accuracies for name in ("alone", "distilled")}
    body = table(
        ["model", "multiply-accumulates", "test accuracy"],
        [[name, f"{row['macs']:,}", percent(row["accuracy"])] for name, row in rows.items()],
    )
    pairs = enumerate(zip(*curves.values(), strict=True), start=1)
    body += "\n\n" + table(["epoch", "alone", "distilled"], [[epoch, *map(percent, pair)] for epoch, pair in pairs])
    gain = 100 * (rows["distilled"]["accuracy"] - rows["alone"]["accuracy"])
    targets = [Target("points wanted less points gained", CIFAR_GAIN - gain, 0.0)]
    return finish(
        "distill_gain_cifar", CIFAR.format(**settings), body, {"models": rows, "curves": curves}, targets, options
    )


class Curve(keras.callbacks.Callback):
    """The test accuracy after each epoch, kept in a file, so that a run that was stopped goes on with it."""

    def __init__(self, path: Path, test):
        super().__init__()
        self.path, self._test = path, test

    @property
    def accuracies(self) -> list[float]:
        """Of the epochs so far."""
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        earlier = self.accuracies[:epoch]
        write_whole(self.path, json.dumps([*earlier, accuracy(student_of(self.model), self._test)]))


def trained(model: keras.Model, train, curve: Curve, **recipe) -> keras.Model:
    backup = keras.callbacks.BackupAndRestore(curve.path.with_suffix(".backup"))
    fine_tune(model, train, callbacks=[curve, backup], **recipe)
    return student_of(model)


def student_of(model: keras.Model) -> keras.Model:
    return model.student if isinstance(model, tfopt.Distiller) else model


def copy_of(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def kept(path: Path, build: Callable[[], keras.Model]) -> keras.Model:
    """The model in the file, or a new one, which is then written there."""
    if not path.exists():
        say(f"{path.stem} ...")
        build().save(path)
    return tfopt.load_model(path)


def accuracy(model: keras.Model, test) -> float:
    x, y = test
    return float((model.predict(x, batch_size=500, verbose=0).argmax(1) == y).mean())


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


if __name__ == "__main__":
    sys.exit(main())
