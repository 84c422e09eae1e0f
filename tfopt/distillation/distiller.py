"""The class `Distiller`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfopt.core.errors import InvalidArgumentError, NothingToDoError
from tfopt.core.keras_internals import forget_compilation, functional_of, label_loss, sublayers, track_loss
from tfopt.core.models.graph import with_graph
from tfopt.distillation import arguments
from tfopt.distillation.cache import TeacherCache
from tfopt.distillation.plan import Answer, replicas
from tfopt.distillation.planning import planned
from tfopt.distillation.saving import SavedWithTeacher
from tfopt.distillation.taught import Taught, first_taught
from tfopt.distillation.teachers import Teachers
from tfopt.distillation.trackers import Trackers, batch_size_of


@keras.saving.register_keras_serializable(package="tfopt")
class Distiller(SavedWithTeacher):
    """Trains a student on labels and on what a teacher answers: `compile`, `fit`, then `distiller.student`.

    The loss is `(1 - alpha) * label loss + alpha * sum(weight * distillation loss) + the student's regularizers and
    add_loss`; without labels (`compile(loss=None)`) it is the distillation losses as they are. All are means over the
    batch, weighted by the samples if there are weights.

    In a step student and teacher run once each, the teacher in inference mode, and only the student (with the
    projections of feature losses) is trained. Nothing in the teacher changes, neither its `trainable` flags nor its
    moving statistics. Weight constraints and fake quantization of the student, from `prune` and `quantize`, go on
    holding.

    `evaluate`, and so the validation in `fit`, shows the loss of the labels and the metrics: the teacher does not run
    and there is no distillation loss, unless the data is cached or `compile(evaluate_teacher=True)` asks for it.
    `predict` is the student's.

    `distiller.student.save(path)` saves the student, a plain model. `distiller.save(path)` saves all, the teacher too;
    `keras.models.load_model(path)` gives a Distiller that goes on with `fit` where it was. Masks of a pruned student
    are in no file: put `tfopt.prune(student, sparsity="keep")` of a loaded student into a new Distiller. Files of
    weights alone, those of `BackupAndRestore` and `ModelCheckpoint(save_weights_only=True)`, leave the teacher out.

    Args:
        student: a built Keras model, which is trained in place; also one of `prune` or `quantize`.
        teacher: another one, of the same inputs; a list of them, whose probabilities are averaged; the student itself,
            of which a copy then teaches (born-again networks); or None, to fit what `cache_teacher` gives. A teacher
            that shares weights with the student is copied too.
        losses: of `tfopt.distillation`, one or a list. None chooses one for each output: `SoftTargets` where student
            or teacher ends in a softmax, `BinaryTargets` for a sigmoid, else what fits the loss of `compile`:
            cross-entropies take logits, regressions give `RegressionTargets`. With `compile(loss=None)` it is the loss
            that the teacher or the student was compiled with. Weighted by the `loss_weights` of `compile`.
        alpha: share of the teacher, from 0 (labels alone) to 1.
        temperature: of the losses that have none of their own, above 0.
        teacher_weights: one number above 0 a teacher; None for equal ones.
        name: of the model.

    Raises:
        UnsupportedModelError: for a model that is subclassed or not built.
        InvalidArgumentError: for inputs, outputs or classes that differ, unknown layers, numbers out of range; in
            `compile`, where it cannot be told which loss fits.
        NonFiniteError: if a weight is NaN or infinite.

    Source: Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531; Furlanello et al. 2018 (born-again networks),
    https://arxiv.org/abs/1805.04770.

    Example:
        >>> import numpy as np
        >>> x, y = np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 3
        >>> net = lambda width: keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(3, "softmax")])
        >>> distiller = Distiller(student=net(2), teacher=net(16))
        >>> distiller.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> sorted(distiller.fit(x, y, verbose=0).history)
        ['accuracy', 'distillation_loss', 'loss', 'student_loss']
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: Any = None,
        losses: Any = None,
        *,
        alpha: float = 0.5,
        temperature: float = 4.0,
        teacher_weights: Sequence[float] | None = None,
        name: str = "distiller",
    ):
        alpha, temperature = arguments.checked_numbers(alpha, temperature)
        student, teacher = with_graph(student), with_graph(teacher)
        models = arguments.teaching_models(student, teacher)
        arguments.check_weights(teacher_weights, models)
        teachers = Teachers(models, teacher_weights, like=student) if models else None
        given = None if losses is None else arguments.checked_losses(losses, temperature)
        found = arguments.objectives(given or [], student, teachers)
        if given is None and teachers is not None:
            arguments.check_same_outputs(student, teachers)
        arguments.build_losses(found, student, teachers)
        half = any(layer.compute_dtype == "float16" for layer in sublayers(student))
        super().__init__(name=name, dtype="mixed_float16" if half else "float32", autocast=False)
        self.student = student
        self.distillation_losses = given or []
        self.alpha, self.temperature, self.teacher_weights = alpha, temperature, teacher_weights
        # Past Keras, for which the teacher would be a part of this model: trained, regularized and counted.
        object.__setattr__(self, "teacher", models if isinstance(teacher, (list, tuple)) else (models or [None])[0])
        object.__setattr__(self, "_teachers", teachers)
        object.__setattr__(self, "_given", None if given is None else found)
        self.built = True

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: Any = "auto",
        auto_scale_loss: bool = True,
        *,
        evaluate_teacher: bool = False,
        teacher_gap: bool = False,
    ) -> None:
        """As `keras.Model.compile`; loss, metrics and weights are those of the student.

        Args:
            optimizer, loss, loss_weights, metrics, weighted_metrics: as Keras takes them; `loss=None` for no labels.
            run_eagerly, steps_per_execution, jit_compile, auto_scale_loss: as Keras takes them.
            evaluate_teacher: runs the teacher in `evaluate` too, for its losses.
            teacher_gap: shows in the logs, where the teacher's answers are there, `teacher_gap` (accuracy of the
                teacher less that of the student on the same batch; of regressions the mean absolute error of the
                student less that of the teacher; only with labels) and `teacher_disagreement` (share of samples, or
                labels, to which both give different answers; of regressions their mean absolute difference).

        Raises:
            InvalidArgumentError: if no loss is given and it cannot be told which fits.
            NothingToDoError: if the student is frozen.
        """
        if evaluate_teacher and self._teachers is None:
            raise InvalidArgumentError(
                "`evaluate_teacher` needs a teacher.",
                received="a Distiller without one",
                fix="Pass `teacher=`, or evaluate cached data, whose answers are there.",
            )
        if not self.trainable_weights and all(loss.built for loss in self.distillation_losses):
            raise NothingToDoError(
                "The student has to have weights that train.",
                received=f"'{self.student.name}', frozen whole",
                fix="Set `student.trainable = True`, or that of the layers to train.",
            )
        plan = planned(self.student, self._teachers, self._given, self.temperature, loss, loss_weights, teacher_gap)
        forget_compilation(self)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        options = {"evaluate_teacher": evaluate_teacher, "teacher_gap": teacher_gap}
        object.__setattr__(self, "_options", {**options, "auto_scale_loss": auto_scale_loss})
        object.__setattr__(self, "_plan", plan)
        object.__setattr__(self, "_trackers", Trackers(plan, loss is not None, teacher_gap))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The student's outputs."""
        return self.student(inputs.inputs if isinstance(inputs, Taught) else inputs, training=training)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.fit`; `x` may be what `cache_teacher` gives, with its labels and in its order."""
        self._build_from_cache(x)
        self.warn_of_lost_masks()
        if isinstance(x, TeacherCache):
            x = x if batch_size is None else x.rebatch(batch_size)
            callbacks = x.in_order(callbacks)
            kwargs.setdefault("shuffle", False)  # Keras warns of a default that data sets do not take
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One batch."""
        x, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        taught = self._plan.teach(x)
        with tf.GradientTape() as tape:
            answer = self._plan.ask(taught.inputs, training=True)
            total = self._total(answer, taught, labels, weights)
            scaled = self.optimizer.scale_loss(total)
        variables = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return self._logs(total, answer, taught, labels, weights)

    def test_step(self, data: Any) -> dict[str, Any]:
        """One batch, without the teacher unless its answers are cached or asked for."""
        x, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        with_teacher = self._options["evaluate_teacher"] or isinstance(x, Taught)
        taught = self._plan.teach(x) if with_teacher else None
        answer = self._plan.ask(x if taught is None else taught.inputs, training=False)
        total = self._total(answer, taught, labels, weights)
        logs = self._logs(total, answer, taught, labels, weights)
        if not logs:
            raise InvalidArgumentError(
                "`evaluate` has something to measure.",
                received="neither loss nor metrics, and a teacher that is not to run",
                fix="Compile with `metrics=` or with `evaluate_teacher=True`.",
            )
        return logs

    def _total(self, answer: Answer, taught: Taught | None, labels: Any, weights: Any) -> Any:
        """The loss of a batch, of which each replica takes its part; what it consists of is tracked."""
        shared = replicas()
        own = label_loss(self, labels, answer.outputs, weights)  # Keras has shared it out
        losses = None if taught is None else self._plan.losses(answer, taught, labels, weights)
        self._trackers.update(None if own is None else own * shared, losses, batch_size_of(answer.outputs))
        parts = [ops.sum(ops.cast(loss, "float32")) / shared for loss in self.losses]
        if losses is None:
            parts += [] if own is None else [own]
        else:
            taught_loss = self._plan.weighted(losses) / shared
            parts += [taught_loss] if own is None else [(1.0 - self.alpha) * own, self.alpha * taught_loss]
        return sum(parts) if parts else ops.zeros(())

    def _logs(self, total: Any, answer: Answer, taught: Taught | None, labels: Any, weights: Any) -> dict[str, Any]:
        batch_size = batch_size_of(answer.outputs)
        track_loss(self, total * replicas(), batch_size)
        if taught is not None:
            self._trackers.compare(answer, taught, labels, batch_size)
        results = self.compute_metrics(None, labels, answer.outputs, weights)
        return self._trackers.shown(results, taught is not None, labels, self.loss is not None)

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        # Keras takes the means over all replicas where all metrics are in the logs; without a teacher some are not.
        results = self.get_metrics_result()
        return {name: results.get(name, value) for name, value in logs.items()}

    def _build_from_cache(self, x: Any) -> None:
        """Creates the weights of losses that only the cached features tell the shape of."""
        if self._teachers is None and not all(loss.built for loss in self.distillation_losses):
            taught = first_taught(x)
            if taught is not None:
                with self.distribute_strategy.scope():
                    arguments.build_for(self._given, self.student, taught)

    @property
    def metrics(self) -> list:
        """What the logs show."""
        trackers = getattr(self, "_trackers", None)
        return [*super().metrics, *([trackers.metric] if trackers else [])]

    @property
    def output_names(self) -> list[str]:
        """Those of the student."""
        return functional_of(self.student).output_names
