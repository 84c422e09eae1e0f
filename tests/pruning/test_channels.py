"""Channel pruning: which channels go, that they are zero through their group, and that `shrink` changes no output."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

import tfopt
from tfopt.pruning.ranking import Ranking


def mlp(kernel=None):
    model = keras.Sequential([keras.Input((4,)), kl.Dense(6, "sigmoid", name="hidden"), kl.Dense(2, name="head")])
    if kernel is not None:
        model.get_layer("hidden").kernel.assign(kernel)
    return model


def assert_shrinks_exactly(masked, x, atol=1e-4):
    small = tfopt.shrink(masked)
    for a, b in zip(zoo.predictions(masked, x), zoo.predictions(small, x), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)
    return small


def kept_units(model, name="hidden"):
    return np.flatnonzero(model.get_layer(name).kernel.numpy().any(0)).tolist()


def test_by_hand():
    kernel = np.zeros((4, 6), "float32")
    kernel[0] = [1, -5, 2, 4, -3, 6]
    model = mlp(kernel)
    model.get_layer("head").kernel.assign(np.array([[9, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]], "float32"))
    pruned = tfopt.prune(model, pattern="channel", sparsity=0.5)
    assert kept_units(pruned) == [0, 1, 5]  # 1 + 9, 5 and 6 are the largest sums over both kernels
    hidden = pruned.get_layer("hidden")
    assert not hidden.bias.numpy()[[2, 3, 4]].any()
    small = assert_shrinks_exactly(pruned, np.random.default_rng(0).normal(size=(8, 4)))
    np.testing.assert_array_equal(small.get_layer("hidden").kernel, kernel[:, [0, 1, 5]])
    assert all(weight.constraint is None for weight in small.weights)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", zoo.MODELS)
def test_zoo_at_once(name, scope):
    model = zoo.build(name)
    before = zoo.state(model)
    masked = tfopt.prune(model, pattern="channel", sparsity=0.5, scope=scope)
    small = assert_shrinks_exactly(masked, zoo.inputs_for(model), atol=2e-3 if name == "mixed" else 1e-4)
    assert small.count_params() < 0.8 * model.count_params()
    for old, new in zip(before, zoo.state(model), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"steps_per_execution": 2}])
def test_masks_hold_and_grow_during_fit(options):
    model = zoo.build("residual")
    schedule = tfopt.PolynomialDecay(0, 0.75, 0, 6, frequency=1)
    masked = tfopt.prune(model, schedule, pattern="channel")
    x = zoo.inputs_for(model)
    zoo.fit(masked, x, epochs=3, **options)  # 12 steps
    zeros = [int((~masked.get_layer(n).kernel.numpy().any((0, 1, 2))).sum()) for n in ("stem", "pointwise")]
    assert zeros == [3, 3]
    assert_shrinks_exactly(masked, x)


def test_channels_that_are_gone_stay_gone_through_later_training_and_quantization():
    model = zoo.build("sequential")
    x = zoo.inputs_for(model)
    masked = tfopt.prune(model, pattern="channel", sparsity=0.5)
    gone = ~masked.get_layer("conv").kernel.numpy().any((0, 1, 2))
    zoo.fit(masked, x, optimizer=keras.optimizers.Adam(1e-2, use_ema=True))
    quantized = tfopt.quantize(masked)
    zoo.fit(quantized, x)
    stripped = tfopt.strip(quantized)
    np.testing.assert_array_equal(~stripped.get_layer("conv").kernel.numpy().any((0, 1, 2)), gone)
    assert tfopt.shrink(stripped).get_layer("conv").filters == 2


def test_two_replicas_have_one_mask():
    """In a process of its own: logical devices are set before TensorFlow starts."""
    script = """
        import keras, numpy as np, tensorflow as tf, tfopt
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])
            pruned = tfopt.prune(model, tfopt.PolynomialDecay(0.0, 0.75, 0, 6, frequency=2), pattern="channel")
            pruned.compile(keras.optimizers.Adam(1e-2), "mse")
        x = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
        pruned.fit(x, x[:, :1], batch_size=8, verbose=0)
        print(tfopt.shrink(pruned).layers[0].units)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["8"]


