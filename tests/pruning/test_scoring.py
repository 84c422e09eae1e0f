import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers as kl

from tfopt.core.errors import InvalidArgumentError, NonFiniteError, UnsupportedModelError
from tfopt.core.layers.registry import prunable_weights, register_layer
from tfopt.core.models.graph import read
from tfopt.core.models.rewrite import rewrite
from tfopt.pruning.criteria import CRITERIA, Criterion, as_criterion
from tfopt.pruning.scoring import score_kernels

GENERATOR = np.random.default_rng(5)


def kernels(model):
    """Path of each kernel -> the variable, those of layers inside layers too."""
    return {
        f"{path}/{name}": kernel
        for path, layer in read(model).layers
        if not isinstance(layer, keras.Model)
        for name, kernel in prunable_weights(layer).items()
    }


def scores(model, criterion, names=None, **options):
    """Path of each kernel -> its scores."""
    found = {path: k for path, k in kernels(model).items() if names is None or path.split("/kernel")[0] in names}
    result = score_kernels(read(model), list(found.values()), as_criterion(criterion), **options)
    assert all(result[id(k)].dtype == np.float32 and result[id(k)].shape == tuple(k.shape) for k in found.values())
    return {path: result[id(k)] for path, k in found.items()}


def labels_for(model, x):
    """Random targets in the structure and shape of the outputs."""
    generator = np.random.default_rng(11)
    return keras.tree.map_structure(lambda y: generator.normal(size=y.shape), model.predict(x, verbose=0))


def two_layers(activation="linear"):
    """`x @ W1 -> ReLU -> @ W2`, with closed-form gradients."""
    return keras.Sequential(
        [keras.Input((4,)), kl.Dense(5, "relu", name="a"), kl.Dense(3, activation, name="b")], name="two"
    )


def closed_form(model, x, delta):
    """Gradients of both kernels for a given gradient of the loss by the outputs of the last linear map."""
    w1, b1, w2, _ = (w.numpy().astype("float64") for w in model.weights)
    hidden = x @ w1 + b1
    back = (delta @ w2.T) * (hidden > 0)
    return x.T @ back, np.maximum(hidden, 0).T @ delta


def outputs(model, x):
    w1, b1, w2, b2 = (w.numpy().astype("float64") for w in model.weights)
    return np.maximum(x @ w1 + b1, 0) @ w2 + b2


def mse_delta(model, x, y):
    return 2 * (outputs(model, x) - y) / y.size


def softmax_delta(model, x, y):
    logits = outputs(model, x)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return (shares - np.eye(3)[y]) / len(y)


X = GENERATOR.normal(size=(40, 4))
Y = GENERATOR.normal(size=(40, 3))
CLASSES = GENERATOR.integers(0, 3, 40)


@pytest.mark.parametrize("name", ["gradient", "taylor"])
def test_gradients_against_the_closed_form(name):
    """40 samples are a batch of 32 and one of 8; the score is the mean over the two."""
    model = two_layers()
    found = scores(model, name, data=(X, Y), loss="mse")
    batches = [closed_form(model, x, mse_delta(model, x, y)) for x, y in ((X[:32], Y[:32]), (X[32:], Y[32:]))]
    for path, gradients in zip(("a/kernel", "b/kernel"), zip(*batches, strict=True), strict=True):
        expected = np.mean(np.abs(gradients), axis=0)
        if name == "taylor":
            expected = expected * np.abs(kernels(model)[path].numpy())
        np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("activation", ["linear", "softmax"])
