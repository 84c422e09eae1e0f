import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import zoo
from classifier import DATA, LABELS, dense_net, kernels, train, zeros
from keras import layers as kl

import tfopt


def distinct(model):
    return {path: len(np.unique(w.numpy())) for path, w in kernels(model).items()}


def groups(kernel):
    """For each weight the first place of an equal one: says which are equal."""
    return np.unique(kernel.numpy(), return_inverse=True)[1].ravel()


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_kernel_holds_n_values_also_after_fit_and_the_input_is_left_alone(name):
    model = zoo.build(name)
    before, x = zoo.state(model), zoo.inputs_for(model)
    clustered = tfopt.cluster(model, 6)
    assert set(distinct(clustered).values()) == {6}
    start = {path: (w.numpy().copy(), groups(w)) for path, w in kernels(clustered).items()}
    zoo.fit(clustered, x)
    for path, kernel in kernels(clustered).items():
        values, same = start[path]
        assert np.unique([groups(kernel), same], axis=1).shape == (2, 6)  # the same weights are equal
        assert not np.array_equal(values, kernel.numpy())  # and they were trained
    assert set(distinct(tfopt.strip(clustered)).values()) == {6}
    for kept, now in zip(before, zoo.state(model), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_sgd_step_by_hand():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[1.0], [1.2], [-1.0], [-1.4]])
    clustered = tfopt.cluster(model, 2)
    np.testing.assert_allclose(clustered.layers[0].kernel.numpy().ravel(), [1.1, 1.1, -1.2, -1.2], rtol=1e-6)
    clustered.compile(keras.optimizers.SGD(0.1), loss=lambda y, output: output)
    clustered.fit(np.array([[1.0, 2.0, 3.0, 6.0]]), np.zeros((1, 1)), verbose=0)
    # The gradient of each weight is its input: means 1.5 and 4.5.
    np.testing.assert_allclose(clustered.layers[0].kernel.numpy().ravel(), [0.95, 0.95, -1.65, -1.65], rtol=1e-6)


