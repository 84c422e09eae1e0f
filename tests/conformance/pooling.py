"""Pooling, cropping, padding and resizing."""

from conformance.rows import IMAGE, SEQUENCE, VOLUME, Row, all_between, layer, within
from keras import layers as kl
from keras import ops

from tfopt.core.keras_internals import op_class
from tfopt.editing import pooling

SHAPES = {"1D": SEQUENCE, "2D": IMAGE, "3D": VOLUME}


def named(*stems, module=kl, ranks=SHAPES):
    """The classes of these names with each rank, where the module has them."""
    return tuple(getattr(module, stem + rank) for stem in stems for rank in ranks if hasattr(module, stem + rank))


def rows(classes, *args, name="", **cells):
    """A row of these classes, called with `args`; none where there are no classes."""
    parts = tuple(layer(cls, *args, shape=SHAPES[cls.__name__[-2:]]) for cls in classes)
    return [Row(classes, parts, name=name, **cells)] if classes else []


FLAT = ("1D", "2D")
ROWS = [
    *rows(named("MaxPooling", "ZeroPadding", "Cropping", ranks=FLAT), 1),
    *rows(named("MaxPooling", "ZeroPadding", "Cropping", ranks=["3D"]), 1),
    *rows(named("AveragePooling", ranks=FLAT), 2, int8=within(2.0), int16x8=within(2.0)),
    *rows(named("AveragePooling", ranks=["3D"]), 2, int8=within(2.0), int16x8=within(2.0)),
    *rows(named("GlobalMaxPooling", "GlobalAveragePooling", ranks=FLAT)),
    *rows(named("GlobalMaxPooling", "GlobalAveragePooling", ranks=["3D"])),
    *rows(named("AdaptiveAveragePooling"), 2, int8=within(2.0)),
    *rows(named("AdaptiveMaxPooling"), 2, int8=within(2.0)),
    *rows(
        named("AdaptiveAveragePooling", module=pooling),
        2,
        int8=within(2.0),
        name="tfopt.AdaptiveAveragePooling1D, 2D, 3D",
    ),
    *rows(named("AdaptiveMaxPooling", module=pooling), 2, name="tfopt.AdaptiveMaxPooling1D, 2D, 3D"),
    *rows(named("UpSampling"), 2),
    Row(
        (kl.UpSampling2D, kl.Resizing),
        (layer(kl.UpSampling2D, interpolation="bilinear"), layer(kl.Resizing, 9, 9)),
        name="UpSampling2D, Resizing, bilinear",
    ),
    Row((kl.Resizing,), layer(kl.Resizing, 9, 9, interpolation="bicubic"), name="Resizing, bicubic"),
    Row((kl.CenterCrop,), layer(kl.CenterCrop, 4, 4)),
    Row(
        (op_class("MaxPool"), op_class("AveragePool")),
        all_between(lambda x: ops.max_pool(x, 2), lambda x: ops.average_pool(x, 2)),
        int8=within(2.0),
        name="ops.max_pool, average_pool",
    ),
]
