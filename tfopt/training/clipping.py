"""Adaptive gradient clipping: optimizers that bound each gradient by the size of the weights that it moves."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfopt.core.checks import POSITIVE, as_number

SMALLEST_NORM = 1e-3  # weights smaller than this, as those that start at 0, count as this large


def adaptively_clipped(optimizer: keras.optimizers.Optimizer, clipping: float = 0.01) -> keras.optimizers.Optimizer:
    """A fresh optimizer of the same settings that clips gradients unit by unit.

    The gradient of a unit (all weights with the same index of the last axis: a neuron or filter; a vector or number as
    a whole) is scaled down where its norm is more than `clipping` times the norm of the unit's weights.

    Args:
        optimizer: of Keras or a subclass, not used yet.
        clipping: the largest ratio of the two norms, above 0; 0.01 for large batches.

    Returns:
        An optimizer of a subclass of that of `optimizer`; saved models with it load once this module is imported.

    Raises:
        InvalidArgumentError: `clipping` out of range.

    Source: Brock et al. 2021, https://arxiv.org/abs/2102.06171; they leave the last layer of a classifier out.

    Example:
        >>> optimizer = adaptively_clipped(keras.optimizers.SGD(1.0), 0.5)
        >>> weights = keras.Variable([[3.0, 3.0], [4.0, 4.0]])  # two units of norm 5
        >>> optimizer.apply([ops.array([[0.0, 10.0], [1.0, 0.0]])], [weights])
        >>> weights.numpy().tolist()
        [[3.0, 0.5], [3.0, 4.0]]
    """
    clipping = as_number("clipping", clipping, POSITIVE, what="a ratio above 0")
    cls: Any = _clipped_class(type(optimizer))
    return cls.from_config({**optimizer.get_config(), "adaptive_clipping": clipping})


def clip_to_weights(gradient: Any, weights: Any, clipping: float, scale: float = 1.0) -> Any:
    """The gradient of `weights`, multiplied by `scale` before, with each unit's norm bounded."""
    limit = clipping * ops.maximum(_unit_norms(weights), SMALLEST_NORM) * scale
    norm = _unit_norms(gradient)
    return ops.where(norm > limit, gradient * ops.cast(limit / ops.maximum(norm, 1e-6), gradient.dtype), gradient)


def _unit_norms(tensor: Any) -> Any:
    """The Euclidean norm of each unit, in float32."""
    axes = tuple(range(len(tensor.shape) - 1)) if len(tensor.shape) > 1 else None
    return ops.sqrt(ops.sum(ops.square(ops.cast(tensor, "float32")), axes, keepdims=axes is not None))


class _Clips(keras.optimizers.Optimizer):
    """What is put in front of an optimizer class; Keras makes the rest."""

    adaptive_clipping: float
    loss_scale_factor: float | None

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        scale = self.loss_scale_factor or 1.0
        clipped = [
            None if gradient is None else clip_to_weights(gradient, variable, self.adaptive_clipping, scale)
            for gradient, variable in zip(grads, variables, strict=True)
        ]
        return super().apply(clipped, trainable_variables)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "adaptive_clipping": self.adaptive_clipping}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        config = dict(config)
        clipping = config.pop("adaptive_clipping")
        optimizer = super().from_config(config, custom_objects)
        optimizer.adaptive_clipping = clipping
        return optimizer


_MADE: dict[type, type] = {}
_BASES = (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer)


def _clipped_class(cls: type) -> type:
    if cls not in _MADE:
        namesake = getattr(keras.optimizers, cls.__name__, cls)
        name = cls.__name__ if namesake is cls else f"{cls.__module__}.{cls.__name__}"
        made = type(f"AdaptivelyClipped{name}", (_Clips, cls), {"__module__": __name__})
        _MADE[cls] = keras.saving.register_keras_serializable("tfopt")(made)
    return _MADE[cls]


# All of Keras at once, so that any process can load what another one saved.
for _cls in vars(keras.optimizers).values():
    if isinstance(_cls, type) and issubclass(_cls, keras.optimizers.Optimizer) and _cls not in _BASES:
        _clipped_class(_cls)
