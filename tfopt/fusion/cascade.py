"""The cascade: a cheap model answers where it is sure, the next one the rest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from tfopt.core.checks import Range, as_numbers
from tfopt.core.data.batches import gives_batches, input_batches
from tfopt.core.data.cascades import in_turn
from tfopt.core.data.outputs import KnowsOutput, OutputKind
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of
from tfopt.core.layers.macs import register_macs
from tfopt.core.layers.registry import register_layer
from tfopt.core.models.graph import Call, Graph

_WHOLE = 2**62  # more samples than an array has: it is one batch


@register_layer(output="float", reason="a cascade compares probabilities with its thresholds")
@keras.saving.register_keras_serializable(package="tfopt")
class CascadeSelection(keras.layers.Layer, KnowsOutput):
    """Of several answers, for each sample the first whose confidence reaches its threshold, else the last.

    The confidence is the highest probability; of a single probability `p` it is the larger of `p` and `1 - p`.

    Input: a list of n tensors (batch, classes). Output: a tensor of that shape.

    Args:
        thresholds: n - 1 numbers of at least 0; with one above 1 that model never answers.
        from_logits: the inputs are logits, whose softmax gives the probabilities.

    Raises:
        InvalidArgumentError: thresholds that are none or as many as do not fit; inputs of other shapes.

    Example:
        >>> sure, unsure = [0.9, 0.1], [0.6, 0.4]
        >>> answers = [np.array([sure, unsure]), np.array([[0.0, 1.0], [0.0, 1.0]])]
        >>> CascadeSelection([0.8])(answers).numpy().argmax(-1).tolist()
        [0, 1]
    """

    fuses_branches = True

    def weights_of(self, count: int) -> None:
        """Answers are chosen, not weighted."""

    def output_kind(self, kinds: Sequence[OutputKind | None], width: int | None) -> OutputKind | None:
        """That of the models, where it is the same."""
        return kinds[0] if len(set(kinds)) == 1 else None

    def __init__(self, thresholds: Any, *, from_logits: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.thresholds, self.from_logits = as_thresholds(thresholds), from_logits

    def build(self, input_shape: Any) -> None:
        if len(input_shape) != len(self.thresholds) + 1:
            raise InvalidArgumentError(
                "A cascade has one threshold for each model but the last.",
                received=f"{len(self.thresholds)} thresholds, {len(input_shape)} models",
            )
        if len({tuple(shape[1:]) for shape in input_shape}) > 1 or len(input_shape[0]) != 2:
            raise InvalidArgumentError(
                "The models of a cascade give one answer a sample, (batch, classes), over the same classes.",
                received=str(input_shape),
            )

    def call(self, inputs: Any) -> Any:
        answer = inputs[-1]
        for threshold, earlier in reversed(list(zip(self.thresholds, inputs, strict=False))):
            answer = ops.where(ops.greater_equal(self._confidence(earlier), threshold), earlier, answer)
        return answer

    def _confidence(self, answers: Any) -> Any:
        """As `tfopt.core.data.cascades.confidence`, in operations of a graph: (batch, 1)."""
        if answers.shape[-1] == 1:
            return ops.maximum(answers, 1.0 - answers)
        return ops.max(ops.softmax(answers, -1) if self.from_logits else answers, -1, keepdims=True)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "thresholds": self.thresholds, "from_logits": self.from_logits}


register_macs(CascadeSelection)(lambda layer, inputs, outputs: 0)


@keras.saving.register_keras_serializable(package="tfopt")
class Cascade(keras.Model):
    """A Functional model whose `predict` gives each sample to as few of its models as need be.

    `fuse(models, "cascade", thresholds=...)` makes one. Its stages are nested models, a `CascadeSelection` behind them
    chooses. Called as a layer, in `fit` and in `evaluate`, and where it is converted, all stages run, as in any graph;
    answers are the same. It saves and loads as one `.keras` file. `tfopt.deploy.cascade.export_cascade` writes a
    .tflite file for each stage.
    """

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One for each stage but the last."""
        return _selection(self._selecting_call).thresholds

    @property
    def from_logits(self) -> bool:
        """Whether the stages give logits."""
        return _selection(self._selecting_call).from_logits

    @property
    def stages(self) -> list[keras.Model]:
        """Each stage as a model from the inputs of the cascade to the answers of that stage; weights are shared."""
        if "_own_stages" not in self.__dict__:
            stages = [keras.Model(self.input, tensor) for tensor in self._selecting_call.inputs]
            object.__setattr__(self, "_own_stages", stages)  # Keras would count them as layers of this model
        return self._own_stages

    def predict(
        self, x: Any, batch_size: int | None = None, verbose: Any = "auto", steps: Any = None, callbacks: Any = None
    ) -> Any:
        """The answers for `x`, as `keras.Model.predict` gives them; a stage sees only what those before are unsure of.

        Args:
            x: an array, a list or dict of arrays for several inputs, or a data set or iterator of batches.
            batch_size: samples at a time, for arrays.
            verbose: as for `keras.Model.predict`, of each stage; batches of a data set run silently.
            steps: how many batches of a data set to take.
            callbacks: for `predict` of each stage.
        """
        run = partial(self._answers, batch_size=batch_size, callbacks=callbacks)
        if not gives_batches(x):
            return run(*input_batches(self, x, batch_size=_WHOLE), verbose=verbose)[0]
        return np.concatenate([run(batch, verbose=0)[0] for batch in itertools.islice(input_batches(self, x), steps)])

    def answered_by(self, x: Any, batch_size: int | None = None) -> np.ndarray:
        """Which stage answers each sample, counted from 0: an int array (n,).

        Args:
            x: an array, or a list or dict of arrays for several inputs.
            batch_size: samples at a time.
        """
        return self._answers(*input_batches(self, x, batch_size=_WHOLE), batch_size=batch_size, verbose=0)[1]

    @property
    def _selecting_call(self) -> Call:
        return next(call for call in Graph(self).calls if isinstance(_selection(call), CascadeSelection))

    def _answers(self, arrays: list[np.ndarray], **options: Any) -> tuple[np.ndarray, np.ndarray]:
        def run(stage: keras.Model, inputs: list[np.ndarray]) -> np.ndarray:
            structured = keras.tree.pack_sequence_as(functional_of(self).input, inputs)
            return stage.predict(structured, **options).astype(self.output.dtype)

        return in_turn(arrays, [partial(run, stage) for stage in self.stages], self.thresholds, self.from_logits)


def as_thresholds(thresholds: Any) -> tuple[float, ...]:
    """Thresholds as a tuple of floats.

    Raises:
        InvalidArgumentError: for anything but a list of numbers of at least 0.
    """
    values = as_numbers(
        "thresholds",
        thresholds,
        Range(least=0, infinite=True),
        what="a list of numbers of at least 0, one for each model but the last",
        fix="`tfopt.fit_thresholds` finds them on validation data.",
    )
    return tuple(map(float, values))


def _selection(call: Call) -> Any:
    """The layer of a call, without what tfopt has wrapped around it."""
    return getattr(call.op, "layer", call.op)
