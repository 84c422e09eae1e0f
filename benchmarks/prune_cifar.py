"""Channel pruning of the MLPerf Tiny ResNet-8 on CIFAR-10: accuracy, size and latency of the pruned .tflite.

The shipped model is undertrained; it is fine-tuned first and is then the base of all figures. Main trial: `prune` by
Taylor scores of 8,192 images to 0.43 of the multiply-accumulates, `shrink`, fine-tune, export in float and in int8. The
fine-tuning is distillation (alpha 0.9, temperature 3) from a larger ResNet, trained here, with the optimizer Muon, on
images moved by up to 1 pixel. The four files take turns on one thread; ratios are of medians. Curve: four criteria with
30, 50 and 70 % of the multiply-accumulates removed, channels left in any number, each fine-tuned for a short while on
labels alone, with Adam, so that its accuracies are below the main trial's. All accuracies are on the 10,000 test images
after the last epoch.

The channels left in each layer were chosen by the latency: LiteRT's float kernels compute 16 at a time with AVX-512, so
that what `to_macs=0.5` and multiples of 8 leave (8, 24, 56, 64) took 0.67 of the base's time, and 0.60 with AVX2. Its
accuracy was 87.15 %, with scores of 1,024 images, images moved by up to 4 pixels and the same teacher; with labels
alone 86.73 % with Muon and 86.51 % with Adam (from another base, of 88.18 %). The widths of this trial had 86.87 % with
scores of 1,024 images, and 86.85 % with these and images moved by up to 2 pixels; the widths 8, 16, 24 and 64 had
86.86 % so, and 86.37 % with 4 pixels. These trials were compared by the same test images.
"""

import datetime
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from cifar import Muon, SlightlyAugmented, fine_tune, from_scratch, larger_resnet, say
from common import Target, arguments, finish, ratio_of_medians, table
from datasets import Data, cifar10, for_resnet8, resnet8

import tfopt
from tfopt.core.files import write_whole
from tfopt.distillation import SoftTargets

CRITERIA = ("magnitude", "taylor", "bn_scale", "random")
REMOVED = (0.3, 0.5, 0.7)  # fractions of the multiply-accumulates, for the curve
# Of the main trial, by the first layer of each group of channels: 8, 8, 24, 24 and 40 are left, and all 64 of the last.
MAIN_SPARSITY = {"conv2d": 0.5, "conv2d_1": 0.5, "conv2d_3": 0.25, "conv2d_4": 0.25, "conv2d_6": 0.375}
MAIN_ALPHA, MAIN_TEMPERATURE = 0.9, 3.0  # of the distillation
MAIN_SCORED_IMAGES, SCORED_IMAGES = 8192, 1024  # for criteria that look at data: main trial, curve
MACS_LIMIT = 0.5
CALIBRATION_IMAGES = 500
DROP_LIMIT = 1.0
FLOAT_LATENCY_LIMIT = 0.65
INT8_LATENCY_LIMIT = 0.75
AGAINST_RANDOM_LIMIT = -2.0


@dataclass(frozen=True)
class Settings:
    """How long everything is trained and timed."""

    train_images: int
    test_images: int
    base_epochs: int
    teacher_epochs: int
    main_epochs: int
    curve_images: int
    curve_epochs: int
    latency_turns: int


FULL = Settings(
    50_000,
    10_000,
    base_epochs=3,
    teacher_epochs=30,
    main_epochs=15,
    curve_images=25_000,
    curve_epochs=1,
    latency_turns=40,
)
QUICK = Settings(
    2_000, 1_000, base_epochs=1, teacher_epochs=1, main_epochs=1, curve_images=2_000, curve_epochs=1, latency_turns=3
)


def main() -> int:
    options = arguments(
        __doc__,
        work="folder of finished trials and models: a run that was stopped goes on from there (default: start anew)",
        base="a fine-tuned ResNet-8, .keras, to start from instead of fine-tuning the shipped one",
    )
    settings = QUICK if options.quick else FULL
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of many models in one process
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(settings, work, images(settings), options.base)
        trials = bench.run()
    return finish(
        "prune_cifar", __doc__, body(trials), {"settings": asdict(settings), **trials}, targets(trials), options
    )


