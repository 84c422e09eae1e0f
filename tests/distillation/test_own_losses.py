"""Distillation losses of the user's own: what they get, and that they train and come back from files."""

import warnings

import keras
import numpy as np
import pytest
import zoo
from distilled import SAMPLES, X, Y, net, randomized, softmax
from keras import layers as kl
from keras import ops

import tfopt
from tfopt import distillation as td
from tfopt.core.errors import InvalidArgumentError


@keras.saving.register_keras_serializable(package="tests")
class Squares(td.DistillationLoss):
    """Does not say what it compares."""

    def call(self, student, teacher):
        return ops.mean(ops.square(student - teacher), -1)


@keras.saving.register_keras_serializable(package="tests")
class OfValues(Squares):
    compares = "values"


@keras.saving.register_keras_serializable(package="tests")
class OfLogits(Squares):
    compares = "logits"


@keras.saving.register_keras_serializable(package="tests")
class Projected(td.DistillationLoss):
    """Has a layer inside, and no `build`."""

    on = "features"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.projection = kl.Dense(7)

    def call(self, student, teacher):
        return ops.mean(ops.square(self.projection(student) - teacher), -1)


class Labelled(td.DistillationLoss):
    compares = "values"

    def call(self, student, teacher, labels=None):
        if labels is None:
            return ops.zeros(ops.shape(student)[:1])
        return ops.take_along_axis(teacher, ops.cast(ops.reshape(labels, (-1, 1)), "int32"), -1)[:, 0]


def loss_of(student, teacher, losses, y=None):
    """The distillation loss of the models as they are."""
    distiller = tfopt.Distiller(student, teacher, losses)
    distiller.compile("sgd", None if y is None else "sparse_categorical_crossentropy", evaluate_teacher=True)
    logs = distiller.evaluate(X, y, batch_size=SAMPLES, verbose=0, return_dict=True)
    return logs["distillation_loss"]


def pair(own, theirs):
    return randomized(net(4, own)), randomized(net(8, theirs), seed=1)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


ENDS = {"softmax": softmax, "log_softmax": lambda z: np.log(softmax(z)), "sigmoid": sigmoid, None: lambda z: z}


@pytest.mark.parametrize("end", ENDS)
def test_values_are_what_the_models_give_and_logits_what_stands_before(end):
    models = pair(end, end)
    given = [zoo.called(model, X) for model in models]
    logits = [zoo.called(keras.Sequential([*model.layers[:-1], net_end(model)]), X) for model in models]
    np.testing.assert_allclose(given[0], ENDS[end](logits[0]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss_of(*models, OfValues()), np.mean((given[0] - given[1]) ** 2), rtol=1e-4)
    scores = given if end == "log_softmax" else logits
    np.testing.assert_allclose(loss_of(*models, OfLogits()), np.mean((scores[0] - scores[1]) ** 2), rtol=1e-4)


def net_end(model):
    """The last layer of a model, without its activation."""
    last = model.layers[-1]
    plain = kl.Dense(last.units)
    plain.build((None, last.kernel.shape[0]))
    plain.set_weights(last.get_weights())
    return plain


@pytest.mark.parametrize(("own", "theirs"), [("softmax", "log_softmax"), ("log_softmax", "softmax"), ("softmax", None)])
def test_values_of_classes_are_compared_as_the_student_gives_them(own, theirs):
    student, teacher = pair(own, theirs)
    mine, raw = zoo.called(student, X), zoo.called(teacher, X)
    probabilities = {"softmax": lambda z: z, "log_softmax": np.exp, None: softmax}[theirs](raw)
    other = np.log(probabilities) if own == "log_softmax" else probabilities
    for loss in (OfValues(), td.RegressionTargets()):
        np.testing.assert_allclose(loss_of(student, teacher, loss), np.mean((mine - other) ** 2), rtol=1e-4)


def test_a_class_that_does_not_say_what_it_compares_gets_values_with_a_warning():
    student, teacher = pair("softmax", "softmax")
    with pytest.warns(UserWarning, match="Squares does not say.*probabilities of classes.*compares = 'logits'"):
        loss = loss_of(student, teacher, Squares())
    np.testing.assert_allclose(loss, np.mean((zoo.called(student, X) - zoo.called(teacher, X)) ** 2), rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(*pair(None, None), Squares())  # there logits and values are the same


def test_what_a_class_cannot_compare():
    with pytest.raises(InvalidArgumentError, match="'values' or 'logits'.*'probabilities' in class Wrong"):
        type("Wrong", (Squares,), {"compares": "probabilities"})()
    for loss in (keras.losses.KLDivergence(), keras.losses.kl_divergence, "mse", lambda student, teacher: 0.0):
        with pytest.raises(InvalidArgumentError, match="subclass of `tfopt.distillation.DistillationLoss`"):
            tfopt.Distiller(net(4), net(5), loss)


def test_labels_come_where_call_has_an_argument_for_them():
    student, teacher = pair("softmax", "softmax")
    want = zoo.called(teacher, X)[np.arange(SAMPLES), Y].mean()
    np.testing.assert_allclose(loss_of(student, teacher, Labelled(), Y), want, rtol=1e-5)
    assert loss_of(student, teacher, Labelled()) == 0


def test_layers_inside_are_built_trained_and_saved(tmp_path):
    student, teacher = randomized(net(4)), randomized(net(7), seed=1)
    losses = [Projected(student_layer="norm"), td.RelationalDistance(student_layer="norm"), OfLogits()]
    distiller = tfopt.Distiller(student, teacher, losses)
    kernel = distiller.distillation_losses[0].projection.kernel
    assert kernel.shape == (4, 7)
    before = kernel.numpy()
    distiller.compile("adam", "sparse_categorical_crossentropy", evaluate_teacher=True)
    history = distiller.fit(X, Y, epochs=3, verbose=0).history
    assert np.any(kernel.numpy() != before)
    assert history["projected_loss"][-1] < history["projected_loss"][0]
    want = distiller.evaluate(X, Y, verbose=0, return_dict=True)
    distiller.save(tmp_path / "distiller.keras")
    again = keras.models.load_model(tmp_path / "distiller.keras")
    found = again.evaluate(X, Y, verbose=0, return_dict=True)
    assert found == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("cls", [td.RelationalDistance, td.RelationalAngle, td.SimilarityPreserving])
def test_relational_losses_train_in_a_distiller(cls):
    student, teacher = randomized(net(4)), randomized(net(7), seed=1)
    loss = cls(student_layer="norm")
    cuts = [keras.Model(model.inputs[0], model.get_layer("norm").output) for model in (student, teacher)]
    features = [zoo.called(cut, X) for cut in cuts]
    np.testing.assert_allclose(loss_of(student, teacher, loss), np.mean(loss(*features)), rtol=1e-5)


def test_a_loss_learns_from_a_cache_too():
    student, teacher = pair("softmax", "softmax")
    cache = tfopt.cache_teacher(teacher, (X, Y), dtype="float32", shuffle=False, batch_size=SAMPLES, verbose=0)
    distiller = tfopt.Distiller(student, None, [OfValues(name="values"), OfLogits(name="logits")])
    distiller.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    logs = distiller.evaluate(cache, verbose=0, return_dict=True)
    want = np.mean((zoo.called(student, X) - zoo.called(teacher, X)) ** 2)
    np.testing.assert_allclose(logs["values_loss"], want, rtol=1e-4)
    np.testing.assert_allclose(logs["logits_loss"], loss_of(student, teacher, OfLogits()), rtol=1e-4)