def test_a_saved_model_is_shrunk_and_held_by_its_zeros(tmp_path):
    model = zoo.build("sequential")
    tfopt.prune(model, pattern="channel", sparsity=0.5).save(tmp_path / "masked.keras")
    loaded = tfopt.load_model(tmp_path / "masked.keras")
    held = tfopt.prune(loaded, pattern="channel", sparsity="keep")
    zoo.fit(held, zoo.inputs_for(model))
    assert tfopt.shrink(held).get_layer("conv").filters == tfopt.shrink(loaded).get_layer("conv").filters == 2


def data_for(model, samples=24):
    return zoo.inputs_for(model, samples), np.random.default_rng(0).integers(0, 3, samples)


def test_taylor_is_the_sum_of_weight_times_gradient_over_the_group():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(6, name="hidden"), kl.Dense(3, "softmax", name="head")])
    x, y = np.random.default_rng(1).normal(size=(20, 4)).astype("float32"), np.random.default_rng(2).integers(0, 3, 20)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x)))
    first, second = model.get_layer("hidden").kernel, model.get_layer("head").kernel
    g1, g2 = tape.gradient(loss, [first.value, second.value])
    scores = np.abs(first.numpy() * g1).sum(0) + np.abs(second.numpy() * g2).sum(1)
    pruned = tfopt.prune(model, pattern="channel", criterion="taylor", data=(x, y), sparsity=0.5)
    assert kept_units(pruned) == sorted(np.argsort(scores)[3:].tolist())


def test_batch_normalization_scale_ranks_channels():
    model = zoo.build("residual")
    stem = model.get_layer("stem_bn").gamma.numpy() + np.zeros(4)
    stem += model.get_layer("alone_bn").gamma.numpy()  # the sum of both branches is normalized again
    pruned = tfopt.prune(model, pattern="channel", criterion="bn_scale", sparsity=0.5)
    kept = np.flatnonzero(pruned.get_layer("stem").kernel.numpy().any((0, 1, 2)))
    assert sorted(kept) == sorted(np.argsort(stem)[2:])


@pytest.mark.parametrize("criterion", ["gradient", "taylor", "random", "neuron", "entropy", "wanda"])
def test_every_criterion_prunes_half(criterion):
    model = zoo.build("sequential")
    pruned = tfopt.prune(model, pattern="channel", criterion=criterion, data=data_for(model), sparsity=0.5)
    small = assert_shrinks_exactly(pruned, zoo.inputs_for(model))
    assert (small.get_layer("conv").filters, small.get_layer("hidden").units) == (2, 3)


def test_random_follows_the_seed():
    first, again, *others = (
        kept_units(tfopt.prune(mlp(), pattern="channel", criterion="random", seed=seed)) for seed in (1, 1, 2, 3, 4)
    )
    assert first == again
    assert any(units != first for units in others)


@pytest.mark.parametrize(("budget", "measure"), [("to_macs", "macs"), ("to_params", "parameters")])
@pytest.mark.parametrize("name", ["sequential", "residual", "sequence"])
def test_budget(name, budget, measure):
    model = zoo.build(name)
    whole = getattr(tfopt.summary(model), measure)
    small = tfopt.shrink(tfopt.prune(model, pattern="channel", scope="global", **{budget: 0.6}))
    left = getattr(tfopt.summary(small), measure) / whole
    assert 0.25 < left <= 0.6


