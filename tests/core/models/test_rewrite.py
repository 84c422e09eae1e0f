import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl

import tfopt
from tfopt.core.models import constraints
from tfopt.core.models.graph import read
from tfopt.core.models.rewrite import in_float32, rewrite, untrained
from tfopt.pruning.masks import PruningMask


@pytest.mark.parametrize("name", zoo.MODELS)
def test_clone_computes_the_same_and_shares_nothing(name):
    model = zoo.build(name)
    x, before = zoo.inputs_for(model), zoo.state(model)
    clone = rewrite(read(model)).model
    for got, want in zip(zoo.predictions(clone, x), zoo.predictions(model, x), strict=True):
        np.testing.assert_array_equal(got, want)
    assert [path for path, _ in read(clone).layers] == [path for path, _ in read(model).layers]
    assert not {id(v) for v in clone.variables} & {id(v) for v in model.variables}
    assert type(clone) is type(model)
    zoo.fit(clone, x)
    for kept, now in zip(before, zoo.state(model), strict=True):
        np.testing.assert_array_equal(kept, now)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_output_names_and_policies_are_kept(name):
    model = zoo.build(name)
    clone = rewrite(read(model)).model
    assert getattr(clone, "output_names", None) == getattr(model, "output_names", None)

    def policies(model):
        layers = [layer for _, layer in read(model).layers if not isinstance(layer, kl.InputLayer)]
        return [layer.dtype_policy.name for layer in layers]

    assert policies(clone) == policies(model)
    assert ("mixed_float16" in policies(clone)) == (name == "mixed")


def test_trainable_flags_go_with_layers_and_models():
    model = zoo.build("nested")
    model.get_layer("first").trainable = False
    model.get_layer("head").get_layer("deep").trainable = False
    clone = rewrite(read(model)).model
    flags = [layer.trainable for _, layer in read(model).layers]
    assert [layer.trainable for _, layer in read(clone).layers] == flags
    assert flags.count(False) == 3
    assert len(clone.trainable_variables) == len(model.trainable_variables) == 4


def test_trainable_flags_inside_a_layer():
    model = keras.Sequential([keras.Input((4, 3)), kl.Bidirectional(kl.LSTM(2), name="rnn")])
    model.layers[0].backward_layer.trainable = False
    assert not rewrite(read(model)).model.layers[0].backward_layer.trainable
    assert rewrite(read(model)).model.layers[0].forward_layer.trainable


def test_frozen_model_stays_frozen():
    model = zoo.build("sequential")
    model.trainable = False
    clone = rewrite(read(model)).model
    assert clone.trainable is False
    assert clone.trainable_variables == []


def test_shared_layer_and_shared_model_stay_shared():
    clone = rewrite(read(zoo.build("shared"))).model
    assert len(read(clone).calls_of(clone.get_layer("tower"))) == 2
    nested = rewrite(read(zoo.build("nested"))).model
    assert len(read(nested).calls_of(nested.get_layer("block"))) == 2


def test_constraints_go_with_the_weights():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, kernel_constraint="non_neg", name="d")])
    mask = np.arange(12).reshape(4, 3) % 2 == 0
    constraints.attach(model.layers[0].kernel, PruningMask(mask=mask))
    kernel = rewrite(read(model)).model.layers[0].kernel
    np.testing.assert_array_equal(constraints.find(kernel, PruningMask).mask.numpy(), mask)
    value = kernel.constraint(np.full((4, 3), -1.0, "float32"))
    np.testing.assert_array_equal(value, np.zeros((4, 3)))  # the user's own constraint still runs
    assert constraints.find(kernel, PruningMask) is not constraints.find(model.layers[0].kernel, PruningMask)


def test_insert_and_drop():
    model = zoo.build("sequential")

    def edit(op, state):
        if isinstance(op, kl.Dropout):
            return []
        if op.name == "conv":
            return [state.copy(op), kl.LeakyReLU(name="inserted")]
        return None

    edited = rewrite(read(model), edit).model
    names = [layer.name for layer in edited.layers]
    assert names[:2] == ["conv", "inserted"]
    assert not any("dropout" in name for name in names)


def test_paths_of_nested_layers_reach_replace():
    seen = []
    rewrite(read(zoo.build("nested")), lambda op, state: seen.append(state.path))
    assert {"block/inner", "head/deep/inner", "head/out", "head/head_input"} < set(seen)
    assert len(seen) == len(set(seen))


def test_seeded_dropout_continues_its_stream():
    model = keras.Sequential([keras.Input((50,)), kl.Dropout(0.5, seed=3)])
    ones = np.ones((1, 50), "float32")
    model(ones, training=True)
    clone = rewrite(read(model)).model
    np.testing.assert_array_equal(clone(ones, training=True), model(ones, training=True))