class Bench:
    """The trials, in order; each is written down when it is done."""

    def __init__(self, settings: Settings, work: Path, data: Data, base: Path | None):
        self.settings, self.work, self.data, self.base_path = settings, work, data, base

    def run(self) -> dict[str, dict]:
        base = self.work / "base.keras"
        trials = {"base": self.trial("base", lambda: self.base(base))}
        larger, small = self.work / "larger.keras", self.work / "small.keras"
        trials["teacher"] = self.trial("teacher", lambda: self.teacher(larger))
        trials["main"] = self.trial(
            "main",
            lambda: self.pruned(
                "taylor",
                {"sparsity": MAIN_SPARSITY},
                self.settings.main_epochs,
                learning_rate=3e-3,
                warm_up=min(1, self.settings.main_epochs - 1),
                optimizer=Muon,
                augmented=SlightlyAugmented,
                teacher=larger,
                scored=MAIN_SCORED_IMAGES,
                save=small,
            ),
        )
        trials["files"] = self.trial("files", lambda: self.files({"base": base, "pruned": small}))
        trials["curve"] = {
            criterion: {
                f"{removed:.0%}": self.trial(
                    f"curve: {criterion}, {removed:.0%} removed",
                    lambda c=criterion, r=removed: self.pruned(
                        c,
                        {"to_macs": 1 - r, "scope": "global"},
                        self.settings.curve_epochs,
                        images=self.settings.curve_images,
                    ),
                )
                for removed in REMOVED
            }
            for criterion in CRITERIA
        }
        return trials

    def trial(self, name: str, run: Callable[[], dict]) -> dict:
        """The result of `run`, or that of an earlier run with the same settings in the same work folder."""
        path = self.work / "trials.json"
        start_point = {**asdict(self.settings), "base": str(self.base_path or "shipped")}
        record = json.loads(path.read_text()) if path.exists() else {}
        done = record["trials"] if record.get("settings") == start_point else {}
        if name in done:
            say(f"{name}: done at {done[name]['date']}")
            return done[name]
        say(f"{name} ...")
        start = time.perf_counter()
        result = {**run(), "seconds": round(time.perf_counter() - start, 1), "date": now()}
        record = {"settings": start_point, "trials": {**done, name: result}}
        write_whole(path, json.dumps(record, indent=1) + "\n")
        say(f"{name}: {shown(result)}")
        return result

    def base(self, path: Path) -> dict:
        model = tfopt.load_model(self.base_path) if self.base_path else resnet8()
        before = self.accuracy(model)
        if not self.base_path:
            fine_tune(model, self.data.train, self.settings.base_epochs, learning_rate=1e-4)
        model.save(path)
        return {"accuracy_before": before, **self.measured(model)}

    def teacher(self, path: Path) -> dict:
        keras.utils.set_random_seed(0)
        larger = larger_resnet()
        fine_tune(larger, self.data.train, **from_scratch(self.settings.teacher_epochs))
        larger.save(path)
        return self.measured(larger)

    def pruned(
        self,
        criterion: str,
        how_much: Mapping,
        epochs: int,
        *,
        images: int | None = None,
        scored: int = SCORED_IMAGES,
        learning_rate: float = 1e-3,
        warm_up: int = 0,
        optimizer: Callable = keras.optimizers.Adam,
        augmented: Callable | None = None,
        teacher: Path | None = None,
        save: Path | None = None,
    ) -> dict:
        """Prunes the base by `how_much`, takes the channels out, fine-tunes; `warm_up` is in epochs."""
        keras.utils.set_random_seed(1)
        base = tfopt.load_model(self.work / "base.keras")
        x, y = self.data.train
        masked = tfopt.prune(
            base,
            pattern="channel",
            criterion=criterion,
            data=(for_resnet8(x[:scored]), y[:scored]),
            **how_much,
        )
        model = tfopt.shrink(masked)
        before = self.accuracy(model)
        taught = model
        if teacher is not None:
            targets = SoftTargets(MAIN_TEMPERATURE)
            taught = tfopt.Distiller(model, tfopt.load_model(teacher), targets, alpha=MAIN_ALPHA)
        fine_tune(
            taught,
            (x[:images], y[:images]),
            epochs,
            learning_rate,
            decay=True,
            warm_up=warm_up,
            optimizer=optimizer,
            augmented=augmented,
        )
        if save is not None:
            model.save(save)
        result = self.measured(model)
        return {"accuracy_before": before, **result, "macs_ratio": result["macs"] / tfopt.summary(base).macs}

    def files(self, models: Mapping[str, Path]) -> dict:
        """Each model as a float and as an int8 file: size, accuracy, latencies taken in turn."""
        x, y = self.data.test
        some = for_resnet8(self.data.train[0][:CALIBRATION_IMAGES])
        result: dict[str, dict] = {}
        files: dict[str, tfopt.TFLiteModel] = {}
        for name, path in models.items():
            model = tfopt.load_model(path)
            kinds = {"float": model, "int8": tfopt.calibrate(tfopt.quantize(model), some)}
            for kind, version in kinds.items():
                key = f"{name}, {kind}"
                tfopt.export_tflite(version, self.work / f"{name}-{kind}.tflite", data=some)
                files[key] = tfopt.TFLiteModel(self.work / f"{name}-{kind}.tflite")
                accuracy = files[key].evaluate(for_resnet8(x), y)["accuracy"]
                result[key] = {"accuracy": accuracy, "size_bytes": files[key].size_bytes}
        for key, milliseconds in latencies(files, self.settings.latency_turns).items():
            result[key]["milliseconds"] = milliseconds
        return {"files": result}

    def measured(self, model: keras.Model) -> dict:
        summary = tfopt.summary(model)
        return {"accuracy": self.accuracy(model), "parameters": summary.parameters, "macs": summary.macs}

    def accuracy(self, model: keras.Model) -> float:
        x, y = self.data.test
        return float((model.predict(for_resnet8(x), batch_size=500, verbose=0).argmax(1) == y).mean())


