"""Families whose vision tower comes from the optional package timm; empty if timm is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from transformers import FastVlmConfig, PerceptionLMConfig, PreTrainedConfig, Qwen2Config

from tests.backbones.families.basic import llama
from tests.backbones.families.common import GROUPED, PREPROCESSOR, Family, token


def fast_vlm() -> PreTrainedConfig:
    """A tower of convolutions without position embeddings; a token is 64 pixels wide."""
    sizes = {"embed_dims": [8, 8, 16, 32, 32], "layers": [1, 1, 1, 1, 1]}
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "fastvit_mci3",
        "do_pooling": True,
        "global_pool": "avg",
        "hidden_size": 64,
        "initializer_range": 0.3,  # the real one, 0.02, makes the output of convolutions zero
        "model_args": {"inference_mode": True, "layer_scale_init_value": 1.0, **sizes},
    }
    return FastVlmConfig(
        text_config=Qwen2Config(**GROUPED), vision_config=vision, image_token_index=token("<image>"), image_seq_length=4
    )


def perception_lm() -> PreTrainedConfig:
    size = {"embed_dim": 32, "img_size": [28, 28], "depth": 2, "num_heads": 4, "ref_feat_shape": [2, 2]}
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_large_patch14_336",
        "do_pooling": False,
        "model_args": {**size, "global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1},
    }
    return PerceptionLMConfig(
        text_config=llama(),
        vision_config=vision,
        image_token_id=token("<|image|>"),
        video_token_id=token("<video>"),
        vision_use_cls_token=True,
    )


_SIZE = {**PREPROCESSOR, "size": {"height": 128, "width": 128}}
_TIMM = {"fast_vlm": Family(fast_vlm, preprocessor=_SIZE), "perception_lm": Family(perception_lm)}
FAMILIES = _TIMM if find_spec("timm") is not None else {}
