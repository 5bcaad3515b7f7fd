"""A backbone without a language model: a convolutional network whose channels the instruction modulates.

The mean of the instruction's token embeddings scales and shifts the channels of every convolution: FiLM (Perez et al.
2018, arXiv 1709.07871), as in BC-Z (arXiv 2202.02005) and RT-1 (arXiv 2212.06817). Queries attend to the feature maps
of all cameras. Tokenizer and image encoder are `nano`'s, and with equal options the number of parameters differs by
less than 5 %: the two differ in how they read language.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from anyvla.backbones.adapting.options import Options, Resampler
from anyvla.backbones.adapting.resampler import ReadingLayer
from anyvla.backbones.base import Cache, Capability, ModelPart
from anyvla.backbones.images.pixels import Pixels
from anyvla.backbones.nano.backbone import TOKENIZER
from anyvla.backbones.nano_vision import FIRST_STRIDE, ChannelNorm, grid_waves
from anyvla.backbones.step_tokens import StepTokenizer
from anyvla.backbones.template import Template
from anyvla.backbones.tokens import TokenBackbone
from anyvla.config import STRICT
from anyvla.limits import LAYERS, PIXELS, WIDTH
from anyvla.sequence.tokens import TokenSequence

CAMERAS = 8  # the most of one step


class FilmBackbone(TokenBackbone):
    """A small untrained convolutional network without a language model; the instruction modulates its channels."""

    capabilities: frozenset[Capability] = frozenset()  # it reads one step, and no position of text sees another

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config(Options):
        """The sizes of the network; with the defaults it has as many parameters as `nano`."""

        width: int = Field(default=192, ge=1, le=WIDTH)  # D, also of the feature map
        blocks: int = Field(default=1, ge=0, le=LAYERS)  # residual convolutions after the stem
        heads: int = Field(default=6, ge=1, le=LAYERS)  # of the queries' attention
        image_size: int = Field(default=96, ge=1, le=PIXELS)  # pixels, square; other sizes are scaled to it
        # of the stem's convolutions before the last, which has `width`
        channels: tuple[Annotated[int, Field(ge=1, le=WIDTH)], ...] = Field(default=(64, 128), max_length=8)
        instruction: bool = True  # false: a policy without language, which reads every instruction as the same word
        prompt: str = "{instruction}"  # text around the instruction

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.width % self.heads:
                raise ValueError(f"width {self.width} must be a multiple of heads ({self.heads})")
            stride = FIRST_STRIDE * 2 ** len(self.channels)
            if self.image_size % stride:
                raise ValueError(f"image_size {self.image_size} must be a multiple of the stem's stride, {stride}")

    def build(self, config: Any, assets: Path | None) -> StepTokenizer:
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER if assets is None else assets, trust_remote_code=False)
        self.width, self.reads_instruction = config.width, config.instruction
        numbers = {"size": config.image_size, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        self.pixels = Pixels(numbers, None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self._build_network(config, len(tokenizer))
        self.to(getattr(torch, config.dtype))
        return StepTokenizer(
            tokenizer,
            config.prompt,
            Template(opening="", text="{prompt}"),
            image_id=tokenizer.image_token_id,
            grid=(0, 0),  # images take no tokens
            vocabulary=len(tokenizer),
            context=None,
        )

    def _build_network(self, config: Any, vocabulary: int) -> None:
        width = config.width
        self.words = nn.Embedding(vocabulary, width)
        self.encoder = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.cameras = nn.Embedding(CAMERAS, width)
        nn.init.normal_(self.cameras.weight, std=0.2)  # as large as the encoder's output
        sizes = (3, *config.channels, width)
        kernels = (2 * FIRST_STRIDE, *[3] * len(config.channels))
        strides = (FIRST_STRIDE, *[2] * len(config.channels))
        pairs = zip(sizes, sizes[1:], kernels, strides, strict=False)
        self.stem = nn.ModuleList(FilmLayer(*pair, condition=width) for pair in pairs)
        self.blocks = nn.ModuleList(FilmLayer(width, width, 3, 1, condition=width) for _ in range(config.blocks))
        self.position = nn.Parameter(grid_waves(config.image_size // (FIRST_STRIDE * 2 ** len(config.channels)), width))
        attention = Resampler(heads=config.heads, head_width=width // config.heads, mlp=3)
        self.reader = ReadingLayer(width, attention)
        self.norm = nn.LayerNorm(width)

    @property
    def embedding(self) -> nn.Embedding:
        return self.words

    @property
    def lm_head(self) -> None:
        """There is none."""

    def part_modules(self) -> dict[ModelPart, tuple[nn.Module, ...]]:
        """Return the modules of each part. The language part makes scales and shifts of the instruction."""
        films = [layer.film for layer in (*self.stem, *self.blocks)]
        return {
            "vision": (self.stem, self.blocks),
            "projector": (self.reader, self.norm),
            "language": (self.encoder, *films),
            "embeddings": (self.words,),
        }

    def run_model(self, sequence: TokenSequence, cache: Cache | None) -> None:
        raise NotImplementedError("film computes readouts only: read_positions")

    def read_positions(
        self, sequence: TokenSequence, positions: Int64[Tensor, "n"], values: Float[Tensor, "n D"], cache: Cache | None
    ) -> Float[Tensor, "n D"]:
        """Return the readouts of the queries `values`, which attend to the images of their step and to each other.

        Raises ValueError for sequences of several steps, and for more cameras than it has embeddings of.
        """
        steps, views = sequence.images.shape[:2]
        if steps != len(sequence.input_ids):
            raise ValueError(f"film reads one step in a sequence: {len(sequence.input_ids)} sequences of {steps} steps")
        if views > CAMERAS:
            raise ValueError(f"film reads {CAMERAS} cameras at most, and the step has {views}")
        condition = self._read_instructions(sequence)[:, None] + self.cameras.weight[:views]  # (M, V, D)
        features = self._read_images(sequence, condition.flatten(0, 1)).unflatten(0, (steps, views)).flatten(1, 2)
        latents = values.to(features.dtype).unflatten(0, (steps, -1))
        return self.norm(self.reader(features, latents)).flatten(0, 1)

    def _read_instructions(self, sequence: TokenSequence) -> Float[Tensor, "M D"]:
        ids = sequence.input_ids
        if not self.reads_instruction:
            return self.encoder(self.words(ids.new_full((len(ids),), self.query_id)))
        text = (sequence.attention_mask & ~sequence.query_mask)[..., None]
        return self.encoder((self.words(ids) * text).sum(1) / text.sum(1).clamp_min(1))

    def _read_images(self, sequence: TokenSequence, condition: Float[Tensor, "N D"]) -> Float[Tensor, "N F D"]:
        """Return the F features of each of N = M * V images, whose camera and instruction are the condition."""
        x = self.pixels(sequence.images.flatten(0, 1).to(self.pixels.scale.device)).to(self.position.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.stem:
            x = layer(x, condition)
        for layer in self.blocks:
            x = x + layer(x, condition)
        return x.flatten(2).transpose(1, 2) + self.position

    def save_assets(self, folder: Path) -> None:
        """Write the tokenizer; the recipe has the sizes."""
        self.tokenizer.save_pretrained(folder)


class FilmLayer(nn.Module):
    """A convolution whose normalized channels are scaled and shifted by linear functions of a condition."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, condition: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2)
        self.norm = ChannelNorm(outputs)
        self.film = nn.Linear(condition, 2 * outputs)

    def forward(self, x: Float[Tensor, "N C h w"], condition: Float[Tensor, "N D"]) -> Tensor:
        scale, shift = self.film(condition)[..., None, None].chunk(2, dim=1)
        return F.gelu(self.norm(self.conv(x)) * (1 + scale) + shift)
