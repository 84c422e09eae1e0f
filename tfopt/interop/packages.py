"""The only file that imports TFMOT and tf_keras, and only when one of its functions is called.

Importing TFMOT sets `TF_USE_LEGACY_KERAS=1`, which turns a `tf.keras`, `tf.compat.v1.keras` or `tf.compat.v2.keras`
that nobody has used yet into tf_keras, for the whole process. `tfmot` imports it without that.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

import tensorflow as tf

from tfopt.core.errors import TfoptError

_import_lock = threading.RLock()


class MissingPackageError(TfoptError, ImportError):
    """TFMOT, tf_keras or, on Python 3.12 and later, setuptools is not installed."""


@functools.cache
def tfmot() -> ModuleType:
    """The module `tensorflow_model_optimization`, imported at the first call.

    The environment and what `tf.keras`, `tf.compat.v1.keras` and `tf.compat.v2.keras` stand for are as before.

    Raises:
        MissingPackageError: if a package it needs is not installed.

    Example:
        >>> tfmot().sparsity.keras.PolynomialDecay.__name__
        'PolynomialDecay'
    """
    with _import_lock, _keras_kept():
        try:
            importlib.import_module("tf_keras")
            with _aliases_on_tf_keras():
                return importlib.import_module("tensorflow_model_optimization")
        except ImportError as error:
            raise MissingPackageError(
                "TFMOT's schedules and tf_keras models need tensorflow-model-optimization, tf_keras and, from Python "
                "3.12 on, setuptools (for distutils).",
                received=str(error),
                fix="Run: pip install tensorflow-model-optimization tf_keras setuptools",
            ) from error


def is_tf_keras_model(model: object) -> bool:
    """True for a model of tf_keras (Keras 2). Never imports tf_keras: without it there is no such model.

    Example:
        >>> is_tf_keras_model("a path")
        False
    """
    imported = sys.modules.get("tf_keras")
    return imported is not None and isinstance(model, imported.Model)


@contextlib.contextmanager
def _keras_kept() -> Iterator[None]:
    """Holds `tf.keras` and the environment through an import."""
    tf.keras.Model  # noqa: B018  resolves the lazy `tf.keras` to what it is for the user, before anything else does
    variable = "TF_USE_LEGACY_KERAS"
    value = os.environ.get(variable)
    try:
        yield
    finally:
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value


@contextlib.contextmanager
def _aliases_on_tf_keras() -> Iterator[None]:
    """TFMOT reads the recurrent cells it can prune from these two: tf_keras' while it is imported, then the user's."""
    aliases = [(tf.compat.v1, "_v1", tf.compat.v1.keras), (tf.compat.v2, "_v2", tf.compat.v2.keras)]
    for module, version, _ in aliases:
        module.keras = importlib.import_module(f"tf_keras.api.{version}.keras")
    try:
        yield
    finally:
        for module, _, alias in aliases:
            module.keras = alias


def tf_keras() -> ModuleType:
    tfmot()
    return sys.modules["tf_keras"]


def core(name: str) -> ModuleType:
    """A module of TFMOT that its public API leaves out."""
    tfmot()
    return importlib.import_module(f"tensorflow_model_optimization.python.core.{name}")


def pruning_wrapper() -> type:
    return core("sparsity.keras.pruning_wrapper").PruneLowMagnitude


def clustering_wrapper() -> type:
    return core("clustering.keras.cluster_wrapper").ClusterWeights


def quantization_wrapper() -> tuple[type, ...]:
    layer = core("quantization.keras.quantize_layer").QuantizeLayer
    return (tfmot().quantization.keras.QuantizeWrapper, layer)
