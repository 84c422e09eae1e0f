"""Teachers run with their batch normalizations folded into the convolutions before them."""

import keras
import numpy as np
import pytest
import zoo
from distilled import randomized
from keras import layers as kl

import tfopt
from tfopt.distillation.features import observed
from tfopt.distillation.teachers import Teachers

FOLDED = {
    "Conv1D": ((8, 3), lambda: kl.Conv1D(4, 3, padding="causal")),
    "Conv2D": ((8, 8, 3), lambda: kl.Conv2D(4, 3, strides=2, use_bias=False)),
    "Conv2D, groups": ((8, 8, 4), lambda: kl.Conv2D(6, 3, groups=2, padding="same")),
    "Conv3D": ((4, 4, 4, 2), lambda: kl.Conv3D(3, 2)),
    "Conv1DTranspose": ((8, 3), lambda: kl.Conv1DTranspose(4, 3)),
    "Conv2DTranspose": ((4, 4, 3), lambda: kl.Conv2DTranspose(5, 3, strides=2, use_bias=False)),
    "Conv3DTranspose": ((3, 3, 3, 2), lambda: kl.Conv3DTranspose(4, 2)),
    "DepthwiseConv1D": ((8, 3), lambda: kl.DepthwiseConv1D(3, depth_multiplier=2)),
    "DepthwiseConv2D": ((8, 8, 3), lambda: kl.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)),
}


class OwnConv2D(kl.Conv2D):
    """May compute anything."""

    def call(self, inputs):
        return super().call(inputs) ** 2


@pytest.fixture
def normalized(monkeypatch):
    """Names of the batch normalizations that ran."""
    ran = []
    run = kl.BatchNormalization.call
    monkeypatch.setattr(
        kl.BatchNormalization, "call", lambda layer, x, **k: ran.append(layer.name) or run(layer, x, **k)
    )
    return ran


def close(given, expected):
    for one, other in zip(given, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture
def answered(normalized):
    """Outputs and features of a teacher; what ran before is forgotten."""

    def run(model, x, paths=()):
        teachers = Teachers([model])
        normalized.clear()
        given = teachers.answer(x, paths)
        return keras.tree.flatten(given.outputs), given.features

    return run


@pytest.mark.parametrize("kind", FOLDED)
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}], ids=str)
def test_outputs_are_those_of_both_layers(kind, options, answered, normalized):
    shape, conv = FOLDED[kind]
    model = randomized(keras.Sequential([keras.Input(shape), conv(), kl.BatchNormalization(**options), kl.ReLU()]))
    x = np.random.default_rng(0).normal(size=(5, *shape)).astype("float32")
    expected = model(x, training=False)
    outputs, _ = answered(model, x)
    assert normalized == []
    assert float(np.abs(expected).max()) > 0.1
    close(outputs, [expected])


def kept_apart(kind):
    """A model of a convolution, 3 to 4 channels, and a normalization that have to run one after the other."""
    inputs = keras.Input((8, 8, 3))
    conv = {"activation": lambda: kl.Conv2D(4, 3, activation="relu"), "own class": lambda: OwnConv2D(4, 3)}
    layer = conv.get(kind, lambda: kl.Conv2D(4, 3))()
    x = layer(inputs)
    if kind == "LoRA":
        layer.enable_lora(2)
    y = kl.BatchNormalization(axis=1 if kind == "other axis" else -1, name="norm")(x)
    outputs = {"read twice": lambda: kl.Add()([x, y]), "output": lambda: [x, y]}.get(kind, lambda: y)()
    return randomized(keras.Model(inputs, outputs))


@pytest.mark.parametrize("kind", ["activation", "own class", "LoRA", "other axis", "read twice", "output"])
def test_what_would_change_the_outputs_is_not_folded(kind, answered, normalized):
    model = kept_apart(kind)
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    expected = keras.tree.flatten(model(x, training=False))
    outputs, _ = answered(model, x)
    assert normalized == ["norm"]
    close(outputs, expected)


