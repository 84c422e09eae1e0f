"""Models as their authors write them: 36 of KerasHub and 29 in the styles of Keras' examples, on the whole road.

Each is small, has random weights, and goes through every verb in a process of its own:

- functional: the opened model computes what the original does, to 1e-6 of the spread of its outputs; not run for a
  model of Keras' own layers alone, where there is nothing to open.
- summary; element: half of the kernels are zero; cluster: 16 values a kernel.
- channel: 30 % of the channels pruned and shrunk; the outputs are those of the masked model; the parameters left.
- split: the strings of a text model are cut off (the later steps take what is left).
- quantize, calibrate, int8: a .tflite that was run and compared; no convolution or matrix product is in float that
  `quantize` did not announce.
- train: one step of the quantized model. load: the quantized model, saved and loaded; not run for classes of the author
  that Keras itself cannot make from their config.

A step is ok, refused (an error of tfopt's, which says why) or a fault (any other error, a wrong result, a crash).
KerasHub is needed besides tfopt's own packages: `pip install keras-hub==0.32.0`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import Target, arguments, commit, finish, table

LIBRARIES = {"own": ("zoo_models.own", "OWN"), "keras-hub": ("zoo_models.hub", "HUB")}
STEPS = ("functional", "summary", "element", "cluster", "channel", "split", "quantize", "calibrate", "int8")
STEPS = (*STEPS, "train", "load")
SECONDS = 300  # for one model
AT_ONCE = 2  # models, with one thread each
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
EQUAL = 1e-6  # of the spread of the outputs
EQUAL_SHRUNK = 1e-4
WITHOUT_FAULT = 40 / 44  # of the models
PARAMETERS_LEFT = 0.75  # median, after 30 % of the channels went
MATRIX_OPS = ("CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL")
QUICK = ("resnet_classifier", "bert_classifier", "mlp_mixer")
MARKS = {"ok": "ok", "refused": "REFUSED", "fault": "FAULT", "not run": "-"}


def main() -> int:
    options = arguments(
        __doc__,
        work="folder of finished models: a run that was stopped goes on from there (default: that of temporary files)",
        model="one model to run here; nothing is written but its steps",
        steps="file for the steps of that one model, as JSON lines",
    )
    if options.model:
        return run_one(str(options.model), options.steps)
    rows = rows_of(options)
    return finish("zoo", __doc__, report_of(rows), {"models": rows}, targets_of(rows), options)


# The run: one process a model.


def rows_of(options: Any) -> list[dict]:
    """One row a model. Models without a fault are kept from an earlier run of the same commit; Ctrl-C ends early."""
    done = (options.work or Path(tempfile.gettempdir())) / "tfopt-zoo.jsonl"
    done.parent.mkdir(parents=True, exist_ok=True)
    lines = map(json.loads, done.read_text().splitlines()) if done.exists() else ()
    known = {row["model"]: row for row in lines if row["commit"] == commit()}
    names = {name: library for library in LIBRARIES for name in names_in(library)}
    if options.quick:
        names = {name: library for name, library in names.items() if name in QUICK}
    wanted = [name for name in names if name not in known or not is_good(known[name])]
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for name, steps in zip(wanted, pool.map(steps_of, wanted), strict=True):
            known[name] = {"model": name, "library": names[name], "commit": commit(), **steps}
            with done.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
            print(in_a_line(known[name]), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        pool.shutdown(wait=False, cancel_futures=True)
    return [known[name] for name in names if name in known]


def names_in(library: str) -> list[str]:
    """Names of the models, without an import of what they are made with."""
    module, _ = LIBRARIES[library]
    root = Path(__file__).parent / module.replace(".", "/")
    files = sorted(root.glob("[a-z]*.py")) if root.is_dir() else [root.with_suffix(".py")]
    return [name for file in files for name in re.findall(r"^@_enter\ndef (\w+)\(", file.read_text(), re.MULTILINE)]


def steps_of(name: str) -> dict:
    """What became of each step of a model, in a process of its own."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "steps.jsonl"
        file.touch()
        command = [sys.executable, __file__, "--model", name, "--steps", str(file)]
        try:
            ended = subprocess.run(
                command, timeout=SECONDS, capture_output=True, text=True, check=False, env={**os.environ, **ONE_THREAD}
            )
            trouble = f"exit code {ended.returncode}: {last_line(ended.stderr)}" if ended.returncode else ""
        except subprocess.TimeoutExpired:
            trouble = f"took more than {SECONDS} s"
        steps = {step.pop("step"): step for step in map(json.loads, file.read_text().splitlines())}
    if trouble:  # of the first step that left nothing
        missing = next((step for step in ("build", *STEPS) if step not in steps), "end")
        steps[missing] = {"state": "fault", "message": trouble}
    return {"steps": steps, "seconds": round(time.perf_counter() - begin)}


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]


