"""What an output is: by its layers, through nested, quantized and fused models, and by its values."""

import keras
import numpy as np
import pytest
import zoo
from distilled import X, net, softmax
from keras import layers as kl
from quantized import quietly

import tfopt
from tfopt.core.data.outputs import OutputKind, end_in, ends_of, kind_of_layer, kind_of_values, output_kinds
from tfopt.fusion import CascadeSelection, ParallelFusion, SerialFusion, StackedFusion, VotingFusion

PROBABILITIES, LOGARITHMS = OutputKind.PROBABILITIES, OutputKind.LOG_PROBABILITIES
INDEPENDENT, NUMBERS = OutputKind.INDEPENDENT, OutputKind.NUMBERS
KINDS = {"softmax": PROBABILITIES, "log_softmax": LOGARITHMS, "sigmoid": INDEPENDENT, None: NUMBERS}


def tripled(values):
    return 3.0 * values


def halved_softmax(values):
    return keras.activations.softmax(values / 2)


tripled.__name__ = halved_softmax.__name__ = "softmax"


@keras.saving.register_keras_serializable(package="tests")
class Softmax(kl.Softmax):
    """A user's own, which gives other numbers."""

    def call(self, inputs):
        return super().call(inputs) - 2.0


def through(*layers):
    return output_kinds(keras.Sequential([keras.Input((4, 4)), *layers]))[0]


@pytest.mark.parametrize(
    ("layers", "kind"),
    [
        ([kl.Dense(3, "softmax")], PROBABILITIES),
        ([kl.Dense(3), kl.Softmax()], PROBABILITIES),
        ([kl.Dense(3), kl.Softmax(axis=2)], PROBABILITIES),
        ([kl.Dense(3), kl.Activation("softmax", dtype="float32"), kl.Dropout(0.2)], PROBABILITIES),
        ([kl.Dense(3, "sparsemax")], PROBABILITIES),
        ([kl.Dense(3, "log_softmax")], LOGARITHMS),
        ([kl.Dense(3, "log_softmax"), kl.Activation("exponential")], PROBABILITIES),  # by its values
        ([kl.Dense(3, "softmax"), kl.Reshape((2, 2, 3)), kl.Identity()], PROBABILITIES),
        ([kl.Dense(3, "softmax"), kl.Flatten()], None),
        ([kl.Dense(3, "sigmoid"), kl.Flatten(), kl.Activation("linear")], INDEPENDENT),
        ([kl.Dense(3, "hard_sigmoid")], INDEPENDENT),
        ([kl.TimeDistributed(kl.Dense(3, "softmax"))], PROBABILITIES),
        ([kl.Conv1D(3, 1, activation="softmax"), kl.GlobalAveragePooling1D()], PROBABILITIES),  # by its values
        ([kl.Dense(3)], NUMBERS),
        ([kl.Dense(3, "relu")], NUMBERS),
        ([kl.LSTM(3, "softmax")], None),  # the activation of its cell is not its last step
        ([kl.Dense(3), kl.Softmax(axis=1)], None),
        ([kl.Dense(3, "softmax"), kl.Rescaling(9.0)], NUMBERS),
        ([kl.Flatten(), kl.Dense(3), kl.BatchNormalization()], NUMBERS),
        ([kl.Dense(3, tripled)], NUMBERS),
        ([kl.Dense(3, halved_softmax)], PROBABILITIES),
        ([kl.Dense(3), Softmax()], NUMBERS),
        ([kl.Dense(3, kl.Softmax())], PROBABILITIES),
    ],
)
def test_what_layers_give(layers, kind):
    assert through(*layers) is kind


@pytest.mark.parametrize("op", ["softmax", "log_softmax", "sigmoid"])
def test_what_operations_give(op):
    inputs = keras.Input((6,))
    logits = kl.Dense(3)(inputs)
    operation = getattr(keras.ops, op)
    model = keras.Model(inputs, keras.ops.cast(operation(logits), "float64"))
    assert output_kinds(model) == [KINDS[op]]
    plain = end_in(model, ends_of(model), "linear")
    np.testing.assert_allclose(operation(zoo.called(plain, X)), zoo.called(model, X), rtol=1e-5)


@pytest.mark.parametrize("activation", KINDS)
def test_nested_shared_and_pruned_models(activation):
    trunk, inputs = net(5, activation, name="trunk"), keras.Input((6,))
    nested = keras.Sequential([keras.Input((6,)), keras.Sequential([trunk, kl.Dropout(0.5)]), kl.Identity()])
    assert output_kinds(nested) == [KINDS[activation]]
    twice = keras.Model(inputs, {"b": trunk(inputs), "a": kl.Dense(2)(trunk(2 * inputs))})
    assert output_kinds(twice) == [NUMBERS, KINDS[activation]]
    assert ends_of(twice)[1].op is None  # a model that is called twice has its end in two places
    assert output_kinds(tfopt.prune(net(5, activation))) == [KINDS[activation]]


