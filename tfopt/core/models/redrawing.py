"""New initial values for weights of which nobody knows how they were drawn."""

from __future__ import annotations

import keras
import numpy as np


def redrawn(variable: keras.Variable) -> np.ndarray:
    """Normal values of the mean and the spread of the present ones: how an author drew the first is not known.

    Example:
        >>> bool((redrawn(keras.Variable(np.ones((2, 3)))) == 1).all())
        True
    """
    values = keras.ops.convert_to_numpy(variable)
    if not keras.backend.is_float_dtype(variable.dtype) or not values.size:
        return values
    exact = values.astype("float64")
    drawn = keras.random.normal(values.shape, float(exact.mean()), float(exact.std()))
    return keras.ops.convert_to_numpy(drawn).astype(values.dtype)
