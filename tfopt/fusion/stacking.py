"""The verb `stack`: a meta-model trained on what the base models predict for samples they have not seen."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from tfopt.core.data.goals import as_goal
from tfopt.core.data.metrics import score
from tfopt.core.data.outputs import output_kinds
from tfopt.core.data.pairs import as_read_by
from tfopt.core.data.samples import Labelled, labelled, take
from tfopt.core.data.splits import Split, make_folds
from tfopt.core.data.training import compile_alike
from tfopt.core.errors import NonFiniteError
from tfopt.core.journal import FolderJournal, Head
from tfopt.core.keras_internals import functional_of, input_names
from tfopt.core.models.fingerprints import fingerprint
from tfopt.core.models.graph import read, with_graph
from tfopt.core.models.rewrite import rewrite
from tfopt.core.reporting.progress import progress
from tfopt.core.types import Arrays, Folds, Metric
from tfopt.fusion.bases import Base, Training, bases_of, seed_of
from tfopt.fusion.chains import StackedFusion
from tfopt.fusion.heads import head_of
from tfopt.fusion.predictions import check_in_memory, names_of
from tfopt.fusion.second_level import SecondLevel
from tfopt.fusion.stack_result import INPUTS, StackResult


def stack(
    models: Sequence[Any],
    x: Arrays,
    y: Arrays,
    *,
    meta: keras.Model | None = None,
    folds: Folds = 5,
    groups: Any = None,
    passthrough: bool = False,
    epochs: int = 10,
    fit: Mapping[str, Any] | None = None,
    meta_fit: Mapping[str, Any] | None = None,
    metric: Metric = None,
    mode: str = "auto",
    directory: str | os.PathLike | None = None,
    seed: int = 0,
    name: str = "stacked",
    verbose: int = 1,
) -> StackResult:
    """Trains the base models fold by fold, a meta-model on what they predict for the fold left out, and fuses all.

    A meta-model that is trained on predictions for samples the base models were trained on trusts those that know
    them by heart. Here it sees out-of-fold predictions only. At last the base models are trained on all samples, and
    become, with the meta-model on top, one Keras model.

    Each training starts anew, from new initial values, compiled as the given model was. Layers with
    `trainable=False` and adapted ones (`Normalization`) keep their values, so these must not come from `x`. To start
    all trainings from pretrained weights that are trained on, give a function that loads them.

    Args:
        models: compiled models, each with one output of shape (samples, width), or functions without arguments that
            build such. None of them is changed.
        x: inputs as arrays, the same for all models: a dict by name, or a list in the order of the first model; the
            others get them by the names of their inputs. So for `validation_data`.
        y: labels `(n,)`, `(n, 1)` or one-hot `(n, C)`, or the targets of a regression.
        meta: a compiled model from all outputs, concatenated, to the answer: built, or a Sequential that is not built
            yet. By default one dense layer: the logistic regression (of a regression, the ridge regression) that
            scikit-learn stacks with. What the task is, is told by `y` and the outputs of the first model.
        folds: a number of folds, stratified by class; a splitter of scikit-learn, as `GroupKFold` or `TimeSeriesSplit`;
            or pairs (train, held out) of arrays. Samples that are held out twice count with the
            mean of their predictions, samples that never are do not train the meta-model.
        groups: of each sample, for splitters that keep groups together.
        passthrough: whether the meta-model sees the inputs too, flattened, behind the predictions.
        epochs: of each training of a base model.
        fit: further arguments of its `fit`: `batch_size` (32), `callbacks`, `class_weight`, `validation_data` and its
            `validation_batch_size`, `validation_freq`.
        meta_fit: arguments of the `fit` of `meta`, `epochs` (50) among them.
        metric: accuracy by default, or the mean squared error of a regression; else as in `find_sparsity`.
        mode: `"max"`, `"min"` or `"auto"`: whether a higher score is better.
        directory: a folder to which the outcome of each training is written as it comes; a second call with the same
            arguments goes on from there.
        seed: of folds, initial values and the order of samples.
        name: of the fused model.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        A frozen `StackResult`: `model`, compiled as the meta-model was and with frozen base models; `out_of_fold`;
        scores of each base model, of their mean and of the stack on held-out folds; what each model contributes.

    Raises:
        InvalidArgumentError: for models that are not compiled, options that do not fit, a missing package, or a
            `directory` with the work of another call.
        UnsupportedModelError: for models of several outputs or of pictures, pruned, clustered or quantized ones, or a
            `meta` of another width.
        NonFiniteError: NaN or infinity in the data or in predictions.
        FileError: a `directory` that cannot be written, or holds something else.

    Source: Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1; Ting and Witten 1999,
        https://doi.org/10.1613/jair.594; scikit-learn `ensemble/_stacking.py`.

    Example:
        >>> def net(units):
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, "tanh"), keras.layers.Dense(1)])
        ...     model.compile("adam", "mse")
        ...     return model
        >>> x = np.random.default_rng(0).normal(size=(40, 2))
        >>> result = stack([net(4), net(8)], x, x.sum(1), folds=2, epochs=1, verbose=0)
        >>> result.out_of_fold.shape, result.model.predict(x, verbose=0).shape
        ((40, 2), (40, 1))
    """
    models = with_graph(models)
    check_in_memory(x, y, "x, y")
    training, y = Training.of(epochs, seed, fit, "fit"), np.asarray(y)
    bases = bases_of(models)
    given = labelled(bases[0].model, (x, y), "x, y")
    samples = [base.samples(given, bases[0]) for base in bases]
    trainings = [training.of_base(base, bases[0]) for base in bases]
    inputs = _flat(samples[0].x) if passthrough else np.zeros((len(y), 0), np.float32)
    classes = _classes(y, bases[0])
    splits = make_folds(folds, y, len(y), stratify=classes is not None, groups=groups, seed=seed)
    goal = as_goal(("mse" if classes is None else "accuracy") if metric is None else metric, mode)
    widths = [base.width for base in bases] + ([inputs.shape[1]] if passthrough else [])
    head = head_of(meta, sum(widths), y, classes, meta_fit, seed)
    journal = None
    if directory is not None:
        settings = _settings(bases, samples[0], splits, training)
        journal = FolderJournal(directory, Head("stack", 2, "directory", settings))
    with progress("stack", (len(splits) + 1) * len(bases) + 1, verbose) as step:
        work = _Work(bases, samples, trainings, journal, step)
        out_of_fold, epochs_run = work.out_of_fold(splits)
        refitted = work.refitted()
        kinds = [output_kinds(base.model)[0] for base in bases]
        level = SecondLevel(np.concatenate([out_of_fold, inputs], 1).astype(np.float32), y, widths, goal, kinds)
        scored = level.scored(splits)
        stack_scores = level.stack_scores(head, scored)
        trained = head.trained(level.features[level.seen], y[level.seen])
        result = StackResult(
            model=_fused(refitted, trained, head.options, passthrough, name),
            out_of_fold=out_of_fold,
            models=names_of([base.model for base in bases]) + ((INPUTS,) if passthrough else ()),
            metric=goal.name,
            mode=goal.mode,
            samples=len(level.seen),
            scores=tuple(level.base_scores(place, scored) for place in range(len(bases))),
            mean_scores=level.mean_scores(len(bases), scored),
            stack_scores=stack_scores,
            contributions=level.contributions(trained, seed),
            epochs=epochs_run,
        )
        step()
    return result


@dataclass(frozen=True)
class _Work:
    """The trainings of the base models, each kept as it ends."""

    bases: list[Base]
    samples: list[Labelled]
    trainings: list[Training]
    journal: FolderJournal | None
    step: Callable[[], None]

    def out_of_fold(self, splits: Sequence[Split]) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
        """Predictions of models that were trained without the sample, NaN where there are none; the epochs that ran."""
        samples = len(self.samples[0])
        columns, epochs = [], []
        for base in self.bases:
            total, times = np.zeros((samples, base.width)), np.zeros((samples, 1))
            ran = []
            for fold, split in enumerate(splits):
                key = f"fold_{fold}_model_{base.place}"
                kept = self._kept(key, partial(self._predicted, base, fold, split))
                total[split.held_out] += kept["predictions"]
                times[split.held_out] += 1
                ran.append(int(kept["epochs"]))
                self.step()
            columns.append(np.divide(total, times, out=np.full_like(total, np.nan), where=times > 0))
            epochs.append(tuple(ran))
        return np.concatenate(columns, 1), tuple(epochs)

    def refitted(self) -> list[keras.Model]:
        """The base models, trained on all samples."""
        models = []
        for base in self.bases:
            kept = self._kept(f"all_model_{base.place}", partial(self._weights, base))
            models.append(base.fresh(0))
            models[-1].set_weights([kept[f"weight_{place}"] for place in range(len(kept))])
            self.step()
        return models

    def _kept(self, key: str, measure: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return measure() if self.journal is None else self.journal.arrays(f"{key}.npz", measure)

    def _predicted(self, base: Base, fold: int, split: Split) -> dict[str, np.ndarray]:
        samples, training = self.samples[base.place], self.trainings[base.place]
        model = base.restart(seed_of(training.seed, base.place, fold + 1))
        epochs = training.run(model, samples.rows(split.train), base.place, fold + 1)
        predictions = model.predict(take(samples.x, split.held_out), batch_size=training.batch_size, verbose=0).astype(
            np.float32
        )
        if not np.isfinite(predictions).all():
            raise NonFiniteError(
                "What the base models predict has to be finite.",
                received=f"NaN or infinity from '{base.model.name}' in fold {fold + 1}",
                fix="Train it with a lower learning rate or gradient clipping.",
            )
        return {"predictions": predictions, "epochs": np.array(epochs)}

    def _weights(self, base: Base) -> dict[str, np.ndarray]:
        training = self.trainings[base.place]
        model = base.restart(seed_of(training.seed, base.place, 0))
        training.run(model, self.samples[base.place], base.place, 0)
        return {f"weight_{place}": weight for place, weight in enumerate(model.get_weights())}


def _flat(x: Any) -> np.ndarray:
    """All inputs of a sample in a row."""
    return np.concatenate([np.asarray(part, np.float32).reshape(len(part), -1) for part in keras.tree.flatten(x)], 1)


def _classes(y: np.ndarray, base: Base) -> int | None:
    """How many classes the labels have, 1 for two told by one number, None for a regression."""
    return base.width if "accuracy" in score(y, np.zeros((len(y), base.width))) else None


def _settings(bases: list[Base], samples: Labelled, splits: Sequence[Split], training: Training) -> dict[str, str]:
    """All that the work of a training depends on."""
    return {
        "models": fingerprint([base.fingerprint for base in bases]),
        "data": fingerprint([samples.x, samples.y]),
        "folds": fingerprint([[split.train, split.held_out] for split in splits]),
        "training": fingerprint([training.epochs, training.seed, training.options]),
    }


def _fused(
    models: list[keras.Model], head: keras.Model, options: Mapping[str, Any], passthrough: bool, name: str
) -> keras.Model:
    """One model: the frozen base models side by side, their outputs into the head; copies, which are not compiled."""
    models, head = [rewrite(read(model)).model for model in models], rewrite(read(head)).model
    names = names_of(models)
    for model, unique in zip(models, names, strict=True):
        model.name, model.trainable = unique, False
    functional = functional_of(models[0])
    named = zip(functional.inputs, input_names(models[0]), strict=True)
    flat: list = [keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=name) for tensor, name in named]
    inputs = keras.tree.pack_sequence_as(functional.input, flat)
    branches = [model(as_read_by(model, inputs, models[0])) for model in models]
    if passthrough:
        branches += [keras.ops.cast(tensor, "float32") for tensor in flat]
    chain = head.layers if isinstance(head, keras.Sequential) else head
    fusion = StackedFusion(chain, name="fusion" if "fusion" not in names else f"{name}_fusion", dtype="float32")
    outputs = fusion(branches)
    model = keras.Model(inputs, outputs, name=name)
    compile_alike(model, options)
    model.optimizer.build(model.trainable_variables)  # a file of the model is then whole
    return model
