"""Gradients by central differences, of functions in numpy."""

import numpy as np

STEP = 1e-5


def slope(function, values):
    """The gradient of a function of one float64 array that gives one number."""
    values = np.array(values, "float64")
    gradient = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        at = values[index]
        values[index] = at + STEP
        above = function(values)
        values[index] = at - STEP
        gradient[index] = (above - function(values)) / (2 * STEP)
        values[index] = at
    return gradient
