"""What every backbone over tokens can be asked in a recipe. Its `Config` inherits these."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT
from anyvla.limits import LAYERS, SEED, STEPS, WEIGHT, WIDTH

Pretrained = Literal["full", "language_only", "vision_only", "none"]
Quantize = Literal["int8", "int4"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    """Which parts get gradients. With LoRA, what it adapts stays frozen beneath it, and so do the embeddings."""

    vision: bool = True  # a frozen tower stays in eval mode too
    projector: bool = True  # between vision tower and language model
    language: bool = True  # the layers of the language model
    embeddings: bool = True  # the token embeddings


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Lora:
    """Low-rank matrices beside the linear layers of a frozen language model (arXiv 2106.09685)."""

    rank: int = Field(default=32, ge=1, le=WIDTH)  # of the matrices
    alpha: float = Field(default=16, gt=0, le=WEIGHT)  # what the matrices add is scaled by alpha / rank
    dropout: float = Field(default=0, ge=0, lt=1)  # probability, in training
    vision: bool = False  # the vision tower's linear layers too
    targets: tuple[str, ...] | None = None  # names of layers, such as q_proj; None: all linear layers but routers


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Resampler:
    """A Perceiver resampler after the projector: each image takes `tokens` places (arXiv 2204.14198)."""

    tokens: int = Field(default=64, ge=1, le=STEPS)  # per image
    depth: int = Field(default=6, ge=1, le=LAYERS)  # layers
    heads: int = Field(default=8, ge=1, le=LAYERS)  # of attention
    head_width: int = Field(default=64, ge=1, le=WIDTH)  # dims per head
    mlp: int = Field(default=4, ge=1, le=64)  # inner width of the feed-forward, in multiples of the outer


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Options of every `TokenBackbone`."""

    prompt: str = "What action should the robot take to {instruction}?"  # RoboVLMs' (arXiv 2412.14058)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights; autocast is the trainer's business
    pretrained: Pretrained = "full"  # which parts keep the checkpoint's weights; the others are as if never trained
    # the language model's first ones are kept (SmolVLA); None: all
    layers: int | None = Field(default=None, ge=1, le=LAYERS)
    train: Train = Train()
    lora: Lora | None = None
    quantize: Quantize | None = None  # the language model's linear layers, which are then frozen; LoRA trains beside
    resampler: Resampler | None = None
    seed: int = Field(default=0, ge=0, le=SEED)  # of all weights that no checkpoint gives

    def __post_init__(self) -> None:
        if "{instruction}" not in self.prompt:
            raise ValueError(f"the prompt {self.prompt!r} must contain {{instruction}}, the place of the instruction")
