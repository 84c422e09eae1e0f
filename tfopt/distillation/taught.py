"""What a student gets in a batch: its inputs, and what the teacher made of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf


class Taught(NamedTuple):
    """Inputs with the teacher's answers to them: what `x` is in a batch of cached data.

    Args:
        inputs: what the student gets.
        outputs: the teacher's outputs, in their structure: logits where it ends in a softmax or sigmoid.
        features: path of a layer -> its values.
    """

    inputs: Any
    outputs: Any
    features: dict[str, Any]


def first_taught(data: Any) -> Taught | None:
    """The first batch of cached data, without the labels; None where `data` is something else.

    Args:
        data: what `fit` takes: a `keras.utils.PyDataset`, a data set of TensorFlow, or arrays.
    """
    if isinstance(data, Taught):
        return data
    if isinstance(data, keras.utils.PyDataset):
        batch = data[0]
    elif isinstance(data, tf.data.Dataset):
        batch = next(iter(data), None)
    else:
        return None
    inputs = keras.utils.unpack_x_y_sample_weight(batch)[0]
    return inputs if isinstance(inputs, Taught) else None