@pytest.mark.parametrize("name", zoo.MODELS)
def test_an_untrained_copy_starts_where_a_new_model_does(name):
    """Biases and statistics at their start values, kernels drawn anew, nothing of the model in it."""
    model = zoo.build(name)
    new, start = untrained(read(model)).model, zoo.MODELS[name]()
    for weight, wanted, old in zip(new.weights, start.weights, model.weights, strict=True):
        assert weight.shape == old.shape
        if np.ptp(wanted.numpy()) == 0:
            np.testing.assert_array_equal(weight.numpy(), wanted.numpy())
        elif "recurrent" not in weight.path:
            assert not np.isclose(weight.numpy(), old.numpy()).any()
    assert len(zoo.predictions(new, zoo.inputs_for(model))) == len(model.outputs)


def test_an_untrained_copy_keeps_what_training_would_not_bring_back():
    adapted = kl.Normalization()
    inside = keras.Sequential([keras.Input((3,)), kl.Dense(3), kl.BatchNormalization()], name="backbone")
    model = keras.Sequential([keras.Input((3,)), adapted, inside, kl.Dense(2), kl.Dense(2, trainable=False)])
    adapted.adapt(np.arange(12.0).reshape(4, 3))
    inside.layers[1].moving_mean.assign([1, 2, 3])
    inside.trainable = False
    pruned = tfopt.prune(model, sparsity=0.5, include=model.layers[-2].name)
    for source in (model, pruned):
        new = untrained(read(source)).model
        kept = [np.array_equal(*(w.numpy() for w in pair)) for pair in zip(new.weights, source.weights, strict=True)]
        assert kept == [True] * 3 + [True] * 6 + [False, True] + [True] * 2  # of the trained layer, the bias is zero
        assert not constraints.constrained(new)


def test_call_arguments_are_kept():
    base = keras.Sequential([keras.Input((3,)), kl.Dropout(0.5)], name="base")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, base(inputs, training=False))
    assert [call.node.arguments.kwargs for call in read(rewrite(read(model)).model).calls] == [{"training": False}]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = kl.Dense(1)

    def call(self, x):
        return self.dense(x)


VERBS = ("prune", "shrink", "drop_layers", "quantize", "strip", "calibrate", "export_tflite", "scale_width")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda: "model.keras", "load_model"),
        (lambda: kl.Dense(1), "keras.Model"),
        (Subclassed, "has to be built"),
        (lambda: keras.Sequential([kl.Dense(1)]), "build"),
    ],
    ids=["text", "layer", "subclassed", "unbuilt"],
)
def test_every_verb_refuses_what_is_no_graph(verb, bad, says, tmp_path):
    extra = {
        "calibrate": (np.zeros((1, 3)),),
        "export_tflite": (tmp_path / "m.tflite",),
        "scale_width": (0.5,),
        "drop_layers": ("dense",),
    }.get(verb, ())
    with pytest.raises(tfopt.TfoptError, match=says):
        getattr(tfopt, verb)(bad(), *extra)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "statistics"), [("residual", 4), ("sequential", 0)])
def test_layers_that_are_frozen_in_the_copy_train_once_unfrozen(name, statistics):
    model = zoo.build(name)
    if name == "residual":
        model.trainable = False
        model.get_layer("pointwise").trainable = True
    else:
        model.layers[0].trainable = False
    copy = rewrite(read(model)).model
    assert [layer.trainable for layer in copy.layers] == [layer.trainable for layer in model.layers]
    assert copy.trainable == model.trainable
    for layer in copy.layers:
        layer.trainable = True
    copy.trainable = True
    before = {weight.path: weight.numpy() for weight in copy.trainable_weights}
    zoo.fit(copy, zoo.inputs_for(model), run_eagerly=True)
    still = [path for path, value in before.items() if np.array_equal(value, _value(copy, path))]
    assert still == []
    assert len(before) == len(copy.weights) - statistics  # those of batch normalization are never trained


def _value(model, path):
    return next(weight.numpy() for weight in model.weights if weight.path == path)


def hard_sigmoid(x):
    """As Keras 2 had it."""
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: kl.Dense(3, activation=hard_sigmoid),
        lambda: kl.LSTM(3, recurrent_activation=hard_sigmoid),
        lambda: kl.TimeDistributed(kl.Dense(3, activation=hard_sigmoid)),
        lambda: kl.Bidirectional(kl.GRU(3, activation=hard_sigmoid)),
        lambda: kl.Activation(hard_sigmoid),
    ],
)
def test_a_function_stays_the_very_function(layer):
    model = keras.Sequential([keras.Input((5, 4)), layer()])
    x = np.random.default_rng(0).normal(0, 3, (8, 5, 4)).astype("float32")
    np.testing.assert_array_equal(rewrite(read(model)).model(x), model(x))
    np.testing.assert_array_equal(in_float32(read(model)).model(x), model(x))


def test_a_function_that_is_changed_on_purpose_changes():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, activation=hard_sigmoid)])

    def linear(op, state):
        return state.copy(op, activation="linear") if isinstance(op, kl.Dense) else None

    assert rewrite(read(model), linear).model.layers[-1].activation is keras.activations.linear
