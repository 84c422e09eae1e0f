"""Copies of the layers and ops of one model. What their config may not tell is copied from the live object.

A layer of Keras or tfopt whose config tells all is made anew from it. A layer of a user's class, a `Lambda`, an adapted
layer, and one that shares a weight or is used inside another layer is copied as it is in memory.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import layers as kl

from tfopt.core.errors import TfoptError, UnsupportedModelError, first_line
from tfopt.core.keras_internals import children, only_own_values, sublayers
from tfopt.core.layers.registry import record_of
from tfopt.core.models.live import LiveCopier
from tfopt.core.tracing_internals import own_variables

# Layers of Keras with state or functions that their config does not hold, or does not give back.
_HIDDEN = (
    kl.Lambda,
    kl.StringLookup,
    kl.IntegerLookup,
    kl.TextVectorization,
    kl.Discretization,
    kl.JaxLayer,
    kl.FlaxLayer,
)
_KNOWN = {"builtins", "keras", "tfopt", "collections", "inspect", "numpy", "tensorflow", "typing"}
_PLAIN_VALUES = (type(None), bool, int, float, str, list, tuple)


class Copies:
    """The copies of the layers and ops of one model.

    Args:
        model: that is copied.
        reshaped: weights may get other shapes, so a layer is made anew from its config wherever that works.
        untrained: trainable weights get new initial values, so a layer that has some is made anew from its config.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), kl.Lambda(lambda x: x + 1.0), kl.Dense(2)])
        >>> copies = Copies(model)
        >>> copies.of(model.layers[0]).function is model.layers[0].function, copies.of(model.layers[1]).units
        (True, 2)
    """

    def __init__(self, model: keras.Model, *, reshaped: bool = False, untrained: bool = False):
        self.reshaped, self._untrained = reshaped, untrained
        layers = list({id(layer): layer for layer in sublayers(model) if not isinstance(layer, kl.InputLayer)}.values())
        owned = [variable for layer in layers for variable in own_variables(layer)]
        inside = [part for layer in layers for part in children(layer) if not isinstance(part, kl.InputLayer)]
        places = Counter(map(id, [*owned, *inside]))
        self._shared = {key for key, count in places.items() if count > 1}
        self._live = LiveCopier([*layers, *owned])
        self._made: list[tuple[kl.Layer, kl.Layer]] = []
        self._unbuilt: list[tuple[kl.Layer, kl.Layer]] = []
        self._changed: list[kl.Layer] = []

    def of(self, op: keras.Operation, **config: Any) -> Any:
        """A copy of a layer or op, `config` laid over its own. Its weights may not be built yet.

        Raises:
            UnsupportedModelError: if there is no way to a copy that computes the same.
        """
        ways = self._changing_ways(op, config) if config else self._ways(op)
        copied = _first_result(op, ways)
        if isinstance(op, kl.Layer):
            self._made.append((op, copied))
            if config and not isinstance(op, kl.InputLayer):
                self._changed.append(op)
        return copied

    def remade(self, op: kl.Layer, config: dict[str, Any]) -> Any:
        """A layer made anew from its config, `config` laid over it; its weights are not carried over."""
        return _first_result(op, [lambda: self._from_config(op, config)])

    def in_float32(self, op: kl.Layer) -> Any:
        """A copy that computes in float32, and has its weights so."""
        if tells_all(op) and not self._is_shared(op):
            return self.of(op, **_with_float32(config_of(op)))
        copied = self.of(op)
        for layer in sublayers(copied):
            layer.dtype_policy = "float32"
        for variable in copied.variables:
            if variable.dtype in ("float16", "bfloat16"):
                variable._dtype = "float32"
        return copied

    def check(self) -> None:
        """Raises where a layer or weight that is used in two places has become two. For when all copies are built."""
        new_of: dict[int, Any] = {}
        for op, copied in self._made:
            for old, new in zip(op.variables, copied.variables, strict=False):
                if not all(known in (None, id(new)) for known in (new_of.get(id(old)), _id(self._live.of(old)))):
                    raise _untied(op)
                new_of[id(old)] = id(new)
        for op in self._changed:
            if self._live.of(op) is not None:
                raise _untied(op)

    def _ways(self, op: keras.Operation) -> list[Callable[[], Any]]:
        """How a copy that computes the very same is made, the best way first."""
        from_config, live = (lambda: self._from_config(op, {})), (lambda: self._copied_live(op))
        if not isinstance(op, kl.Layer):
            return [live, from_config]
        if self._untrained and op.trainable_variables:
            return [from_config]
        is_hidden = any(isinstance(layer, _HIDDEN) for layer in sublayers(op))
        keeps_shapes = is_hidden or (record_of(op) is None and not _is_known(op))
        if (self.reshaped and not keeps_shapes) or (tells_all(op) and not self._is_shared(op)):
            return [from_config, live]
        return [live, from_config]

    def _changing_ways(self, op: keras.Operation, config: dict[str, Any]) -> list[Callable[[], Any]]:
        from_config, live = (lambda: self._from_config(op, config)), (lambda: self._with_functions(op, config))
        if not isinstance(op, kl.Layer) or not all(callable(getattr(op, name, None)) for name in config):
            return [from_config]
        return [from_config, live] if tells_all(op) else [live, from_config]

    def _is_shared(self, op: kl.Layer) -> bool:
        """True if the layer, or a weight in it, is used elsewhere too."""
        parts = [*sublayers(op), *op.variables]
        return any(id(part) in self._shared or self._live.of(part) is not None for part in parts)

    def _copied_live(self, op: keras.Operation) -> Any:
        self._remember_weights()
        return self._live(op)

    def _with_functions(self, op: kl.Layer, config: dict[str, Any]) -> Any:
        """A live copy with other functions in the place of some of its own."""
        copied = self._copied_live(op)
        self._live.forget(op)
        for name, function in config.items():
            setattr(copied, name, keras.activations.get(function))
        return copied

    def _from_config(self, op: keras.Operation, config: dict[str, Any]) -> Any:
        with keras.saving.custom_object_scope(classes_inside(op)):
            own = config_of(op)
            copied = type(op).from_config(_accepted(op, {**own, **config}))
        if not isinstance(op, kl.Layer):
            return copied
        if "name" not in config:
            copied.name = op.name
        if not _is_known(op):
            _check_complete(op, copied, config)
        changed = {name for name in config if config[name] is not own.get(name) and callable(getattr(op, name, None))}
        self._keep_objects(op, copied, {name for name in changed if config[name] != own.get(name)})
        if not config:
            self._live.remember(op, copied)
            self._unbuilt.append((op, copied))
        return copied

    def _keep_objects(self, source: kl.Layer, copied: kl.Layer, changed: set[str]) -> None:
        """Gives a copy the functions and own objects of its original: a config names them, and others share the names.

        `changed` names the attributes of the layer that are to differ.
        """
        for old, new in _pairs(source, copied):
            for name, value in list(vars(old).items()):
                if (old is source and name in changed) or isinstance(value, kl.Layer):
                    continue
                if (_is_function_of(old, name, value) or _is_foreign(value)) and getattr(new, name, value) is not value:
                    setattr(new, name, self._live(value))

    def _remember_weights(self) -> None:
        """Weights of copies that are built by now: what is copied next may read them."""
        left = []
        for op, copied in self._unbuilt:
            if not copied.built or len(op.variables) != len(copied.variables):
                left.append((op, copied))
                continue
            for old, new in (*_pairs(op, copied), *zip(op.variables, copied.variables, strict=True)):
                if self._live.of(old) is None:
                    self._live.remember(old, new)
        self._unbuilt = left


def tells_all(op: keras.Operation) -> bool:
    """True if the config of a layer says all that the layer is.

    Example:
        >>> tells_all(kl.Dense(2, "relu")), tells_all(kl.Lambda(lambda x: x)), tells_all(kl.Discretization(num_bins=3))
        (True, False, False)
    """
    layers = sublayers(op)
    if not _is_known(op) or any(isinstance(layer, _HIDDEN) for layer in layers):
        return False
    return not any(_is_foreign(value) for layer in layers for value in vars(layer).values())


def config_of(op: keras.Operation) -> dict[str, Any]:
    """The config of a layer or op. Functions and objects of others are left out where Keras wrote the layer.

    Example:
        >>> import tensorflow as tf
        >>> config_of(kl.Dense(2, activation=tf.nn.silu))["units"]
        2
    """
    if isinstance(op, kl.Layer) and _is_known(op) and any(_is_given(*part) for part in _attributes(op)):
        return _without_objects(op).get_config()
    if type(op) is kl.Identity:  # that of Keras fails if it was made with a dtype policy
        return {"name": op.name, "trainable": op.trainable, "dtype": op.dtype_policy.name}
    return op.get_config()


@keras.saving.register_keras_serializable(package="tfopt")
def kept_function(x: Any) -> Any:
    """Stands in a config for a function that a copy takes over from its original."""
    return x


def _without_objects(op: kl.Layer) -> Any:
    """A copy of a layer of Keras whose functions and objects all have a config."""
    with only_own_values():
        copied = LiveCopier()(op)
    for layer, name, value in list(_attributes(copied)):
        if _is_given(layer, name, value):
            setattr(layer, name, kept_function if inspect.isfunction(value) else None)
    return copied


def _attributes(op: kl.Layer) -> Iterator[tuple[kl.Layer, str, Any]]:
    return ((layer, name, value) for layer in sublayers(op) for name, value in vars(layer).items())


def _is_given(layer: kl.Layer, name: str, value: Any) -> bool:
    """True for a function or object that is not of Keras or tfopt."""
    return _is_foreign(value) or (_is_function_of(layer, name, value) and _root(value) not in ("keras", "tfopt"))


def _is_known(op: keras.Operation) -> bool:
    """True if Keras or tfopt wrote the class of the layer, and of all layers inside it."""
    return all(type(part).__module__.partition(".")[0] in ("keras", "tfopt") for part in [op, *sublayers(op)])


def _is_function_of(layer: kl.Layer, name: str, value: Any) -> bool:
    """True for a function that the layer was given."""
    return inspect.isfunction(value) and not hasattr(type(layer), name)


def _is_foreign(value: Any) -> bool:
    """True for an object of a class that neither Keras nor its backend brings, such as a user's regularizer."""
    kind: Any = type(value)
    return _is_foreign_class(kind)


