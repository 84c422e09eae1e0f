"""Layers and ops in which tensors meet."""

from conformance.rows import SEQUENCE, SIXTEEN, Row, between, both, floats, merging, no
from keras import layers as kl
from keras import ops

from tfopt.core.keras_internals import op_class


def lists(*classes):
    """A part for each class, called with a list of two tensors."""
    return tuple(merging(lambda a, b, cls=cls: cls()([a, b])) for cls in classes)


def op(names, *calls, shape=(6, 6, 4), **cells):
    return Row(
        tuple(map(op_class, names)),
        tuple(merging(call, shape) for call in calls),
        name="ops." + ", ".join(names),
        **cells,
    )


LAYERS = (kl.Add, kl.Subtract, kl.Multiply, kl.Maximum)
THREE = "LiteRT averages only two in integers; write it as Add and Rescaling"
STACK = "LiteRT's converter gives all parts the range of the first; write it with `expand_dims` and `concatenate`"
ROWS = [
    Row(LAYERS, lists(*LAYERS)),
    Row((kl.Minimum,), lists(kl.Minimum), int16x8=floats("", steps=30)),
    Row((kl.Average,), lists(kl.Average), int16x8=floats("ADD MUL", SIXTEEN)),
    Row(
        (kl.Average,),
        merging(lambda a, b: kl.Average()([a, b, kl.ReLU()(b)])),
        **both(floats("ADD*2 MUL", THREE)),
        name="Average of three",
    ),
    Row((kl.Concatenate,), lists(kl.Concatenate), int16x8=floats("CONCATENATION", SIXTEEN)),
    Row(
        (kl.Dot,),
        merging(lambda a, b: kl.Dot(2)([a, b]), SEQUENCE),
        int16x8=floats("BATCH_MATMUL", SIXTEEN),
    ),
    op(("Add", "Subtract", "Multiply", "Maximum"), ops.add, ops.subtract, ops.multiply, ops.maximum),
    Row(
        (op_class("Subtract"), op_class("Multiply")),
        (between(lambda x: 1.0 - x), between(lambda x: x * 0.3)),
        int16x8=floats("MUL SUB", SIXTEEN),
        name="1 - x, x * 0.3",
    ),
    op(("Minimum",), ops.minimum, int16x8=floats("", steps=30)),
    op(
        ("Divide", "TrueDivide"),
        lambda a, b: ops.divide(a, ops.relu(b) + 1.0),
        lambda a, b: a / (ops.relu(b) + 1.0),
        channels=no("a masked divisor would be zero"),
        int16x8=floats("ADD*2 DIV*2", SIXTEEN),
    ),
    op(("Concatenate",), lambda a, b: ops.concatenate([a, b], axis=-1), int16x8=floats("CONCATENATION", SIXTEEN)),
    op(
        ("Stack",),
        lambda a, b: ops.stack([a, b], axis=1),
        **both(floats("PACK", STACK)),
    ),
    op(
        ("Matmul",),
        lambda a, b: ops.matmul(a, ops.transpose(b, (0, 2, 1))),
        shape=SEQUENCE,
        int16x8=floats("BATCH_MATMUL", SIXTEEN),
    ),
    op(
        ("Einsum",),
        lambda a, b: ops.einsum("abc,adc->abd", a, b),
        shape=SEQUENCE,
        int16x8=floats("", SIXTEEN),
    ),
]
