"""Each way to extend tfopt by the smallest class or function of a user's own; `docs/extending.md` explains them."""

from dataclasses import dataclass

import keras
import keras_tuner
import numpy as np
import optuna
import pytest
import tensorflow as tf
from distilled import X, randomized
from distilled import net as classifier
from keras import layers as kl
from zoo import called

import tfopt
from tfopt.pruning.criteria import Criterion
from tfopt.pruning.patterns import Pattern

KERNEL = np.array([[1.0, -5.0, 2.0], [-4.0, 3.0, 6.0]], "float32")


def net():
    model = keras.Sequential([keras.Input((2,)), kl.Dense(3, name="hidden"), kl.Dense(1, name="head")])
    model.get_layer("hidden").kernel.assign(KERNEL)
    return model


def kept(pruned):
    """The weights of the hidden layer that are not zero, in ascending order."""
    kernel = pruned.get_layer("hidden").kernel.numpy()
    return sorted(kernel[kernel != 0].tolist())


@pytest.mark.parametrize("name", ["magnitude", "taylor", "random", "entropy", "neuron", "bn_scale", "wanda", "mine"])
def test_a_criterion_as_a_function_of_any_name(name):
    def smallest(weights):
        return -abs(weights)

    smallest.__name__ = name
    assert kept(tfopt.prune(net(), sparsity=0.5, criterion=smallest, include="hidden")) == [1, 2, 3]
    grown = tfopt.prune(net(), tfopt.ConstantSparsity(0.5, 0), criterion=smallest, include="hidden")
    assert kept(grown) == [1, 2, 3]
    channels = tfopt.prune(net(), pattern="channel", sparsity=2 / 3, criterion=smallest, include="hidden")
    assert kept(channels) == [-4, 1]  # of the sums 5, 8 and 8 with what the head adds


@pytest.mark.parametrize("name", ["magnitude", "taylor", "wanda", "mine"])
def test_a_criterion_as_an_object_of_any_name(name):
    from_above = Criterion(name, lambda weights: weights, comparable=True)
    assert kept(tfopt.prune(net(), sparsity=0.5, criterion=from_above, include="hidden")) == [2, 3, 6]


def test_a_dynamic_criterion_follows_the_weights():
    """A pruned weight comes back when an update makes its score the highest, otherwise never."""

    def trained(dynamic):
        own = Criterion("own", lambda weights: weights * weights, dynamic=dynamic)
        model = keras.Sequential([keras.Input((2,)), kl.Dense(1, use_bias=False, name="hidden")])
        model.get_layer("hidden").kernel.assign([[1.0], [2.0]])
        pruned = tfopt.prune(model, tfopt.ConstantSparsity(0.5, 0, frequency=1), criterion=own)
        assert kept(pruned) == [2]
        pruned.compile(keras.optimizers.SGD(1.0), "mse")
        # y = 2 x2 is 0 at x = (1, 0), where 5 is wanted: the update moves the first weight by 2 * 5.
        pruned.fit(np.array([[1.0, 0.0]]), np.array([[5.0]]), verbose=0)
        return kept(pruned)

    assert trained(dynamic=True) == [10]
    assert trained(dynamic=False) == [2]


def test_a_criterion_that_scores_channels_by_itself():
    def last_stays(model, groups, seed):
        return [np.arange(len(group.channels), dtype="float32") for group in groups]

    own = Criterion("taylor", lambda weights, gradients: weights, ("gradients",), of_channels=last_stays)
    pruned = tfopt.prune(net(), pattern="channel", sparsity=2 / 3, criterion=own, data=np.ones((1, 2)))
    assert kept(pruned) == [2, 6]
    wrong = Criterion("wrong", abs, of_channels=lambda model, groups, seed: [np.ones(2)])
    with pytest.raises(tfopt.InvalidArgumentError, match=r"finite score for each channel.*\[\(2,\)\] for \[\(3,\)\]"):
        tfopt.prune(net(), pattern="channel", criterion=wrong)


