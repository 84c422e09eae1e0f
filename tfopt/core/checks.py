"""Checks of arguments: each gives the value back as Python's own, or raises and names the argument.

Numbers and flags of numpy, 0-d arrays included, count as Python's own and are converted, so that configs, JSON and
saved files hold plain values. True is no number, and NaN and infinity are refused unless the range allows infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tfopt.core.errors import InvalidArgumentError

T = TypeVar("T")

_LONGEST = 120
# The kind of a dtype of numpy -> the type of Python that holds its values.
_PLAIN: dict[str, Callable[[Any], Any]] = {"b": bool, "i": int, "u": int, "f": float}


@dataclass(frozen=True)
class Range:
    """The numbers between two bounds, each within the range (`least`, `most`) or just outside (`above`, `below`).

    Example:
        >>> print(Range(least=0, below=1))
        of at least 0 and below 1
        >>> 0.0 in Range(least=0, below=1), 1.0 in Range(least=0, below=1)
        (True, False)
    """

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    infinite: bool = False

    def __contains__(self, value: float) -> bool:
        if value in (-math.inf, math.inf) and not self.infinite:
            return False
        over = value > self.above or self.above == -math.inf
        under = value < self.below or self.below == math.inf
        return self.least <= value <= self.most and over and under

    def __str__(self) -> str:
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"from {self.least:.12g} to {self.most:.12g}"
        bounds = {"of at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{words} {bound:.12g}" for words, bound in bounds.items() if math.isfinite(bound))

    def described(self) -> str:
        """The rule in words: a number, and where it lies."""
        open_ended = max(self.least, self.above) == -math.inf or min(self.most, self.below) == math.inf
        number = "a finite number" if open_ended and not self.infinite else "a number"
        return f"{number} {self}".rstrip()


ANY = Range()
POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(least=0)
FRACTION = Range(above=0, below=1)


def shown(value: object) -> str:
    """The `repr` of a value on one line, shortened, for an error message.

    Example:
        >>> shown("a\\nb"), len(shown("a" * 1000))
        ("'a\\\\nb'", 120)
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def plain(value: T) -> Any:
    """A number or flag, of numpy too, as Python's own; anything else as it is.

    Example:
        >>> plain(np.float32(0.5)), plain(np.array(3)), plain(np.True_), plain("auto")
        (0.5, 3, True, 'auto')
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim):
        return _PLAIN.get(value.dtype.kind, lambda other: other)(value)
    for kind in (bool, int, float):  # an enum member or another subclass counts as the number that it is
        if isinstance(value, kind):
            return kind(value)
    return value


def is_whole(value: object) -> bool:
    """True for a whole number of Python or numpy; True and False are none.

    Example:
        >>> is_whole(np.int64(3)), is_whole(3.0), is_whole(True)
        (True, False, False)
    """
    return type(plain(value)) is int


def is_number(value: object) -> bool:
    """True for a whole or real number of Python or numpy, infinity and NaN included; True and False are none.

    Example:
        >>> is_number(np.float32(0.5)), is_number("0.5"), is_number(True)
        (True, False, False)
    """
    return type(plain(value)) in (int, float)


def as_whole(
    argument: str,
    value: Any,
    *,
    least: int | None = None,
    most: int | None = None,
    what: str | None = None,
    fix: str | None = None,
) -> int:
    """A whole number, from `least` to `most`.

    Args:
        argument: its name, for the error.
        value: what was passed.
        least, most: the bounds, both allowed; None for no bound.
        what: what it must be, as the error says it; by default a whole number in this range.
        fix: what to do about another value, as one sentence.

    Raises:
        InvalidArgumentError: another value.

    Example:
        >>> as_whole("round_to", np.int64(8), least=1)
        8
        >>> as_whole("round_to", 0, least=1)
        Traceback (most recent call last):
        tfopt.core.errors.InvalidArgumentError: `round_to` must be a whole number of at least 1. Received: 0.
    """
    number = plain(value)
    low, high = -math.inf if least is None else least, math.inf if most is None else most
    if type(number) is int and low <= number <= high:
        return number
    if what is None:
        what = f"a whole number {Range(least=low, most=high)}".rstrip()
    raise InvalidArgumentError(f"`{argument}` must be {what}.", received=shown(value), fix=fix)


def as_number(
    argument: str, value: Any, within: Range = ANY, *, what: str | None = None, fix: str | None = None
) -> float:
    """A number within a range; a whole one stays an int. The other arguments are those of `as_whole`.

    Raises:
        InvalidArgumentError: another value.

    Example:
        >>> as_number("factor", np.float32(0.5), POSITIVE), as_number("factor", 2, POSITIVE)
        (0.5, 2)
        >>> as_number("factor", float("nan"), POSITIVE)
        Traceback (most recent call last):
        tfopt.core.errors.InvalidArgumentError: `factor` must be a finite number above 0. Received: nan.
    """
    number = plain(value)
    if type(number) in (int, float) and number in within:
        return number
    raise InvalidArgumentError(f"`{argument}` must be {what or within.described()}.", received=shown(value), fix=fix)


def as_flag(argument: str, value: Any) -> bool:
    """True or False, of numpy too.

    Raises:
        InvalidArgumentError: another value.

    Example:
        >>> as_flag("per_channel", np.True_)
        True
    """
    flag = plain(value)
    if type(flag) is bool:
        return flag
    raise InvalidArgumentError(f"`{argument}` must be True or False.", received=shown(value))


def as_choice(argument: str, value: Any, choices: Iterable[T], *, fix: str | None = None) -> T:
    """The one of several choices that equals a value.

    Raises:
        InvalidArgumentError: a value that equals none.

    Example:
        >>> as_choice("init", "linear", ("linear", "density"))
        'linear'
        >>> as_choice("init", "random", ("linear", "density", None))
        Traceback (most recent call last):
        tfopt.core.errors.InvalidArgumentError: `init` must be one of 'linear', 'density', None. Received: 'random'.
    """
    listed = tuple(choices)
    given = plain(value)
    if given is None or isinstance(given, (str, bool, int, float)):
        for choice in listed:
            if choice == given:
                return choice
    raise InvalidArgumentError(f"`{argument}` must be {_either(listed)}.", received=shown(value), fix=fix)


def as_name(argument: str, value: Any, *, what: str = "a name", fix: str | None = None) -> str:
    """A text that is not empty.

    Raises:
        InvalidArgumentError: another value.

    Example:
        >>> as_name("metric", "val_loss")
        'val_loss'
    """
    if isinstance(value, str) and value:
        return str.__str__(value)
    raise InvalidArgumentError(f"`{argument}` must be {what}.", received=shown(value), fix=fix)


def as_names(
    argument: str, value: Any, *, what: str = "a name or a list of names", fix: str | None = None
) -> list[str]:
    """One name or a list or tuple of names, as a list.

    Raises:
        InvalidArgumentError: another value.

    Example:
        >>> as_names("layers", "conv1"), as_names("layers", ("conv1", "conv2"))
        (['conv1'], ['conv1', 'conv2'])
    """
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, (list, tuple)) and all(isinstance(name, str) for name in listed):
        return [str.__str__(name) for name in listed]
    raise InvalidArgumentError(f"`{argument}` must be {what}.", received=shown(value), fix=fix)


def as_numbers(
    argument: str, values: Any, within: Range = ANY, *, what: str | None = None, fix: str | None = None
) -> tuple[float, ...]:
    """The numbers of a list, a tuple or an array of one dimension, each within a range.

    Raises:
        InvalidArgumentError: another value.

    Example:
        >>> as_numbers("thresholds", np.array([0.5, 0.75]), NOT_NEGATIVE)
        (0.5, 0.75)
        >>> as_numbers("thresholds", [0.5, -1], NOT_NEGATIVE)
        Traceback (most recent call last):
        tfopt.core.errors.InvalidArgumentError: `thresholds` must be a list of finite numbers of at least 0. ...
    """
    is_list = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
    if is_list or (isinstance(values, np.ndarray) and values.ndim == 1):
        numbers = tuple(map(plain, values))
        if all(type(number) in (int, float) and number in within for number in numbers):
            return numbers
    several = within.described().removeprefix("a ").replace("number", "numbers", 1)
    raise InvalidArgumentError(
        f"`{argument}` must be {what or f'a list of {several}'}.", received=shown(values), fix=fix
    )


def as_seed(value: Any) -> int:
    """A seed of random numbers.

    Raises:
        InvalidArgumentError: anything but a whole number of at least 0.

    Example:
        >>> as_seed(np.int64(1))
        1
    """
    return as_whole("seed", value, least=0)


def as_count(argument: str, value: Any) -> int:
    """A number of things: epochs, runs, samples in a batch.

    Raises:
        InvalidArgumentError: anything but a whole number of at least 1.

    Example:
        >>> as_count("batch_size", np.int32(32))
        32
    """
    return as_whole(argument, value, least=1)


def as_callable(argument: str, value: Any, *, what: str = "a function", fix: str | None = None) -> Callable[..., Any]:
    """What can be called.

    Raises:
        InvalidArgumentError: another value.

    Example:
        >>> as_callable("evaluate", len) is len
        True
    """
    if callable(value):
        return value
    raise InvalidArgumentError(f"`{argument}` must be {what}.", received=shown(value), fix=fix)


def _either(choices: Sequence[object]) -> str:
    texts = list(map(repr, choices))
    return " or ".join(texts) if len(texts) < 3 else f"one of {', '.join(texts)}"
