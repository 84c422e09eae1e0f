"""How a quantized model is trained: what stays as it is after some batches, and what the optimizer learns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras

from tfopt.core.checks import as_flag, as_whole
from tfopt.core.errors import InvalidArgumentError, UnsupportedModelError
from tfopt.core.models.graph import Graph
from tfopt.quantization.schemes import Scheme


class Training:
    """The options of `quantize` for training, checked, as arguments of the layers of one model.

    Args:
        freeze_ranges_after, freeze_batch_norm_after, learn_ranges: as `quantize` takes them.

    Raises:
        InvalidArgumentError: a number of batches that is none, or options that exclude each other.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "relu")])
        >>> Training(freeze_ranges_after=100).of(model).layer_arguments(model.layers[0], "dense")
        {'freeze_ranges_after': 100}
    """

    def __init__(
        self,
        freeze_ranges_after: int | None = None,
        freeze_batch_norm_after: int | None = None,
        learn_ranges: bool = False,
    ):
        self.freeze_ranges_after = _count(freeze_ranges_after, "freeze_ranges_after")
        self.freeze_batch_norm_after = _count(freeze_batch_norm_after, "freeze_batch_norm_after")
        learn_ranges = as_flag("learn_ranges", learn_ranges)
        if learn_ranges and freeze_ranges_after is not None:
            raise InvalidArgumentError(
                "Learned ranges move with the optimizer: they are not frozen by a number of batches.",
                received=f"learn_ranges=True, freeze_ranges_after={freeze_ranges_after}",
                fix="Leave one of them out; a learning rate that falls to 0 brings learned ranges to rest.",
            )
        self.learn_ranges = learn_ranges
        self.calls: Counter[int] = Counter()

    def of(self, model: keras.Model) -> Training:
        """These options with the calls of `model` counted: a layer called twice a batch counts two."""
        if self.freeze_ranges_after is not None or self.freeze_batch_norm_after is not None:
            _count_calls(model, 1, self.calls)
        return self

    def check_default(self) -> None:
        """Raises where an option was given for a model that TFMOT quantizes."""
        options = (self.freeze_ranges_after, self.freeze_batch_norm_after, self.learn_ranges)
        if options != (None, None, False):
            raise InvalidArgumentError(
                "TFMOT neither freezes nor learns ranges.",
                received="a tf_keras model with freeze_ranges_after={}, freeze_batch_norm_after={}, "
                "learn_ranges={}".format(*options),
                fix="Leave these options out, or port the model to Keras 3.",
            )

    def check_scheme(self, scheme: Scheme) -> None:
        """Raises where an option was given for ranges that the scheme does not have."""
        if scheme.activation_bits is None and (self.learn_ranges or self.freeze_ranges_after is not None):
            raise InvalidArgumentError(
                "Ranges are learned or frozen where activations are quantized.",
                received=f"scheme='{scheme.name}' with `learn_ranges` or `freeze_ranges_after`",
                fix="Leave these options out.",
            )
        if scheme.activation_bits == 16 and self.learn_ranges:
            raise InvalidArgumentError(
                "`learn_ranges` is for 8-bit activations: in 16 bits a range loses nothing by being wide.",
                received=f"scheme='{scheme.name}', learn_ranges=True",
                fix="Leave it out.",
            )

    def range_arguments(self, op: keras.Operation) -> dict[str, Any]:
        """Arguments of a layer for the ranges of `op`: only those that are not the default."""
        arguments: dict[str, Any] = {"learn_ranges": True} if self.learn_ranges else {}
        if self.freeze_ranges_after is not None:
            arguments["freeze_ranges_after"] = self.freeze_ranges_after * self._calls_of(op)
        return arguments

    def layer_arguments(self, op: keras.Operation, path: str) -> dict[str, Any]:
        """Arguments of the `QuantizedLayer` around `op`: those of its ranges, and of batch normalization."""
        arguments = self.range_arguments(op)
        if self.freeze_batch_norm_after is not None and isinstance(op, keras.layers.BatchNormalization):
            if op.synchronized:
                raise UnsupportedModelError(
                    "`freeze_batch_norm_after` takes batch normalization without `synchronized`.",
                    received=f"'{path}', synchronized over the replicas",
                    fix="Build the model with `synchronized=False`, or leave the layer out by `exclude`.",
                )
            arguments["freeze_batch_norm_after"] = self.freeze_batch_norm_after * self._calls_of(op)
        return arguments

    def _calls_of(self, op: keras.Operation) -> int:
        return self.calls.get(id(op), 1)  # input layers are not called


def _count_calls(model: keras.Model, times: int, calls: Counter[int]) -> None:
    """Adds how often each op runs in `times` passes of the model."""
    passes: Counter[int] = Counter()
    ops = {}
    for call in Graph(model).calls:
        passes[id(call.op)] += times
        ops[id(call.op)] = call.op
    calls.update(passes)
    for key, op in ops.items():
        if isinstance(op, keras.Model):
            _count_calls(op, passes[key], calls)


def _count(value: int | None, name: str) -> int | None:
    what = "a number of training batches, 0 or more, or None"
    return None if value is None else as_whole(name, value, least=0, what=what)
