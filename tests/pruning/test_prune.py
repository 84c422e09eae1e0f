import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from classifier import DATA, LABELS, dense_net, kernels, train, zeros
from keras import layers as kl

import tfopt


def expected_zeros(model, sparsity):
    return {path: w.numpy().size - max(1, round(w.numpy().size * (1 - sparsity))) for path, w in kernels(model).items()}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_one_shot_is_exact_holds_in_fit_and_leaves_the_input_alone(name):
    model = zoo.build(name)
    before, x = zoo.state(model), zoo.inputs_for(model)
    pruned = tfopt.prune(model, sparsity=0.7)
    assert zeros(pruned) == expected_zeros(model, 0.7)
    values = {path: w.numpy().copy() for path, w in kernels(pruned).items()}
    zoo.fit(pruned, x, epochs=2)
    assert zeros(pruned) == expected_zeros(model, 0.7)
    assert all((values[p] == 0).tolist() == (w.numpy() == 0).tolist() for p, w in kernels(pruned).items())
    assert any(not np.array_equal(values[p], w.numpy()) for p, w in kernels(pruned).items())
    for kept, now in zip(before, zoo.state(model), strict=True):
        np.testing.assert_array_equal(kept, now)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
    "ema": lambda: keras.optimizers.Adam(1e-2, use_ema=True),
    "ema_overwrite": lambda: keras.optimizers.Adam(1e-2, use_ema=True, ema_overwrite_frequency=3),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)),
    "clip": lambda: keras.optimizers.Adam(1e-2, global_clipnorm=0.1),
    "accumulation": lambda: keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["held", "scheduled"])
def test_every_optimizer_ends_exact(optimizer, kind):
    schedule = tfopt.PolynomialDecay(0.0, 0.8, 0, 8, frequency=2) if kind == "scheduled" else None
    pruned = tfopt.prune(dense_net(), schedule, sparsity=None if schedule else 0.8)
    train(pruned, OPTIMIZERS[optimizer]())
    assert zeros(pruned) == expected_zeros(dense_net(), 0.8)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"jit_compile": True}, None),
        ({"steps_per_execution": 4}, None),
        ({"run_eagerly": True}, None),
        ({}, "mixed_float16"),
        ({"jit_compile": True}, "mixed_float16"),
        ({"jit_compile": True, "steps_per_execution": 4}, None),
    ],
    ids=str,
)
def test_every_compile_option_ends_exact(options, dtype):
    pruned = tfopt.prune(dense_net(dtype), tfopt.PolynomialDecay(0.0, 0.8, 0, 8, frequency=2))
    train(pruned, **options)
    assert zeros(pruned) == expected_zeros(dense_net(), 0.8)


def test_distributed_over_two_replicas():
    script = """
        import keras, numpy as np, tensorflow as tf, tfopt
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])
            pruned = tfopt.prune(model, tfopt.PolynomialDecay(0.0, 0.75, 0, 6, frequency=2))
            quantized = tfopt.quantize(pruned)
            for m in (pruned, quantized):
                m.compile(keras.optimizers.Adam(1e-2), "mse")
        x = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
        pruned.fit(x, x[:, :1], batch_size=8, verbose=0)
        quantized.fit(x, x[:, :1], batch_size=8, verbose=0)
        for layer in pruned.layers:
            print(int((layer.kernel.numpy() == 0).sum()))
        for layer in quantized.layers[1:]:
            print(int((layer.layer.kernel.numpy() == 0).sum()))
    """
    assert run(script).split() == ["288", "24", "288", "24"]


def test_schedule_prunes_at_the_steps_and_amounts_of_tfmot():
    pruned = tfopt.prune(dense_net(), tfopt.PolynomialDecay(0.2, 0.8, 2, 10, power=3, frequency=4))
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(int((pruned.layers[0].kernel.numpy() == 0).sum()))

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    pruned.compile(keras.optimizers.Adam(1e-2), loss)
    assert zeros(pruned)["a/kernel"] == 0
    pruned.fit(DATA, LABELS, batch_size=8, epochs=2, verbose=0, callbacks=[Watch()])
    size = 12 * 32
    amounts = {step: 0.8 + (0.2 - 0.8) * (1 - (step - 2) / 8) ** 3 for step in (2, 6, 10)}
    counts = {step: size - round(size * (1 - amount)) for step, amount in amounts.items()}
    assert seen == [0] + [counts[2]] * 4 + [counts[6]] * 4 + [counts[10]] * 7


