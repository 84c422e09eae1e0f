"""Pooling, cropping, padding and resizing."""

from conformance.rows import (
    IMAGE,
    SEQUENCE,
    SIXTEEN,
    VOLUME,
    Row,
    all_between,
    both,
    floats,
    layer,
    refused,
    unknown,
    within,
)
from keras import layers as kl
from keras import ops

from tfopt.core.keras_internals import op_class
from tfopt.editing import pooling

SHAPES = {"1D": SEQUENCE, "2D": IMAGE, "3D": VOLUME}
FLAT = ("1D", "2D")


def named(*stems, module=kl, ranks=tuple(SHAPES)):
    """The classes of these names with each rank, where the module has them."""
    return tuple(getattr(module, stem + rank) for stem in stems for rank in ranks if hasattr(module, stem + rank))


def adaptive(kind, ranks):
    """tfopt's own classes, of which those for 3-D have no public name."""
    return tuple(pooling._CLASSES["Adaptive", kind, rank] for rank in ranks)


def row(classes, *args, name="", **cells):
    """Rows of these classes, called with `args`; none where there are no classes."""
    parts = tuple(layer(cls, *args, shape=SHAPES[cls.__name__[-2:]]) for cls in classes)
    return [Row(classes, parts, name=name, **cells)] if classes else []


NO_MAX, NO_AVERAGE = both(refused("MaxPool3D")), both(refused("AvgPool3D"))
ROWS = [
    *row(named("MaxPooling", "ZeroPadding", "Cropping", ranks=FLAT), 1),
    *row(named("ZeroPadding", "Cropping", ranks=("3D",)), 1, int16x8=floats("PAD STRIDED_SLICE", SIXTEEN)),
    *row(named("MaxPooling", ranks=("3D",)), 1, **NO_MAX),
    *row(named("AveragePooling", ranks=FLAT), 2, **both(within(2.0))),
    *row(named("AveragePooling", ranks=("3D",)), 2, **NO_AVERAGE),
    *row(named("GlobalMaxPooling", "GlobalAveragePooling", ranks=FLAT)),
    *row(named("GlobalMaxPooling", "GlobalAveragePooling", ranks=("3D",)), int16x8=floats("MEAN REDUCE_MAX", SIXTEEN)),
    *row(
        named("AdaptiveAveragePooling", ranks=FLAT),
        2,
        int8=within(2.0),
        int16x8=floats("AVERAGE_POOL_2D*6 CONCATENATION*3 GATHER*3", SIXTEEN),
    ),
    *row(named("AdaptiveAveragePooling", ranks=("3D",)), 2, **NO_AVERAGE),
    *row(
        named("AdaptiveMaxPooling", ranks=FLAT),
        2,
        int16x8=floats("CONCATENATION*3 GATHER*3 MAX_POOL_2D*6", SIXTEEN),
    ),
    *row(named("AdaptiveMaxPooling", ranks=("3D",)), 2, **NO_MAX),
    *row(
        adaptive("Average", (1, 2)),
        2,
        int8=floats("CONCATENATION*3 FULLY_CONNECTED*2 MEAN*6 STRIDED_SLICE*2"),
        int16x8=floats("CONCATENATION*3 MEAN*6 STRIDED_SLICE*6", SIXTEEN),
        name="tfopt.AdaptiveAveragePooling1D, tfopt.AdaptiveAveragePooling2D",
    ),
    *row(
        adaptive("Max", (1, 2)),
        2,
        int16x8=floats("CONCATENATION*3 REDUCE_MAX*6 STRIDED_SLICE*6", SIXTEEN),
        name="tfopt.AdaptiveMaxPooling1D, tfopt.AdaptiveMaxPooling2D",
    ),
    *row(
        (*adaptive("Average", (3,)), *adaptive("Max", (3,))),
        2,
        int8=floats("CONCATENATION*3 FULLY_CONNECTED MEAN*6 STRIDED_SLICE*4"),
        int16x8=floats("CONCATENATION*6 MEAN*6 REDUCE_MAX*6 STRIDED_SLICE*12", SIXTEEN),
        name="tfopt's adaptive pooling in 3-D",
    ),
    *row(named("UpSampling"), 2, int16x8=floats("TILE*6", SIXTEEN)),
    Row(
        (kl.UpSampling2D, kl.Resizing),
        (layer(kl.UpSampling2D, interpolation="bilinear"), layer(kl.Resizing, 9, 9)),
        int16x8=floats("RESIZE_BILINEAR*2", SIXTEEN),
        name="UpSampling2D, Resizing, bilinear",
    ),
    Row(
        (kl.Resizing,),
        layer(kl.Resizing, 9, 9, interpolation="bicubic"),
        **both(refused("ResizeBicubic")),
        name="Resizing, bicubic",
    ),
    Row(
        (kl.CenterCrop,),
        layer(kl.CenterCrop, 4, 4),
        channels=unknown("CenterCrop"),
        int16x8=floats("STRIDED_SLICE", SIXTEEN),
    ),
    Row(
        (op_class("MaxPool"), op_class("AveragePool")),
        all_between(lambda x: ops.max_pool(x, 2), lambda x: ops.average_pool(x, 2)),
        int8=within(2.0),
        int16x8=floats("AVERAGE_POOL_2D MAX_POOL_2D", SIXTEEN),
        name="ops.MaxPool, AveragePool",
    ),
]
