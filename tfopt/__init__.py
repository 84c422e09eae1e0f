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
from types import ModuleType

import lazy_loader
import wrapt

from tfopt.core.version import VERSION

__version__ = VERSION

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# They hold the classes that files know, and enter them at Keras, so that `keras.models.load_model` finds them.
_REGISTERING = (
    "distillation.distiller",
    "editing.pooling",
    "fusion.cascade",
    "fusion.layers",
    "quantization.quantize",
    "training.clipping",
)


def _register(keras: ModuleType) -> None:
    for module in _REGISTERING:
        importlib.import_module(f"tfopt.{module}")


# At once if Keras is there, else as soon as it is: `tfopt --help` needs no TensorFlow.
wrapt.register_post_import_hook(_register, "keras")