def test_round_to_keeps_hardware_friendly_widths():
    model = keras.Sequential([keras.Input((4,)), *(kl.Dense(width) for width in (40, 20, 6)), kl.Dense(2)])
    small = tfopt.shrink(tfopt.prune(model, pattern="channel", sparsity=0.7, round_to=8))
    assert [layer.units for layer in small.layers] == [16, 8, 6, 2]  # 12 and 6 rounded up; 6 is less than one step


def test_what_rounding_leaves_of_a_budget_is_given_back():
    model = keras.Sequential([keras.Input((8,)), kl.Dense(16, name="a"), kl.Dense(16, name="b"), kl.Dense(8)])
    model.get_layer("a").kernel.assign(np.ones((8, 16)) * np.r_[np.full(8, 5.0), np.full(8, 1.0)])
    model.get_layer("b").kernel.assign(np.ones((16, 16)) * np.r_[np.full(8, 5.0), np.full(8, 2.0)])
    model.layers[-1].kernel.assign(np.zeros((16, 8)))
    # Of 512 multiply-accumulates one threshold for both takes 8 units of "a" and of "b" at once, which leaves 192.
    # There is room for 8 units of one of them: 8 * 16 + 16 * 8 + 8 * 8 = 320. Those of "a", 64/80 of the mean score of
    # their group, are better than those of "b", 32/56.
    options = {"pattern": "channel", "scope": "global", "to_macs": 330 / 512}
    small = tfopt.shrink(tfopt.prune(model, round_to=8, **options))
    assert [layer.units for layer in small.layers] == [16, 8, 8]


