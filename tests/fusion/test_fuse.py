"""`fuse`: one model that computes what its parts compute, the article's networks, and what becomes of it."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers as kl

import tfopt
from tfopt.core.keras_internals import functional_of
from tfopt.demo import load_digits
from tfopt.fusion import ParallelFusion, StackedFusion, VotingFusion

X = np.random.default_rng(0).normal(size=(8, 12)).astype("float32")


def net(units=8, classes=4, activation="softmax", name="net", seed=None):
    keras.utils.set_random_seed(units if seed is None else seed)
    head = kl.Dense(classes, activation, bias_initializer="random_normal", name="head")
    return keras.Sequential([keras.Input((12,)), kl.Dense(units, "relu", name="hidden"), head], name=name)


def outputs(model, x=X):
    return np.asarray(model(x, training=False))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


NETS = [net(4), net(8), net(16)]
LOGITS = [net(units, activation=None) for units in (4, 8, 16)]


@pytest.mark.parametrize("models", [NETS, LOGITS], ids=["probabilities", "logits"])
@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({}, lambda o: np.mean(o, 0)),
        ({"how": "mean"}, lambda o: np.mean(o, 0)),
        ({"combine": "max"}, lambda o: np.max(o, 0)),
        ({"how": "concat"}, lambda o: np.concatenate(o, -1)),
        ({"weights": [0.5, 0.2, 0.3]}, lambda o: np.average(o, 0, [0.5, 0.2, 0.3])),
        ({"how": "weighted", "weights": [0.0, 0.2, 0.8]}, lambda o: np.average(o, 0, [0.0, 0.2, 0.8])),
        ({"how": "weighted", "weights": "learned"}, lambda o: np.mean(o, 0)),
    ],
)
def test_outputs_are_combined_as_they_are(models, options, oracle):
    expected = oracle([outputs(model) for model in models])
    np.testing.assert_allclose(outputs(tfopt.fuse(models, **options)), expected, atol=1e-6)


@pytest.mark.parametrize("models", [NETS, LOGITS], ids=["probabilities", "logits"])
def test_votes_and_products_are_of_probabilities(models):
    given = [outputs(model) for model in models]
    p = given if models is NETS else [softmax(z) for z in given]
    np.testing.assert_allclose(outputs(tfopt.fuse(models, "vote")), np.mean(p, 0), atol=1e-6)
    product = np.prod(np.array(p, "float64"), 0)
    expected = product / product.sum(-1, keepdims=True)
    np.testing.assert_allclose(outputs(tfopt.fuse(models, "product")), expected, rtol=1e-4)
    votes = sum(np.eye(4)[x.argmax(-1)] * w for x, w in zip(p, (0.5, 0.25, 0.25), strict=True))
    hard = tfopt.fuse(models, "vote", kind="hard", weights=[0.5, 0.25, 0.25])
    np.testing.assert_allclose(outputs(hard), votes, atol=1e-6)


def test_votes_of_sigmoids():
    models = [net(units, 3, "sigmoid") for units in (4, 8)]
    p = [outputs(model) for model in models]
    np.testing.assert_allclose(outputs(tfopt.fuse(models, "vote")), np.mean(p, 0), atol=1e-6)
    np.testing.assert_allclose(outputs(tfopt.fuse(models, "vote", kind="hard")), np.mean(np.array(p) > 0.5, 0))
    yes, no = np.prod(p, 0), np.prod(1 - np.array(p), 0)
    np.testing.assert_allclose(outputs(tfopt.fuse(models, "product")), yes / (yes + no), rtol=1e-4)


def test_regression():
    models = [net(units, 1, None) for units in (4, 8)]
    expected = np.mean([outputs(model) for model in models], 0)
    np.testing.assert_allclose(outputs(tfopt.fuse(models)), expected, atol=1e-6)
    with pytest.raises(tfopt.InvalidArgumentError, match="must answer with a class"):
        tfopt.fuse(models, "vote")
    with pytest.raises(tfopt.InvalidArgumentError, match="must answer with a class"):
        tfopt.fuse(models, "product")


@pytest.mark.parametrize("combine", ["chain", "concat"])
def test_serial(combine):
    first, second = net(4, classes=6, name="first"), net(8, name="second")
    fused = tfopt.fuse([first, second], "serial", combine=combine)
    given = outputs(first)
    given = given if combine == "chain" else np.concatenate([X, given], -1)
    projected = given @ fused.get_layer("stage_1_projection").kernel.numpy()
    np.testing.assert_allclose(outputs(fused), outputs(second, projected), atol=1e-6)


def test_stacked_and_gated_heads_are_trained_and_branches_are_not():
    y = np.arange(8) % 4
    for how, trained in (("stacked", 4), ("gated", 2)):
        fused = tfopt.fuse(NETS, how)
        before = [weight.numpy().copy() for weight in fused.weights]
        fused.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
        fused.fit(X, y, verbose=0)
        moved = [
            weight.path
            for weight, old in zip(fused.weights, before, strict=True)
            if not np.array_equal(weight.numpy(), old)
        ]
        assert len(moved) == trained
        assert all("net" not in path for path in moved)
        np.testing.assert_allclose(outputs(fused).sum(-1), 1, atol=1e-5)  # stacked probabilities are some again


def test_trainable_branches_keep_their_own_frozen_layers():
    models = [net(4), net(8)]
    models[0].layers[0].trainable = False
    fused = tfopt.fuse(models, trainable=True)
    assert len(fused.trainable_weights) == 6
    assert len(tfopt.fuse(models).trainable_weights) == 0


def test_input_models_are_left_alone():
    models = [zoo.build("residual"), zoo.build("residual")]
    states = [zoo.state(model) for model in models]
    nodes = [len(layer._inbound_nodes) for model in models for layer in model.layers]
    fused = tfopt.fuse(models, "stacked", trainable=True)
    zoo.fit(fused, zoo.inputs_for(fused, 4), run_eagerly=True)
    assert [model.name for model in models] == ["residual_net", "residual_net"]
    assert all(model.trainable for model in models)
    assert nodes == [len(layer._inbound_nodes) for model in models for layer in model.layers]
    for model, before in zip(models, states, strict=True):
        assert all(np.array_equal(old, new) for old, new in zip(before, zoo.state(model), strict=True))


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_shape_of_model_twice(name, tmp_path):
    model = zoo.build(name)
    x = zoo.inputs_for(model)
    fused = tfopt.fuse([model, model])
    for made, expected in zip(zoo.predictions(fused, x), zoo.predictions(model, x), strict=True):
        np.testing.assert_allclose(made, expected, atol=1e-3 if name == "mixed" else 1e-5)
    keras.tree.assert_same_structure(functional_of(fused).output, functional_of(model).output)
    fused.save(tmp_path / "fused.keras")
    loaded = keras.saving.load_model(tmp_path / "fused.keras")
    for made, expected in zip(zoo.predictions(loaded, x), zoo.predictions(fused, x), strict=True):
        np.testing.assert_allclose(made, expected, atol=1e-6)


def test_one_model_given_twice_is_two_copies():
    model = NETS[0]
    fused = tfopt.fuse([model, model], trainable=True)
    assert [layer.name for layer in fused.layers] == ["input", "net", "net_1", "fusion"]
    assert fused.count_params() == 2 * model.count_params()


def test_several_outputs_are_fused_each_with_its_like():
    models = [zoo.build("shared"), zoo.build("shared")]
    for weight in models[1].weights:
        weight.assign(weight * 0.5)
    x = zoo.inputs_for(models[0])
    fused, first, second = (model.predict(x, verbose=0) for model in (tfopt.fuse(models), *models))
    assert set(fused) == {"a", "b"}
    for key, values in fused.items():
        np.testing.assert_allclose(values, (first[key] + second[key]) / 2, atol=1e-6)


def listed(model):
    return keras.Model(list(model.inputs), list(model.outputs), name=model.name)


@pytest.mark.parametrize("first", [listed, lambda model: model])
@pytest.mark.parametrize("second", [listed, lambda model: model])
@pytest.mark.parametrize("how", ["parallel", "serial", "stacked"])
def test_one_input_or_output_may_be_a_list_of_one(how, first, second):
    plain = [net(4, classes=12), net(8, classes=12)]
    fused = tfopt.fuse([first(plain[0]), second(plain[1])], how)
    again = tfopt.fuse(plain, how)
    again.set_weights(fused.get_weights())
    np.testing.assert_allclose(fused.predict(X, verbose=0), again.predict(X, verbose=0), atol=1e-6)


def test_models_of_different_inputs():
    image = keras.Sequential([keras.Input((6, 6, 1), name="image"), kl.Flatten(), kl.Dense(4, "softmax")], name="sight")
    sound = keras.Sequential([keras.Input((9,), name="wave"), kl.Dense(4, "softmax")], name="sound")
    fused = tfopt.fuse([image, sound], "weighted", weights=[0.25, 0.75], inputs="separate")
    x = {"image": np.ones((2, 6, 6, 1), "float32"), "wave": np.ones((2, 9), "float32")}
    expected = 0.25 * outputs(image, x["image"]) + 0.75 * outputs(sound, x["wave"])
    np.testing.assert_allclose(fused.predict(x, verbose=0), expected, atol=1e-6)
    np.testing.assert_allclose(fused.predict([x["image"], x["wave"]], verbose=0), expected, atol=1e-6)
    twice = tfopt.fuse([sound, sound], inputs="separate")
    assert [layer.name for layer in twice.layers if isinstance(layer, kl.InputLayer)] == ["wave", "wave_1"]
    with pytest.raises(tfopt.InvalidArgumentError, match="inputs='separate'"):
        tfopt.fuse([image, sound])


def test_models_of_weight_zero_are_left_out():
    fused = tfopt.fuse(NETS, weights=[0.5, 0.0, 0.5])
    assert len([layer for layer in fused.layers if isinstance(layer, keras.Model)]) == 2
    alone = tfopt.fuse(NETS, "vote", weights=[0.0, 1.0, 0.0])
    np.testing.assert_allclose(outputs(alone), outputs(NETS[1]), atol=1e-6)
    separate = tfopt.fuse(NETS, weights=[0.5, 0.0, 0.5], inputs="separate")
    assert len(separate.inputs) == 3
    np.testing.assert_allclose(outputs(separate, [X, X, X]), outputs(fused), atol=1e-6)


# The three networks of the articles: trunks Conv 32-64-64 on 28x28x1, then Dense 64 - Dense 10.


def article_trunk(seed):
    keras.utils.set_random_seed(seed)
    layers = [
        *(kl.Conv2D(32, 3, activation="relu"), kl.MaxPooling2D()),
        *(kl.Conv2D(64, 3, activation="relu"), kl.MaxPooling2D()),
        *(kl.Conv2D(64, 3, activation="relu"), kl.Flatten(name="features")),
    ]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers, kl.Dense(10, "softmax")], name="trunk")


def head():
    return [kl.Dense(64, "relu"), kl.Dense(10, "softmax")]


TRUNK, FEATURES = 320 + 18_496 + 36_928, 576
ARTICLES = {
    "averaged": (2, "mean", {"head": head}, FEATURES),
    "concatenated": (2, "concat", {"head": head}, 2 * FEATURES),
    "stacked": (3, "stacked", {"meta": head}, 3 * FEATURES),
}


@pytest.mark.parametrize("name", ARTICLES)
def test_article_networks(name):
    count, how, options, width = ARTICLES[name]
    trunks = [article_trunk(seed) for seed in range(count)]
    options = {key: make() for key, make in options.items()}
    fused = tfopt.fuse(trunks, how, layers="features", trainable=True, **options)
    assert fused.output_shape == (None, 10)
    assert fused.count_params() == count * TRUNK + (width + 1) * 64 + 65 * 10
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
    features = [outputs(keras.Model(trunk.inputs[0], trunk.get_layer("features").output), x) for trunk in trunks]
    joined = np.mean(features, 0) if how == "mean" else np.concatenate(features, -1)
    kernels = [weight.numpy() for weight in fused.weights[-4:]]
    hidden = np.maximum(joined @ kernels[0] + kernels[1], 0)
    np.testing.assert_allclose(outputs(fused, x), softmax(hidden @ kernels[2] + kernels[3]), atol=1e-5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(fused(x)[:, 0])
    gradients = tape.gradient(loss, [weight.value for weight in fused.trainable_weights])
    # All weights but those of the classifiers' own heads, which are left out, are there and learn.
    assert len(gradients) == 6 * count + 4
    assert all(np.any(gradient) for gradient in gradients)


def test_features_of_other_widths_are_projected():
    models = [net(4, name="narrow"), net(8, name="wide")]
    fused = tfopt.fuse(models, "mean", layers=["hidden", "hidden"], head=kl.Dense(3))
    kernel = fused.get_layer("fusion").projections["1"].kernel
    assert kernel.shape == (8, 4)
    assert any(weight is kernel for weight in fused.trainable_weights)
    assert fused.output_shape == (None, 3)


def test_head_and_meta_are_copies():
    trained = kl.Dense(4, "softmax", name="own")
    trained.build((None, 8))
    fused = tfopt.fuse([NETS[0], NETS[1]], "stacked", meta=trained)
    own = fused.get_layer("fusion").meta[0]
    assert own is not trained
    np.testing.assert_array_equal(own.kernel.numpy(), trained.kernel.numpy())
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2)], name="net")
    behind = tfopt.fuse(NETS, head=model)
    np.testing.assert_allclose(outputs(behind), outputs(model, np.mean([outputs(n) for n in NETS], 0)), atol=1e-5)


def test_a_fused_model_is_fused_again():
    inner = tfopt.fuse(NETS[:2], "vote")
    fused = tfopt.fuse([inner, NETS[2]])
    expected = (np.mean([outputs(n) for n in NETS[:2]], 0) + outputs(NETS[2])) / 2
    np.testing.assert_allclose(outputs(fused), expected, atol=1e-6)


def test_pruned_weights_stay_pruned():
    masked = tfopt.prune(NETS[1], sparsity=0.75)
    fused = tfopt.fuse([masked, NETS[2]], trainable=True)
    fused.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    fused.fit(X, np.arange(8) % 4, epochs=2, verbose=0)
    assert int((fused.get_layer("net").get_layer("hidden").kernel.numpy() == 0).sum()) == 72


def test_mixed_precision_fuses_in_float32():
    fused = tfopt.fuse([zoo.build("mixed"), zoo.build("mixed")], "vote")
    assert fused.get_layer("fusion").compute_dtype == "float32"
    assert fused.output.dtype == "float32"


# Real digits.


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def small_cnn(seed, data):
    keras.utils.set_random_seed(seed)
    layers = [
        *(kl.Conv2D(8, 3, activation="relu"), kl.MaxPooling2D()),
        *(kl.Conv2D(16, 3, activation="relu"), kl.MaxPooling2D(), kl.Flatten()),
    ]
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers, kl.Dense(10, "softmax")], name="cnn")
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def cnns(digits):
    return [small_cnn(seed, digits) for seed in range(3)]


@pytest.mark.parametrize("options", [{"how": "weighted", "weights": [0.5, 0.3, 0.2]}, {"how": "product"}], ids=str)
def test_int8_file_agrees_with_keras_on_real_digits(options, cnns, digits, tmp_path):
    fused = tfopt.fuse(cnns, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="These layers stay float")
        quantized = tfopt.calibrate(tfopt.quantize(fused), digits.x_train[:300])
    tfopt.export_tflite(quantized, tmp_path / "fused.tflite")
    file = tfopt.TFLiteModel(tmp_path / "fused.tflite")
    assert file.float_compute_ops() == ()
    by_keras = fused.predict(digits.x_test, batch_size=500, verbose=0)
    by_file = file.predict(digits.x_test)
    assert len(by_file) == 1000
    assert np.mean(by_keras.argmax(-1) == by_file.argmax(-1)) >= 0.99
    best = max(np.mean(model.predict(digits.x_test, verbose=0).argmax(-1) == digits.y_test) for model in cnns)
    assert np.mean(by_file.argmax(-1) == digits.y_test) >= best


def test_fused_model_is_pruned_shrunk_and_counted(cnns, digits):
    fused = tfopt.fuse(cnns, "stacked", trainable=True)
    pruned = tfopt.prune(fused, sparsity=0.5)
    kernels = [weight for weight in pruned.weights if weight.path.endswith("kernel")]
    assert len(kernels) == 3 * 3 + 2
    assert all(np.mean(kernel.numpy() == 0) == pytest.approx(0.5, abs=0.01) for kernel in kernels)
    with pytest.warns(UserWarning, match="the softmax of 'cnn/"):
        masked = tfopt.prune(fused, pattern="channel", sparsity=0.5)
    small = tfopt.shrink(masked)
    assert small.count_params() < 0.5 * fused.count_params()
    np.testing.assert_allclose(outputs(small, digits.x_test[:8]), outputs(masked, digits.x_test[:8]), atol=1e-5)
    assert tfopt.summary(fused).macs > 3 * tfopt.summary(cnns[0]).macs


def test_quantization_aware_training_of_a_fused_model(cnns, digits):
    fused = tfopt.quantize(tfopt.fuse(cnns[:2], "weighted", weights="learned", trainable=True))
    fused.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    fused.fit(digits.x_train[:640], digits.y_train[:640], batch_size=64, verbose=0)
    assert fused.evaluate(digits.x_test, digits.y_test, batch_size=500, verbose=0)[1] > 0.9
    plain = tfopt.strip(fused)
    np.testing.assert_allclose(outputs(plain, digits.x_test[:8]).sum(-1), 1, atol=1e-3)


def test_a_fused_model_teaches_one_student():
    fused = tfopt.fuse(NETS, weights=[0.2, 0.3, 0.5])
    distiller = tfopt.Distiller(student=net(6, seed=3), teacher=fused)
    distiller.compile(keras.optimizers.Adam(0.02), run_eagerly=True)  # no labels: all it learns comes from the teacher
    far = np.abs(outputs(distiller.student) - outputs(fused)).mean()
    distiller.fit(X, epochs=40, verbose=0)
    assert np.abs(outputs(distiller.student) - outputs(fused)).mean() < 0.5 * far


class Own(keras.Model):
    def call(self, x):
        return x


def with_nan():
    model = net(4)
    model.layers[0].kernel.assign(np.full((12, 4), np.nan))
    return model


BAD = [
    ([], {}, tfopt.InvalidArgumentError, "two or more"),
    (NETS[:1], {}, tfopt.InvalidArgumentError, "two or more"),
    (NETS[0], {}, tfopt.InvalidArgumentError, "two or more"),
    (NETS, {"how": "sum"}, tfopt.InvalidArgumentError, "`how` must be"),
    (NETS, {"how": ["mean"]}, tfopt.InvalidArgumentError, "`how` must be"),
    (NETS, {"combine": "sum"}, tfopt.InvalidArgumentError, "`combine` must be"),
    (NETS, {"how": "serial", "combine": "mean"}, tfopt.InvalidArgumentError, "`combine` must be"),
    (NETS, {"how": "mean", "combine": "max"}, tfopt.InvalidArgumentError, "says how to combine"),
    (NETS, {"how": "max", "weights": [0.2, 0.3, 0.5]}, tfopt.InvalidArgumentError, "go with 'weighted'"),
    (NETS, {"how": "gated", "weights": [0.2, 0.3, 0.5]}, tfopt.InvalidArgumentError, "takes none"),
    (NETS, {"how": "mean", "kind": "hard"}, tfopt.InvalidArgumentError, "`combine` and `weights`"),
    (NETS, {"how": "vote", "kind": "loud"}, tfopt.InvalidArgumentError, "`kind` must be"),
    (NETS, {"weights": [0.5, 0.5]}, tfopt.InvalidArgumentError, "one weight a model"),
    (NETS, {"weights": [0.5, 0.4, 0.2]}, tfopt.InvalidArgumentError, "sum to 1"),
    (NETS, {"weights": [0.5, -0.5, 1.0]}, tfopt.InvalidArgumentError, "at least 0"),
    (NETS, {"weights": [np.nan, 0.5, 0.5]}, tfopt.InvalidArgumentError, "at least 0"),
    (NETS, {"inputs": "own"}, tfopt.InvalidArgumentError, "'shared' or 'separate'"),
    (NETS, {"trainable": "all"}, tfopt.InvalidArgumentError, "True or False"),
    (NETS, {"layers": "conv"}, tfopt.InvalidArgumentError, "The layers are: hidden, head"),
    (NETS, {"layers": ["hidden"]}, tfopt.InvalidArgumentError, "one a model"),
    (NETS, {"how": "vote", "layers": "hidden"}, tfopt.InvalidArgumentError, "of probabilities"),
    (NETS, {"head": "dense"}, tfopt.InvalidArgumentError, "`head` is"),
    (NETS, {"how": "stacked", "meta": keras.Sequential([keras.Input((5,)), kl.Dense(2)])}, ValueError, "fit together"),
    (NETS, {"how": "serial", "inputs": "separate"}, tfopt.InvalidArgumentError, "first model"),
    ([net(4), net(8, classes=5)], {}, tfopt.InvalidArgumentError, "the same width: classes"),
    ([net(4), net(8, activation=None)], {}, tfopt.InvalidArgumentError, "one kind of output"),
    ([zoo.build("shared"), zoo.build("nested")], {"inputs": "separate"}, tfopt.InvalidArgumentError, "fit together"),
    ([zoo.build("shared")] * 2, {"head": kl.Dense(2)}, tfopt.InvalidArgumentError, "one fused output"),
    ([NETS[0], Own()], {}, tfopt.UnsupportedModelError, "unbuilt Own"),
    ([NETS[0], keras.Sequential([kl.Dense(4)])], {}, tfopt.UnsupportedModelError, "has to be built"),
    ([NETS[0], "model.keras"], {}, tfopt.UnsupportedModelError, "load_model"),
    ([NETS[0], with_nan()], {}, tfopt.NonFiniteError, "finite"),
    ([NETS[0], tfopt.quantize(NETS[1])], {}, tfopt.UnsupportedModelError, "before it is quantized"),
]


@pytest.mark.parametrize(("models", "options", "error", "message"), BAD, ids=[case[3] for case in BAD])
def test_bad_input(models, options, error, message):
    with pytest.raises(error, match=message):
        tfopt.fuse(models, **options)


def test_what_does_the_fusing_is_found_by_name():
    assert isinstance(tfopt.fuse(NETS).get_layer("fusion"), ParallelFusion)
    assert isinstance(tfopt.fuse(NETS, "vote").get_layer("fusion"), VotingFusion)
    assert isinstance(tfopt.fuse(NETS, "stacked").get_layer("fusion"), StackedFusion)
    assert tfopt.fuse(NETS, weights=[0.2, 0.3, 0.5]).get_layer("fusion").branch_weights == (0.2, 0.3, 0.5)
