"""Functions of TensorFlow and the functions of Keras that compute the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def _where(condition: Any, x: Any, y: Any) -> Any:
    return ops.where(condition, x, y)


def _silu(features: Any, beta: Any = 1.0) -> Any:
    return ops.silu(features) if beta == 1.0 else NotImplemented


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


def _reduce(function: Callable[..., Any]) -> Callable[..., Any]:
    def reduced(input_tensor: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return function(input_tensor, axis=axis, keepdims=keepdims)

    return reduced


def _one(function: Callable[..., Any], parameter: str = "x") -> Callable[..., Any]:
    return lambda **kwargs: function(kwargs.pop(parameter), **kwargs)


def _two(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: function(x, y)


# By the public name behind "tf.": what takes the arguments of that function, but `name`, by keyword.
_TWINS: dict[str, Callable[..., Any]] = {
    **{f"nn.{name}": _one(getattr(ops, name), "features") for name in ("relu", "relu6", "elu", "selu", "softplus")},
    "nn.silu": _silu,
    "nn.gelu": lambda features, approximate=False: ops.gelu(features, approximate=approximate),
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, negative_slope=alpha),
    "nn.softmax": lambda logits, axis=None: ops.softmax(logits, axis=-1 if axis is None else axis),
    "nn.log_softmax": lambda logits, axis=None: ops.log_softmax(logits, axis=-1 if axis is None else axis),
    **{
        f"math.{name}": _one(getattr(ops, name))
        for name in ("sigmoid", "tanh", "exp", "square", "sqrt", "rsqrt", "abs")
    },
    **{f"math.{name}": _two(getattr(ops, name)) for name in ("add", "subtract", "multiply", "maximum", "minimum")},
    "math.divide": _two(ops.divide),
    "math.truediv": _two(ops.true_divide),
    "math.negative": _one(ops.negative),
    "math.log": _one(ops.log),
    "math.reduce_mean": _reduce(ops.mean),
    "math.reduce_sum": _reduce(ops.sum),
    "math.reduce_max": _reduce(ops.max),
    "math.reduce_min": _reduce(ops.min),
    "linalg.matmul": _matmul,
    "concat": lambda values, axis: ops.concatenate(values, axis=axis),
    "stack": lambda values, axis=0: ops.stack(values, axis=axis),
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape),
    "transpose": lambda a, perm=None: ops.transpose(a, perm),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "squeeze": lambda input, axis=None: ops.squeeze(input, axis),
    "cast": lambda x, dtype: ops.cast(x, keras.backend.standardize_dtype(dtype)),
    "where": _where,
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(t, clip_value_min, clip_value_max),
}


def twin_of(name: str, function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """What the function of Keras that computes the same gives; NotImplemented where there is none.

    Args:
        name: the public name of a function of TensorFlow, without "tf.".
        function: that function.
        args, kwargs: of its call.

    Example:
        >>> import tensorflow as tf
        >>> twin_of("nn.relu", tf.nn.relu, (keras.Input((4,)),), {}).shape
        (None, 4)
    """
    twin = _TWINS.get(name)
    if twin is None:
        return NotImplemented
    try:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        return twin(**{key: value for key, value in given.items() if key != "name" and value is not None})
    except TypeError:
        return NotImplemented