def test_threshold_and_layer_dict():
    kernel = np.ones((4, 6), "float32") * [1, 2, 3, 4, 5, 6]
    model = mlp(kernel)
    model.get_layer("head").kernel.assign(np.zeros((6, 2)))
    assert kept_units(tfopt.prune(model, pattern="channel", threshold=14.0)) == [3, 4, 5]  # sums are 4, 8, 12, 16, ...
    deep = keras.Sequential([keras.Input((4,)), kl.Dense(8, name="a"), kl.Dense(8, name="b"), kl.Dense(2)])
    small = tfopt.shrink(tfopt.prune(deep, pattern="channel", sparsity={"b": 0.75}))
    assert [layer.units for layer in small.layers] == [8, 2, 2]


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.95),
    step=st.sampled_from([1, 2, 4]),
    least=st.floats(0, 0.5),
    seed=st.integers(0, 99),
)
def test_ranking_counts_exactly(sizes, sparsity, step, least, seed):
    generator = np.random.default_rng(seed)
    scores = [tf.constant(generator.uniform(size=size).astype("float32")) for size in sizes]
    floors = [max(1, int(np.ceil(least * size - 1e-9))) for size in sizes]
    layer = Ranking(tuple(sizes), (step,) * len(sizes), ((),) * len(sizes), "layer", least)
    for mask, values, size, floor in zip(layer.masks(scores, sparsity), scores, sizes, floors, strict=True):
        wanted = max(1, round(size * (1 - float(np.float64(sparsity)))), floor)
        assert mask.numpy().sum() == min(size, -(-wanted // step) * step)
        if 0 < mask.numpy().sum() < size:
            assert values.numpy()[mask].min() >= values.numpy()[~mask.numpy()].max()
    together = Ranking(tuple(sizes), (1,) * len(sizes), ((),) * len(sizes), "global", least)
    kept = [mask.numpy() for mask in together.masks(scores, sparsity)]
    assert sum(mask.sum() for mask in kept) == max(round(sum(sizes) * (1 - sparsity)), 1, sum(floors))
    assert all(mask.sum() >= floor for mask, floor in zip(kept, floors, strict=True))


@settings(deadline=None, max_examples=20)
@given(low=st.floats(0, 0.9), high=st.floats(0, 0.9), scope=st.sampled_from(["layer", "global"]))
def test_masks_are_nested_along_a_schedule(low, high, scope):
    low, high = sorted((low, high))
    scores = [tf.constant(np.random.default_rng(3).uniform(size=size).astype("float32")) for size in (9, 5)]
    ranking = Ranking((9, 5), (1, 1), ((), ()), scope)
    for wide, narrow in zip(ranking.masks(scores, low), ranking.masks(scores, high), strict=True):
        assert not (narrow.numpy() & ~wide.numpy()).any()


def test_permuting_the_channels_of_a_group_permutes_the_mask():
    model = mlp(np.random.default_rng(0).normal(size=(4, 6)).astype("float32"))
    order = np.random.default_rng(1).permutation(6)
    other = mlp(model.get_layer("hidden").kernel.numpy()[:, order])
    other.get_layer("head").kernel.assign(model.get_layer("head").kernel.numpy()[order])
    kept, permuted = (kept_units(tfopt.prune(m, pattern="channel", sparsity=0.5)) for m in (model, other))
    assert sorted(order[permuted].tolist()) == kept


@tfopt.register_layer(channels="same")
class Gain(keras.layers.Layer):
    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain + 1.0


class Unknown(keras.layers.Layer):
    def call(self, x):
        return keras.ops.sort(x)


def with_layer(layer):
    inputs = keras.Input((4,))
    x = kl.Dense(8, name="b")(layer(kl.Dense(8, name="a")(inputs)))
    return keras.Model(inputs, kl.Dense(2, name="c")(x))


def test_users_layers_join_by_the_decorator():
    pruned = tfopt.prune(with_layer(Gain(name="gain")), pattern="channel", sparsity=0.5)
    small = assert_shrinks_exactly(pruned, np.ones((3, 4), "float32"))
    assert small.get_layer("gain").gain.shape == (4,)


def test_what_cannot_go_is_named_with_the_reason():
    with pytest.warns(UserWarning, match="'a' .read by 'unknown/sort.*': tfopt does not know Sort"):
        pruned = tfopt.prune(with_layer(Unknown(name="unknown")), pattern="channel", sparsity=0.5)
    assert [layer.units for layer in tfopt.shrink(pruned).layers if isinstance(layer, kl.Dense)] == [8, 4, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pattern": "channel", "sparsity": 0.5, "to_macs": 0.5}, "exclude each other"),
        ({"pattern": "channel", "to_macs": 0.5, "to_params": 0.5}, "exclude each other"),
        ({"pattern": "channel", "to_macs": 1.5}, "above 0 and below 1"),
        ({"pattern": "channel", "to_macs": 1e-4}, "within reach"),
        ({"pattern": "channel", "round_to": 0}, "at least 1"),
        ({"round_to": 8}, "for whole channels"),
        ({"to_macs": 0.5}, "for whole channels"),
        ({"pattern": "channel", "include": "nothing"}, "must fit a layer"),
        ({"pattern": "channel", "criterion": "taylor"}, "data"),
        ({"pattern": "channel", "criterion": "bn_scale"}, "batch normalization"),
        ({"pattern": "layer", "min_kept": 0.1}, "whole blocks"),
    ],
)
def test_errors(options, words):
    with pytest.raises(tfopt.InvalidArgumentError, match=words):
        tfopt.prune(zoo.build("sequential"), **options)


def test_nothing_to_do():
    model = zoo.build("sequential")
    with pytest.raises(tfopt.NothingToDoError, match="output channels can go"):
        tfopt.prune(model, pattern="channel", include="probabilities")
    with pytest.raises(tfopt.NothingToDoError, match="'probabilities' .an output of the model"):
        tfopt.shrink(model)
    with pytest.raises(tfopt.UnsupportedModelError, match="before it is quantized"):
        tfopt.shrink(tfopt.quantize(model))


class Sorted(kl.ReLU):
    def call(self, inputs):
        return super().call(keras.ops.sort(inputs, -1))


def softplus(x):
    return x / (1.0 + keras.ops.sum(keras.ops.abs(x), -1, keepdims=True))


def relu(x):
    return keras.ops.maximum(x, 0.0) + keras.ops.minimum(x, 0.0) * 0.3


def hidden_then(layer):
    return keras.Sequential([keras.Input((4,)), kl.Dense(6, name="hidden"), layer, kl.Dense(2, name="head")])


@pytest.mark.parametrize(
    ("own", "reason"), [(Sorted(), "tfopt does not know Sort"), (kl.Activation(softplus), "'softplus' mixes them")]
)
def test_channels_stop_at_what_is_the_users_own_and_may_mix_them(own, reason):
    with pytest.raises(tfopt.NothingToDoError, match=reason):
        tfopt.prune(hidden_then(own), pattern="channel", sparsity=0.5)


def test_channels_pass_an_own_function_of_single_values():
    pruned = tfopt.prune(hidden_then(kl.Activation(relu)), pattern="channel", sparsity=0.5)
    small = assert_shrinks_exactly(pruned, np.random.default_rng(0).normal(size=(8, 4)))
    assert small.get_layer("hidden").units == 3


def test_channels_stay_in_a_layer_whose_own_activation_mixes_them():
    layers = [kl.Dense(6, activation=softplus, name="hidden"), kl.Dense(2, name="head")]
    with pytest.raises(tfopt.NothingToDoError, match="the softplus of 'hidden' mixes them"):
        tfopt.prune(keras.Sequential([keras.Input((4,)), *layers]), pattern="channel", sparsity=0.5)


def test_frozen_weights_follow_a_growing_mask():
    """The optimizer does not call the constraints of a frozen batch normalization; its group is pruned all the same."""
    inputs = keras.Input((6,))
    hidden = kl.BatchNormalization(name="norm", trainable=False)(kl.Dense(8, name="hidden")(inputs))
    model = keras.Model(inputs, kl.Dense(2, name="head")(hidden))
    model.get_layer("norm").beta.assign(np.ones(8))
    pruned = tfopt.prune(model, tfopt.PolynomialDecay(0, 0.5, 0, 4, frequency=1), pattern="channel")
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    pruned.compile("sgd", "mse")
    pruned.fit(x, x[:, :2], batch_size=8, epochs=2, verbose=0)
    gone = ~pruned.get_layer("hidden").kernel.numpy().any(0)
    assert gone.sum() == 4
    np.testing.assert_array_equal(pruned.get_layer("norm").gamma.numpy() == 0, gone)
    np.testing.assert_array_equal(pruned.get_layer("norm").beta.numpy() == 0, gone)
    assert assert_shrinks_exactly(pruned, x).get_layer("hidden").units == 4


def test_a_resume_before_the_schedule_begins_prunes_nothing():
    pruned = tfopt.prune(mlp(), tfopt.PolynomialDecay(0.5, 0.75, 100, 200, frequency=1), pattern="channel")
    pruned.compile("sgd", "mse")
    pruned.optimizer.iterations.assign(50)
    pruned.fit(np.ones((4, 4)), np.ones((4, 2)), batch_size=2, verbose=0)
    assert kept_units(pruned) == [0, 1, 2, 3, 4, 5]
    pruned.optimizer.iterations.assign(150)
    pruned.fit(np.ones((4, 4)), np.ones((4, 2)), batch_size=2, verbose=0)
    assert len(kept_units(pruned)) == 2  # 1 - (0.75 - 0.25 * 0.49 ** 3) = 0.279 of 6


def test_a_dead_channel_goes_before_those_of_a_negative_score():
    kernel = np.array([[1, -5, 0, 4, -3, 6]] * 4, "float32")
    model = mlp(kernel)
    model.get_layer("head").kernel.assign(np.where(np.arange(6)[:, None] == 2, 0.0, np.ones((6, 2))))
    pruned = tfopt.prune(model, pattern="channel", sparsity=0.5, criterion=lambda weights: -abs(weights))
    assert kept_units(pruned) == [0, 3, 4]