@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_quantized_models(activation, scheme):
    behind = keras.Sequential([net(5, None), kl.Activation(activation or "linear"), kl.Dropout(0.5)])
    for model in (net(5, activation), behind):
        assert output_kinds(quietly(model, scheme)) == [KINDS[activation]]


def test_quantized_fused_models():
    models = [net(5, "softmax", name="one"), net(6, "softmax", name="two")]
    for how in ("mean", "vote", "gated", "product", "stacked"):
        fused = tfopt.fuse(models, how)
        assert output_kinds(fused) == output_kinds(quietly(fused)) == [PROBABILITIES], how
    cascade = tfopt.fuse(models, "cascade", thresholds=[0.5])
    assert output_kinds(cascade) == output_kinds(quietly(cascade)) == [PROBABILITIES]


@pytest.mark.parametrize(
    ("layer", "activation", "kind"),
    [
        (kl.Average, "softmax", PROBABILITIES),
        (kl.Average, "log_softmax", NUMBERS),
        (kl.Average, "sigmoid", INDEPENDENT),
        (lambda: ParallelFusion("mean"), "softmax", PROBABILITIES),
        (lambda: ParallelFusion("weighted"), "log_softmax", NUMBERS),
        (lambda: ParallelFusion("mean", project=True), "softmax", NUMBERS),
        (lambda: ParallelFusion("concat"), "softmax", NUMBERS),
        (lambda: ParallelFusion("product", from_logits=True), None, PROBABILITIES),
        (lambda: ParallelFusion("product", multi_label=True), "sigmoid", INDEPENDENT),
        (lambda: VotingFusion(from_logits=True), None, PROBABILITIES),
        (lambda: VotingFusion(multi_label=True), "sigmoid", INDEPENDENT),
        (lambda: StackedFusion(activation="log_softmax"), None, LOGARITHMS),
        (lambda: StackedFusion([net(4, "sigmoid", units=2).layers[0], kl.Dense(2)]), "softmax", NUMBERS),
        (lambda: CascadeSelection([0.5]), "softmax", PROBABILITIES),
        (lambda: CascadeSelection([0.5], from_logits=True), "log_softmax", LOGARITHMS),
    ],
)
def test_fusion_layers(layer, activation, kind):
    inputs = keras.Input((6,))
    parts = [net(width, activation, name=f"net{width}")(inputs) for width in (4, 5)]
    assert output_kinds(keras.Model(inputs, layer()(parts))) == [kind]


def test_layers_in_series():
    model = keras.Sequential([keras.Input((6,)), SerialFusion([kl.Dense(6), net(4, "sigmoid")])])
    assert output_kinds(model) == [INDEPENDENT]
    assert kind_of_layer(net(4, "log_softmax")) is LOGARITHMS


def test_the_end_can_be_taken_off_where_nothing_else_reads_it():
    inputs = keras.Input((6,))
    x = kl.Dense(3, "softmax")(inputs)
    assert ends_of(keras.Model(inputs, kl.Dropout(0.5)(x)))[0].op is x._keras_history.operation
    for outputs in ([x, kl.Dense(2)(x)], [kl.Identity()(x), x], kl.Average()([x, x])):
        ends = ends_of(keras.Model(inputs, outputs))
        assert [end.op for end in ends] == [None] * len(ends)


@pytest.mark.parametrize("build", [lambda m: m, lambda m: keras.Sequential([keras.Input((6,)), m, kl.Identity()])])
@pytest.mark.parametrize("last", ["log_softmax", None])
def test_another_end_against_numpy(build, last):
    model = build(net(5, last) if last else keras.Sequential([net(5, None), kl.Activation("log_softmax")]))
    logits = zoo.called(end_in(model, ends_of(model), "linear"), X)
    np.testing.assert_allclose(zoo.called(model, X), np.log(softmax(logits)), atol=1e-5)
    np.testing.assert_allclose(zoo.called(end_in(model, ends_of(model), "softmax"), X), softmax(logits), atol=1e-6)


def test_values_by_themselves():
    logits = np.random.default_rng(0).normal(size=(5, 4, 3))
    assert kind_of_values(softmax(logits)) is PROBABILITIES
    assert kind_of_values(np.round(softmax(logits) * 255) / 255) is PROBABILITIES  # of 8 bits
    assert kind_of_values(np.log(softmax(logits))) is LOGARITHMS
    assert [kind_of_values(values) for values in (logits, -np.abs(logits), np.full((2, 2), 3.0))] == [NUMBERS] * 3
    assert [kind_of_values(values) for values in (np.ones((2, 1)), np.ones(4), np.zeros((0, 3)))] == [None] * 3


def test_predictions_tell_where_a_model_cannot_be_tried():
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, kl.GlobalAveragePooling1D()(kl.Dense(3, "softmax")(inputs)))
    assert output_kinds(model) == [None]
    assert output_kinds(model, np.full((2, 3), 1 / 3)) == [PROBABILITIES]
