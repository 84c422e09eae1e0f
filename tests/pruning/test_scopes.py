"""`prune` beyond one kernel and its magnitudes: patterns in fit, thresholds, other criteria, one global ranking."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

import tfopt
from tfopt.core.keras_internals import sublayers
from tfopt.core.layers.registry import prunable_weights
from tfopt.core.models import constraints
from tfopt.pruning.criteria import Criterion
from tfopt.pruning.masks import PruningMask

DATA = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
GROW = (0.0, 0.8, 0, 8)


def net():
    return keras.Sequential(
        [keras.Input((12,)), kl.Dense(32, "relu", name="a"), kl.Dense(8, "relu", name="b"), kl.Dense(3, name="c")]
    )


def kernels(model):
    found = {}
    for layer in model.layers:
        for part in sublayers(layer):
            found.update({id(w): w for w in prunable_weights(part).values()})
    return list(found.values())


def zeros(model):
    return [int((kernel.numpy() == 0).sum()) for kernel in kernels(model)]


def schedule(frequency=2):
    return tfopt.PolynomialDecay(*GROW, frequency=frequency)


def train(model, **options):
    """Eight steps an epoch."""
    model.compile(keras.optimizers.SGD(0.05), "mse", **options)
    return model.fit(DATA, DATA[:, :3], batch_size=8, verbose=0)


# Patterns in training


@pytest.mark.parametrize("kind", ["held", "scheduled"])
def test_groups_keep_their_zeros_in_fit(kind):
    pruned = tfopt.prune(net(), schedule() if kind == "scheduled" else None, pattern="2:4")
    start = [kernel.numpy() != 0 for kernel in kernels(pruned)]
    train(pruned)
    for kernel, mask in zip(kernels(pruned), start, strict=True):
        groups = kernel.numpy().T.reshape(-1, 4)
        assert ((groups == 0).sum(1) == 2).all()
        if kind == "held":
            np.testing.assert_array_equal(kernel.numpy() != 0, mask)


def test_a_schedule_says_when_groups_get_their_zeros():
    late = tfopt.prune(net(), tfopt.ConstantSparsity(0.5, begin_step=6, frequency=4), pattern=(2, 4))
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(zeros(late)[0]))
    late.compile(keras.optimizers.Adam(1e-2), "mse")
    late.fit(DATA, DATA[:, :3], batch_size=8, verbose=0, callbacks=[watch])
    assert seen == [0] * 5 + [192] * 3


@pytest.mark.parametrize(
    ("pattern", "options"), [("4x1", {"jit_compile": True}), (tfopt.Block(2, 1, "max"), {})], ids=str
)
def test_blocks_grow_in_fit(pattern, options):
    pruned = tfopt.prune(net(), schedule(), pattern=pattern)
    train(pruned, **options)
    height = 4 if pattern == "4x1" else 2
    for kernel in kernels(pruned):
        values = kernel.numpy()
        blocks = values.reshape(-1, height, values.shape[1]).transpose(0, 2, 1).reshape(-1, height)
        empty = (blocks == 0).all(1)
        assert empty.sum() == len(blocks) - round(len(blocks) * 0.2)
        assert (blocks[~empty] != 0).all()


def test_kernels_without_room_for_a_group_are_named():
    model = keras.Sequential([keras.Input((8, 8, 1)), kl.Conv2D(8, 3, name="first"), kl.Conv2D(8, 3, name="second")])
    with pytest.warns(UserWarning, match="2:4.*first/kernel"):
        pruned = tfopt.prune(model, pattern="2:4")
    assert zeros(pruned) == [0, 288]
    with pytest.raises(tfopt.NothingToDoError, match="At least one weight"):
        tfopt.prune(model, pattern="2:4", include="first")


def test_the_sparsity_of_the_pattern_may_be_said():
    assert zeros(tfopt.prune(net(), pattern="2:4", sparsity=0.5)) == [192, 128, 12]
    assert zeros(tfopt.prune(net(), pattern="2:4", sparsity={"b": 0.5})) == [0, 128, 0]


# Threshold


def test_threshold_by_hand():
    model = net()
    model.layers[0].kernel.assign(np.linspace(-1, 1, 384).reshape(12, 32))
    pruned = tfopt.prune(model, threshold=0.5, include="a")
    expected = np.abs(model.layers[0].kernel.numpy()) < 0.5
    np.testing.assert_array_equal(pruned.layers[0].kernel.numpy() == 0, expected)
    train(pruned)
    np.testing.assert_array_equal(pruned.layers[0].kernel.numpy() == 0, expected)
    assert zeros(tfopt.prune(model, threshold={"*": 9.0, "a": 0.5})) == [int(expected.sum()), 255, 23]
    assert zeros(tfopt.prune(model, threshold=9.0, min_kept=0.25)) == [288, 192, 18]
    blocks = tfopt.prune(model, threshold=0.5, include="a", pattern="4x1").layers[0].kernel.numpy()
    means = np.abs(model.layers[0].kernel.numpy()).reshape(3, 4, 32).mean(1)
    np.testing.assert_array_equal((blocks == 0).reshape(3, 4, 32).all(1), means < 0.5)


# Criteria


def test_any_function_of_the_weights_ranks():
    model = net()
    largest_first = tfopt.prune(model, sparsity=0.5, criterion=lambda w: -np.abs(w)).layers[0].kernel.numpy()
    original = model.layers[0].kernel.numpy()
    assert np.abs(largest_first).max() <= np.abs(original[largest_first == 0]).min()


def test_pruned_weights_never_come_back_under_another_criterion():
    grown = tfopt.prune(net(), schedule(1), criterion=lambda w: -tf.abs(w))
    masks = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: masks.append(kernels(grown)[0].numpy() != 0)
    )
    grown.compile(keras.optimizers.Adam(1e-2), "mse")
    grown.fit(DATA, DATA[:, :3], batch_size=8, verbose=0, callbacks=[watch])
    assert all(not (later & ~earlier).any() for earlier, later in itertools.pairwise(masks))
    assert zeros(grown) == [307, 205, 19]


@pytest.fixture
def fixed(monkeypatch):
    """A criterion whose scores are given once: those of the flat index, highest first."""
    calls = []

    def score_kernels(model, kernels, criterion, **options):
        calls.append(options)
        return {id(k): np.arange(k.numpy().size, 0, -1, dtype="float32").reshape(k.shape) for k in kernels}

    monkeypatch.setattr("tfopt.pruning.weights.score_kernels", score_kernels)
    return Criterion("fixed", lambda weights, gradients: weights, needs=("gradients",)), calls


def test_scores_from_data_are_taken_once_and_stay(fixed):
    criterion, calls = fixed
    grown = tfopt.prune(net(), schedule(), criterion=criterion, data=DATA, loss="mse", seed=3, verbose=1)
    assert [{**options, "data": options["data"] is DATA} for options in calls] == [
        {"data": True, "loss": "mse", "seed": 3, "verbose": 1}
    ]
    train(grown)
    for kernel, kept in zip(kernels(grown), (77, 51, 5), strict=True):
        assert (kernel.numpy().ravel() != 0).tolist() == [i < kept for i in range(kernel.numpy().size)]


def test_zeros_that_are_there_go_first(fixed):
    model = net()
    kernel = model.layers[0].kernel
    kernel.assign(np.where(np.arange(384).reshape(12, 32) < 100, 0, kernel.numpy()))
    pruned = tfopt.prune(model, sparsity=0.5, criterion=fixed[0], include="a").layers[0].kernel.numpy().ravel()
    assert np.flatnonzero(pruned).tolist() == list(range(100, 292))


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda w: w[0], tfopt.InvalidArgumentError, "a score for each weight"),
        (lambda w: w * np.nan, tfopt.NonFiniteError, "scores"),
        (lambda w: w.nope, tfopt.InvalidArgumentError, "compiled training step"),
        (lambda w: np.sort(w), tfopt.InvalidArgumentError, "compiled training step"),
    ],
)
def test_criteria_that_cannot_follow_a_schedule(wrong, error, says):
    with pytest.raises(error, match=says):
        tfopt.prune(net(), schedule(), criterion=wrong)


def test_a_criterion_in_numpy_prunes_at_once():
    assert zeros(tfopt.prune(net(), sparsity=0.5, criterion=lambda w: np.abs(w))) == [192, 128, 12]


# Global


def magnitudes(model):
    return np.concatenate([np.abs(kernel.numpy()).ravel() for kernel in kernels(model)])


def test_global_ranks_all_magnitudes_together():
    model = net()
    model.layers[1].kernel.assign(3 * model.layers[1].kernel.numpy())
    pruned = tfopt.prune(model, sparsity=0.7, scope="global")
    flat = magnitudes(model)
    kept = np.sort(np.argsort(-flat, kind="stable")[: round(len(flat) * 0.3)])
    assert np.flatnonzero(magnitudes(pruned)).tolist() == kept.tolist()
    assert zeros(pruned)[1] < 0.4 * 256
    some = tfopt.prune(model, sparsity=0.7, scope="global", exclude="c")
    assert zeros(some)[2] == 0
    assert sum(zeros(some)) == 640 - round(640 * 0.3)


@settings(deadline=None, max_examples=12)
@given(
    sparsity=st.floats(0.05, 0.95),
    scale=st.floats(1e-3, 1e3),
    share=st.floats(0, 1),
    pattern=st.sampled_from(["element", "3x1"]),
)
def test_global_count_is_exact_and_each_kernel_keeps_its_share(sparsity, scale, share, pattern):
    model = net()
    model.layers[0].kernel.assign(scale * model.layers[0].kernel.numpy())
    min_kept = share * (1 - sparsity)
    pruned = tfopt.prune(model, sparsity=sparsity, scope="global", min_kept=min_kept, pattern=pattern)
    heights, units = (12, 32, 8), {"element": [384, 256, 24], "3x1": [4 * 32, 11 * 8, 3 * 3]}[pattern]
    size = 1 if pattern == "element" else 3
    kept = []
    for kernel, height in zip(kernels(pruned), heights, strict=True):
        rows = [kernel.numpy()[top : top + size] for top in range(0, height, size)]
        kept.append(sum(int((row != 0).any(0).sum()) for row in rows))
    floors = [max(1, int(np.ceil(min_kept * n - 1e-9))) for n in units]
    assert all(k >= floor for k, floor in zip(kept, floors, strict=True))
    assert sum(kept) == max(sum(floors), round(sum(units) * (1 - float(np.float32(sparsity)))))


def test_other_criteria_are_compared_by_the_mean_of_their_kernel():
    model = net()
    for layer, scale in zip(model.layers, (1, 100, 0.01), strict=True):
        layer.kernel.assign(scale * np.random.default_rng(0).uniform(0.5, 1, layer.kernel.shape))
    square = tfopt.prune(model, sparsity=0.5, scope="global", criterion=tf.square)
    ranked = np.concatenate([(k.numpy() ** 2 / np.mean(k.numpy() ** 2)).ravel() for k in kernels(model)])
    assert np.flatnonzero(magnitudes(square)).tolist() == np.sort(np.argsort(-ranked)[:332]).tolist()
    raw = tfopt.prune(model, sparsity=0.5, scope="global", criterion=Criterion("s", tf.square, comparable=True))
    assert zeros(raw)[1] == 0


@pytest.mark.parametrize(
    "options", [{}, {"jit_compile": True}, {"steps_per_execution": 4}, {"run_eagerly": True}], ids=str
)
def test_global_grows_in_one_step_for_all_kernels(options):
    pruned = tfopt.prune(net(), schedule(), scope="global", min_kept=0.1)
    train(pruned, **options)
    assert sum(zeros(pruned)) == 664 - round(664 * 0.2)
    floor = np.sort(magnitudes(pruned)[magnitudes(pruned) > 0])[0]
    assert floor > 0
    assert len({int(m.pool._step.numpy()) for m in masks(pruned)}) == 1
    for kernel, mask in zip(kernels(pruned), masks(pruned), strict=True):
        assert (kernel.numpy() != 0).sum() == mask.mask.numpy().sum() >= np.ceil(0.1 * kernel.numpy().size)


def masks(model):
    return [constraints.find(kernel, PruningMask) for kernel in kernels(model)]


def test_global_masks_are_those_of_all_updated_weights():
    """After one plain step of gradient descent, known from an unpruned twin."""
    model, once = net(), tfopt.ConstantSparsity(0.6, begin_step=1, frequency=100)
    pruned = tfopt.prune(model, once, scope="global")
    for each in (model, pruned):
        each.compile(keras.optimizers.SGD(0.1), "mse")
        each.fit(DATA[:8], DATA[:8, :3], batch_size=8, verbose=0)
    flat = magnitudes(model)
    kept = np.sort(np.argsort(-flat, kind="stable")[: round(len(flat) * 0.4)])
    assert np.flatnonzero(magnitudes(pruned)).tolist() == kept.tolist()


def test_a_frozen_kernel_of_the_pool_is_pruned_too_and_the_users_constraint_comes_first():
    layers = [kl.Dense(32, name="a"), kl.Dense(8, name="b"), kl.Dense(3, name="c", kernel_constraint="non_neg")]
    model = keras.Sequential([keras.Input((12,)), *layers])
    model.layers[0].trainable = False
    with pytest.warns(UserWarning, match="frozen"):
        pruned = tfopt.prune(model, tfopt.ConstantSparsity(0.5, begin_step=1, frequency=1), scope="global")
    train(pruned)
    assert (pruned.layers[2].kernel.numpy() >= 0).all()
    counts = [int(mask.mask.numpy().sum()) for mask in masks(pruned)]
    assert sum(counts) == 332
    assert zeros(pruned)[0] == 384 - counts[0] > 0


def test_rewriting_carries_the_pool():
    pruned = tfopt.prune(net(), tfopt.PolynomialDecay(0.4, 0.8, 0, 8, frequency=2), scope="global")
    assert sum(zeros(pruned)) == 664 - round(664 * 0.6)
    quantized = tfopt.quantize(pruned)
    assert zeros(quantized) == zeros(pruned)
    pools = {id(mask.pool) for mask in masks(quantized)}
    assert len(pools) == 1
    assert pools.isdisjoint(id(mask.pool) for mask in masks(pruned))
    before = [kernel.numpy() for kernel in kernels(pruned)]
    train(quantized)
    assert sum(zeros(quantized)) == 664 - round(664 * 0.2)
    for kernel, kept in zip(kernels(pruned), before, strict=True):
        np.testing.assert_array_equal(kernel.numpy(), kept)
    assert sum(zeros(tfopt.strip(quantized))) == sum(zeros(quantized))


def test_fixed_scores_are_carried(fixed):
    grown = tfopt.quantize(tfopt.prune(net(), schedule(), criterion=fixed[0], include="a"))
    train(grown)
    assert (kernels(grown)[0].numpy().ravel() != 0).tolist() == [i < 77 for i in range(384)]


def test_a_kernel_pruned_again_leaves_the_pool():
    pruned = tfopt.prune(net(), schedule(), scope="global")
    again = tfopt.prune(pruned, sparsity=0.25, include="a")
    train(again)
    assert zeros(again)[0] == 96
    assert sum(zeros(again)[1:]) == 280 - round(280 * 0.2)


def test_compiling_again_never_makes_the_pool_denser():
    pruned = tfopt.prune(net(), schedule(1), scope="global")
    train(pruned)
    before = zeros(pruned)
    train(pruned)
    assert zeros(pruned) == before
    keep = tfopt.prune(tfopt.strip(pruned), sparsity="keep")
    train(keep)
    assert zeros(keep) == before


# Processes


def run(script, *arguments, killed=False):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=300,
    )
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr[-2000:]
    return done.stdout


def test_distributed_over_two_replicas():
    script = """
        import warnings
        import keras, numpy as np, tensorflow as tf, tfopt
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        x = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
        grow = tfopt.PolynomialDecay(0.0, 0.75, 0, 6, frequency=2)
        with strategy.scope():
            layers = [keras.Input((12,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(8), keras.layers.Dense(1)]
            model = keras.Sequential(layers)
            blocks = tfopt.prune(model, grow, pattern="4x1")
            model.layers[0].trainable = False
            warnings.simplefilter("ignore")
            together = tfopt.prune(model, grow, scope="global", criterion=tf.square)
            for m in (blocks, together):
                m.compile(keras.optimizers.SGD(0.05), "mse")
        for m in (blocks, together):
            m.fit(x, x[:, :1], batch_size=8, verbose=0)
            print(*[int((layer.kernel.numpy() == 0).sum()) for layer in m.layers])
    """
    blocks, together = ([int(n) for n in line.split()] for line in run(script).splitlines())
    assert blocks == [288, 192, 4]
    assert sum(together) == 648 * 3 // 4
    assert together[0] > 0  # frozen


RESUMED = """
    import os, signal, sys
    import keras, numpy as np, tensorflow as tf, tfopt
    folder, seed, kill_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(3)])
    grow = tfopt.PolynomialDecay(0.0, 0.8, 0, 20, frequency=4)
    pruned = tfopt.prune(model, grow, scope="global", criterion=lambda w: -tf.abs(w))
    pruned.compile(keras.optimizers.SGD(1e-3), "mse")
    x = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            step = int(pruned.optimizer.iterations.numpy())
            zeros = np.concatenate([layer.kernel.numpy().ravel() == 0 for layer in pruned.layers])
            np.save(f"{folder}/{seed}-{step}.npy", zeros)
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    backup = keras.callbacks.BackupAndRestore(f"{folder}/backup", save_freq=3)
    pruned.fit(x, x[:, :3], batch_size=8, epochs=5, verbose=0, callbacks=[backup, Watch()])
