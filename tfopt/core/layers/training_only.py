"""Layers of users that do something in training alone, as stochastic depth does."""

from __future__ import annotations

from typing import Any

import keras

from tfopt.core.layers.channels import passed
from tfopt.core.layers.registry import Output, Record, enter


@keras.saving.register_keras_serializable(package="tfopt")
class TrainingOnly(keras.layers.Layer):
    """A layer whose `call` is known to give its one input in inference; in training it does what it does.

    Args:
        inside: the layer.

    Example:
        >>> layer = TrainingOnly(keras.layers.GaussianNoise(1.0), name="noise")
        >>> layer(keras.ops.ones(2), training=False).numpy().tolist()
        [1.0, 1.0]
    """

    def __init__(self, inside: keras.layers.Layer, **kwargs: Any):
        super().__init__(**kwargs)
        self.inside, self.supports_masking = inside, True

    def build(self, input_shape: Any) -> None:
        if not self.inside.built:
            self.inside.build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.inside(inputs, training=training)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "inside": keras.saving.serialize_keras_object(self.inside)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TrainingOnly:
        inside = keras.saving.deserialize_keras_object(config["inside"])
        return cls(**{**config, "inside": inside})


enter(Record(output=Output.SAME, in_16_bits=True, per_channel=True, channels=passed), TrainingOnly)