def test_a_dynamic_criterion_of_channels():
    """Where channels are scored anew, the one that training makes largest stays."""

    def trained(criterion):
        model = keras.Sequential([keras.Input((2,)), kl.Dense(2, use_bias=False, name="hidden"), kl.Dense(1)])
        model.set_weights([np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0], [1.0]]), np.zeros(1)])
        schedule = tfopt.ConstantSparsity(0.5, 1, frequency=1)
        pruned = tfopt.prune(model, schedule, pattern="channel", criterion=criterion)
        pruned.get_layer("hidden").kernel.assign([[9.0, 2.0], [0.0, 0.0]])
        pruned.compile(keras.optimizers.SGD(0.0), "mse")
        pruned.fit(np.ones((1, 2)), np.ones((1, 1)), verbose=0)
        return kept(pruned)

    assert trained("magnitude") == [9]
    assert trained(Criterion("own", lambda weights: weights * weights, dynamic=True)) == [9]
    assert trained(Criterion("own", lambda weights: weights * weights)) == [2]
    with pytest.raises(tfopt.InvalidArgumentError, match="compiled training step"):
        trained(Criterion("own", lambda weights: np.sort(weights.numpy()), dynamic=True))


@dataclass(frozen=True)
class Columns(Pattern):
    """The weights of one output each."""

    def units(self, shape):
        return shape[-1]

    def pooled(self, scores):
        return tf.reduce_sum(tf.reshape(scores, (-1, scores.shape[-1])), 0)

    def spread(self, stays, shape):
        return tf.broadcast_to(stays, shape)


def test_a_pattern():
    pruned = tfopt.prune(net(), sparsity=2 / 3, pattern=Columns(), criterion=lambda w: w, include="hidden")
    assert kept(pruned) == [2, 6]  # the sums of the columns are -3, -2 and 8


@dataclass(frozen=True)
class Ramp:
    """One weight of six more at each step, up to four."""

    def __call__(self, step):
        return step > 0, tf.minimum(tf.cast(step, tf.float32), 4.0) / 6.0


@pytest.mark.parametrize(
    ("schedule", "zeros"),
    [
        (Ramp(), [1, 2, 3, 4, 4]),
        # TFMOT counts as this formula does: 2/3 - 2/3 * (1 - step / 4) ** 1.
        (tfopt.PolynomialDecay(0.0, 2 / 3, 0, 4, power=1, frequency=1), [1, 2, 3, 4, 4]),
    ],
    ids=["own", "tfmot"],
)
def test_a_schedule(schedule, zeros):
    pruned = tfopt.prune(net(), schedule, include="hidden")
    pruned.compile(keras.optimizers.SGD(1e-3), "mse")
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **logs: seen.append(6 - len(kept(pruned))))
    pruned.fit(np.ones((5, 2)), np.ones(5), batch_size=1, verbose=0, callbacks=[watch])
    assert seen == zeros


def test_a_layer():
    @tfopt.register_layer(prunable=("matrix",))
    class Project(kl.Layer):
        def build(self, shape):
            self.matrix = self.add_weight(shape=(shape[-1], 3), name="matrix")

        def call(self, inputs):
            return inputs @ self.matrix

    model = keras.Sequential([keras.Input((2,)), Project(name="own"), kl.Dense(1)])
    model.get_layer("own").matrix.assign(KERNEL)
    pruned = tfopt.prune(model, sparsity=0.5, include="own").get_layer("own").matrix.numpy()
    assert sorted(pruned[pruned != 0].tolist()) == [-5, -4, 6]


class InTurn(optuna.samplers.BaseSampler):
    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return param_distribution.choices[trial.number % len(param_distribution.choices)]


class Upwards(keras_tuner.Oracle):
    def populate_space(self, trial_id):
        return {"status": "RUNNING", "values": {"units": [3, 1, 2][len(self.trials)]}}


@pytest.mark.parametrize("method", [InTurn(), Upwards()])
def test_a_search_method_is_a_sampler_or_an_oracle(method):
    def builder(hp):
        model = keras.Sequential([keras.Input((2,)), kl.Dense(hp.Choice("units", [3, 1, 2])), kl.Dense(1)])
        model.compile("sgd", "mse")
        return model

    data = np.eye(2, dtype="float32"), np.zeros(2)
    found = tfopt.search(
        builder, train=data, val=data, method=method, objectives="val_loss", budget=3, epochs=1, verbose=0
    )
    assert [trial.values["units"] for trial in found.trials] == [3, 1, 2]


def test_a_distillation_loss():
    class Gap(tfopt.distillation.DistillationLoss):
        compares = "logits"

        def call(self, student, teacher):
            return keras.ops.mean(keras.ops.abs(student - teacher), -1)

    student, teacher = randomized(classifier(4, None)), randomized(classifier(8, None), seed=1)
    want = np.abs(called(student, X) - called(teacher, X)).mean()
    distiller = tfopt.Distiller(student, teacher, Gap())
    distiller.compile("sgd", evaluate_teacher=True)
    np.testing.assert_allclose(distiller.evaluate(X, verbose=0), want, rtol=1e-5)
