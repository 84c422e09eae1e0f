"""Data in batches, splits, metrics and what a model gives."""

# Before any module in here: what tfopt does once Keras is there imports several of them, whole.
import keras  # noqa: F401