def test_masks_equal_tfmots():
    from tfopt.interop.tfmot import tfmot

    tfmot()
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

    weights = np.random.default_rng(5).normal(size=(3, 3, 7, 11)).astype("float32")
    model = keras.Sequential([keras.Input((8, 8, 7)), kl.Conv2D(11, 3, name="c")])
    model.layers[0].kernel.assign(weights)
    for sparsity in (0.1, 0.5, 0.8, 0.97):
        schedule = tfopt.ConstantSparsity(sparsity, begin_step=0)
        theirs = pruning_impl.Pruning(lambda: tf.constant(0), [], schedule, (1, 1), "AVG")
        _, mask = theirs._update_mask(tf.constant(weights))
        ours = tfopt.prune(model, schedule).layers[0].kernel.numpy() != 0
        np.testing.assert_array_equal(ours, mask.numpy().astype(bool))
        one_shot = tfopt.prune(model, sparsity=sparsity).layers[0].kernel.numpy() != 0
        np.testing.assert_array_equal(one_shot, ours)


def test_own_schedule_and_constant_kernel():
    model = dense_net()
    model.layers[0].kernel.assign(np.full((12, 32), 0.5))
    assert zeros(tfopt.prune(model, sparsity=0.5))["a/kernel"] == 192
    pruned = tfopt.prune(model, lambda step: (step == 3, 0.25 + 0.0 * tf.cast(step, tf.float32)))
    train(pruned, epochs=1)
    assert zeros(pruned) == {"a/kernel": 96, "b/kernel": 24}


def test_compiling_again_never_makes_it_denser():
    pruned = tfopt.prune(dense_net(), tfopt.PolynomialDecay(0.0, 0.8, 0, 8, frequency=1))
    train(pruned)
    mask = pruned.layers[0].kernel.numpy() != 0
    train(pruned, epochs=1)
    np.testing.assert_array_equal(pruned.layers[0].kernel.numpy() != 0, mask)


def test_saved_model_is_plain_keras_and_keep_holds_its_zeros(tmp_path):
    pruned = tfopt.prune(dense_net(), sparsity=0.8)
    train(pruned)
    pruned.save(tmp_path / "p.keras")
    script = f"""
        import sys, keras
        model = keras.models.load_model({str(tmp_path / "p.keras")!r})
        print(int((model.layers[0].kernel.numpy() == 0).sum()), "tfopt" in sys.modules)
    """
    assert run(script).split() == [str(zeros(pruned)["a/kernel"]), "False"]
    loaded = tfopt.load_model(tmp_path / "p.keras")
    kept = tfopt.prune(loaded, sparsity="keep")
    train(kept)
    assert zeros(kept) == zeros(pruned)
    with pytest.raises(tfopt.NothingToDoError, match="without a zero"):
        tfopt.prune(dense_net(), sparsity="keep")


def test_strip_lets_go():
    pruned = tfopt.prune(dense_net(), sparsity=0.8)
    plain = tfopt.strip(pruned)
    assert zeros(plain) == zeros(pruned)
    train(plain)
    assert sum(zeros(plain).values()) < 0.2 * sum(zeros(pruned).values())  # those left belong to dead units
    train(pruned)
    assert zeros(pruned) == expected_zeros(dense_net(), 0.8)
    with pytest.raises(tfopt.NothingToDoError):
        tfopt.strip(plain)


def test_layers_are_chosen_by_name_glob_and_path():
    model = zoo.build("nested")
    assert [p for p, n in zeros(tfopt.prune(model, include="first")).items() if n] == ["first/kernel"]
    inner = zeros(tfopt.prune(model, include="head/*"))
    assert {p for p, n in inner.items() if n} >= {"head/out/kernel"}
    assert inner["first/kernel"] == 0
    assert zeros(tfopt.prune(model, exclude="*/inner"))["first/kernel"] == 20
    dictionary = zeros(tfopt.prune(model, sparsity={"first": 0.25, "*/out": 0.75}))
    assert (dictionary["first/kernel"], dictionary["head/out/kernel"]) == (10, 18)


def test_custom_training_loop():
    pruned = tfopt.prune(dense_net(), tfopt.PolynomialDecay(0.0, 0.8, 0, 4, frequency=1))
    optimizer = keras.optimizers.Adam(1e-2)
    for _ in range(5):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(pruned(DATA) ** 2)
        optimizer.apply(tape.gradient(loss, pruned.trainable_variables), pruned.trainable_variables)
    assert zeros(pruned) == expected_zeros(dense_net(), 0.8)


