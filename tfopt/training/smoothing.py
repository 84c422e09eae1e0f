"""Label smoothing for each of the usual losses of classifiers."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tfopt.core.checks import Range, as_number
from tfopt.core.errors import InvalidArgumentError

_TAKES_SMOOTHING = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
)


@keras.saving.register_keras_serializable("tfopt")
class SmoothedSparseCategoricalCrossentropy(keras.losses.CategoricalCrossentropy):
    """Categorical cross-entropy with label smoothing for class numbers, which Keras has for one-hot rows only.

    Args:
        from_logits, label_smoothing, reduction, name, dtype: as for `keras.losses.CategoricalCrossentropy`.

    Source: Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7.

    Example:
        >>> import math
        >>> loss = SmoothedSparseCategoricalCrossentropy(label_smoothing=0.2)
        >>> round(float(loss([0], [[0.8, 0.2]])), 4), round(-0.9 * math.log(0.8) - 0.1 * math.log(0.2), 4)
        (0.3618, 0.3618)
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels, y_pred = ops.cast(y_true, "int32"), ops.convert_to_tensor(y_pred)
        if len(labels.shape) == len(y_pred.shape):
            labels = ops.squeeze(labels, -1)
        return super().call(ops.one_hot(labels, y_pred.shape[-1], dtype=y_pred.dtype), y_pred)


def smoothed(loss: Any, label_smoothing: float) -> keras.losses.Loss:
    """The loss with label smoothing: targets are moved by that fraction towards equal probabilities.

    Args:
        loss: a cross-entropy of Keras, or its name.
        label_smoothing: in [0, 1).

    Raises:
        InvalidArgumentError: another loss, or a fraction out of range.

    Example:
        >>> smoothed("categorical_crossentropy", 0.1).get_config()["label_smoothing"]
        0.1
    """
    label_smoothing = as_number("label_smoothing", label_smoothing, Range(least=0, below=1))
    given = _as_loss(loss)
    if type(given) is keras.losses.SparseCategoricalCrossentropy and given.get_config()["ignore_class"] is None:
        config = {key: value for key, value in given.get_config().items() if key not in ("ignore_class", "axis")}
        return SmoothedSparseCategoricalCrossentropy(**config, label_smoothing=label_smoothing)
    if not isinstance(given, _TAKES_SMOOTHING):
        raise InvalidArgumentError(
            "Label smoothing is for the cross-entropies of Keras.",
            received=repr(loss),
            fix="Pass 'categorical_crossentropy', 'sparse_categorical_crossentropy', 'binary_crossentropy' or such an "
            "object.",
        )
    return type(given).from_config({**given.get_config(), "label_smoothing": label_smoothing})


def _as_loss(loss: Any) -> Any:
    """The loss as an object; the functions that stand for a name in Keras come with their defaults."""
    if not isinstance(loss, str):
        return loss
    words = "".join(word.capitalize() for word in loss.split("_"))
    return getattr(keras.losses, words)() if hasattr(keras.losses, words) else loss
