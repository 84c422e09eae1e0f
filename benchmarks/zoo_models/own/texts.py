"""Texts: from strings or from the numbers of words."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from zoo_models.entry import SAMPLES, Animal, Builder, entered_in, tokens

TEXTS: dict[str, Builder] = {}
_enter = entered_in(TEXTS)

WORDS = ["the", "a", "film", "was", "not", "so", "good", "bad", "and", "but", "very", "long", "I", "like", "it", "town"]
LENGTH = 10


def _sentences(count: int = SAMPLES) -> list[list[str]]:
    generator = np.random.default_rng(10)
    return [generator.choice(WORDS, generator.integers(4, LENGTH)).tolist() for _ in range(count)]


class TokenAndPosition(layers.Layer):
    def __init__(self, length, words, width):
        super().__init__()
        self.words = layers.Embedding(input_dim=words, output_dim=width)
        self.positions = layers.Embedding(input_dim=length, output_dim=width)

    def call(self, x):
        positions = ops.arange(start=0, stop=ops.shape(x)[-1], step=1)
        return self.words(x) + self.positions(positions)


class TransformerBlock(layers.Layer):
    def __init__(self, width, heads, inner, rate=0.1):
        super().__init__()
        self.attention = layers.MultiHeadAttention(num_heads=heads, key_dim=width)
        self.ffn = keras.Sequential([layers.Dense(inner, activation="relu"), layers.Dense(width)])
        self.norm1, self.norm2 = (layers.LayerNormalization(epsilon=1e-6) for _ in range(2))
        self.drop1, self.drop2 = layers.Dropout(rate), layers.Dropout(rate)

    def call(self, inputs, training=False):
        x = self.drop1(self.attention(inputs, inputs), training=training)
        x = self.norm1(inputs + x)
        return self.norm2(x + self.drop2(self.ffn(x), training=training))


# Whether a review is good: from the string.


@_enter
def text_classifier() -> Animal:
    sentences = [" ".join(words) for words in _sentences()]
    vectorize = layers.TextVectorization(max_tokens=40, output_sequence_length=LENGTH)
    vectorize.adapt(sentences)
    inputs = keras.Input((1,), dtype="string")
    x = TokenAndPosition(LENGTH, 40, 16)(vectorize(inputs))
    x = layers.GlobalAveragePooling1D()(TransformerBlock(16, 2, 32)(x))
    x = layers.Dense(20, activation="relu")(layers.Dropout(0.1)(x))
    outputs = layers.Dense(2, activation="softmax")(x)
    return Animal(keras.Model(inputs, outputs), tf.constant(sentences)[:, None], from_text=True)


# Names in a text: one tag a word, from the words.


class Tagger(keras.Model):
    def __init__(self, tags, words):
        super().__init__()
        self.lookup = layers.StringLookup(vocabulary=words)
        self.embedding = TokenAndPosition(LENGTH, len(words) + 1, 16)
        self.block = TransformerBlock(16, 2, 32)
        self.dropout1, self.dropout2 = layers.Dropout(0.1), layers.Dropout(0.1)
        self.ff = layers.Dense(24, activation="relu")
        self.final = layers.Dense(tags, activation="softmax")

    def call(self, inputs, training=False):
        x = self.embedding(self.lookup(inputs))
        x = self.dropout1(self.block(x), training=training)
        x = self.dropout2(self.ff(x), training=training)
        return self.final(x)


@_enter
def ner_transformer() -> Animal:
    words = tf.constant([(words * LENGTH)[:LENGTH] for words in _sentences()])
    return Animal(Tagger(5, WORDS), words, from_text=True)


# One sentence from another: recurrent layers and attention.


class Encoder(layers.Layer):
    def __init__(self, words, units):
        super().__init__()
        self.embedding = layers.Embedding(words, units)
        self.rnn = layers.Bidirectional(layers.GRU(units, return_sequences=True), merge_mode="sum")

    def call(self, x):
        return self.rnn(self.embedding(x))


class CrossAttention(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__()
        self.mha = layers.MultiHeadAttention(key_dim=units, num_heads=1, **kwargs)
        self.norm = layers.LayerNormalization()

    def call(self, x, context):
        return self.norm(x + self.mha(query=x, value=context))


class Decoder(layers.Layer):
    def __init__(self, words, units):
        super().__init__()
        self.embedding = layers.Embedding(words, units)
        self.rnn = layers.GRU(units, return_sequences=True, return_state=True)
        self.attention = CrossAttention(units)
        self.output_layer = layers.Dense(words)

    def call(self, context, x, state=None, return_state=False):
        x, state = self.rnn(self.embedding(x), initial_state=state)
        logits = self.output_layer(self.attention(x, context))
        return (logits, state) if return_state else logits


class Translator(keras.Model):
    def __init__(self, words, units):
        super().__init__()
        self.encoder, self.decoder = Encoder(words, units), Decoder(words, units)

    def call(self, inputs):
        context, x = inputs
        return self.decoder(self.encoder(context), x)


@_enter
def seq2seq_attention() -> Animal:
    return Animal(Translator(30, 12), (tokens(8, 30), tokens(6, 30, seed=3)))


# The same with transformers and masks.


class PositionalEmbedding(layers.Layer):
    def __init__(self, length, words, width, **kwargs):
        super().__init__(**kwargs)
        self.token_embeddings = layers.Embedding(input_dim=words, output_dim=width)
        self.position_embeddings = layers.Embedding(input_dim=length, output_dim=width)
        self.length, self.words, self.width = length, words, width

    def call(self, inputs):
        positions = ops.arange(0, ops.shape(inputs)[-1], 1)
        return self.token_embeddings(inputs) + self.position_embeddings(positions)

    def compute_mask(self, inputs, mask=None):
        return ops.not_equal(inputs, 0)

    def get_config(self):
        return {**super().get_config(), "length": self.length, "words": self.words, "width": self.width}


class TransformerEncoder(layers.Layer):
    def __init__(self, width, inner, heads, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(num_heads=heads, key_dim=width)
        self.dense_proj = keras.Sequential([layers.Dense(inner, activation="relu"), layers.Dense(width)])
        self.layernorm_1, self.layernorm_2 = layers.LayerNormalization(), layers.LayerNormalization()
        self.supports_masking = True

    def call(self, inputs, mask=None):
        padding_mask = ops.cast(mask[:, None, :], dtype="int32") if mask is not None else None
        x = self.attention(query=inputs, value=inputs, key=inputs, attention_mask=padding_mask)
        x = self.layernorm_1(inputs + x)
        return self.layernorm_2(x + self.dense_proj(x))


def causal_mask(inputs):
    shape = tf.shape(inputs)
    size, length = shape[0], shape[1]
    rows, columns = tf.range(length)[:, tf.newaxis], tf.range(length)
    mask = tf.reshape(tf.cast(rows >= columns, dtype="int32"), (1, length, length))
    repeats = tf.concat([tf.expand_dims(size, -1), tf.constant([1, 1], dtype=tf.int32)], axis=0)
    return tf.tile(mask, repeats)


class TransformerDecoder(layers.Layer):
    def __init__(self, width, inner, heads, **kwargs):
        super().__init__(**kwargs)
        self.attention_1 = layers.MultiHeadAttention(num_heads=heads, key_dim=width)
        self.attention_2 = layers.MultiHeadAttention(num_heads=heads, key_dim=width)
        self.dense_proj = keras.Sequential([layers.Dense(inner, activation="relu"), layers.Dense(width)])
        self.norms = [layers.LayerNormalization() for _ in range(3)]
        self.supports_masking = True

    def call(self, inputs, mask=None):
        inputs, encoded = inputs
        causal = causal_mask(inputs)
        own, other = (None, None) if mask is None else mask
        x = self.attention_1(query=inputs, value=inputs, key=inputs, attention_mask=causal, query_mask=own)
        x = self.norms[0](inputs + x)
        y = self.attention_2(query=x, value=encoded, key=encoded, query_mask=own, key_mask=other)
        x = self.norms[1](x + y)
        return self.norms[2](x + self.dense_proj(x))


@_enter
def translation_masks() -> Animal:
    source = keras.Input(shape=(None,), dtype="int64", name="source")
    target = keras.Input(shape=(None,), dtype="int64", name="target")
    encoded = TransformerEncoder(16, 32, 2)(PositionalEmbedding(12, 30, 16)(source))
    x = TransformerDecoder(16, 32, 2)([PositionalEmbedding(12, 30, 16)(target), encoded])
    model = keras.Model([source, target], layers.Dense(30, activation="softmax")(layers.Dropout(0.5)(x)))
    data = {"source": tokens(8, 30).astype("int64"), "target": tokens(6, 30, seed=3).astype("int64")}
    for values in data.values():
        values[::2, -2:] = 0  # padding
    return Animal(model, data)


# The next word.


def attention_mask(batch, rows, columns, dtype):
    i, j = ops.arange(rows)[:, None], ops.arange(columns)
    mask = ops.reshape(ops.cast(i >= j - columns + rows, dtype), [1, rows, columns])
    return ops.tile(mask, (batch, 1, 1))


class CausalBlock(layers.Layer):
    def __init__(self, width, heads, inner, rate=0.1):
        super().__init__()
        self.att = layers.MultiHeadAttention(heads, width)
        self.ffn = keras.Sequential([layers.Dense(inner, activation="relu"), layers.Dense(width)])
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        self.dropout = layers.Dropout(rate)

    def call(self, inputs):
        shape = ops.shape(inputs)
        mask = attention_mask(shape[0], shape[1], shape[1], "bool")
        x = self.norms[0](inputs + self.dropout(self.att(inputs, inputs, attention_mask=mask)))
        return self.norms[1](x + self.dropout(self.ffn(x)))


@_enter
def miniature_gpt() -> Animal:
    inputs = keras.Input(shape=(LENGTH,), dtype="int32")
    x = TokenAndPosition(LENGTH, 40, 16)(inputs)
    x = CausalBlock(16, 2, 32)(CausalBlock(16, 2, 32)(x))
    return Animal(keras.Model(inputs, [layers.Dense(40)(x), x]), tokens(LENGTH, 40))
