import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

import tfopt
from tfopt.pruning.criteria import magnitude
from tfopt.pruning.patterns import Block, Element, ZerosInGroups, as_pattern, kept_count


def test_by_hand():
    weights = np.array([[0.1, -4.0, 3.0], [2.0, 0.0, -0.2]], "float32")
    mask = Element().mask(magnitude(weights), 3).numpy()
    assert mask.tolist() == [[False, True, True], [True, False, False]]


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.999),
    values=st.sampled_from(["random", "constant", "ties"]),
)
def test_exact_count_whatever_the_ties(shape, sparsity, values):
    weights = drawn(shape, values)
    kept = int(kept_count(weights.size, sparsity))
    mask = Element().mask(magnitude(weights), kept).numpy()
    assert kept == max(1, round(weights.size * (1 - float(np.float32(sparsity)))))
    assert mask.sum() == kept
    if 0 < kept < weights.size:
        assert np.abs(weights[mask]).min() >= np.abs(weights[~mask]).max()


def drawn(shape, values, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "random": generator.normal(size=shape),
        "constant": np.full(shape, 0.5),
        "ties": generator.integers(-1, 2, shape),
    }[values].astype("float32")


def as_matrix(array):
    return array.reshape(-1, array.shape[-1])


def blocks_of(matrix, height, width):
    """The blocks of a matrix, row by row, those at the border cut off."""
    rows, columns = matrix.shape
    return [
        matrix[top : top + height, left : left + width]
        for top in range(0, rows, height)
        for left in range(0, columns, width)
    ]


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    pooling=st.sampled_from(["average", "max"]),
    sparsity=st.floats(0, 0.99),
    values=st.sampled_from(["random", "constant", "ties"]),
)
def test_so_many_whole_blocks_of_highest_score(shape, height, width, pooling, sparsity, values):
    weights, block = drawn(shape, values), Block(height, width, pooling)
    count = len(blocks_of(as_matrix(np.ones(shape)), height, width))
    assert block.units(shape) == count
    kept = int(kept_count(count, sparsity))
    mask = block.mask(magnitude(weights), kept).numpy()
    stays = [b.all() for b in blocks_of(as_matrix(mask), height, width)]
    assert [b.any() for b in blocks_of(as_matrix(mask), height, width)] == stays
    assert sum(stays) == kept
    pool = {"average": np.mean, "max": np.max}[pooling]
    scores = np.array([pool(b) for b in blocks_of(as_matrix(np.abs(weights)), height, width)])
    if kept < count:
        assert scores[stays].min() >= scores[np.invert(stays)].max() - 1e-6


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    size=st.integers(2, 5),
    values=st.sampled_from(["random", "constant", "ties"]),
    data=st.data(),
)
def test_each_group_holds_its_zeros_and_loses_the_lowest(shape, size, values, data):
    zeros = data.draw(st.integers(1, size - 1))
    weights = drawn(shape, values)
    mask = ZerosInGroups(zeros, size).mask(magnitude(weights)).numpy()
    axis = -2 if len(shape) > 1 else 0
    for row, stays in zip(*(np.moveaxis(a, axis, -1).reshape(-1, shape[axis]) for a in (weights, mask)), strict=True):
        for start in range(0, len(row), size):
            group, kept = np.abs(row[start : start + size]), stays[start : start + size]
            assert kept.sum() == min(len(group), size - zeros)
            if not kept.all():
                assert group[kept].min() >= group[~kept].max()


@settings(deadline=None, max_examples=40)
@given(
    low=st.floats(0, 0.99),
    high=st.floats(0, 0.99),
    seed=st.integers(0, 99),
    pattern=st.sampled_from([Element(), Block(2, 1), Block(3, 2, "max")]),
)
def test_masks_are_nested(low, high, seed, pattern):
    low, high = sorted((low, high))
    scores = np.random.default_rng(seed).uniform(size=(7, 5)).astype("float32")
    units = pattern.units((7, 5))
    wide = pattern.mask(scores, kept_count(units, low)).numpy()
    narrow = pattern.mask(scores, kept_count(units, high)).numpy()
    assert not (narrow & ~wide).any()


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(6)), kept=st.integers(1, 47))
def test_outputs_in_another_order_have_their_masks_in_that_order(order, kept):
    weights = np.random.default_rng(3).normal(size=(2, 2, 8, 6)).astype("float32")
    for pattern, count in ((Element(), 4 * kept), (Block(4, 1), kept), (ZerosInGroups(2, 4), None)):
        mask = pattern.mask(magnitude(weights), count).numpy()
        np.testing.assert_array_equal(pattern.mask(magnitude(weights[..., order]), count), mask[..., order])


@pytest.mark.parametrize("scale", [1e-20, 3.0, 1e20])
@pytest.mark.parametrize("pattern", [Element(), Block(3, 1), ZerosInGroups(2, 3)], ids=str)
def test_scale_invariance(pattern, scale):
    weights = np.random.default_rng(1).normal(size=(9, 4)).astype("float32")
    np.testing.assert_array_equal(
        pattern.mask(magnitude(weights * np.float32(scale)), 10), pattern.mask(magnitude(weights), 10)
    )


@pytest.mark.parametrize("pattern", [Element(), Block(2, 3), Block(3, 1, "max"), ZerosInGroups(2, 4)], ids=str)
@pytest.mark.parametrize("jit", [False, True])
def test_in_a_graph(pattern, jit):
    scores = np.random.default_rng(0).uniform(size=(3, 7, 5)).astype("float32")
    compiled = tf.function(pattern.mask, jit_compile=jit)
    np.testing.assert_array_equal(compiled(tf.constant(scores), tf.constant(6)), pattern.mask(scores, 6))