# The road of one model.


def run_one(name: str, file: Path | None) -> int:
    """Runs the steps of one model in this process, and tells each as soon as it is done."""

    def tell(step: str, row: dict) -> None:
        if file is None:
            print(step, json.dumps(row, indent=1), flush=True)
        else:
            with file.open("a") as lines:
                lines.write(json.dumps({"step": step, **row}) + "\n")

    Road(name, tell).go()
    return 0


class Road:
    """One model and what the verbs make of it; a step whose model an earlier one failed to give is not run."""

    def __init__(self, name: str, tell: Callable[[str, dict], None]):
        self.name, self.tell = name, tell

    def go(self) -> None:
        if not self._take("build", self.build):
            return
        for step in STEPS:
            self._take(step, getattr(self, step))

    def _take(self, step: str, run: Callable[[], dict | None]) -> bool:
        from tfopt.core.errors import TfoptError

        begin = time.perf_counter()
        try:
            found = run()
            row = {"state": "not run"} if found is None else {"state": "ok", **found}
        except TfoptError as error:
            row = {"state": "refused", "message": str(error)}
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
            row = {"state": "fault", "message": f"{type(error).__name__}: {first_lines(error)}", "trace": trace(error)}
        self.tell(step, {**row, "seconds": round(time.perf_counter() - begin, 1)})
        return row["state"] == "ok"

    def build(self) -> dict:
        import keras
        import numpy as np

        keras.utils.set_random_seed(0)
        for module, zoo in LIBRARIES.values():
            if self.name in names_in(next(key for key, value in LIBRARIES.items() if value == (module, zoo))):
                self.animal = getattr(importlib.import_module(module), zoo)[self.name]()
        self.model, self.data = self.animal.model, self.animal.data
        self.quantized = self.calibrated = None
        self.classes = own_classes(self.model)
        self.model(self.data, training=False)
        unsettle(self.model)
        first, second = (flat_outputs(self.model, self.data) for _ in range(2))
        self.fixed = [bool(np.array_equal(a, b)) for a, b in zip(first, second, strict=True)]
        return {"parameters": self.model.count_params(), "layers": len(self.model.layers)}

    def functional(self) -> dict | None:
        import tfopt

        try:
            opened = tfopt.functional(self.model, self.data)
        except tfopt.NothingToDoError:  # it holds layers of Keras alone
            return None
        difference = self._equal(self.model, opened, EQUAL)
        in_training = self._equal_in_training(opened)
        return {"difference": difference, "in_training": in_training, "closed": closed_layers(opened)}

    def summary(self) -> dict:
        import tfopt

        found = tfopt.summary(self.model)
        return {"macs": found.macs, "kernel_parameters": found.kernel_parameters}

    def element(self) -> dict:
        import tfopt

        summary = tfopt.summary(tfopt.prune(self.model, sparsity=0.5))
        zeros = 1 - summary.kernel_nonzero / summary.kernel_parameters
        assert zeros > 0.45, f"{zeros:.2f} of the kernels are zero instead of half"
        return {"zeros": zeros}

    def cluster(self) -> dict:
        import numpy as np

        import tfopt

        clustered = tfopt.cluster(self.model, 16)
        counts = [len(np.unique(w)) for w in map(np.asarray, clustered.trainable_weights) if w.size > 64]
        assert min(counts, default=0) <= 16, f"no weight has 16 values or fewer: {sorted(counts)[:5]}"
        return {"clustered": sum(count <= 16 for count in counts), "of": len(counts)}

    def channel(self) -> dict:
        import tfopt

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            masked = tfopt.prune(self.model, sparsity=0.3, pattern="channel")
        kept = [str(warning.message) for warning in caught if "keep all" in str(warning.message)]
        small = tfopt.shrink(masked)
        difference = self._equal(masked, small, EQUAL_SHRUNK)
        left = small.count_params() / self.model.count_params()
        return {"left": left, "difference": difference, "said": kept}

    def split(self) -> dict | None:
        import tfopt

        if not self.animal.from_text:
            return None
        preprocessing, self.model = tfopt.split_preprocessing(self.model)
        self.data = preprocessing.predict(self.data, verbose=0)
        return {}

    def quantize(self) -> dict:
        import tfopt

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.quantized = tfopt.quantize(self.model)
        said = [str(warning.message) for warning in caught if "stay float" in str(warning.message)]
        self.announced = announced_ops(said, self.quantized)
        return {"said": said}

    def calibrate(self) -> dict | None:
        import tfopt

        if self.quantized is None:
            return None
        self.calibrated = tfopt.calibrate(self.quantized, self.data)
        return {}

    def int8(self) -> dict | None:
        import tfopt

        if self.calibrated is None:
            return None
        model = self.animal.inference(self.calibrated) if self.animal.inference else self.calibrated
        with tempfile.TemporaryDirectory() as folder:
            export = tfopt.export_tflite(model, Path(folder) / "model.tflite", data=self.data)
            file = tfopt.TFLiteModel(export.path)
        floats = Counter(op.name for op in file.op_types() if op.name in MATRIX_OPS and op.output_dtype == "float32")
        integers = sum(op.name in MATRIX_OPS for op in file.op_types()) - floats.total()
        row = {"bytes": export.size_bytes, "float": dict(floats), "integer": integers, "announced": self.announced}
        if floats.total() > self.announced:
            told = f"{floats.total()} float matrix ops ({dict(floats)}), {integers} in integers"
            raise AssertionError(f"{told}; {self.announced} announced")
        return row

    def train(self) -> dict | None:
        import keras
        import numpy as np

        model = self.quantized
        if model is None:
            return None
        outputs = model(self.data, training=False)
        zeros = keras.tree.map_structure(lambda value: np.zeros(value.shape, "float32"), outputs)
        before = [np.asarray(weight).copy() for weight in model.trainable_weights]
        model.compile(keras.optimizers.SGD(1e-3, clipnorm=1.0), loss=mean_square, jit_compile=False)
        loss = float(np.ravel(model.train_on_batch(self.data, zeros))[0])
        changed = sum(
            not np.array_equal(old, new)
            for old, new in zip(before, map(np.asarray, model.trainable_weights), strict=True)
        )
        assert np.isfinite(loss), f"the loss is {loss}"
        assert changed, "no weight changed"
        return {"loss": loss, "changed": changed, "of": len(before)}

    def load(self) -> dict | None:
        import tfopt

        model = self.calibrated or self.quantized
        if model is None or not tells_how_it_is_made(model):
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            loaded = tfopt.load_model(path, custom_objects=self.classes)
            return {"difference": self._equal(model, loaded, EQUAL)}

    def _equal(self, one: Any, other: Any, limit: float) -> float:
        """The largest difference of the outputs over their spread; those that differ from call to call are left out."""
        import numpy as np

        differences = [0.0]
        pairs = zip(flat_outputs(one, self.data), flat_outputs(other, self.data), strict=True)
        for is_fixed, (a, b) in zip(self.fixed, pairs, strict=True):
            assert a.shape == b.shape, f"outputs of shape {b.shape} instead of {a.shape}"
            if is_fixed and a.size:
                differences.append(float(np.abs(a - b).max()) / (float(np.ptp(a)) or 1.0))
        difference = max(differences)
        assert difference <= limit, f"the outputs differ by {difference:.1e} of their spread"
        return difference

    def _equal_in_training(self, opened: Any) -> float | None:
        """The same in training; None for a model that gives something else each time there, as with dropout."""
        import numpy as np

        values = [np.asarray(weight).copy() for weight in self.model.variables]
        wanted, again = (flat_outputs(self.model, self.data, training=True) for _ in range(2))
        got = flat_outputs(opened, self.data, training=True)
        for weight, value in zip(self.model.variables, values, strict=True):
            weight.assign(value)
        if not all(np.array_equal(a, b) for a, b in zip(wanted, again, strict=True)):
            return None
        spreads = [(float(np.abs(a - b).max()), float(np.ptp(a)) or 1.0) for a, b in zip(wanted, got, strict=True)]
        difference = max(difference / spread for difference, spread in spreads)
        assert difference <= 1e-4, f"in training the outputs differ by {difference:.1e} of their spread"
        return difference


