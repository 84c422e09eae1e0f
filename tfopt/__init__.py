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
import re
import warnings
from types import ModuleType

import lazy_loader
import wrapt

from tfopt.core.version import VERSION

__version__ = VERSION

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# They hold the classes that files know, and enter them at Keras, so that `keras.models.load_model` finds them.
_REGISTERING = (
    "core.layers.nodes",
    "core.layers.training_only",
    "core.models.sharing",
    "distillation.distiller",
    "editing.pooling",
    "fusion.cascade",
    "fusion.layers",
    "quantization.quantize",
    "training.clipping",
)


# The newest minor version of Keras that the tests run on. An upper bound in the package's metadata would make pip keep
# back, or take back, the Keras of everything else in the environment, and most of a newer one works.
_TESTED_KERAS = (3, 15)


def _register(keras: ModuleType) -> None:
    for module in _REGISTERING:
        importlib.import_module(f"tfopt.{module}")
    _warn_of_untested(keras.__version__)


def _warn_of_untested(version: str) -> None:
    """Warns of a Keras above the newest tested one; its patch releases are taken as tested."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) > _TESTED_KERAS:
        newest = ".".join(map(str, _TESTED_KERAS))
        warnings.warn(
            f"tfopt was tested with Keras up to {newest}; you have {version}. If something fails, try "
            f"`pip install 'keras=={newest}.*'`; `warnings.filterwarnings('ignore', 'tfopt was tested')` before the "
            "import silences this.",
            stacklevel=2,
        )


# At once if Keras is there, else as soon as it is: `tfopt --help` needs no TensorFlow.
wrapt.register_post_import_hook(_register, "keras")
