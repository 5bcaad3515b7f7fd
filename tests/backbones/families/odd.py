"""Families that are built unlike the others: encoder-decoders, a Q-Former that reads too, images as discrete tokens."""

from __future__ import annotations

from typing import Any

from transformers import (
    BartConfig,
    Blip2Config,
    Florence2Config,
    InstructBlipConfig,
    OPTConfig,
    PreTrainedConfig,
    T5Config,
)

from families.basic import llama
from families.common import TEXT, VOCABULARY, Family, token


def florence2() -> PreTrainedConfig:
    """The tower as the real one: convolutions between stages, windows, attention over channels."""
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
    """As Flan-T5: gated feed-forward, no tied head."""
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


_QFORMER: dict[str, Any] = {"second_tokenizer": "qformer_tokenizer"}

FAMILIES: dict[str, Family] = {
    "florence2": Family(florence2, {"image_size": 32}),
    "blip2-opt": Family(blip2_opt),
    "blip2-t5": Family(blip2_t5),
    "instructblip": Family(instructblip, **_QFORMER),
    "instructblip-t5": Family(instructblip_t5, **_QFORMER),
}
