"""LLaVA and the first rows of the table."""

from __future__ import annotations

from transformers import (
    CLIPVisionConfig,
    GemmaConfig,
    Idefics3Config,
    Kosmos2Config,
    LlamaConfig,
    LlavaConfig,
    PaliGemmaConfig,
    PreTrainedConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)

from tests.backbones.families.common import TEXT, VISION, VOCABULARY, Family, token


def llama() -> LlamaConfig:
    return LlamaConfig(**TEXT, vocab_size=VOCABULARY, max_position_embeddings=256, pad_token_id=0)


def llava() -> PreTrainedConfig:
    return LlavaConfig(text_config=llama(), vision_config=CLIPVisionConfig(**VISION), image_token_id=token("<image>"))


def paligemma() -> PreTrainedConfig:
    text = GemmaConfig(
        **TEXT, vocab_size=VOCABULARY, max_position_embeddings=256, head_dim=8, num_key_value_heads=1, pad_token_id=0
    )
    vision = SiglipVisionConfig(**VISION, projection_dim=32, vision_use_head=False)
    image = token("<image>")
    return PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_id=image, projection_dim=32, hidden_size=32
    )


def _idefics(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    image = token("<image>")
    return cls(text_config=llama(), vision_config=dict(VISION), image_token_id=image, scale_factor=2, pad_token_id=0)


def smolvlm() -> PreTrainedConfig:
    return _idefics(SmolVLMConfig)


def idefics3() -> PreTrainedConfig:
    return _idefics(Idefics3Config)


def kosmos2() -> PreTrainedConfig:
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "embed_dim": 32, "layers": 2, "ffn_dim": 64}
    return Kosmos2Config(text_config={**text, "attention_heads": 4}, vision_config=dict(VISION), latent_query_num=4)


FAMILIES = {
    "llava": Family(llava),
    "paligemma": Family(paligemma),
    "smolvlm": Family(smolvlm),
    "idefics3": Family(idefics3),
    "kosmos-2": Family(kosmos2),
}
