"""Copies of live objects: layers, ops and variables as they are in memory, whatever their config says or leaves out."""

from __future__ import annotations

import collections
import dis
import functools
import inspect
import pickle
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.keras_internals import (
    TRACKED_DICTS,
    KerasSaveable,
    TrackedList,
    TrackedSet,
    Tracker,
    compiled_again,
    history_within,
    inner_nodes,
    new_variable_like,
    own_state,
    retrack,
    unmade,
)
from tfopt.core.models import constraints

# What nothing changes, or what belongs to the process: it stays the same object.
_SHARED = (
    *(type(None), type(Ellipsis), type(NotImplemented), bool, int, float, complex, str, bytes, range, slice, type),
    *(types.ModuleType, types.BuiltinFunctionType, types.CodeType, inspect.Signature, property, np.dtype, np.generic),
    *(keras.DTypePolicy, tf.DType, tf.TensorShape, tf.Tensor, tf.TypeSpec),
)
_LIBRARIES = {"keras", "tensorflow", "numpy", "tfopt", "builtins"}
_WRAPPERS = "tensorflow.python.trackable.data_structures"  # lists and dicts of a layer that TensorFlow watches
_UNCOPYABLE = (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, pickle.PicklingError)


class LiveCopier:
    """Copies objects with all that they refer to. One copier makes one copy of an object, wherever it is met.

    Functions, tensors, classes and what Python cannot copy stay the very objects that they are. A function that reads
    one of the `known` objects is bound to its copy. The values of copied variables are created by `create_values`.

    Args:
        known: the layers and variables of the model that is copied.

    Example:
        >>> layer = keras.layers.Lambda(lambda x: x * 2.0, name="twice")
        >>> copied = LiveCopier([layer])(layer)
        >>> copied.name, copied.function is layer.function, copied is layer
        ('twice', True, False)
    """

    def __init__(self, known: Iterable[Any] = ()):
        self._copies: dict[int, Any] = {}
        self._originals: list[Any] = list(known)  # kept alive, so that no id is given to another object
        self._known = set(map(id, self._originals))
        self._nodes: set[int] = set()
        self._trackers: list[Tracker] = []

    def __call__(self, value: Any) -> Any:
        """The copy of an object."""
        self._nodes |= {id(node) for node in inner_nodes(value)}
        count = len(self._originals)
        try:
            copied = self._copied(value)
        except Exception:
            for original in self._originals[count:]:
                self._copies.pop(id(original), None)
            raise
        while self._trackers:
            retrack(self._trackers.pop())
        return copied

    def remember(self, value: Any, copied: Any) -> None:
        """Makes `copied` the copy of an object."""
        self._originals.append(value)
        self._copies[id(value)] = copied

    def forget(self, value: Any) -> None:
        """An object has no copy any more; the next call makes one."""
        self._copies.pop(id(value), None)

    def of(self, value: Any) -> Any:
        """The copy that there is of an object, or None."""
        return self._copies.get(id(value))

    def _copied(self, value: Any) -> Any:
        if isinstance(value, _SHARED):
            return value
        if id(value) not in self._copies:
            self.remember(value, self._made(value))
        return self._copies[id(value)]

    def _made(self, value: Any) -> Any:
        if type(value) in _CONTAINERS:
            return _CONTAINERS[type(value)](self, value)
        if type(value).__module__ == _WRAPPERS:
            return self._by_parts(value)
        for kinds, make in _WAYS:
            if isinstance(value, kinds):
                return make(self, value)
        if hasattr(type(value), "__deepcopy__"):
            return value.__deepcopy__(self._copies)
        if type(value).__module__.startswith("tensorflow.") and "trackable" not in type(value).__module__:
            return value
        return self._by_parts(value)

    def _all(self, values: Iterable[Any]) -> Iterator[Any]:
        return (self._copied(value) for value in values)

    def _items(self, values: dict) -> dict:
        return {self._copied(key): self._copied(value) for key, value in values.items()}

    # Layers, ops, metrics and variables.

    def _saveable(self, value: Any) -> Any:
        copied = unmade(type(value))
        self.remember(value, copied)
        for name, part in own_state(value, self._nodes).items():
            vars(copied)[name] = self._copied(part)
        return copied

    def _variable(self, value: keras.Variable) -> keras.Variable:
        copied = new_variable_like(value)
        self.remember(value, copied)
        copied.regularizer = self._copied(value.regularizer)
        copied.constraint = self._copied(constraints.own_of(value))
        return copied

    def _tensor(self, value: keras.KerasTensor) -> keras.KerasTensor:
        """A symbolic tensor: of a model inside the copied layer a copy, any other as it is."""
        history = history_within(value, self._nodes)
        if history is None:
            return value
        copied = object.__new__(type(value))
        self.remember(value, copied)
        vars(copied).update(
            {**vars(value), "_keras_history": history._replace(operation=self._copied(history.operation))}
        )
        return copied

    def _tracker(self, value: Tracker) -> Tracker:
        copied = self._by_parts(value)
        self._trackers.append(copied)
        return copied

    def _table(self, value: Any) -> Any:
        """A table that changes: its entries move to one of its own."""
        copied = type(value)(value.key_dtype, value.value_dtype, value._default_value)
        copied.insert(*value.export())
        return copied

    def _itself(self, value: Any) -> Any:
        return value

    # Containers.

    def _list(self, value: list) -> list:
        copied: list = type(value).__new__(type(value))
        self.remember(value, copied)
        list.extend(copied, self._all(value))
        return self._with_attributes(value, copied)

    def _dict(self, value: dict) -> dict:
        copied: dict = type(value).__new__(type(value))
        self.remember(value, copied)
        put = collections.OrderedDict.__setitem__ if isinstance(value, collections.OrderedDict) else dict.__setitem__
        for key, part in value.items():
            put(copied, self._copied(key), self._copied(part))
        return self._with_attributes(value, copied)

    def _set(self, value: set) -> set:
        copied: set = type(value).__new__(type(value))
        self.remember(value, copied)
        set.update(copied, self._all(value))
        return self._with_attributes(value, copied)

    def _tuple(self, value: tuple) -> tuple:
        parts = list(self._all(value))
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return self._copies.get(id(value)) or tuple.__new__(type(value), parts)

    def _with_attributes(self, value: Any, copied: Any) -> Any:
        if hasattr(value, "__dict__"):
            vars(copied).update(self._items(vars(value)))
        return copied

    # Functions, and what is called like one.

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        if not self._refers(value, set()):
            return value
        cells = tuple(types.CellType() for _ in value.__closure__ or ())
        names = {name: part for name, part in _globals_of(value).items() if self._refers(part, set())}
        space = dict(value.__globals__) if names else value.__globals__
        copied = types.FunctionType(value.__code__, space, value.__name__, value.__defaults__, cells)
        self.remember(value, copied)
        functools.update_wrapper(copied, value, updated=("__dict__",))
        vars(copied).pop("__wrapped__", None)
        if names:
            space.update(self._items(names))
        copied.__defaults__ = self._copied(value.__defaults__)
        copied.__kwdefaults__ = self._copied(value.__kwdefaults__)
        for new, old in zip(cells, value.__closure__ or (), strict=True):
            if not _is_empty(old):
                new.cell_contents = self._copied(old.cell_contents) if self._refers(old, set()) else old.cell_contents
        return copied

    def _method(self, value: types.MethodType) -> types.MethodType:
        return types.MethodType(self._copied(value.__func__), self._copied(value.__self__))

    def _partial(self, value: functools.partial) -> functools.partial:
        if not self._refers(value, set()):
            return value
        return type(value)(self._copied(value.func), *self._all(value.args), **self._items(value.keywords))

    def _compiled(self, value: Any) -> Any:
        """A function that TensorFlow compiles: what it has traced reads the variables of the original."""
        function = self._copied(value.python_function)
        return value if function is value.python_function else compiled_again(value, function)

    def _weak(self, value: weakref.ref) -> weakref.ref:
        target = value()
        return weakref.ref(self._copied(target)) if self._refers(target, set()) else value

    def _refers(self, value: Any, seen: set[int]) -> bool:
        """True for a known object, and for a function or collection that reads one."""
        if id(value) in self._known:
            return True
        if id(value) in seen or isinstance(value, _SHARED):
            return False
        seen.add(id(value))
        return any(self._refers(part, seen) for part in _read_by(value))

    # Any other object.

    def _by_parts(self, value: Any) -> Any:
        """An object as `copy.deepcopy` takes it apart; one that cannot be taken apart stays the same object."""
        try:
            reduced = value.__reduce_ex__(4)
        except _UNCOPYABLE:
            return value
        if isinstance(reduced, str):
            return value
        parts: list[Any] = [*reduced, None, None, None]
        make, args, state, items, pairs = parts[:5]
        copied = make(*self._all(args))
        self.remember(value, copied)
        if state is not None:
            _set_state(copied, self._copied(state))
        for item in items or ():
            copied.append(self._copied(item))
        for key, part in pairs or ():
            copied[self._copied(key)] = self._copied(part)
        return copied