def test_sgd_step_of_tfmot():
    from tfopt.interop.tfmot import tfmot

    api = tfmot().clustering.keras
    import tf_keras
    from tensorflow_model_optimization.python.core.clustering.keras.cluster_config import GradientAggregation

    model = dense_net()
    weights = [np.random.default_rng(3).normal(0, 0.5, w.shape).astype("float32") for w in model.get_weights()]
    model.set_weights(weights)
    theirs = tf_keras.Sequential(
        [tf_keras.layers.Dense(32, "relu", input_shape=(12,), name="a"), tf_keras.layers.Dense(3, name="b")]
    )
    theirs.set_weights(weights)
    theirs = api.cluster_weights(
        theirs, 8, api.CentroidInitialization.LINEAR, cluster_gradient_aggregation=GradientAggregation.AVG
    )
    theirs.compile(tf_keras.optimizers.SGD(0.1), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ours = tfopt.cluster(model, 8, init="linear")
    ours.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = [float(model.train_on_batch(DATA, LABELS)) for model in (theirs, ours)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for layer, wrapper, kernel in zip(ours.layers, theirs.layers, weights[::2], strict=True):
        start = np.linspace(kernel.min(), kernel.max(), 8)
        places = np.abs(kernel[..., None] - start).argmin(-1)
        moved = wrapper.cluster_centroids["kernel"].numpy()
        np.testing.assert_allclose(layer.kernel.numpy(), moved[places], atol=2e-6)
        assert np.abs(moved - start).max() > 1e-3


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
    "ema": lambda: keras.optimizers.Adam(1e-2, use_ema=True),
    "ema_overwrite": lambda: keras.optimizers.Adam(1e-2, use_ema=True, ema_overwrite_frequency=3),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)),
    "accumulation": lambda: keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2),
}
OPTIONS = {
    "compiled": ({"jit_compile": True}, None),
    "several steps": ({"steps_per_execution": 4}, None),
    "eager": ({"run_eagerly": True}, None),
    "mixed": ({"jit_compile": True}, "mixed_float16"),
    "half": ({}, "float16"),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_keeps_masks_and_clusters(optimizer):
    pruned = tfopt.prune(dense_net(), sparsity=0.75)
    clustered = tfopt.cluster(pruned, 5)
    train(clustered, OPTIMIZERS[optimizer](), epochs=1)
    assert distinct(clustered) == {"a/kernel": 5, "b/kernel": 5}
    for path, kernel in kernels(pruned).items():
        assert (kernels(clustered)[path].numpy()[kernel.numpy() == 0] == 0).all()


@pytest.mark.parametrize("option", OPTIONS)
def test_every_compile_option_keeps_masks_and_clusters(option):
    options, dtype = OPTIONS[option]
    pruned = tfopt.prune(dense_net(dtype), sparsity=0.75)
    clustered = tfopt.cluster(pruned, 5, per_channel=True)
    train(clustered, epochs=1, **options)
    assert distinct(clustered) == {"a/kernel": 5, "b/kernel": 5}
    assert all(zeros(clustered)[path] >= count for path, count in zeros(pruned).items())


def test_distributed_over_two_replicas():
    script = """
        import keras, numpy as np, tensorflow as tf, tfopt
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])
            clustered = tfopt.cluster(tfopt.prune(model, sparsity=0.75), 4)
            quantized = tfopt.quantize(clustered)
            for m in (clustered, quantized):
                m.compile(keras.optimizers.Adam(1e-2), "mse")
        x = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
        before = clustered.layers[0].kernel.numpy()
        for m in (clustered, quantized):
            m.fit(x, x[:, :1], batch_size=8, verbose=0)
        layers = [*clustered.layers, *(layer.layer for layer in quantized.layers[1:])]
        print(*(len(np.unique(layer.kernel.numpy())) for layer in layers))
        print(int((layers[0].kernel.numpy() == 0).sum()) >= 288, np.abs(layers[0].kernel.numpy() - before).max() > 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["4", "4", "4", "4", "True", "True"]


def test_zero_is_kept_where_there_are_zeros():
    model = dense_net()
    sparse = np.where(np.random.default_rng(2).random((12, 32)) < 0.8, 0.0, model.layers[0].kernel.numpy())
    model.layers[0].kernel.assign(sparse)
    clustered = tfopt.cluster(model, 8)  # no mask: the zeros themselves say it
    train(clustered)
    assert (clustered.layers[0].kernel.numpy()[sparse == 0] == 0).all()
    assert distinct(clustered) == {"a/kernel": 8, "b/kernel": 8}
    assert zeros(clustered)["b/kernel"] == 0
    model.layers[0].kernel.assign(np.where(np.arange(32) == 3, 0.0, 0.01 + np.abs(sparse)))
    assert zeros(tfopt.cluster(model, 8))["a/kernel"] == 0  # 12 zeros of 384 are no cluster


@pytest.mark.parametrize("order", ["prune first", "cluster first"])
def test_a_growing_mask_and_clusters(order):
    schedule = tfopt.PolynomialDecay(0.0, 0.8, 0, 8, frequency=2)
    if order == "prune first":
        model = tfopt.cluster(tfopt.prune(dense_net(), schedule), 8)
    else:
        model = tfopt.prune(tfopt.cluster(dense_net(), 8), schedule)
    train(model)
    assert zeros(model)["a/kernel"] >= 307
    assert max(distinct(model).values()) <= (8 if order == "prune first" else 9)
    assert min(distinct(model).values()) >= 3  # the mask takes the clusters around zero


def test_channel_masks_and_clusters():
    model = zoo.build("sequential")
    pruned = tfopt.prune(model, pattern="channel", sparsity=0.5, include="hidden")
    clustered = tfopt.cluster(pruned, 5)
    zoo.fit(clustered, zoo.inputs_for(model))
    assert zeros(clustered)["hidden/kernel"] >= zeros(pruned)["hidden/kernel"] > 0
    assert distinct(clustered)["hidden/kernel"] == 5
    assert [layer.units for layer in tfopt.shrink(tfopt.strip(clustered)).layers if hasattr(layer, "units")] == [3, 3]


def test_per_channel():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            kl.Conv2D(4, 3, name="conv"),
            kl.Conv2DTranspose(3, 3, name="transposed"),
            kl.Flatten(),
            kl.Dense(5, name="dense"),
        ]
    )
    clustered = tfopt.cluster(model, 4, per_channel=True)
    zoo.fit(clustered, zoo.inputs_for(model))
    by_layer = {path: w.numpy() for path, w in kernels(clustered).items()}
    assert [len(np.unique(channel)) for channel in np.moveaxis(by_layer["conv/kernel"], -1, 0)] == [4] * 4
    assert [len(np.unique(channel)) for channel in np.moveaxis(by_layer["transposed/kernel"], -2, 0)] == [4] * 3
    assert (len(np.unique(by_layer["conv/kernel"])), len(np.unique(by_layer["dense/kernel"]))) == (16, 4)


def test_a_dict_chooses_layers():
    model = zoo.build("nested")
    found = distinct(tfopt.cluster(model, {"first": 3, "*/inner": 7, "head/*/inner": 5}))
    assert (found["first/kernel"], found["block/inner/kernel"], found["head/deep/inner/kernel"]) == (3, 7, 5)
    assert found["head/out/kernel"] == 24
    chosen = distinct(tfopt.cluster(model, 4, include="head", exclude="*/inner"))
    assert [path for path, count in chosen.items() if count == 4] == ["head/out/kernel"]


def test_saved_model_is_plain_keras_and_clustering_it_again_keeps_the_clusters(tmp_path):
    clustered = tfopt.cluster(tfopt.prune(dense_net(), sparsity=0.75), 6)
    train(clustered)
    clustered.save(tmp_path / "c.keras")
    plain = keras.models.load_model(tmp_path / "c.keras")
    again = tfopt.cluster(tfopt.prune(plain, sparsity="keep"), 6)
    for one, other in zip(clustered.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for model in (clustered, again):
        train(model, keras.optimizers.SGD(0.01), epochs=1)
    for one, other in zip(clustered.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", ["dense", "sparse", "channels"])
def test_weights_from_elsewhere_bring_their_clusters(kind):
    def build(seed):
        keras.utils.set_random_seed(seed)
        if kind == "channels":
            layers = [kl.Reshape((3, 4, 1)), kl.Conv2D(4, (3, 4), name="a"), kl.Flatten(), kl.Dense(3)]
            return tfopt.cluster(keras.Sequential([keras.Input((12,)), *layers]), 3, per_channel=True)
        return tfopt.cluster(tfopt.prune(dense_net(), sparsity=0.6) if kind == "sparse" else dense_net(), 7)

    trained, fresh = build(1), build(2)
    train(trained)
    fresh.set_weights(trained.get_weights())
    if kind == "sparse":  # a mask is taken over by `sparsity="keep"`
        fresh = tfopt.cluster(tfopt.prune(tfopt.strip(fresh), sparsity="keep"), 7)
    for model in (trained, fresh):
        train(model, keras.optimizers.SGD(1e-3), epochs=1)
    for one, other in zip(trained.get_weights(), fresh.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    kernel = fresh.get_layer("a").kernel.numpy()
    assert len(np.unique(kernel)) == (12 if kind == "channels" else 7)


def test_without_gradient_nothing_drifts():
    clustered = tfopt.cluster(dense_net(), 5)
    before = clustered.get_weights()
    train(clustered, keras.optimizers.SGD(0.0))
    for old, new in zip(before, clustered.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_own_constraint_stays_and_strip_lets_go():
    model = keras.Sequential([keras.Input((12,)), kl.Dense(8, kernel_constraint="non_neg"), kl.Dense(3)])
    clustered = tfopt.cluster(model, 4)
    train(clustered, keras.optimizers.SGD(0.5))
    assert clustered.layers[0].kernel.numpy().min() >= 0 > model.layers[0].kernel.numpy().min()
    plain = tfopt.strip(clustered)
    assert isinstance(plain.layers[0].kernel.constraint, keras.constraints.NonNeg)
    train(plain)
    assert len(np.unique(plain.layers[1].kernel.numpy())) > 4
    with pytest.raises(tfopt.NothingToDoError):
        tfopt.strip(plain)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"n_clusters": 1}, tfopt.InvalidArgumentError, "at least 2.*1"),
        ({"n_clusters": 2.0}, tfopt.InvalidArgumentError, "2.0"),
        ({"n_clusters": True}, tfopt.InvalidArgumentError, "True"),
        ({"n_clusters": {}}, tfopt.InvalidArgumentError, "at least one layer"),
        ({"n_clusters": {"a": 0}}, tfopt.InvalidArgumentError, "0"),
        ({"n_clusters": {"nope": 4}}, tfopt.InvalidArgumentError, "'nope'.*a, b"),
        ({"init": "kmeans"}, tfopt.InvalidArgumentError, "kmeans\\+\\+.*'kmeans'"),
        ({"per_channel": 1}, tfopt.InvalidArgumentError, "per_channel"),
        ({"include": "nope"}, tfopt.InvalidArgumentError, "'nope'"),
        ({"exclude": ["a", "b"]}, tfopt.NothingToDoError, "exclude"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, says):
    with pytest.raises(error, match=says):
        tfopt.cluster(dense_net(), **arguments)


def test_models_that_cannot_be_clustered():
    model = dense_net()
    clustered = tfopt.cluster(model, 4, include="a")
    assert distinct(tfopt.cluster(clustered, 4, include="b")) == {"a/kernel": 4, "b/kernel": 4}
    with pytest.raises(tfopt.NothingToDoError, match="clusters on .*a/kernel.*strip"):
        tfopt.cluster(clustered, 4)
    with pytest.raises(tfopt.UnsupportedModelError, match="before it is quantized"):
        tfopt.cluster(tfopt.quantize(model), 4)
    with pytest.raises(tfopt.NothingToDoError, match="ReLU"):
        tfopt.cluster(keras.Sequential([keras.Input((3,)), kl.ReLU()]))
    with pytest.raises(tfopt.UnsupportedModelError):
        tfopt.cluster(keras.Sequential([kl.Dense(3)]))
    model.layers[1].bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(tfopt.NonFiniteError, match="b/bias"):
        tfopt.cluster(model)


class Foreign(kl.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 4), name="matrix")

    def call(self, x):
        return x @ self.matrix


def test_unknown_layers_are_named():
    with pytest.warns(UserWarning, match="'mine' \\(Foreign\\)"):
        tfopt.cluster(keras.Sequential([keras.Input((8,)), Foreign(name="mine"), kl.Dense(4)]), 4)