def mean_square(wanted: Any, got: Any) -> Any:
    import keras

    return keras.ops.mean(keras.ops.square(keras.ops.cast(got, "float32") - wanted))


def flat_outputs(model: Any, data: Any, training: bool = False) -> list:
    import keras
    import numpy as np

    outputs = keras.tree.flatten(model(data, training=training))
    return [np.asarray(value).astype("float64") for value in outputs]


def unsettle(model: Any) -> None:
    """Moves weights that are all alike (biases, scales, statistics) from their initial values, so that errors show."""
    import keras
    import numpy as np

    generator = np.random.default_rng(0)
    for weight in model.weights:
        value = np.asarray(weight)
        if keras.backend.is_float_dtype(weight.dtype) and value.size and np.ptp(value.astype("float64")) == 0:
            weight.assign(value * generator.uniform(0.8, 1.2, value.shape) + generator.uniform(0, 0.1, value.shape))


def own_classes(model: Any) -> dict[str, type]:
    """The classes of the layers that a user would tell Keras of, by name."""
    layers = [layer for layer in model._flatten_layers() if not type(layer).__module__.startswith(("keras.", "tfopt."))]
    return {type(layer).__name__: type(layer) for layer in layers}


def tells_how_it_is_made(model: Any) -> bool:
    """False with a layer or regularizer of an author that Keras cannot make from its config."""
    import keras

    try:
        for layer in model._flatten_layers():
            keras.saving.serialize_keras_object(getattr(layer, "activity_regularizer", None))
            if not type(layer).__module__.startswith(("keras.", "tfopt.")):
                type(layer).from_config(layer.get_config())
    except (TypeError, NotImplementedError):
        return False
    return True


