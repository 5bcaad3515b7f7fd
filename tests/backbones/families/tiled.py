"""Families that can cut large images into tiles; here a whole image is one tile."""

from __future__ import annotations

from typing import Any

from transformers import (
    AyaVisionConfig,
    Cohere2Config,
    Cohere2VisionConfig,
    DeepseekOcr2Config,
    GotOcr2Config,
    Idefics2Config,
    InternVLConfig,
    Llama4Config,
    MistralConfig,
    Ovis2Config,
    PPChart2TableConfig,
    PreTrainedConfig,
    QianfanOCRConfig,
    Qwen2Config,
    SiglipVisionConfig,
    Step3p7Config,
)

from tests.backbones.families.common import GROUPED, JUMPING, PREPROCESSOR, VISION, VOCABULARY, Family, token

_LARGER = {**PREPROCESSOR, "size": {"height": 56, "width": 56}}


def internvl() -> PreTrainedConfig:
    vision = {**VISION, "image_size": [28, 28], "patch_size": [7, 7], "use_qk_norm": True, "norm_type": "rms_norm"}
    return InternVLConfig(
        text_config=Qwen2Config(**GROUPED),
        vision_config=vision,
        image_token_id=token("<IMG_CONTEXT>"),
        image_seq_length=4,
    )


def idefics2() -> PreTrainedConfig:
    perceiver = {"resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 8}
    return Idefics2Config(
        text_config=MistralConfig(**GROUPED, head_dim=8, sliding_window=256),
        vision_config={**VISION, "image_size": 70},
        perceiver_config={**perceiver, "num_key_value_heads": 2, "hidden_size": 32},
        image_token_id=token("<image>"),
    )


def _cohere2() -> Cohere2Config:
    """Most layers have a sliding window that is shorter than these sequences."""
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    return Cohere2Config(**{**GROUPED, "num_hidden_layers": 3}, layer_types=layers, sliding_window=24, logit_scale=0.25)


def aya_vision() -> PreTrainedConfig:
    return AyaVisionConfig(
        text_config=_cohere2(),
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        image_token_index=token("<|IMG_PATCH|>"),
        alignment_intermediate_size=64,
    )


def cohere2_vision() -> PreTrainedConfig:
    return Cohere2VisionConfig(
        text_config=_cohere2(),
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        image_token_id=token("<|IMG_PATCH|>"),
        alignment_intermediate_size=64,
    )


def ovis2() -> PreTrainedConfig:
    places = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    return Ovis2Config(
        text_config=Qwen2Config(**GROUPED),
        vision_config={**VISION, "vocab_size": 64, "hidden_stride": 2},
        image_token_id=token("<IMG_ATOM>"),
        visual_indicator_token_ids=[token(place) for place in places],
        hidden_size=32,
        vocab_size=VOCABULARY,
    )


def got_ocr2() -> PreTrainedConfig:
    tower = {**VISION, "image_size": 56, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 64}
    tower["initializer_range"] = 0.2  # the real one, 1e-10, makes the output of convolutions zero
    return GotOcr2Config(
        text_config=Qwen2Config(**GROUPED),
        vision_config={**tower, "output_channels": 32},
        image_token_index=token("<imgpad>"),
        image_seq_length=4,
    )


def qianfan_ocr() -> PreTrainedConfig:
    text = {**GROUPED, "model_type": "qwen3", "head_dim": 8}
    vision = {**VISION, "image_size": [28, 28], "patch_size": [7, 7]}
    return QianfanOCRConfig(
        text_config=text, vision_config=vision, image_token_id=token("<IMG_CONTEXT>"), image_seq_length=4
    )


def pp_chart2table() -> PreTrainedConfig:
    config: Any = got_ocr2()
    vision = {**config.vision_config.to_dict(), "model_type": "pp_chart2table_vision"}
    return PPChart2TableConfig(
        text_config=config.text_config, vision_config=vision, image_token_index=token("<imgpad>"), image_seq_length=4
    )


def llama4() -> PreTrainedConfig:
    """A mixture of experts; three of four layers attend within a chunk, which is longer than these sequences."""
    text = {
        **GROUPED,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "intermediate_size_mlp": 64,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 256,
    }
    vision = {**VISION, "vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64}
    return Llama4Config(
        text_config=text,
        vision_config={**vision, "intermediate_size": 128},
        boi_token_index=token("<|image_start|>"),
        eoi_token_index=token("<|image_end|>"),
        image_token_index=token("<|patch|>"),
    )


def step3p7() -> PreTrainedConfig:
    """A mixture of experts; layers with a window have more heads, and all layers have a gate."""
    text = {
        **GROUPED,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "sliding_window": 24,
        "num_sliding_attention_heads": 8,
        "head_dim": 8,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "share_expert_dim": 32,
    }
    vision = {**VISION, "mlp_ratio": 2.0, "max_position_embeddings": 64, "image_size": 56}
    return Step3p7Config(text_config=text, vision_config=vision, image_token_id=token("<im_patch>"))


def deepseek_ocr2() -> PreTrainedConfig:
    """A tower in two parts: a language model with learned queries reads the tokens of a SAM."""
    sam = {**VISION, "image_size": 112, "window_size": 4, "global_attn_indexes": [1], "output_channels": 32}
    return DeepseekOcr2Config(
        text_config={
            **GROUPED,
            "max_position_embeddings": 2048,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "mlp_layer_types": ["dense", "sparse"],
        },
        vision_config={
            "sam_config": {**sam, "downsample_channels": [32, 32], "initializer_range": 0.2},
            "encoder_config": {**GROUPED, "num_key_value_heads": 2},
        },
        image_token_id=token("<image>"),
    )


FAMILIES = {
    "internvl": Family(internvl),
    "idefics2": Family(idefics2, {"image_size": 28}),
    "aya_vision": Family(aya_vision),
    "cohere2_vision": Family(cohere2_vision),
    "ovis2": Family(ovis2),
    "got_ocr2": Family(got_ocr2, preprocessor=_LARGER),
    "pp_chart2table": Family(pp_chart2table, preprocessor=_LARGER),
    "qianfan_ocr": Family(qianfan_ocr),
    "llama4": Family(llama4, seed=JUMPING),
    "step3p7": Family(step3p7, preprocessor=_LARGER),
    "deepseek_ocr2": Family(deepseek_ocr2, preprocessor={**PREPROCESSOR, "size": {"height": 112, "width": 112}}),
}
