"""Objectives, constraints and the order of trials, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfopt.core.errors import InvalidArgumentError
from tfopt.tuner.objective import (
    Constraint,
    Objective,
    as_constraints,
    as_objectives,
    best_first,
    crowding,
    losses,
    ranks,
    violation,
)

POINTS = hnp.arrays(float, st.tuples(st.integers(0, 14), st.integers(1, 3)), elements=st.integers(0, 4).map(float))


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def fronts_one_by_one(rows):
    """Fronts by taking away what nothing left dominates, with plain loops."""
    left, front, found = dict(enumerate(rows)), 0, {}
    while left:
        first = [i for i, row in left.items() if not any(dominates(other, row) for other in left.values())]
        found.update(dict.fromkeys(first, front))
        left = {i: row for i, row in left.items() if i not in first}
        front += 1
    return [found[i] for i in range(len(rows))]


@given(POINTS)
@settings(max_examples=150, deadline=None)
def test_ranks_are_those_of_brute_force(values):
    assert ranks(values).tolist() == fronts_one_by_one(values.tolist())


@given(POINTS)
@settings(max_examples=100, deadline=None)
def test_better_comes_first(values):
    order = best_first(values)
    assert sorted(order) == list(range(len(values)))
    for place, row in enumerate(order):
        assert not any(dominates(values[later], values[row]) for later in order[place + 1 :])


def test_one_objective_is_a_plain_sort():
    values = np.random.default_rng(0).normal(size=(50, 1))
    assert best_first(values) == np.argsort(values[:, 0]).tolist()


def test_crowding_by_hand():
    # (0, 10) and (10, 0) are the ends; gaps of the others: (6 - 0) / 10 + (10 - 2) / 10, (10 - 2) / 10 + (4 - 0) / 10
    assert crowding(np.array([[0, 10], [2, 4], [6, 2], [10, 0]], float)).tolist() == pytest.approx(
        [np.inf, 1.4, 1.2, np.inf]
    )
    assert crowding(np.zeros((0, 2))).tolist() == []
    assert crowding(np.array([[1.0, 1.0]])).tolist() == [np.inf]


def test_more_room_comes_first_within_a_front():
    assert best_first(np.array([[0, 10], [6, 2], [2, 4], [10, 0], [11, 11]], float)) == [0, 3, 2, 1, 4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tflite_bytes <= 100_000", Constraint("tflite_bytes", "<=", 100_000)),
        ("latency_ms<2", Constraint("latency_ms", "<", 2)),
        (" macs  <=5e6 ", Constraint("macs", "<=", 5e6)),
        ("val_accuracy >= 0.9", Constraint("val_accuracy", ">=", 0.9)),
        ("val_loss > -1.5", Constraint("val_loss", ">", -1.5)),
    ],
)
def test_constraints_are_parsed(text, expected):
    assert as_constraints(text) == (expected,)
    assert as_constraints([text]) == as_constraints((expected,))


@pytest.mark.parametrize(
    "text", ["macs", "macs == 3", "macs <= five", "<= 3", "macs <= nan", "macs <= 3 kB", 3, "a b < 1"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(InvalidArgumentError):
        as_constraints([text])
    with pytest.raises(InvalidArgumentError):
        as_constraints(3)


@given(st.floats(-10, 10), st.floats(-10, 10), st.sampled_from(["<=", ">=", "<", ">"]))
def test_violation_is_zero_exactly_where_the_constraint_holds(value, bound, operator):
    holds = {"<=": value <= bound, ">=": value >= bound, "<": value < bound, ">": value > bound}[operator]
    assert (Constraint("x", operator, bound).violation(value) == 0) == holds


def test_violations_add_up_over_what_is_known():
    constraints = as_constraints(["macs <= 100", "val_accuracy >= 0.8", "latency_ms <= 1"])
    assert violation(constraints, {"macs": 150, "val_accuracy": 0.4}) == pytest.approx(0.5 + 0.5)
    assert violation(constraints, {"macs": 100, "val_accuracy": 0.8}) == 0
    assert Constraint("x", "<=", 0).violation(0.25) == 0.25


def test_objectives_know_their_direction():
    names = [
        "val_accuracy",
        "val_loss",
        "macs",
        "tflite_bytes",
        "latency_ms",
        "parameters",
        "val_head_accuracy",
        "val_a_loss",
    ]
    directions = ["max", "min", "min", "min", "min", "min", "max", "min"]
    assert [objective.direction for objective in as_objectives(names)] == directions
    assert as_objectives("val_loss") == as_objectives(["val_loss"]) == (Objective("val_loss", "min"),)
    assert as_objectives(("val_iou", "max")) == as_objectives([("val_iou", "max")]) == (Objective("val_iou", "max"),)
    assert as_objectives(as_objectives(names)) == as_objectives(names)


@pytest.mark.parametrize("given", [(), "val_iou", ["val_loss", "val_loss"], 3, [3], [("val_loss", "up")]])
def test_other_objectives_are_refused(given):
    with pytest.raises(InvalidArgumentError):
        as_objectives(given)


def test_losses_turn_what_is_to_be_high():
    objectives = as_objectives(["val_accuracy", "macs"])
    assert losses(objectives, [{"val_accuracy": 0.5, "macs": 3, "other": 1}]).tolist() == [[-0.5, 3.0]]
    assert losses(objectives, []).shape == (0, 2)
    assert objectives[0].is_better(0.9, 0.8)
    assert not objectives[1].is_better(0.9, 0.8)
