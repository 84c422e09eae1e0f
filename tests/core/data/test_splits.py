"""Splits and folds: each sample held out once, classes spread, by hand; what is accepted as folds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

from tfopt.core.data.splits import hold_out, k_fold, make_folds
from tfopt.core.errors import InvalidArgumentError

LABELS = st.lists(st.integers(0, 4), min_size=4, max_size=80).map(np.array)


def as_lists(splits):
    return [(split.train.tolist(), split.held_out.tolist()) for split in splits]


@given(LABELS, st.integers(2, 4), st.integers(0, 100))
def test_folds_are_stratified_and_hold_each_sample_once(y, k, seed):
    splits = make_folds(k, y, len(y), seed=seed)
    held_out = [split.held_out for split in splits]
    assert sorted(np.concatenate(held_out)) == list(range(len(y)))
    assert np.ptp([len(fold) for fold in held_out]) <= 1
    for label in range(5):
        assert np.ptp([(y[fold] == label).sum() for fold in held_out]) <= 1
    for split in splits:
        assert sorted([*split.train, *split.held_out]) == list(range(len(y)))
    for same in (np.eye(5)[y], y[:, None].astype("float32")):
        assert as_lists(k_fold(same, len(y), k, seed)) == as_lists(splits)


@given(LABELS, st.floats(0.25, 0.75), st.integers(0, 100))
def test_a_part_is_held_out_evenly(y, fraction, seed):
    split = hold_out(y, len(y), fraction, seed)
    assert len(split.held_out) == int(len(y) * fraction + 1e-9)
    assert sorted([*split.train, *split.held_out]) == list(range(len(y)))
    for label in range(5):
        assert abs((y[split.held_out] == label).sum() - fraction * (y == label).sum()) <= 1


def test_numbers_by_hand():
    """Sorted by class, and by the random number within one, every second sample is in the first fold."""
    y, random = np.array([1, 0, 1, 0, 0, 1]), np.random.default_rng(3).permutation(6)
    order = sorted(range(6), key=lambda sample: (y[sample], random[sample]))
    first, second = sorted(order[0::2]), sorted(order[1::2])
    assert as_lists(make_folds(2, y, 6, seed=3)) == [(second, first), (first, second)]
    split = hold_out(y, 6, 1 / 3, 3)
    assert split.held_out.tolist() == sorted([order[2], order[5]])


def test_targets_without_classes_are_dealt_at_random():
    y = np.linspace(0, 1, 100)
    assert as_lists(k_fold(y, 100, 2, 0)) != as_lists(k_fold(y, 100, 2, 1))
    assert as_lists(k_fold(y, 100, 2, 0))[0][1] not in (list(range(0, 100, 2)), list(range(50)))
    assert len(k_fold({"a": y, "b": y}, 100, 2, 0)[0].held_out) == 50
    random = np.random.default_rng(0).permutation(100)
    counts = np.arange(100) // 10  # whole numbers, but no classes
    (_, held_out), _ = as_lists(make_folds(2, counts, 100, stratify=False))
    assert held_out == sorted(random[0::2])


def test_splitters_and_pairs_are_taken_as_they_are():
    y, groups = np.arange(12) % 3, np.arange(12) // 2
    for splitter in (KFold(3), StratifiedKFold(4, shuffle=True, random_state=1), GroupKFold(2)):
        given = groups if isinstance(splitter, GroupKFold) else None
        wanted = [(train.tolist(), held_out.tolist()) for train, held_out in splitter.split(y, y, given)]
        assert as_lists(make_folds(splitter, np.eye(3)[y], 12, groups=given)) == wanted
    pairs = [([0, 1], [2]), (np.array([5]), [0, 1])]
    assert as_lists(make_folds(iter(pairs), None, 12)) == [([0, 1], [2]), ([5], [0, 1])]


WRONG = {
    r"`cv` must be a number of folds, from 2 to the number of samples \(6\). Received: 1. Pass a number": (1, None),
    r"from 2 to the number of samples \(6\). Received: .*7": (np.int64(7), None),
    "from 2 to the number of samples .*Received: True": (True, None),
    "`cv` must be a number of folds, a splitter.*Received: .*float": (2.5, None),
    "or a list of pairs": ("two", None),
    "can split the samples.*[Gg]roups": (GroupKFold(2), None),
    "`groups` must go with a splitter.*Pass `cv=sklearn.model_selection.GroupKFold": (3, np.arange(6)),
    "`cv` must give at least one split. Received: none. Pass a number": ([], None),
    "must be an array of sample numbers, not empty. Received: bool.*flatnonzero": ([([True, False], [1])], None),
    "not empty. Received: .* of shape .0,": ([([], [1])], None),
    r"must lie in 0..5. Received: 1 to 6. Count": ([([0], [1, 6])], None),
    "must not be trained on and held out.*Received: 1 in both parts.*such as 2": ([([2, 3], [1, 2])], None),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_folds(message):
    folds, groups = WRONG[message]
    with pytest.raises(InvalidArgumentError, match=message):
        make_folds(folds, np.arange(6) % 2, 6, argument="cv", groups=groups)


@pytest.mark.parametrize("fraction", [0, 1.0, True, "half"])
def test_wrong_fractions(fraction):
    with pytest.raises(InvalidArgumentError, match="`validation_split` must be a fraction above 0 and below 1"):
        hold_out(None, 6, fraction, 0)


def test_too_few_samples_for_a_part():
    with pytest.raises(InvalidArgumentError, match="a sample each for training and validation. Received: 0.1 of 6"):
        hold_out(None, 6, 0.1, 0)
