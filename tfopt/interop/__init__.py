"""TFMOT and tf_keras: the only place that imports them."""

# Before any module in here: what tfopt does once Keras is there imports several of them, whole.
import keras  # noqa: F401
