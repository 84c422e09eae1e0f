"""Whether a builder written by hand is that of an earlier call: a hash of its code."""

from __future__ import annotations

import functools
import types
from typing import Any

import keras

from tfopt.core.models.fingerprints import computation_fingerprint, fingerprint

_LIBRARIES = ("builtins", "keras", "keras_tuner", "optuna", "tfopt")


def code_fingerprint(builder: Any) -> str:
    """A hash of the code of a function, a class or an object that builds models, and of the values bound to it.

    What counts: byte code, default values, closures and attributes; also of the functions and classes of the same
    module that it names. What cannot be known: other global variables, and code in other modules. Another version of
    Python has other byte code.

    Example:
        >>> def make(units):
        ...     return lambda hp: units * hp
        >>> [code_fingerprint(make(2)) == code_fingerprint(make(units)) for units in (2, 3)]
        [True, False]
    """
    return fingerprint(_described(builder, set()))


def _described(value: Any, seen: set[int]) -> Any:
    """The value in a form that `fingerprint` tells apart by content."""
    if isinstance(value, keras.Model):
        return computation_fingerprint(value)
    if isinstance(value, functools.partial):
        return [_described(part, seen) for part in (value.func, list(value.args), value.keywords)]
    if isinstance(value, types.MethodType):
        return [_described(value.__func__, seen), _described(value.__self__, seen)]
    if isinstance(value, (list, tuple)):
        return [_described(part, seen) for part in value]
    if isinstance(value, dict):
        return {str(name): _described(part, seen) for name, part in value.items()}
    if isinstance(value, types.FunctionType):
        return _once(value, seen) or _function(value, seen)
    if isinstance(value, type):
        return _once(value, seen) or _class(value, seen)
    if (callable(value) or hasattr(value, "build")) and not hasattr(value, "get_config"):
        return _once(value, seen) or [_class(type(value), seen), _attributes(value, seen)]
    return value


def _once(value: Any, seen: set[int]) -> list[str]:
    """The name of what was described before, so that circles end."""
    if id(value) in seen:
        return [getattr(value, "__qualname__", type(value).__qualname__)]
    seen.add(id(value))
    return []


def _function(function: types.FunctionType, seen: set[int]) -> list[Any]:
    bound = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    named = [function.__globals__.get(name) for name in _names(function.__code__)]
    own = [
        part
        for part in named
        if isinstance(part, (types.FunctionType, type)) and part.__module__ == function.__module__
    ]
    values = [function.__defaults__, function.__kwdefaults__, bound, own]
    return [_code(function.__code__), *(_described(part, seen) for part in values)]


def _class(kind: type, seen: set[int]) -> list[Any]:
    """What a user wrote of the class and its bases."""
    written = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in _LIBRARIES]
    members = [sorted(vars(base).items()) for base in written]
    return [
        [name, _described(getattr(part, "__func__", part), seen)]
        for items in members
        for name, part in items
        if not name.startswith("__") or isinstance(part, types.FunctionType)
    ]


def _attributes(value: Any, seen: set[int]) -> dict[str, Any]:
    found = getattr(value, "__dict__", {})
    own = {name: part for name, part in found.items() if getattr(part, "__self__", None) is not value}
    return {name: _described(part, seen) for name, part in own.items()}


def _code(code: types.CodeType) -> list[Any]:
    constants = [_code(part) if isinstance(part, types.CodeType) else _text(part) for part in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _text(constant: Any) -> str:
    return repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


def _names(code: types.CodeType) -> list[str]:
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return [*code.co_names, *(name for part in inner for name in _names(part))]


def _is_filled(cell: types.CellType) -> bool:
    """False for a name that its function assigns only later."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
