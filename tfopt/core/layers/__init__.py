"""Facts about Keras layers and ops. Importing this package enters all of them."""

# Before any module in here: what tfopt does once Keras is there imports several of them, whole.
import keras  # noqa: F401

from tfopt.core.layers import (  # noqa: F401
    activations,
    attention,
    conv,
    dense,
    merging,
    normalization,
    ops,
    picking,
    pooling,
    preprocessing,
    recurrent,
    regularization,
    shaping,
    wrappers,
)
