"""tfopt makes Keras 3 models small and fast and puts them on the edge.

Every technique is one verb that takes a `keras.Model` and gives back a new one; the input is never changed.

Example:
    >>> import keras, tfopt
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)])
    >>> pruned = tfopt.prune(model, sparsity=0.75)  # then compile and fit as usual
    >>> int((pruned.layers[0].kernel.numpy() == 0).sum())
    24
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from tfopt.core.version import VERSION

if TYPE_CHECKING:
    from tfopt.clustering.cluster import cluster as cluster
    from tfopt.core.catalog import register_layer as register_layer
    from tfopt.core.errors import ExportError as ExportError
    from tfopt.core.errors import FileError as FileError
    from tfopt.core.errors import InvalidArgumentError as InvalidArgumentError
    from tfopt.core.errors import NonFiniteError as NonFiniteError
    from tfopt.core.errors import NothingToDoError as NothingToDoError
    from tfopt.core.errors import TargetNotMetError as TargetNotMetError
    from tfopt.core.errors import TfoptError as TfoptError
    from tfopt.core.errors import UnsupportedModelError as UnsupportedModelError
    from tfopt.core.loading import load_model as load_model
    from tfopt.deploy.c_array import export_c_array as export_c_array
    from tfopt.deploy.cascade import TFLiteCascade as TFLiteCascade
    from tfopt.deploy.cascade import export_cascade as export_cascade
    from tfopt.deploy.runner import TFLiteModel as TFLiteModel
    from tfopt.deploy.tflite import export_tflite as export_tflite
    from tfopt.distillation.cache import cache_teacher as cache_teacher
    from tfopt.distillation.distiller import Distiller as Distiller
    from tfopt.distillation.initialization import init_from as init_from
    from tfopt.distillation.stopping import StopAtTarget as StopAtTarget
    from tfopt.editing.depth import drop_layers as drop_layers
    from tfopt.editing.pooling import AdaptiveAveragePooling1D as AdaptiveAveragePooling1D
    from tfopt.editing.pooling import AdaptiveAveragePooling2D as AdaptiveAveragePooling2D
    from tfopt.editing.pooling import AdaptiveMaxPooling1D as AdaptiveMaxPooling1D
    from tfopt.editing.pooling import AdaptiveMaxPooling2D as AdaptiveMaxPooling2D
    from tfopt.editing.swap import swap_activation as swap_activation
    from tfopt.editing.swap import swap_kernel_size as swap_kernel_size
    from tfopt.editing.swap import swap_pooling as swap_pooling
    from tfopt.editing.width import scale_width as scale_width
    from tfopt.fusion.fuse import fuse as fuse
    from tfopt.fusion.soup import average_weights as average_weights
    from tfopt.fusion.stacking import stack as stack
    from tfopt.fusion.thresholds import fit_thresholds as fit_thresholds
    from tfopt.fusion.weights import fit_weights as fit_weights
    from tfopt.interop.tfmot import ConstantSparsity as ConstantSparsity
    from tfopt.interop.tfmot import PolynomialDecay as PolynomialDecay
    from tfopt.pruning.features import drop_features as drop_features
    from tfopt.pruning.features import rank_features as rank_features
    from tfopt.pruning.find import find_sparsity as find_sparsity
    from tfopt.pruning.patterns import Block as Block
    from tfopt.pruning.policies import xnnpack_layers as xnnpack_layers
    from tfopt.pruning.prune import prune as prune
    from tfopt.pruning.sensitivity import sensitivity as sensitivity
    from tfopt.pruning.shrink import shrink as shrink
    from tfopt.pruning.summaries import PruningSummaries as PruningSummaries
    from tfopt.quantization.calibrate import calibrate as calibrate
    from tfopt.quantization.layer_errors import quantization_errors as quantization_errors
    from tfopt.quantization.layer_errors import suggest_float_layers as suggest_float_layers
    from tfopt.quantization.quantize import quantize as quantize
    from tfopt.report.compare import compare as compare
    from tfopt.report.measure import summary as summary
    from tfopt.search.space import SearchSpace as SearchSpace
    from tfopt.search.tune import search as search
    from tfopt.stripping import strip as strip
    from tfopt.training.recipes import recipe as recipe
    from tfopt.training.transfer import fine_tune as fine_tune

__version__ = VERSION

# Public name -> the module it is defined in, under the same name. Loaded when first used.
_PUBLIC = {
    "AdaptiveAveragePooling1D": "tfopt.editing.pooling",
    "AdaptiveAveragePooling2D": "tfopt.editing.pooling",
    "AdaptiveMaxPooling1D": "tfopt.editing.pooling",
    "AdaptiveMaxPooling2D": "tfopt.editing.pooling",
    "Block": "tfopt.pruning.patterns",
    "ConstantSparsity": "tfopt.interop.tfmot",
    "Distiller": "tfopt.distillation.distiller",
    "ExportError": "tfopt.core.errors",
    "FileError": "tfopt.core.errors",
    "InvalidArgumentError": "tfopt.core.errors",
    "NonFiniteError": "tfopt.core.errors",
    "NothingToDoError": "tfopt.core.errors",
    "PolynomialDecay": "tfopt.interop.tfmot",
    "PruningSummaries": "tfopt.pruning.summaries",
    "SearchSpace": "tfopt.search.space",
    "StopAtTarget": "tfopt.distillation.stopping",
    "TFLiteCascade": "tfopt.deploy.cascade",
    "TFLiteModel": "tfopt.deploy.runner",
    "TargetNotMetError": "tfopt.core.errors",
    "TfoptError": "tfopt.core.errors",
    "UnsupportedModelError": "tfopt.core.errors",
    "average_weights": "tfopt.fusion.soup",
    "cache_teacher": "tfopt.distillation.cache",
    "calibrate": "tfopt.quantization.calibrate",
    "cluster": "tfopt.clustering.cluster",
    "compare": "tfopt.report.compare",
    "drop_features": "tfopt.pruning.features",
    "drop_layers": "tfopt.editing.depth",
    "export_c_array": "tfopt.deploy.c_array",
    "export_cascade": "tfopt.deploy.cascade",
    "export_tflite": "tfopt.deploy.tflite",
    "find_sparsity": "tfopt.pruning.find",
    "fine_tune": "tfopt.training.transfer",
    "fit_thresholds": "tfopt.fusion.thresholds",
    "fit_weights": "tfopt.fusion.weights",
    "fuse": "tfopt.fusion.fuse",
    "init_from": "tfopt.distillation.initialization",
    "load_model": "tfopt.core.loading",
    "prune": "tfopt.pruning.prune",
    "quantization_errors": "tfopt.quantization.layer_errors",
    "quantize": "tfopt.quantization.quantize",
    "rank_features": "tfopt.pruning.features",
    "recipe": "tfopt.training.recipes",
    "register_layer": "tfopt.core.catalog",
    "scale_width": "tfopt.editing.width",
    "search": "tfopt.search.tune",
    "sensitivity": "tfopt.pruning.sensitivity",
    "shrink": "tfopt.pruning.shrink",
    "stack": "tfopt.fusion.stacking",
    "strip": "tfopt.stripping",
    "suggest_float_layers": "tfopt.quantization.layer_errors",
    "summary": "tfopt.report.measure",
    "swap_activation": "tfopt.editing.swap",
    "swap_kernel_size": "tfopt.editing.swap",
    "swap_pooling": "tfopt.editing.swap",
    "xnnpack_layers": "tfopt.pruning.policies",
}

# Packages whose own names are public: `tfopt.distillation.SoftTargets`. Loaded when first used.
_PACKAGES = ("distillation", "fusion", "training")

__all__ = list(_PUBLIC)


def _runs_as_command() -> bool:
    """True in the `tfopt` command, which loads TensorFlow only when there is work to do, not to print its help."""
    program = os.path.basename((getattr(sys, "argv", None) or [""])[0])
    return program in ("tfopt", "tfopt.exe") or "tfopt.cli" in sys.orig_argv


if not _runs_as_command():
    # What is not loaded lazily: importing these registers their classes with Keras, so that `keras.models.load_model`
    # finds them in a file.
    for module in (
        "quantization.quantize",
        "distillation.distiller",
        "fusion.cascade",
        "fusion.layers",
        "training.clipping",
    ):
        importlib.import_module(f"tfopt.{module}")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"tfopt.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tfopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    return globals().setdefault(name, value)  # the import put the package `tfopt.search` in place, which can be called


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_PACKAGES})
