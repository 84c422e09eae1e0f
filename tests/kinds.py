"""Small models of published kinds, whose channels run through splits, slices, transposes, attention and groups."""

import keras
import numpy as np
from keras import layers as kl
from keras import ops

IMAGE, TOKENS = (8, 8, 4), (6, 5)


def conv(units, size=1, **config):
    return kl.Conv2D(units, size, padding="same", use_bias=True, **config)


def head(x):
    return kl.Dense(3, name="head")(kl.Flatten()(x) if len(x.shape) > 2 else x)


def shuffled(x, groups=2):
    *front, channels = x.shape[1:]
    x = ops.reshape(x, (-1, *front, groups, channels // groups))
    x = ops.transpose(x, (0, 1, 2, 4, 3))
    return ops.reshape(x, (-1, *front, channels))


def shuffle_unit(x):
    """ShuffleNet V2 (https://arxiv.org/abs/1807.11164): one half passes, the other is convolved."""
    left, right = ops.split(x, 2, axis=-1)
    right = kl.ReLU()(kl.BatchNormalization()(conv(right.shape[-1])(right)))
    right = kl.BatchNormalization()(kl.DepthwiseConv2D(3, padding="same")(right))
    right = kl.ReLU()(kl.BatchNormalization()(conv(right.shape[-1])(right)))
    return shuffled(kl.Concatenate()([left, right]))


def shuffle_net(x):
    x = conv(16, 3, activation="relu", name="stem")(x)
    return head(kl.GlobalAveragePooling2D()(shuffle_unit(shuffle_unit(x))))


def c2f(x):
    """The block of YOLOv8: half of the channels pass bottlenecks, all parts are joined."""
    x = conv(16, 1, activation="silu", name="enter")(x)
    parts = [x[..., :8], x[..., 8:]]
    for _ in range(2):
        inner = conv(8, 3, activation="silu")(conv(4, 3, activation="silu")(parts[-1]))
        parts.append(parts[-1] + inner)
    return head(conv(6, 1, activation="silu", name="leave")(ops.concatenate(parts, axis=-1)))


def c2f_of_slices_by_position(x):
    x = conv(12, 3, name="enter")(x)
    return head(conv(4)(x[:, 1:, :, 2:9]) + conv(4)(x[:, 1:, :, -5:]) + x[:, 1:, :, 3:4])


def split_at_indices(x):
    a, b, c = ops.split(conv(12, 3, name="enter")(x), [2, 7], axis=-1)
    return head(ops.concatenate([conv(4, 3)(b), c, a], -1))


def split_of_positions(x):
    first, second = ops.split(conv(8, 3, name="enter")(x), 2, axis=1)
    return head(kl.Concatenate(axis=1)([conv(4)(first - second), conv(4)(second)]))


def taken(x):
    x = conv(8, 3, name="enter")(x)
    one = ops.take(x, 3, axis=-1)
    return head(ops.take(x, [0, 2, 5, 2], axis=-1) * ops.take(x, np.array([1, 3, 4, 7]), axis=-1) + one[..., None])


def strided(x):
    x = conv(8, 3, name="enter")(x)
    return head(ops.concatenate([x[..., ::2] * x[..., 1::2], x[..., ::-1], x[..., 5:1:-1]], -1))


def one_picked(x):
    x = conv(8, 3, activation="relu", name="enter")(x)
    return head(ops.stack([x[..., 2], x[..., -1]], axis=-1)) + kl.Dense(3)(kl.GlobalMaxPooling2D()(x))


def glu(x):
    value, gate = ops.split(kl.Conv1D(16, 3, name="both")(x), 2, axis=-1)
    x = value * ops.sigmoid(gate)
    return head(ops.glu(kl.Dense(12, name="again")(x)))


def gated_with_norm(x):
    """gMLP (https://arxiv.org/abs/2105.08050): a gate that is normalized and mixed over positions."""
    short = kl.Dense(8, name="short")(x)
    x = kl.Dense(16, "gelu", name="up")(kl.LayerNormalization()(short))
    value, gate = ops.split(x, 2, axis=-1)
    gate = kl.Permute((2, 1))(kl.Dense(6)(kl.Permute((2, 1))(kl.LayerNormalization()(gate))))
    return head(kl.Dense(8, name="down")(value * gate) + short)


def mixer_block(x, norm):
    y = kl.LayerNormalization()(x) if norm else x
    y = ops.transpose(y, (0, 2, 1))
    y = kl.Dense(x.shape[1])(kl.Dense(12, "gelu")(y))
    x = x + ops.transpose(y, (0, 2, 1))
    y = kl.LayerNormalization()(x) if norm else x
    return x + kl.Dense(x.shape[2])(kl.Dense(20, "gelu")(y))


def mixer(x, norm=False):
    """MLP-Mixer (https://arxiv.org/abs/2105.01601) of nested blocks."""
    x = kl.Dense(16, name="embed")(x)
    for number in range(2):
        inputs = keras.Input(x.shape[1:])
        x = keras.Model(inputs, mixer_block(inputs, norm), name=f"block_{number}")(x)
    return head(kl.GlobalAveragePooling1D()(x))


def mixer_with_norm(x):
    return mixer(x, norm=True)


def attention_by_hand(x, heads=2):
    """As ViTs write it: queries, keys and values out of one matrix product."""
    width = x.shape[-1]
    qkv = ops.reshape(kl.Dense(3 * width)(x), (-1, x.shape[1], 3, heads, width // heads))
    q, k, v = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3, axis=0)
    scores = ops.softmax(ops.matmul(q, ops.swapaxes(k, -1, -2)) * 0.5)
    x = ops.reshape(ops.moveaxis(ops.matmul(scores, v), 1, 2), (-1, x.shape[1], width))
    return kl.Dense(width)(x)


def swin(x):
    """Windows of a Swin transformer (https://arxiv.org/abs/2103.14030), shifted and cut by reshapes."""
    x = kl.Conv2D(8, 1, name="embed")(x)
    y = ops.roll(kl.LayerNormalization()(x), (-1, -1), axis=(1, 2))
    y = ops.transpose(ops.reshape(y, (-1, 2, 4, 2, 4, 8)), (0, 1, 3, 2, 4, 5))
    y = attention_by_hand(ops.reshape(y, (-1, 16, 8)))
    y = ops.transpose(ops.reshape(y, (-1, 2, 2, 4, 4, 8)), (0, 1, 3, 2, 4, 5))
    x = x + ops.roll(ops.reshape(y, (-1, 8, 8, 8)), (1, 1), axis=(1, 2))
    return head(kl.GlobalAveragePooling2D()(x + kl.Dense(8)(kl.Dense(16, "gelu")(kl.LayerNormalization()(x)))))


def einsum_attention(x):
    q, k, v = (kl.EinsumDense("...c,chd->...hd", (2, 4), bias_axes="hd", name=name)(x) for name in "qkv")
    scores = ops.softmax(ops.einsum("bthd,bshd->bhts", q, k) / 2.0)
    return head(kl.EinsumDense("...hd,hdc->...c", 8, bias_axes="c")(ops.einsum("bhts,bshd->bthd", scores, v)))


def attention_op(x):
    q, k, v = (kl.Reshape((6, 2, 4))(kl.Dense(8, name=name)(x)) for name in "qkv")
    return head(ops.dot_product_attention(q, k, v))


def one_head(x):
    return head(kl.MultiHeadAttention(1, 6, 10, name="attention")(x, kl.Dense(8)(x)))


def heads_with_scores(x):
    y, scores = kl.MultiHeadAttention(4, 3, name="attention")(x, x, return_attention_scores=True)
    return head(y) + head_of(scores)


def head_of(scores):
    return kl.Dense(3)(kl.Flatten()(scores))


def grouped_queries(x, queries=4, pairs=2):
    x = kl.Dense(8, name="embed")(x)
    return head(x + kl.GroupQueryAttention(4, queries, pairs, name="attention")(x, x))


def one_pair(x):
    return grouped_queries(x, 3, 1)


def one_query(x):
    return grouped_queries(x, 1, 1)


def attention_layers(x):
    q, k, v = (kl.Dense(8, name=name)(x) for name in "qkv")
    return head(kl.Attention()([q, v, k]) + kl.AdditiveAttention()([q, v, k]))


def dot(x):
    a, b = (kl.Dense(8, name=name)(x) for name in "ab")
    return head(kl.Dot(2, normalize=True)([a, b])) + kl.Dense(3)(
        kl.GlobalMaxPooling1D()(kl.Dot(1)([kl.Dense(4)(b), a]))
    )


def group_norm(x):
    x = kl.ReLU()(kl.GroupNormalization(4)(conv(16, 3, name="grouped")(x)))
    x = conv(12, 3, groups=2, name="in_groups")(x)
    return head(kl.GroupNormalization(1)(conv(6, 3, name="all")(x)))


def moved(x):
    x = ops.moveaxis(kl.Conv2D(8, 3, name="enter")(x), -1, 1)
    x = ops.flip(ops.swapaxes(x, 1, 3), axis=-1)
    x = ops.repeat(ops.tile(x, (1, 1, 2, 2)), 2, axis=-1)
    return head(kl.Conv2D(4, 1)(ops.roll(ops.flip(x, axis=1), 5, axis=-1)))


def stacked(x):
    pair = ops.stack([conv(6, 3, name="a")(x), conv(6, 3, name="b")(x)], axis=1)
    return head(conv(4)(ops.max(pair, axis=1)))


def broadcast(x):
    x = conv(8, 3, name="enter")(x)
    mean = ops.broadcast_to(ops.mean(x, axis=(1, 2), keepdims=True), (4, 8, 8, 8))
    return head(conv(4)(x * np.linspace(0.5, 2, 8, dtype="float32") + mean - np.ones((8, 1, 8), "float32")))


def summed(x):
    x = conv(8, 3, activation="relu", name="enter")(x)
    return head(x / (1.0 + ops.sum(kl.Dense(5, use_bias=False)(x), axis=-1, keepdims=True) ** 2))


def every_step(x):
    x = kl.TimeDistributed(kl.Dense(8), name="enter")(x)
    return head(kl.Dense(4)(kl.TimeDistributed(kl.LayerNormalization())(x)))


def distances(x):
    """Each position against each other, as non-local blocks have it (https://arxiv.org/abs/1711.07971)."""
    a, b, c = (kl.Reshape((64, 6))(conv(6, name=name)(x)) for name in "abc")
    return head(kl.Conv1D(4, 1)(ops.matmul(ops.matmul(a, ops.transpose(b, (0, 2, 1))), c)))


# network: input, units that stay at half of the channels
KINDS = {
    shuffle_net: (IMAGE, {"stem": 8}),
    c2f: (IMAGE, {"enter": 8, "leave": 3}),
    c2f_of_slices_by_position: (IMAGE, {}),
    split_at_indices: (IMAGE, {"enter": 6}),
    split_of_positions: (IMAGE, {"enter": 4}),
    taken: (IMAGE, {}),
    strided: (IMAGE, {}),
    one_picked: (IMAGE, {}),
    glu: (TOKENS, {"both": 8, "again": 6}),
    gated_with_norm: (TOKENS, {"up": 8}),
    mixer: (TOKENS, {"embed": 8}),
    mixer_with_norm: (TOKENS, {"embed": 16}),
    swin: (IMAGE, {"embed": 4}),
    einsum_attention: (TOKENS, {}),
    attention_op: (TOKENS, {"q": 4, "k": 4, "v": 4}),
    one_head: (TOKENS, {}),
    heads_with_scores: (TOKENS, {}),
    grouped_queries: (TOKENS, {"embed": 4}),
    one_pair: (TOKENS, {"embed": 4}),
    one_query: (TOKENS, {"embed": 4}),
    attention_layers: (TOKENS, {"q": 4, "k": 4, "v": 4}),
    dot: (TOKENS, {"a": 4, "b": 4}),
    group_norm: (IMAGE, {"grouped": 8, "in_groups": 6, "all": 3}),
    moved: (IMAGE, {}),
    stacked: (IMAGE, {"a": 3, "b": 3}),
    broadcast: (IMAGE, {"enter": 4}),
    summed: (IMAGE, {}),
    every_step: (TOKENS, {"enter": 4}),
    distances: (IMAGE, {"a": 3, "b": 3, "c": 3}),
}