def test_ranked_together():
    small, large = tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([[10.0], [20.0]])
    for floors, kept, expected in (
        ([1, 1], 3, [[0, 0, 0, 1], [1, 1]]),
        ([2, 1], 3, [[0, 0, 1, 1], [0, 1]]),
        ([1, 1], 1, [[0, 0, 0, 1], [0, 1]]),  # one of each stays
    ):
        masks = Element().masks([small, large], kept, floors)
        assert [mask.numpy().ravel().astype(int).tolist() for mask in masks] == expected
    alive = [tf.constant([[True, True], [True, False]]), tf.constant([[True], [False]])]
    masks = Element().masks([small, large], 3, [1, 1], alive)
    assert [mask.numpy().ravel().tolist() for mask in masks] == [[False, True, True, False], [True, False]]


# TFMOT on the same weights.


def of_tfmot(weights, block=(1, 1), pooling="AVG", sparsity=0.5, m_by_n=None):
    from tfopt.interop.tfmot import tfmot

    tfmot()
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

    schedule = tfopt.ConstantSparsity(sparsity, begin_step=0)
    pruning = pruning_impl.Pruning(lambda: tf.constant(0), [], schedule, block, pooling, m_by_n)
    return pruning._maybe_update_block_mask(tf.constant(weights))[1].numpy().astype(bool)


@pytest.mark.parametrize(
    "shape", [(8, 3), (7, 5), (1, 4), (3, 3, 8, 4), (1, 1, 6, 5), (3, 3, 3, 2), (5, 5, 1, 2)], ids=str
)
@pytest.mark.parametrize("m_by_n", [(2, 4), (1, 4), (3, 4), (1, 2), (2, 5)], ids=str)
@pytest.mark.parametrize("values", ["random", "ties"])
def test_zeros_in_groups_equal_tfmots(shape, m_by_n, values):
    weights = drawn(shape, values, seed=2)
    ours = as_pattern(m_by_n).mask(magnitude(weights)).numpy()
    np.testing.assert_array_equal(ours, of_tfmot(weights, m_by_n=m_by_n))


@pytest.mark.parametrize(
    ("shape", "block"),
    [((8, 6), (4, 1)), ((8, 6), (2, 3)), ((9, 7), (2, 2)), ((12, 8), (1, 4)), ((11, 8), (4, 2)), ((5, 5), (3, 3))],
    ids=str,
)
@pytest.mark.parametrize(("pooling", "theirs"), [("average", "AVG"), ("max", "MAX")])
def test_blocks_equal_tfmots(shape, block, pooling, theirs):
    weights = drawn(shape, "random", seed=4)
    for sparsity in (0.25, 0.5, 0.8):
        ours = Block(*block, pooling)
        mask = ours.mask(magnitude(weights), kept_count(ours.units(shape), sparsity)).numpy()
        np.testing.assert_array_equal(mask, of_tfmot(weights, block, theirs, sparsity))


def test_border_blocks_are_scored_by_their_own_weights():
    """TFMOT pads a matrix that lacks two rows on both sides before it pools, but not before it masks."""
    weights = np.array([[1.0], [1.0], [1.0], [9.0]], "float32")
    ours = Block(3, 1).mask(magnitude(weights), 1).numpy().ravel()
    assert ours.tolist() == [False, False, False, True]
    shifted = np.array([[1.0], [1.0], [3.0], [0.0]], "float32")  # pooled as rows 0-1 and 2-3, masked as 0-2 and 3
    assert Block(3, 1).mask(shifted, 1).numpy().ravel().tolist() == [True, True, True, False]
    doubled = np.repeat(shifted, 2, axis=1)  # TFMOT cannot take a matrix of one column
    assert of_tfmot(doubled, (3, 1))[:, 0].tolist() == [False, False, False, True]


def test_blocks_of_a_convolution_by_hand():
    kernel = np.zeros((1, 2, 2, 2), "float32")  # a matrix of 4 rows: (x0, in0), (x0, in1), (x1, in0), (x1, in1)
    kernel[0, 0, :, 0] = 3, 3
    kernel[0, 1, :, 1] = 2, 2
    kernel[0, 1, :, 0] = 0, 5
    kernel[0, 0, :, 1] = 4, 0
    average = Block(2, 1).mask(kernel, 2).numpy().reshape(4, 2)
    assert average.astype(int).tolist() == [[1, 0], [1, 0], [1, 0], [1, 0]]  # means 3, 2 / 2.5, 2
    highest = Block(2, 1, "max").mask(kernel, 2).numpy().reshape(4, 2)
    assert highest.astype(int).tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]]  # maxima 3, 4 / 5, 2


def test_as_written():
    assert as_pattern("element") == Element()
    assert as_pattern("2:4") == as_pattern((2, 4)) == ZerosInGroups(2, 4)
    assert as_pattern("16x1") == tfopt.Block(16, 1) == as_pattern(Block(16, 1, "average"))


@pytest.mark.parametrize(
    "pattern", ["rows", "4:2", (4, 4), (0, 4), (2.0, 4), "0x1", (1, 2, 3), 4, None, "2:4 ", "-1:4", ("a", "b")], ids=str
)
def test_unknown_patterns(pattern):
    model = keras.Sequential([keras.Input((8,)), kl.Dense(4)])
    with pytest.raises(tfopt.InvalidArgumentError, match="pattern|block"):
        tfopt.prune(model, pattern=pattern)


def test_unknown_pooling():
    with pytest.raises(tfopt.InvalidArgumentError, match="must be 'average' or 'max'"):
        Block(2, 2, "AVG")
