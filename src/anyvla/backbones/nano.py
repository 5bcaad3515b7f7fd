"""A small vision-language model made on the spot, for laptops, tests and first experiments.

It is a real one: a LLaVA model of `transformers` (convolutional vision tower, projector, causal Llama) with a real
tokenizer, read by the same adapter as a model of billions of parameters, and saved as any of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlamaConfig, LlavaConfig

from anyvla.backbones.auto import AutoBackbone, Parts
from anyvla.backbones.base import CAPABILITIES
from anyvla.backbones.nano_vision import NanoVisionConfig
from anyvla.backbones.options import Options
from anyvla.config import STRICT

TOKENIZER = Path(__file__).parent / "nano_assets"


class NanoBackbone(AutoBackbone):
    """An untrained LLaVA of a few million parameters."""

    capabilities = frozenset(CAPABILITIES)

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Options):
        """Its size; the defaults train in minutes on two CPU cores."""

        width: int = 192  # D
        layers: int = 2  # of the language model
        heads: int = 6
        mlp: int = 512  # inner width of the gated feed-forward
        image_size: int = 96  # pixels, square; other sizes are scaled to it
        channels: tuple[int, ...] = (64, 128)  # of the stem's convolutions before the last, which has `width`
        context: int = 4096  # tokens
        seed: int = 0  # of the initial weights
        prompt: str = "{instruction}"

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("width", "layers", "heads", "mlp", "image_size", "context"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
            if self.width % (2 * self.heads):
                raise ValueError(f"width {self.width} must be a multiple of 2 x heads ({2 * self.heads})")
            stride = NanoVisionConfig(channels=self.channels).stride
            if self.image_size % stride:
                raise ValueError(f"image_size {self.image_size} must be a multiple of the stem's stride, {stride}")

    def parts(self, config: Any, assets: Path | None) -> Parts:
        if assets is not None:
            return super().parts(config, assets)
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = AutoModelForImageTextToText.from_config(
                _model_config(config, tokenizer), dtype=getattr(torch, config.dtype)
            )
        size = {"height": config.image_size, "width": config.image_size}
        preprocessor = {"size": size, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return Parts(model, tokenizer, preprocessor)


def _model_config(config: Any, tokenizer: Any) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.context,
        initializer_range=config.width**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    vision = NanoVisionConfig(image_size=config.image_size, channels=config.channels, hidden_size=config.width)
    return LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=(config.image_size // vision.stride) ** 2,
        tie_word_embeddings=True,
    )