_CONTAINERS: dict[type, Callable[[LiveCopier, Any], Any]] = {
    **dict.fromkeys([list, TrackedList], LiveCopier._list),
    **dict.fromkeys([dict, *TRACKED_DICTS], LiveCopier._dict),
    **dict.fromkeys([set, TrackedSet], LiveCopier._set),
}
_WAYS: tuple[tuple[type, Callable[[LiveCopier, Any], Any]], ...] = (
    (keras.Variable, LiveCopier._variable),
    (keras.KerasTensor, LiveCopier._tensor),
    (KerasSaveable, LiveCopier._saveable),
    (Tracker, LiveCopier._tracker),
    (tuple, LiveCopier._tuple),
    (types.FunctionType, LiveCopier._function),
    (types.MethodType, LiveCopier._method),
    (functools.partial, LiveCopier._partial),
    (tf.types.experimental.PolymorphicFunction, LiveCopier._compiled),
    (weakref.ref, LiveCopier._weak),
    (tf.lookup.experimental.MutableHashTable, LiveCopier._table),
    # One that does not change is shared: TensorFlow gives up what it holds as soon as one of two owners goes.
    (tf.saved_model.experimental.TrackableResource, LiveCopier._itself),
)


def _set_state(copied: Any, state: Any) -> None:
    """Gives an object its attributes, as `copy.deepcopy` does."""
    if hasattr(type(copied), "__setstate__"):
        copied.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if attributes:
        vars(copied).update(attributes)
    for name, part in (slots or {}).items():
        setattr(copied, name, part)


def _read_by(value: Any) -> Iterator[Any]:
    """What a function, or a collection, holds or reads."""
    if isinstance(value, types.FunctionType):
        if value.__module__ is None or value.__module__.partition(".")[0] not in _LIBRARIES:
            yield from (value.__closure__, value.__defaults__, value.__kwdefaults__, _globals_of(value))
    elif isinstance(value, types.CellType):
        if not _is_empty(value):
            yield value.cell_contents
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, tf.types.experimental.PolymorphicFunction):
        yield value.python_function
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _globals_of(function: types.FunctionType) -> dict[str, Any]:
    """The variables of its module that a function reads."""
    names = set(_global_names(function.__code__))
    return {name: function.__globals__[name] for name in names if name in function.__globals__}


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)
