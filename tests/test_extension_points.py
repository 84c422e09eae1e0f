"""The smallest user class or function of each way to extend tfopt, as `docs/extending.md` shows it."""

import keras
import numpy as np
from distilled import X, net, randomized
from zoo import called

import tfopt


def test_a_distillation_loss():
    class Gap(tfopt.distillation.DistillationLoss):
        compares = "logits"

        def call(self, student, teacher):
            return keras.ops.mean(keras.ops.abs(student - teacher), -1)

    student, teacher = randomized(net(4, None)), randomized(net(8, None), seed=1)
    want = np.abs(called(student, X) - called(teacher, X)).mean()
    distiller = tfopt.Distiller(student, teacher, Gap())
    distiller.compile("sgd", evaluate_teacher=True)
    np.testing.assert_allclose(distiller.evaluate(X, verbose=0), want, rtol=1e-5)
