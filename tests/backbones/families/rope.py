"""Families whose positions have three axes, time, height and width (M-RoPE): Qwen-VL, GLM-4V and similar."""

from __future__ import annotations

from typing import Any

from transformers import (
    CohereCompassConfig,
    Ernie4_5_VLMoeConfig,
    Glm4vConfig,
    Glm4vMoeConfig,
    Glm46VConfig,
    GlmOcrConfig,
    PaddleOCRVLConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

from tests.backbones.families.common import TEXT, VOCABULARY, Family, token

_TOWER: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 7, "spatial_merge_size": 2}
_TOWER_3 = {**_TOWER, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 36}
_SECTIONS = {"rope_type": "default", "mrope_section": [1, 1, 2]}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_INTERLEAVED = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}


def _text(rope: dict[str, Any] = _SECTIONS, **more: Any) -> dict[str, Any]:
    """Return the options of a language model; `rope` is copied, because configurations write into it."""
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    sizes = {"vocab_size": VOCABULARY, "num_key_value_heads": 2, "max_position_embeddings": 512}
    return {**TEXT, **sizes, **ends, "rope_parameters": dict(rope), **more}


def _tokens() -> dict[str, int]:
    return {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def qwen2_vl() -> PreTrainedConfig:
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 7}
    return Qwen2VLConfig(text_config=_text(), vision_config=tower, **_tokens())


def qwen2_5_vl() -> PreTrainedConfig:
    windows = {"intermediate_size": 64, "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 28}
    return Qwen2_5_VLConfig(text_config=_text(), vision_config={**_TOWER, **windows}, **_tokens())


def qwen3_vl() -> PreTrainedConfig:
    text = _text(_INTERLEAVED, head_dim=8)
    deepstack = {**_TOWER_3, "deepstack_visual_indexes": [0, 1]}
    return Qwen3VLConfig(text_config=text, vision_config=deepstack, **_tokens())


def linear_attention() -> dict[str, Any]:
    """Return the options of a language model like Qwen 3.5: three layers of linear attention, then a full one."""
    sizes = {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    return _text({**_INTERLEAVED, "partial_rotary_factor": 0.25}, num_hidden_layers=4, head_dim=32, **sizes)


def qwen3_5() -> PreTrainedConfig:
    return Qwen3_5Config(text_config=linear_attention(), vision_config=_TOWER_3, **_tokens())


def qwen3_vl_moe() -> PreTrainedConfig:
    text = _text(_INTERLEAVED, head_dim=8, num_experts=4, **_EXPERTS)
    deepstack = {**_TOWER_3, "deepstack_visual_indexes": [0, 1]}
    return Qwen3VLMoeConfig(text_config=text, vision_config=deepstack, **_tokens())


def qwen3_5_moe() -> PreTrainedConfig:
    text = {**linear_attention(), **_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32}
    return Qwen3_5MoeConfig(text_config=text, vision_config=_TOWER_3, **_tokens())


def _glm(cls: type[PreTrainedConfig], **text: Any) -> PreTrainedConfig:
    tower = {**_TOWER, "intermediate_size": 64, "out_hidden_size": 32, "image_size": 28}
    return cls(
        text_config=_text(**text),
        vision_config=tower,
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video_pad|>"),
        image_start_token_id=token("<|begin_of_image|>"),
        image_end_token_id=token("<|end_of_image|>"),
    )


def glm4v() -> PreTrainedConfig:
    return _glm(Glm4vConfig)


def glm46v() -> PreTrainedConfig:
    return _glm(Glm46VConfig)


def glm4v_moe() -> PreTrainedConfig:
    return _glm(Glm4vMoeConfig, **_EXPERTS, n_routed_experts=4, head_dim=16)


def glm_ocr() -> PreTrainedConfig:
    return _glm(GlmOcrConfig)


def paddleocr_vl() -> PreTrainedConfig:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return PaddleOCRVLConfig(
        text_config=_text(head_dim=8),
        vision_config={**tower, "image_size": 42, "patch_size": 7, "spatial_merge_size": 2},
        **_tokens(),
    )


def cohere_compass() -> PreTrainedConfig:
    """Has no row in the table: inputs of the forward and names in the configuration decide."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    rope = {kind: {**_INTERLEAVED, "rope_theta": 10000.0} for kind in kinds}
    text = _text(rope, num_hidden_layers=3, sliding_window=24, layer_types=kinds)
    return CohereCompassConfig(
        text_config=text, vision_config={**_TOWER_3, "deepstack_visual_indexes": [0, 1]}, **_tokens()
    )


def ernie4_5_vl_moe() -> PreTrainedConfig:
    """Has no row either. Images and text have separate experts."""
    tower = {**_TOWER, "intermediate_size": 64, "in_channels": 3, "temporal_merge_size": 2}
    experts = {"moe_intermediate_size": [32, 16], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
    names = {
        "image": token("<|image_pad|>"),
        "image_start": token("<|image_start|>"),
        "image_end": token("<|image_end|>"),
    }
    names |= {"video": token("<|video_pad|>")}
    return Ernie4_5_VLMoeConfig(
        text_config=_text(**experts), vision_config=tower, **{f"{name}_token_id": i for name, i in names.items()}
    )


FAMILIES = {
    "qwen2_vl": Family(qwen2_vl, {"image_size": 28}),
    "qwen2_5_vl": Family(qwen2_5_vl, {"image_size": 28}),
    "qwen3_vl": Family(qwen3_vl, {"image_size": 28}),
    "qwen3_5": Family(qwen3_5, {"image_size": 28}),
    "qwen3_vl_moe": Family(qwen3_vl_moe, {"image_size": 28}),
    "qwen3_5_moe": Family(qwen3_5_moe, {"image_size": 28}),
    "glm4v": Family(glm4v, {"image_size": 28}),
    "glm46v": Family(glm46v, {"image_size": 28}),
    "glm4v_moe": Family(glm4v_moe, {"image_size": 28}),
    "glm_ocr": Family(glm_ocr, {"image_size": 28}),
    "paddleocr_vl": Family(paddleocr_vl, {"image_size": 28}),
    "cohere_compass": Family(cohere_compass, {"image_size": 28}),
    "ernie4_5_vl_moe": Family(ernie4_5_vl_moe, {"image_size": 28}),
}
