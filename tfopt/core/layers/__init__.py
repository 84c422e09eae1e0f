"""Facts about Keras layers and ops. Importing this package enters all of them."""

from tfopt.core.layers import channel_moves, channel_rules, registry  # noqa: F401
