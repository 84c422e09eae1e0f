"""Normalization, and layers that scale channels."""

from conformance.rows import SEQUENCE, SIXTEEN, Row, all_between, between, both, floats, layer
from keras import layers as kl

from tfopt.core.keras_internals import application_layer

LayerScale, StochasticDepth = map(application_layer, ("LayerScale", "StochasticDepth"))
CustomScaleLayer = application_layer("CustomScaleLayer")

INSIDE = "mean and variance in 8 bits would cost accuracy, so its inside runs in float"
IN_8_BITS = floats("ADD*2 MUL*4 RSQRT SQUARED_DIFFERENCE SUB SUM*2", INSIDE)
IN_16_BITS = floats("ADD*3 MEAN*2 MUL*3 NEG RSQRT SQUARED_DIFFERENCE", SIXTEEN)


def folded(x):
    x = kl.Conv2D(4, 3, use_bias=False)(x)
    return kl.ReLU()(kl.BatchNormalization()(x))


def alone(x):
    return kl.BatchNormalization()(kl.Activation("tanh")(x))


ROWS = [
    Row((kl.BatchNormalization,), all_between(folded, alone), ("kernel",)),
    Row((kl.LayerNormalization,), layer(kl.LayerNormalization, shape=SEQUENCE), int8=IN_8_BITS, int16x8=IN_16_BITS),
    Row(
        (kl.RMSNormalization,),
        layer(kl.RMSNormalization, shape=SEQUENCE),
        int8=floats("ADD MEAN MUL*2 RSQRT SQUARE", INSIDE),
        int16x8=floats("ADD MEAN MUL*2 RSQRT SQUARE", SIXTEEN),
    ),
    Row(
        (kl.GroupNormalization,),
        layer(kl.GroupNormalization, 2, shape=SEQUENCE),
        int8=IN_8_BITS,
        int16x8=IN_16_BITS,
    ),
    Row(
        (kl.GroupNormalization,),
        layer(kl.GroupNormalization, -1, shape=SEQUENCE),
        int8=IN_8_BITS,
        int16x8=IN_16_BITS,
        name="GroupNormalization of each channel",
    ),
    Row(
        (kl.UnitNormalization,),
        layer(kl.UnitNormalization, shape=SEQUENCE),
        int16x8=floats("MINIMUM MUL RSQRT SQUARE SUM", SIXTEEN),
    ),
    Row(
        (kl.UnitNormalization,),
        layer(kl.UnitNormalization, axis=1, shape=SEQUENCE),
        **both(floats("MINIMUM MUL RSQRT SQUARE SUM", "LiteRT normalizes the last axis only")),
        name="UnitNormalization of another axis",
    ),
    Row(
        (kl.Rescaling, kl.Normalization),
        (layer(kl.Rescaling, 0.5, 1.0), layer(kl.Normalization, mean=[0.1] * 4, variance=[2.0] * 4)),
    ),
    Row((LayerScale,), layer(LayerScale, 1e-1, 4), int16x8=floats("MUL", SIXTEEN)),
    Row((StochasticDepth,), layer(StochasticDepth, 0.1), int16x8=floats("", SIXTEEN)),
    Row(
        (CustomScaleLayer,),
        between(lambda x: CustomScaleLayer(0.5)([x, kl.ReLU()(x)])),
        **both(floats("ADD MUL", "it scales and adds")),
    ),
]