"""


def test_a_pool_is_built_again_after_a_resume(tmp_path):
    run(RESUMED, str(tmp_path), "1", "14", killed=True)
    # Other initial weights the second time: what counts is what was backed up, at step 12.
    run(RESUMED, str(tmp_path), "2", "-1")
    assert not (tmp_path / "2-12.npy").exists()
    before, resumed, end = (np.load(tmp_path / name) for name in ("1-12.npy", "2-13.npy", "2-40.npy"))
    assert before.sum() == resumed.sum() == 480 - round(480 * (1 - (0.8 - 0.8 * (1 - 12 / 20) ** 3)))
    assert (before & resumed).sum() >= 0.98 * before.sum()
    assert end.sum() == 480 - round(480 * 0.2)


# Errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scope": "all"}, "must be 'layer' or 'global'"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": float("inf")}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"threshold": "keep"}, "threshold"),
        ({"threshold": {}}, "threshold"),
        ({"threshold": {"a": -1.0}}, "threshold"),
        ({"threshold": {"nope": 0.1}}, "'nope'"),
        ({"threshold": 0.1, "sparsity": 0.5}, "exclude each other"),
        ({"threshold": 0.1, "schedule": schedule}, "exclude each other"),
        ({"threshold": 0.1, "scope": "global"}, "judges each weight by itself"),
        ({"sparsity": {"a": 0.5}, "scope": "global"}, "a dict gives each layer its own"),
        ({"pattern": "2:4", "scope": "global"}, "equally sparse"),
        ({"pattern": "2:4", "sparsity": 0.75}, "2:4 fixes the sparsity of each kernel at 0.5"),
        ({"pattern": "2:4", "sparsity": {"a": 0.5, "b": 0.4}}, "2:4 fixes"),
        ({"pattern": "2:4", "threshold": 0.1}, "2:4 fixes"),
        ({"pattern": "2:4", "min_kept": 0.1}, "2:4 fixes"),
        ({"pattern": "2:4", "sparsity": "keep"}, "2:4 fixes"),
        ({"pattern": "4x1", "sparsity": "keep"}, "nothing is ranked"),
        ({"scope": "global", "sparsity": "keep"}, "nothing is ranked"),
        ({"criterion": tf.square, "sparsity": "keep"}, "nothing is ranked"),
        ({"min_kept": 0.1, "sparsity": "keep"}, "nothing is ranked"),
        ({"min_kept": -0.1}, "min_kept"),
        ({"min_kept": 1.0}, "min_kept"),
        ({"min_kept": True}, "min_kept"),
        ({"min_kept": float("nan")}, "min_kept"),
        ({"min_kept": 0.3, "sparsity": 0.8, "scope": "global"}, "together at most 1"),
        ({"criterion": "nope"}, "magnitude"),
    ],
)
def test_contradictions(arguments, says):
    with pytest.raises(tfopt.InvalidArgumentError, match=says):
        tfopt.prune(net(), **arguments)


def test_a_call_that_prunes_nothing():
    for arguments in ({"threshold": 0.0}, {"threshold": 1e-30}, {"sparsity": 1e-6}):
        with pytest.raises(tfopt.NothingToDoError, match="At least one weight"):
            tfopt.prune(net(), **arguments)
