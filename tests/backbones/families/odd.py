"""Families with unusual designs: encoder-decoders, a Q-Former that reads text, images as discrete tokens."""

from __future__ import annotations

from typing import Any

from transformers import (
    BartConfig,
    Blip2Config,
    Emu3Config,
    Florence2Config,
    FuyuConfig,
    InstructBlipConfig,
    Kosmos2_5Config,
    Molmo2Config,
    OPTConfig,
    PreTrainedConfig,
    T5Config,
    T5Gemma2Config,
)

from tests.backbones.families.basic import llama
from tests.backbones.families.common import JUMPING, PREPROCESSOR, TEXT, VISION, VOCABULARY, Family, token


def florence2() -> PreTrainedConfig:
    """Like the real tower: convolutions between stages, windows, attention over channels."""
    text = BartConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        forced_eos_token_id=None,
    )
    tower = {
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "embed_dim": [16, 32],
        "num_heads": [2, 4],
        "num_groups": [2, 4],
        "window_size": 4,
        "projection_dim": 32,
    }
    return Florence2Config(text_config=text.to_dict(), vision_config=tower, image_token_id=token("<image>"))


def _opt() -> OPTConfig:
    return OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )


def _t5() -> T5Config:
    """Like Flan-T5: gated feed-forward, untied head."""
    return T5Config(
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        vocab_size=VOCABULARY,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    )


def _with_qformer(cls: type[PreTrainedConfig], text: PreTrainedConfig) -> PreTrainedConfig:
    vision = {**TEXT, "image_size": 28, "patch_size": 7}
    return cls(
        vision_config=vision,
        qformer_config={
            **TEXT,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "cross_attention_frequency": 1,
        },
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=token("<image>"),
    )


def blip2_opt() -> PreTrainedConfig:
    return _with_qformer(Blip2Config, _opt())


def blip2_t5() -> PreTrainedConfig:
    return _with_qformer(Blip2Config, _t5())


def instructblip() -> PreTrainedConfig:
    return _with_qformer(InstructBlipConfig, llama())


def instructblip_t5() -> PreTrainedConfig:
    return _with_qformer(InstructBlipConfig, _t5())


def t5gemma2() -> PreTrainedConfig:
    """Every second layer has a window that is shorter than these sequences."""
    text: dict[str, Any] = {
        **TEXT,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    tower = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
    ends = {"boi_token_index": token("<start_of_image>"), "eoi_token_index": token("<end_of_image>")}
    encoder = {"text_config": text, "vision_config": tower, "mm_tokens_per_image": 4, **ends}
    return T5Gemma2Config(encoder=encoder, decoder=text, image_token_index=token("<image>"))


_OWN_MEAN = {"image_processor_type": "Kosmos2_5ImageProcessor", "do_normalize": True, "max_patches": 16}
_QFORMER: dict[str, Any] = {"second_tokenizer": "qformer_tokenizer"}


def kosmos2_5() -> PreTrainedConfig:
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "embed_dim": 32, "layers": 2, "ffn_dim": 64}
    vision = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "num_hidden_layers": 2, "max_num_patches": 16}
    return Kosmos2_5Config(
        text_config={**text, "attention_heads": 4},
        vision_config={**vision, "num_attention_heads": 4, "patch_embed_hidden_size": 3 * 7 * 7},
        latent_query_num=4,
    )


def fuyu() -> PreTrainedConfig:
    text = {**TEXT, "vocab_size": VOCABULARY, "max_position_embeddings": 256, "qk_layernorm": True}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return FuyuConfig(
        text_config={"model_type": "persimmon", **text, **ids, "partial_rotary_factor": 0.5},
        patch_size=7,
        image_token_id=token("|SPEAKER|"),
    )


def emu3() -> PreTrainedConfig:
    """Tokens are eight pixels wide, as in the real tower; the codebook is at the end of the vocabulary."""
    codes = 64
    tower = {
        "codebook_size": codes,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "hidden_size": 32,
        "attn_resolutions": [3],
    }
    text = {**TEXT, "vocab_size": VOCABULARY, "num_key_value_heads": 2, "max_position_embeddings": 256}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    visual = {f"<|visual token {code:06d}|>": VOCABULARY - codes + code for code in range(codes)}
    ends = {name: token(name) for name in ("<image>", "<|extra_200|>")}
    return Emu3Config(vq_config=tower, text_config={**text, **ids}, vocabulary_map=visual | ends)


def molmo2() -> PreTrainedConfig:
    """Rows of an odd number of patches, features of two layers of the tower, query-key norms."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    sizes = {"hidden_size": 32, "intermediate_size": 64}
    return Molmo2Config(
        text_config={
            **sizes,
            **heads,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "vocab_size": VOCABULARY,
            "additional_vocab_size": 8,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        vision_config={**sizes, **heads, "num_hidden_layers": 2, "image_size": [35, 35], "patch_size": 7},
        adapter_config={**sizes, **heads, "vision_feature_layer": [1, 0], "text_hidden_size": 32},
        image_patch_id=token("<im_patch>"),
        image_end_token_id=token("<im_end>"),
        low_res_image_start_token_id=token("<low_res_im_start>"),
    )


FAMILIES: dict[str, Family] = {
    "florence2": Family(florence2, {"image_size": 32}),
    "blip2-opt": Family(blip2_opt),
    "blip2-t5": Family(blip2_t5),
    "instructblip": Family(instructblip, **_QFORMER),
    "instructblip-t5": Family(instructblip_t5, **_QFORMER),
    "t5gemma2": Family(t5gemma2),
    "kosmos-2.5": Family(kosmos2_5, {"image_size": 28}, _OWN_MEAN),
    "fuyu": Family(fuyu, {"image_size": 28}, {**PREPROCESSOR, "image_mean": 0.5, "image_std": 0.5}),
    "emu3": Family(emu3, {"image_size": 32}, seed=JUMPING),
    "molmo2": Family(molmo2, preprocessor={**PREPROCESSOR, "size": {"height": 35, "width": 35}}),
}