@pytest.mark.parametrize("labels", [CLASSES[:32], CLASSES[:32, None].astype("float32"), np.eye(3)[CLASSES[:32]]])
def test_the_loss_follows_from_labels_and_outputs(activation, labels):
    model = two_layers(activation)
    found = scores(model, "gradient", data=(X[:32], labels))
    expected = closed_form(model, X[:32], softmax_delta(model, X[:32], CLASSES[:32]))
    for path, gradient in zip(("a/kernel", "b/kernel"), expected, strict=True):
        np.testing.assert_allclose(found[path], np.abs(gradient), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
def test_binary_and_regression_losses(activation):
    model = keras.Sequential([keras.Input((4,)), kl.Dense(1, activation, name="a")])
    logits = X[:32] @ model.layers[0].kernel.numpy()
    labels = GENERATOR.integers(0, 2, 32)
    expected = np.abs(X[:32].T @ (1 / (1 + np.exp(-logits)) - labels[:, None])) / 32
    np.testing.assert_allclose(
        scores(model, "gradient", data=(X[:32], labels))["a/kernel"], expected, rtol=1e-3, atol=1e-6
    )
    if activation == "linear":
        error = logits[:, 0] - Y[:32, 0]
        expected = np.abs(2 * X[:32].T @ error[:, None] / 32)
        np.testing.assert_allclose(scores(model, "gradient", data=(X[:32], Y[:32, 0]))["a/kernel"], expected, rtol=1e-4)


def test_the_compiled_loss_counts_and_an_argument_outranks_it():
    model = two_layers()
    model.compile(loss=lambda y, p: 3.0 * keras.ops.mean((y - p) ** 2))
    plain = scores(model, "gradient", data=(X, Y), loss="mse")
    for path, tripled in scores(model, "gradient", data=(X, Y)).items():
        np.testing.assert_allclose(tripled, 3 * plain[path], rtol=1e-5)
    own = scores(model, "gradient", data=(X, Y), loss=lambda y, p: 5.0 * (y - p) ** 2)
    np.testing.assert_allclose(own["a/kernel"], 5 * plain["a/kernel"], rtol=1e-5)


def test_penalties_are_part_of_the_loss_and_sample_weights_count():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, kernel_regularizer=keras.regularizers.L2(0.5), name="a")])
    kernel = model.layers[0].kernel.numpy()
    x, y = X[:32], Y[:32]
    weights = GENERATOR.uniform(0, 2, 32)
    gradient = 2 * x.T @ ((x @ kernel - y) * weights[:, None]) / y.size + kernel
    found = scores(model, "gradient", data=(x, y, weights), loss="mse")["a/kernel"]
    np.testing.assert_allclose(found, np.abs(gradient), rtol=1e-4, atol=1e-6)


def test_a_fitted_model_with_activity_penalty_and_loss_weights():
    model = zoo.build("shared")
    x = zoo.inputs_for(model)
    y = labels_for(model, x)
    model.compile("sgd", {"a": "mse", "b": "mae"}, loss_weights={"a": 1.0, "b": 0.0})
    model.fit(x, y, verbose=0)
    found = scores(model, "gradient", data=(x, y))
    assert found["a/kernel"].min() > 0
    assert found["b/kernel"].max() == 0


def test_forms_of_data():
    class Batches(keras.utils.PyDataset):
        num_batches = 2

        def __getitem__(self, i):
            return X[32 * i : 32 * i + 32], Y[32 * i : 32 * i + 32]

    forms = (
        lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(32),
        lambda: (part for part in ((X[:32], Y[:32]), (X[32:], Y[32:]))),
        Batches,
    )
    model = two_layers()
    for name in ("taylor", "wanda", "entropy"):
        expected = scores(model, name, data=(X, Y))
        for form in forms:
            for path, found in scores(model, name, data=form()).items():
                np.testing.assert_array_equal(found, expected[path])


def hidden_outputs(model, layer, x):
    """Outputs of a layer of a Functional model, by Keras itself."""
    return keras.Model(model.input, model.get_layer(layer).output)(x).numpy()


def bits(activations):
    counts = [np.histogram(unit, 10)[0] for unit in activations.astype("float64").T]
    shares = np.stack(counts) / len(activations)
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1)


def test_entropy_is_measured_where_the_channels_meet_the_rest():
    """Batch normalization and ReLU alone follow `stem`, so it is seen behind both; `pointwise` goes into a sum."""
    model = zoo.build("residual")
    x = zoo.inputs_for(model, 50)
    found = scores(model, "entropy", data=x)
    for path, behind in (("stem", "stem_relu"), ("pointwise", "pointwise"), ("logits", "logits")):
        seen = hidden_outputs(model, behind, x)
        expected = bits(seen.mean((1, 2)) if seen.ndim == 4 else seen)
        kernel = found[f"{path}/kernel"]
        np.testing.assert_allclose(kernel, np.broadcast_to(expected, kernel.shape), atol=1e-5)
        assert np.ptp(kernel.reshape(-1, kernel.shape[-1]), axis=0).max() == 0


