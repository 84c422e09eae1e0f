"""Layers and ops that move or select values."""

from conformance.rows import SEQUENCE, SIXTEEN, VECTOR, VOLUME, Row, all_between, between, floats, layer, no
from keras import layers as kl
from keras import ops

from tfopt.core.keras_internals import op_class


def identities(x):
    layers = (kl.Identity(), kl.Dropout(0.1), kl.SpatialDropout2D(0.1), kl.AlphaDropout(0.1), kl.GaussianDropout(0.1))
    for each in (*layers, kl.GaussianNoise(0.1), kl.ActivityRegularization(l2=1e-3)):
        x = each(x)
    return x


def op(names, *calls, **cells):
    """A row of the ops of these names."""
    title = "ops." + ", ".join(name if name != "GetItem" else "x[...]" for name in names)
    return Row(tuple(map(op_class, names)), all_between(*calls), name=cells.pop("name", title), **cells)


ROWS = [
    Row(
        (
            kl.InputLayer,
            kl.Identity,
            kl.Dropout,
            kl.SpatialDropout2D,
            kl.AlphaDropout,
            kl.GaussianDropout,
            kl.GaussianNoise,
            kl.ActivityRegularization,
        ),
        between(identities),
    ),
    Row(
        (kl.SpatialDropout1D, kl.SpatialDropout3D),
        (layer(kl.SpatialDropout1D, 0.1, shape=SEQUENCE), layer(kl.SpatialDropout3D, 0.1, shape=VOLUME)),
    ),
    Row(
        (kl.Flatten, kl.Reshape, kl.Permute),
        (layer(kl.Flatten), layer(kl.Reshape, (9, 16)), layer(kl.Permute, (2, 1, 3))),
    ),
    Row((kl.RepeatVector,), layer(kl.RepeatVector, 3, shape=VECTOR), int16x8=floats("TILE", SIXTEEN)),
    Row(
        (kl.Masking,),
        between(lambda x: kl.GlobalAveragePooling1D()(kl.Masking()(x)), SEQUENCE),
        int8=floats("CAST DIV NOT_EQUAL SUM*2"),
        int16x8=floats("CAST DIV NOT_EQUAL SELECT_V2 SUM*2", SIXTEEN),
    ),
    Row(
        (kl.Masking,),
        between(lambda x: kl.GlobalAveragePooling1D()(kl.Masking(1.0)(x)), SEQUENCE),
        channels=no("whether a step counts depends on all of its values"),
        int8=floats(
            "CAST DIV NOT_EQUAL*2 SELECT_V2 SUM*2", "only zero is sure to be an 8-bit integer; use mask_value=0.0"
        ),
        int16x8=floats("CAST DIV NOT_EQUAL SELECT_V2 SUM*2", SIXTEEN),
        name="Masking of another value than zero",
    ),
    op(("GetItem",), lambda x: x[:, 1:4, :, :2], lambda x: x[..., ::-1]),
    op(
        ("Reshape", "Squeeze", "ExpandDims", "Transpose", "Pad"),
        lambda x: ops.reshape(x, (-1, 9, 16)),
        lambda x: ops.squeeze(ops.expand_dims(x, 1), 1),
        lambda x: ops.transpose(x, (0, 2, 1, 3)),
        lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))),
    ),
    op(
        ("Swapaxes", "Moveaxis"),
        lambda x: ops.swapaxes(x, 1, 2),
        lambda x: ops.moveaxis(x, 1, 2),
        int16x8=floats("TRANSPOSE*2", SIXTEEN),
    ),
    op(
        ("Split",),
        lambda x: ops.add(*ops.split(x, 2, axis=-1)),
        lambda x: ops.add(*ops.split(x, 2, axis=1)),
        int16x8=floats("ADD*2 SPLIT*2", SIXTEEN),
    ),
    op(
        ("Tile", "Repeat"),
        lambda x: ops.tile(x, (1, 2, 1, 1)),
        lambda x: ops.repeat(x, 2, axis=1),
        int16x8=floats("TILE*2", SIXTEEN),
    ),
    op(
        ("Flip",),
        lambda x: ops.flip(x, axis=1),
        int8=floats("FULLY_CONNECTED REVERSE_V2"),
        int16x8=floats("REVERSE_V2", SIXTEEN),
    ),
    op(
        ("Take", "Cast"),
        lambda x: ops.take(x, [0, 2], axis=1),
        lambda x: ops.take(x, [3, 0], axis=-1),
        lambda x: ops.cast(x, "float32"),
        int16x8=floats("", SIXTEEN),
    ),
    op(
        ("Ravel",),
        lambda x: ops.reshape(ops.ravel(x), (-1, 144)),
        channels=no("joins them with the batch, or an axis of unknown size"),
        int16x8=floats("", SIXTEEN),
    ),
    op(
        ("Max", "Min"),
        lambda x: ops.max(x, axis=1),
        lambda x: ops.min(x, axis=1),
        int16x8=floats("REDUCE_MAX REDUCE_MIN", SIXTEEN),
    ),
    op(
        ("BroadcastTo",),
        lambda x: ops.broadcast_to(ops.mean(x, axis=1, keepdims=True), (16, 6, 6, 4)),
        int16x8=floats("BROADCAST_TO", SIXTEEN),
    ),
]
