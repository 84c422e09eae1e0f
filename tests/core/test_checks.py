"""Each check takes Python's and numpy's own values, gives Python's own back, and names the argument that it refuses."""

import enum
import json
import math

import numpy as np
import pytest

from tfopt import InvalidArgumentError
from tfopt.core.checks import (
    ANY,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    as_callable,
    as_choice,
    as_count,
    as_flag,
    as_name,
    as_names,
    as_number,
    as_numbers,
    as_seed,
    as_whole,
    is_number,
    is_whole,
    shown,
)

WHOLE_TYPES = [int, np.int8, np.int32, np.int64, np.uint8, np.uint64, np.array]
REAL_TYPES = [float, np.float16, np.float32, np.float64, np.longdouble, np.array]
NO_NUMBERS = [True, np.True_, "3", None, 1j, np.complex64(1), [3], np.array([3]), np.timedelta64(3), np.array(True)]


class Size(enum.IntEnum):
    SMALL = 4


class Kind(str, enum.Enum):
    MAX = "max"


@pytest.mark.parametrize("of", WHOLE_TYPES)
def test_whole_numbers_of_numpy_become_pythons(of):
    for number in (as_whole("n", of(3), least=1), as_number("n", of(3)), as_numbers("n", [of(3)])[0]):
        assert type(number) is int
        assert number == 3
        assert json.dumps(number) == "3"
    assert is_whole(of(3))
    assert is_number(of(3))


@pytest.mark.parametrize("of", REAL_TYPES)
def test_floats_of_numpy_become_pythons(of):
    number = as_number("n", of(0.5), FRACTION)
    assert type(number) is float
    assert number == 0.5
    assert is_number(of(0.5))
    assert not is_whole(of(3.0))
    with pytest.raises(InvalidArgumentError, match="`n` must be a whole number of at least 1"):
        as_whole("n", of(3.0), least=1)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(value):
    assert not is_number(value)
    for check in (as_whole, as_number):
        with pytest.raises(InvalidArgumentError, match="`n` must be"):
            check("n", value)


def test_members_of_an_enumeration_are_the_values_that_they_stand_for():
    assert type(as_whole("n", Size.SMALL)) is int
    assert type(as_name("n", Kind.MAX)) is str
    assert as_name("n", Kind.MAX) == "max"
    assert type(as_choice("n", Kind.MAX, ("max", "min"))) is str


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")])
def test_nan_and_infinity_are_refused(value):
    for within in (ANY, POSITIVE, FRACTION):
        with pytest.raises(InvalidArgumentError, match="number"):
            as_number("n", value, within)


def test_infinity_is_taken_where_the_range_says_so():
    within = Range(above=0, infinite=True)
    assert as_number("n", np.float32("inf"), within) == math.inf
    for value in (-math.inf, math.nan, 0):
        with pytest.raises(InvalidArgumentError, match="`n` must be a number above 0"):
            as_number("n", value, within)


@pytest.mark.parametrize(
    ("within", "inside", "outside", "words"),
    [
        (ANY, [-1, 0, 10**400], [math.inf], "a finite number."),
        (POSITIVE, [1e-9, 5], [0, -1], "a finite number above 0."),
        (NOT_NEGATIVE, [0, 5], [-1e-9], "a finite number of at least 0."),
        (FRACTION, [0.5], [0, 1], "a number above 0 and below 1."),
        (Range(least=0, most=1), [0, 0.5, 1], [-0.1, 1.1], "a number from 0 to 1."),
        (Range(above=0, most=100), [1, 100], [0, 101], "a number above 0 and at most 100."),
        (Range(least=0, below=1), [0, 0.9], [1], "a number of at least 0 and below 1."),
    ],
)
def test_ranges(within, inside, outside, words):
    assert [as_number("n", value, within) for value in inside] == inside
    for value in outside:
        with pytest.raises(InvalidArgumentError) as caught:
            as_number("n", value, within, fix="Pass another.")
        assert str(caught.value) == f"`n` must be {words} Received: {value}. Pass another."


def test_bounds_of_whole_numbers():
    assert [as_whole("n", value, least=1, most=3) for value in (1, 3)] == [1, 3]
    assert as_whole("n", -(10**30)) == -(10**30)
    with pytest.raises(InvalidArgumentError, match="`n` must be a whole number from 1 to 3. Received: 4."):
        as_whole("n", 4, least=1, most=3)
    with pytest.raises(InvalidArgumentError, match="`n` must be a number of folds. Received: 0."):
        as_whole("n", 0, least=1, what="a number of folds")
    with pytest.raises(InvalidArgumentError, match="`n` must be a whole number. Received: 'x'."):
        as_whole("n", "x")


def test_flags():
    for value in (True, np.True_, np.array(True)):
        assert as_flag("n", value) is True
    for value in (1, 0, None, "True", np.int64(1)):
        with pytest.raises(InvalidArgumentError, match="`n` must be True or False"):
            as_flag("n", value)


def test_choices():
    assert as_choice("n", np.str_("a"), ("a", "b")) == "a"
    assert as_choice("n", np.True_, ("auto", True, False)) is True
    assert as_choice("n", None, ("a", None)) is None
    with pytest.raises(InvalidArgumentError, match="`n` must be one of 'a', 'b', None. Received: 'c'. Try a."):
        as_choice("n", "c", ("a", "b", None), fix="Try a.")
    with pytest.raises(InvalidArgumentError, match="`n` must be 'a' or 'b'. Received: 1."):
        as_choice("n", 1, ("a", "b"))
    for value in (np.array(["a", "b"]), ["a"], {"a": 1}):
        with pytest.raises(InvalidArgumentError, match="`n` must be 'a'. Received"):
            as_choice("n", value, ("a",))


def test_names():
    assert as_names("n", "a") == ["a"]
    assert as_names("n", (np.str_("a"), "b")) == ["a", "b"]
    assert as_names("n", []) == []
    for value in (None, 3, [3], {"a"}):
        with pytest.raises(InvalidArgumentError, match="`n` must be a name or a list of names"):
            as_names("n", value)
    for value in ("", None, ["a"]):
        with pytest.raises(InvalidArgumentError, match="`n` must be a name"):
            as_name("n", value)


def test_lists_of_numbers():
    assert as_numbers("n", np.array([1, 2])) == (1, 2)
    assert as_numbers("n", (np.float32(0.5), 1), NOT_NEGATIVE) == (0.5, 1)
    for values in ("12", 1, None, [1, "2"], [True], np.ones((2, 2)), {1: 2}, [math.nan]):
        with pytest.raises(InvalidArgumentError, match="`n` must be a list of finite numbers above 0. Received"):
            as_numbers("n", values, POSITIVE)


def test_seeds_and_counts():
    assert type(as_seed(np.int64(0))) is int
    assert type(as_count("epochs", np.int64(1))) is int
    for value in (-1, True, 1.0, None):
        with pytest.raises(InvalidArgumentError, match="`seed` must be a whole number of at least 0"):
            as_seed(value)
        with pytest.raises(InvalidArgumentError, match="`epochs` must be a whole number of at least 1"):
            as_count("epochs", value)


def test_functions():
    assert as_callable("n", len) is len
    with pytest.raises(InvalidArgumentError, match="`n` must be a function"):
        as_callable("n", "len")


def test_long_values_are_shortened():
    assert len(shown(list(range(1000)))) == 120
    assert shown(np.zeros((2, 2))) == "array([[0., 0.], [0., 0.]])"
