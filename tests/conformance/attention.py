"""Attention layers."""

from conformance.rows import SEQUENCE, SIXTEEN, Row, between, floats, merging
from keras import layers as kl

KERNELS = ("query/kernel", "key/kernel", "value/kernel", "attention_output/kernel")
ROWS = [
    Row(
        (kl.MultiHeadAttention,),
        between(lambda x: kl.MultiHeadAttention(2, 4)(x, x), SEQUENCE),
        KERNELS,
        int16x8=floats("BATCH_MATMUL*2 FULLY_CONNECTED*4 MUL SOFTMAX TRANSPOSE*4", SIXTEEN, steps=2.0),
    ),
    Row(
        (kl.GroupQueryAttention,),
        between(lambda x: kl.GroupQueryAttention(4, 4, 2)(x, x), SEQUENCE),
        KERNELS,
        int16x8=floats("BATCH_MATMUL*2 FULLY_CONNECTED*4 MUL SOFTMAX TILE*2 TRANSPOSE*4", SIXTEEN, steps=2.0),
    ),
    Row(
        (kl.Attention,),
        merging(lambda a, b: kl.Attention()([a, b]), SEQUENCE),
        int16x8=floats("BATCH_MATMUL*2 SOFTMAX", SIXTEEN),
    ),
    Row(
        (kl.AdditiveAttention,),
        merging(lambda a, b: kl.AdditiveAttention()([a, b]), SEQUENCE),
        int16x8=floats("ADD BATCH_MATMUL MUL SOFTMAX SUM TANH", SIXTEEN),
    ),
]
