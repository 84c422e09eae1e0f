"""Models of KerasHub with tiny configurations and random weights."""

from __future__ import annotations

import keras_hub.models as hub
import numpy as np

from zoo_models.entry import SAMPLES, Animal, Builder, entered_in, images, series, tokens

HUB: dict[str, Builder] = {}
_enter = entered_in(HUB)

SHAPE = (32, 32, 3)
LENGTH, WORDS = 12, 60
SIZES = {"vocabulary_size": WORDS, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32}
GROUPED = {
    **{name: size for name, size in SIZES.items() if name != "num_heads"},
    "num_query_heads": 4,
    "num_key_value_heads": 2,
}


# Images.


def _resnet(pre_activation: bool = False, block: str = "basic_block") -> hub.ResNetBackbone:
    return hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 48, 32],
        stackwise_num_blocks=[1, 2, 1],
        stackwise_num_strides=[1, 2, 2],
        block_type=block,
        use_pre_activation=pre_activation,
        image_shape=SHAPE,
    )


@_enter
def resnet_classifier() -> Animal:
    return Animal(hub.ResNetImageClassifier(_resnet(), 10), images())


@_enter
def resnet_v2_classifier() -> Animal:
    return Animal(hub.ResNetImageClassifier(_resnet(True, "bottleneck_block"), 10), images())


@_enter
def mobilenet_classifier() -> Animal:
    backbone = hub.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 72]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[16, 16], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=64,
        depthwise_filters=8,
        depthwise_stride=1,
        depthwise_residual=False,
        last_layer_filter=48,
        squeeze_and_excite=0.5,
        image_shape=SHAPE,
    )
    return Animal(hub.MobileNetImageClassifier(backbone, 10, num_features=64), images())


@_enter
def efficientnet_classifier() -> Animal:
    backbone = hub.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 3,
        stackwise_depth_coefficients=[1.0] * 3,
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[16, 16, 24],
        stackwise_output_filters=[16, 24, 32],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["v1", "unfused", "fused"],
        stackwise_force_input_filters=[0] * 3,
        stackwise_nores_option=[False] * 3,
        num_features=64,
        input_shape=SHAPE,
    )
    return Animal(hub.EfficientNetImageClassifier(backbone, 10), images())


@_enter
def densenet_classifier() -> Animal:
    backbone = hub.DenseNetBackbone(stackwise_num_repeats=[2, 3, 2], growth_rate=12, image_shape=SHAPE)
    return Animal(hub.DenseNetImageClassifier(backbone, 10), images())


@_enter
def vgg_classifier() -> Animal:
    backbone = hub.VGGBackbone([1, 2, 2], [16, 24, 32], image_shape=SHAPE)
    return Animal(hub.VGGImageClassifier(backbone, 10, pooling="flatten", pooling_hidden_dim=64), images())


@_enter
def cspdarknet_classifier() -> Animal:
    backbone = hub.CSPNetBackbone(
        stem_filters=16,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 2],
        stackwise_strides=[2, 2],
        stackwise_num_filters=[24, 32],
        block_type="dark_block",
        stage_type="csp",
        bottle_ratio=[0.5],
        block_ratio=[0.5],
        expand_ratio=[1.0],
        image_shape=SHAPE,
    )
    return Animal(hub.CSPNetImageClassifier(backbone, 10), images())


@_enter
def xception_classifier() -> Animal:
    backbone = hub.XceptionBackbone([[16, 24], [32, 32], [48]], [True, True, False], image_shape=(64, 64, 3))
    return Animal(hub.XceptionImageClassifier(backbone, 10), images(64))


@_enter
def hgnetv2_classifier() -> Animal:
    backbone = hub.HGNetV2Backbone(
        depths=[1, 1],
        embedding_size=16,
        hidden_sizes=[32, 48],
        stem_channels=[3, 8, 16],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[(16, 8, 32, 1, 2, 3), (32, 16, 48, 1, 2, 5)],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True],
        image_shape=SHAPE,
    )
    return Animal(hub.HGNetV2ImageClassifier(backbone, preprocessor=None, num_classes=10), images())


