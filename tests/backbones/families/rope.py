"""Families whose positions have three axes, time, height and width (M-RoPE): Qwen-VL, GLM-4V and their kin."""

from __future__ import annotations

from transformers import PreTrainedConfig, Qwen2_5_VLConfig

from families.common import TEXT, VOCABULARY, Family, token


def qwen2_5_vl() -> PreTrainedConfig:
    text = {
        **TEXT,
        "vocab_size": VOCABULARY,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 7,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 28,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )


FAMILIES = {"qwen2_5_vl": Family(qwen2_5_vl, {"image_size": 28})}
