"""Models that compute in integers: by training, from data, or in their weights alone."""

# Before any module in here: what tfopt does once Keras is there imports several of them, whole.
import keras  # noqa: F401