@functools.cache
def _is_foreign_class(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in _KNOWN


def _root(value: Any) -> str:
    return (getattr(value, "__module__", None) or "").partition(".")[0]


def _pairs(source: kl.Layer, copied: kl.Layer) -> list[tuple[kl.Layer, kl.Layer]]:
    """The layer and those inside it, with their copies; the layer alone where its copy makes others later."""
    pairs = list(zip(sublayers(source), sublayers(copied), strict=False))
    return pairs[:1] if any(type(old) is not type(new) for old, new in pairs) else pairs


def classes_inside(op: keras.Operation) -> dict[str, type]:
    """The classes of what is inside a layer by name, so that users' own need not be registered with Keras."""
    layers = sublayers(op)
    inside = [
        *(layers if children(op) else ()),
        *(v for layer in layers for v in vars(layer).values() if _is_foreign(v)),
    ]
    return {type(part).__name__: type(part) for part in inside}


def _check_complete(op: kl.Layer, copied: kl.Layer, config: dict[str, Any]) -> None:
    """Raises if an argument of the class is not in its config, so that the copy has another value of it."""
    for name in inspect.signature(type(op).__init__).parameters:
        old, new = getattr(op, name, None), getattr(copied, name, None)
        is_plain = isinstance(old, _PLAIN_VALUES) and isinstance(new, _PLAIN_VALUES)
        if name not in config and name in vars(op) and is_plain and _as_list(old) != _as_list(new):
            raise UnsupportedModelError(
                "`get_config` must give each argument that the class is made with.",
                received=f"{type(op).__name__} '{op.name}', whose copy has {name}={new!r}, not {old!r}",
                fix=f'Add "{name}" to what `get_config` gives.',
            )


def _accepted(op: keras.Operation, config: dict[str, Any]) -> dict[str, Any]:
    """The config without what Keras adds to it for every layer, where a user's class does not take that."""
    if _is_known(op):
        return config
    parameters = inspect.signature(type(op).__init__).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return config
    names = {parameter.name for parameter in parameters}
    left = {name for name in ("name", "trainable", "dtype") if name in config and name not in names}
    if "dtype" in left and op.dtype_policy != keras.config.dtype_policy():
        return config  # which then fails: the copy would compute in another dtype
    return {name: value for name, value in config.items() if name not in left}


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _first_result(op: keras.Operation, ways: list[Callable[[], Any]]) -> Any:
    """What the first way gives that does not fail."""
    way, *others = ways
    try:
        return way()
    except Exception as error:  # whatever the code of somebody's class says
        if others:
            return _first_result(op, others)
        if isinstance(error, TfoptError):
            raise
        raise UnsupportedModelError(
            "A layer must be copyable, from its config or as it is in memory.",
            received=f"{type(op).__name__} '{op.name}': {first_line(error)}",
            fix="Give the class `get_config` (and `from_config` where the config holds objects).",
        ) from error


def _untied(op: kl.Layer) -> UnsupportedModelError:
    return UnsupportedModelError(
        "What two layers share must stay one: a weight of both, or a layer that another one calls.",
        received=f"{type(op).__name__} '{op.name}', of which the copy would have two",
        fix="Leave the layer out of this step (`exclude`), or give each place a layer of its own.",
    )


def _id(value: Any) -> int | None:
    return None if value is None else id(value)


def _with_float32(config: Any) -> Any:
    """A config with each dtype policy of reduced precision, at any depth, made float32."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": "float32"}}
        return {key: _with_float32(value) for key, value in config.items()}
    return [_with_float32(value) for value in config] if isinstance(config, list) else config