def test_entropy_of_a_dead_unit_and_of_a_transposed_convolution():
    model = keras.Sequential([keras.Input((5, 5, 2)), kl.Conv2DTranspose(3, 3, activation="relu", name="up")])
    model.layers[0].bias.assign([0.0, -1e3, 0.0])
    found = scores(model, "entropy", data=GENERATOR.normal(size=(40, 5, 5, 2)))["up/kernel"]
    assert found.shape == (3, 3, 3, 2)
    assert found[:, :, 1].max() == 0
    assert min(found[:, :, 0].min(), found[:, :, 2].min()) > 1


def test_wanda_against_numpy():
    model = zoo.build("residual")
    x = zoo.inputs_for(model, 40)
    found = scores(model, "wanda", data=x)
    for path, source in (("stem", None), ("pointwise", "depthwise"), ("logits", "pool")):
        inputs = (x if source is None else hidden_outputs(model, source, x)).astype("float64")
        norms = np.sqrt((inputs**2).sum(tuple(range(inputs.ndim - 1))))
        expected = np.abs(kernels(model)[f"{path}/kernel"].numpy()) * norms[:, None]
        np.testing.assert_allclose(found[f"{path}/kernel"], expected, rtol=1e-4)


def test_wanda_of_a_transposed_convolution_has_its_inputs_last():
    model = keras.Sequential([keras.Input((4, 2)), kl.Conv1DTranspose(3, 2, name="up")])
    x = GENERATOR.normal(size=(10, 4, 2))
    expected = np.abs(model.layers[0].kernel.numpy()) * np.sqrt((x**2).sum((0, 1)))
    np.testing.assert_allclose(scores(model, "wanda", data=x)["up/kernel"], expected, rtol=1e-5)


def test_masks_go_through():
    """The LSTM leaves out what the embedding masks, and the layer behind it sees that."""
    tokens = keras.Input((5,), dtype="int32")
    x = kl.Dense(4, name="first")(kl.Embedding(6, 3, mask_zero=True, name="embedding")(tokens))
    model = keras.Model(tokens, kl.Dense(2, name="last")(kl.LSTM(3, name="lstm")(x)))
    x = GENERATOR.integers(0, 6, (20, 5))
    found = scores(model, "wanda", ["first", "last"], data=x)
    for path, source in (("first", "embedding"), ("last", "lstm")):
        inputs = hidden_outputs(model, source, x).reshape(-1, 3)
        expected = np.abs(kernels(model)[f"{path}/kernel"].numpy()) * np.sqrt((inputs**2).sum(0))[:, None]
        np.testing.assert_allclose(found[f"{path}/kernel"], expected, rtol=1e-4)


def test_shared_layers_and_models_are_seen_at_each_call():
    model = zoo.build("shared")
    x = zoo.inputs_for(model, 30)
    both = np.concatenate([x["left"], x["right"]])
    tower = model.get_layer("tower")
    norms = np.sqrt((both.astype("float64") ** 2).sum(0))
    found = scores(model, "wanda", data=x)["tower/kernel"]
    np.testing.assert_allclose(found, np.abs(tower.kernel.numpy()) * norms[:, None], rtol=1e-5)
    entropies = scores(model, "entropy", data=x)["tower/kernel"]
    np.testing.assert_allclose(entropies[0], bits(tower(both).numpy()), atol=1e-5)

    nested = zoo.build("nested")
    x = zoo.inputs_for(nested)
    first, block = nested.get_layer("first"), nested.get_layer("block")
    inputs = first(x).numpy()
    twice = np.concatenate([inputs, block(inputs).numpy()]).astype("float64")
    expected = np.abs(block.layers[0].kernel.numpy()) * np.sqrt((twice**2).sum(0))[:, None]
    np.testing.assert_allclose(scores(nested, "wanda", data=x)["block/inner/kernel"], expected, rtol=1e-4)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_model_of_the_zoo(name):
    """Gradients reach every kernel; inner kernels of layers are refused where activations are asked for."""
    model = zoo.build(name)
    x, before = zoo.inputs_for(model), zoo.state(model)
    y = labels_for(model, x)
    for criterion in ("taylor", "neuron", "random"):
        found = scores(model, criterion, data=(x, y))
        assert len(found) == len(kernels(model))
        assert all(np.ptp(each) > 0 for each in found.values()), criterion
    if name == "sequence":
        with pytest.raises(UnsupportedModelError, match=r"'embedding' \(Embedding.*'lstm'.*'attention'.*exclude="):
            scores(model, "entropy", data=x)
        assert set(scores(model, "wanda", ["conv", "logits"], data=x)) == {"conv/kernel", "logits/kernel"}
    else:
        for criterion in ("entropy", "wanda"):
            assert all(np.ptp(each) > 0 for each in scores(model, criterion, data=x).values())
    assert not model.compiled
    for kept, now in zip(before, zoo.state(model), strict=True):
        np.testing.assert_array_equal(kept, now)