@_enter
def vit_classifier() -> Animal:
    backbone = hub.ViTBackbone(SHAPE, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    return Animal(hub.ViTImageClassifier(backbone, 10), images())


@_enter
def deit_classifier() -> Animal:
    backbone = hub.DeiTBackbone(SHAPE, 8, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32)
    return Animal(hub.DeiTImageClassifier(backbone, 10), images())


@_enter
def dinov2_backbone() -> Animal:
    model = hub.DINOV2Backbone(
        patch_size=8,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        use_mask_token=False,
        image_shape=SHAPE,
        position_embedding_shape=SHAPE,
    )
    return Animal(model, images())


@_enter
def swin_classifier() -> Animal:
    backbone = hub.SwinTransformerBackbone(SHAPE, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    return Animal(hub.SwinTransformerImageClassifier(backbone, 10), images())


def _mit() -> hub.MiTBackbone:
    return hub.MiTBackbone(
        layerwise_depths=[1, 1, 1, 1],
        num_layers=4,
        layerwise_num_heads=[1, 2, 2, 4],
        layerwise_sr_ratios=[2, 2, 1, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 1],
        image_shape=SHAPE,
        hidden_dims=[16, 24, 32, 48],
    )


@_enter
def mit_classifier() -> Animal:
    return Animal(hub.MiTImageClassifier(_mit(), 10), images())


@_enter
def segformer_segmenter() -> Animal:
    backbone = hub.SegFormerBackbone(image_encoder=_mit(), projection_filters=16)
    return Animal(hub.SegFormerImageSegmenter(backbone, 4), images())


@_enter
def deeplab_segmenter() -> Animal:
    backbone = hub.DeepLabV3Backbone(
        image_encoder=_resnet(),
        spatial_pyramid_pooling_key="P4",
        low_level_feature_key="P2",
        upsampling_size=4,
        dilation_rates=[2, 4],
        projection_filters=16,
        image_shape=SHAPE,
    )
    return Animal(hub.DeepLabV3ImageSegmenter(backbone, 4), images())


@_enter
def retinanet_detector() -> Animal:
    encoder = hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 32, 24, 24],
        stackwise_num_blocks=[1] * 4,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(64, 64, 3),
    )
    backbone = hub.RetinaNetBackbone(encoder, min_level=4, max_level=6, use_p5=False, image_shape=(64, 64, 3))
    return Animal(hub.RetinaNetObjectDetector(backbone, 5, pre_logits_num_conv_layers=1), images(64, count=8))


# Text: what a tokenizer gives.


def _sentence(words: int = WORDS) -> dict[str, np.ndarray]:
    return {"token_ids": tokens(LENGTH, words), "padding_mask": _padding_mask()}