@tfopt.register_layer(prunable=("matrix",))
class Known(kl.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 4), name="matrix")

    def call(self, x):
        return x @ self.matrix


class Unknown(Known):
    pass


class Foreign(kl.Layer):
    build, call = Known.build, Known.call


def test_own_layers_join_and_unknown_ones_are_named():
    model = keras.Sequential([keras.Input((8,)), Known(), Unknown()])
    assert list(zeros(tfopt.prune(model, sparsity=0.5)).values()) == [16, 8]
    foreign = keras.Sequential([keras.Input((8,)), Foreign(name="mine"), kl.Dense(1)])
    with pytest.warns(UserWarning, match="'mine' \\(Foreign\\)"):
        tfopt.prune(foreign)


def test_a_frozen_layer_is_named():
    model = dense_net()
    model.layers[0].trainable = False
    with pytest.warns(UserWarning, match="frozen"):
        tfopt.prune(model)


@pytest.mark.parametrize("sparsity", [-0.1, 0.0, 1.0, 1.5, "a", True, float("nan"), {"a": 1.0}, {}, [0.5]])
def test_bad_sparsity(sparsity):
    model = dense_net()
    before = zoo.state(model)
    with pytest.raises(tfopt.InvalidArgumentError, match="sparsity"):
        tfopt.prune(model, sparsity=sparsity)
    assert all(np.array_equal(a, b) for a, b in zip(before, zoo.state(model), strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"include": "nope"}, tfopt.InvalidArgumentError, "'nope'.*a, b"),
        ({"exclude": 3}, tfopt.InvalidArgumentError, "exclude"),
        ({"exclude": ["a", "b"]}, tfopt.NothingToDoError, "exclude"),
        ({"sparsity": {"nope": 0.5}}, tfopt.InvalidArgumentError, "'nope'"),
        ({"schedule": 3}, tfopt.InvalidArgumentError, "PolynomialDecay"),
        ({"schedule": lambda step: 0.5 if step > 3 else 0.1}, tfopt.InvalidArgumentError, "tensor"),
        ({"schedule": lambda step: (True, 1.0)}, tfopt.InvalidArgumentError, "\\[0, 1\\)"),
        ({"schedule": lambda step: (True, 0.5), "sparsity": 0.5}, tfopt.InvalidArgumentError, "exclude each other"),
    ],
    ids=["include", "exclude", "all excluded", "dict", "number", "python if", "too sparse", "both"],
)
def test_bad_arguments(arguments, error, says):
    with pytest.raises(error, match=says):
        tfopt.prune(dense_net(), **arguments)


def test_nothing_to_prune_and_nan():
    with pytest.raises(tfopt.NothingToDoError, match="ReLU"):
        tfopt.prune(keras.Sequential([keras.Input((3,)), kl.ReLU()]))
    model = dense_net()
    model.layers[1].bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(tfopt.NonFiniteError, match="b/bias"):
        tfopt.prune(model)


RESUMED = """
    import os, signal, sys
    import keras, numpy as np, tfopt
    keras.utils.set_random_seed(int(sys.argv[2]))
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(3)])
    amount = tfopt.PolynomialDecay(0.0, 0.8, 0, 20, frequency=4) if sys.argv[3] == "schedule" else None
    pruned = tfopt.prune(model, amount, sparsity=None if amount else 0.8)
    pruned.compile(keras.optimizers.Adam(1e-2), "mse")
    x = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(pruned.optimizer.iterations.numpy()) == int(sys.argv[4]):
                os.kill(os.getpid(), signal.SIGKILL)

    backup = keras.callbacks.BackupAndRestore(sys.argv[1], save_freq=3)
    pruned.fit(x, x[:, :3], batch_size=8, epochs=5, verbose=0, callbacks=[backup, Kill()])
    print([int((layer.kernel.numpy() == 0).sum()) for layer in pruned.layers])
"""


@pytest.mark.parametrize(("kind", "killed_at"), [("schedule", 13), ("schedule", 30), ("held", 13)])
def test_killed_in_an_epoch_and_run_again(kind, killed_at, tmp_path):
    path = str(tmp_path / "backup")
    killed = start(RESUMED, path, "1", kind, str(killed_at))
    assert killed.returncode == -signal.SIGKILL
    # Other initial weights the second time: what counts is what was backed up.
    assert run(RESUMED, path, "2", kind, "-1").strip() == "[307, 77]"


def start(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=300,
    )


def run(script, *arguments):
    done = start(script, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
