"""Meta-models: what is trained on the predictions of the base models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from tfopt.core.data.samples import Labelled, classes_of
from tfopt.core.data.training import compile_alike
from tfopt.core.errors import InvalidArgumentError, UnsupportedModelError
from tfopt.core.keras_internals import compile_options, has_graph
from tfopt.core.models.graph import read
from tfopt.core.models.rewrite import untrained
from tfopt.fusion.bases import Trainee, Training, seed_of

EPOCHS = 50
NEVER = -30.0  # the bias of a class that the training data does not hold


class GivenHead:
    """The user's meta-model: trained from the start, as it was compiled, by `fit`.

    Args:
        model: compiled; built, with as many inputs as there are features, or a Sequential that is not built yet.
        width: number of features.
        fit: arguments of its `fit`, `epochs` among them.
        seed: of initial values and the order of samples.
    """

    def __init__(self, model: Any, width: int, fit: Mapping[str, Any] | None, seed: int):
        options = dict(fit or {})
        self._training = Training.of(options.pop("epochs", EPOCHS), seed, options, "meta_fit")
        sized, self._seed = _sized(model, width), seed
        self.options = compile_options(model, metrics=True) if model.compiled else {}
        if self.options.get("loss") is None:
            raise InvalidArgumentError(
                "`meta` is trained with its own optimizer and loss, and so has to be compiled.",
                received=f"'{model.name}', not compiled or without a loss",
                fix="Call `meta.compile(optimizer, loss)` first.",
            )

        self._trainee = Trainee(self._compiled(sized))

    def trained(self, features: np.ndarray, y: np.ndarray, fold: int = -1) -> keras.Model:
        """A model trained on float32 features, shape (samples, width); the next call trains it anew."""
        model = self._trainee.restart(seed_of(self._seed, fold + 1))
        self._training.run(model, Labelled(features, y), fold + 1)
        return model

    def _compiled(self, sized: keras.Model) -> Callable[[], keras.Model]:
        graph = read(sized)

        def build() -> keras.Model:
            model = untrained(graph).model
            compile_alike(model, self.options)
            return model

        return build


class LinearHead:
    """One dense layer: the logistic regression, or ridge regression, that scikit-learn stacks with by default.

    Args:
        y: labels or targets of all samples.
        classes: number of classes, 1 for two that are told by one number; None for a regression.
    """

    def __init__(self, y: np.ndarray, classes: int | None):
        self._classes = classes
        self._units = classes if classes is not None else int(np.prod(y.shape[1:], dtype=int))
        one_hot = classes is not None and y.ndim == 2 and y.shape[1] == classes > 1
        kind = "binary" if classes == 1 else "categorical" if one_hot else "sparse_categorical"
        loss = "mean_squared_error" if classes is None else f"{kind}_crossentropy"
        metrics = None if classes is None else ["accuracy"]
        self.options = {"optimizer": keras.optimizers.Adam(), "loss": loss, "metrics": metrics}

    def trained(self, features: np.ndarray, y: np.ndarray, fold: int = -1) -> keras.Model:
        """A dense layer behind an input; the regression has one solution, which needs no seed."""
        activation = "linear" if self._classes is None else "sigmoid" if self._classes == 1 else "softmax"
        head = keras.Sequential([keras.Input((features.shape[1],)), kl.Dense(self._units, activation, name="meta")])
        solved = _ridge(features, y) if self._classes is None else _logistic(features, y, self._classes)
        head.set_weights(list(solved))
        return head


def head_of(
    meta: Any, width: int, y: np.ndarray, classes: int | None, fit: Mapping[str, Any] | None, seed: int
) -> GivenHead | LinearHead:
    """The head that `stack` was asked for."""
    if meta is not None:
        if not isinstance(meta, keras.Model):
            raise InvalidArgumentError("`meta` is a compiled Keras model, or None.", received=repr(meta))
        return GivenHead(meta, width, fit, seed)
    if fit is not None:
        raise InvalidArgumentError(
            "`meta_fit` goes with a `meta` of your own; the default one is solved, not trained in epochs.",
            received=repr(fit),
        )
    _linear_models()
    return LinearHead(y, classes)


def _sized(model: keras.Model, width: int) -> keras.Model:
    """A built model for that many features."""
    if isinstance(model, keras.Sequential) and not has_graph(model):
        model = keras.Sequential.from_config(model.get_config())
        model.build((None, width))
    read(model)
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    if shapes != [(None, width)]:
        raise UnsupportedModelError(
            f"`meta` takes the features of a sample, {width} numbers.",
            received=f"'{model.name}' with inputs of shape {', '.join(map(str, shapes))}",
            fix="Give a Sequential without an Input: it is built to fit.",
        )
    return model


def _logistic(features: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias, by scikit-learn, with a column for each class, seen or not."""
    labels = np.asarray(classes_of(y), int)
    seen = np.unique(labels)
    kernel, bias = np.zeros((features.shape[1], max(classes, 2))), np.full(max(classes, 2), NEVER)
    bias[seen] = 0.0
    if len(seen) > 1:
        solver = _linear_models().LogisticRegression(max_iter=2000).fit(features, labels)
        is_last = seen[-1:] if len(seen) == 2 else seen  # of two classes, one number is fitted: that of the second
        kernel[:, is_last], bias[is_last] = solver.coef_.T, solver.intercept_
    if classes == 1:
        return kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1]
    return kernel, bias


def _ridge(features: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    solver = _linear_models().RidgeCV().fit(features.astype(np.float64), y.reshape(len(y), -1))
    return np.atleast_2d(solver.coef_).T, np.atleast_1d(solver.intercept_)


def _linear_models() -> ModuleType:
    try:
        from sklearn import linear_model
    except ImportError as error:
        raise InvalidArgumentError(
            "The default `meta` is solved by scikit-learn.",
            received=str(error),
            fix="pip install tfopt[fusion], or pass a compiled Keras model as `meta`.",
        ) from error
    return linear_model