@pytest.mark.parametrize("name", ["taylor", "wanda", "entropy"])
def test_mixed_precision_scores_are_those_of_float32(name):
    model = zoo.build("mixed")
    x = zoo.inputs_for(model, 40)
    y = GENERATOR.integers(0, 3, 40)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = scores(model, name, data=(x, y))
    keras.mixed_precision.set_dtype_policy("float32")
    inputs = keras.Input((12, 12, 1))
    hidden = kl.GlobalAveragePooling2D()(kl.Conv2D(4, 3, activation="relu", name="conv")(inputs))
    plain = keras.Model(inputs, kl.Dense(3, name="logits")(hidden))
    plain.set_weights(model.get_weights())
    for path, expected in scores(plain, name, data=(x, y)).items():
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-8)


def test_inference_mode_and_frozen_layers():
    """Dropout is off, moving statistics stay, and a frozen kernel has a gradient all the same."""
    model = zoo.build("sequential")
    x, y = zoo.inputs_for(model), GENERATOR.integers(0, 3, 16)
    first = scores(model, "taylor", data=(x, y))
    model.trainable = False
    for path, again in scores(model, "taylor", data=(x, y)).items():
        np.testing.assert_array_equal(again, first[path])


def test_bn_scale():
    model = zoo.build("residual")
    found = scores(model, "bn_scale", ["stem"])["stem/kernel"]
    np.testing.assert_array_equal(found, np.broadcast_to(np.abs(model.get_layer("stem_bn").gamma), (3, 3, 2, 4)))
    with pytest.raises(
        UnsupportedModelError, match=r"'pointwise' \(Conv2D: no batch norm.*exclude=\['pointwise', 'logi"
    ):
        scores(model, "bn_scale")