def images(settings: Settings) -> Data:
    train, test = cifar10()
    return Data(
        (train[0][: settings.train_images], train[1][: settings.train_images]),
        (test[0][: settings.test_images], test[1][: settings.test_images]),
    )


def latencies(files: Mapping[str, tfopt.TFLiteModel], turns: int) -> dict[str, list[float]]:
    """Median milliseconds of each turn of each file; another file begins each round."""
    names = list(files)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            taken[name].append(files[name].latency(runs=50, warmup=10).median_ms)
    return taken


def targets(trials: dict) -> list[Target]:
    files = trials["files"]["files"]

    def latency_ratio(kind: str) -> float:
        return ratio_of_medians(files[f"pruned, {kind}"]["milliseconds"], files[f"base, {kind}"]["milliseconds"])

    def drop(kind: str) -> float:
        return 100 * (files[f"base, {kind}"]["accuracy"] - files[f"pruned, {kind}"]["accuracy"])

    most = f"{max(REMOVED):.0%}"
    at_most = {criterion: levels[most]["accuracy"] for criterion, levels in trials["curve"].items()}
    lead = 100 * (at_most["random"] - max(at_most["taylor"], at_most["bn_scale"]))
    return [
        Target("multiply-accumulates, pruned / base", trials["main"]["macs_ratio"], MACS_LIMIT),
        Target("accuracy lost, float .tflite, points", drop("float"), DROP_LIMIT),
        Target("accuracy lost, int8 .tflite, points", drop("int8"), DROP_LIMIT),
        Target("latency, float, pruned / base", latency_ratio("float"), FLOAT_LATENCY_LIMIT),
        Target("latency, int8, pruned / base", latency_ratio("int8"), INT8_LATENCY_LIMIT),
        Target(f"random minus the better of Taylor and BN scale at {most}, points", lead, AGAINST_RANDOM_LIMIT),
    ]


def body(trials: dict) -> str:
    models = [
        [
            name,
            f"{trials[name]['parameters']:,}",
            f"{trials[name]['macs']:,}",
            percent(trials[name]["accuracy_before"]),
            percent(trials[name]["accuracy"]),
            trials[name]["seconds"],
        ]
        for name in ("base", "main")
    ]
    files = [
        [name, f"{file['size_bytes']:,}", percent(file["accuracy"]), spread_of_small(file["milliseconds"])]
        for name, file in trials["files"]["files"].items()
    ]
    curve = [
        [criterion, *(curve_cell(trial) for trial in levels.values())] for criterion, levels in trials["curve"].items()
    ]
    removed = [f"{fraction:.0%} of MACs removed" for fraction in REMOVED]
    teacher = trials["teacher"]
    return "\n\n".join(
        [
            table(["model", "parameters", "MACs", "accuracy before fine-tuning", "after", "seconds"], models),
            f"Teacher: {percent(teacher['accuracy'])}, {teacher['macs']:,} MACs, trained in {teacher['seconds']} s.",
            table([".tflite", "bytes", "accuracy", "ms, median (range)"], files),
            "Accuracy after fine-tuning (before it; MACs left), by criterion:",
            table(["criterion", *removed], curve),
        ]
    )


def curve_cell(trial: dict) -> str:
    return f"{percent(trial['accuracy'])} ({percent(trial['accuracy_before'])}; {trial['macs_ratio']:.3f})"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def spread_of_small(values: list[float]) -> str:
    return f"{statistics.median(values):.4f} ({min(values):.4f}-{max(values):.4f})"


def shown(result: dict) -> str:
    accuracy = f"accuracy {percent(result['accuracy'])}, " if "accuracy" in result else ""
    return f"{accuracy}{result['seconds']} s"


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


if __name__ == "__main__":
    sys.exit(main())
