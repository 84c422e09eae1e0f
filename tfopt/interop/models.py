"""Models of tf_keras: what tfopt asks of them, their layers, and calls of TFMOT on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.core.errors import (
    InvalidArgumentError,
    NonFiniteError,
    UnsupportedModelError,
    first_line,
)
from tfopt.core.models.graph import as_patterns, matches
from tfopt.interop.packages import tf_keras

# What TFMOT and tf_keras were seen to raise on models they do not support.
FAILURES = (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    RuntimeError,
    AssertionError,
    tf.errors.OpError,
)


def check_model(model: Any) -> None:
    keras = tf_keras()
    if not (isinstance(model, keras.Sequential) or getattr(model, "_is_graph_network", False)):
        raise UnsupportedModelError(
            "A tf_keras model has to be Sequential or Functional.",
            received=f"{type(model).__name__}, subclassed",
            fix="Build it as `tf_keras.Model(inputs, outputs)`.",
        )
    if not model.built:
        raise UnsupportedModelError(
            "The model has to be built.",
            received=f"{type(model).__name__} '{model.name}', not built",
            fix="Give it an input shape or call `model.build(input_shape)`.",
        )
    for weight in model.weights:
        if weight.dtype.is_floating and not np.isfinite(weight.numpy()).all():
            raise NonFiniteError(
                "All weights of the model have to be finite.",
                received=f"NaN or infinity in '{weight.name}'",
                fix="Train again with a lower learning rate or gradient clipping, or load an earlier checkpoint.",
            )


@contextlib.contextmanager
def call_on(model: Any, function: str) -> Iterator[None]:
    """The model's own layer classes in scope; what TFMOT raises becomes an error that carries TFMOT's message."""
    keras = tf_keras()
    layers = [part for part in model.submodules if isinstance(part, keras.layers.Layer)]
    own = {type(layer).__name__: type(layer) for layer in layers if not type(layer).__module__.startswith("tf_keras.")}
    try:
        with keras.utils.custom_object_scope(own):
            yield
    except FAILURES as error:
        raise UnsupportedModelError(
            f"`{function}` has to know every layer of a tf_keras model that it is given.",
            received=first_line(error),
            fix="Leave layers out with `exclude`, or port the model to Keras 3, where tfopt does the work itself.",
        ) from error


def walk(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`(path, layer)` of each layer, nested models and the layers in them too."""
    for layer in model.layers:
        path = f"{prefix}{layer.name}"
        yield path, layer
        if isinstance(layer, tf_keras().Model):
            yield from walk(layer, f"{path}/")


def wrapped(model: Any, kind: type | tuple[type, ...]) -> list:
    """The layers of class `kind`, those of nested models too."""
    return [layer for _, layer in walk(model) if isinstance(layer, kind)]


def map_layers(model: Any, replace: Callable[[str, Any], Any], prefix: str = "") -> Any:
    """The model cloned with `replace(path, layer)` in each layer's place."""

    def replaced(layer: Any) -> Any:
        path = f"{prefix}{layer.name}"
        return map_layers(layer, replace, f"{path}/") if isinstance(layer, keras.Model) else replace(path, layer)

    keras = tf_keras()
    return keras.models.clone_model(model, clone_function=replaced)


def clone_of(model: Any) -> Any:
    """A copy that shares nothing: TFMOT puts the layers it is given into its own model and calls them there."""
    keras = tf_keras()
    with call_on(model, "tf_keras.models.clone_model"):
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
    return clone


def selected(model: Any, include: object, exclude: object) -> dict[str, Any]:
    """Path -> layer of the layers that `include` and `exclude` leave, no models among them."""
    wanted, unwanted = as_patterns(include, "include"), as_patterns(exclude, "exclude")
    _check_each_fits(wanted, model, "include")
    _check_each_fits(unwanted, model, "exclude")
    layers = {path: layer for path, layer in walk(model) if not isinstance(layer, tf_keras().Model)}
    return {p: layer for p, layer in layers.items() if (include is None or _fits(p, wanted)) and not _fits(p, unwanted)}


def _fits(path: str, patterns: list[str]) -> bool:
    """A name or glob fits the layer itself or a model that it is nested in."""
    parts = path.split("/")
    return any(matches("/".join(parts[: end + 1]), patterns) for end in range(len(parts)))


def _check_each_fits(patterns: list[str], model: Any, argument: str) -> None:
    paths = [path for path, _ in walk(model)]
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in paths):
            raise InvalidArgumentError(
                f"Each name or glob in `{argument}` has to fit a layer of the model.",
                received=repr(pattern),
                fix=f"The layers are: {', '.join(paths[:12])}{', ...' if len(paths) > 12 else ''}.",
            )


def layer_amounts(model: Any, amount: Any, argument: str, include: object, exclude: object) -> dict[str, Any]:
    """Path -> what is wanted of each chosen layer: `amount`, or that of the last fitting entry where it is a dict."""
    paths = selected(model, include, exclude)
    if not isinstance(amount, Mapping):
        return dict.fromkeys(paths, amount)
    _check_each_fits(list(amount), model, argument)
    fitting = {path: [amount[key] for key in amount if matches(path, [key])] for path in paths}
    return {path: values[-1] for path, values in fitting.items() if values}