def _padding_mask() -> np.ndarray:
    lengths = np.random.default_rng(4).integers(LENGTH // 2, LENGTH + 1, SAMPLES)
    return (np.arange(LENGTH) < lengths[:, None]).astype("int32")


def _two_sentences() -> dict[str, np.ndarray]:
    return {**_sentence(), "segment_ids": np.repeat([[0] * 6 + [1] * (LENGTH - 6)], SAMPLES, 0).astype("int32")}


def _to_sentence() -> dict[str, np.ndarray]:
    return {
        "encoder_token_ids": tokens(LENGTH, WORDS),
        "encoder_padding_mask": _padding_mask(),
        "decoder_token_ids": tokens(LENGTH, WORDS, seed=5),
        "decoder_padding_mask": _padding_mask(),
    }


@_enter
def bert_classifier() -> Animal:
    return Animal(hub.BertTextClassifier(hub.BertBackbone(**SIZES, max_sequence_length=LENGTH), 4), _two_sentences())


@_enter
def distilbert_classifier() -> Animal:
    backbone = hub.DistilBertBackbone(**SIZES, max_sequence_length=LENGTH)
    return Animal(hub.DistilBertTextClassifier(backbone, 4, hidden_dim=16), _sentence())


@_enter
def roberta_classifier() -> Animal:
    backbone = hub.RobertaBackbone(**SIZES, max_sequence_length=LENGTH)
    return Animal(hub.RobertaTextClassifier(backbone, 4, hidden_dim=16), _sentence())


@_enter
def albert_classifier() -> Animal:
    backbone = hub.AlbertBackbone(**SIZES, embedding_dim=8, max_sequence_length=LENGTH)
    return Animal(hub.AlbertTextClassifier(backbone, 4), _two_sentences())


@_enter
def deberta_classifier() -> Animal:
    backbone = hub.DebertaV3Backbone(**SIZES, max_sequence_length=LENGTH, bucket_size=8)
    return Animal(hub.DebertaV3TextClassifier(backbone, 4, hidden_dim=16), _sentence())


@_enter
def electra_backbone() -> Animal:
    sizes = {"vocab_size" if name == "vocabulary_size" else name: size for name, size in SIZES.items()}
    return Animal(hub.ElectraBackbone(**sizes, embedding_dim=8, max_sequence_length=LENGTH), _two_sentences())


@_enter
def xlm_roberta_classifier() -> Animal:
    backbone = hub.XLMRobertaBackbone(**SIZES, max_sequence_length=LENGTH)
    return Animal(hub.XLMRobertaTextClassifier(backbone, 4, hidden_dim=16), _sentence())


@_enter
def fnet_classifier() -> Animal:
    sizes = {name: size for name, size in SIZES.items() if name != "num_heads"}
    data = _two_sentences()
    del data["padding_mask"]
    return Animal(hub.FNetTextClassifier(hub.FNetBackbone(**sizes, max_sequence_length=LENGTH), 4), data)


@_enter
def gpt2_causal_lm() -> Animal:
    return Animal(hub.GPT2CausalLM(hub.GPT2Backbone(**SIZES, max_sequence_length=LENGTH)), _sentence())


@_enter
def opt_causal_lm() -> Animal:
    return Animal(hub.OPTCausalLM(hub.OPTBackbone(**SIZES, max_sequence_length=LENGTH)), _sentence())


@_enter
def bloom_causal_lm() -> Animal:
    return Animal(hub.BloomCausalLM(hub.BloomBackbone(**SIZES)), _sentence())


@_enter
def gemma_causal_lm() -> Animal:
    return Animal(hub.GemmaCausalLM(hub.GemmaBackbone(**GROUPED, head_dim=4)), _sentence())


@_enter
def llama_causal_lm() -> Animal:
    return Animal(hub.LlamaCausalLM(hub.LlamaBackbone(**GROUPED)), _sentence())


@_enter
def mistral_causal_lm() -> Animal:
    return Animal(hub.MistralCausalLM(hub.MistralBackbone(**GROUPED, sliding_window=8)), _sentence())


@_enter
def phi3_causal_lm() -> Animal:
    sizes = {"max_sequence_length": 32, "pretraining_sequence_length": 32}
    return Animal(hub.Phi3CausalLM(hub.Phi3Backbone(**GROUPED, **sizes)), _sentence())


@_enter
def t5_backbone() -> Animal:
    return Animal(hub.T5Backbone(**SIZES), _to_sentence())


@_enter
def bart_backbone() -> Animal:
    return Animal(hub.BartBackbone(**SIZES, max_sequence_length=LENGTH), _to_sentence())


# Sound.


@_enter
def whisper_backbone() -> Animal:
    model = hub.WhisperBackbone(
        **SIZES, num_mels=8, max_encoder_sequence_length=2 * LENGTH, max_decoder_sequence_length=LENGTH
    )
    words = _sentence()
    data = {"decoder_token_ids": words["token_ids"], "decoder_padding_mask": words["padding_mask"]}
    return Animal(model, {"encoder_features": series(2 * LENGTH, 8), **data})


@_enter
def moonshine_backbone() -> Animal:
    model = hub.MoonshineBackbone(
        vocabulary_size=WORDS,
        filter_dim=16,
        encoder_num_layers=1,
        decoder_num_layers=1,
        hidden_dim=16,
        intermediate_dim=32,
        encoder_num_heads=2,
        decoder_num_heads=2,
        max_position_embeddings=64,
    )
    words = _sentence()
    data = {
        "encoder_input_values": series(2048, 1),
        "encoder_padding_mask": np.ones((SAMPLES, 2048), bool),
        "decoder_token_ids": words["token_ids"],
        "decoder_padding_mask": words["padding_mask"].astype(bool),
    }
    return Animal(model, data)
