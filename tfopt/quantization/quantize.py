"""The verb `quantize`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tfopt.core.errors import NothingToDoError
from tfopt.core.layers.registry import runs_in_16_bits
from tfopt.core.models.fake_quantized import fake_quantized
from tfopt.core.models.graph import Graph, as_patterns, check_finite, read
from tfopt.core.models.opening import opened
from tfopt.core.models.rewrite import Rewrite, holds_other_floats, in_float32, rewrite
from tfopt.interop import tfmot
from tfopt.quantization import wrappers  # noqa: F401 - the classes enter themselves
from tfopt.quantization.composites import composite_for
from tfopt.quantization.floats import FloatLayer, JoiningOp, MaskingOp, takes_tensors_only
from tfopt.quantization.layers import FakeQuantize, QuantizedLayer
from tfopt.quantization.lowering import joins, masks_a_number
from tfopt.quantization.masking import holds_large_constants, is_where, maskings
from tfopt.quantization.scheme import CHOSEN, WEIGHTS, feeds_fusion, is_fixed, treatment, weight_treatment
from tfopt.quantization.schemes import Choice, check_tfmot, scheme_of
from tfopt.quantization.training import Training
from tfopt.quantization.treatment import Treatment

TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose)


def quantize(
    model: keras.Model,
    scheme: str = "int8",
    *,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
    overrides: Mapping[str, str | None] | None = None,
    freeze_ranges_after: int | None = None,
    freeze_batch_norm_after: int | None = None,
    learn_ranges: bool = False,
) -> keras.Model:
    """Returns a copy of `model` that computes as its .tflite will; train it on, or `calibrate` it, then export.

    `"int8"` is TFMOT's 8-bit scheme: kernels symmetric and narrow, one range for each output channel of a
    convolution and one for a whole Dense kernel; activations asymmetric, their ranges moving averages over the
    training batches, starting from the first batch. Convolution, batch normalization and rectifier share one range.

    Args:
        model: a built Keras model (a tf_keras model is handed to TFMOT's `quantize_model`).
        scheme: `"int8"`; `"int16x8"`, 16-bit symmetric activations and 8-bit kernels; `"float16"`, weights rounded to
            half-precision floats; or `"int8_weight_only"` down to `"int2_weight_only"`: kernels rounded to `2^n - 1`
            values around zero for each output channel, while activations, and the operations of the file, stay float.
            Only the first two have ranges to train or to `calibrate`.
        include: layer names or globs to quantize; all by default. Nested layers by path, as `"encoder/conv1"`.
        exclude: layer names or globs to leave in float.
        overrides: `{layer name or glob: scheme}` for single layers; None leaves them in float. It counts more than
            `include` and `exclude`, and where several fit a layer, the last one counts. Integer activations of one
            kind, float layers and weight-only layers of any bits go together in a file; nothing goes with float16.
        freeze_ranges_after: after so many training batches the activation ranges stay as they are; 0 takes those of
            `calibrate`, or of the first batch. Each batch counts, also where gradients are accumulated; a resumed
            training goes on counting. None never freezes them.
        freeze_batch_norm_after: after so many training batches batch normalization normalizes by its moving mean and
            variance, as in inference, and these stay as they are; its scale and offset train on. None never does.
        learn_ranges: True trains the activation ranges with the weights, by the gradients of learned step size
            quantization (LSQ), from those of `calibrate` or of the first batch on. Ranges of model inputs still follow
            the data, kernels keep the range of their weights. The optimizer's weight decay, if any, shrinks ranges too.

    Returns:
        A new, uncompiled model with the same layer names; each quantized layer is a `QuantizedLayer` around the
        original's copy, or a `FloatLayer` where only its kernels are rounded or it computes between integers. In the
        place of a layer made of Keras layers, as those of `tfopt.fusion`, stands a nested model of its name. Pruning
        masks go with the weights. Weights in half or double precision become float32. The input model is not changed.

    Raises:
        InvalidArgumentError: unknown scheme or layer name, schemes that do not go together, a number of batches that
            is none, both `freeze_ranges_after` and `learn_ranges`, or ranges to learn or freeze where there are none.
        UnsupportedModelError: an unbuilt model, or one that is no graph; synchronized batch normalization to freeze.
        NonFiniteError: NaN or infinity in the weights.
        NothingToDoError: no layer to quantize, or the model is quantized already.

    Warns:
        Once, with the layers that stay float and why, and with bits that the file cannot hold as they are.

    Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877; TFMOT `quantization/keras/default_8bit`. Freezing:
    Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 3.2. LSQ: Esser et al. 2020,
    https://arxiv.org/abs/1902.08153.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
        >>> quantized = quantize(model)
        >>> [layer.name for layer in quantized.layers[1:]] == [layer.name for layer in model.layers]
        True
    """
    base = scheme_of(scheme)
    training = Training(freeze_ranges_after, freeze_batch_norm_after, learn_ranges)
    if tfmot.is_tf_keras_model(model):
        training.check_default()
        check_tfmot(base, overrides)
        return tfmot.quantize(model, include=include, exclude=exclude)
    graph = opened(read(model))
    if holds_other_floats(graph):
        graph = in_float32(graph)
    choice = Choice(graph, base, as_patterns(include, "include"), as_patterns(exclude, "exclude"), overrides)
    training.check_scheme(base)
    if fake_quantized(graph):
        raise NothingToDoError(
            "The model is quantized already.", received=f"'{model.name}'", fix="`tfopt.strip(model)` undoes it."
        )
    check_finite(graph)
    plan = _Plan(graph, choice, training)
    quantized = rewrite(graph, plan.replace)
    plan.report(model)
    return quantized.model


class _Plan:
    """Decides for each op of a model and of its nested models, and remembers what stays float."""

    def __init__(self, graph: Graph, choice: Choice, training: Training):
        self.choice, self.bits = choice, choice.base.activation_bits
        self.closed = graph.closed
        self.training = training.of(graph)
        self.graphs = {id(op): part for part in graph.graphs for op in _ops(part)}
        self.maskings = maskings(graph) if self.bits else {}
        self.model_inputs = {id(tensor._keras_history.operation) for tensor in graph.inputs}
        self.float_layers: dict[str, list[str]] = {}  # what of a layer stays float and why -> paths
        self.notes = choice.notes()
        self.count = 0

    def replace(self, op: keras.Operation, state: Rewrite) -> Any:
        if isinstance(op, keras.layers.InputLayer):
            return self._input(op, state)
        if isinstance(op, keras.Model):
            return None
        wanted = self._treatment(op, state.path)
        if wanted.is_float:
            return self._float(op, state, wanted)
        if wanted.note:
            self._stays_float(state.path, f" in part ({type(op).__name__}: {wanted.note})")
        options = {**self.training.layer_arguments(op, state.path), **self._masking(op)}
        if wanted.is_plain and "freeze_batch_norm_after" not in options:
            return None
        wrapper = composite_for(op, self.graphs[id(op)]) or QuantizedLayer
        inside = wrapper.float_inside(op)
        if inside:
            self._stays_float(state.path, f" ({type(op).__name__}: {inside})")
        elif not wanted.is_plain:
            self.count += 1
        if self._hides(op, state, wanted):
            return self._hiding(op, state)
        if joins(op) and not isinstance(op, keras.layers.Layer):
            ranged = self._range_arguments(op)
            return JoiningOp(state.copy(op), quantize_output=True, activation_bits=self.bits, **ranged)
        if not isinstance(op, keras.layers.Layer):
            return [state.copy(op), self._range_behind(op)]
        if wanted.composite:
            quantized = wrapper.of(op, state).with_training(**options)
            quantized.activation_bits = self.bits
            return quantized
        return wrapper.of(op, wanted, state, activation_bits=self.bits, **options)

    def _float(self, op: keras.Operation, state: Rewrite, wanted: Treatment) -> Any:
        """A layer that computes in float: as it is, or with what lies between it and integers, and rounded kernels."""
        scheme = self.choice.of(state.path)
        kernels = wanted.kernels
        self.count += bool(kernels)
        if wanted.reason not in (CHOSEN, WEIGHTS):
            self._stays_float(state.path, f" ({type(op).__name__}: {self.closed.get(state.path, wanted.reason)})")
        if self.bits and isinstance(op, TRANSPOSED):
            self.notes.append(
                f"The converter stores '{state.path}' in 8 bits: transposed convolutions, float ones too."
            )
        ranged = self._feeds_integers(op, state)
        if not (kernels or ranged or self.bits == 16):
            return None
        if not all(takes_tensors_only(op, call.given) for call in state.calls):
            return [state.copy(op), self._range_behind(op)] if ranged else None
        return FloatLayer(
            state.copy(op),
            kernels,
            bits=scheme.weight_bits if scheme is not None else None,
            quantize_output=ranged,
            apart=self.bits is not None and self._float_producer(op, state.path) is None,
            activation_bits=self.bits or 8,
            **self._range_arguments(op),
        )

    def _hides(self, op: keras.Operation, state: Rewrite, wanted: Treatment) -> bool:
        """True for an op with a range that hides scores from a softmax by constants of its own."""
        if id(op) not in self.maskings or isinstance(op, keras.layers.Layer) or not wanted.output:
            return False
        return is_where(op) or any(holds_large_constants(call) for call in state.calls)

    def _hiding(self, op: keras.Operation, state: Rewrite) -> MaskingOp:
        masking = self.maskings[id(op)]
        options = {"activation_bits": self.bits, **self._range_arguments(op)}
        return MaskingOp(state.copy(op), limit=masking.limit, quantize_output=True, **options)

    def _masking(self, op: keras.Operation) -> dict[str, Any]:
        return {"masking": self.maskings[id(op)].axes} if id(op) in self.maskings else {}

    def _range_arguments(self, op: keras.Operation) -> dict[str, Any]:
        return {**self.training.range_arguments(op), **self._masking(op)}

    def _range_behind(self, op: keras.Operation, observer: str = "moving_average") -> FakeQuantize:
        arguments = self._range_arguments(op)
        return FakeQuantize(observer, name=f"{op.name}_range", activation_bits=self.bits, **arguments)

    def _input(self, op: keras.Operation, state: Rewrite) -> Any:
        if self.bits is None or id(op) not in self.model_inputs or not keras.backend.is_float_dtype(op.dtype):
            return None
        readers = self.graphs[id(op)].consumers(op.output)
        if any(isinstance(call.op, keras.layers.Embedding) or masks_a_number(call.op) for call in readers):
            return None
        return [state.copy(op), self._range_behind(op, "all_values")]

    def _treatment(self, op: keras.Operation, path: str) -> Treatment:
        scheme, graph = self.choice.of(path), self.graphs[id(op)]
        if scheme is None:
            return Treatment({}, reason=CHOSEN)
        if scheme.activation_bits is None:
            return weight_treatment(op)
        if self._float_producer(op, path) is not None:
            return Treatment({}, reason=CHOSEN)
        if is_where(op) and id(op) in self.maskings:
            return Treatment({}, output=True)
        wanted = treatment(op, graph)
        calls = graph.calls_of(op)
        tensors = min((len(call.inputs) for call in calls), default=1)
        if scheme.activation_bits == 16 and not (
            wanted.is_float or is_fixed(op, graph) or runs_in_16_bits(op, tensors)
        ):
            return Treatment({}, reason="LiteRT has no integer operation for it with 16-bit activations")
        return wanted

    def _float_producer(self, op: keras.Operation, path: str) -> keras.Operation | None:
        """The layer that is to compute in float into whose kernel this batch normalization folds; None otherwise."""
        graph = self.graphs[id(op)]
        producer = graph.sole_producer(op) if isinstance(op, keras.layers.BatchNormalization) else None
        if producer is None or not feeds_fusion(producer, graph):
            return None
        scheme = self.choice.of(path.removesuffix(op.name) + producer.name)
        return producer if scheme is None or scheme.activation_bits is None else None

    def _feeds_integers(self, op: keras.Operation, state: Rewrite) -> bool:
        """True if a quantized op reads the float op's only output, which then needs a range to become an integer."""
        if self.bits is None:
            return False
        graph = self.graphs[id(op)]
        tensors = [tensor for call in graph.calls_of(op) for tensor in call.outputs]
        if len(tensors) != 1 or graph.is_output(tensors[0]) or not keras.backend.is_float_dtype(tensors[0].dtype):
            return False
        prefix = state.path.removesuffix(op.name)
        readers = [call.op for call in graph.consumers(tensors[0]) if not isinstance(call.op, keras.Model)]
        return any(not self._treatment(reader, prefix + reader.name).is_float for reader in readers)

    def _stays_float(self, path: str, what: str) -> None:
        self.float_layers.setdefault(what, []).append(f"'{path}'")

    def report(self, model: keras.Model) -> None:
        float_layers = ", ".join(", ".join(paths) + what for what, paths in self.float_layers.items())
        if not self.count:
            raise NothingToDoError(
                "The model has to have a layer that can be quantized.",
                received=f"'{model.name}': " + (float_layers or "no layer selected"),
                fix="Check `include` and `exclude`; layers of your own join with `@tfopt.register_layer(kernels=...)`.",
            )
        notes = self.notes
        if float_layers:
            notes = [f"These layers stay float: {float_layers}.", *notes]
        if notes:
            warnings.warn(" ".join(notes), stacklevel=3)


def _ops(graph: Graph) -> Iterator[keras.Operation]:
    yield from (tensor._keras_history.operation for tensor in graph.inputs)
    yield from (call.op for call in graph.calls)
