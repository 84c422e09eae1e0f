"""Ops that `keras.ops` functions of several values leave in a graph: reductions, products, convolutions."""

import numpy as np
from conformance.rows import IMAGE, NO_INTEGERS, SEQUENCE, SIXTEEN, Row, all_between, between, both, floats, no, unknown
from keras import layers as kl
from keras import ops

from tfopt.core.keras_internals import op_class

UNKNOWN = "unknown to tfopt; `@tfopt.register_layer` makes it known"
CONSTANT = both(no("In a nested call() argument, you cannot mix tensors and non-tensors"))
KERNEL = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype("float32")
MATRIX = KERNEL[0, 0]


def op(names, *calls, shape=IMAGE, **cells):
    return Row(tuple(map(op_class, names)), all_between(*calls, shape=shape), name="ops." + ", ".join(names), **cells)


def heads(x):
    return ops.reshape(x, (-1, 8, 2, 2))


def not_empty(x):
    return x * ops.cast(ops.any(ops.not_equal(x, 0.0), axis=-1, keepdims=True), "float32")


ROWS = [
    op(("Mean",), lambda x: ops.mean(x, axis=(1, 2))),
    op(("Sum",), lambda x: ops.sum(x, axis=(1, 2)), int16x8=floats("SUM", SIXTEEN)),
    op(
        ("Var", "Std"),
        lambda x: ops.var(x, axis=(1, 2)),
        lambda x: ops.std(x, axis=(1, 2)),
        **both(floats("MEAN*4 SQRT SQUARED_DIFFERENCE*2", NO_INTEGERS)),
    ),
    op(
        ("Normalize",),
        ops.normalize,
        **both(floats("MINIMUM MUL RSQRT SQUARE SUM", NO_INTEGERS)),
    ),
    op(("Sign",), ops.sign, **both(floats("SIGN", UNKNOWN)), trains=no("the gradient of a sign is 0")),
    op(("NotEqual", "Any"), not_empty, int8=floats("CAST NOT_EQUAL"), int16x8=floats("CAST NOT_EQUAL", SIXTEEN)),
    op(
        ("Dot", "Inner", "Tensordot"),
        lambda x: ops.dot(x, MATRIX),
        lambda x: ops.inner(x, MATRIX),
        lambda x: ops.tensordot(x, MATRIX, 1),
        channels=unknown("Dot"),
        **CONSTANT,
    ),
    op(("Conv",), lambda x: ops.conv(x, KERNEL), channels=unknown("Conv"), **CONSTANT),
    op(
        ("DepthwiseConv", "SeparableConv"),
        lambda x: ops.depthwise_conv(x, KERNEL[..., :1]),
        lambda x: ops.separable_conv(x, KERNEL[..., :1], KERNEL[:1, :1]),
        channels=unknown("DepthwiseConv"),
        **CONSTANT,
    ),
    op(("Roll",), lambda x: ops.roll(x, 1, axis=-1), **both(floats("CONCATENATION SLICE*2", UNKNOWN))),
    op(
        ("Unstack",),
        lambda x: ops.add(*ops.unstack(x[:, :2], axis=1)),
        int8=floats("", UNKNOWN),
        int16x8=floats("ADD UNPACK", UNKNOWN),
    ),
    op(("Glu",), lambda x: ops.glu(x, axis=-1), **both(floats("LOGISTIC MUL SPLIT", UNKNOWN))),
    op(
        ("DotProductAttention",),
        lambda x: ops.reshape(ops.dot_product_attention(heads(x), heads(x), heads(x)), (-1, 8, 4)),
        shape=SEQUENCE,
        **both(floats("BATCH_MATMUL*2 MUL SOFTMAX TRANSPOSE*3", UNKNOWN)),
    ),
    Row((kl.Lambda,), between(lambda x: kl.Lambda(lambda t: ops.relu(t))(x)), opened=True),
]