def closed_layers(model: Any) -> dict[str, str]:
    """Why each layer of an opened model that is still somebody's code is not a graph."""
    from tfopt.core.models.graph import read
    from tfopt.core.models.opening import opened

    return opened(read(model)).closed


# Matrix ops in a file by the class of a layer that `quantize` said stays float; no bound for what is not known.
NO_OP = ("LayerNormalization", "GroupNormalization", "BatchNormalization", "UnitNormalization", "RMSNormalization")
NO_OP = (*NO_OP, "Activation", "Softmax", "ConvertToTensor", "Mean", "Variance", "Rsqrt", "Erf", "Cast", "Where")
ONE_OP = ("Dense", "EinsumDense", "Einsum", "Matmul", "Dot", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2D")
OPS = {"SeparableConv1D": 2, "SeparableConv2D": 2, "MultiHeadAttention": 6, "Attention": 2}
OPS = {**dict.fromkeys(NO_OP, 0), **dict.fromkeys(ONE_OP, 1), **OPS}
UNBOUNDED = 10_000


def announced_ops(said: list[str], model: Any) -> int:
    """How many matrix ops in the file the layers that `quantize` named account for, each call of a layer counted."""
    from tfopt.core.models.graph import read

    calls = calls_by_path(read(model))
    listed = re.findall(r"((?:'[^']+'(?:, )?)+)(?: in part)? \((\w+): ", " ".join(said))
    named = [(path, kind) for paths, kind in listed for path in re.findall("'([^']+)'", paths)]
    return sum(OPS.get(kind, UNBOUNDED) * max(calls[path], 1) for path, kind in named)


def calls_by_path(graph: Any, prefix: str = "") -> Counter[str]:
    """How often each layer runs in one pass of the model; those of a nested model in each of its calls."""
    import keras

    calls = Counter(f"{prefix}{call.op.name}" for call in graph.calls)
    for path, model in {f"{prefix}{call.op.name}": call.op for call in graph.calls}.items():
        if isinstance(model, keras.Model):
            inner = calls_by_path(graph.inner(model), f"{path}/")
            calls.update({name: count * calls[path] for name, count in inner.items()})
    return calls


def first_lines(error: BaseException) -> str:
    """The first lines of an error that say something, in one."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " / ".join(lines[:3])[:500]


def trace(error: BaseException) -> list[str]:
    """Where it was raised: the innermost places, tfopt's own before others."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}tfopt{os.sep}" in frame.filename][-4:]
    last = [frame for frame in frames[-2:] if frame not in own]
    return [f"{Path(f.filename).name}:{f.lineno} {f.name}: {f.line}" for f in (*own, *last)]


# The report.


def is_good(row: dict) -> bool:
    return all(step["state"] in ("ok", "not run") for step in row["steps"].values())


def in_a_line(row: dict) -> str:
    bad = {name: step for name, step in row["steps"].items() if step["state"] in ("refused", "fault")}
    told = "; ".join(f"{name} {step['state']}: {step['message'][:160]}" for name, step in bad.items())
    return f"{row['model']} ({row['seconds']} s): {told or 'ok'}"


def report_of(rows: list[dict]) -> str:
    cells = []
    for row in rows:
        steps = row["steps"]
        states = [MARKS[steps.get(step, {"state": "not run"})["state"]] for step in STEPS]
        parameters, left = steps.get("build", {}).get("parameters"), steps.get("channel", {}).get("left")
        difference = steps.get("functional", {}).get("difference")
        figures = [
            "" if parameters is None else f"{parameters:,}",
            "" if difference is None else f"{difference:.0e}",
            "" if left is None else f"{left:.2f}",
        ]
        cells.append([row["model"], row["library"], figures[0], *states, *figures[1:], row["seconds"]])
    header = ["model", "", "parameters", *STEPS, "difference", "left", "s"]
    return "\n\n".join([summary_of(rows), table(header, cells), trouble_of(rows)])


def summary_of(rows: list[dict]) -> str:
    faults = sum("fault" in states(row) for row in rows)
    refused = sum("refused" in states(row) and "fault" not in states(row) for row in rows)
    good = sum(is_good(row) for row in rows)
    return f"**{good} of {len(rows)} models without a fault or a refusal; {refused} refused, {faults} with a fault.**"


def states(row: dict) -> set[str]:
    return {step["state"] for step in row["steps"].values()}


def trouble_of(rows: list[dict]) -> str:
    """Each step that is not ok, with what it said."""
    lines = [
        f"- {row['model']}, {name}, {step['state']}: {step['message']}".replace("\n", " ")
        for row in rows
        for name, step in row["steps"].items()
        if step["state"] in ("refused", "fault")
    ]
    return "\n".join(lines) or "Every step of every model is ok."


def targets_of(rows: list[dict]) -> list[Target]:
    total = sum(len(names_in(library)) for library in LIBRARIES)
    lefts = [row["steps"]["channel"]["left"] for row in rows if "left" in row["steps"].get("channel", {})]
    bad = sum(not is_good(row) for row in rows)
    return [
        Target(f"models of {total} that were not run", total - len(rows), 0),
        Target("share of the models with a fault or a refusal", bad / max(len(rows), 1), 1 - WITHOUT_FAULT),
        Target(
            "median of the parameters left by 30 % channel pruning", statistics.median(lefts or [1]), PARAMETERS_LEFT
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