def test_a_feature_before_the_normalization_is_given_as_it_is(answered, normalized):
    model = randomized(
        keras.Sequential([keras.Input((8, 3)), kl.Conv1D(4, 3, name="conv"), kl.BatchNormalization(name="norm")])
    )
    x = np.random.default_rng(0).normal(size=(5, 8, 3)).astype("float32")
    _, features = answered(model, x, ["norm"])
    assert normalized == []
    close([features["norm"]], [model(x, training=False)])
    _, features = answered(model, x, ["conv", "norm"])
    close([features["conv"], features["norm"]], [model.layers[0](x), model(x, training=False)])


@pytest.mark.parametrize("name", zoo.MODELS)
def test_answers_of_each_kind_of_model(name):
    model = randomized(zoo.build(name), scale=0.3)
    x = zoo.inputs_for(model)
    expected, _ = observed(model, [])(x, training=False)
    given, _ = observed(model, [], folds=True)(x, training=False)
    close(keras.tree.flatten(given), keras.tree.flatten(expected))


def test_nested_models_are_folded_too(answered, normalized):
    block = keras.Sequential([keras.Input((8, 8, 3)), kl.Conv2D(3, 3, padding="same"), kl.BatchNormalization()])
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, kl.Flatten()(block(kl.ReLU()(block(inputs)))))
    randomized(model)
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    expected = model(x, training=False)
    outputs, _ = answered(model, x)
    assert normalized == []
    close(outputs, [expected])


def test_a_convolution_called_twice_has_each_of_its_normalizations(answered, normalized):
    inputs = keras.Input((8, 3))
    conv = kl.Conv1D(3, 3, padding="same")
    x = kl.BatchNormalization(name="second")(conv(kl.BatchNormalization(name="first")(conv(inputs))))
    model = randomized(keras.Model(inputs, x))
    data = np.random.default_rng(0).normal(size=(5, 8, 3)).astype("float32")
    expected = model(data, training=False)
    outputs, _ = answered(model, data)
    assert normalized == []
    close(outputs, [expected])


def test_what_is_assigned_to_the_teacher_between_two_fits_counts():
    """The student sees the same data twice, at a rate of 0, so that its loss tells of the teacher alone."""

    def cnn():
        return keras.Sequential([keras.Input((8, 3)), kl.Conv1D(4, 3), kl.BatchNormalization(), kl.Flatten()])

    student, teacher = randomized(cnn()), randomized(cnn(), seed=1)
    x = np.random.default_rng(0).normal(size=(32, 8, 3)).astype("float32")
    distiller = tfopt.Distiller(student, teacher, tfopt.distillation.RegressionTargets())
    distiller.compile(keras.optimizers.SGD(0.0), loss=None)

    def expected():
        # The student runs in training mode, with the statistics of the batch.
        normalized = student.layers[1](student.layers[0](x), training=True).numpy().reshape(32, -1)
        return ((normalized - teacher(x, training=False).numpy()) ** 2).mean()

    for bias in (3.0, -2.0):
        loss = distiller.fit(x, batch_size=32, shuffle=False, verbose=0).history["loss"][0]
        np.testing.assert_allclose(loss, expected(), rtol=1e-4)
        before = expected()
        teacher.layers[1].moving_variance.assign(np.full(4, 0.04))
        teacher.layers[0].bias.assign(np.full(4, bias))
        assert abs(expected() - before) > 1


@pytest.mark.parametrize("policies", [("mixed_bfloat16", "mixed_bfloat16"), ("bfloat16", "float32")], ids=str)
@pytest.mark.parametrize("use_bias", [True, False])
def test_half_precision_is_no_less_exact(policies, use_bias, answered):
    conv, norm = map(keras.DTypePolicy, policies)
    model = randomized(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                kl.Conv2D(4, 3, use_bias=use_bias, dtype=conv),
                kl.BatchNormalization(dtype=norm),
                kl.Flatten(dtype="float32"),
            ]
        )
    )
    exact = keras.Sequential([kl.Conv2D(4, 3, use_bias=use_bias), kl.BatchNormalization(), kl.Flatten()])
    exact.build((None, 8, 8, 3))
    exact.set_weights([np.asarray(keras.ops.cast(weight, "float32")) for weight in model.weights])
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    outputs, _ = answered(model, x)
    truth = exact(x, training=False).numpy()
    error = np.abs(outputs[0].numpy() - truth).mean()
    assert 0 < error < 1.5 * np.abs(model(x, training=False).numpy() - truth).mean()
    assert outputs[0].dtype == "float32"
