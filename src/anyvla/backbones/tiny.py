"""Untrained vision-language models of several families, as small as `nano`, to compare families on a laptop.

Each is a complete model of `transformers` with random weights and `nano`'s tokenizer; no files are needed. All read an
image as one token for 32 x 32 pixels, with as many layers and widths, so that they differ in what defines a family: the
vision tower, how it shortens images, positions and attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    PaliGemmaConfig,
    PreTrainedConfig,
    Qwen2VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)

from anyvla.backbones.adapting.options import Options
from anyvla.backbones.auto import AutoBackbone, LoadedModel, find_quirk_of
from anyvla.backbones.base import Capability, capabilities_without
from anyvla.backbones.nano.backbone import TOKENIZER
from anyvla.config import STRICT
from anyvla.limits import COUNT, LAYERS, PIXELS, SEED, WIDTH

STRIDE = 32  # pixels a token


class TinyBackbone(AutoBackbone):
    """An untrained SmolVLM, Qwen2-VL, PaliGemma or LLaVA (`family`) of a few million parameters."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Options):
        """The family, and the sizes of both towers."""

        family: Literal["smolvlm", "qwen2_vl", "paligemma", "llava"]  # of transformers
        width: int = Field(default=192, ge=1, le=WIDTH)  # D, of both towers
        layers: int = Field(default=2, ge=1, le=LAYERS)  # of the language model
        vision_layers: int = Field(default=2, ge=1, le=LAYERS)  # of the vision tower
        heads: int = Field(default=6, ge=1, le=LAYERS)  # of attention
        mlp: int = Field(default=3, ge=1, le=64)  # inner width of the feed-forward, in multiples of the outer
        image_size: int = Field(default=96, ge=STRIDE, le=PIXELS)  # pixels, square; other sizes are scaled to it
        context: int = Field(default=4096, ge=1, le=COUNT)  # tokens
        seed: int = Field(default=0, ge=0, le=SEED)  # of the weights
        prompt: str = "{instruction}"  # text around the instruction

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.width % (4 * self.heads):
                raise ValueError(f"width {self.width} must be a multiple of 4 x heads ({4 * self.heads})")
            if self.image_size % STRIDE:
                raise ValueError(f"image_size {self.image_size} must be a multiple of {STRIDE}")

    @classmethod
    def find_capabilities(cls, config: Any, assets: Path | None = None) -> frozenset[Capability] | None:
        family = FAMILIES[config.family]
        return capabilities_without(find_quirk_of(family.build(config, family.make_tokenizer())).lacks)

    def load(self, config: Any, assets: Path | None) -> LoadedModel:
        if assets is not None:
            return super().load(config, assets)
        family = FAMILIES[config.family]
        tokenizer, dtype = family.make_tokenizer(), getattr(torch, config.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = AutoModelForImageTextToText.from_config(family.build(config, tokenizer), dtype=dtype)
        size = {"height": config.image_size, "width": config.image_size}
        preprocessor = {"size": size, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return LoadedModel(model, tokenizer, preprocessor)


@plain_dataclass(frozen=True)
class Family:
    """How to make a small model of a family."""

    build: Callable[[Any, Any], PreTrainedConfig]  # its configuration, of the options and the tokenizer
    tokens: tuple[str, ...] = ()  # that the family writes around images

    def make_tokenizer(self) -> Any:
        """Return nano's tokenizer with the tokens of the family."""
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        tokenizer.add_tokens(list(self.tokens), special_tokens=True)
        return tokenizer


def _text(config: Any, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": config.width,
        "intermediate_size": config.mlp * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "max_position_embeddings": config.context,
        "initializer_range": config.width**-0.5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }


def _vision(config: Any, patch: int) -> dict[str, Any]:
    return {
        "image_size": config.image_size,
        "patch_size": patch,
        "hidden_size": config.width,
        "intermediate_size": config.mlp * config.width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.heads,
        "initializer_range": config.width**-0.5,
    }


def _smolvlm(config: Any, tokenizer: Any) -> PreTrainedConfig:
    """Merge 2 x 2 patches of 16 pixels into one token (pixel shuffle)."""
    return SmolVLMConfig(
        text_config=LlamaConfig(**_text(config, tokenizer)),
        vision_config=_vision(config, STRIDE // 2),
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=True,
    )


def _qwen2_vl(config: Any, tokenizer: Any) -> PreTrainedConfig:
    """Merge 2 x 2 patches of 16 pixels into one token; positions in time, height and width (M-RoPE)."""
    half = config.width // config.heads // 2
    sections = [half - half // 4 - half // 2, half // 4, half // 2]
    tower = {
        "depth": config.vision_layers,
        "embed_dim": config.width,
        "hidden_size": config.width,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp,
        "patch_size": STRIDE // 2,
        "initializer_range": config.width**-0.5,
    }
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|vision_start|>", "<|vision_end|>"))
    return Qwen2VLConfig(
        text_config={
            **_text(config, tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": sections},
        },
        vision_config=tower,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )


def _paligemma(config: Any, tokenizer: Any) -> PreTrainedConfig:
    """Read patches of 32 pixels; image and instruction see each other, and all heads share keys and values."""
    text = {**_text(config, tokenizer), "num_key_value_heads": 1, "head_dim": config.width // config.heads}
    return PaliGemmaConfig(
        text_config=GemmaConfig(**text),
        vision_config=SiglipVisionConfig(**_vision(config, STRIDE), projection_dim=config.width, vision_use_head=False),
        image_token_id=tokenizer.image_token_id,
        projection_dim=config.width,
        hidden_size=config.width,
        tie_word_embeddings=True,
    )


def _llava(config: Any, tokenizer: Any) -> PreTrainedConfig:
    """Read patches of 32 pixels, from the last layer of the tower, so that all of it is trained."""
    return LlavaConfig(
        text_config=LlamaConfig(**_text(config, tokenizer)),
        vision_config=CLIPVisionConfig(**_vision(config, STRIDE)),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


FAMILIES: Mapping[str, Family] = {
    "smolvlm": Family(_smolvlm, ("<fake_token_around_image>", "<global-img>")),
    "qwen2_vl": Family(_qwen2_vl, ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")),
    "paligemma": Family(_paligemma),
    "llava": Family(_llava),
}