@pytest.mark.parametrize(
    ("behind", "works"),
    [
        ([kl.BatchNormalization()], True),
        ([kl.ReLU(), kl.Dropout(0.5), kl.BatchNormalization()], True),
        ([kl.Activation("softmax"), kl.BatchNormalization()], False),
        ([kl.BatchNormalization(scale=False)], False),
        ([kl.BatchNormalization(axis=1)], False),
        ([kl.MaxPooling1D(), kl.BatchNormalization()], False),
    ],
)
def test_where_a_batch_normalization_follows_alone(behind, works):
    model = keras.Sequential([keras.Input((6, 2)), kl.Conv1DTranspose(6, 1, name="c"), *behind])
    if works:
        behind[-1].gamma.assign([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        expected = np.broadcast_to(np.arange(1.0, 7.0)[:, None], (1, 6, 2))
        np.testing.assert_array_equal(scores(model, "bn_scale")["c/kernel"], expected)
    else:
        with pytest.raises(UnsupportedModelError, match="no batch normalization with a scale alone follows"):
            scores(model, "bn_scale")


def test_random_is_reproducible_and_differs_between_kernels():
    block = [kl.Dense(6, name=name) for name in "ab"]
    model = keras.Sequential([keras.Input((6,)), *block])
    first, again, other = (scores(model, "random", seed=seed) for seed in (1, 1, 2))
    for path, values in first.items():
        np.testing.assert_array_equal(values, again[path])
        assert not np.array_equal(values, other[path])
    assert not np.array_equal(first["a/kernel"], first["b/kernel"])
    clone = rewrite(read(model)).model
    np.testing.assert_array_equal(first["b/kernel"], scores(clone, "random", seed=1)["b/kernel"])


def test_neuron_of_kernels_with_their_units_elsewhere():
    model = keras.Sequential(
        [
            keras.Input((4, 3)),
            kl.EinsumDense("abc,cde->abde", (4, 5, 2), name="heads"),
            kl.EinsumDense("abde,fde->abf", (4, 3), name="joined"),
            kl.Conv1DTranspose(2, 3, name="up"),
        ]
    )
    found = scores(model, "neuron")
    for path, units in (("heads", (1, 2)), ("joined", (0,)), ("up", (1,))):
        kernel = np.abs(kernels(model)[f"{path}/kernel"].numpy())
        others = tuple(axis for axis in range(3) if axis not in units)
        expected = np.broadcast_to(kernel.sum(others, keepdims=True), kernel.shape)
        np.testing.assert_allclose(found[f"{path}/kernel"], expected, rtol=1e-5)


def test_functions_of_users_are_given_what_they_name():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, name="a"), kl.BatchNormalization(name="n")])
    model.get_layer("n").gamma.assign([1.0, 2.0, 3.0])
    seen = {}

    def everything(weights, gradients, *, input_norms, activations, gamma, seed, axis):
        seen.update(shapes=[np.shape(a) for a in (weights, gradients, input_norms, activations, gamma)], axis=axis)
        weights *= 0  # a copy: the model does not see it
        return gradients * 0 + input_norms * gamma

    before = zoo.state(model)
    found = scores(model, everything, data=(X, Y))["a/kernel"]
    assert seen == {"shapes": [(4, 3), (4, 3), (4, 1), (40, 3), (1, 3)], "axis": (-1,)}
    np.testing.assert_allclose(found, np.sqrt((X**2).sum(0))[:, None] * [1.0, 2.0, 3.0], rtol=1e-5)
    for kept, now in zip(before, zoo.state(model), strict=True):
        np.testing.assert_array_equal(kept, now)
    squared = scores(model, lambda w: w**2)["a/kernel"]
    np.testing.assert_allclose(squared, model.layers[0].kernel.numpy() ** 2, rtol=1e-6)


def test_layers_of_users():
    @register_layer(prunable=("matrix", "gate"))
    class Gated(kl.Layer):
        def build(self, shape):
            self.matrix = self.add_weight(shape=(shape[-1], 3), name="matrix")
            self.gate = self.add_weight(shape=(shape[-1], 3), name="gate")

        def call(self, inputs):
            return (inputs @ self.matrix) * (inputs @ self.gate)

    model = keras.Sequential([keras.Input((4,)), Gated(name="gated")])
    for name in ("taylor", "neuron", "entropy"):
        found = scores(model, name, data=(X, Y))
        assert list(found) == ["gated/matrix", "gated/gate"]
    np.testing.assert_array_equal(found["gated/matrix"], found["gated/gate"])
    with pytest.raises(UnsupportedModelError, match=r"'gated' \(Gated: the features of its input do not"):
        scores(model, "wanda", data=X)


@pytest.mark.parametrize(
    ("layer", "criterion", "reason"),
    [
        (kl.SeparableConv1D(4, 2), "wanda", "one axis of the kernel"),
        (kl.Conv1D(4, 2, groups=2), "wanda", "one axis of the kernel"),
        (kl.EinsumDense("abc,cd->abd", (6, 4)), "wanda", "one axis of the kernel"),
        (kl.EinsumDense("abc,cd->abd", (6, 4)), "entropy", "not the channels of its output"),
        (kl.TimeDistributed(kl.Dense(4)), "wanda", "a layer inside a layer"),
        (kl.LSTM(4), "entropy", "a layer inside a layer"),
    ],
)
def test_kernels_that_a_criterion_has_no_meaning_for(layer, criterion, reason):
    model = keras.Sequential([keras.Input((6, 4)), layer, kl.Dense(2, name="fine")])
    with pytest.raises(UnsupportedModelError, match=rf"'{layer.name}' \({type(layer).__name__}: .*{reason}") as caught:
        scores(model, criterion, data=np.zeros((2, 6, 4)))
    assert "'fine'" not in str(caught.value)


