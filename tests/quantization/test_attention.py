import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers as kl
from quantized import file_outputs, float_ops, inputs_for, outputs_of, quietly, randomize

import tfopt
from tfopt.core.keras_internals import sublayers
from tfopt.core.models.fake_quantized import FakeQuantized
from tfopt.core.models.graph import read
from tfopt.quantization.fakequant import fake_quantize_kernel

KERNELS = {kl.Dense: "kernel", kl.EinsumDense: "kernel", kl.Embedding: "embeddings", kl.AdditiveAttention: "scale"}


def with_rounded_kernels(model):
    """A float copy of a model whose kernels have the values that the quantized one computes with."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for _, layer in read(copy).layers:
        for part in sublayers(layer):
            name = KERNELS.get(type(part))
            if name and getattr(part, name) is not None:
                getattr(part, name).assign(fake_quantize_kernel(getattr(part, name).numpy(), ()))
    return copy


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


@pytest.mark.parametrize("name", CASES)
def test_without_ranges_a_wrapper_computes_what_keras_does(name):
    model = CASES[name]()
    x = inputs_for(model)
    for got, want in zip(outputs_of(quietly(model), x), outputs_of(with_rounded_kernels(model), x), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-5)


POOLING = ["CAST", "DIV", "SUM"]  # of masked positions, behind the attention
FILES = {
    "value_dim": (["BATCH_MATMUL", "FULLY_CONNECTED", "SOFTMAX"], []),
    "scores": (["BATCH_MATMUL", "FULLY_CONNECTED", "SOFTMAX"], []),
    "gate": (["BATCH_MATMUL", "FULLY_CONNECTED", "LOGISTIC", "MUL", "SOFTMAX"], []),
    "mask_dropout": (["BATCH_MATMUL", "FULLY_CONNECTED", "SELECT_V2", "SOFTMAX"], []),
    "padding_causal": (["BATCH_MATMUL", "FULLY_CONNECTED", "SELECT_V2", "SOFTMAX"], POOLING),
    "axes_negative": (["BATCH_MATMUL", "FULLY_CONNECTED", "SOFTMAX"], []),
    "grouped_causal": (["BATCH_MATMUL", "FULLY_CONNECTED", "SELECT_V2", "SOFTMAX"], []),
    "dot_keys_scale": (["BATCH_MATMUL", "MUL", "SOFTMAX"], []),
    "concat_scale": (["ADD", "BATCH_MATMUL", "FULLY_CONNECTED", "MUL", "SOFTMAX", "TANH"], []),
    "additive": (["ADD", "BATCH_MATMUL", "FULLY_CONNECTED", "SOFTMAX", "TANH"], []),
}
MOVES = {"RESHAPE", "TRANSPOSE", "STRIDED_SLICE", "GATHER", "QUANTIZE", "DEQUANTIZE"}


@pytest.mark.parametrize("name", FILES)
def test_the_file_computes_in_integers_what_the_model_does(name, tmp_path):
    integer, floating = FILES[name]
    model = CASES[name]()
    x = inputs_for(model)
    quantized = tfopt.calibrate(quietly(model), x)
    tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=x)
    file = tfopt.TFLiteModel(tmp_path / "m.tflite")
    assert sorted({op.name for op in file.op_types() if op.output_dtype == "int8"} - MOVES) == integer
    assert float_ops(file) == floating
    for got, want, step in zip(
        file_outputs(file, model, x), outputs_of(quantized, x), file.output_steps(), strict=True
    ):
        assert np.abs(got - want).mean() <= 0.3 * step
        assert np.abs(got - want).max() <= 8 * step
    for got, want in zip(outputs_of(quantized, x), outputs_of(model, x), strict=True):
        assert 10 * np.log10((want**2).sum() / ((got - want) ** 2).sum()) > 28


def test_a_mask_leaves_the_scores_their_range():
    """32 scores of a query and key of 4 numbers each, and room for masked ones: log(512 * 6) = 8.03."""
    model = CASES["mask"]()
    quantized = tfopt.calibrate(quietly(model), inputs_for(model, 64))
    low, high = quantized.layers[-1].ranges()["scores"].bounds()
    assert -30 < low < -8.03 < high < 25


def test_masked_keys_get_no_weight_in_the_file(tmp_path):
    """Even of 200 keys that are all masked but one, the others weigh less than one step of the softmax."""
    x, mask = keras.Input((200, 4)), keras.Input((200, 200), dtype="bool")
    scores = MHA(1, 4)(x, x, attention_mask=mask, return_attention_scores=True)[1]
    model = randomize(keras.Model([x, mask], scores))
    generator = np.random.default_rng(2)
    data = [generator.normal(0, 1, (4, 200, 4)).astype("float32"), np.ones((4, 200, 200), bool)]
    quantized = tfopt.calibrate(quietly(model), data)  # without a masked key in sight
    tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=data)
    data[1][:, :, 1:] = False
    weights = file_outputs(tfopt.TFLiteModel(tmp_path / "m.tflite"), model, data)[0]
    assert weights[..., 0].min() >= 254 / 256
    assert weights[..., 1:].max() <= 1 / 256


def gradients(model, x):
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_sum(tf.cast(y, tf.float32) ** 2) for y in keras.tree.flatten(model(x, training=True)))
    return tape.gradient(loss, [weight.value for weight in model.trainable_weights])


@pytest.mark.parametrize("name", ["gate", "padding_causal", "grouped_scores", "concat_scale", "additive", "axes_all"])
def test_gradients_reach_every_weight(name):
    model = CASES[name]()
    quantized, x = quietly(model), inputs_for(model)
    for weight, gradient in zip(quantized.trainable_weights, gradients(quantized, x), strict=True):
        is_key_bias = weight.path.endswith("key/bias")  # adds one number to all scores of a query: softmax drops it
        size = float(tf.reduce_max(tf.abs(tf.convert_to_tensor(gradient))))
        assert np.isfinite(size), weight.path
        assert is_key_bias or size > 1e-4, weight.path
    assert all(np.ptp(part.bounds()) > 0 for layer in layers_of(quantized) for part in layer.ranges().values())


def layers_of(model):
    return [layer for layer in model.layers if isinstance(layer, FakeQuantized)]


def test_gradients_are_the_same_when_compiled():
    model = CASES["causal"]()
    x = tf.constant(inputs_for(model))
    plain, compiled = quietly(model), quietly(model)
    jitted = tf.function(lambda values: gradients(compiled, values), jit_compile=True, autograph=False)(x)
    for one, other in zip(gradients(plain, x), jitted, strict=True):
        np.testing.assert_allclose(one, other, atol=0.02 * float(tf.reduce_max(tf.abs(one))) + 1e-4)


def test_trains_saves_resumes_and_strips(tmp_path):
    model = CASES["gate"]()
    quantized, x = quietly(model), inputs_for(model)
    zoo.fit(quantized, x, jit_compile=False)
    quantized.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    for got, want in zip(outputs_of(loaded, x), outputs_of(quantized, x), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert int(loaded.optimizer.iterations.numpy()) == 4
    plain = tfopt.strip(quantized)
    assert [type(layer) for layer in plain.layers] == [type(layer) for layer in model.layers]
    for weight, trained in zip(plain.trainable_weights, quantized.trainable_weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), trained.numpy())


def test_half_precision_computes_and_exports(tmp_path):
    x = keras.Input((6, 8))
    model = randomize(keras.Model(x, MHA(2, 4, dtype="mixed_float16")(x, x, use_causal_mask=True)))
    quantized, data = quietly(model), inputs_for(model)
    assert model(data).dtype == quantized(data).dtype == tf.float16
    assert all(float(tf.reduce_max(tf.abs(part))) < 1e4 for part in gradients(quantized, data))
    tfopt.export_tflite(tfopt.calibrate(quantized, data), tmp_path / "m.tflite", data=data)
    assert float_ops(tfopt.TFLiteModel(tmp_path / "m.tflite")) == []


@pytest.mark.parametrize("pattern", ["element", "channel"])
def test_pruned_heads_stay_zero_in_training_and_file(pattern, tmp_path):
    tokens = keras.Input((6, 8))
    model = randomize(keras.Model(tokens, kl.Dense(3)(MHA(2, 4)(tokens, kl.Dense(8)(tokens)))))
    pruned = tfopt.prune(model, sparsity=0.5, pattern=pattern)
    quantized, x = quietly(pruned), inputs_for(model)
    optimizer = keras.optimizers.SGD(0.01)
    optimizer.apply(gradients(quantized, x), quantized.trainable_weights)
    zeros = [weight.numpy() == 0 for weight in pruned.weights]
    assert sum(part.sum() for part in zeros) >= (100 if pattern == "element" else 32)
    for part, weight in zip(zeros, tfopt.strip(quantized).weights, strict=True):
        assert (weight.numpy()[part] == 0).all()
    tfopt.export_tflite(quantized, tmp_path / "m.tflite", data=x)
    stored = tfopt.TFLiteModel(tmp_path / "m.tflite").weights()
    in_file = sum(weight.elements - weight.nonzero for weight in stored if weight.dtype == "int8")
    assert in_file >= sum(part.sum() for part, w in zip(zeros, pruned.weights, strict=True) if "kernel" in w.path)


def test_an_activity_regularizer_keeps_the_layer_float_and_says_so():
    model = self_attention(MHA(2, 4, activity_regularizer="l2"))
    dense = keras.Model(model.input, kl.Dense(2)(model.output))
    with pytest.warns(UserWarning, match="multi_head_attention.*activity_regularizer acts on inner tensors"):
        quantized = tfopt.quantize(dense)
    assert isinstance(quantized.layers[2].layer, MHA)  # between integers
