"""What `Distiller` refuses, before anything is changed."""

import keras
import numpy as np
import pytest
from distilled import IMAGES, X, Y, cnn, net, same, state
from keras import layers as kl

import tfopt
from tfopt import distillation as td
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, UnsupportedModelError


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = kl.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def with_nan():
    model = net(5)
    model.layers[0].bias.assign(np.full(5, np.nan))
    return model


def inputs_of(shapes):
    inputs = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    return keras.Model(inputs, kl.Dense(3)(kl.Concatenate()(list(inputs.values()))))


MATCH = td.FeatureMatching


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"alpha": 1.5}, InvalidArgumentError, "`alpha`.*1.5"),
        ({"alpha": -0.1}, InvalidArgumentError, "`alpha`"),
        ({"alpha": float("nan")}, InvalidArgumentError, "`alpha`"),
        ({"alpha": True}, InvalidArgumentError, "`alpha`"),
        ({"temperature": 0}, InvalidArgumentError, "`temperature`"),
        ({"temperature": float("inf")}, InvalidArgumentError, "`temperature`"),
        ({"teacher": Subclassed()}, UnsupportedModelError, "unbuilt Subclassed"),
        ({"student": Subclassed()}, UnsupportedModelError, "unbuilt Subclassed"),
        ({"teacher": keras.Sequential([kl.Dense(3)])}, UnsupportedModelError, "built"),
        ({"teacher": "resnet"}, UnsupportedModelError, "keras.Model"),
        ({"teacher": []}, InvalidArgumentError, "a list of one or more"),
        ({"teacher": with_nan()}, NonFiniteError, "NaN"),
        ({"student": with_nan()}, NonFiniteError, "NaN"),
        ({"teacher": net(5, units=4)}, InvalidArgumentError, r"as many classes.*\(None, 3\).*\(None, 4\)"),
        ({"teacher": cnn()}, InvalidArgumentError, "same inputs.*Resizing"),
        ({"teacher": [net(5), net(5, units=4)]}, InvalidArgumentError, "Several teachers have the same outputs"),
        ({"teacher": [net(5), net(5)], "teacher_weights": [1]}, InvalidArgumentError, "one number above 0"),
        ({"teacher": None, "teacher_weights": [1.0]}, InvalidArgumentError, "without a teacher"),
        ({"teacher_weights": [0.0]}, InvalidArgumentError, "finite numbers above 0"),
        ({"losses": "soft"}, InvalidArgumentError, "a loss of tfopt.distillation"),
        ({"losses": []}, InvalidArgumentError, "a loss of tfopt.distillation"),
        (
            {"losses": [td.SoftTargets(name="a"), MATCH(student_layer="norm", name="a")]},
            InvalidArgumentError,
            "a twice",
        ),
        ({"losses": MATCH()}, InvalidArgumentError, "without `student_layer`"),
        ({"losses": MATCH(student_layer="hiden")}, InvalidArgumentError, "'hiden'.*Did you mean 'hidden'"),
        (
            {"losses": MATCH(student_layer="norm", teacher_layer="nrom")},
            InvalidArgumentError,
            "'nrom', which 'big'.*Did you mean 'norm'",
        ),
        ({"losses": MATCH(student_layer="block9")}, InvalidArgumentError, "There are: hidden, norm, out"),
        ({"losses": td.AttentionTransfer(student_layer="norm")}, InvalidArgumentError, "positions"),
        ({"losses": td.SoftTargets(output="tail")}, InvalidArgumentError, "'tail', which the student.*out"),
        ({"losses": td.SoftTargets(output=1)}, InvalidArgumentError, "1, which the student"),
    ],
)
def test_bad_arguments_change_nothing(arguments, error, says):
    student, teacher = net(4), net(5, name="big")
    before = state(student) + state(teacher)
    with pytest.raises(error, match=says):
        tfopt.Distiller(**{"student": student, "teacher": teacher, **arguments})
    same(state(student) + state(teacher), before)
    assert not any(isinstance(layer, td.DistillationLoss) and layer.built for layer in [arguments.get("losses")])


def test_inputs_are_compared_by_name():
    student, teacher = inputs_of({"a": (2,), "b": (2,)}), inputs_of({"a": (2,), "c": (2,)})
    with pytest.raises(InvalidArgumentError, match="inputs of the same names.*'a'.*'b'.*'a'.*'c'"):
        tfopt.Distiller(student, teacher)


def test_a_layer_called_twice_is_named_with_its_call():
    inputs, other = keras.Input((6,)), keras.Input((6,))
    tower = kl.Dense(4, name="tower")
    model = keras.Model([inputs, other], kl.Dense(3)(kl.Concatenate()([tower(inputs), tower(other)])))
    with pytest.raises(InvalidArgumentError, match="called 2 times.*'tower:0' to 'tower:1'"):
        tfopt.Distiller(model, model, MATCH(student_layer="tower"))
    assert tfopt.Distiller(model, model, MATCH(student_layer="tower:1", teacher_layer="tower:0"))


def test_a_projection_is_for_one_pair_of_widths():
    loss = MATCH(student_layer="hidden")
    tfopt.Distiller(net(4), net(7), loss)
    tfopt.Distiller(net(4), net(7), loss)
    with pytest.raises(InvalidArgumentError, match=r"other widths than \[4, 9\]"):
        tfopt.Distiller(net(4), net(9), loss)


def test_a_frozen_student():
    student = net(4)
    student.trainable = False
    with pytest.raises(tfopt.NothingToDoError, match="weights that train"):
        tfopt.Distiller(student, net(5)).compile("sgd", "sparse_categorical_crossentropy")


def test_what_needs_a_teacher_or_something_to_measure():
    with pytest.raises(InvalidArgumentError, match="`evaluate_teacher` needs a teacher"):
        tfopt.Distiller(net(4)).compile("sgd", evaluate_teacher=True)
    distiller = tfopt.Distiller(net(4), net(5))
    distiller.compile("sgd", run_eagerly=True)
    with pytest.raises(InvalidArgumentError, match="neither loss nor metrics"):
        distiller.evaluate(X, Y, verbose=0)
    distiller.compile("sgd", metrics=["accuracy"], run_eagerly=True)
    assert list(distiller.evaluate(X, Y, verbose=0, return_dict=True)) == ["accuracy"]


def test_a_cache_of_other_outputs():
    cache = tfopt.cache_teacher(cnn(), (IMAGES, Y), verbose=0)
    student = keras.Sequential([keras.Input((8, 8, 1)), kl.Flatten(), kl.Dense(5, "softmax")])
    distiller = tfopt.Distiller(student)
    distiller.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    with pytest.raises(InvalidArgumentError, match="the student's outputs"):
        distiller.fit(cache, verbose=0)
