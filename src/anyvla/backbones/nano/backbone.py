"""A small, untrained vision-language model for laptops, tests and first experiments.

It is a complete LLaVA model of `transformers` (convolutional vision tower, projector, causal Llama) with a real
tokenizer. The same adapter reads and saves it as models with billions of parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer, LlamaConfig, LlavaConfig

from anyvla.backbones.adapting.options import Options
from anyvla.backbones.auto import AutoBackbone, LoadedModel
from anyvla.backbones.base import CAPABILITIES, Cache
from anyvla.backbones.hooks import set_attribute
from anyvla.backbones.nano.layers import simplify_layers, trust_layout
from anyvla.backbones.nano_vision import NanoVisionConfig
from anyvla.config import STRICT
from anyvla.limits import COUNT, LAYERS, PIXELS, SEED, WIDTH
from anyvla.sequence.tokens import TokenSequence

TOKENIZER = Path(__file__).parent / "assets"


class NanoBackbone(AutoBackbone):
    """An untrained LLaVA of a few million parameters."""

    capabilities = frozenset(CAPABILITIES)

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Options):
        """The sizes of the model; the defaults train in minutes on two CPU cores."""

        width: int = Field(default=192, ge=1, le=WIDTH)  # D
        layers: int = Field(default=2, ge=1, le=LAYERS)  # of the language model
        heads: int = Field(default=6, ge=1, le=LAYERS)  # of attention
        mlp: int = Field(default=512, ge=1, le=WIDTH)  # inner width of the gated feed-forward
        image_size: int = Field(default=96, ge=1, le=PIXELS)  # pixels, square; other sizes are scaled to it
        # of the stem's convolutions before the last, which has `width`
        channels: tuple[Annotated[int, Field(ge=1, le=WIDTH)], ...] = Field(default=(64, 128), max_length=8)
        context: int = Field(default=4096, ge=1, le=COUNT)  # tokens
        seed: int = Field(default=0, ge=0, le=SEED)  # of the initial weights
        prompt: str = "{instruction}"  # text around the instruction

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.width % (2 * self.heads):
                raise ValueError(f"width {self.width} must be a multiple of 2 x heads ({2 * self.heads})")
            stride = NanoVisionConfig(channels=self.channels).stride
            if self.image_size % stride:
                raise ValueError(f"image_size {self.image_size} must be a multiple of the stem's stride, {stride}")

    def load(self, config: Any, assets: Path | None) -> LoadedModel:
        if assets is not None:
            loaded = super().load(config, assets)
            simplify_layers(loaded.model.model.language_model)
            trust_layout(loaded.model.model)
            return loaded
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = AutoModelForImageTextToText.from_config(
                _model_config(config, tokenizer), dtype=getattr(torch, config.dtype)
            )
        simplify_layers(model.model.language_model)
        trust_layout(model.model)
        size = {"height": config.image_size, "width": config.image_size}
        preprocessor = {"size": size, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return LoadedModel(model, tokenizer, preprocessor)

    def compute_features(self, images: UInt8[Tensor, "M V H W 3"]) -> Float[Tensor, "N F E"]:
        return self.model.model.vision_tower(self._pixel_values(images)).last_hidden_state

    @contextmanager
    def _make_image_inputs(self, sequence: TokenSequence) -> Iterator[dict[str, Any]]:
        kept = self.frozen_features is not None and len(sequence.images) > 0
        given = self.read_features(sequence.images) if kept else None
        tower = self.model.model.vision_tower
        with set_attribute([tower], "given", given), super()._make_image_inputs(sequence) as inputs:
            yield inputs

    def read_positions(
        self, sequence: TokenSequence, positions: Int64[Tensor, "n"], values: Float[Tensor, "n D"], cache: Cache | None
    ) -> Float[Tensor, "n D"]:
        """Return the same as the general method; in the common case, call the parts of the model directly.

        The calls of `transformers` around them cost as much as the layers of a model of this size.
        """
        readouts = _group_by_sequence(positions, sequence)
        if readouts is None or cache is not None or sequence.block_mask is not None or self.resampler is not None:
            return super().read_positions(sequence, positions, values, cache)
        core = self.model.model
        language = core.language_model
        features = core.multi_modal_projector(self.read_features(sequence.images)).flatten(0, 1)
        ids = sequence.input_ids
        images = self.find_images(sequence)
        x = language.embed_tokens(ids).flatten(0, 1)
        for places, embeddings in ((images, features), (positions, values)):
            x = x.index_copy(0, places, embeddings.to(x.dtype))
        x = x.view(*ids.shape, -1)
        rotation = language.rotary_emb(x, torch.arange(ids.shape[1], device=x.device)[None])
        *layers, last = language.layers
        for layer in layers:
            x = layer(x, position_embeddings=rotation)
        return language.norm(last(x, position_embeddings=rotation, readouts=readouts)).flatten(0, 1)


def _group_by_sequence(positions: Int64[Tensor, "n"], sequence: TokenSequence) -> Int64[Tensor, "S R"] | None:
    """Return the positions in each of S sequences, or None if their number differs or there is no image."""
    count, length = sequence.input_ids.shape
    if not len(sequence.images) or len(positions) % count:
        return None
    own = positions.view(count, -1) - torch.arange(count, device=positions.device)[:, None] * length
    if sequence.on_host is not None:
        return own if len(set(sequence.on_host.query_mask.sum(1).tolist())) == 1 else None
    return own if bool(((own >= 0) & (own < length)).all()) else None


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
