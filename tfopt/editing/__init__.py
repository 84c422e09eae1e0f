"""Other widths, activations, kernel sizes and pooling; fewer layers."""

# Before any module in here: what tfopt does once Keras is there imports several of them, whole.
import keras  # noqa: F401
