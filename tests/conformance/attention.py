"""Attention layers."""

from conformance.rows import SEQUENCE, Row, between, merging
from keras import layers as kl

ROWS = [
    Row(
        (kl.MultiHeadAttention,),
        between(lambda x: kl.MultiHeadAttention(2, 4)(x, x), SEQUENCE),
        ("query/kernel", "key/kernel", "value/kernel", "attention_output/kernel"),
    ),
    Row(
        (kl.GroupQueryAttention,),
        between(lambda x: kl.GroupQueryAttention(4, 4, 2)(x, x), SEQUENCE),
        ("query/kernel", "key/kernel", "value/kernel", "attention_output/kernel"),
    ),
    Row((kl.Attention,), merging(lambda a, b: kl.Attention()([a, b]), SEQUENCE)),
    Row((kl.AdditiveAttention,), merging(lambda a, b: kl.AdditiveAttention()([a, b]), SEQUENCE)),
]
