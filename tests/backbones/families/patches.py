"""Families whose towers read images of any size as patches, in various orders."""

from __future__ import annotations

from typing import Any

from transformers import (
    Exaone4_5_Config,
    Gemma4Config,
    Gemma4UnifiedConfig,
    HyperCLOVAXVisionV2Config,
    Kimi_K25Config,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm3VlConfig,
    LightOnOcrConfig,
    LlavaConfig,
    MiniCPMV4_6Config,
    MiniCPMV4_7Config,
    Mistral3Config,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Siglip2VisionConfig,
    VideoLlama3Config,
)

from tests.backbones.families.common import GROUPED, TEXT, VOCABULARY, Family, token
from tests.backbones.families.rope import linear_attention

_TOWER: dict[str, Any] = {**TEXT, "patch_size": 7}


def lfm2_vl() -> PreTrainedConfig:
    text = Lfm2Config(**{**GROUPED, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]})
    return Lfm2VlConfig(
        text_config=text,
        vision_config=Siglip2VisionConfig(**_TOWER, num_patches=36, vision_use_head=False),
        image_token_id=token("<image>"),
        downsample_factor=2,
        projector_hidden_size=48,
    )


def _minicpm(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    return cls(
        text_config=Qwen3_5TextConfig(**linear_attention()),
        vision_config={**_TOWER, "image_size": 42},
        insert_layer_id=0,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
    )


def minicpmv4_6() -> PreTrainedConfig:
    return _minicpm(MiniCPMV4_6Config)


def minicpmv4_7() -> PreTrainedConfig:
    return _minicpm(MiniCPMV4_7Config)


def gemma4() -> PreTrainedConfig:
    """Like E2B: per-layer embeddings, layers that reuse keys and values, a sliding window, wider global heads."""
    text = {
        **GROUPED,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "sliding_window": 24,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 3,
        "final_logit_softcapping": 30.0,
        "use_double_wide_mlp": True,
    }
    vision = {
        **_TOWER,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "pooling_kernel_size": 2,
        "position_embedding_size": 32,
    }
    return Gemma4Config(
        text_config=text,
        vision_config={**vision, "standardize": True},
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video_pad|>"),
        audio_token_id=token("<|vision_end|>"),
        boi_token_id=token("<|image>"),
        eoi_token_id=token("<image|>"),
    )


def gemma4_bidirectional() -> PreTrainedConfig:
    """Like 31B: the tokens of an image attend to each other in the layers with a sliding window."""
    config: Any = gemma4()
    text = config.text_config.to_dict()
    text |= {"use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    config.text_config = type(config.text_config)(**text | {"use_double_wide_mlp": False})
    return config


def mistral3() -> PreTrainedConfig:
    return Mistral3Config(
        text_config=MistralConfig(**GROUPED, head_dim=8, sliding_window=None),
        vision_config=PixtralVisionConfig(**_TOWER, image_size=56),
        image_token_index=token("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def pixtral() -> PreTrainedConfig:
    return LlavaConfig(
        text_config=MistralConfig(**GROUPED, head_dim=8, sliding_window=None),
        vision_config=PixtralVisionConfig(**_TOWER, image_size=56),
        image_token_index=token("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=1,
    )


def gemma4_unified() -> PreTrainedConfig:
    """Has no tower: one layer embeds patches for the language model."""
    text = {
        **GROUPED,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    }
    text |= {"head_dim": 8, "global_head_dim": 16, "sliding_window": 24, "use_bidirectional_attention": "vision"}
    vision = {"patch_size": 7, "pooling_kernel_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 32}
    names = {"image": "<|image|>", "video": "<|video_pad|>", "audio": "<|vision_end|>", "boi": "<|image>"}
    ids = {f"{name}_token_id": token(text) for name, text in (names | {"eoi": "<image|>"}).items()}
    return Gemma4UnifiedConfig(text_config=text, vision_config={**vision, "output_proj_dims": 32}, **ids)


def lfm3_vl() -> PreTrainedConfig:
    """Has no row in the table: the configuration names tokens around images, the forward takes image_grid_thw."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    names |= {"vision_start": "<|image_start|>", "vision_end": "<|image_end|>"}
    return Lfm3VlConfig(
        text_config={**GROUPED, "model_type": "lfm3", "num_hidden_layers": 3},
        vision_config={**vision, "num_key_value_heads": 2, "patch_size": 7},
        projector_hidden_size=48,
        **{f"{name}_token_id": token(text) for name, text in names.items()},
    )


def kimi_k25() -> PreTrainedConfig:
    text = {**GROUPED, "model_type": "deepseek_v3", "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1}
    text |= {"topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
    text |= {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    names = {"image": "<|image_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    return Kimi_K25Config(
        text_config=text,
        vision_config={**_TOWER, "pos_emb_height": 6, "pos_emb_width": 6},
        projection_hidden_size=32,
        **{f"{name}_token_id": token(text) for name, text in names.items()},
    )


def hyperclovax_vision_v2() -> PreTrainedConfig:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 7}
    vision |= {"out_hidden_size": 48, "fullatt_block_indexes": [1], "window_size": 28}
    return HyperCLOVAXVisionV2Config(
        text_config={**GROUPED, "model_type": "hyperclovax"},
        vision_config={**vision, "model_type": "qwen2_5_vl_vision"},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
    )


def video_llama_3() -> PreTrainedConfig:
    return VideoLlama3Config(
        text_config=Qwen2Config(**GROUPED),
        vision_config=dict(_TOWER),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
    )


def exaone4_5() -> PreTrainedConfig:
    """Two layers with a window, then one without a window and without positions."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    text = {**GROUPED, "num_hidden_layers": 3, "sliding_window": 24, "layer_types": kinds}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "num_key_value_heads": 2}
    vision |= {"patch_size": 7, "window_size": 28, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
    return Exaone4_5_Config(
        text_config={**text, "model_type": "exaone4"},
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
    )


def lighton_ocr() -> PreTrainedConfig:
    return LightOnOcrConfig(
        text_config=Qwen3Config(**GROUPED, head_dim=8),
        vision_config=PixtralVisionConfig(**_TOWER, image_size=56),
        image_token_id=token("<|image_pad|>"),
        spatial_merge_size=2,
    )


FAMILIES = {
    "lfm2_vl": Family(lfm2_vl, {"image_size": 28}),
    "minicpmv4_6": Family(minicpmv4_6, {"image_size": 56}),
    "minicpmv4_7": Family(minicpmv4_7, {"image_size": 56}),
    "gemma4": Family(gemma4, {"image_size": 28}),
    "gemma4_bidirectional": Family(gemma4_bidirectional, {"image_size": 28}),
    "mistral3": Family(mistral3, {"image_size": 28}),
    "pixtral": Family(pixtral, {"image_size": 21}),
    "gemma4_unified": Family(gemma4_unified, {"image_size": 28}),
    "lfm3_vl": Family(lfm3_vl, {"image_size": 28}),
    "kimi_k25": Family(kimi_k25, {"image_size": 28}),
    "hyperclovax_vision_v2": Family(hyperclovax_vision_v2, {"image_size": 28}),
    "video_llama_3": Family(video_llama_3, {"image_size": 28}),
    "exaone4_5": Family(exaone4_5, {"image_size": 28}),
    "lighton_ocr": Family(lighton_ocr, {"image_size": 28}),
}
