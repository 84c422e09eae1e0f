import warnings

import keras
import numpy as np
import pytest
import zoo
from keras import layers as kl

import tfopt
from tfopt.core.graph import walk_layers
from tfopt.core.keras_internals import sublayers
from tfopt.core.modes import FakeQuantized
from tfopt.quantization.fakequant import fake_quantize_kernel

KERNELS = ("kernel", "embeddings")


def quietly(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tfopt.quantize(model, **options)


def with_rounded_kernels(model):
    """A float copy of a model whose kernels have the values that the quantized one computes with."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for _, layer in walk_layers(copy):
        for part in sublayers(layer):
            if isinstance(part, (kl.Dense, kl.EinsumDense)):
                part.kernel.assign(fake_quantize_kernel(part.kernel.numpy(), ()))
            if isinstance(part, kl.AdditiveAttention):
                part.scale.assign(fake_quantize_kernel(part.scale.numpy(), ()))
    return copy


def randomize(model, seed=0):
    generator = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(generator.normal(0, 0.5, weight.shape))
    return model


def self_attention(layer, shape=(6, 8), **arguments):
    x = keras.Input(shape)
    return randomize(keras.Model(x, layer(x, x, **arguments)))


def cross_attention(layer, **arguments):
    query, value, key = keras.Input((5, 8)), keras.Input((7, 6)), keras.Input((7, 4))
    return randomize(keras.Model([query, value, key], layer(query, value, key, **arguments)))


def masked_attention(layer):
    x, mask = keras.Input((6, 8)), keras.Input((6, 6), dtype="bool")
    return randomize(keras.Model([x, mask], layer(x, x, attention_mask=mask)))


def embedded(layer, listed=False, **arguments):
    tokens = keras.Input((6,), dtype="int32")
    x = kl.Embedding(10, 8, mask_zero=True)(tokens)
    y = layer([x, x], **arguments) if listed else layer(x, x, **arguments)
    return randomize(keras.Model(tokens, kl.GlobalAveragePooling1D()(y)))


def listed(layer, keys=False, **arguments):
    parts = [keras.Input((5, 8)), keras.Input((7, 8)), *([keras.Input((7, 8))] if keys else [])]
    return randomize(keras.Model(parts, layer(parts, **arguments)))


MHA, GQA = kl.MultiHeadAttention, kl.GroupQueryAttention
CASES = {
    "plain": lambda: self_attention(MHA(2, 4)),
    "no_bias": lambda: self_attention(MHA(2, 4, use_bias=False)),
    "value_dim": lambda: cross_attention(MHA(3, 4, value_dim=5)),
    "output_shape": lambda: self_attention(MHA(2, 4, output_shape=(3, 4))),
    "scores": lambda: self_attention(MHA(2, 4), return_attention_scores=True),
    "causal": lambda: self_attention(MHA(2, 4), use_causal_mask=True),
    "causal_scores": lambda: self_attention(MHA(2, 4), use_causal_mask=True, return_attention_scores=True),
    "dropout": lambda: self_attention(MHA(2, 4, dropout=0.3), use_causal_mask=True),
    "window": lambda: self_attention(MHA(2, 4, sliding_window=2)),
    "gate": lambda: self_attention(MHA(2, 4, use_gate=True)),
    "mask": lambda: masked_attention(MHA(2, 4)),
    "mask_dropout": lambda: masked_attention(MHA(2, 4, dropout=0.5)),
    "padding": lambda: embedded(MHA(2, 4)),
    "padding_causal": lambda: embedded(MHA(2, 4), use_causal_mask=True),
    "axes_all": lambda: self_attention(MHA(2, 3), (3, 4, 8)),
    "axes_one": lambda: self_attention(MHA(2, 3, attention_axes=2), (3, 4, 8)),
    "axes_negative": lambda: self_attention(MHA(2, 3, attention_axes=-3), (3, 4, 8), return_attention_scores=True),
    "grouped": lambda: self_attention(GQA(4, 6, 2)),
    "grouped_causal": lambda: self_attention(GQA(4, 4, 1, use_bias=False), use_causal_mask=True),
    "grouped_padding": lambda: embedded(GQA(4, 4, 2, use_gate=True)),
    "grouped_scores": lambda: self_attention(GQA(4, 4, 2, dropout=0.1), return_attention_scores=True),
    "dot": lambda: listed(kl.Attention()),
    "dot_keys_scale": lambda: listed(kl.Attention(use_scale=True), keys=True),
    "dot_causal_scores": lambda: listed(kl.Attention(dropout=0.2), use_causal_mask=True, return_attention_scores=True),
    "dot_padding": lambda: embedded(kl.Attention(), listed=True),
    "concat": lambda: listed(kl.Attention(score_mode="concat")),
    "concat_scale": lambda: listed(kl.Attention(use_scale=True, score_mode="concat"), keys=True),
    "additive": lambda: listed(kl.AdditiveAttention()),
    "additive_padding": lambda: embedded(kl.AdditiveAttention(use_scale=False), listed=True, use_causal_mask=True),
}


def inputs_for(model, samples=16):
    generator = np.random.default_rng(1)
    arrays = []
    for tensor in model.inputs:
        shape = (samples, *tensor.shape[1:])
        if tensor.dtype == "bool":
            arrays.append(generator.random(shape) < 0.7)
        elif tensor.dtype == "int32":
            tokens = generator.integers(1, 10, shape)
            arrays.append(np.where(np.arange(shape[1]) < generator.integers(2, shape[1], (samples, 1)), tokens, 0))
        else:
            arrays.append(generator.normal(0, 1, shape).astype("float32"))
    return arrays if len(arrays) > 1 else arrays[0]


def float_ops(file):
    """Names of the ops that read or write float tensors, but for those at the door of the file."""
    return sorted({op.name for op in file.op_types if "float32" in str(op)} - {"QUANTIZE", "DEQUANTIZE"})


@pytest.mark.parametrize("name", CASES)
def test_without_ranges_a_wrapper_computes_what_keras_does(name):
    model = CASES[name]()
    x = inputs_for(model)
    wanted = zoo.predictions(with_rounded_kernels(model), x)
    for got, want in zip(zoo.predictions(quietly(model), x), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-5)
