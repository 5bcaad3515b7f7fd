"""Families whose positions have three axes, time, height and width (M-RoPE): Qwen-VL, GLM-4V and their kin."""

from __future__ import annotations

from typing import Any

from transformers import (
    Glm4vConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3VLConfig,
)

from families.common import TEXT, VOCABULARY, Family, token

_TEXT: dict[str, Any] = {
    **TEXT,
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
}
_TOWER: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 7, "spatial_merge_size": 2}
_TOWER_3 = {**_TOWER, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 36}
_INTERLEAVED = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}


def _tokens() -> dict[str, int]:
    return {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def qwen2_vl() -> PreTrainedConfig:
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 7}
    return Qwen2VLConfig(text_config=_TEXT, vision_config=tower, **_tokens())


def qwen2_5_vl() -> PreTrainedConfig:
    windows = {"intermediate_size": 64, "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 28}
    return Qwen2_5_VLConfig(text_config=_TEXT, vision_config={**_TOWER, **windows}, **_tokens())


def qwen3_vl() -> PreTrainedConfig:
    text = {**_TEXT, "head_dim": 8, "rope_parameters": _INTERLEAVED}
    deepstack = {**_TOWER_3, "deepstack_visual_indexes": [0, 1]}
    return Qwen3VLConfig(text_config=text, vision_config=deepstack, **_tokens())


def linear_attention() -> dict[str, Any]:
    """The language model of Qwen 3.5: three layers of linear attention, then a full one."""
    return {
        **_TEXT,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": {**_INTERLEAVED, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.25},
    }


def qwen3_5() -> PreTrainedConfig:
    return Qwen3_5Config(text_config=linear_attention(), vision_config=_TOWER_3, **_tokens())


def glm4v() -> PreTrainedConfig:
    tower = {**_TOWER, "intermediate_size": 64, "out_hidden_size": 32, "image_size": 28}
    return Glm4vConfig(
        text_config=_TEXT,
        vision_config=tower,
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video_pad|>"),
        image_start_token_id=token("<|begin_of_image|>"),
        image_end_token_id=token("<|end_of_image|>"),
    )


FAMILIES = {
    "qwen2_vl": Family(qwen2_vl, {"image_size": 28}),
    "qwen2_5_vl": Family(qwen2_5_vl, {"image_size": 28}),
    "qwen3_vl": Family(qwen3_vl, {"image_size": 28}),
    "qwen3_5": Family(qwen3_5, {"image_size": 28}),
    "glm4v": Family(glm4v, {"image_size": 28}),
}
