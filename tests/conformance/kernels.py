"""Layers with kernels of their own: convolutions, matrix products, embeddings."""

from conformance.rows import NO_INTEGERS, SEQUENCE, SIXTEEN, VECTOR, VOLUME, Row, both, floats, layer, no, reading
from keras import layers as kl

from tfopt.core.layers.registry import layers_named

NO_3D = "LiteRT has no integer 3-D convolution"
KERNEL = ("kernel",)


def tokens(cls):
    return reading(lambda x: cls(10, 4)(x), (5,), "int32")


ROWS = [
    Row((kl.Conv1D, kl.Conv2D), (layer(kl.Conv1D, 4, 3, shape=SEQUENCE), layer(kl.Conv2D, 4, 3)), KERNEL),
    Row((kl.Conv2D,), layer(kl.Conv2D, 4, 3, groups=2), KERNEL, name="Conv2D in groups"),
    Row(
        (kl.Conv2D,),
        (layer(kl.Conv2D, 4, 3, activation="elu"), layer(kl.Conv2D, 4, 3, activation="hard_sigmoid")),
        KERNEL,
        int16x8=floats("ADD ELU MUL"),
        name="Conv2D with elu or hard_sigmoid",
    ),
    Row(
        (kl.Conv2D,),
        layer(kl.Conv2D, 4, 3, activation="softsign"),
        KERNEL,
        **both(floats("ABS ADD DIV", f"{NO_INTEGERS} of the activation 'softsign'")),
        name="Conv2D with an activation that has no integer version",
    ),
    Row((kl.Conv3D,), layer(kl.Conv3D, 4, 3, shape=VOLUME), KERNEL, **both(floats("ADD CONV_3D", NO_3D))),
    Row((kl.Conv2DTranspose,), layer(kl.Conv2DTranspose, 4, 3), KERNEL),
    Row(
        (kl.Conv1DTranspose,),
        layer(kl.Conv1DTranspose, 4, 3, shape=SEQUENCE),
        KERNEL,
        int16x8=floats("TRANSPOSE_CONV", SIXTEEN, steps=100),
        note="in an int16x8 file its kernel is stored in 8 bits all the same",
    ),
    Row(
        (kl.Conv3DTranspose,),
        layer(kl.Conv3DTranspose, 4, 3, shape=VOLUME),
        KERNEL,
        **both(floats("ADD CONV_3D_TRANSPOSE", NO_3D)),
    ),
    Row(
        (kl.DepthwiseConv1D, kl.DepthwiseConv2D),
        (layer(kl.DepthwiseConv1D, 3, shape=SEQUENCE), layer(kl.DepthwiseConv2D, 3, depth_multiplier=2)),
    ),
    Row(
        (kl.SeparableConv1D, kl.SeparableConv2D),
        (layer(kl.SeparableConv1D, 4, 3, shape=SEQUENCE), layer(kl.SeparableConv2D, 4, 3)),
        ("pointwise_kernel",),
        int16x8=floats("CONV_2D*2 DEPTHWISE_CONV_2D*2", SIXTEEN),
    ),
    Row((kl.Dense,), layer(kl.Dense, 4, "relu", shape=VECTOR), KERNEL),
    Row(
        (kl.Dense,),
        layer(kl.Dense, 4, shape=VOLUME),
        KERNEL,
        **both(floats("ADD FULLY_CONNECTED")),
        name="Dense over five axes",
    ),
    Row((kl.EinsumDense,), layer(kl.EinsumDense, "abc,cd->abd", (8, 4), bias_axes="d", shape=SEQUENCE), KERNEL),
    Row(
        (kl.EinsumDense,),
        layer(kl.EinsumDense, "abc,bcd->abd", (8, 4), bias_axes="bd", shape=SEQUENCE),
        KERNEL,
        int16x8=no("'tfl.add' op failed to verify"),
        name="EinsumDense with a matrix for each position",
    ),
    *(Row((cls,), tokens(cls), ("embeddings",)) for cls in (kl.Embedding, *layers_named("ReversibleEmbedding"))),
]
