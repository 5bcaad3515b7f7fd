"""Families built like LLaVA (tower, projector, causal language model) that differ in one detail each."""

from __future__ import annotations

from typing import Any

from transformers import (
    AriaConfig,
    AriaTextConfig,
    ChameleonConfig,
    CLIPVisionConfig,
    DeepseekVLConfig,
    DeepseekVLHybridConfig,
    Gemma2Config,
    Gemma3Config,
    Granite4VisionConfig,
    JanusConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    PaliGemmaConfig,
    PreTrainedConfig,
    Qwen2Config,
    SamVisionConfig,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VipLlavaConfig,
)

from tests.backbones.families.basic import llama
from tests.backbones.families.common import GROUPED, JUMPING, VISION, VOCABULARY, Family, token

_SOFTCAPPED = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 8}


def paligemma2() -> PreTrainedConfig:
    """The window exceeds these sequences, as the real one of 4096 tokens exceeds the sequences of a robot."""
    text = Gemma2Config(**GROUPED, **_SOFTCAPPED, head_dim=8, sliding_window=256)
    return PaliGemmaConfig(
        text_config=text,
        vision_config=SiglipVisionConfig(**VISION, projection_dim=32, vision_use_head=False),
        image_token_id=token("<image>"),
        projection_dim=32,
        hidden_size=32,
    )


def gemma3() -> PreTrainedConfig:
    """The window is shorter than an image and its instruction."""
    return Gemma3Config(
        text_config={
            **GROUPED,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 24,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
        },
        vision_config={**VISION, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=token("<start_of_image>"),
        eoi_token_index=token("<end_of_image>"),
        image_token_index=token("<image>"),
    )


def _llava_next(cls: type[PreTrainedConfig], **more: Any) -> PreTrainedConfig:
    return cls(
        text_config=llama(), vision_config=CLIPVisionConfig(**VISION), image_token_index=token("<image>"), **more
    )


def llava_next() -> PreTrainedConfig:
    return _llava_next(LlavaNextConfig, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]])


def llava_next_video() -> PreTrainedConfig:
    return _llava_next(
        LlavaNextVideoConfig, image_grid_pinpoints=[[28, 56], [56, 28]], video_token_index=token("<video>")
    )


def video_llava() -> PreTrainedConfig:
    return _llava_next(VideoLlavaConfig, video_token_index=token("<video>"))


def vipllava() -> PreTrainedConfig:
    return _llava_next(VipLlavaConfig, vision_feature_layers=[-2, -1])


def llava_onevision() -> PreTrainedConfig:
    return LlavaOnevisionConfig(
        text_config=Qwen2Config(**GROUPED),
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        image_grid_pinpoints=[[28, 28], [28, 56], [56, 28]],
    )


def deepseek_vl() -> PreTrainedConfig:
    vision = SiglipVisionConfig(**VISION, vision_use_head=False)
    return DeepseekVLConfig(text_config=llama(), vision_config=vision, image_token_id=token("<image_placeholder>"))


def deepseek_vl_hybrid() -> PreTrainedConfig:
    """Two towers read each image, at two sizes."""
    large = {**VISION, "image_size": 56, "output_channels": 32, "window_size": 4, "global_attn_indexes": [1]}
    return DeepseekVLHybridConfig(
        text_config=llama(),
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        high_res_vision_config=SamVisionConfig(**large, mlp_dim=64),
        image_token_id=token("<image_placeholder>"),
    )


def aria() -> PreTrainedConfig:
    """A mixture of experts; the number of tokens of an image depends on its size by a table."""
    experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    return AriaConfig(
        text_config=AriaTextConfig(**GROUPED, **experts),
        vision_config=VISION,
        image_token_index=token("<|img|>"),
        projector_patch_to_query_dict={16: 4, 64: 6},
    )


def chameleon() -> PreTrainedConfig:
    """Images are quantized: their tokens are the last ids of the vocabulary."""
    quantized = {"embed_dim": 4, "num_embeddings": 16, "latent_channels": 32, "base_channels": 32, "resolution": 28}
    codes = {f"IMGIMG{code}Z": VOCABULARY - 16 + place for place, code in enumerate(_LETTERS)}
    return ChameleonConfig(
        **GROUPED,
        vq_config={**quantized, "channel_multiplier": [1, 1, 1]},
        vocabulary_map={"<image>": token("<image>"), **codes},
    )


def granite4_vision() -> PreTrainedConfig:
    """Features of several layers of the tower enter several layers of the language model."""
    vision = SiglipVisionConfig(**{**VISION, "hidden_size": 64}, vision_use_head=False)
    return Granite4VisionConfig(
        text_config={**GROUPED, "num_hidden_layers": 5, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
        vision_config=vision,
        qformer_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64},
        image_token_index=token("<image>"),
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[28, 56], [56, 28]],
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0]],
        spatial_target_layers=[1, 2, 3, 4],
        projector_dropout=0.0,
    )


def janus() -> PreTrainedConfig:
    vision = {**VISION, "mlp_ratio": 2.0, "projection_dim": 32, "num_image_tokens": 16}
    quantized = {"embed_dim": 4, "num_embeddings": 16, "latent_channels": 32, "base_channels": 32}
    return JanusConfig(
        text_config=llama(),
        vision_config=vision,
        vq_config={**quantized, "channel_multiplier": [1, 1], "projection_dim": 32, "image_token_embed_dim": 32},
        image_token_id=token("<image_placeholder>"),
    )


_LETTERS = ("A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "BA", "BB", "BC", "BD", "BE", "BF")  # digits of 0 to 15

FAMILIES = {
    "paligemma2": Family(paligemma2),
    "gemma3": Family(gemma3),
    "llava_next": Family(llava_next),
    "llava_next_video": Family(llava_next_video),
    "video_llava": Family(video_llava),
    "vipllava": Family(vipllava),
    "llava_onevision": Family(llava_onevision),
    "janus": Family(janus),
    "deepseek_vl": Family(deepseek_vl),
    "deepseek_vl_hybrid": Family(deepseek_vl_hybrid, {"image_size": 56}),
    "aria": Family(aria, {"image_size": 28}),
    "chameleon": Family(chameleon, seed=JUMPING),
    "granite4_vision": Family(granite4_vision),
}
