"""Facts about Keras layers and ops. Importing this package enters all of them."""

from tfopt.core.layers import (  # noqa: F401
    activations,
    attention,
    conv,
    dense,
    merging,
    normalization,
    ops,
    pooling,
    preprocessing,
    recurrent,
    regularization,
    shaping,
    wrappers,
)