def test_a_kernel_without_part_in_the_loss():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {"a": kl.Dense(2, name="a")(inputs), "b": kl.Dense(2, name="b")(inputs)})
    model.compile(loss={"a": "mse", "b": None})
    with pytest.raises(UnsupportedModelError, match=r"'b' \(Dense: the loss does not depend on it\).*exclude=\['b'\]"):
        scores(model, "taylor", data=(X, {"a": Y[:, :2], "b": Y[:, :2]}))


@pytest.mark.parametrize(
    ("criterion", "options", "error", "message"),
    [
        ("taylor", {}, InvalidArgumentError, r"'taylor' is measured on data.*data=\(x, y\)"),
        ("entropy", {}, InvalidArgumentError, "data=x"),
        ("taylor", {"data": X}, InvalidArgumentError, "samples and their labels"),
        ("taylor", {"data": (X, Y[:10])}, InvalidArgumentError, "same number of samples"),
        ("taylor", {"data": (X, Y[:, :2])}, InvalidArgumentError, r"labels \(32, 2\).*pass `loss=`"),
        ("taylor", {"data": (X, [Y, Y])}, InvalidArgumentError, "2 arrays for 1 outputs"),
        ("taylor", {"data": (X, {"q": Y})}, InvalidArgumentError, "a dict for outputs without"),
        ("taylor", {"data": (X, CLASSES.astype(str))}, InvalidArgumentError, "have to be numbers"),
        ("taylor", {"data": (X, Y), "loss": "hinges"}, InvalidArgumentError, "loss hinges: Could not"),
        ("taylor", {"data": (X, CLASSES), "loss": "categorical_crossentropy"}, InvalidArgumentError, "fit the labels"),
        ("taylor", {"data": (X * np.nan, Y)}, NonFiniteError, "data has to be finite"),
        ("taylor", {"data": (X, Y * np.nan)}, NonFiniteError, "labels have to be finite"),
        ("taylor", {"data": (X, Y), "loss": lambda y, p: (p - p) / 0.0}, NonFiniteError, "gradients of the loss"),
        ("wanda", {"data": X[:, :2]}, InvalidArgumentError, "shape of the model's input"),
        ("wanda", {"data": X[:0]}, InvalidArgumentError, "at least one sample"),
        ("random", {"seed": -1}, InvalidArgumentError, "`seed`"),
        ("random", {"seed": 1.5}, InvalidArgumentError, "`seed`"),
        (lambda w, gradients, input_norms: w, {"data": iter([(X, Y)])}, InvalidArgumentError, "reads the data twice"),
        (lambda w: w[0], {}, InvalidArgumentError, r"scores \(5,\) for the kernel \(4, 5\) of 'a'"),
        (lambda w: "high", {}, InvalidArgumentError, "array of numbers.*str"),
        (lambda w: None, {}, InvalidArgumentError, r"scores \(\)"),
        (lambda w: w / 0, {}, NonFiniteError, "scores of the criterion '<lambda>'"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_errors(criterion, options, error, message):
    model = two_layers()
    with np.errstate(all="ignore"), pytest.raises(error, match=message):
        score_kernels(read(model), list(kernels(model).values()), as_criterion(criterion), **options)


def test_activations_that_overflow():
    model = keras.Sequential([keras.Input((2,)), kl.Dense(2, kernel_initializer="ones", name="a"), kl.Dense(1)])
    with pytest.raises(NonFiniteError, match="NaN or infinity at 'a'"):
        scores(model, "entropy", data=np.full((4, 2), 3e38, "float32"))


def test_no_kernels_no_scores():
    assert score_kernels(read(two_layers()), [], CRITERIA["magnitude"]) == {}


def test_progress_bar(capsys):
    model = two_layers()
    scores(model, "taylor", data=(X, Y), verbose=1)
    shown = capsys.readouterr().out
    assert " 2/" in shown
    assert " 3/" not in shown
    scores(model, Criterion("own", lambda weights, input_norms: weights, ("input_norms",)), data=X)
    assert capsys.readouterr().out == ""
