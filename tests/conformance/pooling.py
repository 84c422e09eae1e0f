"""Pooling, cropping, padding and resizing."""

from conformance.rows import IMAGE, SEQUENCE, SIXTEEN, VOLUME, Row, all_between, floats, layer, no, within
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


NO_POOL = {what: no(f"'tf.{what}Pool3D' op is neither a custom op nor a flex op") for what in ("Max", "Avg")}
ROWS = [
    *row(named("MaxPooling", "ZeroPadding", "Cropping", ranks=FLAT), 1),
    *row(named("ZeroPadding", "Cropping", ranks=("3D",)), 1, int16x8=floats("PAD STRIDED_SLICE", SIXTEEN)),
    *row(named("MaxPooling", ranks=("3D",)), 1, int8=NO_POOL["Max"], int16x8=NO_POOL["Max"]),
    *row(named("AveragePooling", ranks=FLAT), 2, int8=within(2.0), int16x8=within(2.0)),
    *row(named("AveragePooling", ranks=("3D",)), 2, int8=NO_POOL["Avg"], int16x8=NO_POOL["Avg"]),
    *row(named("GlobalMaxPooling", "GlobalAveragePooling", ranks=FLAT)),
    *row(named("GlobalMaxPooling", "GlobalAveragePooling", ranks=("3D",)), int16x8=floats("MEAN REDUCE_MAX", SIXTEEN)),
    *row(
        named("AdaptiveAveragePooling", ranks=FLAT),
        2,
        int8=within(2.0),
        int16x8=floats("AVERAGE_POOL_2D*6 CONCATENATION*3 GATHER*3", SIXTEEN),
    ),
    *row(named("AdaptiveAveragePooling", ranks=("3D",)), 2, int8=NO_POOL["Avg"], int16x8=NO_POOL["Avg"]),
    *row(named("AdaptiveMaxPooling", ranks=FLAT), 2, int16x8=floats("", SIXTEEN)),
    *row(named("AdaptiveMaxPooling", ranks=("3D",)), 2, int8=NO_POOL["Max"], int16x8=NO_POOL["Max"]),
    *row(
        adaptive("Average", (1, 2)),
        2,
        int8=within(2.0),
        int16x8=floats("", SIXTEEN),
        name="tfopt.AdaptiveAveragePooling1D, tfopt.AdaptiveAveragePooling2D",
    ),
    *row(
        adaptive("Max", (1, 2)),
        2,
        int16x8=floats("", SIXTEEN),
        name="tfopt.AdaptiveMaxPooling1D, tfopt.AdaptiveMaxPooling2D",
    ),
    *row(
        (*adaptive("Average", (3,)), *adaptive("Max", (3,))),
        2,
        int16x8=floats("", SIXTEEN),
        name="tfopt's adaptive pooling in 3-D",
    ),
    *row(named("UpSampling"), 2, int16x8=floats("", SIXTEEN)),
    Row(
        (kl.UpSampling2D, kl.Resizing),
        (layer(kl.UpSampling2D, interpolation="bilinear"), layer(kl.Resizing, 9, 9)),
        int16x8=floats("", SIXTEEN),
        name="UpSampling2D, Resizing, bilinear",
    ),
    Row(
        (kl.Resizing,),
        layer(kl.Resizing, 9, 9, interpolation="bicubic"),
        int8=floats("", "LiteRT has no bicubic interpolation"),
        int16x8=floats("", "LiteRT has no bicubic interpolation"),
        name="Resizing, bicubic",
    ),
    Row((kl.CenterCrop,), layer(kl.CenterCrop, 4, 4), int16x8=floats("", SIXTEEN)),
    Row(
        (op_class("MaxPool"), op_class("AveragePool")),
        all_between(lambda x: ops.max_pool(x, 2), lambda x: ops.average_pool(x, 2)),
        int8=within(2.0),
        int16x8=floats("", SIXTEEN),
        name="ops.MaxPool, AveragePool",
    ),
]
